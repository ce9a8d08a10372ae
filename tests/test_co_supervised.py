"""methods/co_supervised.py: its equations against loops and by hand, and the specialists of teachers.py."""

import math
from types import SimpleNamespace
from unittest.mock import Mock

import co_supervised
import pytest
import torch
import torch.nn.functional as F
from conftest import random_problem, run_script

import data
import evaluate
import teachers
from tasks import text


def test_assignment_against_a_loop():
    z, weak_probs = random_problem()
    found, nearest = co_supervised.assign(z, weak_probs), []
    for logits, q, assigned in zip(z, weak_probs.tolist(), found.tolist()):
        p = [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
        distances = [sum(a * math.log(a / b) for a, b in zip(p, each)) for each in q]
        nearest.append(distances.index(min(distances)))
        assert assigned == q[nearest[-1]]
    assert set(nearest) == {0, 1, 2}
    q = torch.tensor([[[1.0, 0.0], [0.4, 0.6]]])  # the first never doubts: far from a student who does
    assert co_supervised.assign(torch.tensor([[3.0, 0.0]]), q).equal(q[:, 1])
    assert co_supervised.assign(torch.tensor([[300.0, 0.0]]), q).equal(q[:, 0])


def test_what_is_kept_by_hand():
    """Three of four labels are among the two classes that the student names first: the three likeliest stay,
    which are not these three."""
    p = torch.tensor([[0.5, 0.3, 0.2], [0.40, 0.35, 0.25], [0.9, 0.06, 0.04], [0.5, 0.4, 0.1]])
    targets = F.one_hot(torch.tensor([0, 2, 1, 1]), 3).float()
    assert co_supervised.consistent(p.log(), targets, top=2).tolist() == [True, True, False, True]
    assert co_supervised.consistent(p.log(), targets, top=1).tolist() == [True, False, False, False]
    assert co_supervised.consistent(p.log(), targets, top=5).all()


def test_each_layer_is_judged_by_the_student_of_the_last():
    z, weak_probs = random_problem(n=40)
    train = Mock(side_effect=[(1, z), (2, 2 * z), (3, 3 * z)])
    layers = [weak_probs[:, :1], weak_probs, weak_probs[:, 1:]]
    student, targets, keep = co_supervised.co_supervise(train, layers, top=2)
    (everything, alone), *later = (call.args for call in train.call_args_list)
    assert everything.all() and alone.equal(weak_probs[:, 0])
    for depth, (kept, labels) in enumerate(later, start=1):
        assert labels.equal(co_supervised.assign(depth * z, layers[depth]))
        assert kept.equal(co_supervised.consistent(depth * z, labels, top=2))
    assert student == 3 and targets.equal(labels) and keep.equal(kept) and 0 < keep.sum() < 40


def test_a_hierarchy_is_nested_down_to_single_domains():
    assert teachers.hierarchy(["a", "b", "c"]) == [["a+b+c"], ["a+b", "c"], ["a", "b", "c"]]
    assert teachers.hierarchy(["a"]) == [["a"]]
    assert teachers.hierarchy([*"abcdef"])[2] == ["a+b", "c", "d+e", "f"]


@pytest.mark.parametrize("name", ["reviews", "preferences"])
def test_specialists_know_what_their_domains_hold(name, monkeypatch):
    monkeypatch.setattr(data, "TEXT_SIZES", dict.fromkeys(data.TEXT_SIZES, 50))
    task = data.load(name, 0)
    found = teachers.specialists(task)
    assert list(found) == ["books+films+games", "books+films", "games", "books", "films"]
    assert sorted(found["books+films+games"].x) == sorted(task.weak_train.x)
    truth = dict(zip(task.weak_train.x, task.weak_train.y.tolist()))
    for own, split in found.items():
        words = {word for domain in own.split("+") for word in text.DOMAINS[domain].products}
        assert all({str(each).strip("('").split()[0]} <= words for each in split.x)
        assert [truth[each] for each in split.x] == split.y.tolist()


@pytest.mark.parametrize("kind, x", [("image", torch.rand(2, 1, 28, 28)), ("text", ["good", "bad"])])
def test_samples_of_unknown_domains_have_no_specialists(kind, x):
    task = SimpleNamespace(kind=kind, weak_train=data.Split(x, torch.zeros(2)))
    with pytest.raises(data.InputError, match="specialists need a task of several source domains"):
        teachers.specialists(task)


def test_a_student_is_trained_on_what_is_kept(npz, monkeypatch):
    train = Mock()
    monkeypatch.setattr("methods.naive.train_student", train)
    [problem] = evaluate.problems(evaluate.flags("co.py", "about"), ["--task", npz, "--seeds", "0"])
    x, _, weak_probs, _ = problem.task.strong_train
    keep = torch.arange(len(x)) % 3 > 0
    _, student_logits = co_supervised.train_on(problem, keep, weak_probs[:, 1])
    learned, targets = train.call_args.kwargs["batches"].parts
    assert learned.equal(x[keep]) and targets.equal(weak_probs[keep, 1]) and len(student_logits) == len(x)


def test_the_layers_are_the_specialists_and_those_of_one_domain_the_usual_weak_models(amazon, monkeypatch):
    co_supervise = Mock(wraps=co_supervised.co_supervise)
    monkeypatch.setattr(co_supervised, "co_supervise", co_supervise)
    books = (amazon / "books.jsonl").read_text()
    (amazon / "dvd.jsonl").write_text(books.replace("books", "dvd").replace("bad", "bad dvd"))
    flags = ["--data-dir", str(amazon), *"--task text:books+dvd:kitchen --seeds 0 --top 2".split()]
    [row] = run_script(co_supervised, *flags)
    assert row["weak_models"] == ["books+dvd", "books", "dvd"] and row["kept"] == 1
    given = (data.resolve("text:books+dvd:kitchen"), 0, str(amazon), "cpu", 800)
    task, usual = teachers.supervise(*given, weak_models="specialists"), teachers.supervise(*given)
    _, (generalist, specialists), top = co_supervise.call_args.args
    assert generalist.equal(task.strong_train.weak_probs[:, :1]) and top == 2
    torch.testing.assert_close(specialists, usual.strong_train.weak_probs)


def test_it_is_for_specialists_and_searched_where_there_are_some():
    with pytest.raises(data.InputError, match="is for --weak-models specialists"):
        run_script(co_supervised, "--weak-models", "3")
    with pytest.raises(data.InputError, match="has not searched for co_supervised on tasks of kind image"):
        run_script(co_supervised, "--task", "glyphs-shift", "--protocol")
