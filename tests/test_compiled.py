"""evaluate.compiled: the loss as it stands, in one graph. Value and gradients are those of the plain loss."""

import shutil

import adaptive_confidence
import confidence
import naive
import pytest
import raven
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

import evaluate

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")


def problem(n, m=1, c=5):
    generator = torch.Generator().manual_seed(n)
    z, *q = 2 * torch.randn(1 + m, n, c, generator=generator)
    return z, torch.stack(q, 1).softmax(-1) if m > 1 else q[0].softmax(-1)


def gradients(loss, arguments, argnums):
    """Value and gradients of the arguments in `argnums`; the others may be of any kind."""
    arguments = [part.clone().requires_grad_() if i in argnums else part for i, part in enumerate(arguments)]
    value = loss(*arguments)
    value.backward()
    return [value.detach(), *(arguments[i].grad for i in argnums)]


def check(loss, arguments_of, argnums=(0,)):
    """Compiled and plain loss agree at two sizes. Returns the compiled one."""
    torch._dynamo.reset()
    compiled = evaluate.compiled(loss, argnums)
    for n in (12, 7):
        arguments = arguments_of(n)
        found, wanted = (gradients(each, arguments, argnums) for each in (compiled, loss))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
        assert all(part.abs().max() > 1e-3 for part in wanted)
    return compiled


def test_naive_with_labels_and_no_scaling():
    """A summand of what is differentiated may be added, a factor may not."""
    compiled, labels = check(naive.naive_loss, problem), torch.arange(12) % 5

    def with_labels(loss):
        return lambda z, q: loss(z, q) + F.cross_entropy(z, labels)

    found, wanted = (gradients(with_labels(loss), problem(12), (0,)) for loss in (compiled, naive.naive_loss))
    torch.testing.assert_close(found, wanted)
    with pytest.raises(RuntimeError, match="cannot be scaled"):
        gradients(lambda z, q: 2 * compiled(z, q), problem(12), (0,))


def test_confidence_is_not_compiled_anew_as_a_grows():
    def arguments(n, a=0.3):
        z, q = problem(n)
        return z, q, torch.tensor(a), confidence.own_class(z, q)

    compiled = check(confidence.confidence_loss, arguments)
    graphs = counters["stats"]["unique_graphs"]
    for a in (0.0, 0.1, 0.45):
        found, wanted = (
            gradients(loss, arguments(12, a), (0,)) for loss in (compiled, confidence.confidence_loss)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert graphs > 0 and counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_adaptive_confidence_with_its_weight(tau):
    """b is compiled by itself, as main does it, and carries no gradient."""
    weight = adaptive_confidence.confidence_weight
    weight = torch.compile(weight) if tau == 1 else weight

    def arguments(n):
        z, q = problem(n)
        b = adaptive_confidence.confidence_weight(z, q, 2.0)
        torch.testing.assert_close(weight(z.requires_grad_(), q, 2.0), b)
        return z.detach(), q, b, tau

    check(adaptive_confidence.mixed_loss, arguments)


def own_combination(weak_probs, weights):
    """A user's: the square root of the mean square, not normalised."""
    return (weights[:, None] * weak_probs**2).sum(1).sqrt()


@pytest.mark.parametrize("combination", [raven.combine, raven.combine_logits, own_combination])
def test_raven_with_gradients_of_the_weights(combination):
    def arguments(n):
        return *problem(n, m=3), torch.tensor([0.5, 0.3, 0.2]), torch.arange(n) % 3 > 0, combination

    check(raven.raven_loss, arguments, argnums=(0, 2))
