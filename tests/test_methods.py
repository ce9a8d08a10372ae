"""What all method scripts share: command line, rows, the shared block, and that a file can be copied out."""

import ast
import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import BRIEF, METHODS, ROOT

import data
import models
import store
import training


def run(method):
    return importlib.import_module(method).main


def script(*arguments, cwd=None):
    """Runs a script in a fresh process, without a network of its own accord."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)


# ------------------------------------------------------------------------------------------------------ rows


WEAK_MODELS = {
    "glyphs-shift": ["linear", "mlp", "cnn"],
    "reviews-shift": ["words", "noisy", "phrases"],
    "preferences-shift": ["words", "noisy", "phrases"],
}


@pytest.mark.parametrize("task", WEAK_MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_small_run_end_to_end(method, task, capsys):
    """An embedded task through every stage: a complete row, printed, kept, and bitwise the same again."""
    command = ["--task", task, "--seeds", "0", *BRIEF]
    [row] = run(method)([*command, "--out", "a"])
    assert json.loads(capsys.readouterr().out) == row == store.read_rows(data.Path(f"a/{method}.jsonl"))[0]
    assert (row["method"], row["task"], row["seed"], row["n_test"]) == (method, task, 0, 2000)
    assert row["weak_models"] == WEAK_MODELS[task] and len(row["weak"]) == 3
    assert task.startswith({"image": "glyphs", "text": "reviews", "preference": "preferences"}[row["kind"]])
    scores = [*row["weak"], row["student"], row["ceiling"], row["agreement"], row["val"]]
    assert all(0 < score < 1 for score in scores)
    assert not {"task", "seeds", "out", "data_dir"} & set(row["flags"])
    [again] = run(method)([*command, "--out", "b"])
    assert {**again, "seconds": 0} == {**row, "seconds": 0}
    if "students" in row:
        assert len(row["students"]) == 3 and row["student"] == pytest.approx(sum(row["students"]) / 3)
        assert row["pgr"] is None or row["pgr"] == pytest.approx(
            sum((s - w) / (row["ceiling"] - w) for s, w in zip(row["students"], row["weak"])) / 3
        )
    if "weights" in row:
        assert row["weights"] == row["weight_history"][-1] and len(row["weight_history"]) == 3
        assert sum(row["weights"]) == pytest.approx(1)
        assert len(row["easy_classes"]) == (10 if task == "glyphs-shift" else 2)
        assert row["combined"] == ("probs" if task == "glyphs-shift" else "logits")
        assert sum(row["easy_classes"]) == round(row["easy_fraction"] * 7000)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_that_exists_is_printed_not_computed(method, npz, capsys, monkeypatch):
    rows = run(method)(["--task", npz, "--seeds", "0", "1"])
    capsys.readouterr()
    monkeypatch.setattr(models, "supervise", None)
    assert run(method)(["--task", npz, "--seeds", "1", "0"]) == rows[::-1]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows[::-1]
    for changed in (["--lr", "0.1"], ["--seeds", "2"]):  # these have to be computed
        with pytest.raises(TypeError):
            run(method)(["--task", npz, "--seeds", "0", *changed])


@pytest.mark.parametrize("method", METHODS)
def test_pairs_go_through_every_method(method, arrays):
    """Pairs of responses with one shared reward head."""
    x, y = arrays["x"], np.arange(400) % 2
    better, worse = x + 1.0, x
    pairs = np.where((y == 0)[:, None, None], np.stack([better, worse], 1), np.stack([worse, better], 1))
    noise = arrays["weak_probs"][:, :, :2]
    weak_probs = 0.2 * noise / noise.sum(-1, keepdims=True) + 0.8 * np.eye(2)[y][:, None]
    np.savez("pairs.npz", x=pairs, weak_probs=weak_probs, y=y)
    flags = "--seeds 0 --epochs 20 --lr 0.03 --batch-size 16".split()
    [row] = run(method)(["--task", "pairs.npz", *flags])
    assert row["student"] > 0.95


def test_students_of_the_mean_and_the_initial_student_are_the_same_in_all_methods(npz):
    import naive
    import raven

    flags = ["--task", npz, "--seeds", "0", "1"]
    ensemble = naive.main([*flags, "--supervision", "mean"])
    equal = raven.main([*flags, "--weight-lr", "0", "--easy-phase", "0"])
    for a, b in zip(ensemble, equal):
        assert "students" not in a
        for key in ("weak", "ceiling", "n_test", "student", "agreement", "val"):
            assert a[key] == b[key]


@pytest.mark.parametrize("method", METHODS)
def test_what_the_student_is_trained_on(method, arrays, monkeypatch):
    """Features, weak labels and labels of strong_train, and the seed's initial student: in every method."""
    np.savez("labels.npz", **arrays, labels=arrays["y"][::-1])
    task = models.supervise("labels.npz", 3, None, "cpu", 10)
    module, seen = importlib.import_module(method), {}
    train_student = module.train_student

    def spy(**arguments):
        seen.update(arguments, weight=arguments["student"].linear.weight.detach().clone())
        return train_student(**arguments)

    monkeypatch.setattr(module, "train_student", spy)
    flags = "--seeds 3 --epochs 2 --lr 0.5 --ceiling-lr 0.25 --batch-size 16 --device cpu".split()
    if method == "raven":  # so that the weights move far from equal ones
        flags += ["--weight-lr", "5", "--easy-phase", "0"]
    [row] = module.main(["--task", "labels.npz", *flags])
    x, _, weak_probs = task.strong_train
    assert torch.equal(seen["x"], x) and torch.equal(seen["weak_probs"], weak_probs)
    assert torch.equal(seen["labels"], task.labels)
    assert (seen["seed"], seen["epochs"], seen["lr"], seen["batch_size"]) == (3, 2, 0.5, 16)
    alone = torch.zeros(4, 6)
    for weight in seen["weight"].split(4):
        assert torch.equal(weight, alone)
    ceiling = models.train_ceiling(task, epochs=2, lr=0.25, batch_size=16, seed=3)
    assert row["ceiling"] == module.accuracy(training.predict(ceiling, task.test.x), task.test.y)[0]
    # The agreement is with the labels that supervised the student in the end.
    targets = task.test.weak_probs
    if "weights" in row:
        targets = (targets * torch.tensor(row["weights"])[:, None]).sum(1, keepdim=True)
    predicted = training.predict(seen["student"], task.test.x).argmax(-1)
    assert row["agreement"] == pytest.approx((predicted == targets.argmax(-1)).double().mean().item())
    assert row["weak_confidence"] == pytest.approx(task.test.weak_probs.max(-1).values.mean(0).tolist())


