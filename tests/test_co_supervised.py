"""methods/co_supervised.py: its equations against loops and by hand, and the specialists of teachers.py."""

import math

import co_supervised
import naive
import pytest
import torch
import torch.nn.functional as F
from conftest import random_problem, run_script

import data
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


def test_a_teacher_without_doubt_is_infinitely_far_where_the_student_doubts():
    q = torch.tensor([[[1.0, 0.0], [0.4, 0.6]]])
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
    calls = []

    def train(keep, targets):
        calls.append((keep, targets))
        return len(calls), z * len(calls)

    layers = [weak_probs[:, :1], weak_probs, weak_probs[:, 1:]]
    student, targets, keep = co_supervised.co_supervise(train, layers)
    assert student == len(calls) == 3 and calls[0][0].all() and calls[0][1].equal(weak_probs[:, 0])
    for depth, layer in (1, layers[1]), (2, layers[2]):
        expected = co_supervised.assign(depth * z, layer)
        assert calls[depth][1].equal(expected)
        assert calls[depth][0].equal(co_supervised.consistent(depth * z, expected, top=1))
    assert targets.equal(expected) and keep.equal(calls[2][0]) and 0 < keep.sum() < 40


def test_a_hierarchy_is_nested_down_to_single_domains():
    assert teachers.hierarchy(["a", "b", "c"]) == [["a+b+c"], ["a+b", "c"], ["a", "b", "c"]]
    assert teachers.hierarchy(["a"]) == [["a"]]
    assert teachers.hierarchy([*"abcdef"])[2] == ["a+b", "c", "d+e", "f"]


@pytest.mark.parametrize("name", ["reviews-shift", "preferences-shift"])
def test_specialists_know_what_their_domains_hold(name):
    task = data.load(name, 0)._replace(encoder="of choice")
    found = teachers.specialists(task)
    assert list(found) == ["books+films+games", "books+films", "games", "books", "films"]
    assert sorted(found["books+films+games"].x) == sorted(task.weak_train.x)
    truth = dict(zip(task.weak_train.x, task.weak_train.y.tolist()))
    for own, split in found.items():
        words = {word for domain in own.split("+") for word in text.DOMAINS[domain].products}
        assert all({str(each).strip("('").split()[0]} <= words for each in split.x)
        assert [truth[each] for each in split.x] == split.y.tolist()


def test_specialists_of_files_are_the_usual_weak_models_and_more(amazon):
    """Two sources, of which each has a weak model anyway."""
    (amazon / "dvd.jsonl").write_text((amazon / "books.jsonl").read_text().replace("books", "dvd"))
    known = data.resolve("text:books+dvd:kitchen")
    given = (known, 0, str(amazon), "cpu", 1)
    usual, task = teachers.supervise(*given), teachers.supervise(*given, weak_models="specialists")
    assert usual.weak_models == ["books", "dvd"] and task.weak_models == ["books+dvd", "books", "dvd"]
    torch.testing.assert_close(task.test.weak_probs[:, 1:], usual.test.weak_probs)


def test_the_last_student_learns_from_what_is_kept(amazon, monkeypatch):
    """Three domains, so three layers, whose teachers are found by name; of each sample its own label."""
    seen, labelled, learned = [], [], []
    co_supervise, train_student = co_supervised.co_supervise, naive.train_student

    def see(train, layers, top):
        seen.append(layers)
        return co_supervise(lambda *given: labelled.append(given) or train(*given), layers, top)

    def learn(student, batches, **more):
        learned.append(batches.parts)
        train_student(student, batches, **more)

    monkeypatch.setattr(co_supervised, "consistent", lambda z, *_: torch.arange(len(z)) % 3 > 0)
    monkeypatch.setattr(co_supervised, "co_supervise", see)
    monkeypatch.setattr("methods.naive.train_student", learn)
    books = (amazon / "books.jsonl").read_text()
    for domain in ("dvd", "music"):
        words = books.replace("books", domain).replace("bad", f"bad {domain}")
        (amazon / f"{domain}.jsonl").write_text(words)
    name = "text:books+dvd+music:kitchen"
    given = ["--task", name, "--data-dir", str(amazon), "--seeds", "0", "--lr", "1e-2"]
    [row] = run_script(co_supervised, *given)
    task = teachers.supervise(data.resolve(name), 0, str(amazon), "cpu", 800, weak_models="specialists")
    of = dict(zip(task.weak_models, task.strong_train.weak_probs.unbind(1)))
    layers = [["books+dvd+music"], ["books+dvd", "music"], ["books", "dvd", "music"]]
    for layer, names in zip(*seen, layers, strict=True):
        assert layer.equal(torch.stack([of[each] for each in names], 1))
    for (keep, targets), (x, labels) in zip(labelled, learned, strict=True):
        assert x.equal(task.strong_train.x[keep]) and labels.equal(targets[keep])
    assert row["flags"] == {"lr": 0.01} and row["kept"] == pytest.approx(2 / 3, abs=0.02)


def test_it_is_for_specialists_and_searched_where_there_are_some():
    with pytest.raises(data.InputError, match="is for --weak-models specialists"):
        run_script(co_supervised, "--weak-models", "3")
    with pytest.raises(data.InputError, match="has not searched for co_supervised on tasks of kind image"):
        run_script(co_supervised, "--task", "glyphs-shift", "--protocol")


def test_one_source_is_refused_in_one_line(amazon):
    image = amazon / "books" / "0" / "a.jpg"
    for i in range(100):  # a domain of two classes
        copy = image.parents[1] / str(i % 2) / f"{i}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(str(i))
    for name in ("glyphs", "text:books:kitchen", "folder:books"):
        with pytest.raises(data.InputError, match="specialists need a task of several source domains"):
            run_script(co_supervised, "--task", name, "--data-dir", str(amazon), "--seeds", "0")
