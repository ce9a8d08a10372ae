import math

import naive
import numpy as np
import pytest
import raven
import torch
from conftest import features, gradient, random_problem, run_script, train


def test_combine_against_a_loop_and_normalises():
    _, weak_probs = random_problem()
    weights = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)  # deliberately not on the simplex
    combined = raven.combine(weak_probs, weights)
    for i in range(len(weak_probs)):
        row = [sum(weights[m].item() * weak_probs[i, m, c].item() for m in range(3)) for c in range(5)]
        torch.testing.assert_close(combined[i].tolist(), [value / sum(row) for value in row])
    torch.testing.assert_close(combined.sum(-1), torch.ones(len(weak_probs), dtype=torch.float64))


def test_loss_and_both_gradients_in_closed_form():
    """Off the simplex too, where forgetting to normalise in the graph would change the gradient."""
    student_logits, weak_probs = random_problem()
    keep = torch.arange(len(student_logits)) % 3 != 0
    for weights in ([1 / 3, 1 / 3, 1 / 3], [0.2, 0.5, 0.3], [0.5, 0.1, 0.9]):
        weights = torch.tensor(weights, dtype=torch.float64)
        value, grad_logits, grad_weights = gradient(
            lambda z, w: raven.raven_loss(z, weak_probs, w, keep), student_logits, weights
        )
        target = raven.combine(weak_probs, weights)
        s, n = keep.double(), len(student_logits)
        log_p = student_logits.log_softmax(-1)
        cross_entropy = -(target * log_p).sum(-1)
        torch.testing.assert_close(value, (s * cross_entropy).sum() / n)  # over the full batch
        torch.testing.assert_close(grad_logits, s[:, None] * (log_p.exp() - target) / n)
        each = -(weak_probs * log_p[:, None]).sum(-1)  # CE(q_m, p), (N, M)
        closed = (s[:, None] * (each - cross_entropy[:, None])).sum(0) / n / weights.sum()
        torch.testing.assert_close(grad_weights, closed)
        assert (weights * grad_weights).sum().abs() < 1e-12


def test_logits_combine_like_rewards_and_log_probs_stand_for_them():
    """y = softmax(sum_m theta_m z_m) from raw logits z: value and gradient, whatever constant a row has."""
    generator = torch.Generator().manual_seed(3)
    student_logits, _ = random_problem()
    raw = 3 * torch.randn(12, 3, 5, generator=generator, dtype=torch.float64)
    raw += 10 * torch.randn(12, 3, 1, generator=generator, dtype=torch.float64)
    weak_probs, keep = raw.softmax(-1), torch.arange(12) % 4 != 0
    for weights in ([1 / 3, 1 / 3, 1 / 3], [0.2, 0.5, 0.3], [0.5, 0.1, 0.9]):
        weights = torch.tensor(weights, dtype=torch.float64)
        expected = (raw * weights[:, None]).sum(1).softmax(-1)
        torch.testing.assert_close(raven.combine_logits(weak_probs, weights), expected)

        def from_raw_logits(z, w):
            target = (raw * w[:, None]).sum(1).softmax(-1)
            return -(keep[:, None] * target * z.log_softmax(-1)).sum() / 12

        def ours(z, w):
            return raven.raven_loss(z, weak_probs, w, keep, raven.combine_logits)

        mine, direct = (
            gradient(ours, student_logits, weights),
            gradient(from_raw_logits, student_logits, weights),
        )
        for a, b in zip(mine, direct):
            torch.testing.assert_close(a, b)
        # In closed form: minus the covariance of log q_m and log p over the classes, under y.
        log_p, log_q, y = student_logits.log_softmax(-1), weak_probs.log(), expected
        centred = log_q - (y[:, None] * log_q).sum(-1, keepdim=True)
        closed = -(keep[:, None] * (y[:, None] * centred * log_p[:, None]).sum(-1)).sum(0) / 12
        torch.testing.assert_close(mine[2], closed)


def test_both_combinations_coincide_at_a_vertex_and_where_weak_models_agree():
    _, weak_probs = random_problem()
    vertex = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(raven.combine_logits(weak_probs, vertex), raven.combine(weak_probs, vertex))
    alike, weights = weak_probs[:, :1].expand(-1, 3, -1), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    torch.testing.assert_close(raven.combine_logits(alike, weights), raven.combine(alike, weights))
    apart = (raven.combine_logits(weak_probs, weights) - raven.combine(weak_probs, weights)).abs()
    assert apart.max() > 0.05