@pytest.mark.parametrize("method", METHODS)
def test_labels_reach_the_student(method, arrays):
    """Weak labels that say nothing, labels that are right: only their cross-entropy can teach the student."""
    arrays["weak_probs"] = np.full((400, 3, 4), 0.25)
    flags = "--seeds 0 --epochs 20 --lr 0.03 --batch-size 16".split()
    np.savez("with.npz", **arrays, labels=arrays["y"])
    np.savez("without.npz", **arrays)
    with_labels, without = run(method)(["--task", "with.npz", "without.npz", *flags])
    assert with_labels["student"] > 0.9 > 0.6 > without["student"]


@pytest.mark.parametrize("method", METHODS)
def test_divergence_is_bad_input_not_a_row(method, npz, monkeypatch):
    monkeypatch.setattr(training, "predict", lambda student, x: torch.full((len(x), 3, 4), torch.nan))
    with pytest.raises(data.InputError, match="diverged"):
        run(method)(["--task", npz, "--seeds", "0"])
    assert not store.read_rows(data.Path(f"runs/{method}.jsonl"))


# --------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("method", METHODS)
def test_accuracy_and_pgr_by_hand(method):
    module = importlib.import_module(method)
    scores = torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.1, 0.9]]])
    assert module.accuracy(scores, torch.tensor([0, 1])) == [0.5, 0.5]
    assert module.accuracy(scores, torch.tensor([0, 0])) == [1.0, 0.0]
    assert module.pgr(0.5, 0.6, 0.9, 1000) == pytest.approx(0.25)
    assert module.pgr(0.5, 0.4, 0.9, 1000) == pytest.approx(-0.25)
    two_errors = 2 * math.sqrt((0.5 * 0.5 + 0.6 * 0.4) / 100)  # 0.14 > 0.1
    assert two_errors > 0.1 and module.pgr(0.5, 0.55, 0.6, 100) is None
    assert module.pgr(0.5, 0.55, 0.6, 1000) == pytest.approx(0.5)
    assert module.pgr(1.0, 1.0, 1.0, 100) is None and module.pgr(0.9, 0.8, 0.7, 1000) is None


