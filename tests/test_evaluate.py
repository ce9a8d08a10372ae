"""What all scripts share: flags, rows, ceiling, scores; each method from its command line to its row."""

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import naive
import numpy as np
import pytest
import torch
from conftest import METHODS, ROOT, run_script
from torch import nn

import data
import evaluate
import models
import store


def rows_of(method, *arguments):
    return run_script(importlib.import_module(method), *arguments)


def read(path):
    return store.read_rows(Path(path))


# ------------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["small.npz", "pairs.npz"])
def test_a_run_end_to_end(method, task, npz, pairs):
    """A complete row, printed and kept, and the same again."""
    command = ["--task", task, "--seeds", "0", "--lr", "0.03", "--batch-size", "16"]
    [row] = rows_of(method, *command, "--out", "a")
    assert read(f"a/{method}.jsonl") == [row]
    assert (row["method"], row["task"], row["seed"], row["n_test"]) == (method, task, 0, 80)
    assert row["flags"] == {"lr": 0.03, "batch_size": 16} and row["version"] == store.VERSION
    assert all(0 < score <= 1 for score in [*row["weak"], row["student"], row["ceiling"], row["val"]])
    assert row["student"] > 0.85
    if method == "raven":
        assert row["weights"] == row["weight_history"][-1] and len(row["weight_history"]) == 21
        assert sum(row["easy_classes"]) == round(row["easy_fraction"] * 280)
    else:
        assert row["student"] == pytest.approx(sum(row["students"]) / 3)
    [again] = rows_of(method, *command, "--out", "b")
    assert {**again, "seconds": 0} == {**row, "seconds": 0}


@pytest.fixture
def pairs(arrays):
    """Pairs of responses, of which the better has larger features."""
    x, y = arrays["x"], np.arange(400) % 2
    better, worse = x + 1.0, x
    both = np.where((y == 0)[:, None, None], np.stack([better, worse], 1), np.stack([worse, better], 1))
    noise = arrays["weak_probs"][:, :, :2]
    weak_probs = 0.2 * noise / noise.sum(-1, keepdims=True) + 0.8 * np.eye(2)[y][:, None]
    np.savez("pairs.npz", x=both, weak_probs=weak_probs, y=y)


def test_a_row_that_exists_is_printed_not_computed(npz, monkeypatch):
    rows = rows_of("naive", "--task", npz, "--seeds", "0", "1")
    monkeypatch.setattr(models, "supervise", None)
    assert rows_of("naive", "--task", npz, "--seeds", "1", "0", "--lr", "3e-5") == rows[::-1]  # the default
    for changed in (["--lr", "0.1"], ["--seeds", "2"], ["--supervision", "mean"]):  # these are computed
        with pytest.raises(TypeError):
            rows_of("naive", "--task", npz, "--seeds", "0", *changed)


def test_a_file_is_known_by_its_content(npz, arrays, tmp_path):
    [row] = rows_of("naive", "--task", npz, "--seeds", "0")
    (tmp_path / "elsewhere").mkdir()
    copy = Path(npz).rename(tmp_path / "elsewhere" / "small.npz")
    assert rows_of("naive", "--task", str(copy), "--seeds", "0") == [row]
    np.savez(copy, **arrays | {"x": arrays["x"] + 1})
    [other] = rows_of("naive", "--task", str(copy), "--seeds", "0")
    assert other["task"] == row["task"] and other["data"] != row["data"]


@pytest.mark.parametrize("method", METHODS)
def test_labels_reach_the_student(method, arrays):
    """Weak labels that say nothing, labels that are right: only their cross-entropy can teach the student."""
    arrays["weak_probs"] = np.full((400, 3, 4), 0.25)
    np.savez("with.npz", **arrays, labels=arrays["y"])
    np.savez("without.npz", **arrays)
    flags = "--seeds 0 --epochs 20 --lr 0.03 --batch-size 16".split()
    with_labels, without = rows_of(method, "--task", "with.npz", "without.npz", *flags)
    assert with_labels["student"] > 0.9 > 0.6 > without["student"]


