import math
from unittest.mock import Mock

import adaptive_confidence
import pytest
import torch
import torch.nn.functional as F
from adaptive_confidence import BETAS, adaptive_confidence_loss, confidence_weight, mixed_loss, ramp_at
from conftest import gradient, random_problem, run_script, train

LOGITS, WEAK_PROBS = random_problem(n=40, seed=2)
WEAK_PROBS = WEAK_PROBS[:, 0]


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


def test_the_loop_hands_on_every_setting_and_keeps_a_history():
    """Four epochs of two batches: agreement, and trust where there is none, the ramp included."""
    loss = Mock(wraps=mixed_loss)
    settings = {"temperature": 8.0, "distill_temperature": 3.0, "beta_ramp": 0.5, "loss_of": loss, "lr": 0.1}
    _, history = train(adaptive_confidence, WEAK_PROBS.float(), **settings)
    first, second = ([call.args for call in loss.call_args_list[i::2]] for i in (0, 1))
    for ramp, one, other, (agreement, trust) in zip((0, 0.5, 1, 1), first, second, history, strict=True):
        z, q, b = map(torch.cat, zip(one[:3], other[:3]))
        torch.testing.assert_close(b, ramp * confidence_weight(z, q, 8.0))
        differ = z.argmax(-1) != q.argmax(-1)
        assert agreement == pytest.approx(1 - differ.sum() / 40) and trust == pytest.approx(b[differ].mean())
        assert one[3] == other[3] == 3.0


def test_controls_of_b():
    """select: how many of the batch are less confident, for the student and for the weak model; two ties."""
    found = {name: beta(LOGITS, WEAK_PROBS, 2.0) for name, beta in BETAS.items()}
    own, weak = LOGITS.softmax(-1).amax(-1), WEAK_PROBS.amax(-1)
    expected = [float((own < own[i]).sum() > (weak < weak[i]).sum()) for i in range(40)]
    assert found["select"].tolist() == expected and 0 < sum(expected) < 40
    assert found["half"].tolist() == [0.5] * 40 and found["one"].tolist() == [1] * 40
    assert found["adaptive"].equal(confidence_weight(LOGITS, WEAK_PROBS, 2.0))
    assert found["swapped"].equal(1 - found["adaptive"])


def test_the_row_has_mean_histories_and_none_where_all_agree(npz, monkeypatch):
    agree, differ = [1.0, math.nan], [0.7, 0.3]
    histories = [[agree, differ], [agree, agree], [agree, differ]]  # of three students, in two epochs
    monkeypatch.setattr(adaptive_confidence, "train_student", Mock(side_effect=histories))
    [row] = run_script(adaptive_confidence, "--task", npz, "--seeds", "0")
    assert row["agreement_history"] == pytest.approx([1.0, 0.8])
    assert row["disagreement_beta_history"] == [None, pytest.approx(0.3)]
