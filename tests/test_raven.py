import math

import numpy as np
import pytest
import raven
import torch
import torch.nn.functional as F
from conftest import features, gradient, random_problem, run_script, train

WEIGHTS = ([1 / 3, 1 / 3, 1 / 3], [0.2, 0.5, 0.3], [0.5, 0.1, 0.9])  # the last is not on the simplex


@pytest.mark.parametrize("weights", WEIGHTS)
def test_combinations_against_loops(weights):
    """Logits: y = softmax(sum_m theta_m z_m) from raw logits z, whatever constant a row has."""
    generator = torch.Generator().manual_seed(3)
    raw = 3 * torch.randn(12, 3, 5, generator=generator, dtype=torch.float64)
    raw += 10 * torch.randn(12, 3, 1, generator=generator, dtype=torch.float64)
    weak_probs, weights = raw.softmax(-1), torch.tensor(weights, dtype=torch.float64)
    probs, logits = (each(weak_probs, weights) for each in (raven.combine, raven.combine_logits))
    for i in range(12):
        row = [sum(weights[m] * weak_probs[i, m, c] for m in range(3)) for c in range(5)]
        torch.testing.assert_close(probs[i], torch.stack(row) / sum(row))
        row = [sum(weights[m] * raw[i, m, c] for m in range(3)).exp() for c in range(5)]
        torch.testing.assert_close(logits[i], torch.stack(row) / sum(row))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("combination", [raven.combine, raven.combine_logits])
def test_loss_and_both_gradients_in_closed_form(combination, weights):
    """Off the simplex too, where forgetting to normalise in the graph would change the gradient."""
    student_logits, weak_probs = random_problem()
    weights, keep = torch.tensor(weights, dtype=torch.float64), torch.arange(12) % 3 != 0

    def loss(z, w):
        return raven.raven_loss(z, weak_probs, w, keep, combination)

    s, log_p = keep.double() / 12, student_logits.log_softmax(-1)  # the mean is over the full batch
    y, log_q = combination(weak_probs, weights), weak_probs.log()
    cross_entropy = -(y * log_p).sum(-1)
    if combination is raven.combine:
        of_each = -(weak_probs * log_p[:, None]).sum(-1)  # CE(q_m, p), (N, M)
        slopes = (of_each - cross_entropy[:, None]) / weights.sum()
    else:  # minus the covariance of log q_m and log p over the classes, under y
        centred = log_q - (y[:, None] * log_q).sum(-1, keepdim=True)
        slopes = -(y[:, None] * centred * log_p[:, None]).sum(-1)
    expected = s @ cross_entropy, s[:, None] * (log_p.exp() - y), s @ slopes
    torch.testing.assert_close(gradient(loss, student_logits, weights), expected)


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


def test_unanimous_by_hand():
    votes = torch.tensor([[0, 0, 0], [0, 0, 1], [2, 2, 2], [2, 1, 2], [1, 2, 2]])
    assert raven.unanimous(F.one_hot(votes).float()).tolist() == [True, False, True, False, False]


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


@pytest.mark.parametrize("kind, combined", [("features", "probs"), ("preference", "logits")])
def test_what_is_combined_follows_the_kind_of_task_and_the_flag(arrays, kind, combined):
    if kind == "preference":
        arrays = {"x": arrays["x"].reshape(400, 2, 3), "y": arrays["y"] % 2}
        arrays["weak_probs"] = np.random.default_rng(0).dirichlet([1, 1], (400, 3))
    np.savez("task.npz", **arrays)
    flags = "--task task.npz --seeds 0 --easy-phase 0 --steps 20 --lr 0.1 --combine".split()
    auto, probs, logits = (run_script(raven, *flags, each)[0] for each in ("auto", "probs", "logits"))
    assert [row["combined"] for row in (auto, probs, logits)] == [combined, "probs", "logits"]
    assert auto["weights"] == {"probs": probs, "logits": logits}[combined]["weights"]
    assert probs["weights"] != logits["weights"]
    eta = {"features": "1e-2", "preference": "3e-2"}[kind]  # the usual one
    assert run_script(raven, *flags, "auto", "--weight-lr", eta)[0]["weights"] == auto["weights"]


def test_weights_find_the_weak_model_that_is_right(npz):
    """And begin to after the easy phase."""
    flags = "--seeds 0 --weight-lr 0.03 --easy-phase 0.1 --lr 0.03 --steps 180 --batch-size 16".split()
    [row] = run_script(raven, "--task", npz, *flags)
    assert row["weak"].index(max(row["weak"])) == 2 == row["weights"].index(max(row["weights"]))
    first, second, third, fourth, *_ = row["weight_history"]
    assert first == second == third != fourth and max(row["weights"]) > 0.4
    assert row["student"] > max(row["weak"])
