"""methods/dawid_skene.py: equations by hand, what the model finds, and what it cannot see."""

import math

import dawid_skene
import pytest
import torch
import torch.nn.functional as F
from conftest import run_script


def test_confusion_matrices_by_hand():
    votes, targets = torch.tensor([[0], [1], [1]]), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    found = dawid_skene.confusion_matrices(votes, targets, smoothing=1.0)
    # counts of class 0: 1 and .5; of class 1: 0 and 1.5; one more in every cell
    torch.testing.assert_close(found, torch.tensor([[[2 / 3.5, 1.5 / 3.5], [1 / 3.5, 2.5 / 3.5]]]))


def test_posterior_by_hand():
    votes, prior = torch.tensor([[0, 1]]), torch.tensor([0.25, 0.75])
    confusion = torch.tensor([[[0.9, 0.1], [0.4, 0.6]], [[0.7, 0.3], [0.2, 0.8]]])
    first, second = 0.25 * 0.9 * 0.3, 0.75 * 0.4 * 0.8
    wanted = torch.tensor([[first, second]]) / (first + second)
    torch.testing.assert_close(dawid_skene.posterior(votes, prior, confusion), wanted)


def test_em_against_a_loop():
    weak_probs = torch.randn(30, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    votes = weak_probs.argmax(-1).tolist()
    t = [[row.count(c) / 3 for c in range(4)] for row in votes]
    for _ in range(5):
        prior = [sum(row[c] for row in t) / 30 for c in range(4)]
        pi = [[[2.0] * 4 for _ in range(4)] for _ in range(3)]
        for row, given in zip(t, votes):
            for m, k in enumerate(given):
                for c in range(4):
                    pi[m][c][k] += row[c]
        pi = [[[cell / sum(row) for cell in row] for row in matrix] for matrix in pi]
        for i, given in enumerate(votes):
            odds = [prior[c] * math.prod(pi[m][c][k] for m, k in enumerate(given)) for c in range(4)]
            t[i] = [each / sum(odds) for each in odds]
    found = dawid_skene.label(weak_probs, smoothing=2.0, rounds=5)
    torch.testing.assert_close(found, torch.tensor(t, dtype=torch.float64))


def votes_of(accuracies, share=0.5, n=4000):
    """Independent weak models of two classes, right on a share of the samples: (weak_probs, y); class 1 has
    `share` of the samples."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(n, generator=generator) < share).long()
    right = torch.rand(n, len(accuracies), generator=generator) < torch.tensor(accuracies)
    return F.one_hot(torch.where(right, y[:, None], 1 - y[:, None]), 2).float(), y


def accuracy(targets, y):
    return (targets.argmax(-1) == y).double().mean().item()


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_the_better_models_are_heard_whatever_the_balance_of_classes(share):
    weak_probs, y = votes_of([0.9, 0.9, 0.6, 0.6, 0.6], share)
    majority = accuracy(weak_probs.mean(1), y)
    assert accuracy(dawid_skene.label(weak_probs), y) > majority + 0.03


def test_a_constant_model_counts_for_nothing():
    weak_probs, _ = votes_of([0.9, 0.8, 0.7])
    constant = torch.tensor([1.0, 0.0]).expand(len(weak_probs), 1, 2)
    found = dawid_skene.label(torch.cat([weak_probs, constant], 1), rounds=300)
    torch.testing.assert_close(found, dawid_skene.label(weak_probs, rounds=300), atol=0.01, rtol=0)


def test_two_identical_models_lead():  # which no vote can tell from two that are right
    weak_probs, _ = votes_of([0.9, 0.6])
    found = dawid_skene.label(weak_probs[:, [0, 1, 1]])
    assert accuracy(found, weak_probs[:, 1].argmax(-1)) == 1


def test_all_below_chance_is_not_seen():
    weak_probs, y = votes_of([0.3, 0.3, 0.3])
    assert accuracy(dawid_skene.label(weak_probs), y) < 0.25


def test_one_model_is_believed():
    weak_probs, _ = votes_of([0.7])
    assert accuracy(dawid_skene.label(weak_probs), weak_probs[:, 0].argmax(-1)) == 1


def test_order_of_samples_and_classes_does_not_matter():
    weak_probs, _ = votes_of([0.9, 0.7, 0.6], 0.3, n=100)
    found = dawid_skene.label(weak_probs)
    torch.testing.assert_close(dawid_skene.label(weak_probs.flip(0)), found.flip(0))
    torch.testing.assert_close(dawid_skene.label(weak_probs.flip(-1)), found.flip(-1))


def test_the_student_learns_the_posterior(npz):
    [row] = run_script(dawid_skene, "--task", npz, "--seeds", "0", "--lr", "1e-2")
    assert row["student"] > max(row["weak"]) and row["labels_right"] > sorted(row["weak"])[1]
