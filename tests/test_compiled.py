"""evaluate.compiled: the loss as it stands, in one graph. Value and gradients are those of the plain loss."""

import shutil

import bayes
import confidence
import naive
import pytest
import raven
import torch
import torch.nn.functional as F
from adaptive_confidence import confidence_weight, mixed_loss
from torch._dynamo.utils import counters

import evaluate

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
SIZES = (12, 7)


def problem(n):
    """Student logits (n, 5), weak probabilities (n, 3, 5)."""
    z, *q = 2 * torch.randn(4, n, 5, generator=torch.Generator().manual_seed(n))
    return z, torch.stack(q, 1).softmax(-1)


def check(compiled, plain, arguments, argnums=(0,)):
    """The same value and gradients of the arguments in `argnums`; the others may be of any kind."""

    def gradients(loss):
        parts = [part.clone().requires_grad_() if i in argnums else part for i, part in enumerate(arguments)]
        value = loss(*parts)
        value.backward()
        return [value.detach(), *(parts[i].grad for i in argnums)]

    wanted = gradients(plain)
    torch.testing.assert_close(gradients(compiled), wanted, rtol=1e-5, atol=1e-7)
    assert all(part.abs().max() > 1e-3 for part in wanted)


def test_naive_with_labels_and_no_scaling():
    """A summand of what is differentiated may be added, a factor may not."""

    def with_labels(loss):
        return lambda z, q: loss(z, q) + F.cross_entropy(z, q.argmax(-1))

    compiled = evaluate.compiled(naive.naive_loss)
    for n in SIZES:
        z, q = problem(n)
        check(with_labels(compiled), with_labels(naive.naive_loss), (z, q[:, 0]))
    with pytest.raises(RuntimeError, match="cannot be scaled"):
        (2 * compiled(z.requires_grad_(), q[:, 0])).backward()


def test_confidence_is_not_compiled_anew_as_a_grows():
    compiled, graphs = evaluate.compiled(confidence.confidence_loss), []
    for n, a in ((12, 0.3), (7, 0.3), (12, 0.0), (12, 0.1), (12, 0.45)):
        z, q = problem(n)
        check(compiled, confidence.confidence_loss, (z, q[:, 0], torch.tensor(a), z.argmax(-1)))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and len(set(graphs[1:])) == 1  # a second size may take a second graph


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_adaptive_confidence_with_its_weight(tau):
    """b is compiled by itself, as main does it, and carries no gradient."""
    compiled, weight = evaluate.compiled(mixed_loss), torch.compile(confidence_weight)
    for n in SIZES:
        z, q = problem(n)
        b = confidence_weight(z, q[:, 0], 2.0)
        torch.testing.assert_close(weight(z.clone().requires_grad_(), q[:, 0], 2.0), b)
        check(compiled, mixed_loss, (z, q[:, 0], b, tau))


def test_bayes_is_not_compiled_anew_as_the_second_term_grows():
    compiled, graphs = evaluate.compiled(bayes.bayes_loss), []
    for n, annealing in ((12, 0.3), (7, 0.3), (12, 0.0), (12, 0.9)):
        check(compiled, bayes.bayes_loss, (*problem(n), torch.tensor(annealing), 0.5))
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(set(graphs[1:])) == 1


@pytest.mark.parametrize("combination", [raven.combine, raven.combine_logits])
def test_raven_with_gradients_of_the_weights(combination):
    compiled = evaluate.compiled(raven.raven_loss, (0, 2))
    for n in SIZES:
        arguments = *problem(n), torch.tensor([0.5, 0.3, 0.2]), torch.arange(n) % 3 > 0, combination
        check(compiled, raven.raven_loss, arguments, (0, 2))
