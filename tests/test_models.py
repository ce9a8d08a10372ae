"""Students, training, weak models, what a student is given, and what is kept on disk."""

import math
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

import data
import models
import store
import teachers
from tasks import images


def test_a_linear_head_starts_from_zero_and_a_pair_shares_one_reward():
    head, pairs = models.LinearHead(6, 4, pairs=False), torch.randn(5, 2, 6)
    assert not head.weight.any() and not head.bias.any() and head(pairs[:, 0]).shape == (5, 4)
    shared = models.LinearHead(6, 2, pairs=True)
    torch.nn.init.normal_(shared.weight)
    torch.testing.assert_close(shared(pairs), pairs @ shared.weight[0] + shared.bias)


def test_batches_hold_every_sample_once_an_epoch_in_an_order_fixed_by_the_seed():
    def order(seed):
        batches = models.Batches((torch.arange(10), -torch.arange(10)), 4, seed, lambda x, y: (x, y + 100))
        drawn = [batch for _ in range(2) for batch in batches]
        assert len(batches) == 3 and [len(x) for x, _ in drawn] == [4, 4, 2] * 2
        assert all(torch.equal(y, 100 - x) for x, y in drawn)
        return torch.cat([x for x, _ in drawn]).tolist()

    first = order(0)
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10)) and first[:10] != first[10:]
    assert order(0) == first != order(1)


@pytest.mark.parametrize("length", [2, 7])
def test_an_epoch_of_given_length_goes_on_where_the_last_stopped(length):
    passes, epochs = (models.Batches((torch.arange(10),), 4, 0, length=n) for n in (None, length))
    assert len(epochs) == length
    drawn = [x.tolist() for _ in range(6) for (x,) in epochs]
    assert drawn == [x.tolist() for _ in range(2 * length) for (x,) in passes][: 6 * length]


def test_fit_learns_and_is_fixed_by_the_seed():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    recipe = {"epochs": 5, "lr": 0.05, "batch_size": 32}
    heads = [models.LinearHead(6, 2, pairs=False) for _ in range(3)]
    first, again, other = (models.fit(head, x, y, seed=i, **recipe) for head, i in zip(heads, (0, 0, 1)))
    assert (models.predict(first, x).argmax(-1) == y).float().mean() > 0.95 and not first.training
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)


def test_adam_decays_by_a_cosine_to_zero():
    optimizer, schedule = models.make_optimizer("adam", torch.nn.Linear(2, 2), 0.2, 8)
    rates = [(schedule.get_last_lr()[0], optimizer.step(), schedule.step())[0] for _ in range(9)]
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * step / 8)) for step in range(9)])


def test_sgd_by_hand():
    """On the loss 3 w: Nesterov momentum .9, weight decay 5e-4, 3 of 50 steps of warm-up, cosine to .002."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    optimizer, schedule = models.make_optimizer("sgd", model, 0.2, 50)
    weight, velocity = model.weight.item(), 0.0
    for step in range(50):
        rate = 0.002 + 0.198 * (1 + math.cos(math.pi * (step - 3) / 47)) / 2
        rate = 0.2 * (step + 1) / 3 if step < 3 else rate
        gradient = 3 + 5e-4 * weight
        velocity = 0.9 * velocity + gradient
        weight -= rate * (gradient + 0.9 * velocity)
        optimizer.zero_grad()
        model(torch.full((1, 1), 3.0, dtype=torch.float64)).sum().backward()
        optimizer.step()
        schedule.step()
        assert model.weight.item() == pytest.approx(weight, rel=1e-9)


def test_image_weak_models_differ_in_what_they_learn_from(monkeypatch):
    seen = []
    monkeypatch.setattr(models, "fit", lambda *given, **_: seen.append(given) or given[0])
    split = data.Split(torch.rand(1000, 1, 28, 28), torch.arange(10).repeat(100))
    first, again, other = (teachers.image_weak_models(split, 10, seed, "cpu") for seed in (0, 0, 1))
    for name in ("linear", "mlp", "cnn"):
        logits = first[name](split.x[:3])
        assert logits.equal(again[name](split.x[:3])) and not logits.equal(other[name](split.x[:3]))
    (_, x, y), (_, mlp_x, noisy), (_, few, few_y) = seen[:3]
    assert x is split.x is mlp_x and y.equal(split.y) and few_y.equal(y[:500].repeat(2))
    assert abs((noisy != y).double().mean() - 0.27) < 0.04  # a tenth of 30 % happen to be right
    noise = few - torch.cat([x[:500], 1 - x[:500]])
    assert abs(noise.std() - 0.2) < 0.01 and abs(noise.mean()) < 0.01


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache of its own, as its key does not see what a test patches; small splits."""
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(data, "SIZES", {"weak_train": 200, "strong_train": 100, "val": 50, "test": 100})


