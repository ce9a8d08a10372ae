"""What all scripts share: flags, rows, ceiling, scores; each method from its command line to its row."""

import contextlib
import importlib
import json
import math
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import METHODS, ROOT, run_script, write_lines

import data
import evaluate
import models
import store
import teachers

QUICK = "--seeds 0 --lr 0.03 --batch-size 16".split()


def rows_of(method, *arguments):
    return run_script(importlib.import_module(method), *arguments)


@pytest.fixture
def pairs(arrays):
    """Pairs of responses, of which the better has larger features."""
    x, y, odds = arrays["x"], np.arange(400) % 2, arrays["weak_probs"][:, :, :2]
    both = np.stack([x + (y == 0)[:, None], x + (y == 1)[:, None]], 1)
    weak_probs = 0.2 * odds / odds.sum(-1, keepdims=True) + 0.8 * np.eye(2)[y][:, None]
    np.savez("pairs.npz", x=both, weak_probs=weak_probs, y=y)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["small.npz", "pairs.npz"])
def test_a_run_end_to_end(method, task, npz, pairs):
    """A complete row, printed and kept, and the same again."""
    [row] = rows_of(method, "--task", task, *QUICK, "--out", "a")
    assert store.read_rows(Path(f"a/{method}.jsonl")) == [row]
    assert (row["method"], row["task"], row["seed"], row["n_test"]) == (method, task, 0, 80)
    assert row["flags"] == {"lr": 0.03, "batch_size": 16} and row["version"] == store.VERSION
    assert all(0 < score <= 1 for score in [*row["weak"], row["ceiling"], row["val"]])
    assert row["student"] > 0.85
    if method == "raven":
        assert row["weights"] == row["weight_history"][-1] and len(row["weight_history"]) == 21
        assert sum(row["easy_classes"]) == round(row["easy_fraction"] * 280)
    elif "students" in row:
        assert row["student"] == pytest.approx(sum(row["students"]) / 3)
    [again] = rows_of(method, "--task", task, *QUICK, "--out", "b")
    assert {**again, "seconds": 0} == {**row, "seconds": 0}


def test_a_row_that_exists_is_printed_not_computed(npz, monkeypatch):
    rows = rows_of("naive", "--task", npz, "--seeds", "0", "1")
    monkeypatch.setattr(teachers, "supervise", None)
    assert rows_of("naive", "--task", npz, "--seeds", "1", "0", "--lr", "3e-5") == rows[::-1]  # the default
    for changed in (["--lr", "0.1"], ["--seeds", "2"], ["--supervision", "mean"]):  # these are computed
        with pytest.raises(TypeError):
            rows_of("naive", "--task", npz, "--seeds", "0", *changed)


def test_a_flag_goes_before_the_recipe_of_the_task():
    parser = evaluate.flags("naive.py", "about")
    for given, lr, flags in (([], 1e-2, {}), (["--lr", "3e-5"], 3e-5, {"lr": 3e-5})):
        [(_, args, row)] = evaluate.missing(parser, ["--task", "glyphs-distill", "--seeds", "0", *given])
        assert args.lr == lr and row["flags"] == flags and args.ceiling_lr == 1e-2


def test_the_protocol_sets_flags_by_kind_of_task_and_flags_override(npz, tmp_path, monkeypatch):
    lines = [
        {"kind": kind, "method": "confidence", "supervision": whose, "flags": {"lr": lr, "alpha": 0.75}}
        for kind, whose, lr in (("image", "mean", 1.0), ("features", "each", 0.5), ("features", "mean", 0.25))
    ]
    monkeypatch.setattr(evaluate, "PROTOCOL", tmp_path / "protocol.jsonl")
    write_lines(evaluate.PROTOCOL, lines)
    flags = ["--task", npz, "--seeds", "0", "--supervision", "mean"]
    [row] = rows_of("confidence", *flags, "--protocol")
    assert row["lr"] == 0.25 and row["flags"].keys() == {"supervision", "protocol"}
    [same] = rows_of("confidence", *flags, "--lr", "0.25", "--alpha", "0.75")
    assert same["student"] == row["student"]
    [other] = rows_of("confidence", *flags, "--protocol", "--lr", "0.125")
    assert other["lr"] == other["flags"]["lr"] == 0.125 and "alpha" not in other["flags"]
    lines[2]["flags"]["lr"] = 0.5  # of a later search
    write_lines(evaluate.PROTOCOL, lines)
    assert rows_of("confidence", *flags, "--protocol")[0]["flags"] != row["flags"]


@pytest.mark.parametrize("method", METHODS[:4])  # the others would make hard labels of nothing
def test_labels_reach_the_student(method, arrays):
    """Weak labels that say nothing, labels that are right: only their cross-entropy can teach the student."""
    arrays["weak_probs"] = np.full((400, 3, 4), 0.25)
    np.savez("with.npz", **arrays, labels=arrays["y"])
    np.savez("without.npz", **arrays)
    with_labels, without = rows_of(method, "--task", "with.npz", "without.npz", *QUICK)
    assert with_labels["student"] > 0.9 > 0.6 > without["student"]


