"""How fast the loss path and the student loop are, beside the published formulas and the machine's limit.

    python benchmark.py               # prints the tables
    python benchmark.py --publish     # also writes results/benchmark.*, and the short table in README.md

Loss path: logits and weak labels in, value and gradients out.

    published  the formula as in the papers' code: exponentials, one-hot tensors, a loop over models; autograd
    eager      value_and_gradient of the method file
    compiled   the same through torch.compile, as --compile on has it
    limit      the bytes that must move (logits and weak labels read once, the gradient written once) at the
               bandwidth of a large copy, measured in the same process

Half types: the published form computes in the type of its inputs, ours in float32.

Student loop: one training of a linear probe by naive.train_student, beside one by the usual DataLoader loop,
and beside its matrix products and the optimizer's bytes (parameters and moments read and written, gradients
read).

Every entry is measured in a process of its own, where all it compares has been warmed up; times of the loss
path are medians of 21, on CUDA between device events and with other data in the cache. On a CPU the C library
is told to keep the memory it has, as CUDA's allocator does and as it does with tensors of a usual batch. Left
alone it returns large ones to the system, and to obtain them again takes longer than to compute: "unkept".
"""

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).resolve().parent / "methods"))

import adaptive_confidence
import confidence
import naive
import raven

import fast
import models
import summarize
import training

HERE = Path(__file__).resolve().parent
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**28)}
SHAPES = [(16384, 1000), (4096, 32000)]
DTYPES = ["float32", "bfloat16"]
# For the cost in N, M and C: RAVEN, compiled, one of the three at a time doubled twice.
SCALING = [(8192, 3, 1000), (16384, 3, 1000), (32768, 3, 1000), (16384, 6, 1000), (16384, 12, 1000)]
SCALING += [(16384, 3, 500), (16384, 3, 250)]
PROBES = {"cuda": [(40_000, 2048, 1000)], "cpu": [(20_000, 768, 1000), (20_000, 128, 10)]}
EPOCHS, BATCH_SIZE, LR = 20, 128, 1e-3
REPEATS = 21
HEAVY = ("torchvision", "datasets", "matplotlib", "transformers", "torch._dynamo")


# ------------------------------------------------------------------------- the losses as they were published


def published_naive(student_logits, weak_probs):
    return F.cross_entropy(student_logits[:, 0], weak_probs[:, 0])


def published_confidence(student_logits, weak_probs, a):
    student_logits, weak_probs = student_logits[:, 0], weak_probs[:, 0]
    own = F.one_hot(student_logits.detach().argmax(1), student_logits.shape[1]).to(student_logits.dtype)
    return (1 - a) * F.cross_entropy(student_logits, weak_probs) + a * F.cross_entropy(student_logits, own)


def published_adaptive_confidence(student_logits, weak_probs, ramp):
    student_logits, weak_probs = student_logits[:, 0], weak_probs[:, 0]
    with torch.no_grad():
        own, weak = student_logits.argmax(1), weak_probs.argmax(1)
        to_own, to_weak = (F.cross_entropy(student_logits, k, reduction="none") / 8 for k in (own, weak))
        b = ramp * to_own.exp() / (to_own.exp() + to_weak.exp())
    divergence = F.kl_div(F.log_softmax(student_logits, 1), weak_probs, reduction="none").sum(1)
    return ((1 - b) * divergence + b * F.cross_entropy(student_logits, own, reduction="none")).mean()


def published_raven(student_logits, weak_probs, weights, keep):
    targets = 0
    for m in range(weak_probs.shape[1]):
        targets = targets + weights[m] * weak_probs[:, m]
    targets = targets / targets.sum(1, keepdim=True)
    return (keep * F.cross_entropy(student_logits[:, 0], targets, reduction="none")).mean()


LOSSES = {  # published, ours
    "naive": (published_naive, naive.value_and_gradient),
    "confidence": (published_confidence, confidence.value_and_gradient),
    "adaptive_confidence": (
        published_adaptive_confidence,
        functools.partial(adaptive_confidence.value_and_gradient, temperature=8.0),
    ),
    "raven": (published_raven, raven.value_and_gradient),
}


def differentiate(loss, student_logits, weak_probs, *more):
    """Value and gradient of a published loss, with RAVEN's weights in `more` those of the weights, too."""
    leaves = [each.detach().requires_grad_() for each in (student_logits, *more[:-1])]
    value = loss(leaves[0], weak_probs, *leaves[1:], *more[-1:])
    return value.detach(), *torch.autograd.grad(value, leaves)


