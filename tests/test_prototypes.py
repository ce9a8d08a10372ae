"""methods/prototypes.py: equations by hand, what must not matter, and the rates that --lr auto takes."""

import math

import naive
import numpy as np
import prototypes
import pytest
import torch
import torch.nn.functional as F
from conftest import run_script

import data


def test_centroids_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    targets = torch.tensor([[1.0, 0, 0], [0.75, 0.25, 0], [0, 1.0, 0]])
    found = prototypes.centroids(x, targets)  # sums (1, .75) and (0, 2.25); class 2 has no sample
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.0, 0.0]]))


def test_similarity_is_centred_over_classes_and_of_deviation_one():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    s = prototypes.similarity(x, torch.eye(2))  # x . mu is the identity
    torch.testing.assert_close(s, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))


def test_agreement_by_hand():
    targets = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    votes = torch.tensor([[0, 1, 0], [1, 0, 0]])  # mean of .9 and .8; of .1 and .2; of .9 and .2
    found = prototypes.agreement(votes, targets)
    torch.testing.assert_close(found, torch.tensor([0.85, 0.5, 0.55]))  # the second is clamped to 1/C


def test_agreement_has_a_ceiling():  # else one weak model could not be outvoted by anything
    votes = torch.tensor([[0], [1]])
    assert prototypes.agreement(votes, torch.eye(2)).item() == pytest.approx(0.99)


def test_posterior_by_hand():
    s, votes, a = torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([[1, 2]]), torch.tensor([0.8, 0.5])
    vote_weights = [math.log(0.8 / 0.1), math.log(0.5 / 0.25)]  # a / ((1 - a) / (C - 1))
    wanted = torch.tensor([[2.0, -2.0 + 0.5 * vote_weights[0], 0.5 * vote_weights[1]]]).softmax(-1)
    found = prototypes.posterior(s, votes, a, beta=2.0, kappa=0.5)
    torch.testing.assert_close(found, wanted)


@pytest.fixture
def clusters():
    """Two classes apart by the sign of the first of four features; weak models right on 90, 70, 60 %."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    x = torch.randn(400, 4, generator=generator)
    x[:, 0] = (2 * y - 1) * (1 + x[:, 0].abs())
    right = torch.rand(400, 3, generator=generator) < torch.tensor([0.9, 0.7, 0.6])
    votes = torch.where(right, y[:, None], 1 - y[:, None])
    return x, F.one_hot(votes, 2) * 0.8 + 0.1, y


def accuracy(targets, y):
    return (targets.argmax(-1) == y).double().mean().item()


def test_labels_are_better_than_the_best_weak_model(clusters):
    x, weak_probs, y = clusters
    assert accuracy(prototypes.label(x, weak_probs), y) > accuracy(weak_probs[:, 0], y) + 0.05


def test_order_of_samples_and_classes_does_not_matter(clusters):
    x, weak_probs, _ = clusters
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    found = prototypes.label(x, weak_probs)
    torch.testing.assert_close(prototypes.label(x[order], weak_probs[order]), found[order])
    torch.testing.assert_close(prototypes.label(x, weak_probs.flip(-1)), found.flip(-1))


def test_order_of_a_pair_does_not_matter(clusters):
    x, weak_probs, y = clusters
    pairs = torch.stack([torch.zeros_like(x), x], dim=1)  # the second is better where x_0 > 0
    found = prototypes.label(pairs, weak_probs)
    assert accuracy(found, y) > 0.95
    torch.testing.assert_close(prototypes.label(pairs.flip(1), weak_probs.flip(-1)), found.flip(-1))


def chosen(x, weak_probs, y):
    """The rate that --lr auto takes, as the row says."""
    np.savez("task.npz", x=x.numpy(), weak_probs=weak_probs.numpy(), y=y.numpy())
    [row] = run_script(naive, "--task", "task.npz", "--seeds", "0", "--lr", "auto", "--steps", "300")
    assert row["flags"]["lr"] == "auto"
    return row["lr"]


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(500, 200, generator=generator), torch.arange(500) % 2, generator


def test_auto_takes_a_small_rate_where_a_large_one_learns_the_weak_models_mistakes(noise):
    x, y, generator = noise
    x += 0.5 * (2 * y[:, None] - 1)  # every feature knows a little of the class
    right = torch.rand(500, 3, generator=generator) < 0.7
    votes = torch.where(right, y[:, None], 1 - y[:, None])
    assert chosen(x, F.one_hot(votes, 2).float(), y) <= 3e-5


def test_auto_takes_a_large_rate_where_few_of_many_features_matter(noise):
    x, y, _ = noise
    x[:, 0] += 3 * (2 * y - 1)  # a step of Adam moves all weights alike, at first
    votes = y[:, None].repeat(1, 3)
    assert chosen(x, F.one_hot(votes, 2).float(), y) >= 1e-3


def test_auto_is_for_linear_heads():
    with pytest.raises(data.InputError, match="are for linear heads, not for glyphs-distill"):
        run_script(naive, "--task", "glyphs-distill", "--lr", "auto")
