"""Gradients in closed form against autograd on the plain losses; compiled against eager; no compiler."""

import functools
import itertools
import math
import os
import shutil
import subprocess
import sys

import adaptive_confidence
import confidence
import naive
import pytest
import raven
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fast
import models
import training

METHODS = [naive, confidence, adaptive_confidence, raven]
ROOM = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def problem(n=12, s=3, c=5, seed=0):
    """Logits of s students and soft labels (n, s, c), float64, with ties among logits and labels of 0."""
    generator = torch.Generator().manual_seed(seed)
    student_logits = 2 * torch.randn(n, s, c, generator=generator, dtype=torch.float64)
    weak_probs = torch.softmax(2 * torch.randn(n, s, c, generator=generator, dtype=torch.float64), -1)
    student_logits[0] = 0  # the student is wholly undecided
    weak_probs[-1] = F.one_hot(torch.tensor(c - 1), c)  # the weak models have no doubt
    return student_logits, weak_probs


def label_loss(student_logits, labels):
    """The labels' cross-entropy of s students, summed."""
    if labels is None:
        return 0.0
    return sum(F.cross_entropy(student_logits[:, s], labels) for s in range(student_logits.shape[1]))


def each(loss):
    """loss(logits (n, c), weak_probs (n, c)) -> the same for (n, s, c), summed over the s students."""
    return lambda z, q: sum(loss(z[:, s], q[:, s]) for s in range(z.shape[1]))


def adaptive_loss(z, q, weight, temperature, tau):
    b = 0.7 * weight(z, q, temperature)
    return adaptive_confidence.mixed_loss(z, q, b, tau)


TRUST = torch.tensor(0.3, dtype=torch.float64)
# name -> (plain loss of (z, q), value_and_gradient of (z, q, labels))
PAIRS = {
    "naive": (each(naive.naive_loss), naive.value_and_gradient),
    "confidence": (
        each(lambda z, q: confidence.confidence_loss(z, q, 0.3)),
        lambda z, q, labels: confidence.value_and_gradient(z, q, TRUST, labels),
    ),
}
for name, weight in adaptive_confidence.BETAS.items():
    for tau in (1.0, 4.0):
        options = {"weight": weight, "temperature": 2.0}
        PAIRS[f"adaptive {name}, tau {tau:g}"] = (
            each(functools.partial(adaptive_loss, tau=tau, **options)),
            lambda z, q, labels, tau=tau, options=options: adaptive_confidence.value_and_gradient(
                z, q, torch.tensor(0.7, dtype=torch.float64), labels, distill_temperature=tau, **options
            ),
        )


def autograd(loss, *inputs):
    """The value of loss(*inputs) in float64 at least, and its gradients."""
    inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    value = loss(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)


def close(ours, exact, room, scale=None):
    """The distance, relative to the norm of `exact` or to `scale`."""
    assert ours.shape == exact.shape and ours.isfinite().all()
    distance = (ours.double() - exact).norm() / (exact.norm() if scale is None else scale)
    assert distance <= room or (exact.norm() == 0 and ours.abs().max() <= room), distance