def arguments(entry: dict) -> list[torch.Tensor]:
    """What both take: student_logits (N, 1, C), weak_probs (N, M, C), where M = 1 but for RAVEN; then what is
    the method's own: the trust a, the ramp of b, or weights and keep."""
    generator = torch.Generator().manual_seed(0)
    n, m, c = entry["n"], entry["m"], entry["c"]
    student_logits = 3 * torch.randn(n, 1, c, generator=generator)
    weak_probs = torch.randn(n, m, c, generator=generator).softmax(-1)
    own = {
        "confidence": [torch.tensor(0.5)],
        "adaptive_confidence": [torch.tensor(1.0)],
        "raven": [torch.full((m,), 1 / m), torch.ones(n, dtype=torch.bool)],
    }
    halves = [part.to(getattr(torch, entry["dtype"])) for part in (student_logits, weak_probs)]
    return [part.to(entry["device"]) for part in (*halves, *own.get(entry["method"], []))]


# ---------------------------------------------------------------------------------------------- the stopwatch


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_of(run, device: str) -> float:
    """Median seconds of run()."""
    for _ in range(3):
        run()
    if device == "cuda":
        other = torch.zeros(2**28, device=device)  # 1 GB; while it is read 8 times, the host gets ahead
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
        for start, end in events:
            for _ in range(8):
                other.sum()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return median(start.elapsed_time(end) for start, end in events) / 1000
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def bandwidth(device: str) -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.randn(2**27, device=device)  # 512 MB
    target = torch.empty_like(source)
    return 2 * source.nbytes / time_of(lambda: target.copy_(source), device)


