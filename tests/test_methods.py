"""What all methods share: losses at extremes and against the released codes, loops, flags."""

import math
from types import SimpleNamespace
from unittest.mock import Mock

import adaptive_confidence
import bayes
import confidence
import dawid_skene
import naive
import prototypes
import pytest
import raven
import torch
import torch.nn.functional as F
from adaptive_confidence import adaptive_confidence_loss
from conftest import gradient, random_problem, run_script, train

import data
import evaluate


def printed_b(own, weak):
    """b of AdaptConf at T = 1/2 as its paper prints it, from CE(z, e_k) and CE(z, e_w)."""
    return math.exp(2 * own) / (math.exp(2 * own) + math.exp(2 * weak))


@pytest.mark.parametrize("loss, b_of", [
    (naive.naive_loss, lambda *_: 0.0),
    (lambda z, q: confidence.confidence_loss(z, q, 0.3), lambda *_: 0.3),
    (lambda z, q: adaptive_confidence_loss(z, q, 0.5), printed_b),
])  # fmt: skip
def test_three_losses_against_a_loop(loss, b_of):
    """(1 - b) CE(z, q) + b CE(z, e_k), sample by sample."""
    student_logits, weak_probs = random_problem(n=40)
    total = 0.0
    for z, q in zip(student_logits.tolist(), weak_probs[:, 0].tolist()):
        cross_entropy = [math.log(sum(map(math.exp, z))) - z[c] for c in range(5)]
        own, weak = (cross_entropy[each.index(max(each))] for each in (z, q))
        b, soft = b_of(own, weak), sum(q[c] * cross_entropy[c] for c in range(5))
        total += ((1 - b) * soft + b * own) / 40
    assert loss(student_logits, weak_probs[:, 0]).item() == pytest.approx(total)


PUBLISHED = {  # the name in parity.json: the loss of student_logits (N, C) and weak_probs (N, C)
    "naive": naive.naive_loss,
    "adaptconf_T1": adaptive_confidence_loss,
    "bayes_edl_step_0.3": lambda z, q: bayes.bayes_loss(z, q[:, None], 0.3),
}
for step in (5, 10, 20, 60):  # of 100, by the ramp of RAVEN's authors
    a = 0.5 * confidence.ramp_at(step, 100, 0.2)
    PUBLISHED[f"conf_step_{step / 100}"] = lambda z, q, a=a: confidence.confidence_loss(z, q, a)


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_of_the_released_codes(name, parity):
    z, weak_logits = torch.tensor([parity["logits"], parity["weak_logits"]], dtype=torch.float64)
    loss, q, room = PUBLISHED[name], weak_logits.softmax(-1), {"rtol": 0, "atol": 1e-10}
    if name.startswith("bayes"):  # computed in float32
        room["atol"] = 2e-8
    per_sample = [loss(*pair).item() for pair in zip(z.split(1), q.split(1))]
    torch.testing.assert_close(per_sample, parity[name]["per_sample"], **room)
    if wanted := parity[name].get("grad_of_mean"):
        torch.testing.assert_close(gradient(lambda z: loss(z, q), z)[1].tolist(), wanted, **room)


def of_raven(z, q, combination):
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.promote_types(z.dtype, torch.float32))
    return raven.raven_loss(z, q, weights, torch.ones(len(z)).bool(), combination)


LOSSES = {  # of student_logits (N, C) and weak_probs (N, 3, C)
    "naive": lambda z, q: naive.naive_loss(z, q[:, 0]),
    "confidence": lambda z, q: confidence.confidence_loss(z, q[:, 0], 0.3),
    "adaptive confidence": lambda z, q: adaptive_confidence_loss(z, q[:, 0], 2.0),
    "adaptive confidence, tau 4": lambda z, q: adaptive_confidence_loss(z, q[:, 0], 2.0, 4.0),
    "bayes": bayes.bayes_loss,
    "raven": lambda z, q: of_raven(z, q, raven.combine),
    "raven, logits": lambda z, q: of_raven(z, q, raven.combine_logits),
}
CASES = {
    "logits of 1e4": lambda z, q: (1e4 * z, q),
    "one class": lambda z, q: (z[:, :1], torch.ones_like(q[..., :1])),
    "a batch of one": lambda z, q: (z[:1], q[:1]),
    "no doubt": lambda z, q: (z, F.one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype)),
    "100,000 classes": lambda z, q: (z.repeat(1, 20_000), (q / 20_000).repeat(1, 1, 20_000)),
    "float16": lambda z, q: (z.half(), q.half()),  # computed in float32: only the gradient is rounded
    "bfloat16": lambda z, q: (z.bfloat16(), q.bfloat16()),
}
ROOM = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # for the gradient


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_inputs(name, case):
    """Where a careless formula fails: value and gradient are those of float64."""
    z, weak_probs = CASES[case](*(part.float() for part in random_problem()))
    if name == "raven, logits" and case == "no doubt":  # what stands for log 0 depends on the type
        weak_probs = weak_probs.clamp(min=torch.finfo(torch.float32).tiny)
    value, slope = gradient(lambda z: LOSSES[name](z, weak_probs), z)
    exact, exact_slope = gradient(lambda z: LOSSES[name](z, weak_probs.double()), z.double())
    assert value.isfinite() and value.dtype == torch.float32 and slope.dtype == z.dtype
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-5)
    room = ROOM[z.dtype] * (10 if name == "bayes" else 1)  # where much evidence cancels in the KL
    assert (slope.double() - exact_slope).norm() <= room * max(exact_slope.norm(), 1e-3)


