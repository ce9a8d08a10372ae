"""evaluate.compiled: the loss as it stands, in one graph. Value and gradients are those of the plain loss."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from adaptive_confidence import confidence_weight, mixed_loss
from bayes import bayes_loss
from confidence import confidence_loss
from naive import naive_loss
from raven import raven_loss
from torch._dynamo.utils import counters

import evaluate

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
THETA = torch.tensor([0.5, 0.3, 0.2])
CASES = {  # loss, the arguments that get gradients, and its others besides logits and weak labels
    "naive": (naive_loss, (0,), lambda z, q, a: (q[:, 0],)),
    "confidence": (confidence_loss, (0,), lambda z, q, a: (q[:, 0], a, z.argmax(-1))),
    "AdaptConf": (mixed_loss, (0,), lambda z, q, a: (q[:, 0], confidence_weight(z, q[:, 0], 2.0), 4.0)),
    "Bayes": (bayes_loss, (0,), lambda z, q, a: (q, a, 0.5)),
    "RAVEN": (raven_loss, (0, 2), lambda z, q, a: (q, THETA, torch.arange(len(z)) % 3 > 0)),
}


def problem(n):
    """Student logits (n, 5), weak probabilities (n, 3, 5)."""
    z, *q = 2 * torch.randn(4, n, 5, generator=torch.Generator().manual_seed(n))
    return z, torch.stack(q, 1).softmax(-1)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_without_compiling_anew(case):
    """Of batches of two sizes and a share that grows; only the second size may take a second graph."""
    loss, argnums, others = CASES[case]
    compiled, graphs = evaluate.compiled(loss, argnums), []
    for n, a in ((12, 0.3), (7, 0.3), (12, 0.0), (12, 0.45)):
        z, q = problem(n)
        found = []
        for each in (compiled, loss):
            parts = [part.clone().requires_grad_() if i in argnums else part
                     for i, part in enumerate((z, *others(z, q, torch.tensor(a))))]  # fmt: skip
            value = F.cross_entropy(parts[0], z.argmin(-1)) + each(*parts)  # a summand may be added
            found.append([value.detach(), *torch.autograd.grad(value, [parts[i] for i in argnums])])
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and len(set(graphs[1:])) == 1


def test_a_compiled_loss_cannot_be_scaled():
    z, q = problem(12)
    with pytest.raises(RuntimeError, match="cannot be scaled"):
        (2 * evaluate.compiled(naive_loss)(z.requires_grad_(), q[:, 0])).backward()


def test_the_weight_of_adaptive_confidence_compiled_by_itself():
    z, q = problem(12)
    weight = torch.compile(confidence_weight)(z.clone().requires_grad_(), q[:, 0], 2.0)
    torch.testing.assert_close(weight, confidence_weight(z, q[:, 0], 2.0))
