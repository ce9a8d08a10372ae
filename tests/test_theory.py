"""How much a student gains, at the optimum of our loss."""

import naive
import torch


def test_cross_entropy_gain_is_the_misfit():
    """Mulgund and Pabbaraju 2025: KL(weak||truth) - KL(student||truth) = KL(weak||student)."""
    generator = torch.Generator().manual_seed(0)
    shapes = (200, 4), (4, 3), (200, 3)
    x, true_head, logits = (torch.randn(*each, generator=generator, dtype=torch.float64) for each in shapes)
    truth, weak = (x @ true_head).log_softmax(-1), (2 * logits).log_softmax(-1)
    head = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([head], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = naive.naive_loss(x @ head, weak.exp())
        loss.backward()
        return loss

    optimizer.step(closure)
    student = (x @ head.detach()).log_softmax(-1)

    def kl(log_a, log_b):
        return (log_a.exp() * (log_a - log_b)).sum(-1).mean()

    gain, misfit = kl(weak, truth) - kl(student, truth), kl(weak, student)
    torch.testing.assert_close(gain, misfit, rtol=1e-5, atol=1e-8)
    assert misfit > 0.1
    # With the arguments of KL swapped the identity does not hold, so the test tells the two apart.
    assert (kl(truth, weak) - kl(truth, student) - kl(student, weak)).abs() > 0.01