def test_students_of_the_mean_and_the_initial_student_are_the_same_in_all_methods(npz):
    [ensemble] = rows_of("naive", "--task", npz, "--seeds", "0", "--supervision", "mean")
    [equal] = rows_of("raven", "--task", npz, "--seeds", "0", "--weight-lr", "0", "--easy-phase", "0")
    assert all(ensemble[key] == equal[key] for key in ("weak", "ceiling", "student", "agreement", "val"))


def test_a_killed_run_continues(npz):
    """Killed after its first row; afterwards the rows are those of an unbroken run."""
    flags = ["--task", npz, *"--seeds 0 1 2 3 --steps 1000 --device cpu".split()]
    command = [sys.executable, str(ROOT / "methods" / "raven.py"), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.kill()
    assert store.read_rows(Path("runs/raven.jsonl"))
    resumed, whole = rows_of("raven", *flags), rows_of("raven", *flags, "--out", "unbroken")
    assert [{**row, "seconds": 0} for row in resumed] == [{**row, "seconds": 0} for row in whole]


def test_pgr_by_hand():
    assert evaluate.pgr(0.5, 0.6, 0.9, 1000) == pytest.approx(0.25)
    assert evaluate.pgr(0.5, 0.4, 0.9, 1000) == pytest.approx(-0.25)
    two_errors = 2 * math.sqrt((0.5 * 0.5 + 0.6 * 0.4) / 100)  # 0.14 > 0.1
    assert two_errors > 0.1 and evaluate.pgr(0.5, 0.55, 0.6, 100) is None
    assert evaluate.pgr(0.5, 0.55, 0.6, 1000) == pytest.approx(0.5)
    assert evaluate.pgr(1.0, 1.0, 1.0, 100) is None and evaluate.pgr(0.9, 0.8, 0.7, 1000) is None


def right_below(share):
    """A model that is right on the samples placed below `share`; a sample is (its class, its place)."""
    return lambda x: F.one_hot(torch.where(x[:, 1] < share, x[:, 0], 1 - x[:, 0]).long(), 2).float()


@pytest.mark.parametrize(
    "students, ceiling, pgr",
    [
        ((0.6, 0.8), 0.9, (0.1 / 0.4 + 0.1 / 0.2) / 2),  # each against its own teacher
        ((0.8,), 0.9, 0.2 / 0.3),  # of several: against their mean accuracy .6
        ((0.6, 0.8), 0.71, None),  # .71 - .70 is within noise
    ],
)
def test_the_figures_of_a_row(students, ceiling, pgr, monkeypatch, capsys):
    y, place = torch.arange(2000) % 2, torch.arange(2000) / 2000
    x = torch.stack([y, place], 1)
    test = data.Split(x, y, torch.stack([right_below(share)(x) for share in (0.5, 0.7)], 1))
    task = data.Task("features", 2, None, test, data.Split(x, 1 - y), test, "given", ["a", "b"])

    def trained(task, args, identity, name, targets, lr):  # the ceiling, and naive students
        assert lr == (0.5 if name == "ceiling" else 1.0)
        assert targets.equal(y if name == "ceiling" else test.weak_probs[:, int(name[6])])
        return right_below(ceiling)

    monkeypatch.setattr(evaluate, "trained", trained)
    args = Namespace(supervision="each", out=".", lr=1.0, ceiling_lr=0.5)
    identity = store.identity("naive", "t", 0, None, "cpu", {})
    targets = None if len(students) > 1 else [right_below(0.7)(x)]
    problem = evaluate.Problem(task, args, identity, compiled=False, begun=0.0)
    evaluate.report(problem, list(map(right_below, students)), targets)
    row = json.loads(capsys.readouterr().out)
    assert row["weak"] == pytest.approx([0.5, 0.7]) and row["student"] == pytest.approx(np.mean(students))
    assert row["pgr"] == (pgr and pytest.approx(pgr)) and row["agreement"] == pytest.approx(0.9)
    assert row["val"] == pytest.approx(1 - np.mean(students))
    assert row["agreement_naive"] == pytest.approx(np.mean([1 - abs(own - ceiling) for own in students]))


def test_the_ceiling_is_naive_on_the_truth_of_strong_train(npz):
    known = data.resolve(npz)
    task = teachers.supervise(known, 0, None, "cpu", 10)
    flags = {"seed": 0, "steps": 60, "ceiling_lr": 0.03, "lr": 0.03, "encoder_steps": 10}
    identity = store.identity("naive", npz, 0, None, "cpu", {})
    problem = evaluate.Problem(task, Namespace(**known.recipe | flags), identity, compiled=False, begun=0.0)
    student, training = evaluate.start(problem, F.one_hot(task.strong_train.y, 4).float())
    assert training["epochs"] * len(training["batches"]) == 60  # of 280 samples, 3 batches
    naive.train_student(student, **training)
    ceiling = evaluate.trained(*problem[:3], "ceiling", task.strong_train.y, 0.03)
    torch.testing.assert_close(ceiling.weight, student.weight, rtol=1e-4, atol=1e-6)


def test_what_is_trained_is_told_apart_in_the_cache(npz, monkeypatch, tmp_path):
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    known, targets = data.resolve(npz), torch.full((280, 4), 0.25)
    task = teachers.supervise(known, 0, None, "cpu", 10)
    row = store.identity("naive", npz, 0, None, "cpu", {})
    flags = known.recipe | {"seed": 0, "encoder_steps": 10}

    def weight(lr=0.03, y=task.strong_train.y, **changed):
        return evaluate.trained(task, Namespace(**flags | changed), row, "ceiling", y, lr).weight

    first = weight()
    monkeypatch.setattr(models, "fit", lambda student, *_, **__: student)  # which stays at zero
    assert weight().equal(first) and first.abs().max() > 0
    others = [weight(y=targets), weight(lr=0.01), weight(steps=20), weight(batch_size=7), weight(seed=1)]
    assert not any(other.equal(first) for other in others)


def test_divergence_is_bad_input_not_a_row(npz, monkeypatch):
    monkeypatch.setattr(models, "predict", lambda student, x: torch.full((len(x), 4), torch.nan))
    with pytest.raises(data.InputError, match="diverged"):
        rows_of("naive", "--task", npz, "--seeds", "0")
    assert not store.read_rows(Path("runs/naive.jsonl"))


def test_the_compile_flag_reaches_the_loss(npz, monkeypatch):
    seen = []
    monkeypatch.setattr(evaluate, "compiled", lambda loss, argnums: seen.append(argnums) or loss)
    for choice in ("auto", "on", "off"):
        rows_of("raven", "--task", npz, *QUICK, "--steps", "20", "--device", "cpu", "--compile", choice)
    assert seen == [(0, 2)]  # auto is off without CUDA


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--task glyfs", "unknown task 'glyfs'; known: glyphs, "),
        ("--device cuda:99", "no device 'cuda:99'"),
        ("--steps 0", "--steps"),
        ("--lr nan", "--lr"),
        (f"--out {__file__}", "exists"),
        ("--task text:books:kitchen", "--data-dir"),
        ("--task small.npz --balanced", "--balanced is for two classes, small.npz has 4"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, npz, capsys):
    """Through the guard of the scripts, in this process: starting Python anew for each would take minutes."""
    confidence = importlib.import_module("confidence")
    with pytest.raises(SystemExit) as exit, contextlib.redirect_stdout(None):
        evaluate.run(lambda: confidence.main(arguments.split()))
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(lines) == 1 and message in lines[0]


def test_a_bad_file_ends_a_script_with_one_line_and_keeps_the_rows_before_it(npz, tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    command = [sys.executable, str(ROOT / "methods" / "naive.py"), "--task", npz, "bad.npz", "--seeds", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("naive.py: bad.npz: not an .npz file")
    assert len(done.stdout.splitlines()) == len(store.read_rows(Path("runs/naive.jsonl"))) == 1


def test_weak_models_of_choice(npz):
    """Where they cannot be had there is one line; students of other sharpness are trained anew."""
    for task, flag, error in (
        (npz, ["--weak-models", "3"], "has weak models of its own"),
        ("glyphs-distill", ["--weak-models", "3"], "--weak-temperatures is for linear heads"),
        ("glyphs", ["--weak-models", "specialists"], "specialists need a task of several source domains"),
    ):
        with pytest.raises(data.InputError, match=error):
            rows_of("naive", "--task", task, "--seeds", "0", *flag)
    flags = ["--task", npz, *QUICK, "--supervision", "mean", "--lr", "auto"]
    [usual], [sharp] = rows_of("naive", *flags), rows_of("naive", *flags, "--weak-temperatures", *"155")
    assert sharp["weak"] == usual["weak"] and sharp["weak_confidence"][2] < usual["weak_confidence"][2]
    kept = len(list(store.CACHE.glob("student-*.pt")))
    rows_of("naive", *flags, "--weak-temperatures", *"154")
    assert len(list(store.CACHE.glob("student-*.pt"))) == kept + len(evaluate.RATES)


def test_agreement_of_weak_models_by_hand(npz):
    [row] = rows_of("naive", "--task", npz, *QUICK)
    task = teachers.supervise(data.resolve(npz), 0, None, "cpu", 10)
    a, b, c = task.test.weak_probs.argmax(-1).unbind(1)
    ab, ac, bc = ((x == y).double().mean().item() for x, y in ((a, b), (a, c), (b, c)))
    assert row["weak_agreement"] == pytest.approx([(ab + ac) / 2, (ab + bc) / 2, (ac + bc) / 2])
