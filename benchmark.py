"""How fast the loss path and the student loop are, beside the published formulas and the machine's limit.

    python benchmark.py               # prints the tables; on 2 CPU cores a few minutes
    python benchmark.py --publish     # also writes results/benchmark.jsonl and results/README.md

Loss path: logits and weak labels in, value and gradients out.

    published  the formula as in the papers' code; half types are computed as such
    ours       the method's loss and autograd; half types are computed in float32
    compiled   the same by evaluate.compiled, as --compile on has it
    limit      what must move (logits and weak labels read once, the gradient written once) at the bandwidth
               of a large copy, measured in the same process

Student loop: a linear probe; its limit is the matrix products alone.

The C library's allocator is left as users have it: on a CPU, large tensors go back to the system, and to
obtain them again takes time, most where a loss keeps many. With MALLOC_MMAP_MAX_=0 and
MALLOC_TRIM_THRESHOLD_=1099511627776 in front of the command they stay, and compiling gains less.
"""

import argparse
import itertools
import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

sys.path.append(str(Path(__file__).resolve().parent / "methods"))

import adaptive_confidence
import confidence
import naive
import raven

import evaluate
import models
import report
from tables import markdown

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = [(16384, 1000, "float32"), (16384, 1000, "bfloat16"), (4096, 32000, "float32")]  # N, C
PROBES = {"cuda": [(40_000, 2048, 1000)], "cpu": [(20_000, 128, 10), (20_000, 768, 1000)]}  # N, D, C
EPOCHS, BATCH_SIZE = 20, 128
LOOPS = ("matrix products", "ours", "ours, compiled")


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


def seconds(run) -> float:
    """The median of a second or more of calls, after warm-up; waits for the GPU."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=1).median


def measure_loss(method, n, c, dtype, device) -> dict:
    torch._dynamo.reset()  # what an entry compiles is made for its shape
    given = arguments(method, n, c, getattr(torch, dtype), device)
    source = torch.ones(2**26, device=device)
    losses = {"published": PUBLISHED[method], "ours": ours(method, False), "compiled": ours(method, True)}
    times = {name: seconds(partial(differentiate, loss, *given)) for name, loss in losses.items()}
    moved = (2 * given[0].nbytes + given[1].nbytes) / (2 * source.nbytes)
    times["limit"] = moved * seconds(partial(torch.empty_like(source).copy_, source))
    ratios = {f"{name} / compiled": times[name] / times["compiled"] for name in times if name != "compiled"}
    return {f"{name}, ms": 1000 * time for name, time in times.items()} | ratios


def train(loop, x, weak_probs) -> None:
    """EPOCHS epochs of naive.train_student on a linear probe, or its matrix products alone."""
    student = models.LinearHead(x.shape[1], weak_probs.shape[1], pairs=False).to(x.device)
    batches = models.Batches((x, weak_probs), BATCH_SIZE, 0)
    steps = EPOCHS * len(batches)
    if loop == "matrix products":
        for _ in range(steps):  # forward, and the gradient of the weights
            x[:BATCH_SIZE] @ student.weight.detach().T
            weak_probs[:BATCH_SIZE].T @ x[:BATCH_SIZE]
    else:
        optimizer, schedule = models.make_optimizer("adam", student, 1e-3, steps, fused=True)
        naive.train_student(student, batches, EPOCHS, optimizer, schedule, ours("naive", "compiled" in loop))


def measure_loop(n, d, c, device) -> dict:
    torch._dynamo.reset()
    x, weak_probs = torch.randn(n, d, device=device), torch.randn(n, c, device=device).softmax(-1)
    return {f"{loop}, s": seconds(partial(train, loop, x, weak_probs)) for loop in LOOPS}


TITLES = {"loss": "Loss path", "loop": f"A linear probe, {EPOCHS} epochs, batches of {BATCH_SIZE}"}


def rows(device):
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU cores"
    machine = {"device": device, "machine": f"{name}, torch {torch.__version__}"}
    for n, c, dtype in SHAPES:
        for method in PUBLISHED:
            entry = {"method": method, "n": n, "c": c, "dtype": dtype}
            yield machine | {"kind": "loss"} | entry | measure_loss(**entry, device=device)
    for n, d, c in PROBES[device]:
        yield machine | {"kind": "loop", "n": n, "d": d, "c": c} | measure_loop(n, d, c, device)


def tables(found: list[dict]) -> str:
    """A table for each device and kind, of what follows these in a row."""
    parts = []
    for (machine, kind), group in itertools.groupby(found, lambda row: (row["machine"], row["kind"])):
        entries = [dict(list(row.items())[3:]) for row in group]
        lines = [[f"{x:.3g}" if isinstance(x, float) else str(x) for x in each.values()] for each in entries]
        parts += [f"{TITLES[kind]}; {machine}:", markdown(list(entries[0]), lines)]
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