@pytest.mark.parametrize("method, settings", [
    (confidence, {"alpha": 0.0}),
    (adaptive_confidence, {"beta_ramp": 1.0}),  # in the first epoch b is 0
    (raven, {"weight_lr": 0.0, "easy_phase": 0.0}),
])  # fmt: skip
def test_without_its_own_part_a_method_is_naive(method, settings):
    weak_probs, labels = random_problem(n=300)[1].float(), torch.arange(300) % 5
    mean = weak_probs.mean(1)
    found, _ = train(method, weak_probs if method is raven else mean, labels, epochs=1, **settings)
    torch.testing.assert_close(found, train(naive, mean, labels, epochs=1)[0])


@pytest.mark.parametrize("method, flags, wanted", [
    (confidence, "--alpha 0.3 --alpha-ramp 0.25", {"alpha": 0.3, "alpha_ramp": 0.25}),
    (confidence, "", {"alpha": 0.5, "alpha_ramp": 0.2, "balanced": False}),
    (adaptive_confidence, "--temperature 3 --beta-ramp 0.25", {"temperature": 3, "beta_ramp": 0.25}),
    (adaptive_confidence, "--distill-temperature 2", {"distill_temperature": 2}),
    (adaptive_confidence, "--beta one", {"weight": adaptive_confidence.BETAS["one"]}),
    (bayes, "--gamma 0.3", {"gamma": 0.3}),
    (raven, "--easy-phase 0.3 --weight-lr 0", {"easy_phase": 0.3, "weight_lr": 0}),
    (dawid_skene, "--smoothing 2", {1: 2}),
    (prototypes, "--gamma 3 --rounds 2", {"gamma": 3, "rounds": 2}),
])  # fmt: skip
def test_flags_reach_the_method(method, flags, wanted, npz, monkeypatch):
    part = Mock(side_effect=KeyboardInterrupt)  # ends the script
    monkeypatch.setattr(method, "label" if hasattr(method, "label") else "train_student", part)
    with pytest.raises(KeyboardInterrupt):
        method.main(["--task", npz, "--seeds", "0", *flags.split()])
    given, named = part.call_args
    assert wanted.items() <= {**dict(enumerate(given)), **named}.items()


@pytest.mark.parametrize("method", [bayes, dawid_skene, prototypes])
def test_students_of_all_weak_models_at_once(method, npz):
    """They are for linear heads, and better there than the best weak model."""
    [row] = run_script(method, "--task", npz, "--seeds", "0", "--lr", "1e-2")
    assert row["student"] > max(row["weak"])
    assert row.get("labels_right", 1) > sorted(row["weak"])[1] + 0.1
    with pytest.raises(data.InputError, match="this method is for linear heads on features"):
        run_script(method, "--task", "glyphs-distill")


def test_whose_labels():
    """Two of three weak models name class 1; each names another, and the mean prefers 2."""
    weak_probs = torch.tensor([
        [[0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.3, 0.7, 0.0]],
        [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.0, 0.0, 1.0]],
    ])  # fmt: skip
    task, votes = SimpleNamespace(strong_train=SimpleNamespace(weak_probs=weak_probs)), torch.tensor([1, 2])
    wanted = {"each": weak_probs.unbind(1), "mean": [weak_probs.mean(1)], "vote": [F.one_hot(votes).float()]}
    for name, labels in wanted.items():
        found = evaluate.supervisors(SimpleNamespace(task=task, args=SimpleNamespace(supervision=name)))
        assert len(found) == len(labels) and all(map(torch.equal, found, labels))
