import math

import adaptive_confidence
import naive
import pytest
import torch
import torch.nn.functional as F
from adaptive_confidence import BETAS, adaptive_confidence_loss, confidence_weight, mixed_loss, ramp_at
from conftest import gradient, random_problem, run_script, train

LOGITS, WEAK_PROBS = random_problem(n=40)
WEAK_PROBS = WEAK_PROBS[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_loss_against_the_printed_formula(temperature):
    total = 0.0
    for z, q in zip(LOGITS, WEAK_PROBS):
        cross_entropy = [torch.logsumexp(z, 0).item() - z[c].item() for c in range(len(z))]
        own, weak = z.argmax().item(), q.argmax().item()
        e_own, e_weak = (math.exp(cross_entropy[c] / temperature) for c in (own, weak))
        b = e_own / (e_own + e_weak)
        soft = sum(q[c].item() * cross_entropy[c] for c in range(len(z)))
        total += ((1 - b) * soft + b * cross_entropy[own]) / len(LOGITS)
    torch.testing.assert_close(adaptive_confidence_loss(LOGITS, WEAK_PROBS, temperature).item(), total)


def test_values_of_the_released_code_without_labels(parity):
    z, weak_logits = torch.tensor([parity["logits"], parity["weak_logits"]], dtype=torch.float64)
    q, published = weak_logits.softmax(-1), parity["adaptconf_T1"]
    grad = gradient(lambda z: adaptive_confidence_loss(z, q), z)[1]
    per_sample = [adaptive_confidence_loss(*pair).item() for pair in zip(z.split(1), q.split(1))]
    torch.testing.assert_close(per_sample, published["per_sample"], rtol=0, atol=1e-10)
    torch.testing.assert_close(grad.tolist(), published["grad_of_mean"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("T, tau, epoch", [(0.5, 1, 100), (0.5, 10, 100), (1.0, 1, 100), (0.5, 1, 10)])
def test_values_of_the_released_code_with_distillation(parity, T, tau, epoch):
    published = parity[f"adaptconf_official_T{T}_tau{tau}_epoch{epoch}of100"]
    z, weak_logits = torch.tensor([parity["logits"], parity["weak_logits"]], dtype=torch.float64)
    q, ramp = weak_logits.softmax(-1), ramp_at(epoch, 100, 0.25)
    value, grad = gradient(lambda z: adaptive_confidence_loss(z, q, T, tau, ramp), z)
    # The code has KL where the loss has cross-entropy: they differ by the entropy of the softened weak label.
    softened = F.log_softmax(weak_logits / tau, -1)
    entropy = -(softened.exp() * softened).sum(-1)
    value -= ((1 - ramp * confidence_weight(z, q, T)) * tau**2 * entropy).mean()
    torch.testing.assert_close(value.item(), published["kd"] + published["self"], rtol=0, atol=1e-9)
    torch.testing.assert_close(grad.tolist(), published["grad_of_sum"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_gradient_in_closed_form(tau):
    """(1-b) tau (p_tau - q_tau) + b (p - e_k): b itself carries none."""
    _, grad = gradient(lambda z: adaptive_confidence_loss(z, WEAK_PROBS, 2.0, tau), LOGITS)
    b = confidence_weight(LOGITS, WEAK_PROBS, 2.0)[:, None]
    p, p_tau = LOGITS.softmax(-1), (LOGITS / tau).softmax(-1)
    q_tau = WEAK_PROBS ** (1 / tau) / (WEAK_PROBS ** (1 / tau)).sum(-1, keepdim=True)
    expected = (1 - b) * tau * (p_tau - q_tau) + b * (p - F.one_hot(LOGITS.argmax(-1), 5))
    torch.testing.assert_close(grad, expected / len(b))


def test_weight_is_one_half_on_agreement_and_less_elsewhere():
    agree = LOGITS.argmax(-1) == WEAK_PROBS.argmax(-1)
    assert agree.any() and not agree.all()
    for temperature in (0.25, 1.0, 8.0):
        b = confidence_weight(LOGITS, WEAK_PROBS, temperature)
        assert (b[agree] == 0.5).all() and (b[~agree] < 0.5).all() and (b > 0).all()


def test_where_training_ends_by_hand():
    """q = (.30, .55, .10, .05), the student says class 0: no gradient at (.5643, .3423, .0622, .0311)."""
    q = torch.tensor([[0.30, 0.55, 0.10, 0.05]], dtype=torch.float64)
    r = (math.sqrt(0.30**2 + 4 * 0.55) - 0.30) / 2  # p_w / p_k, and b = r / (1 + r)
    p = (q + r * torch.tensor([1.0, 0.0, 0.0, 0.0]).double()) / (1 + r)
    torch.testing.assert_close(p[0].tolist(), [0.5643, 0.3423, 0.0622, 0.0311], atol=1e-4, rtol=0)
    assert gradient(lambda z: adaptive_confidence_loss(z, q), p.log())[1].abs().max() < 1e-12


def test_ramp():
    assert [ramp_at(epoch, 8, 0.5) for epoch in range(8)] == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert ramp_at(0, 4, 0.0) == 1


def test_every_setting_reaches_the_loss_in_every_epoch():
    calls = []

    def weight(student_logits, weak_probs, temperature):
        calls.append([temperature])
        return torch.full((len(weak_probs),), 0.25)

    def spy(student_logits, weak_probs, b, distill_temperature):
        calls[-1] += [b.unique().item(), distill_temperature]
        return mixed_loss(student_logits, weak_probs, b, distill_temperature)

    settings = {"temperature": 8.0, "distill_temperature": 3.0, "beta_ramp": 0.5, "weight": weight}
    train(adaptive_confidence, WEAK_PROBS[:30].float(), epochs=4, **settings, loss_of=spy)
    assert calls == [[8.0, ramp * 0.25, 3.0] for ramp in (0.0, 0.5, 1.0, 1.0)]


def test_without_trust_in_itself_it_is_naive():
    """In the first epoch of a ramp b is 0; the loop is naive's, with labels."""
    given = random_problem(n=300)[1][:, 0].float(), torch.arange(300) % 5
    same, _ = train(naive, *given, epochs=1)
    torch.testing.assert_close(train(adaptive_confidence, *given, epochs=1, beta_ramp=1.0)[0], same)
    assert not torch.allclose(train(adaptive_confidence, *given, epochs=1)[0], same, atol=1e-4)


def test_history_of_agreement_and_trust():
    """Two epochs of two batches, counted sample by sample."""
    seen = []

    def spy(student_logits, weak_probs, b, tau):
        seen.extend(zip(student_logits.detach(), weak_probs, b.tolist()))
        return mixed_loss(student_logits, weak_probs, b, tau)

    settings = {"epochs": 2, "lr": 0.1, "beta_ramp": 1.0, "loss_of": spy}
    _, history = train(adaptive_confidence, WEAK_PROBS.float(), **settings)
    for (agreement, trust), samples in zip(history, (seen[:40], seen[40:]), strict=True):
        others = [b for z, q, b in samples if z.argmax() != q.argmax()]
        assert agreement == pytest.approx(1 - len(others) / 40)
        assert trust == pytest.approx(sum(others) / len(others))
    assert history[0][1] == 0 < history[1][1]  # the ramp is in it


def test_select_compares_ranks_within_the_batch():
    """Sample by sample: how many of the batch are less confident, for the student and for the weak model."""
    own, weak = LOGITS.softmax(-1).amax(-1), WEAK_PROBS.amax(-1)
    expected = [float((own < own[i]).sum() > (weak < weak[i]).sum()) for i in range(40)]
    assert BETAS["select"](LOGITS, WEAK_PROBS, 1.0).tolist() == expected and 0 < sum(expected) < 40
    # Each is surest where the other is least sure; on the third both are in between: ties go to the weak one.
    q = torch.tensor([[0.4, 0.6], [0.95, 0.05], [0.1, 0.9]])
    assert BETAS["select"](torch.tensor([[4.0, 0], [0.1, 0], [0.2, 0]]), q, 1.0).tolist() == [1, 0, 0]


def test_the_flag_picks_the_weight(npz):
    flags = "--seeds 0 --beta-ramp 0 --lr 0.01 --temperature 1 --beta".split()
    rows = {beta: run_script(adaptive_confidence, "--task", npz, *flags, beta)[0] for beta in BETAS}
    trust = {beta: row["disagreement_beta_history"] for beta, row in rows.items()}
    assert trust["half"] == [0.5] * 20 and trust["one"] == [1] * 20 and 0 < trust["select"][-1] < 1
    assert trust["adaptive"][-1] < 0.5 < trust["swapped"][-1]
    assert all(len(row["agreement_history"]) == 20 for row in rows.values())


def test_the_flags_reach_the_loop(npz, monkeypatch):
    seen = []
    monkeypatch.setattr(adaptive_confidence, "train_student", lambda _, **own: seen.append(own) or [[1, 0]])
    flags = "--seeds 0 --supervision mean --temperature 3 --distill-temperature 2 --beta-ramp 0.25"
    run_script(adaptive_confidence, "--task", npz, *flags.split())
    assert [seen[0][key] for key in ("temperature", "distill_temperature", "beta_ramp")] == [3, 2, 0.25]
