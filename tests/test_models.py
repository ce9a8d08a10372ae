"""Students, training, weak models, what a student is given, and what is kept on disk."""

import functools
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


@pytest.mark.parametrize("length", [None, 2, 7])
def test_batches_go_through_all_samples_in_an_order_fixed_by_the_seed(length):
    """An epoch is one pass of three batches, or has a given length and goes on where the last one stopped."""
    batches = models.Batches((torch.arange(10), -torch.arange(10)), 4, 5, lambda x, y: (x, y + 100), length)
    generator, n = torch.Generator().manual_seed(5), length or 3
    expected = [x for _ in range(7) for x in torch.randperm(10, generator=generator).split(4)][: 3 * n]
    drawn = [batch for _ in range(3) for batch in batches]
    assert len(batches) == n and [x.tolist() for x, _ in drawn] == [x.tolist() for x in expected]
    assert all(y.equal(100 - x) for x, y in drawn)


def adam(step):  # a cosine to 0
    return (1 + math.cos(math.pi * step / 30)) / 2


def sgd(step):  # 2 of 30 steps of warm-up, a cosine to 1 %
    return (step + 1) / 2 if step < 2 else 0.01 + 0.99 * (1 + math.cos(math.pi * (step - 2) / 28)) / 2


SGD = functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4)