LABELS = {
    "no labels": lambda n, c, dtype: None,
    "labels": lambda n, c, dtype: torch.arange(n) % c,
    "mixed labels": lambda n, c, dtype: (0.75 * F.one_hot(torch.arange(n) % c, c) + 0.25 / c).to(dtype),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", ROOM)
@pytest.mark.parametrize("name", PAIRS)
def test_value_and_gradient_are_those_of_the_plain_loss(name, dtype, labels):
    plain, closed = PAIRS[name]
    student_logits, weak_probs = (part.to(dtype) for part in problem())
    if dtype in (torch.float16, torch.bfloat16):  # rows that sum to 1 in these types, too
        weak_probs = 0.375 * F.one_hot(weak_probs.argmax(-1), 5).to(dtype) + 0.125
    labels = LABELS[labels](12, 5, dtype)
    value, gradient, *_ = closed(student_logits.requires_grad_(), weak_probs, labels)
    doubled = labels.double() if labels is not None and labels.is_floating_point() else labels
    exact = autograd(lambda z: plain(z, weak_probs.double()) + label_loss(z, doubled), student_logits)
    assert value.dtype == torch.promote_types(dtype, torch.float32) and gradient.dtype == dtype
    assert not value.requires_grad and not gradient.requires_grad
    # float16 and bfloat16: only the result is rounded
    close(value, exact[0], min(ROOM[dtype], 2e-6))
    close(gradient, exact[1], ROOM[dtype])


HARD = {
    "extreme logits": lambda z, q: (1e4 * z, q),
    "equal logits": lambda z, q: (torch.zeros_like(z), q),
    "equal logits, far from 0": lambda z, q: (torch.full_like(z, -1e4), q),
    "one class": lambda z, q: (z[..., :1], torch.ones_like(q[..., :1])),
    "one sample": lambda z, q: (z[:1], q[:1]),
    "non-contiguous": lambda z, q: tuple(part.repeat_interleave(2, -1)[..., ::2] for part in (z, q)),
    "no doubt": lambda z, q: (z, F.one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype)),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("name", PAIRS)
def test_hard_cases(name, case):
    plain, closed = PAIRS[name]
    student_logits, weak_probs = HARD[case](*(part.float() for part in problem()))
    if case == "non-contiguous":
        assert not student_logits.is_contiguous() and not weak_probs.is_contiguous()
    value, gradient, *_ = closed(student_logits, weak_probs, None)
    exact = autograd(lambda z: plain(z, weak_probs.double()), student_logits)
    close(value, exact[0], 2e-6)
    close(gradient, exact[1], 2e-6)


@pytest.mark.parametrize("name", [name for name in PAIRS if name.count("adaptive") != 1])
def test_a_hundred_thousand_classes(name):
    plain, closed = PAIRS[name]
    student_logits, weak_probs = (part.float() for part in problem(n=4, s=1, c=100_000))
    value, gradient, *_ = closed(student_logits, weak_probs, None)
    exact = autograd(lambda z: plain(z, weak_probs.double()), student_logits)
    close(value, exact[0], 2e-6)
    close(gradient, exact[1], 2e-6)


def test_balanced():
    student_logits, weak_probs = problem(c=2)
    value, gradient = confidence.value_and_gradient(student_logits, weak_probs, 0.3, balanced=True)

    def plain(z, q):
        return confidence.confidence_loss(z, q, 0.3, confidence.own_class(z, q, balanced=True))

    exact = autograd(lambda z: each(plain)(z, weak_probs), student_logits)
    close(value, exact[0], 1e-12)
    close(gradient, exact[1], 1e-12)


def test_cross_entropy_with_labels_by_hand():
    """Two samples, two students, p = (1/4, 3/4) and (1/2, 1/2) for both samples, targets e_0."""
    log_p = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log().expand(2, 2, 2)
    targets = torch.tensor([1.0, 0.0]).expand(2, 2, 2)
    of_targets, of_class_1 = math.log(4) + math.log(2), math.log(4 / 3) + math.log(2)
    value, gradient = fast.cross_entropy(log_p, targets)
    assert value.item() == pytest.approx(of_targets)
    torch.testing.assert_close(gradient[1], torch.tensor([[-0.75, 0.75], [-0.5, 0.5]]) / 2)
    value, gradient = fast.cross_entropy(log_p, targets, torch.tensor([0, 1]))
    assert value.item() == pytest.approx(of_targets + (of_targets + of_class_1) / 2)
    torch.testing.assert_close(gradient[1], torch.tensor([[0.5 - 1, 1.5 - 1], [0.0, 0.0]]) / 2)
    mixed = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    value, gradient = fast.cross_entropy(log_p, targets, mixed)
    assert value.item() == pytest.approx(of_targets + (0.5 * of_targets + 1.5 * of_class_1) / 2)
    torch.testing.assert_close(gradient[0, 0], torch.tensor([0.5 - 1.5, 1.5 - 0.5]) / 2)


def test_disagreement_by_hand():
    """Two of three samples differ; b = ramp * sigmoid((z_w - z_k) / T) there: sigmoid(-2), sigmoid(-1)."""
    student_logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])[:, None]
    weak_probs = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.8, 0.2]])[:, None]
    *_, disagreement = adaptive_confidence.value_and_gradient(student_logits, weak_probs, 0.5)
    expected = torch.tensor([2.0, 0.5 * (torch.tensor(-2.0).sigmoid() + torch.tensor(-1.0).sigmoid())])
    torch.testing.assert_close(disagreement, expected)


