"""methods/prototypes.py: the equations as a loop, pairs, and the rates that --lr auto takes."""

import prototypes
import pytest
import torch
import torch.nn.functional as F
from conftest import random_problem

import evaluate

X = torch.randn(40, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = X * torch.tensor([1, 2, 3, 4, 5, 6]) + 1
WEAK_PROBS = random_problem(n=40)[1]


def test_labels_against_a_loop():
    x = X[:, 0]
    sigma = torch.cov(x.T, correction=0)
    inverse = torch.linalg.inv(sigma + 0.7 * sigma.trace() / 6 * torch.eye(6))
    centred, t = x - x.mean(0), WEAK_PROBS.mean(1)
    for _ in range(3):
        mu = [sum(t[i, c] * v / (v @ inverse @ v).sqrt() for i, v in enumerate(centred)) for c in range(5)]
        cosines = [[v @ inverse @ m / (m @ inverse @ m).sqrt() for m in mu] for v in centred]
        t = F.one_hot(torch.tensor(cosines).argmax(-1), 5).double()
    assert prototypes.label(x, WEAK_PROBS, gamma=0.7, rounds=3).equal(t)


def test_similarity_by_hand():
    x, targets = torch.eye(2), torch.tensor([[1.0, 0, 0], [0.75, 0.25, 0]])
    found = prototypes.similarity(x, targets)  # prototypes (.8, .6) and (0, 1); class 2 has no sample
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.0, -torch.inf], [0.6, 1.0, -torch.inf]]))


def test_pairs_stand_in_both_orders():
    difference, weak_probs = X[:, 0] - X[:, 1], WEAK_PROBS[..., :2]
    both = torch.cat([difference, -difference]), torch.cat([weak_probs, weak_probs.flip(-1)])
    found = prototypes.label(X, weak_probs)
    assert found.equal(prototypes.label(*both)[:40]) and 0 < found[:, 0].sum() < 40


@pytest.mark.parametrize("best", [1e-5, 3e-4])
def test_auto_takes_the_rate_whose_student_agrees_most_with_the_labels(best, npz, monkeypatch):
    """Stand-ins for students: one says what prototypes say, the others what they learned."""

    def trained(problem, name, targets, lr):
        x, _, weak_probs, _ = problem.task.strong_train
        assert targets.equal(weak_probs.mean(1))
        said = prototypes.label(x, weak_probs) if lr == best else targets
        return lambda x: said

    monkeypatch.setattr(evaluate, "trained", trained)
    parser = evaluate.flags("naive.py", "about")
    [problem] = evaluate.problems(parser, ["--task", npz, "--seeds", "0", "--lr", "auto"])
    assert problem.args.lr == best