@pytest.mark.parametrize("make, rate", [(torch.optim.Adam, adam), (SGD, sgd)])
def test_fit_against_a_plain_loop(make, rate):
    x, y = torch.randn(50, 6), torch.arange(50) % 2
    recipe = {"epochs": 6, "lr": 0.1, "batch_size": 10, "seed": 5, "optimizer": rate.__name__}
    model, plain = models.fit(models.LinearHead(6, 2, False), x, y, **recipe), models.LinearHead(6, 2, False)
    optimizer = make(plain.parameters())
    for step, (inputs, targets) in enumerate(models.Batches((x, y), 10, 5, length=30)):
        optimizer.param_groups[0]["lr"] = 0.1 * rate(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(plain(inputs), targets).backward()
        optimizer.step()
    torch.testing.assert_close(model.weight, plain.weight)
    assert not model.training and models.predict(model, x, 7).equal(model(x))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache of its own, as its key does not see what a test patches; small splits."""
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(data, "SIZES", {"weak_train": 600, "strong_train": 100, "val": 50, "test": 100})


def supervise(name, **chosen):
    return data.load(name, 0), teachers.supervise(data.resolve(name), 0, None, "cpu", 2, **chosen)


def test_weak_models_of_images_differ_and_the_encoder_saw_letters_only(fresh, monkeypatch):
    def brief(model, x, y, **recipe):
        seen.append((x, y, recipe["epochs"]))
        return fit(model, x, y, **recipe | {"epochs": 4})

    fit, draw_atlas, seen, drawn = models.fit, images.draw_atlas, [], []
    monkeypatch.setattr(models, "fit", brief)
    monkeypatch.setattr(images, "draw_atlas", lambda chars: drawn.append(chars) or draw_atlas(chars))
    plain, task = supervise("glyphs-shift-0.1")
    assert drawn == [images.DIGITS] * 8 + [images.LETTERS] and not set(images.LETTERS) & set(images.DIGITS)
    assert task.strong_train.x.shape == (100, 384) and task.test.x.isfinite().all()
    (x, y, _), (mlp_x, noisy, _), (few, few_y, _) = seen[:3]
    assert [epochs for _, _, epochs in seen[:3]] == [10, 10, 40]
    assert mlp_x.equal(x) and few_y.equal(y[:500].repeat(2)) and y.equal(plain.weak_train.y)
    assert abs((noisy != y).double().mean() - 0.27) < 0.05  # a tenth of 30 % happen to be right
    noise = few - torch.cat([x[:500], 1 - x[:500]])
    assert abs(noise.std() - 0.2) < 0.01 and abs(noise.mean()) < 0.01
    again, other = (teachers.train_weak_models(plain, seed, "cpu") for seed in (0, 1))
    for name, said in zip(task.weak_models, task.test.weak_probs.unbind(1), strict=True):
        assert again[name](plain.test.x).softmax(-1).equal(said)
        assert not other[name](plain.test.x).softmax(-1).allclose(said)
        assert (said.argmax(-1) == task.test.y).double().mean() > 0.2


def test_nobody_sees_what_is_not_for_them(fresh, monkeypatch):
    """The weak models get the source domain alone; what comes out belongs to its own split, standardised by
    strong_train. Many differ in kind, seed and half of the samples, and the first few are the same."""

    def train(task, seed, *_):
        seen.append((seed, task.weak_train))
        return {f"{i}": lambda x, at=seed + i: x.flatten(1)[:, at : at + 10] for i in range(3)}

    seen = []
    monkeypatch.setattr(teachers, "image_weak_models", train)
    monkeypatch.setattr(models, "encode", lambda task, x, *_: x.flatten(1)[:, ::7])
    plain, usual = supervise("glyphs-shift")
    many, few = (supervise("glyphs-shift", weak_models=n)[1] for n in (20, 5))
    assert len(set(many.weak_models)) == 20 and few.weak_models == many.weak_models[:5]
    assert usual.weak_models == [*"012"] and len({name[0] for name in few.weak_models}) > 1
    std, mean = torch.std_mean(plain.strong_train.x.flatten(1)[:, ::7], dim=0, correction=0)
    for task in (usual, few):
        at = [sum(map(int, name.split())) for name in task.weak_models]
        for before, after in zip(plain[3:6], task[3:6]):
            x = before.x.flatten(1)
            expected = torch.stack([x[:, i : i + 10] for i in at], 1).softmax(-1)
            torch.testing.assert_close(after.weak_probs, expected)
            torch.testing.assert_close(after.x, (x[:, ::7] - mean) / (std + 1e-6), rtol=1e-3, atol=1e-3)
            assert torch.equal(after.y, before.y)
    place = {image.numpy().tobytes(): i for i, image in enumerate(plain.weak_train.x)}
    chosen = [[place[image.numpy().tobytes()] for image in part.x] for _, part in seen]
    assert all(plain.weak_train.y[own].equal(part.y) for own, (_, part) in zip(chosen, seen))
    assert chosen[0] == list(range(600)) and [len(set(own)) for own in chosen[1:]] == [300] * 7
    assert len(set(map(tuple, chosen))) == len({seed for seed, _ in seen[1:]}) + 1 == len(seen)


def test_supervision_is_computed_again_for_other_arguments_only(fresh, monkeypatch):
    split = data.Split(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 1, 10))
    calls, task = [], data.Task("image", 10, None, split, split, split, "none", [])
    monkeypatch.setattr(teachers, "label_and_encode", lambda task, *given: calls.append(given) or task)
    Path("here").mkdir()
    changes = [{}, {}, {"name": "b"}, {"seed": 1}, {"folder": "here"}, {"steps": 2}, {"text_encoder": "c"}]
    for change in changes:
        given = {"name": "a", "seed": 0, "folder": None, "device": "cpu", "steps": 1} | change
        known = data.Known(given.pop("name"), lambda *_: task, data.HEAD, has_files=True)
        teachers.supervise(known, **given)
    assert len(calls) == len(changes) - 1


def test_a_npz_is_standardised_and_its_labels_made_sharper_or_softer_by_hand(npz):
    plain, task = supervise(npz)
    std, mean = torch.std_mean(plain.strong_train.x, dim=0, correction=0)
    torch.testing.assert_close(task.val.x, (plain.val.x - mean) / std, rtol=1e-4, atol=1e-4)
    assert torch.equal(task.val.weak_probs, plain.val.weak_probs)
    expected = plain.val.weak_probs ** torch.tensor([2, 1, 0.5])[:, None]
    sharp = teachers.sharpen(task, [0.5, 1.0, 2.0]).val.weak_probs
    torch.testing.assert_close(sharp, expected / expected.sum(-1, keepdim=True))
    with pytest.raises(data.InputError, match="3 weak models need one each"):
        teachers.sharpen(task, [1.0, 2.0])


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


def test_an_interrupted_write_leaves_the_old_file():
    Path("rows").write_text("whole")
    with pytest.raises(ZeroDivisionError):
        store.write_atomically(Path("rows"), lambda file: file.write(b"half") / 0)
    assert Path("rows").read_text() == "whole"


IDENTITY = {"method": "m", "task": "t", "data": None, "seed": 0, "version": 1, "flags": {"lr": 0.1}}


def save_rows(process):
    for seed in range(40):
        for task in ("t", process):
            store.save_row("out", IDENTITY | {"seed": seed, "task": task}, {"student": seed / 2})


def test_two_processes_lose_no_row_and_a_row_is_found_by_identity():
    assert store.find_row("out", IDENTITY) is None
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(save_rows, "ab")
    rows = store.read_rows(Path("out/m.jsonl"))
    assert sorted((row["task"], row["seed"]) for row in rows) == [(t, s) for t in "abt" for s in range(40)]
    assert store.find_row("out", IDENTITY | {"seed": 7})["student"] == 3.5
    for change in ({"flags": {"lr": 0.2}}, {"version": 2}, {"data": "other"}, {"task": "u"}, {"seed": 40}):
        assert store.find_row("out", IDENTITY | change) is None
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