def test_rewards_of_a_pair_are_combined():
    """softmax over a pair is sigmoid(r_ens(a) - r_ens(b)) with r_ens = sum_m theta_m r_m."""
    rewards, weights = torch.randn(6, 3, 2, dtype=torch.float64), torch.tensor([0.6, 0.3, 0.1]).double()
    ensemble = (rewards * weights[:, None]).sum(1)
    expected = torch.sigmoid(ensemble[:, 0] - ensemble[:, 1])
    torch.testing.assert_close(raven.combine_logits(rewards.softmax(-1), weights)[:, 0], expected)


def test_a_weak_probability_of_zero_is_no_nan():
    weak_probs = torch.tensor([[[1.0, 0.0], [0.4, 0.6]]])
    weights = torch.tensor([0.5, 0.5])
    keep = torch.ones(1, dtype=torch.bool)
    values = gradient(
        lambda z, w: raven.raven_loss(z, weak_probs, w, keep, raven.combine_logits),
        torch.zeros(1, 2),
        weights,
    )
    assert all(value.isfinite().all() for value in values)
    assert raven.combine_logits(weak_probs, weights)[0, 0] > 0.99


@pytest.mark.parametrize("kind, combined", [("features", "probs"), ("preference", "logits")])
def test_what_is_combined_follows_the_kind_of_task_and_the_flag(arrays, kind, combined):
    if kind == "preference":
        arrays = {"x": arrays["x"].reshape(400, 2, 3), "y": arrays["y"] % 2}
        arrays["weak_probs"] = np.random.default_rng(0).dirichlet([1, 1], (400, 3))
    np.savez("task.npz", **arrays)
    flags = "--seeds 0 --easy-phase 0 --epochs 2 --lr 0.1".split()
    ways = ("auto", "probs", "logits")
    rows = {each: run_script(raven, "--task", "task.npz", *flags, "--combine", each)[0] for each in ways}
    assert [rows[each]["combined"] for each in ("auto", "probs", "logits")] == [combined, "probs", "logits"]
    assert rows["auto"]["weights"] == rows[combined]["weights"]
    assert rows["probs"]["weights"] != rows["logits"]["weights"]


def test_values_of_the_released_code(parity):
    """Three steps of loss, weight gradient and projected weights."""
    recorded = parity["raven_weights"]
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    steps = zip(recorded["weak_probs (step,N,M,C)"], recorded["student_logits (step,N,C)"])
    for step, (weak_probs, student_logits) in enumerate(steps):
        weak_probs, student_logits = (
            torch.tensor(a, dtype=torch.float64) for a in (weak_probs, student_logits)
        )
        value, *_, grad = gradient(
            lambda z, q, w: raven.raven_loss(z, q, w, torch.ones(len(z), dtype=torch.bool)),
            student_logits,
            weak_probs,
            weights,
        )
        torch.testing.assert_close(value.item(), recorded["loss"][step], rtol=0, atol=1e-6)
        torch.testing.assert_close(grad.tolist(), recorded["weight_grad"][step], rtol=0, atol=1e-6)
        weights = raven.project(weights - 0.2 * grad)
        torch.testing.assert_close(weights.tolist(), recorded["weights"][step + 1], rtol=0, atol=1e-6)
    first = torch.tensor(recorded["weak_probs (step,N,M,C)"][0])
    assert raven.unanimous(first).double().tolist() == parity["raven_easy_mask_step0"]


def test_unanimous_by_hand():
    votes = torch.tensor([[0, 0, 0], [0, 0, 1], [2, 2, 2], [2, 1, 2], [1, 2, 2]])
    assert raven.unanimous(torch.nn.functional.one_hot(votes).float()).tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]


def test_projection_by_hand():
    projected = raven.project(torch.tensor([-0.3, 0.4, 0.4], dtype=torch.float64))
    torch.testing.assert_close(projected, torch.tensor([1e-6, 0.4, 0.4], dtype=torch.float64) / 0.800001)
    torch.testing.assert_close(projected.sum().item(), 1.0)
    on_simplex = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    torch.testing.assert_close(raven.project(on_simplex), on_simplex)


def make_problem(n=300, m=3):
    return random_problem(n=n, m=m)[1].float()


def test_without_weight_steps_and_easy_phase_it_is_the_ensemble():
    weak_probs = make_problem()
    head, history = train(raven, weak_probs, weight_lr=0.0, easy_phase=0.0)
    ensemble, _ = train(naive, weak_probs.mean(1))
    torch.testing.assert_close(head, ensemble, rtol=1e-4, atol=1e-5)
    assert torch.allclose(history, torch.full_like(history, 1 / 3))