def test_students_of_the_mean_and_the_initial_student_are_the_same_in_all_methods(npz):
    [ensemble] = rows_of("naive", "--task", npz, "--seeds", "0", "--supervision", "mean")
    [equal] = rows_of("raven", "--task", npz, "--seeds", "0", "--weight-lr", "0", "--easy-phase", "0")
    assert all(ensemble[key] == equal[key] for key in ("weak", "ceiling", "student", "agreement", "val"))


def test_a_killed_run_continues(npz):
    """Killed at two moments; afterwards the rows are those of an unbroken run."""
    flags = ["--task", npz, "--seeds", *map(str, range(4)), "--epochs", "100", "--device", "cpu"]
    command = [sys.executable, ROOT / "methods" / "raven.py", *flags]
    for rows_before_the_kill in (1, 2):
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        for _ in range(rows_before_the_kill):
            process.stdout.readline()
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert rows_before_the_kill <= len(read("runs/raven.jsonl")) <= 4
    resumed, whole = rows_of("raven", *flags), rows_of("raven", *flags, "--out", "unbroken")
    assert [{**row, "seconds": 0} for row in resumed] == [{**row, "seconds": 0} for row in whole]


# ----------------------------------------------------------------------------------------------------- scores


def test_pgr_by_hand():
    assert evaluate.pgr(0.5, 0.6, 0.9, 1000) == pytest.approx(0.25)
    assert evaluate.pgr(0.5, 0.4, 0.9, 1000) == pytest.approx(-0.25)
    two_errors = 2 * math.sqrt((0.5 * 0.5 + 0.6 * 0.4) / 100)  # 0.14 > 0.1
    assert two_errors > 0.1 and evaluate.pgr(0.5, 0.55, 0.6, 100) is None
    assert evaluate.pgr(0.5, 0.55, 0.6, 1000) == pytest.approx(0.5)
    assert evaluate.pgr(1.0, 1.0, 1.0, 100) is None and evaluate.pgr(0.9, 0.8, 0.7, 1000) is None