# ------------------------------------------------------------------------------------------------------ RAVEN


def mean_cross_entropy(student_logits, weak_probs):
    """Mean |CE(q_m, p)|: what the weights' gradient is a difference of."""
    log_p = student_logits.double().log_softmax(-1)
    return (weak_probs.double() * log_p).sum(-1).abs().mean()


def raven_problem(m=3, c=5, n=12):
    student_logits, weak_probs = problem(n=n, s=m, c=c)
    weights = torch.linspace(1, 2, m, dtype=torch.float64)
    return student_logits[:, :1], weak_probs, weights / weights.sum(), torch.arange(n) % 3 != 1


def check_raven(student_logits, weak_probs, weights, keep, labels, combination, room):
    value, gradient, weight_gradient = raven.value_and_gradient(
        student_logits, weak_probs, weights, keep, labels, combination
    )
    labels = labels.double() if labels is not None and labels.is_floating_point() else labels

    def plain(z, w):
        return raven.raven_loss(z[:, 0], weak_probs.double(), w, keep, combination) + label_loss(z, labels)

    exact = autograd(plain, student_logits, weights)
    close(value, exact[0], room)
    close(gradient, exact[1], room)
    close(weight_gradient, exact[2], room, scale=mean_cross_entropy(student_logits, weak_probs))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", ROOM)
@pytest.mark.parametrize("m", [1, 3, 10])
@pytest.mark.parametrize("combination", [raven.combine, raven.combine_logits])
def test_raven_against_autograd(combination, m, dtype, labels):
    student_logits, weak_probs, weights, keep = raven_problem(m)
    if combination is raven.combine_logits:
        weak_probs = 0.98 * weak_probs + 0.004  # in lower precision log 0 is another number
    if dtype != torch.float64:
        weights = weights.float()
    arguments = (student_logits.to(dtype), weak_probs.to(dtype), weights, keep)
    # In half precision the rows do not sum to 1: the formulas hold for any sum.
    check_raven(*arguments, LABELS[labels](12, 5, dtype), combination, ROOM[dtype])


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("combination", [raven.combine, raven.combine_logits])
def test_hard_cases_of_raven(combination, case):
    student_logits, weak_probs, weights, keep = raven_problem()
    if combination is raven.combine_logits:
        weak_probs = (weak_probs + 0.01) / (weak_probs + 0.01).sum(-1, keepdim=True)
    student_logits, weak_probs = HARD[case](student_logits.float(), weak_probs.float())
    if case == "no doubt":  # what log 0 is depends on the type
        weak_probs = weak_probs.clamp(min=torch.finfo(torch.float32).tiny)
    arguments = (student_logits, weak_probs, weights.float(), keep[: len(student_logits)])
    check_raven(*arguments, None, combination, 2e-6)


@pytest.mark.parametrize("combination", [raven.combine, raven.combine_logits])
def test_raven_with_a_hundred_thousand_classes(combination):
    student_logits, weak_probs, weights, keep = raven_problem(c=100_000, n=4)
    weak_probs = 0.5 * weak_probs + 0.5e-5
    # A float32 softmax over that many classes sums to 1 up to 2e-5.
    check_raven(student_logits.float(), weak_probs.float(), weights.float(), keep, None, combination, 5e-5)


@pytest.mark.parametrize("combination", [raven.combine, raven.combine_logits])
def test_raven_with_rows_and_weights_of_any_sum(combination):
    student_logits, weak_probs, weights, keep = raven_problem()
    scale = torch.linspace(0.5, 2, 12).double()[:, None, None]
    weak_probs = scale * (0.98 * weak_probs + 0.004)
    check_raven(student_logits, weak_probs, 3 * weights, keep, None, combination, 1e-12)


