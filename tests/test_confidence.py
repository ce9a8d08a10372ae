import confidence
import naive
import pytest
import torch
import torch.nn.functional as F
from confidence import confidence_loss, own_class, ramp_at
from conftest import gradient, random_problem, train

import data


def problem():
    student_logits, weak_probs = random_problem(n=40)
    return student_logits, weak_probs[:, 0]


def test_loss_is_the_mixture_of_two_cross_entropies():
    student_logits, weak_probs = problem()
    total = 0.0
    for z, q in zip(student_logits, weak_probs):
        cross_entropy = [(torch.logsumexp(z, 0) - z[c]).item() for c in range(5)]
        soft = sum(q[c].item() * cross_entropy[c] for c in range(5))
        total += (0.7 * soft + 0.3 * cross_entropy[z.argmax().item()]) / len(student_logits)
    torch.testing.assert_close(confidence_loss(student_logits, weak_probs, 0.3).item(), total)


def test_gradient_in_closed_form():
    """p - (1 - a) q - a e_k."""
    student_logits, weak_probs = problem()
    _, grad = gradient(lambda z: confidence_loss(z, weak_probs, 0.3), student_logits)
    target = 0.7 * weak_probs + 0.3 * F.one_hot(student_logits.argmax(-1), 5)
    torch.testing.assert_close(grad, (student_logits.softmax(-1) - target) / len(target))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.6])
def test_values_of_ravens_authors(parity, share):
    """Their ramp and argmax, at a share of the steps."""
    student_logits, weak_logits = (
        torch.tensor(parity[k], dtype=torch.float64) for k in ("logits", "weak_logits")
    )
    a = 0.5 * ramp_at(round(100 * share), 100, 0.2)
    pairs = zip(student_logits, weak_logits.softmax(-1))
    per_sample = [confidence_loss(z[None], q[None], a).item() for z, q in pairs]
    expected = parity[f"conf_step_{share}"]["per_sample"]
    torch.testing.assert_close(per_sample, expected, rtol=0, atol=1e-10)


def test_value_of_burns_et_al_with_their_threshold(parity):
    published = parity["openai_logconf_binary_step_0.5"]
    student_logits, weak_probs = (
        torch.tensor(published[k], dtype=torch.float64) for k in ("logits", "weak_probs")
    )
    own = own_class(student_logits, weak_probs, balanced=True)
    value = confidence_loss(student_logits, weak_probs, 0.5, own).item()
    assert value == pytest.approx(published["loss"], abs=1e-6)
    assert not torch.equal(own, student_logits.argmax(-1))  # the argmax gives another value


def test_balanced_classes_are_as_frequent_as_the_weak_labels():
    """Against the quantile of the released code, written as a loop; the student alone would say 0 always."""
    generator = torch.Generator().manual_seed(0)
    student_logits = torch.stack([3 + torch.rand(101, generator=generator), torch.zeros(101)], -1)
    for share in (0.0, 0.25, 0.6, 1.0):
        weak_probs = torch.tensor([1 - share, share]).expand(101, 2)
        p0 = student_logits.softmax(-1)[:, 0]
        threshold = torch.quantile(p0, share)
        expected = [0 if p >= threshold else 1 for p in p0]
        own = own_class(student_logits, weak_probs, balanced=True)
        assert own.tolist() == expected and sum(expected) == pytest.approx(100 * share, abs=1)
    assert (own_class(student_logits, weak_probs) == 0).all()


def test_balanced_needs_two_classes(npz):
    with pytest.raises(ValueError, match="two classes, not 5"):
        own_class(*problem(), balanced=True)
    with pytest.raises(data.InputError, match="small.npz has 4"):
        confidence.main(["--task", npz, "--balanced"])


def test_ramp_by_steps():
    assert [ramp_at(step, 20, 0.2) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert ramp_at(0, 20, 0.0) == 1


def test_the_loop_ramps_over_all_steps():
    """2 epochs of 10 steps, the ramp over the first half of all."""
    seen = []

    def spy(student_logits, weak_probs, a, own):
        seen.append(a.item())
        return confidence_loss(student_logits, weak_probs, a, own)

    _, weak_probs = random_problem(n=300)
    settings = {"alpha": 0.4, "alpha_ramp": 0.5, "loss_of": spy}
    train(confidence, weak_probs[:, 0].float(), epochs=2, **settings)
    assert seen == pytest.approx([0.04 * step for step in range(10)] + [0.4] * 10)


def test_balanced_reaches_the_loss():
    """The loop refuses five classes."""
    _, weak_probs = random_problem(n=300)
    with pytest.raises(ValueError, match="two classes"):
        train(confidence, weak_probs[:, 0].float(), balanced=True)


def test_without_trust_in_itself_it_is_naive():
    _, weak_probs = random_problem(n=300)
    weak_probs, labels = weak_probs[:, 0].float(), torch.arange(300) % 5
    same, _ = train(naive, weak_probs, labels)
    torch.testing.assert_close(train(confidence, weak_probs, labels, alpha=0.0)[0], same)
    other, _ = train(confidence, weak_probs, labels, alpha=0.5, alpha_ramp=0.0)
    assert not torch.allclose(other, same, atol=1e-4)