def peak_memory(run, device: str) -> int:
    """Bytes that run() holds at its worst, its results included, beyond what was there before."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as seen:
        run()
    held = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


# ------------------------------------------------------------------------------------------------ the entries


def measure_loss(entry: dict) -> dict:
    """Milliseconds of each variant, and its peak memory in gradients."""
    device, inputs = entry["device"], arguments(entry)
    published, ours = LOSSES[entry["method"]]
    variants = {"published": functools.partial(differentiate, published), "eager": ours}
    variants["compiled"] = fast.compiled(ours, True)
    least = 2 * inputs[0].nbytes + inputs[1].nbytes
    figures = {"limit": 1e3 * least / bandwidth(device)}
    for name in entry["variants"]:
        run = functools.partial(variants[name], *inputs)
        figures[name] = 1e3 * time_of(run, device)
        figures[f"{name}_memory"] = peak_memory(run, device) / inputs[0].nbytes
    return figures


def loader_loop(student, x, weak_probs):
    """The usual loop: samples are collated one by one and copied to the device batch by batch."""
    device = x.device
    dataset = torch.utils.data.TensorDataset(x.cpu(), weak_probs.cpu())
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(student.parameters(), lr=LR)
    steps = EPOCHS * math.ceil(len(x) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator).tolist()  # that of our loop
        for features, targets in torch.utils.data.DataLoader(dataset, BATCH_SIZE, sampler=order):
            student_logits = student(features.to(device))
            loss = F.cross_entropy(student_logits[:, 0], targets.to(device)[:, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def our_loop(student, x, weak_probs, compiled):
    naive.train_student(
        student=student, x=x, weak_probs=weak_probs, labels=None, epochs=EPOCHS, lr=LR,
        batch_size=BATCH_SIZE, seed=0, compiled=compiled,
    )  # fmt: skip


def products_loop(student, x, weak_probs):
    """The matrix products of all steps, forward and backward, and a copy of the optimizer's bytes in each."""
    weight, batch = student.linear.weight.detach(), x[:BATCH_SIZE].clone()
    gradient = torch.randn(len(batch), len(weight), device=x.device)
    moved = torch.randn(7 * weight.numel() // 2, device=x.device)
    target = torch.empty_like(moved)
    for _ in range(EPOCHS * math.ceil(len(x) / BATCH_SIZE)):
        batch @ weight.T
        gradient.T @ batch
        target.copy_(moved)


def measure_loop(entry: dict) -> dict:
    """Seconds of a training of EPOCHS epochs, and the accuracy that it ends with."""
    n, m, d, c, device, variant = (entry[key] for key in ("n", "m", "d", "c", "device", "variant"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    truth = x @ torch.randn(d, c, generator=generator) / d**0.5
    weak_probs = (2 * truth[:, None] + 2 * torch.randn(n, m, c, generator=generator)).softmax(-1)
    x, y, weak_probs = x.to(device), truth.argmax(1).to(device), weak_probs.to(device)
    student, warm = (models.LinearHeads(d, c, m, False).to(device) for _ in range(2))
    loop = {
        "products": products_loop,
        "loader": loader_loop,
        "eager": functools.partial(our_loop, compiled=False),
        "compiled": functools.partial(our_loop, compiled=True),
    }[variant]
    few = 9 * BATCH_SIZE // 2  # full batches and a smaller one
    loop(warm, x[:few], weak_probs[:few])
    synchronize(device)
    start = time.perf_counter()
    loop(student, x, weak_probs)
    synchronize(device)
    seconds = time.perf_counter() - start
    if variant == "products":
        return {"seconds": seconds}
    right = training.predict(student, x).argmax(-1) == y[:, None]
    return {"seconds": seconds, "accuracy": right.double().mean().item()}


def measure_import(entry: dict) -> dict:
    """Seconds of a fresh interpreter that imports the module, and which heavy packages that brought."""
    code = f"import sys; sys.path[:0] = ['{HERE}', '{HERE}/methods']; import {entry['module']}; "
    code += f"print(*[name for name in {HEAVY} if name in sys.modules])"
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    return {"seconds": median(times), "heavy": done.stdout.split()}


VARIANTS = {
    "products": "matrix products and the optimizer's bytes alone",
    "loader": "TensorDataset and DataLoader, autograd, copy to the device",
    "eager": "ours, eager",
    "compiled": "ours, compiled",
}
MEASURE = {"loss": measure_loss, "unkept": measure_loss, "scaling": measure_loss}
MEASURE |= {"loop": measure_loop, "import": measure_import}


def entries(device: str) -> list[dict]:
    found = []
    for (n, c), dtype, method in itertools.product(SHAPES, DTYPES, LOSSES):
        size = {"n": n, "m": 3 if method == "raven" else 1, "c": c, "dtype": dtype}
        variants = ["published", "eager", "compiled"]
        found.append({"kind": "loss", "method": method, **size, "variants": variants})
    for n, m, c in SCALING:
        size = {"n": n, "m": m, "c": c, "dtype": "float32"}
        found.append({"kind": "scaling", "method": "raven", **size, "variants": ["compiled"]})
    for n, d, c in PROBES[device]:
        size = {"kind": "loop", "n": n, "d": d, "c": c}
        found += [{**size, "m": 1, "variant": variant} for variant in VARIANTS]
        found += [{**size, "m": 3, "variant": variant} for variant in ("eager", "compiled")]
    if device == "cpu":
        found += [{**entry, "kind": "unkept"} for entry in found[: len(LOSSES)]]
        found += [{"kind": "import", "module": module} for module in ("torch", "naive", "raven", "raven_dpo")]
    return [{"device": device, **entry} for entry in found]


def measure(entry: dict) -> dict:
    def refuse(what, error):
        raise error

    fast.fall_back = refuse  # what is called compiled has been compiled
    return entry | MEASURE[entry["kind"]](entry)


def machine(device: str) -> str:
    """The processor or GPU, its driver, and the versions."""
    if device == "cuda":
        query = "nvidia-smi --query-gpu=driver_version --format=csv,noheader"
        driver = subprocess.run(query, shell=True, capture_output=True, text=True).stdout.split()
        name = f"{torch.cuda.get_device_name()}, driver {(driver or ['unknown'])[0]}"
    else:
        cpus = Path("/proc/cpuinfo")
        names = re.findall(r"model name\s*: (.+)", cpus.read_text() if cpus.exists() else "")
        name = f"{(names or [platform.machine()])[0]}, {torch.get_num_threads()} threads"
    return f"{name}; {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"


# ------------------------------------------------------------------------------------------------- the tables


def loss_table(rows: list[dict]) -> str:
    lines = ["| shape (N, C), type | method | published | eager | compiled | limit | published / compiled"]
    lines[0] += " | limit / compiled | peak memory of the three, in gradients |"
    lines += ["| --- |" + " --- |" * 8]
    for row in rows:
        times = " | ".join(f"{row[key]:.3g}" for key in ("published", "eager", "compiled", "limit"))
        memory = ", ".join(f"{row[key + '_memory']:.1f}" for key in ("published", "eager", "compiled"))
        ratios = f"{row['published'] / row['compiled']:.1f} | {row['limit'] / row['compiled']:.0%}"
        shape = f"({row['n']}, {row['c']}) {row['dtype']}"
        lines.append(f"| {shape} | {row['method']} | {times} | {ratios} | {memory} |")
    return "\n".join(lines)


def scaling_table(rows: list[dict]) -> str:
    """Milliseconds, also per million numbers that move: where the cost is linear, that stays."""
    lines = ["| N | M | C | ms | ms per million numbers read or written |", "| --- |" + " --- |" * 4]
    for row in rows:
        numbers = row["n"] * row["c"] * (row["m"] + 2) / 1e6
        each = f"{row['n']} | {row['m']} | {row['c']} | {row['compiled']:.3g}"
        lines.append(f"| {each} | {row['compiled'] / numbers:.3f} |")
    return "\n".join(lines)


def loop_table(rows: list[dict]) -> str:
    """Seconds of a training, also as a multiple of one student's matrix products and of one student's loop of
    the kind."""
    lines = ["| features, classes | students | loop | seconds | / products | / one student | accuracy |"]
    lines += ["| --- |" + " --- |" * 6]
    for row in rows:
        size = {key: row[key] for key in ("n", "d", "c")}
        alike = [other for other in rows if size.items() <= other.items()]
        one = {other["variant"]: other["seconds"] for other in alike if other["m"] == 1}
        accuracy = f"{row['accuracy']:.4f}" if "accuracy" in row else ""
        what = f"{row['n']} x {row['d']}, {row['c']} | {row['m']} | {VARIANTS[row['variant']]}"
        ratios = f"{row['seconds'] / one['products']:.1f} | {row['seconds'] / one[row['variant']]:.1f}"
        lines.append(f"| {what} | {row['seconds']:.2f} | {ratios} | {accuracy} |")
    return "\n".join(lines)


def import_table(rows: list[dict]) -> str:
    lines = ["| import | seconds | heavy packages that it brings |", "| --- | --- | --- |"]
    for row in rows:
        lines.append(f"| {row['module']} | {row['seconds']:.2f} | {', '.join(row['heavy']) or 'none'} |")
    return "\n".join(lines)


TABLES = {
    "loss": ("Loss path, ms", loss_table),
    "unkept": ("The same, memory not kept", loss_table),
    "scaling": ("Cost of RAVEN's compiled loss path in N, M and C", scaling_table),
    "loop": (f"A linear probe, {EPOCHS} epochs, batches of {BATCH_SIZE}; accuracy on its data", loop_table),
    "import": ("Start-up", import_table),
}


def report(rows: list[dict], short: bool = False) -> str:
    """All tables, per device; `short`: the first shape in float32, and the student loop."""
    parts = []
    for device, name in (("cuda", "CUDA"), ("cpu", "CPU")):
        own = [row for row in rows if row["device"] == device]
        parts.append(f"{name}: {own[0]['machine']}." if own else f"{name}: not measured.")
        for kind, (title, table) in TABLES.items():
            chosen = [row for row in own if row["kind"] == kind]
            if short and kind == "loss":
                chosen = [row for row in chosen if (row["c"], row["dtype"]) == (SHAPES[0][1], DTYPES[0])]
            if chosen and not (short and kind in ("scaling", "import")):
                parts.append(f"{title}:\n\n{table(chosen)}")
    return "\n\n".join(parts) + "\n"


def publish(rows: list[dict]) -> None:
    """results/benchmark.*, where rows of the other device stay, and the short tables in README.md."""
    path = HERE / "results" / "benchmark.jsonl"
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in old if row["device"] != rows[0]["device"]] + rows
    summarize.write_rows(path, rows)
    path.with_suffix(".md").write_text(report(rows))
    summarize.insert(HERE / "README.md", "benchmark", report(rows, short=True))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__.splitlines()[0])
    usual = models.pick_device("auto")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=usual, help="CUDA if there is any")
    parser.add_argument("--publish", action="store_true", help="write results/ and the table in README.md")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    os.environ["KINETO_LOG_LEVEL"] = "9"  # else the profiler reports to stderr
    name, rows, spawn = machine(args.device), [], multiprocessing.get_context("spawn")
    for entry in entries(args.device):
        for key in KEEP:  # which a process reads when it starts
            os.environ.pop(key, None)
        if entry["kind"] != "unkept":
            os.environ.update(KEEP)
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            rows.append({"machine": name, **pool.submit(measure, entry).result()})
        print(json.dumps(rows[-1]), file=sys.stderr)
    print(report(rows))
    if args.publish:
        publish(rows)


if __name__ == "__main__":
    main()
