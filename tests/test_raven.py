import math

import numpy as np
import pytest
import raven
import torch
import torch.nn.functional as F
from conftest import features, gradient, random_problem, run_script, train


def test_combinations_by_the_equations():
    """Of weights off the simplex. Logits: from raw ones, whatever constant a row has."""
    generator, weights = torch.Generator().manual_seed(3), torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    raw = 3 * torch.randn(12, 3, 5, generator=generator, dtype=torch.float64)
    raw += 10 * torch.randn(12, 3, 1, generator=generator, dtype=torch.float64)
    weak_probs = raw.softmax(-1)
    mean = sum(weights[m] * weak_probs[:, m] for m in range(3))
    torch.testing.assert_close(raven.combine(weak_probs, weights), mean / mean.sum(1, keepdim=True))
    odds = sum(weights[m] * raw[:, m] for m in range(3)).exp()
    torch.testing.assert_close(raven.combine_logits(weak_probs, weights), odds / odds.sum(1, keepdim=True))


def test_a_weak_probability_of_zero_is_no_nan():
    weak_probs, weights = torch.tensor([[[1.0, 0.0], [0.4, 0.6]]]), torch.tensor([0.5, 0.5])
    combined, slope = gradient(lambda w: raven.combine_logits(weak_probs, w)[0, 0], weights)
    assert combined > 0.99 and slope.isfinite().all()


def test_values_of_the_released_code(parity):
    """Three steps of loss, weight gradient and projected weights; the easy samples of the first."""
    recorded = parity["raven_weights"]
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for step in range(3):
        parts = recorded["weak_probs (step,N,M,C)"][step], recorded["student_logits (step,N,C)"][step]
        weak_probs, student_logits = (torch.tensor(part, dtype=torch.float64) for part in parts)
        if step == 0:
            assert raven.unanimous(weak_probs).tolist() == parity["raven_easy_mask_step0"]
        parts = student_logits, weak_probs, weights, torch.ones(len(student_logits))
        value, _, _, slope, _ = gradient(raven.raven_loss, *parts)
        weights = raven.project(weights - 0.2 * slope)
        assert value.item() == pytest.approx(recorded["loss"][step], abs=1e-6)
        assert slope.tolist() == pytest.approx(recorded["weight_grad"][step], abs=1e-6)
        assert weights.tolist() == pytest.approx(recorded["weights"][step + 1], abs=1e-6)


def test_projection_by_hand():
    projected = raven.project(torch.tensor([-0.3, 0.4, 0.4], dtype=torch.float64))
    assert projected.tolist() == pytest.approx([1e-6 / 0.800001, 0.4 / 0.800001, 0.4 / 0.800001])


def test_training_against_a_loop_written_from_the_equations():
    """Easy phase, labels, simultaneous update, projection, cosine and Adam, each step by hand."""
    weak_probs, labels = random_problem(n=300)[1].float(), torch.arange(300) % 5
    lr, weight_lr, step, steps = 1e-2, 5.0, 0, 4 * math.ceil(300 / 32)
    X, W = torch.cat([features(300), torch.ones(300, 1)], 1).double(), torch.zeros(5, 7).double()
    theta, first, second = torch.full((3,), 1 / 3, dtype=torch.float64), 0, 0
    expected, generator = [theta], torch.Generator().manual_seed(0)
    for epoch in range(4):
        for batch in torch.randperm(300, generator=generator).split(32):
            q, n = weak_probs[batch].double(), len(batch)
            s = torch.tensor([epoch >= 2 or len(set(each.argmax(-1).tolist())) == 1 for each in q]).double()
            log_p = (X[batch] @ W.T).log_softmax(-1)
            y = (q * theta[:, None]).sum(1)
            to_logits = s[:, None] * (log_p.exp() - y) + log_p.exp() - F.one_hot(labels[batch], 5)
            grad_W = to_logits.T @ X[batch] / n
            g = (s[:, None] * (-(q * log_p[:, None]).sum(-1) + (y * log_p).sum(-1, keepdim=True))).sum(0) / n
            rate = lr * (1 + math.cos(math.pi * step / steps)) / 2
            step += 1
            first, second = 0.9 * first + 0.1 * grad_W, 0.999 * second + 0.001 * grad_W**2
            W = W - rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            if epoch >= 2:
                theta = (theta - weight_lr * g).clamp(min=1e-6)
                theta = theta / theta.sum()
        expected.append(theta)
    head, history = train(raven, weak_probs, labels, lr=lr, weight_lr=weight_lr, easy_phase=0.5)
    torch.testing.assert_close(head.double(), W[:, :-1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(history.double(), torch.stack(expected), rtol=1e-3, atol=1e-4)
    assert (theta - 1 / 3).abs().max() > 0.01


@pytest.mark.parametrize("combined, eta", [("probs", "1e-2"), ("logits", "3e-2")])
def test_what_is_combined_follows_the_kind_of_task_and_the_flag(arrays, combined, eta):
    """Of a FILE.npz probabilities, but of preferences logits."""
    if combined == "logits":
        arrays = {"x": arrays["x"].reshape(400, 2, 3), "y": arrays["y"] % 2}
        arrays["weak_probs"] = np.random.default_rng(0).dirichlet([1, 1], (400, 3))
    np.savez("task.npz", **arrays)
    flags = "--task task.npz --seeds 0 --easy-phase 0 --steps 20 --lr 0.1 --combine".split()
    rows = {each: run_script(raven, *flags, each)[0] for each in ("auto", "probs", "logits")}
    auto = rows["auto"]
    assert [row["combined"] for row in rows.values()] == [combined, "probs", "logits"]
    assert auto["weights"] == rows[combined]["weights"]
    assert rows["probs"]["weights"] != rows["logits"]["weights"]
    assert auto["weights"] == auto["weight_history"][-1] != auto["weight_history"][0]
    assert run_script(raven, *flags, "auto", "--weight-lr", eta)[0]["weights"] == auto["weights"]