def test_a_sample_that_does_not_count_has_no_gradient():
    arguments = raven_problem()
    _, gradient, _ = raven.value_and_gradient(*arguments)
    assert (gradient[~arguments[3]] == 0).all() and (gradient[arguments[3]] != 0).any()


# --------------------------------------------------------------------------------------------------- compiled


compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")


def compiled_cases():
    """name -> function, its arguments."""
    z, q = (part.float() for part in problem())
    labels, trust = torch.arange(12) % 5, torch.tensor(0.3)
    apart, pairs = HARD["non-contiguous"](z, q), (z[..., :2].mT.contiguous().mT, q[..., :2].softmax(-1))
    select = adaptive_confidence.BETAS["select"]
    adaptive = adaptive_confidence.value_and_gradient
    cases = {
        "naive": (naive.value_and_gradient, (z, q)),
        "naive, mixed labels": (naive.value_and_gradient, (z, q, q[:, 0])),
        "naive, float16": (naive.value_and_gradient, (z.half(), q.half())),
        "confidence": (confidence.value_and_gradient, (z, q, trust, labels)),
        "confidence, float64": (confidence.value_and_gradient, (z.double(), q.double(), trust.double())),
        "confidence, balanced pairs": (confidence.value_and_gradient, (*pairs, trust, None, True)),
        "adaptive": (adaptive, (z, q, trust)),
        "adaptive, apart in memory": (adaptive, (*apart, trust)),
        "adaptive, bfloat16": (adaptive, (z.bfloat16(), q.bfloat16(), trust)),
        "adaptive, select, tau 4": (adaptive, (z, q, trust, labels, select, 1.0, 4.0)),
    }
    student_logits, weak_probs, weights, keep = raven_problem()
    for combination in (raven.combine, raven.combine_logits):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            arguments = (student_logits.to(dtype), weak_probs.to(dtype), weights.to(dtype), keep)
            name = f"raven, {combination.__name__}, {dtype}"
            cases[name] = (raven.value_and_gradient, (*arguments, labels, combination))
    return cases


@compiler
@pytest.mark.parametrize("case", compiled_cases())
def test_compiled_and_eager_agree(case, capsys):
    function, arguments = compiled_cases()[case]
    torch.compiler.reset()
    counters.clear()
    kernels = fast.compiled(function, True)
    for size in (12, 5, 1):  # a batch, a smaller one, and a single sample
        of_samples = [torch.is_tensor(each) and each.shape[:1] == (12,) for each in arguments]
        own = [each[:size] if sampled else each for each, sampled in zip(arguments, of_samples)]
        room = {torch.float32: 1e-6, torch.float64: 1e-12}.get(arguments[0].dtype, 1e-2)
        for i, (ours, eager) in enumerate(zip(kernels(*own), function(*own), strict=True)):
            assert ours.dtype == eager.dtype
            of_weights = function is raven.value_and_gradient and i == 2
            close(ours, eager.double(), room, mean_cross_entropy(*own[:2]) if of_weights else None)
    assert "does not work here" not in capsys.readouterr().err
    assert counters["frames"]["ok"] == counters["frames"]["total"] > 0  # nothing was left to Python


@compiler
def test_one_process_may_compile_for_many_tasks():
    """Methods, numbers of students and classes, with labels and without: more than the compiler's usual 8."""
    torch.compiler.reset()
    counters.clear()
    for s, c, n in itertools.product((1, 3), (2, 5), (12, 7)):
        z, q = (part.float() for part in problem(n=n, s=s, c=c))
        for labels in (None, torch.arange(n) % c):
            fast.compiled(naive.value_and_gradient, True)(z, q, labels)
            fast.compiled(confidence.value_and_gradient, True)(z, q, torch.tensor(0.5), labels)
    assert counters["stats"]["unique_graphs"] > 8
    assert counters["frames"]["ok"] == counters["frames"]["total"]