def test_nobody_sees_what_is_not_for_them(fresh, monkeypatch):
    """The weak models get the source domain alone; what comes out belongs to its own split, standardised by
    strong_train."""
    plain, seen = data.load("glyphs-shift", seed=0), []
    weak_models = {"a": lambda x: x.flatten(1)[:, 300:310], "b": lambda x: x.flatten(1)[:, 400:410]}
    monkeypatch.setattr(teachers, "image_weak_models", lambda split, *_: seen.append(split) or weak_models)
    monkeypatch.setattr(models, "encode", lambda task, x, *_: x.flatten(1)[:, ::7])
    task = teachers.supervise(data.resolve("glyphs-shift"), 0, None, "cpu", 1)
    assert len(seen) == 1 and all(map(torch.equal, seen[0][:2], plain.weak_train[:2]))
    std, mean = torch.std_mean(plain.strong_train.x.flatten(1)[:, ::7], dim=0, correction=0)
    for before, after in zip(plain[3:6], task[3:6]):
        expected = torch.stack([logits(before.x) for logits in weak_models.values()], 1).softmax(-1)
        torch.testing.assert_close(after.weak_probs, expected)
        features = (before.x.flatten(1)[:, ::7] - mean) / (std + 1e-6)
        torch.testing.assert_close(after.x, features, rtol=1e-3, atol=1e-3)
        assert torch.equal(after.y, before.y)


def test_real_networks_and_an_encoder_pretrained_on_letters_only(fresh, monkeypatch):
    drawn, draw_atlas = [], images.draw_atlas
    monkeypatch.setattr(images, "draw_atlas", lambda chars: drawn.append(chars) or draw_atlas(chars))
    task = teachers.supervise(data.resolve("glyphs-shift-0.1"), 0, None, "cpu", 2)
    assert drawn == [images.DIGITS] * 4 + [images.LETTERS] and not set(images.LETTERS) & set(images.DIGITS)
    correct = (task.test.weak_probs.argmax(-1) == task.test.y[:, None]).float().mean(0)
    assert len(correct) == 3 and (correct > 0.2).all()
    assert task.strong_train.x.shape == (100, 384) and task.test.x.isfinite().all()