def test_with_one_weak_model_it_is_naive():
    weak_probs = make_problem(m=1)
    head, history = train(raven, weak_probs, weight_lr=0.1, easy_phase=0.5)
    torch.testing.assert_close(head, train(naive, weak_probs[:, 0])[0], rtol=1e-4, atol=1e-5)
    assert (history == 1).all()


def test_permuting_the_weak_models_permutes_the_weights():
    weak_probs = make_problem()
    order = torch.tensor([2, 0, 1])
    head, history = train(raven, weak_probs, weight_lr=0.5, easy_phase=0.25)
    permuted_head, permuted_history = train(raven, weak_probs[:, order], weight_lr=0.5, easy_phase=0.25)
    torch.testing.assert_close(permuted_history, history[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(permuted_head, head, rtol=1e-3, atol=1e-4)
    assert (history[-1] - 1 / 3).abs().max() > 0.01


def test_weights_stay_on_the_simplex_and_history_is_not_overwritten():
    weak_probs = make_problem()
    _, history = train(raven, weak_probs, weight_lr=1.0, easy_phase=0.0)
    assert history.shape == (5, 3)
    assert (history > 0).all()
    torch.testing.assert_close(history.sum(1), torch.ones(5))
    assert len({tuple(weights) for weights in history.tolist()}) > 1
    assert history[0].tolist() == pytest.approx([1 / 3] * 3)


def test_easy_phase_masks_and_freezes_together():
    weak_probs = make_problem()
    easy = raven.unanimous(weak_probs)
    assert 0 < easy.sum() < len(easy) / 2
    head, history = train(raven, weak_probs, epochs=4, weight_lr=0.05, easy_phase=0.5)
    assert (history[:3] == history[0]).all() and (
        history[3] != history[0]
    ).any()  # frozen for two epochs of four
    # All the training easy: what the weak models say of other samples must not matter.
    head, history = train(raven, weak_probs, weight_lr=0.05, easy_phase=1.0)
    other = weak_probs.clone()
    other[~easy] = weak_probs[~easy][:, :, [1, 2, 3, 4, 0]]
    assert (raven.unanimous(other) == easy).all()
    assert torch.equal(train(raven, other, weight_lr=0.05, easy_phase=1.0)[0], head)
    assert not torch.equal(train(raven, other, weight_lr=0.05, easy_phase=0.0)[0], head)


def test_training_against_a_loop_written_from_the_equations():
    """Easy phase, simultaneous update, projection, cosine and Adam, each step by hand, in plain tensors."""
    weak_probs = make_problem()
    epochs, lr, weight_lr, batch_size = 4, 1e-2, 0.2, 32
    x, W = features(300), torch.zeros(5, 7, dtype=torch.float64)
    X = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    theta, first, second, step = torch.full((3,), 1 / 3, dtype=torch.float64), 0, 0, 0
    total = epochs * math.ceil(len(x) / batch_size)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        easy_phase = epoch < 0.25 * epochs
        for batch in torch.randperm(len(x), generator=generator).split(batch_size):
            q, n = weak_probs[batch].double(), len(batch)
            s = torch.ones(n).double()
            if easy_phase:
                s = (q.argmax(-1) == q.argmax(-1)[:, :1]).all(-1).double()
            log_p = (X[batch] @ W.T).log_softmax(-1)
            y = (q * theta[:, None]).sum(1)
            grad_W = (s[:, None] * (log_p.exp() - y)).T @ X[batch] / n
            g = (s[:, None] * (-(q * log_p[:, None]).sum(-1) + (y * log_p).sum(-1, keepdim=True))).sum(0) / n
            step += 1
            first, second = 0.9 * first + 0.1 * grad_W, 0.999 * second + 0.001 * grad_W**2
            rate = lr * (1 + math.cos(math.pi * (step - 1) / total)) / 2
            W = W - rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            if not easy_phase:
                theta = (theta - weight_lr * g).clamp(min=1e-6)
                theta = theta / theta.sum()
    head, history = train(raven, weak_probs, epochs=epochs, lr=lr, weight_lr=weight_lr, easy_phase=0.25)
    torch.testing.assert_close(head.double(), W[:, :-1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(history[-1].double(), theta, rtol=1e-3, atol=1e-4)


def test_weights_find_the_weak_model_that_is_right(npz):
    flags = "--seeds 0 --weight-lr 0.03 --lr 0.03 --epochs 10 --batch-size 16".split()
    [row] = run_script(raven, "--task", npz, *flags)
    assert row["weak"].index(max(row["weak"])) == 2 == row["weights"].index(max(row["weights"]))
    assert row["student"] > max(row["weak"])
