"""The papers' protocol: each method its own search of 12 trials, by kind of task, with validation labels.

    python protocol.py image        # or text, preference, features: searches, writes results/protocol.jsonl
    python methods/raven.py --protocol              # takes what was found for the task's kind; flags override

A trial is the mean accuracy on `val` over TASKS and SEEDS, which are reported nowhere else. A search starts
with three learning rates times three values of the method's own flag, around the usual ones, and goes on with
untried neighbours of the best. The kind "features" is searched on tweets about a disaster, read by a text
encoder and saved as FILE.npz, as is what it is reported on: tweets about four others.
"""

import argparse
import contextlib
import importlib
import io
import json
from functools import partial
from itertools import islice, product
from pathlib import Path
from statistics import mean

import numpy as np
import torch

import data
import evaluate
import models
import store
import teachers

SEEDS, TRIALS = ["10", "11", "12"], 12
RATES = [1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
EACH, LENGTHS = ["each", "mean"], [275, 550, 1100, 2200, 4400]
OWN = {  # method -> its kinds of supervision; its flag that is searched besides the rate, and its values
    "naive": ([*EACH, "vote"], "steps", LENGTHS),
    "confidence": (EACH, "alpha", [0.125, 0.25, 0.5, 0.75, 0.9]),
    "adaptive_confidence": (EACH, "temperature", [0.125, 0.5, 2.0, 8.0, 32.0]),
    "bayes": ([None], "gamma", [0.0, 0.25, 0.5, 0.75, 0.9]),
    "co_supervised": ([None], "steps", LENGTHS),
    "raven": ([None], "weight_lr", [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 0.3, 1.0]),
    "dawid_skene": ([None], "smoothing", [0.1, 1.0, 10.0, 100.0, 1000.0]),
    "prototypes": ([None], "gamma", [0.5, 1.0, 2.0, 4.0, 8.0]),
}
TASKS = {"image": ["glyphs-shift"], "text": ["reviews-shift"], "preference": ["preferences-shift"]}
TASKS["features"] = ["text:alberta+boston+queensland:oklahoma"]
REPORTED = """text:boston+oklahoma+queensland:alberta text:oklahoma+queensland+sandy:boston
    text:sandy+west+alberta:queensland text:west+alberta+boston:sandy""".split()


def search(trial, rows: list, columns: list, i: int) -> dict:
    """{(row, column): trial(row, column)} of TRIALS cells of a grid: 3 x 3 from row i on, near the middle of
    the columns, then neighbours of the best that has untried ones."""
    grid, j = set(product(range(len(rows)), range(len(columns)))), len(columns) // 2 - 1
    plan, tried = product(range(i, i + 3), range(j, j + 3)), {}
    while len(tried) < TRIALS:
        for a, b in islice(plan, TRIALS - len(tried)):
            tried[a, b] = trial(rows[a], columns[b])
        best_first = sorted(tried, key=tried.get, reverse=True)
        near = (grid & {(a - 1, b), (a + 1, b), (a, b - 1), (a, b + 1)} for a, b in best_first)
        plan = next(sorted(cells - tried.keys()) for cells in near if cells - tried.keys())
    return {(rows[a], columns[b]): value for (a, b), value in tried.items()}


def val(method: str, fixed: list[str], flag: str, lr: float, own: float) -> float:
    """Mean validation accuracy of the rows that the method prints with these flags, `own` of `flag`."""
    flags = [*fixed, "--lr", str(lr), f"--{flag}".replace("_", "-"), str(own)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        importlib.import_module(f"methods.{method}").main(flags)
    return mean(json.loads(line)["val"] for line in printed.getvalue().splitlines())


def save_npz(name: str, out: str, data_dir: str, text_encoder: str) -> str:
    """The task's three target splits as one FILE.npz, which each seed splits anew. Returns its path."""
    path = Path(out, f"{name.rpartition(':')[2]}.npz")
    given = (data.resolve(name), 0, data_dir, "cpu", models.ENCODER_STEPS)
    task = teachers.supervise(*given, text_encoder=text_encoder)
    *parts, _ = zip(task.strong_train, task.val, task.test)
    x, y, weak_probs = (torch.cat(part).numpy() for part in parts)
    store.write_atomically(path, lambda file: np.savez(file, x=x, weak_probs=weak_probs, y=y))
    return str(path)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=TASKS)
    parser.add_argument("--data-dir", help="of features: the disasters' DOMAIN.jsonl[.gz]")
    parser.add_argument("--text-encoder", help="of features: Hugging Face name or folder")
    parser.add_argument("--out", default="runs/protocol", help="folder of the trials' rows")
    args, lines = parser.parse_args(argv), []
    tasks = TASKS[args.kind]
    Path(args.out).mkdir(parents=True, exist_ok=True)
    if args.kind == "features":
        given = (args.out, args.data_dir, args.text_encoder)
        tasks = [save_npz(name, *given) for name in tasks + REPORTED][: len(tasks)]
    for method, (supervisions, flag, choices) in OWN.items():
        if method == "co_supervised" and args.kind not in ("text", "preference"):
            continue  # it needs several source domains
        for supervision in supervisions:
            fixed = ["--task", *tasks, "--seeds", *SEEDS, "--out", args.out]
            fixed += ["--supervision", supervision] if supervision else []
            first = RATES.index(3e-4 if method == "prototypes" else 1e-5)  # whose labels bear more
            tried = search(partial(val, method, fixed, flag), RATES, choices, first)
            lr, own = max(tried, key=tried.get)
            line = {"kind": args.kind, "method": method, "supervision": supervision}
            line |= {"flags": {"lr": lr, flag: own}, "trials": [[*cell, tried[cell]] for cell in tried]}
            print(json.dumps(line), flush=True)
            lines.append(line)
    with store.locked(evaluate.PROTOCOL):
        lines += [line for line in evaluate.searches() if line["kind"] != args.kind]
        lines.sort(key=lambda line: [*TASKS].index(line["kind"]))
        store.write_rows(evaluate.PROTOCOL, lines)


if __name__ == "__main__":
    evaluate.run(main)
