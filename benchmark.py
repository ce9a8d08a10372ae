"""How fast the loss path and the student loop are, beside the published formulas and the machine's limit.

    python benchmark.py               # prints the tables; on 2 CPU cores a few minutes
    python benchmark.py --publish     # also writes results/benchmark.jsonl and results/README.md

Loss path: logits and weak labels in, value and gradients out. Medians after warm-up, all variants in turn.

    published  the formula as in the papers' code; half types are computed as such
    ours       the method's loss and autograd; half types are computed in float32
    compiled   the same by evaluate.compiled, as --compile on has it
    limit      what must move (logits and weak labels read once, the gradient written once) at the bandwidth
               of a large copy, measured in the same process

The C library's allocator is left as users have it. On a CPU it returns large tensors to the system, and to
obtain them again takes time, most where a loss keeps many; with MALLOC_MMAP_MAX_=0 and
MALLOC_TRIM_THRESHOLD_=1099511627776 in front of the command it keeps them, and compiling gains less.
"""

import argparse
import functools
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).resolve().parent / "methods"))

import adaptive_confidence
import confidence
import naive
import raven

import evaluate
import models
import report

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = [(16384, 1000, "float32"), (16384, 1000, "bfloat16"), (4096, 32000, "float32")]  # N, C
PROBES = {"cuda": [(40_000, 2048, 1000)], "cpu": [(20_000, 128, 10), (20_000, 768, 1000)]}  # N, D, C
EPOCHS, BATCH_SIZE, REPEATS = 20, 128, 5
LOOPS = ("matrix products", "DataLoader", "ours", "ours, compiled")


def published_confidence(z, q, a):
    own = F.one_hot(z.detach().argmax(1), z.shape[1]).to(z.dtype)
    return (1 - a) * F.cross_entropy(z, q) + a * F.cross_entropy(z, own)


def published_adaptive_confidence(z, q):
    with torch.no_grad():
        own, weak = z.argmax(1), q.argmax(1)
        to_own, to_weak = ((F.cross_entropy(z, k, reduction="none") / 8).exp() for k in (own, weak))
        b = to_own / (to_own + to_weak)
    divergence = F.kl_div(F.log_softmax(z, 1), q, reduction="none").sum(1)
    return ((1 - b) * divergence + b * F.cross_entropy(z, own, reduction="none")).mean()


def published_raven(z, q, weights, keep):
    targets = sum(weights[m] * q[:, m] for m in range(q.shape[1]))
    targets = targets / targets.sum(1, keepdim=True)
    return (keep * F.cross_entropy(z, targets, reduction="none")).mean()


PUBLISHED = {"naive": F.cross_entropy, "confidence": published_confidence, "raven": published_raven}
PUBLISHED["adaptive_confidence"] = published_adaptive_confidence


def ours(method, compiled: bool):
    """The loss of the same arguments, as the method's loop puts it together."""
    loss_of = evaluate.compiled if compiled else lambda loss, argnums=(0,): loss
    if method == "confidence":
        loss = loss_of(confidence.confidence_loss)
        return lambda z, q, a: loss(z, q, a, confidence.own_class(z, q))
    if method == "adaptive_confidence":
        loss, weight = loss_of(adaptive_confidence.mixed_loss), adaptive_confidence.confidence_weight
        weight = torch.compile(weight) if compiled else weight
        return lambda z, q: loss(z, q, weight(z, q, 8.0))
    return loss_of(naive.naive_loss) if method == "naive" else loss_of(raven.raven_loss, (0, 2))


def arguments(method, n, c, dtype, device) -> list[torch.Tensor]:
    """z (N, C) and q (N, C) or (N, 3, C) in dtype; then the trust a, or RAVEN's weights and keep."""
    z = 3 * torch.randn(n, c, device=device)
    q = torch.randn(*((n, 3, c) if method == "raven" else (n, c)), device=device).softmax(-1)
    weights, keep = torch.tensor([0.5, 0.3, 0.2]), torch.arange(n) % 4 > 0
    own = {"confidence": [torch.tensor(0.3)], "raven": [weights, keep]}.get(method, [])
    return [z.to(dtype), q.to(dtype), *(part.to(device) for part in own)]


def differentiate(loss, z, q, *own) -> list[torch.Tensor]:
    """Value of the loss, gradient of the logits and, where they are arguments, of RAVEN's weights."""
    leaves = [part.detach().requires_grad_() for part in (z, *own[:-1])]
    value = loss(leaves[0], q, *leaves[1:], *own[-1:])
    return [value.detach(), *torch.autograd.grad(value, leaves)]  # backward() might copy it to leaf.grad


def seconds(run, device) -> float:
    if device == "cuda":
        torch.cuda._sleep(10**7)  # while the GPU waits, the host gets ahead
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def medians(runs: dict, device, repeats=REPEATS) -> dict:
    """Median seconds of each of `runs`, taken in turn, after two turns to warm up."""
    times = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(2 + repeats)][2:]
    return {name: median(each[name] for each in times) for name in runs}


