"""What all scripts share: flags, rows, ceiling, scores; each method from its command line to its row."""

import contextlib
import importlib
import json
import multiprocessing
import subprocess
import sys
import time
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

QUICK = "--seeds 0 --lr 0.03 --batch-size 16 --device cpu".split()


def rows_of(method, *arguments):
    return run_script(importlib.import_module(method), *arguments)


def untimed(rows):
    return [row | {"seconds": 0} for row in rows]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_end_to_end(method, npz, arrays):
    """Complete rows, printed and kept, and the same again; of pairs too, of which the better has larger x."""
    y = np.arange(400) % 2
    x, weak_probs = arrays["x"][:, None] + np.eye(2)[y][:, :, None], 0.1 + 0.8 * np.eye(2)[y][:, None]
    np.savez("pairs.npz", x=x, weak_probs=weak_probs.repeat(3, 1), y=y)
    rows = rows_of(method, "--task", "small.npz", "pairs.npz", *QUICK, "--out", "a")
    assert store.read_rows(Path(f"a/{method}.jsonl")) == rows
    for row, task in zip(rows, ("small.npz", "pairs.npz"), strict=True):
        assert (row["method"], row["task"], row["seed"], row["n_test"]) == (method, task, 0, 80)
        assert row["flags"] == {"lr": 0.03, "batch_size": 16} and row["student"] > 0.85
        assert all(0 < score <= 1 for score in [*row["weak"], row["ceiling"], row["val"]])
    again = rows_of(method, "--task", "small.npz", *QUICK, "--out", "b")
    assert untimed(again) == untimed(rows[:1])


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
        [(_, args, row)] = evaluate.missing(parser, ["--task", "glyphs-distill", "--seeds", "3", *given])
        assert args.lr == lr and row["flags"] == flags and args.ceiling_lr == 1e-2
        assert args.seed == row["seed"] == 3


def test_the_protocol_sets_flags_by_kind_of_task_and_flags_override(npz, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "PROTOCOL", tmp_path / "protocol.jsonl")
    found = [("image", "mean", 1.0), ("features", "each", 0.5), ("features", "mean", 0.25)]
    lines = [{"kind": kind, "supervision": who, "flags": {"lr": lr, "alpha": lr}} for kind, who, lr in found]
    write_lines(evaluate.PROTOCOL, [line | {"method": "confidence"} for line in lines])
    flags = ["--task", npz, "--seeds", "0", "--supervision", "mean"]
    [row] = rows_of("confidence", *flags, "--protocol")
    assert row["lr"] == 0.25 and row["flags"] == {"supervision": "mean", "protocol": lines[2]["flags"]}
    [same] = rows_of("confidence", *flags, "--lr", "0.25", "--alpha", "0.25")
    assert same["student"] == row["student"]
    [other] = rows_of("confidence", *flags, "--protocol", "--lr", "0.125")
    assert other["lr"] == other["flags"]["lr"] == 0.125 and "alpha" not in other["flags"]


def test_labels_reach_the_student(arrays):
    """Weak labels that say nothing, labels that are right: only their cross-entropy can teach the student."""
    arrays["weak_probs"] = np.full((400, 3, 4), 0.25)
    np.savez("with.npz", **arrays, labels=arrays["y"])
    assert rows_of("raven", "--task", "with.npz", *QUICK)[0]["student"] > 0.9


def test_students_of_the_mean_and_the_initial_student_are_the_same_in_all_methods(npz):
    [ensemble] = rows_of("naive", "--task", npz, "--seeds", "0", "--supervision", "mean")
    [equal] = rows_of("raven", "--task", npz, "--seeds", "0", "--weight-lr", "0", "--easy-phase", "0")
    assert all(ensemble[key] == equal[key] for key in ("weak", "ceiling", "student", "val"))


def test_a_killed_run_continues(npz):
    """Killed after its first row; afterwards the rows are those of an unbroken run."""
    flags = ["--task", npz, *"--seeds 0 1 2 --steps 400".split()]
    process = multiprocessing.get_context("fork").Process(target=rows_of, args=("raven", *flags))
    process.start()
    while process.is_alive() and not Path("runs/raven.jsonl").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert 0 < len(store.read_rows(Path("runs/raven.jsonl"))) < 3
    assert untimed(rows_of("raven", *flags)) == untimed(rows_of("raven", *flags, "--out", "unbroken"))


def test_pgr_by_hand():
    """Two standard errors of .5 and .6 are 0.14 for 100 samples, and .04 for 1,000."""
    assert evaluate.pgr(0.5, 0.55, 0.6, 100) is None is evaluate.pgr(0.9, 0.8, 0.7, 1000)
    found = [evaluate.pgr(0.5, *each, 1000) for each in ((0.55, 0.6), (0.6, 0.9), (0.4, 0.9))]
    assert found == pytest.approx([0.5, 0.25, -0.25])


def right_below(share):
    """A model that is right on the samples placed below `share`; a sample is (its class, its place)."""
    return lambda x: F.one_hot(torch.where(x[:, 1] < share, x[:, 0], 1 - x[:, 0]).long(), 2).float()


