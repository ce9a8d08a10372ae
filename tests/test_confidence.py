from unittest.mock import Mock

import confidence
import pytest
import torch
from confidence import confidence_loss, own_class
from conftest import random_problem, train


def test_value_of_burns_et_al_with_their_threshold(parity):
    published = parity["openai_logconf_binary_step_0.5"]
    z, q = torch.tensor([published["logits"], published["weak_probs"]], dtype=torch.float64)
    own = own_class(z, q, balanced=True)
    assert confidence_loss(z, q, 0.5, own).item() == pytest.approx(published["loss"], abs=1e-6)
    assert not torch.equal(own, z.argmax(-1))  # the argmax gives another value


def test_balanced_classes_are_as_frequent_as_the_weak_labels():
    """Against the quantile of the released code, written as a loop; the student alone would say 0 always."""
    generator = torch.Generator().manual_seed(0)
    student_logits = torch.stack([3 + torch.rand(101, generator=generator), torch.zeros(101)], -1)
    p0 = student_logits.softmax(-1)[:, 0]
    for share in (0.0, 0.25, 0.6, 1.0):
        expected = [0 if p >= torch.quantile(p0, share) else 1 for p in p0]
        weak_probs = torch.tensor([1 - share, share]).expand(101, 2)
        assert own_class(student_logits, weak_probs, balanced=True).tolist() == expected


def test_the_loop_ramps_over_all_steps_and_hands_on_the_own_class():
    """2 epochs of 10 steps, the ramp over the first half of all; then 10 steps without one."""
    weak_probs, loss = random_problem(n=300)[1][:, 0].float(), Mock(wraps=confidence_loss)
    train(confidence, weak_probs, epochs=2, alpha=0.4, alpha_ramp=0.5, loss_of=loss)
    train(confidence, weak_probs, epochs=1, alpha=0.4, alpha_ramp=0.0, loss_of=loss)
    calls = [call.args for call in loss.call_args_list]
    assert [a.item() for _, _, a, _ in calls] == pytest.approx([0.04 * i for i in range(10)] + [0.4] * 20)
    assert all(own.equal(z.argmax(-1)) for z, _, _, own in calls)
    with pytest.raises(ValueError, match="two classes, not 5"):
        train(confidence, weak_probs, balanced=True)
