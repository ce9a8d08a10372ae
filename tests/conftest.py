"""Shared by all tests: an empty folder for each, one cache for all, small tasks, problems, trainings."""

import contextlib
import gzip
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import models
import store

# Several threads make such small problems no faster, and on a busy machine far slower.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of scripts that tests start
ROOT = Path(__file__).resolve().parents[1]
METHODS = "adaptive_confidence confidence naive raven bayes dawid_skene prototypes".split()


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch, tmp_path_factory):
    """Nothing a test writes lands in the repository; what is slow is computed once; training is brief."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(data.HEAD, "steps", 200)
    monkeypatch.setattr(store, "CACHE", tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="session")
def parity():
    """Values printed by the authors' released code (float64)."""
    return json.loads((ROOT / "tests" / "parity.json").read_text())


@pytest.fixture
def arrays():
    """The arrays of a small task file: 400 samples, 3 weak models (the third is best), 4 classes."""
    generator = np.random.default_rng(0)
    centers, y = generator.normal(size=(4, 6)), generator.integers(0, 4, 400)
    x = centers[y] + 0.7 * generator.normal(size=(400, 6))
    noise = np.array([2.0, 1.5, 0.8])[:, None] * generator.normal(size=(400, 3, 4))
    odds = np.exp(2 * np.eye(4)[y][:, None] + noise)
    return {"x": x, "weak_probs": odds / odds.sum(-1, keepdims=True), "y": y}


@pytest.fixture
def npz(arrays, tmp_path):
    np.savez(tmp_path / "small.npz", **arrays)
    return str(tmp_path / "small.npz")


def write_lines(path, rows):
    """Rows as JSON lines, compressed where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def reviews(domain, n=60):
    return [{"text": f"{domain} {['bad', 'good'][i % 2]} {i}", "label": i % 2} for i in range(n)]


@pytest.fixture
def amazon(tmp_path):
    """A folder with 60 reviews of books and 60 of kitchenware."""
    write_lines(tmp_path / "files" / "books.jsonl", reviews("books"))
    write_lines(tmp_path / "files" / "kitchen.jsonl.gz", reviews("kitchen"))
    return tmp_path / "files"


def random_problem(n=12, m=3, c=5, seed=0):
    """Student logits (n, c) and weak probabilities (n, m, c) in float64."""
    generator = torch.Generator().manual_seed(seed)
    more = {"generator": generator, "dtype": torch.float64}
    return 2 * torch.randn(n, c, **more), (2 * torch.randn(n, m, c, **more)).softmax(-1)


def gradient(loss, *inputs):
    """The value of loss(*inputs) and its gradients; the inputs are copied first."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    value = loss(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)


def features(n: int) -> torch.Tensor:
    """What `train` learns from: (n, 6)."""
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1))


def train(method, weak_probs, labels=None, epochs=4, lr=1e-2, **settings):
    """A method's student of five classes, briefly trained: (its weights (5, 6), what the loop returns)."""
    student = models.LinearHead(6, 5, pairs=False)
    parts = [features(len(weak_probs)), weak_probs, *([] if labels is None else [labels])]
    batches = models.Batches(parts, 32, seed=0)
    optimizer, schedule = models.make_optimizer("adam", student, lr, epochs * len(batches))
    if method.__name__ == "raven":
        settings["num_weak"] = weak_probs.shape[1]
    returned = method.train_student(student, batches, epochs, optimizer, schedule, **settings)
    assert schedule.last_epoch == epochs * len(batches)  # stepped after every batch
    return student.weight.detach(), returned


def run_script(method, *arguments) -> list[dict]:
    """The rows that a method's script prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        method.main(list(arguments))
    return [json.loads(line) for line in printed.getvalue().splitlines()]