def test_supervision_is_computed_again_for_other_arguments_only(fresh, monkeypatch):
    calls, split = [], data.Split(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    task = data.Task("image", 10, None, split, split, split, "none", [])
    monkeypatch.setattr(teachers, "label_and_encode", lambda task, *given: calls.append(given) or task)
    Path("here").mkdir()
    changes = [{}, {}, {"name": "b"}, {"seed": 1}, {"folder": "here"}, {"steps": 2}, {"text_encoder": "c"}]
    for change in changes:
        given = {"name": "a", "seed": 0, "folder": None, "device": "cpu", "steps": 1} | change
        known = data.Known(given.pop("name"), lambda *_: task, data.HEAD, has_files=True)
        teachers.supervise(known, **given)
    assert len(calls) == len(changes) - 1


def test_a_npz_is_standardised(npz):
    plain, task = data.load(npz, 0), teachers.supervise(data.resolve(npz), 0, None, "cpu", 1)
    std, mean = torch.std_mean(plain.strong_train.x, dim=0, correction=0)
    torch.testing.assert_close(task.val.x, (plain.val.x - mean) / std, rtol=1e-4, atol=1e-4)
    assert torch.equal(task.val.weak_probs, plain.val.weak_probs)


def test_a_fingerprint_is_of_names_and_contents_not_of_place_and_time():
    Path("folder/inner").mkdir(parents=True)
    Path("folder/inner/a").write_text("1")
    first = data.fingerprint("folder")
    Path("folder").rename("moved")
    os.utime("moved/inner/a", (0, 0))
    assert data.fingerprint("moved") == first
    Path("moved/inner/a").rename("moved/inner/c")
    renamed = data.fingerprint("moved")
    Path("moved/inner/c").write_text("3")
    assert len({first, renamed, data.fingerprint("moved")}) == 3


def test_cache_depends_on_arguments_and_versions_and_replaces_what_is_damaged(fresh, monkeypatch):
    def is_computed(n):
        calls = []
        value = store.cached("square", lambda: calls.append(n) or torch.full((99,), n * n), n=n)
        assert value[0] == n * n
        return bool(calls)

    assert [is_computed(n) for n in (2, 2, 3)] == [True, False, True]
    four = torch.tensor(4).numpy().tobytes()
    for damage in (lambda held: held[:-20], lambda held: held.replace(four, b"99999999", 1)):
        for file in store.CACHE.glob("*.pt"):
            file.write_bytes(damage(file.read_bytes()))
        assert [is_computed(n) for n in (2, 2)] == [True, False]
    for owner, name in ((store, "VERSION"), (torch, "__version__")):
        monkeypatch.setattr(owner, name, "another")
        assert is_computed(2)


IDENTITY = {"method": "m", "task": "t", "data": None, "seed": 0, "version": 1, "flags": {"lr": 0.1}}


def test_an_interrupted_write_leaves_the_old_file():
    def die(file):
        file.write(b"half")
        raise KeyboardInterrupt

    path = Path("rows.jsonl")
    store.write_atomically(path, lambda file: file.write(b"whole"))
    with pytest.raises(KeyboardInterrupt):
        store.write_atomically(path, die)
    assert path.read_text() == "whole"


def save_rows(process):
    for seed in range(40):
        store.save_row("out", IDENTITY | {"seed": seed}, {"process": process})
        store.save_row("out", IDENTITY | {"seed": seed, "task": process}, {"process": process})


def test_two_processes_lose_no_row_and_write_none_twice():
    store.commit()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(save_rows, "ab")
    rows = store.read_rows(Path("out/m.jsonl"))
    assert sorted((row["task"], row["seed"]) for row in rows) == [(t, s) for t in "abt" for s in range(40)]


def test_rows_are_found_by_identity():
    assert store.find_row("out", IDENTITY) is None
    for seed in (0, 1):
        store.save_row("out", IDENTITY | {"seed": seed}, {"student": seed / 2})
        assert store.find_row("out", IDENTITY | {"seed": seed})["student"] == seed / 2
    others = {"flags": {"lr": 0.2}, "version": 2, "data": "other", "task": "u"}
    assert not any(store.find_row("out", IDENTITY | {key: others[key]}) for key in others)
    for line in ('{"method": "m", "ta', "3", "{}"):
        Path("out/m.jsonl").write_text(line + "\n")
        with pytest.raises(data.InputError, match="m.jsonl has a line that is no row"):
            store.find_row("out", IDENTITY)


def test_identity_names_files_by_content(npz, tmp_path):
    flags = {"policy": str(tmp_path), "text_encoder": "some/model"}
    row, other = (store.identity("naive", task, 3, str(tmp_path), "cpu", flags) for task in (npz, "reviews"))
    assert (row["task"], row["data"]) == ("small.npz", data.fingerprint(npz))
    assert (other["task"], other["data"]) == ("reviews", data.fingerprint(tmp_path))
    assert row["flags"] == {"policy": data.row_name(str(tmp_path)), "text_encoder": "some/model"}
    assert (row["version"], row["torch"]) == (store.VERSION, torch.__version__)


def test_many_weak_models_differ_in_kind_seed_and_half_and_the_first_few_are_the_same(fresh, monkeypatch):
    seen = []

    def train(split, _, seed, *__):
        seen.append((split, seed))
        return {name: lambda x, at=seed + i: x.flatten(1)[:, at : at + 10] for i, name in enumerate("abc")}

    monkeypatch.setattr(teachers, "image_weak_models", train)
    monkeypatch.setattr(models, "encode", lambda task, x, *_: x.flatten(1)[:, ::7])
    known = data.resolve("glyphs-shift")
    many, few = (teachers.supervise(known, 0, None, "cpu", 1, weak_models=n) for n in (20, 5))
    assert few.weak_models == many.weak_models[:5] and few.test.weak_probs.equal(many.test.weak_probs[:, :5])
    assert len(set(many.weak_models)) == 20 and len({name.split()[0] for name in few.weak_models}) > 1
    assert len({seed for _, seed in seen}) == len(seen) == 7  # of three each, trained once
    whole, halves = data.load("glyphs-shift", 0).weak_train, []
    for split, _ in seen:
        chosen = [whole.x.eq(image).flatten(1).all(1).nonzero().item() for image in split.x]
        assert len(set(chosen)) == 100 and whole.y[chosen].equal(split.y)
        halves.append(frozenset(chosen))
    assert len(set(halves)) == 7
    x = data.load("glyphs-shift", 0).test.x.flatten(1)
    at = [int(name.split()[1]) + "abc".index(name[0]) for name in few.weak_models]
    expected = torch.stack([x[:, i : i + 10] for i in at], 1).softmax(-1)
    torch.testing.assert_close(few.test.weak_probs, expected)


def test_sharper_and_softer_labels_by_hand(npz):
    task = teachers.supervise(data.resolve(npz), 0, None, "cpu", 1)
    before, after = task.val.weak_probs, teachers.sharpen(task, [0.5, 1.0, 2.0]).val.weak_probs
    for m, power in enumerate((2, 1, 0.5)):
        expected = before[:, m] ** power
        torch.testing.assert_close(after[:, m], expected / expected.sum(-1, keepdim=True))
    with pytest.raises(data.InputError, match="3 weak models need one each"):
        teachers.sharpen(task, [1.0, 2.0])
