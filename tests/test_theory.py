"""Two identities of how much a student gains, at the optimum of the squared loss and of our loss."""

import naive
import torch

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def test_squared_loss_gain_is_the_misfit():
    """Charikar et al. 2024: error(weak) - error(student) = misfit(student, weak), truth in a linear class."""
    x = randn(200, 5)
    truth, weak = x @ randn(5), randn(200)
    student = x @ torch.linalg.lstsq(x, weak[:, None]).solution[:, 0]
    gain = (weak - truth).square().mean() - (student - truth).square().mean()
    torch.testing.assert_close(gain, (student - weak).square().mean())


def test_cross_entropy_gain_is_the_misfit():
    """Mulgund and Pabbaraju 2025: KL(weak||truth) - KL(student||truth) = KL(weak||student)."""
    x = randn(200, 4)
    truth = torch.log_softmax(x @ randn(4, 3), -1)
    weak = torch.softmax(2 * randn(200, 3), -1)
    head = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([head], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = naive.naive_loss(x @ head, weak)
        loss.backward()
        return loss

    optimizer.step(closure)
    student = torch.log_softmax(x @ head.detach(), -1)

    def kl(log_a, log_b):
        return (log_a.exp() * (log_a - log_b)).sum(-1).mean()

    gain, misfit = kl(weak.log(), truth) - kl(student, truth), kl(weak.log(), student)
    torch.testing.assert_close(gain, misfit, rtol=1e-5, atol=1e-8)
    assert misfit > 0.1
    # With the arguments of KL swapped the identity does not hold, so the test tells the two apart.
    assert (kl(truth, weak.log()) - kl(truth, student) - kl(student, weak.log())).abs() > 0.01