def test_score_compares_each_student_with_its_teacher():
    import naive

    y = torch.arange(2000) % 2
    x = torch.nn.functional.one_hot(y, 2).float()

    def labels(*accuracies):  # weak labels that are right on the first part of the samples
        right = torch.stack([torch.arange(2000) < share * 2000 for share in accuracies], 1)
        return torch.nn.functional.one_hot(torch.where(right, y[:, None], 1 - y[:, None]), 2).float()

    split = data.Split(x, y, labels(0.5, 0.7))
    val = data.Split(x, 1 - y, None)
    task = data.Task("features", 2, None, None, val, split, ["a", "b"])

    def as_model(*accuracies):  # predict() asks for the samples a thousand at a time, in order
        parts = list(labels(*accuracies).split(1000)) * 2
        return lambda batch: parts.pop(0)

    ceiling = as_model(0.9)
    row = naive.score(task, as_model(0.6, 0.8), ceiling, split.weak_probs)
    assert row["weak"] == pytest.approx([0.5, 0.7]) and row["students"] == pytest.approx([0.6, 0.8])
    assert row["pgr"] == pytest.approx((0.1 / 0.4 + 0.1 / 0.2) / 2)
    assert row["agreement"] == pytest.approx(0.9) and row["val"] == pytest.approx(0.3)
    row = naive.score(task, as_model(0.8), as_model(0.9), labels(0.8))
    assert row["pgr"] == pytest.approx(0.2 / 0.3) and row["agreement"] == 1 and "students" not in row
    row = naive.score(task, as_model(0.6, 0.8), as_model(0.71), split.weak_probs)
    assert row["pgr"] is None  # .71 - .70 is within noise


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("method", METHODS)
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
        (["--seeds", "9" * 400], "--seeds"),
        (["--out", __file__], "exists"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--task", "amazon-books-kitchen"], "--data-dir"),
        (["--task", "amazon-books-kitchen", "--data-dir", "nowhere"], "no books.jsonl or books.jsonl.gz"),
        (["--task", "amazon-books-books"], "unknown task"),
        (["--task", "hh-helpful-harmless", "--data-dir", "nowhere"], "no helpful-base/*.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_status_2(method, arguments, message, monkeypatch, capsys):
    """Through the script's own guard, in this process: starting Python anew for each would take minutes."""
    path = ROOT / "methods" / f"{method}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(SystemExit) as exit:
        import runpy

        runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr()
    assert exit.value.code == 2 and printed.out == ""
    assert len(printed.err.splitlines()) == 1 and message in printed.err


def test_a_bad_file_does_not_cost_the_rows_before_it(npz, tmp_path):
    import naive

    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(data.InputError):
        naive.main(["--task", npz, "bad.npz", "--seeds", "0"])
    assert len(store.read_rows(tmp_path / "runs" / "naive.jsonl")) == 1


def test_a_killed_run_continues(npz, tmp_path):
    """Killed at several moments; afterwards the rows are those of an unbroken run."""
    flags = ["--task", npz, "--seeds", *map(str, range(8)), "--epochs", "100", "--device", "cpu"]
    command = [ROOT / "methods" / "raven.py", *flags]
    for rows_before_the_kill in (1, 3):
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True)
        for _ in range(rows_before_the_kill):
            process.stdout.readline()
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kept = store.read_rows(tmp_path / "runs" / "raven.jsonl")
        assert rows_before_the_kill <= len(kept) <= 8
    import raven

    resumed = raven.main(list(map(str, command[1:])))
    whole = raven.main([*map(str, command[1:]), "--out", "unbroken"])
    strip = [{**row, "seconds": 0} for row in resumed], [{**row, "seconds": 0} for row in whole]
    assert strip[0] == strip[1]
    assert len(store.read_rows(tmp_path / "runs" / "raven.jsonl")) == 8


# ------------------------------------------------------------------------------------------- shape of a file


def shared_block(method):
    text = (ROOT / "methods" / f"{method}.py").read_text()
    start, end = text.index("# ---- From here"), text.index("\n# " + "-" * 108 + "\n")
    guard = text.index('if __name__ == "__main__":')
    return text[start:end] + text[guard:]


@pytest.mark.parametrize("method", METHODS)
def test_the_shared_block_is_the_same_text(method):
    assert "def score" in shared_block("naive")
    assert shared_block(method) == shared_block("naive")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_imports_no_other_method(method):
    tree = ast.parse((ROOT / "methods" / f"{method}.py").read_text())
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_copied_out_with_data_and_models_it_runs(method, npz, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for file in (ROOT / "methods" / f"{method}.py", *store.SOURCES):
        shutil.copy(file, folder)
    result = script(f"{method}.py", "--task", npz, "--seeds", "0", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["method"] == method and (folder / "runs" / f"{method}.jsonl").exists()


@pytest.mark.parametrize("method", METHODS)
def test_pure_functions_run_pasted_alone(method):
    """All functions above train_student but value_and_gradient, with torch and nothing of ours."""
    tree = ast.parse((ROOT / "methods" / f"{method}.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    names = [function.name for function in functions]
    pure = [each for each in functions[: names.index("train_student")] if not each.decorator_list]
    namespace = {"torch": torch, "F": torch.nn.functional}
    exec("\n".join(ast.unparse(function) for function in pure), namespace)
    student_logits, weak_probs = torch.randn(6, 4), torch.randn(6, 3, 4).softmax(-1)
    if method == "raven":
        arguments = (weak_probs, torch.full((3,), 1 / 3), namespace["unanimous"](weak_probs))
        assert namespace["project"](torch.ones(3)).sum() == pytest.approx(1)
    else:
        arguments = (weak_probs[:, 0],)
    assert namespace[f"{method}_loss"](student_logits, *arguments).dim() == 0