@pytest.mark.parametrize("at_once", [True, False])
def test_without_a_compiler_it_runs_eagerly_and_says_so_once(at_once, capsys, monkeypatch):
    """Whether torch.compile fails itself or what it returns."""

    def broken(*arguments, **options):
        raise RuntimeError("no compiler\nand a long traceback")

    monkeypatch.setattr(torch, "compile", broken if at_once else lambda function, options: broken)
    function = fast.compiled(naive.value_and_gradient, True)
    z, q = problem()
    for _ in range(2):
        for ours, eager in zip(function(z, q), naive.value_and_gradient(z, q)):
            assert torch.equal(ours, eager)
    line = "torch.compile does not work here, so it runs without: no compiler\n"
    assert capsys.readouterr().err == line
    assert fast.compiled(naive.value_and_gradient, False) is naive.value_and_gradient


@pytest.mark.parametrize("choice, device, on", [
    ("auto", "cpu", False), ("auto", "cuda:1", True), ("on", "cpu", True), ("off", "cuda", False),
])  # fmt: skip
def test_what_the_flag_means(choice, device, on):
    assert fast.wanted(choice, device) is on


# --------------------------------------------------------------------------------------------------- captured


class Tape(TorchDispatchMode):
    """Records what is computed, with the numbers that Python gave; computes it again in the same tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        self.calls.append((function, arguments, options or {}, results))
        return results

    @torch.no_grad()
    def replay(self):
        for function, arguments, options, results in self.calls:
            again = function(*arguments, **options)
            for place, result in zip(tree_leaves(results), tree_leaves(again)):
                if torch.is_tensor(place):
                    place.copy_(result)


@pytest.fixture
def graphs(monkeypatch):
    """CUDA graphs' stand-in on a CPU. Recording runs the step here, so that its first replay does nothing."""
    seen = []

    def capture(step, places, stream, pool):
        seen.append(places)
        with Tape() as tape:
            step(*places)
        runs = iter([lambda: None])
        return lambda: next(runs, tape.replay)()

    monkeypatch.setattr(fast, "capturable", lambda compiled, x: compiled)
    monkeypatch.setattr(fast, "compiled", lambda function, on: function)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(fast, "warm_up", lambda step, arguments, stream: step(*arguments))
    monkeypatch.setattr(fast, "capture", capture)
    return seen


def train(method, x=None, **settings):
    """The head of a student, and what train_student returns, after 6 epochs of 4 steps and a smaller one."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(140, 6, generator=generator) if x is None else x
    weak_probs = torch.randn(140, 3, 5, generator=generator).softmax(-1).to(x.device)
    student = models.LinearHeads(6, 5, 1 if method is raven else 3, False).to(x.device)
    recipe = {"epochs": 6, "lr": 1e-2, "batch_size": 32, "seed": 0}
    recipe["labels"] = torch.arange(140, device=x.device) % 5
    own = {
        confidence: {"alpha": 0.5, "alpha_ramp": 0.6},
        adaptive_confidence: {"temperature": 2.0, "distill_temperature": 1.0, "beta_ramp": 0.7},
        raven: {"weight_lr": 0.1, "easy_phase": 0.4, "combination": raven.combine},
    }
    history = method.train_student(
        student=student, x=x, weak_probs=weak_probs, **recipe, **own.get(method, {}), **settings
    )
    return student.linear.weight.detach(), history


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("method", METHODS)
def test_captured_steps_are_the_plain_ones(method, optimizer, graphs):
    """What changes from step to step reaches a captured one: batch, rate, ramp, RAVEN's weights and phase."""
    plain, history = train(method, optimizer=optimizer)
    assert not graphs
    head, again = train(method, optimizer=optimizer, compiled=True)
    torch.testing.assert_close(head, plain, rtol=1e-5, atol=1e-7)
    if history is not None:
        torch.testing.assert_close(torch.as_tensor(again), torch.as_tensor(history), rtol=1e-5, atol=1e-7)
    # Full and smaller batches; RAVEN has full ones in both phases, and in either only 3 smaller ones.
    assert [len(places[0]) for places in graphs] == ([32, 32] if method is raven else [32, 12])