@pytest.mark.parametrize(
    "students, ceiling, pgr",
    [
        ((0.5, 0.8, 0.7), 0.9, (0.1 / 0.5 + 0.1 / 0.2 + 0.1 / 0.3) / 3),  # each against its own teacher
        ((0.8,), 0.9, 0.7),  # of several: against their mean accuracy, .17 / 3
        ((0.5, 0.8, 0.7), 0.71, None),  # .71 - .70 is within noise
    ],
)
def test_the_figures_of_a_row(students, ceiling, pgr, monkeypatch, capsys):
    y, place = torch.arange(2000) % 2, torch.arange(2000) / 2000
    x = torch.stack([y, place], 1)
    test = data.Split(x, y, torch.stack([right_below(share)(x) for share in (0.4, 0.7, 0.6)], 1))
    task = data.Task("features", 2, None, test, data.Split(x, 1 - y), test, "given", ["a", "b", "c"])

    def trained(problem, name, targets, lr):  # the ceiling, and naive students
        assert lr == (0.5 if name == "ceiling" else 1.0)
        assert targets.equal(y if name == "ceiling" else test.weak_probs[:, int(name[6])])
        return right_below(ceiling)

    monkeypatch.setattr(evaluate, "trained", trained)
    args = Namespace(supervision="each", out=".", lr=1.0, ceiling_lr=0.5)
    identity = store.identity("naive", "t", 0, None, "cpu", {})
    problem = evaluate.Problem(task, args, identity, compiled=False)
    evaluate.report(problem, list(map(right_below, students)), naive=True)
    row = json.loads(capsys.readouterr().out)
    expected = {"weak": [0.4, 0.7, 0.6], "student": np.mean(students), "val": 1 - np.mean(students)}
    expected |= {"ceiling": ceiling, "pgr": pgr}
    expected |= {"weak_agreement": [0.75, 0.8, 0.85]}  # a and b agree on .7, a and c on .8, b and c on .9
    expected |= {"agreement_naive": np.mean([1 - abs(own - ceiling) for own in students])}
    for key, value in expected.items():
        assert row[key] == (value and pytest.approx(value)), key


@pytest.fixture
def problem(npz):
    known, identity = data.resolve(npz), store.identity("naive", npz, 0, None, "cpu", {})
    args = Namespace(**known.recipe | {"seed": 0, "steps": 60, "lr": 0.03, "encoder_steps": 10})
    return evaluate.Problem(teachers.supervise(known, 0, None, "cpu", 10), args, identity, compiled=False)


def test_the_ceiling_is_naive_on_the_truth_of_strong_train(problem):
    y = problem.task.strong_train.y
    student, training = evaluate.start(problem, F.one_hot(y, 4).float())
    assert training["epochs"] * len(training["batches"]) == 60  # of 280 samples, 3 batches
    naive.train_student(student, **training)
    ceiling = evaluate.trained(problem, "ceiling", y, 0.03)
    torch.testing.assert_close(ceiling.weight, student.weight, rtol=1e-4, atol=1e-6)


def test_what_is_trained_is_told_apart_in_the_cache(problem, monkeypatch, tmp_path):
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")

    def weight(lr=0.03, y=problem.task.strong_train.y, **changed):
        changed = problem._replace(args=Namespace(**vars(problem.args) | changed))
        return evaluate.trained(changed, "ceiling", y, lr).weight

    first = weight()
    monkeypatch.setattr(models, "fit", lambda student, *_, **__: student)  # which stays at zero
    assert weight().equal(first) and first.abs().max() > 0
    others = {"y": torch.full((280, 4), 0.25), "lr": 0.01, "steps": 20, "batch_size": 7, "seed": 1}
    assert not any(weight(**{key: other}).equal(first) for key, other in others.items())


def test_divergence_is_bad_input_not_a_row(npz, monkeypatch):
    monkeypatch.setattr(models, "predict", lambda student, x: torch.full((len(x), 4), torch.nan))
    with pytest.raises(data.InputError, match="diverged"):
        rows_of("naive", "--task", npz, "--seeds", "0")
    assert not store.read_rows(Path("runs/naive.jsonl"))


def test_the_compile_flag_reaches_the_loss(npz, monkeypatch):
    seen = []
    monkeypatch.setattr(evaluate, "compiled", lambda loss, argnums: seen.append(argnums) or loss)
    for choice in ("auto", "on", "off"):
        rows_of("raven", "--task", npz, *QUICK, "--steps", "20", "--compile", choice)
    assert seen == [(0, 2)]  # auto is off without CUDA


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--task glyfs", "unknown task 'glyfs'; known: glyphs, "),
        ("--device cuda:99", "no device 'cuda:99'"),
        ("--steps 0", "--steps"),
        ("--lr nan", "--lr"),
        ("--task small.npz --weak-models 21", "argument --weak-models"),
        (f"--out {__file__}", "exists"),
        ("--task text:books:kitchen", "--data-dir"),
        ("--task glyphs glyphs-distill --weak-models 3", "is for linear heads on features, not for glyphs-d"),
        ("--task glyphs --weak-encoder alexnet", "are for folder tasks, not glyphs"),
        ("--task small.npz --weak-models 3", "small.npz has weak models of its own"),
        ("--task small.npz --weak-temperatures 2", "3 weak models need one each"),
        ("--task small.npz --balanced", "--balanced is for two classes, small.npz has 4"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, npz, capsys):
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
    assert done.stderr.startswith("naive.py: bad.npz: expected is an .npz file")
    assert len(done.stdout.splitlines()) == len(store.read_rows(Path("runs/naive.jsonl"))) == 1


def test_students_of_other_sharpness_are_trained_anew(npz):
    flags = ["--task", npz, *QUICK, "--supervision", "mean", "--lr", "auto", "--weak-temperatures"]
    [usual], [sharp] = (rows_of("naive", *flags, *temperatures) for temperatures in ("111", "155"))
    assert sharp["weak"] == usual["weak"] and sharp["weak_confidence"][2] < usual["weak_confidence"][2]
    kept = len(list(store.CACHE.glob("student-*.pt")))
    rows_of("naive", *flags, *"154")
    assert len(list(store.CACHE.glob("student-*.pt"))) == kept + len(evaluate.RATES)
