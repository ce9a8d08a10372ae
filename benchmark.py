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

On a CPU large tensors go back to the system, and to obtain them again takes time. With MALLOC_MMAP_MAX_=0
and MALLOC_TRIM_THRESHOLD_=1099511627776 in front of the command they stay, and compiling gains less.
"""

import argparse
import json
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

import evaluate
import models
import report
import store
from methods import adaptive_confidence, confidence, naive, raven
from tables import markdown

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = [(16384, 1000, "float32"), (16384, 1000, "bfloat16"), (4096, 32000, "float32")]  # N, C
PROBES = {"cuda": [(40_000, 2048, 1000)], "cpu": [(20_000, 128, 10), (20_000, 768, 1000)]}  # N, D, C
EPOCHS, BATCH_SIZE = 20, 128
TITLES = {"loss": "Loss path", "loop": f"A linear probe, {EPOCHS} epochs, batches of {BATCH_SIZE}"}


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
    mixed, confident = loss_of(adaptive_confidence.mixed_loss), loss_of(confidence.confidence_loss)
    weight = adaptive_confidence.confidence_weight
    weight = torch.compile(weight) if compiled else weight
    return {
        "naive": loss_of(naive.naive_loss),
        "confidence": lambda z, q, a: confident(z, q, a, confidence.own_class(z, q)),
        "raven": loss_of(raven.raven_loss, (0, 2)),
        "adaptive_confidence": lambda z, q: mixed(z, q, weight(z, q, 8.0)),
    }[method]


def arguments(method, n, c, dtype, device) -> list[torch.Tensor]:
    """z (N, C) and q (N, C) or (N, 3, C) in dtype; then the trust a, or RAVEN's weights and keep."""
    z = 3 * torch.randn(n, c, device=device)
    q = torch.randn(*((n, 3, c) if method == "raven" else (n, c)), device=device).softmax(-1)
    own = {"confidence": [torch.tensor(0.3)]}
    own["raven"] = [torch.tensor([0.5, 0.3, 0.2]), torch.arange(n) % 4 > 0]
    return [z.to(dtype), q.to(dtype), *(part.to(device) for part in own.get(method, []))]


def differentiate(loss, z, q, *own) -> list[torch.Tensor]:
    """Value of the loss, gradient of the logits and, where they are arguments, of RAVEN's weights."""
    leaves = [part.detach().requires_grad_() for part in (z, *own[:-1])]
    value = loss(leaves[0], q, *leaves[1:], *own[-1:])
    return [value.detach(), *torch.autograd.grad(value, leaves)]  # backward() might copy it to leaf.grad


def seconds(run, *given) -> float:
    """The median of a second or more of calls run(*given), after warm-up; waits for the GPU."""
    timer = Timer("run()", globals={"run": partial(run, *given)}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=1).median


def measure_loss(method, n, c, dtype, device) -> dict:
    torch._dynamo.reset()  # what an entry compiles is made for its shape
    given = arguments(method, n, c, getattr(torch, dtype), device)
    source = torch.ones(2**26, device=device)
    losses = {"published": PUBLISHED[method], "ours": ours(method, False), "compiled": ours(method, True)}
    times = {name: seconds(differentiate, loss, *given) for name, loss in losses.items()}
    moved = (2 * given[0].nbytes + given[1].nbytes) / (2 * source.nbytes)
    times["limit"] = moved * seconds(torch.empty_like(source).copy_, source)
    ratios = {f"{name} / compiled": times[name] / times["compiled"] for name in times if name != "compiled"}
    return {f"{name}, ms": 1000 * time for name, time in times.items()} | ratios


def train(x, weak_probs, loss_of) -> None:
    """EPOCHS epochs of naive.train_student on a linear probe."""
    student = models.LinearHead(x.shape[1], weak_probs.shape[1], pairs=False).to(x.device)
    batches = models.Batches((x, weak_probs), BATCH_SIZE, 0)
    made = models.make_optimizer("adam", student, 1e-3, EPOCHS * len(batches), fused=True)
    naive.train_student(student, batches, EPOCHS, *made, loss_of)


def multiply(x, weak_probs) -> None:
    """The matrix products of as many steps: forward, and the gradient of the weights."""
    weight = torch.zeros(weak_probs.shape[1], x.shape[1], device=x.device)
    for _ in range(EPOCHS * -(-len(x) // BATCH_SIZE)):
        x[:BATCH_SIZE] @ weight.T
        weak_probs[:BATCH_SIZE].T @ x[:BATCH_SIZE]


def measure_loop(n, d, c, device) -> dict:
    torch._dynamo.reset()
    given = torch.randn(n, d, device=device), torch.randn(n, c, device=device).softmax(-1)
    times = {"matrix products, s": seconds(multiply, *given)}
    times["ours, s"] = seconds(train, *given, naive.naive_loss)
    return times | {"ours, compiled, s": seconds(train, *given, evaluate.compiled(naive.naive_loss))}


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
    for (machine, kind), group in groupby(found, lambda row: (row["machine"], row["kind"])):
        entries = [dict(list(row.items())[3:]) for row in group]
        lines = [[f"{x:.3g}" if isinstance(x, float) else str(x) for x in each.values()] for each in entries]
        parts += [f"{TITLES[kind]}; {machine}:", markdown(list(entries[0]), lines)]
    return "\n\n".join(parts)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=evaluate.pick_device, default="auto", help="CUDA if there is any")
    parser.add_argument("--publish", action="store_true", help="write results/")
    args = parser.parse_args(argv)
    new = list(rows(args.device))
    print(tables(new))
    if args.publish:  # rows of the other device stay
        old = map(json.loads, (RESULTS / "benchmark.jsonl").read_text().splitlines())
        found = [row for row in old if row["device"] != args.device] + new
        store.write_rows(RESULTS / "benchmark.jsonl", found)
        report.insert(RESULTS / "README.md", "benchmark", tables(found))


if __name__ == "__main__":
    main()