def test_a_captured_step_owns_its_arguments(graphs):
    total = torch.zeros(2)
    step = fast.captured(lambda x, factor: total.add_(factor * x), True)
    x = torch.ones(2)
    for i in range(6):
        x.fill_(i)
        step(x, 2)
    x.fill_(100)
    step(torch.full((2,), 6.0), 2)
    assert total.tolist() == [42.0, 42.0] and len(graphs) == 1  # 2 * (0 + ... + 6)
    assert x.tolist() == [100, 100]  # which a replay does not write to
    step(torch.ones(2), 3)
    assert total.tolist() == [45.0, 45.0]  # other values that are no tensors are another graph


def test_where_nothing_can_be_captured_the_steps_are_plain(graphs, monkeypatch, capsys):
    def broken(step, places, stream, pool):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(fast, "capture", broken)
    total = torch.zeros(1)
    step = fast.captured(total.add_, True)
    for _ in range(6):
        step(torch.ones(1))
    assert total.item() == 6
    line = "a CUDA graph does not work here, so it runs without: operation not permitted\n"
    assert capsys.readouterr().err == line


def test_weights_stay_where_a_graph_finds_them(monkeypatch):
    places, value_and_gradient = set(), raven.value_and_gradient

    def spy(student_logits, weak_probs, weights, *rest):
        places.add(weights.data_ptr())
        return value_and_gradient(student_logits, weak_probs, weights, *rest)

    monkeypatch.setattr(raven, "value_and_gradient", spy)
    train(raven)
    assert len(places) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_compiled_and_captured_steps_are_the_plain_ones(method, capsys):
    x = torch.randn(140, 6, generator=torch.Generator().manual_seed(2)).cuda()
    plain, history = train(method, x=x)
    head, again = train(method, x=x, compiled=True)
    torch.testing.assert_close(head, plain, rtol=1e-4, atol=1e-5)
    if history is not None:
        torch.testing.assert_close(torch.as_tensor(again), torch.as_tensor(history), rtol=1e-4, atol=1e-5)
    assert "does not work here" not in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the whole


@compiler
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_loop_ends_where_the_plain_one_does(method):
    torch.compiler.reset()
    plain, history = train(method)
    head, again = train(method, compiled=True)
    torch.testing.assert_close(head, plain, rtol=1e-4, atol=1e-5)
    if history is not None:
        torch.testing.assert_close(torch.as_tensor(again), torch.as_tensor(history), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_optimizer_and_number_of_steps_reach_the_loop_and_students_train(method, monkeypatch):
    seen, modes, make, forward = [], set(), training.make_optimizer, models.LinearHeads.forward

    def spy(kind, student, lr, steps, **options):
        student.eval()  # from where the loop has to take it
        seen.append((kind, lr, steps, *make(kind, student, lr, steps, **options)))
        return seen[0][3:]

    monkeypatch.setattr(training, "make_optimizer", spy)
    monkeypatch.setattr(models.LinearHeads, "forward", lambda s, x: modes.add(s.training) or forward(s, x))
    train(method, optimizer="sgd")
    [(kind, lr, steps, _, schedule)] = seen
    assert (kind, lr, steps, schedule.last_epoch) == ("sgd", 1e-2, 30, 30) and modes == {True}


@pytest.mark.parametrize("method", METHODS)
def test_the_flag_reaches_the_loop(method, npz, monkeypatch):
    seen, flags = [], ["--task", npz, "--seeds", "0", "--epochs", "1", "--device", "cpu"]
    monkeypatch.setattr(fast, "compiled", lambda function, on: seen.append(on) or function)
    for choice in ("auto", "on", "off"):
        [row] = method.main([*flags, "--compile", choice])
        assert row["flags"]["compile"] == choice
    assert seen == [False, True, False]


def test_without_a_compiler_a_script_says_one_line(npz):
    """A real run that finds no compiler: no traceback, and a row."""
    command = [sys.executable, ROOT / "methods" / "naive.py", "--task", npz, "--seeds", "0", "--epochs", "2"]
    environment = os.environ | {"CXX": "/no/such/compiler", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run(
        [*command, "--compile", "on", "--device", "cpu"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and '"student"' in done.stdout
    assert done.stderr.count("torch.compile does not work here") == 1 and "Traceback" not in done.stderr
