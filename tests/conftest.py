"""Shared by all tests: an empty folder for each, one cache for all, a small task file, float64 problems."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import store

ROOT = Path(__file__).resolve().parents[1]
# raven_dpo trains a policy: other flags, other rows, tests of its own.
METHODS = sorted({path.stem for path in (ROOT / "methods").glob("*.py")} - {"raven_dpo"})
BRIEF = ["--encoder-steps", "10", "--epochs", "2", "--device", "cpu"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch, cache):
    """Nothing a test writes lands in the repository, and what is slow is computed once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "CACHE", cache)


@pytest.fixture(scope="session")
def parity():
    """Values printed by the authors' released code (float64)."""
    return json.loads((ROOT / "tests" / "parity.json").read_text())


@pytest.fixture
def arrays():
    """The arrays of a small task file: 400 samples, 3 weak models (the third is best), 4 classes."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(4, 6))
    y = generator.integers(0, 4, 400)
    x = centers[y] + 0.7 * generator.normal(size=(400, 6))
    noise = np.array([2.0, 1.5, 0.8])[:, None] * generator.normal(size=(400, 3, 4))
    logits = 2 * np.eye(4)[y][:, None] + noise
    weak_probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return {"x": x, "weak_probs": weak_probs, "y": y}


@pytest.fixture
def npz(arrays, tmp_path):
    np.savez(tmp_path / "small.npz", **arrays)
    return str(tmp_path / "small.npz")


def random_problem(n=12, m=3, c=5, seed=0):
    """Student logits (n, c) and weak probabilities (n, m, c) in float64."""
    generator = torch.Generator().manual_seed(seed)
    student_logits = 2 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    weak_probs = torch.softmax(2 * torch.randn(n, m, c, generator=generator, dtype=torch.float64), -1)
    return student_logits, weak_probs


def gradient(loss, *inputs):
    """The value of loss(*inputs) and its gradients; the inputs are copied first."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    value = loss(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)
