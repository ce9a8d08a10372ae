"""methods/prototypes.py: equations by hand, what must not matter, and the rates that --lr auto takes."""

import naive
import numpy as np
import prototypes
import pytest
import torch
import torch.nn.functional as F
from conftest import run_script

import data


def test_whiten_by_hand():
    x = torch.tensor([[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0]]) + 7
    white = prototypes.whiten(x, gamma=2.0)  # Sigma diag(4, 1), S diag(9, 6)
    cosine = (4 / 9 - 1 / 6) / (4 / 9 + 1 / 6)
    torch.testing.assert_close((white @ white.T)[0], torch.tensor([1.0, -1.0, cosine, -cosine]))


def test_similarity_by_hand():
    x, targets = torch.eye(2), torch.tensor([[1.0, 0, 0], [0.75, 0.25, 0]])
    found = prototypes.similarity(x, targets)  # prototypes (.8, .6) and (0, 1); class 2 has no sample
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.0, -torch.inf], [0.6, 1.0, -torch.inf]]))


def test_labels_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    weak_probs = torch.randn(40, 3, 4, generator=generator, dtype=torch.float64).softmax(-1)
    sigma = torch.cov(x.T, correction=0)
    inverse = torch.linalg.inv(sigma + 0.7 * sigma.trace() / 6 * torch.eye(6))
    centred, t = x - x.mean(0), weak_probs.mean(1)
    for _ in range(3):
        mu = [sum(t[i, c] * v / (v @ inverse @ v).sqrt() for i, v in enumerate(centred)) for c in range(4)]
        cosines = [[v @ inverse @ m / (m @ inverse @ m).sqrt() for m in mu] for v in centred]
        t = F.one_hot(torch.tensor(cosines).argmax(-1), 4).double()
    torch.testing.assert_close(prototypes.label(x, weak_probs, gamma=0.7, rounds=3), t)


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


@pytest.mark.parametrize("weak_models", [[0, 1, 2], [1], [1, 1, 2], [0, 1, 3]])  # 3: constant
def test_labels_are_better_than_the_best_weak_model(clusters, weak_models):
    x, weak_probs, y = clusters
    constant = torch.tensor([0.9, 0.1]).expand(400, 1, 2)
    weak_probs = torch.cat([weak_probs, constant], 1)[:, weak_models]
    best = max(accuracy(each, y) for each in weak_probs.unbind(1))
    assert accuracy(prototypes.label(x, weak_probs), y) > best + 0.05


def test_names_do_not_drift_to_what_varies_most(clusters):
    x, weak_probs, y = clusters
    x[:, 1] *= 6  # a topic, of which no weak model speaks
    assert accuracy(prototypes.label(x, weak_probs, rounds=10), y) > 0.9
    assert accuracy(prototypes.label(x, weak_probs, rounds=10, gamma=1e3), y) < 0.7


def test_order_of_samples_and_classes_does_not_matter(clusters):
    x, weak_probs, _ = clusters
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    found = prototypes.label(x, weak_probs)
    torch.testing.assert_close(prototypes.label(x[order], weak_probs[order]), found[order])
    torch.testing.assert_close(prototypes.label(x, weak_probs.flip(-1)), found.flip(-1))


def test_order_of_a_pair_does_not_matter(clusters):
    x, weak_probs, y = (torch.cat([part[1::2], part[:20:2]]) for part in clusters)
    pairs = torch.stack([torch.ones_like(x), 1 + x], dim=1)  # the second is better in all but ten
    found = prototypes.label(pairs, weak_probs)
    assert accuracy(found, y) > 0.95
    torch.testing.assert_close(prototypes.label(pairs.flip(1), weak_probs.flip(-1)), found.flip(-1))


def test_a_class_that_no_weak_model_names_is_given_to_nobody(clusters):
    x, weak_probs, _ = clusters
    found = prototypes.label(x, F.pad(weak_probs.round(), (0, 1)))
    assert found[:, 2].sum() == 0


def test_the_student_learns_the_labels(npz):
    [row] = run_script(prototypes, "--task", npz, "--seeds", "0")
    assert min(row["student"], row["labels_right"]) > sorted(row["weak"])[1] + 0.2
    assert row["agreement"] > 0.8


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


def test_both_are_for_linear_heads():
    with pytest.raises(data.InputError, match="is for linear heads on features, not for glyphs-distill"):
        run_script(naive, "--task", "glyphs-distill", "--lr", "auto")
    with pytest.raises(data.InputError, match="this method is for linear heads on features"):
        run_script(prototypes, "--task", "glyphs-distill")
