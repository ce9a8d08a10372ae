import math
from unittest.mock import Mock

import bayes
import torch
from conftest import random_problem, train
from torch.distributions import Dirichlet, kl_divergence


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


def test_the_second_term_grows_with_the_steps():
    loss = Mock(wraps=bayes.bayes_loss)
    train(bayes, random_problem(n=60)[1].float(), gamma=0.3, loss_of=loss)
    seen = [[annealing.item(), gamma] for (_, _, annealing, gamma), _ in loss.call_args_list]
    torch.testing.assert_close(seen, [[i / 8, 0.3] for i in range(8)])
