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
import functools
import importlib
import io
import json
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
OWN = {  # method -> its flag that is searched besides the rate
    "naive": ("steps", [275, 550, 1100, 2200, 4400]),
    "confidence": ("alpha", [0.125, 0.25, 0.5, 0.75, 0.9]),
    "adaptive_confidence": ("temperature", [0.125, 0.5, 2.0, 8.0, 32.0]),
    "bayes": ("gamma", [0.0, 0.25, 0.5, 0.75, 0.9]),
    "co_supervised": ("steps", [275, 550, 1100, 2200, 4400]),
    "raven": ("weight_lr", [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 0.3, 1.0]),
    "dawid_skene": ("smoothing", [0.1, 1.0, 10.0, 100.0, 1000.0]),
    "prototypes": ("gamma", [0.5, 1.0, 2.0, 4.0, 8.0]),
}
SUPERVISIONS = {"naive": ["each", "mean", "vote"], "confidence": ["each", "mean"]}  # others have none
SUPERVISIONS["adaptive_confidence"] = SUPERVISIONS["confidence"]
SEVERAL = ("text", "preference")  # source domains, which co-supervised learning needs
TASKS = {"image": ["glyphs-shift"], "text": ["reviews-shift"], "preference": ["preferences-shift"]}
TASKS["features"] = ["text:alberta+boston+queensland:oklahoma"]
REPORTED = """text:boston+oklahoma+queensland:alberta text:oklahoma+queensland+sandy:boston
    text:sandy+west+alberta:queensland text:west+alberta+boston:sandy""".split()


def search(trial, rows: list, columns: list, i: int) -> dict:
    """{(row, column): trial(row, column)} of TRIALS cells of a grid: 3 x 3 from row i on, near the middle of
    the columns, then neighbours of the best that has untried ones."""
    j = len(columns) // 2 - 1
    plan, tried = [(i + a, j + b) for a in range(3) for b in range(3)], {}
    while len(tried) < TRIALS:
        a, b = plan.pop(0)
        tried[a, b] = trial(rows[a], columns[b])
        for a, b in sorted(tried, key=tried.get, reverse=True) if not plan else []:
            near = {(a - 1, b), (a + 1, b), (a, b - 1), (a, b + 1)} - tried.keys()
            if plan := sorted((a, b) for a, b in near if 0 <= a < len(rows) and 0 <= b < len(columns)):
                break
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
    splits = [task.strong_train, task.val, task.test]
    names = ("x", "weak_probs", "y")
    arrays = {key: torch.cat([getattr(each, key) for each in splits]).numpy() for key in names}
    store.write_atomically(path, lambda file: np.savez(file, **arrays))
    return str(path)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=TASKS)
    parser.add_argument("--data-dir", help="of features: the disasters' DOMAIN.jsonl[.gz]")
    parser.add_argument("--text-encoder", help="of features: Hugging Face name or folder")
    parser.add_argument("--out", default="runs/protocol", help="folder of the trials' rows")
    args, lines = parser.parse_args(argv), []
    Path(args.out).mkdir(parents=True, exist_ok=True)
    tasks = TASKS[args.kind]
    if args.kind == "features":
        given = (args.out, args.data_dir, args.text_encoder)
        tasks = [save_npz(name, *given) for name in tasks + REPORTED][: len(tasks)]
    for method, (flag, choices) in OWN.items():
        if method == "co_supervised" and args.kind not in SEVERAL:
            continue
        for supervision in SUPERVISIONS.get(method, [None]):
            line = {"kind": args.kind, "method": method, "supervision": supervision}
            fixed = ["--task", *tasks, "--seeds", *SEEDS, "--out", args.out]
            fixed += ["--supervision", supervision] if supervision else []
            first = RATES.index(3e-4 if method == "prototypes" else 1e-5)  # whose labels bear more
            tried = search(functools.partial(val, method, fixed, flag), RATES, choices, first)
            lr, own = max(tried, key=tried.get)
            line |= {"flags": {"lr": lr, flag: own}, "trials": [[*cell, tried[cell]] for cell in tried]}
            print(json.dumps(line), flush=True)
            lines.append(line)
    with store.locked(evaluate.PROTOCOL):
        lines += [line for line in evaluate.searches() if line["kind"] != args.kind]
        lines.sort(key=lambda line: [*TASKS].index(line["kind"]))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        store.write_atomically(evaluate.PROTOCOL, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    evaluate.run(main)
