import math

import adaptive_confidence
import naive
import pytest
import torch
import torch.nn.functional as F
from adaptive_confidence import BETAS, adaptive_confidence_loss, confidence_weight, mixed_loss, ramp_at
from conftest import gradient, random_problem, run_script, train


def problem():
    student_logits, weak_probs = random_problem(n=40)
    return student_logits, weak_probs[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_loss_against_the_printed_formula(temperature):
    student_logits, weak_probs = problem()
    total = 0.0
    for z, q in zip(student_logits, weak_probs):
        cross_entropy = [torch.logsumexp(z, 0).item() - z[c].item() for c in range(len(z))]
        own, weak = z.argmax().item(), q.argmax().item()
        e_own, e_weak = (math.exp(cross_entropy[c] / temperature) for c in (own, weak))
        b = e_own / (e_own + e_weak)
        soft = sum(q[c].item() * cross_entropy[c] for c in range(len(z)))
        total += ((1 - b) * soft + b * cross_entropy[own]) / len(student_logits)
    value = adaptive_confidence_loss(student_logits, weak_probs, temperature).item()
    torch.testing.assert_close(value, total)


def test_values_of_the_released_code_without_labels(parity):
    student_logits, weak_probs = (
        torch.tensor(parity[key], dtype=torch.float64) for key in ("logits", "weak_logits")
    )
    weak_probs = weak_probs.softmax(-1)
    _, grad = gradient(lambda z: adaptive_confidence_loss(z, weak_probs), student_logits)
    per_sample = [
        adaptive_confidence_loss(z[None], q[None]).item() for z, q in zip(student_logits, weak_probs)
    ]
    torch.testing.assert_close(per_sample, parity["adaptconf_T1"]["per_sample"], rtol=0, atol=1e-10)
    torch.testing.assert_close(grad.tolist(), parity["adaptconf_T1"]["grad_of_mean"], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "temperature, tau, epoch", [(0.5, 1, 100), (0.5, 10, 100), (1.0, 1, 100), (0.5, 1, 10)]
)
def test_values_of_the_released_code_with_distillation(parity, temperature, tau, epoch):
    published = parity[f"adaptconf_official_T{temperature}_tau{tau}_epoch{epoch}of100"]
    student_logits, weak_logits = (
        torch.tensor(parity[k], dtype=torch.float64) for k in ("logits", "weak_logits")
    )
    weak_probs, ramp = weak_logits.softmax(-1), ramp_at(epoch, 100, 0.25)
    value, grad = gradient(
        lambda z: adaptive_confidence_loss(z, weak_probs, temperature, tau, ramp), student_logits
    )
    # The code has KL where the loss has cross-entropy: they differ by the entropy of the softened weak label.
    softened = F.log_softmax(weak_logits / tau, -1)
    entropy = -(softened.exp() * softened).sum(-1)
    b = ramp * confidence_weight(student_logits, weak_probs, temperature)
    value -= ((1 - b) * tau**2 * entropy).mean()
    torch.testing.assert_close(value.item(), published["kd"] + published["self"], rtol=0, atol=1e-9)
    torch.testing.assert_close(grad.tolist(), published["grad_of_sum"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_gradient_in_closed_form(tau):
    """(1-b) tau (p_tau - q_tau) + b (p - e_k), and b itself carries none."""
    student_logits, weak_probs = problem()
    _, grad = gradient(lambda z: adaptive_confidence_loss(z, weak_probs, 2.0, tau), student_logits)
    b = confidence_weight(student_logits, weak_probs, 2.0)[:, None]
    p, p_tau = student_logits.softmax(-1), (student_logits / tau).softmax(-1)
    q_tau = weak_probs ** (1 / tau) / (weak_probs ** (1 / tau)).sum(-1, keepdim=True)
    e_k = F.one_hot(student_logits.argmax(-1), 5)
    expected = (1 - b) * tau * (p_tau - q_tau) + b * (p - e_k)
    torch.testing.assert_close(grad, expected / len(b))
    assert not confidence_weight(student_logits.requires_grad_(), weak_probs, 1.0).requires_grad


def test_weight_is_at_most_one_half_and_that_on_agreement():
    student_logits, weak_probs = problem()
    agree = student_logits.argmax(-1) == weak_probs.argmax(-1)
    assert agree.any() and (~agree).any()
    for temperature in (0.25, 1.0, 8.0):
        b = confidence_weight(student_logits, weak_probs, temperature)
        assert (b[agree] == 0.5).all() and (b[~agree] < 0.5).all() and (b > 0).all()
    p = student_logits.softmax(-1)
    p_k, p_w = p.amax(-1), p.gather(-1, weak_probs.argmax(-1, keepdim=True))[:, 0]
    torch.testing.assert_close(confidence_weight(student_logits, weak_probs, 1.0), p_w / (p_w + p_k))


def test_a_surer_disagreement_is_trusted_less():
    weak_probs = torch.tensor([[0.1, 0.9]])
    trust = [confidence_weight(torch.tensor([[z, 0.0]]), weak_probs, 1.0).item() for z in (0.5, 1.0, 4.0)]
    assert trust == sorted(trust, reverse=True)
    torch.testing.assert_close(trust[1], 1 / (1 + math.e))
    softer = torch.tensor([[0.45, 0.55]])  # how sure the weak model is does not matter
    assert confidence_weight(torch.tensor([[1.0, 0.0]]), softer, 1.0).item() == trust[1]


def test_limits_of_the_temperature():
    student_logits, weak_probs = problem()
    agree = student_logits.argmax(-1) == weak_probs.argmax(-1)
    hot, cold = (confidence_weight(student_logits, weak_probs, t) for t in (1e9, 1e-9))
    torch.testing.assert_close(hot, torch.full_like(hot, 0.5))
    assert (cold[~agree] < 1e-6).all()


def test_fixed_point_on_agreement():
    """Student and weak model agree: gradient descent ends at p* = (q + e_w) / 2."""
    q = torch.tensor([[0.30, 0.55, 0.10, 0.05]], dtype=torch.float64)
    p_star = (q + torch.tensor([0.0, 1.0, 0.0, 0.0])) / 2
    torch.testing.assert_close(descend(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), q), p_star, atol=1e-6, rtol=0)


def test_fixed_point_on_disagreement():
    """q = (.30, .55, .10, .05), the student says class 0: p* = (.5643, .3423, .0622, .0311)."""
    q = torch.tensor([[0.30, 0.55, 0.10, 0.05]], dtype=torch.float64)
    r = (math.sqrt(0.30**2 + 4 * 0.55) - 0.30) / 2
    b = r / (1 + r)
    p_star = (1 - b) * q + b * torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(p_star[0].tolist(), [0.5643, 0.3423, 0.0622, 0.0311], atol=1e-4, rtol=0)
    torch.testing.assert_close(descend(p_star.log(), q), p_star, atol=1e-9, rtol=0)
    torch.testing.assert_close(descend(p_star.log() + 0.05 * torch.randn(4), q), p_star, atol=1e-6, rtol=0)


def descend(student_logits, q):
    student_logits = student_logits.double()
    for _ in range(2000):
        _, grad = gradient(lambda z: adaptive_confidence_loss(z, q), student_logits)
        student_logits = student_logits - 0.5 * grad
    return student_logits.softmax(-1)


def test_ramp():
    assert [ramp_at(epoch, 8, 0.5) for epoch in range(8)] == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert [ramp_at(epoch, 4, 0.0) for epoch in range(4)] == [1, 1, 1, 1]
    assert ramp_at(10, 100, 0.25) == 0.4  # as in the released code


def test_every_setting_reaches_the_loss_in_every_epoch():
    calls = []

    def weight(student_logits, weak_probs, temperature):
        calls.append([temperature])
        return torch.full((len(weak_probs),), 0.25)

    def spy(student_logits, weak_probs, b, distill_temperature):
        calls[-1] += [b.unique().item(), distill_temperature]
        return mixed_loss(student_logits, weak_probs, b, distill_temperature)

    _, weak_probs = random_problem(n=30)
    settings = {"temperature": 8.0, "distill_temperature": 3.0, "beta_ramp": 0.5, "weight": weight}
    train(adaptive_confidence, weak_probs[:, 0].float(), epochs=4, **settings, loss_of=spy)
    assert calls == [[8.0, ramp * 0.25, 3.0] for ramp in (0.0, 0.5, 1.0, 1.0)]


def test_without_trust_in_itself_it_is_naive():
    """In the first epoch of a ramp b is 0; the loop is naive's, with labels."""
    _, weak_probs = random_problem(n=300)
    given = weak_probs[:, 0].float(), torch.arange(300) % 5
    same, _ = train(naive, *given, epochs=1)
    torch.testing.assert_close(train(adaptive_confidence, *given, epochs=1, beta_ramp=1.0)[0], same)
    assert not torch.allclose(train(adaptive_confidence, *given, epochs=1)[0], same, atol=1e-4)


# ------------------------------------------------------------------------------------------ controls of b


def test_controls_by_hand():
    student_logits, weak_probs = problem()
    b = confidence_weight(student_logits, weak_probs, 2.0)
    assert (BETAS["half"](student_logits, weak_probs, 2.0) == 0.5).all()
    assert (BETAS["one"](student_logits, weak_probs, 2.0) == 1).all()
    torch.testing.assert_close(BETAS["swapped"](student_logits, weak_probs, 2.0), 1 - b)
    assert BETAS["adaptive"] is confidence_weight
    for weight in BETAS.values():
        assert weight(student_logits.requires_grad_(), weak_probs, 2.0).shape == (40,)
        assert not weight(student_logits, weak_probs, 2.0).requires_grad


def test_select_compares_ranks_within_the_batch():
    """Sample by sample: how many of the batch are less confident, for the student and for the weak model."""
    student_logits, weak_probs = problem()
    own, weak = student_logits.softmax(-1).amax(-1), weak_probs.amax(-1)
    expected = [float((own < own[i]).sum() > (weak < weak[i]).sum()) for i in range(40)]
    chosen = BETAS["select"](student_logits, weak_probs, 1.0)
    assert chosen.tolist() == expected and 0 < sum(expected) < 40
    # Sharper or softer labels of either, in the same order, change nothing.
    assert torch.equal(BETAS["select"](3 * student_logits[:, :2], weak_probs[:, :2], 1.0),
                       BETAS["select"](student_logits[:, :2], weak_probs[:, :2], 1.0))  # fmt: skip
    assert torch.equal(BETAS["select"](student_logits, (weak_probs / 2 + 0.1), 1.0), chosen)


def test_select_takes_one_label_or_the_other():
    """The student is surest of sample 0, of which the weak model is least sure; with sample 1 it is the other
    way; on sample 2 both are in between, and ties go to the weak model: targets e_k, q, q."""
    weak_probs = torch.tensor([[0.4, 0.6], [0.95, 0.05], [0.1, 0.9]])
    student_logits = torch.tensor([[4.0, 0.0], [0.1, 0.0], [0.2, 0.0]])
    b = BETAS["select"](student_logits, weak_probs, 1.0)
    assert b.tolist() == [1.0, 0.0, 0.0]
    _, grad = gradient(lambda z: mixed_loss(z, weak_probs, b, 1.0), student_logits)
    target = torch.tensor([[1.0, 0.0], [0.95, 0.05], [0.1, 0.9]])
    torch.testing.assert_close(grad, (student_logits.softmax(-1) - target) / 3)


def test_history_of_agreement_and_trust():
    """Two epochs of two batches, counted sample by sample."""
    seen = []

    def spy(student_logits, weak_probs, b, tau):
        seen.append([part.detach() for part in (student_logits, weak_probs, b)])
        return mixed_loss(student_logits, weak_probs, b, tau)

    _, weak_probs = random_problem(n=40)
    _, history = train(
        adaptive_confidence, weak_probs[:, 0].float(), epochs=2, lr=0.1, beta_ramp=1.0, loss_of=spy
    )
    for (agreement, trust), batches in zip(history, (seen[:2], seen[2:]), strict=True):
        agree, b_where_not = 0, []
        for z, q, b in batches:
            for i in range(len(z)):
                if z[i].argmax() == q[i].argmax():
                    agree += 1
                else:
                    b_where_not.append(b[i].item())
        assert agreement == pytest.approx(agree / 40)
        assert trust == pytest.approx(sum(b_where_not) / len(b_where_not), abs=1e-6)
    assert history[0][1] == 0 < history[1][1]  # the ramp is in it


def test_the_flag_picks_the_weight(npz):
    flags = ["--task", npz, "--seeds", "0", "--beta-ramp", "0", "--lr", "0.01", "--temperature", "1"]
    rows = {beta: run_script(adaptive_confidence, *flags, "--beta", beta)[0] for beta in BETAS}
    trust = {beta: row["disagreement_beta_history"][-1] for beta, row in rows.items()}
    assert trust["half"] == 0.5 and trust["one"] == 1 and 0 < trust["select"] < 1
    assert trust["adaptive"] < 0.5 < trust["swapped"]
    assert all(len(row["agreement_history"]) == 20 for row in rows.values())