def measure_loss(method, n, c, dtype, device) -> dict:
    torch._dynamo.reset()  # what an entry compiles is made for its shape
    given = arguments(method, n, c, getattr(torch, dtype), device)
    source = torch.ones(2**26, device=device)
    losses = {"published": PUBLISHED[method], "ours": ours(method, False), "compiled": ours(method, True)}
    runs = {name: functools.partial(differentiate, loss, *given) for name, loss in losses.items()}
    times = medians(runs | {"limit": functools.partial(torch.empty_like(source).copy_, source)}, device)
    times["limit"] *= (2 * given[0].nbytes + given[1].nbytes) / (2 * source.nbytes)
    names = ("published", "ours", "limit")
    ratios = {f"{name} / compiled": times[name] / times["compiled"] for name in names}
    return {f"{name}, ms": 1000 * time for name, time in times.items()} | ratios


def train(loop, x, weak_probs) -> torch.nn.Module:
    """A linear probe, after EPOCHS epochs of naive.train_student in the way that `loop` names."""
    student = models.LinearHead(x.shape[1], weak_probs.shape[1], pairs=False).to(x.device)
    batches = models.Batches((x, weak_probs), BATCH_SIZE, 0)
    if loop == "matrix products":
        for _ in range(EPOCHS * len(batches)):  # forward, and the gradient of the weights
            x[:BATCH_SIZE] @ student.weight.detach().T
            weak_probs[:BATCH_SIZE].T @ x[:BATCH_SIZE]
        return student
    fused = loop != "DataLoader" or None
    optimizer, schedule = models.make_optimizer("adam", student, 1e-3, EPOCHS * len(batches), fused)
    if loop == "DataLoader":
        collate = torch.utils.data.default_collate
        batches = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x.cpu(), weak_probs.cpu()), BATCH_SIZE, shuffle=True,
            collate_fn=lambda samples: [part.to(x.device) for part in collate(samples)],
        )  # fmt: skip
    loss_of = ours("naive", loop == "ours, compiled")
    naive.train_student(student, batches, EPOCHS, optimizer, schedule, loss_of)
    return student


def measure_loop(n, d, c, device) -> dict:
    torch._dynamo.reset()
    x, weak_probs = torch.randn(n, d, device=device), torch.randn(n, c, device=device).softmax(-1)
    few = 9 * BATCH_SIZE // 2  # to warm up: full batches and a smaller one
    for loop in LOOPS:
        train(loop, x[:few], weak_probs[:few])
    runs = {loop: functools.partial(train, loop, x, weak_probs) for loop in LOOPS}
    return {f"{loop}, s": seconds(run, device) for loop, run in runs.items()}


def measure_import(module, device) -> dict:
    command = [sys.executable, "-c", f"import {module}"]  # in a new interpreter
    run = functools.partial(subprocess.run, command, cwd=RESULTS.parent / "methods", check=True)
    return {"s": medians({module: run}, "cpu", 3)[module]}


KINDS = {
    "loss": ("Loss path", measure_loss),
    "loop": (f"A linear probe, {EPOCHS} epochs, batches of {BATCH_SIZE}", measure_loop),
    "import": ("Start-up", measure_import),
}


def rows(device):
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU cores"
    entries = [("loss", dict(zip(("method", "n", "c", "dtype"), (m, *s)))) for s in SHAPES for m in PUBLISHED]
    entries += [("loop", dict(zip(("n", "d", "c"), sizes))) for sizes in PROBES[device]]
    entries += [("import", {"module": module}) for module in ("torch", "naive", "raven")]
    for kind, entry in entries:
        row = {"device": device, "machine": f"{name}, torch {torch.__version__}", "kind": kind}
        yield row | entry | KINDS[kind][1](**entry, device=device)


def tables(found: list[dict]) -> str:
    """A table for each device and kind, of what follows these in a row."""
    parts = []
    for _, group in itertools.groupby(found, lambda row: (row["device"], row["kind"])):
        group = list(group)
        header, lines = list(group[0])[3:], [list(row.values())[3:] for row in group]
        cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
        title = f"{KINDS[group[0]['kind']][0]}; {group[0]['machine']}:"
        parts += [title, report.markdown(header, cells)]
    return "\n\n".join(parts)


def publish(new: list[dict]) -> None:
    """Rows of the other device stay."""
    path = RESULTS / "benchmark.jsonl"
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = [row for row in old if row["device"] != new[0]["device"]] + new
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    report.insert(RESULTS / "README.md", "benchmark", tables(kept))


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=evaluate.pick_device, default="auto", help="CUDA if there is any")
    parser.add_argument("--publish", action="store_true", help="write results/")
    args = parser.parse_args(argv)
    found = list(rows(args.device))
    print(tables(found))
    if args.publish:
        publish(found)


if __name__ == "__main__":
    main()
