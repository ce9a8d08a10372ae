"""Every loss on inputs where a careless formula fails: in value and gradient as in float64."""

import bayes
import confidence
import naive
import pytest
import raven
import torch
import torch.nn.functional as F
from adaptive_confidence import adaptive_confidence_loss
from conftest import gradient, random_problem


def of_raven(z, q, combination):
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.promote_types(z.dtype, torch.float32))
    return raven.raven_loss(z, q, weights, torch.ones(len(z)).bool(), combination)


LOSSES = {  # of student_logits (N, C) and weak_probs (N, 3, C)
    "naive": lambda z, q: naive.naive_loss(z, q[:, 0]),
    "confidence": lambda z, q: confidence.confidence_loss(z, q[:, 0], 0.3),
    "adaptive confidence": lambda z, q: adaptive_confidence_loss(z, q[:, 0], 2.0),
    "adaptive confidence, tau 4": lambda z, q: adaptive_confidence_loss(z, q[:, 0], 2.0, 4.0),
    "bayes": bayes.bayes_loss,
    "raven": lambda z, q: of_raven(z, q, raven.combine),
    "raven, logits": lambda z, q: of_raven(z, q, raven.combine_logits),
}
CASES = {
    "logits of 1e4": lambda z, q: (1e4 * z, q),
    "one class": lambda z, q: (z[:, :1], torch.ones_like(q[..., :1])),
    "a batch of one": lambda z, q: (z[:1], q[:1]),
    "no doubt": lambda z, q: (z, F.one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype)),
    "100,000 classes": lambda z, q: (z.repeat(1, 20_000), (q / 20_000).repeat(1, 1, 20_000)),
    "float16": lambda z, q: (z.half(), q.half()),  # computed in float32: only the gradient is rounded
    "bfloat16": lambda z, q: (z.bfloat16(), q.bfloat16()),
}
ROOM = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # for the gradient


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_inputs(name, case):
    z, weak_probs = CASES[case](*(part.float() for part in random_problem()))
    if name == "raven, logits" and case == "no doubt":  # what stands for log 0 depends on the type
        weak_probs = weak_probs.clamp(min=torch.finfo(torch.float32).tiny)
    value, slope = gradient(lambda z: LOSSES[name](z, weak_probs), z)
    exact, exact_slope = gradient(lambda z: LOSSES[name](z, weak_probs.double()), z.double())
    assert value.isfinite() and value.dtype == torch.float32 and slope.dtype == z.dtype
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-5)
    room = ROOM[z.dtype] * (10 if name == "bayes" else 1)  # where much evidence cancels in the KL
    assert (slope.double() - exact_slope).norm() <= room * max(exact_slope.norm(), 1e-3)
