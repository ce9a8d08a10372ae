"""Every loss on inputs where a careless formula fails: in value and gradient as in float64."""

import confidence
import naive
import pytest
import raven
import torch
import torch.nn.functional as F
from adaptive_confidence import adaptive_confidence_loss
from conftest import gradient, random_problem


def of_raven(combination):
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    def loss(z, q):
        own, every = weights.to(torch.promote_types(z.dtype, torch.float32)), torch.ones(len(z)).bool()
        return raven.raven_loss(z, q, own, every, combination)

    return loss


LOSSES = {  # of student_logits (N, C) and weak_probs (N, 3, C)
    "naive": lambda z, q: naive.naive_loss(z, q[:, 0]),
    "confidence": lambda z, q: confidence.confidence_loss(z, q[:, 0], 0.3),
    "adaptive confidence": lambda z, q: adaptive_confidence_loss(z, q[:, 0], 2.0),
    "adaptive confidence, tau 4": lambda z, q: adaptive_confidence_loss(z, q[:, 0], 2.0, 4.0),
    "raven": of_raven(raven.combine),
    "raven, logits": of_raven(raven.combine_logits),
}
CASES = {
    "logits of 1e4": lambda z, q: (1e4 * z, q),
    "equal logits": lambda z, q: (torch.full_like(z, -1e4), q),
    "one class": lambda z, q: (z[:, :1], torch.ones_like(q[..., :1])),
    "a batch of one": lambda z, q: (z[:1], q[:1]),
    "no doubt": lambda z, q: (z, F.one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype)),
    "100,000 classes": lambda z, q: (z.repeat(1, 20_000), (q / 20_000).repeat(1, 1, 20_000)),
    "not contiguous": lambda z, q: (z.repeat_interleave(2, -1)[:, ::2], q.repeat_interleave(2, -1)[..., ::2]),
}


def compare(loss, student_logits, weak_probs, room):
    value, slope = gradient(lambda z: loss(z, weak_probs), student_logits)
    exact, exact_slope = gradient(lambda z: loss(z, weak_probs.double()), student_logits.double())
    assert value.isfinite() and slope.isfinite().all() and slope.dtype == student_logits.dtype
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-5)
    assert (slope.double() - exact_slope).norm() <= room * max(exact_slope.norm(), 1e-3)
    return value


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_inputs(name, case):
    student_logits, weak_probs = CASES[case](*(part.float() for part in random_problem()))
    if name == "raven, logits" and case == "no doubt":  # what stands for log 0 depends on the type
        weak_probs = weak_probs.clamp(min=torch.finfo(torch.float32).tiny)
    compare(LOSSES[name], student_logits, weak_probs, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_types(name, dtype):
    """Half types are computed in float32: only the gradient is rounded to them."""
    student_logits, weak_probs = (part.to(dtype) for part in random_problem())
    room = {torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    value = compare(LOSSES[name], student_logits, weak_probs, room)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
