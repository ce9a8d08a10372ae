import confidence
import naive
import pytest
import torch
from confidence import confidence_loss, own_class, ramp_at
from conftest import gradient, random_problem, run_script, train


def test_loss_and_gradient_against_a_loop():
    """A mixture of two cross-entropies; p - (1 - a) q - a e_k."""
    student_logits, weak_probs = random_problem(n=40)
    expected, slopes = 0.0, student_logits.softmax(-1) - 0.7 * weak_probs[:, 0]
    for i, (z, q) in enumerate(zip(student_logits, weak_probs[:, 0])):
        cross_entropy = torch.logsumexp(z, 0) - z
        soft = sum(q[c] * cross_entropy[c] for c in range(5))
        expected += (0.7 * soft + 0.3 * cross_entropy[z.argmax()]) / 40
        slopes[i, z.argmax()] -= 0.3
    found = gradient(lambda z: confidence_loss(z, weak_probs[:, 0], 0.3), student_logits)
    torch.testing.assert_close(found, (expected, slopes / 40))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.6])
def test_values_of_ravens_authors(parity, share):
    """Their ramp and argmax, at a share of the steps."""
    z, weak_logits = torch.tensor([parity["logits"], parity["weak_logits"]], dtype=torch.float64)
    a, pairs = 0.5 * ramp_at(round(100 * share), 100, 0.2), zip(z.split(1), weak_logits.softmax(-1).split(1))
    per_sample = [confidence_loss(*pair, a).item() for pair in pairs]
    torch.testing.assert_close(per_sample, parity[f"conf_step_{share}"]["per_sample"], rtol=0, atol=1e-10)


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
        own = own_class(student_logits, weak_probs, balanced=True)
        assert own.tolist() == expected and sum(expected) == pytest.approx(100 * share, abs=1)
    assert (own_class(student_logits, weak_probs) == 0).all()


def test_ramp_by_steps():
    assert [ramp_at(step, 20, 0.2) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert ramp_at(0, 20, 0.0) == 1


def test_the_loop_ramps_over_all_steps():
    """2 epochs of 10 steps, the ramp over the first half of all."""
    seen = []

    def spy(student_logits, weak_probs, a, own):
        seen.append(a.item())
        return confidence_loss(student_logits, weak_probs, a, own)

    settings = {"alpha": 0.4, "alpha_ramp": 0.5, "loss_of": spy}
    train(confidence, random_problem(n=300)[1][:, 0].float(), epochs=2, **settings)
    assert seen == pytest.approx([0.04 * step for step in range(10)] + [0.4] * 10)


def test_without_trust_in_itself_it_is_naive_and_balanced_reaches_it():
    given = random_problem(n=300)[1][:, 0].float(), torch.arange(300) % 5
    same, _ = train(naive, *given)
    torch.testing.assert_close(train(confidence, *given, alpha=0.0)[0], same)
    assert not torch.allclose(train(confidence, *given, alpha_ramp=0.0)[0], same, atol=1e-4)
    with pytest.raises(ValueError, match="two classes, not 5"):
        train(confidence, *given, balanced=True)


def test_the_flags_reach_the_loop(npz, monkeypatch):
    seen = []
    monkeypatch.setattr(confidence, "train_student", lambda _, **own: seen.append(own))
    flags = "--seeds 0 --supervision mean --alpha 0.3 --alpha-ramp 0.25"
    run_script(confidence, "--task", npz, *flags.split())
    assert [seen[0][key] for key in ("alpha", "alpha_ramp", "balanced")] == [0.3, 0.25, False]
