"""methods/bayes.py: the loss against a loop and the released code, the Dirichlet's KL against torch's own."""

import math

import bayes
import pytest
import torch
from conftest import gradient, random_problem, run_script, train
from torch.distributions import Dirichlet, kl_divergence

import data


def evidential(z, y, annealing):
    """Equation (2) of one sample with torch's own distributions."""
    alpha = torch.tensor([max(logit, 0) + 1 for logit in z], dtype=torch.float64)
    others = alpha.clone()
    others[y] = 1
    kl = kl_divergence(Dirichlet(others), Dirichlet(torch.ones_like(others)))
    return math.log(alpha.sum()) - math.log(alpha[y]) + annealing * kl


def test_loss_against_a_loop():
    z, weak_probs = random_problem()
    expected = 0.0
    for logits, q in zip(z.tolist(), weak_probs):
        own = evidential(logits, max(range(5), key=logits.__getitem__), 0.4)
        expected += (0.7 * sum(evidential(logits, w.argmax(), 0.4) for w in q) + 0.3 * own) / 12
    torch.testing.assert_close(bayes.bayes_loss(z, weak_probs, 0.4, gamma=0.3), expected)


def test_values_of_the_released_code(parity):
    z, weak_logits = torch.tensor([parity["logits"], parity["weak_logits"]], dtype=torch.float64)
    q = weak_logits.softmax(-1)[:, None]
    per_sample = [bayes.bayes_loss(*pair, 0.3).item() for pair in zip(z.split(1), q.split(1))]
    wanted = parity["bayes_edl_step_0.3"]["per_sample"]
    torch.testing.assert_close(per_sample, wanted, rtol=0, atol=2e-8)  # which were computed in float32


def test_gradient_by_hand():
    """Two classes, z = (3, 1), one vote for the second, no KL: EDL(1) = log 6 - log 2 and EDL(0) = log 6 -
    log 4, half of each; a logit below zero has no gradient."""
    z, votes = torch.tensor([[3.0, 1.0], [-2.0, 2.0]]), torch.tensor([[[0.0, 1.0]]] * 2)
    value, slope = gradient(lambda z: bayes.bayes_loss(z, votes, 0.0), z)
    torch.testing.assert_close(value, torch.tensor((math.log(3) + math.log(1.5) + 2 * math.log(4 / 3)) / 4))
    first = [1 / 6 - 1 / 8, 1 / 6 - 1 / 4]  # 1 / S - 1 / (2 alpha)
    torch.testing.assert_close(slope, torch.tensor([first, [0.0, 1 / 4 - 1 / 3]]) / 2)


def test_the_second_term_grows_with_the_steps():
    seen = []

    def loss(z, q, annealing, gamma):
        seen.append(annealing.item())
        return bayes.bayes_loss(z, q, annealing, gamma)

    train(bayes, random_problem(n=60)[1].float(), loss_of=loss)
    torch.testing.assert_close(seen, [i / 8 for i in range(8)])


def test_the_student_does_not_start_from_zero(npz):
    [row] = run_script(bayes, "--task", npz, "--seeds", "0", "--lr", "1e-2")
    assert row["student"] > sorted(row["weak"])[1] + 0.1


def test_it_is_for_linear_heads():
    with pytest.raises(data.InputError, match="this method is for linear heads on features"):
        run_script(bayes, "--task", "glyphs-distill")