class Answers(nn.Module):
    """A model that is right on the first part of the samples, all of which know their class and place."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        right = x[:, 1] < self.share
        return nn.functional.one_hot(torch.where(right, x[:, 0], 1 - x[:, 0]).long(), 2).float()


@pytest.mark.parametrize(
    "students, ceiling, pgr, agreement",
    [
        ((0.6, 0.8), 0.9, (0.1 / 0.4 + 0.1 / 0.2) / 2, 0.9),  # each against its own teacher
        ((0.8,), 0.9, 0.2 / 0.3, 0.9),  # of several: against their mean accuracy .6
        ((0.6, 0.8), 0.71, None, 0.9),  # .71 - .70 is within noise
    ],
)
def test_the_figures_of_a_row(students, ceiling, pgr, agreement, monkeypatch, capsys):
    y = torch.arange(2000) % 2
    x = torch.stack([y.float(), torch.arange(2000) / 2000], 1)
    weak_probs = torch.stack([Answers(share)(x) for share in (0.5, 0.7)], 1)
    test = data.Split(x, y, weak_probs)
    task = data.Task("features", 2, None, test, data.Split(x, 1 - y), test, "given", ["a", "b"])
    args = Namespace(supervision="each", out="runs")
    identity = store.identity("naive", "t", 0, None, "cpu", {})
    monkeypatch.setattr(evaluate, "train_ceiling", lambda problem: Answers(ceiling))
    Path("runs").mkdir()
    targets = None if len(students) > 1 else [Answers(0.7)(x)]
    problem = evaluate.Problem(task, args, identity, False, 0.0)
    evaluate.report(problem, list(map(Answers, students)), targets)
    row = json.loads(capsys.readouterr().out)
    assert row["weak"] == pytest.approx([0.5, 0.7]) and row["student"] == pytest.approx(np.mean(students))
    assert row["pgr"] == (pgr and pytest.approx(pgr)) and row["agreement"] == pytest.approx(agreement)
    assert row["val"] == pytest.approx(1 - np.mean(students))


def test_the_ceiling_is_naive_on_the_truth_of_strong_train(npz):
    known = data.resolve(npz)
    task = models.supervise(known, 0, None, "cpu", 10)
    flags = {"seed": 0, "epochs": 3, "ceiling_lr": 0.03, "lr": 0.03, "encoder_steps": 10}
    args = Namespace(**known.recipe | flags)
    problem = evaluate.Problem(task, args, store.identity("naive", npz, 0, None, "cpu", {}), False, 0.0)
    truth = nn.functional.one_hot(task.strong_train.y, 4).float()
    student, training = evaluate.start(problem, truth)
    naive.train_student(student, **training)
    torch.testing.assert_close(evaluate.train_ceiling(problem).weight, student.weight, rtol=1e-4, atol=1e-6)


def test_divergence_is_bad_input_not_a_row(npz, monkeypatch):
    monkeypatch.setattr(models, "predict", lambda student, x: torch.full((len(x), 4), torch.nan))
    with pytest.raises(data.InputError, match="diverged"):
        rows_of("naive", "--task", npz, "--seeds", "0")
    assert not read("runs/naive.jsonl")


def test_the_compile_flag_reaches_the_loss(npz, monkeypatch):
    seen = []
    monkeypatch.setattr(evaluate, "compiled", lambda loss, argnums: seen.append(argnums) or loss)
    command = ["--task", npz, "--seeds", "0", "--epochs", "1", "--device", "cpu", "--compile"]
    for choice in ("auto", "on", "off"):
        rows_of("raven", *command, choice)
    assert seen == [(0, 2)]  # auto is off without CUDA


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task", "glyfs"], "unknown task 'glyfs'; known: glyphs, "),
        (["--task", "glyphs", "missing.npz"], "no file missing.npz"),
        (["--task", "mnist-usps", "--data-dir", "nowhere"], "MNIST/raw"),
        (["--device", "cuda:99"], "no device 'cuda:99'"),
        (["--epochs", "0"], "--epochs"),
        (["--lr", "nan"], "--lr"),
        (["--seeds", "-1"], "--seeds"),
        (["--out", __file__], "exists"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--task", "amazon-books-kitchen"], "--data-dir"),
        (["--task", "amazon-books-kitchen", "--data-dir", "nowhere"], "no books.jsonl or books.jsonl.gz"),
        (["--task", "hh-helpful-harmless", "--data-dir", "nowhere"], "no helpful-base/*.jsonl"),
        (["--task", "small.npz", "--balanced"], "--balanced is for two classes, small.npz has 4"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, npz, capsys):
    """Through the guard of the scripts, in this process: starting Python anew for each would take minutes."""
    confidence = importlib.import_module("confidence")
    with pytest.raises(SystemExit) as exit, contextlib.redirect_stdout(None):
        evaluate.run(lambda: confidence.main(arguments))
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(lines) == 1 and message in lines[0]


def test_a_script_ends_with_one_line_and_status_2(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    command = [sys.executable, ROOT / "methods" / "naive.py", "--task", "bad.npz"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("naive.py: bad.npz: not an .npz file")


def test_a_bad_file_does_not_cost_the_rows_before_it(npz, tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(data.InputError):
        rows_of("naive", "--task", npz, "bad.npz", "--seeds", "0")
    assert len(read("runs/naive.jsonl")) == 1


def test_unused_imports_of_heavy_packages():
    """A method imports in the time of torch."""
    code = "import sys; sys.path[:0] = sys.argv[1:]; import raven, evaluate; print(*sys.modules)"
    command = [sys.executable, "-c", code, str(ROOT), str(ROOT / "methods")]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded and not {"torchvision", "datasets", "matplotlib", "transformers"} & set(loaded)
