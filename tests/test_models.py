"""Students, training, weak models, what a student is given, and what is kept on disk."""

import math
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch

import data
import models
import store
from tasks import images


def test_a_linear_head_starts_from_zero_and_a_pair_shares_one_reward():
    head, shared = models.LinearHead(6, 4, pairs=False), models.LinearHead(6, 2, pairs=True)
    assert not head.weight.any() and not head.bias.any() and head(torch.randn(5, 6)).shape == (5, 4)
    torch.nn.init.normal_(shared.weight)
    pairs = torch.randn(5, 2, 6)
    assert shared.weight.shape == (1, 6)
    torch.testing.assert_close(shared(pairs), pairs @ shared.weight[0] + shared.bias)


def test_batches_hold_every_sample_once_an_epoch_in_an_order_fixed_by_the_seed():
    def order(seed, view=None):
        """The first part in two epochs; the second is its negative."""
        batches = models.Batches((torch.arange(10), -torch.arange(10)), 4, seed, view)
        drawn = [*batches, *batches]
        assert len(batches) == 3 and [len(x) for x, _ in drawn] == [4, 4, 2] * 2
        assert all(torch.equal(x, -y) for x, y in drawn)
        return torch.cat([x for x, _ in drawn]).tolist()

    first = order(0)
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10)) and first[:10] != first[10:]
    assert order(0) == first != order(1) and order(0, lambda x, y: (-x, -y)) == [-i for i in first]


def test_predict_in_pieces_is_predict_at_once():
    model, x = torch.nn.Linear(3, 2), torch.randn(25, 3)
    torch.testing.assert_close(models.predict(model, x, batch_size=10), model(x).detach())


def test_adam_decays_by_a_cosine_to_zero():
    optimizer, schedule = models.make_optimizer("adam", torch.nn.Linear(2, 2), 0.2, 8)
    rates = [(schedule.get_last_lr()[0], optimizer.step(), schedule.step())[0] for _ in range(9)]
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * step / 8)) for step in range(9)])


def test_sgd_by_hand():
    """On the loss 3 w: Nesterov momentum .9, weight decay 5e-4, 3 of 50 steps of warm-up, cosine to .002."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    optimizer, schedule = models.make_optimizer("sgd", model, 0.2, 50)
    weight, velocity = model.weight.item(), 0.0
    model.weight.grad = torch.full((1, 1), 3.0, dtype=torch.float64)
    for step in range(50):
        rate = 0.002 + 0.198 * (1 + math.cos(math.pi * (step - 3) / 47)) / 2
        rate = 0.2 * (step + 1) / 3 if step < 3 else rate
        gradient = 3 + 5e-4 * weight
        velocity = 0.9 * velocity + gradient
        weight -= rate * (gradient + 0.9 * velocity)
        optimizer.step()
        schedule.step()
        assert model.weight.item() == pytest.approx(weight, rel=1e-9)


def test_image_weak_models_differ_in_what_they_learn_from(monkeypatch):
    seen = []
    monkeypatch.setattr(models, "fit", lambda *given, **_: seen.append(given) or given[0])
    x, y = torch.rand(1000, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(1000) % 10

    def logits(seed):
        weak_models = models.image_weak_models(data.Split(x, y), 10, seed, "cpu")
        assert list(weak_models) == ["linear", "mlp", "cnn"]
        return torch.stack([each(x[:3]) for each in weak_models.values()])

    assert torch.equal(logits(0), logits(0)) and not torch.equal(logits(0), logits(1))
    (_, linear_x, linear_y), (_, mlp_x, noisy), (_, few, few_y) = seen[:3]
    assert linear_x is x is mlp_x and torch.equal(linear_y, y)
    assert abs((noisy != y).double().mean() - 0.27) < 0.04  # a tenth of 30 % happen to be right
    assert few_y.tolist() == y[:500].tolist() * 2
    noise = few - torch.cat([x[:500], 1 - x[:500]])
    assert abs(noise.std() - 0.2) < 0.01 and abs(noise.mean()) < 0.01


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache of its own, as its key does not see what a test patches; small splits."""
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(data, "SIZES", {"weak_train": 200, "strong_train": 100, "val": 50, "test": 100})


def test_nobody_sees_what_is_not_for_them(fresh, monkeypatch):
    """The weak models get the source domain alone; what comes out belongs to its own split, standardised by
    strong_train; the cache holds float16."""
    plain, seen = data.load("glyphs-shift", seed=0), []

    def weak_models(split, num_classes, seed, device):
        seen.append(split)
        return {"pixels": lambda x: x.flatten(1)[:, 300:310], "others": lambda x: x.flatten(1)[:, 400:410]}

    monkeypatch.setattr(models, "image_weak_models", weak_models)
    monkeypatch.setattr(models, "encode", lambda task, x, *_: x.flatten(1)[:, ::7])
    task = models.supervise(data.resolve("glyphs-shift"), 0, None, "cpu", 1)
    assert len(seen) == 1 and all(map(torch.equal, seen[0][:2], plain.weak_train[:2]))
    std, mean = torch.std_mean(plain.strong_train.x.flatten(1)[:, ::7], dim=0, correction=0)
    for name in ("strong_train", "val", "test"):
        before, after = getattr(plain, name), getattr(task, name)
        x = before.x.flatten(1)
        assert torch.equal(after.y, before.y) and after.x.dtype == torch.float32
        expected = torch.stack([x[:, 300:310], x[:, 400:410]], 1).softmax(-1)
        torch.testing.assert_close(after.weak_probs, expected)
        torch.testing.assert_close(after.x, (x[:, ::7] - mean) / (std + 1e-6), rtol=1e-3, atol=1e-3)
    [kept] = store.CACHE.glob("*.pt")
    assert torch.load(kept, weights_only=True).test.x.dtype == torch.float16


def test_real_networks_and_an_encoder_pretrained_on_letters_only(fresh, monkeypatch):
    drawn, draw_atlas = [], images.draw_atlas
    monkeypatch.setattr(images, "draw_atlas", lambda chars: drawn.append(chars) or draw_atlas(chars))
    task = models.supervise(data.resolve("glyphs-shift-0.1"), 0, None, "cpu", 2)
    assert drawn == [images.DIGITS] * 4 + [images.LETTERS] and not set(images.LETTERS) & set(images.DIGITS)
    correct = (task.test.weak_probs.argmax(-1) == task.test.y[:, None]).float().mean(0)
    assert len(correct) == 3 and (correct > 0.2).all()
    assert task.strong_train.x.shape == (100, 384) and task.test.x.isfinite().all()


def test_supervision_is_computed_again_for_other_arguments_and_data_only(fresh, monkeypatch):
    calls, split = [], data.Split(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    task = data.Task("image", 10, None, split, split, split, "none", [])
    monkeypatch.setattr(models, "label_and_encode", lambda task, *given: calls.append(given) or task)

    def computed(name="a", **changed):
        known, before = data.Known(name, lambda *_: task, data.HEAD, True), len(calls)
        models.supervise(known, **{"seed": 0, "folder": None, "device": "cpu", "steps": 1} | changed)
        return len(calls) > before

    changes = {"name": "b", "seed": 1, "folder": "folder", "steps": 2, "text_encoder": "c"}
    assert computed() and not computed() and all(computed(**{key: changes[key]}) for key in changes)
    Path("folder").mkdir()
    Path("folder", "books.jsonl").write_text("1")
    assert computed(folder="folder")
    shutil.copytree("folder", "copy")
    assert not computed(folder="copy")


def test_a_npz_is_standardised(npz):
    plain, task = data.load(npz, 0), models.supervise(data.resolve(npz), 0, None, "cpu", 1)
    std, mean = torch.std_mean(plain.strong_train.x, dim=0, correction=0)
    torch.testing.assert_close(task.val.x, (plain.val.x - mean) / std, rtol=1e-4, atol=1e-4)
    assert torch.equal(task.val.weak_probs, plain.val.weak_probs) and torch.equal(task.val.y, plain.val.y)


def test_a_fingerprint_is_of_names_and_contents_not_of_place_and_time():
    Path("folder/inner").mkdir(parents=True)
    Path("folder/inner/a").write_text("1")
    Path("folder/b").write_text("2")
    first = data.fingerprint("folder")
    shutil.copytree("folder", "copy")
    os.utime("folder/b", (0, 0))
    assert data.fingerprint("folder") == data.fingerprint("copy") == first
    assert data.row_name("copy") == f"copy-{first}" and data.row_name("some/model") == "some/model"
    Path("copy/b").rename("copy/c")
    Path("folder/inner/a").write_text("3")
    assert len({first, data.fingerprint("copy"), data.fingerprint("folder")}) == 3


IDENTITY = {"method": "m", "task": "t", "data": None, "seed": 0, "version": 1, "flags": {"lr": 0.1}}


def keep(n, calls, **more):
    return store.cached("square", lambda: calls.append(n) or torch.full((99,), n * n), n=n, **more)


def test_cache_depends_on_arguments_and_versions_but_on_no_source(fresh, monkeypatch):
    calls = []
    assert [keep(n, calls)[0] for n in (2, 3, 2)] == [4, 9, 4] and calls == [2, 3]
    assert store.cached("square", lambda: 1 / 0, n=3)[0] == 9  # whatever computes it
    keep(2, calls, device="cpu")
    for owner, name in ((store, "VERSION"), (torch, "__version__")):
        monkeypatch.setattr(owner, name, "another")
        keep(2, calls)
    assert calls == [2, 3, 2, 2, 2]


def test_damage_is_computed_again(fresh, capsys):
    keep(2, [])
    [file] = store.CACHE.glob("*.pt")
    whole = file.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 8]) + whole[i + 1 :] for i in range(0, len(whole), 37)]
    for damaged in [b"", whole[:50], whole[:-20], *flipped]:  # no traceback, no other value
        file.write_bytes(damaged)
        assert (keep(2, []) == 4).all()
    assert capsys.readouterr().err.count("damaged") > 3  # some bits say nothing


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("whole")
    with pytest.raises(ZeroDivisionError):
        store.write_atomically(path, lambda file: file.write(b"half") / 0)
    assert path.read_text() == "whole" and not list(tmp_path.glob("*.partial"))


def save_rows(process):
    for seed in range(40):
        for task in ("t", process):
            store.save_row("out", IDENTITY | {"seed": seed, "task": task}, {"process": process})


def test_two_processes_lose_no_row_and_write_none_twice():
    processes = [multiprocessing.get_context("fork").Process(target=save_rows, args=name) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = store.read_rows(Path("out/m.jsonl"))
    assert sorted((row["task"], row["seed"]) for row in rows) == [(t, s) for t in "abt" for s in range(40)]
    row = next(row for row in rows if row["task"] == "t")
    assert store.save_row("out", IDENTITY | {"seed": row["seed"]}, {"process": "late"}) == row


def test_rows_are_found_by_identity():
    assert store.find_row("out", IDENTITY) is None
    for seed in (0, 1):
        store.save_row("out", IDENTITY | {"seed": seed}, {"student": seed / 2})
        assert store.find_row("out", IDENTITY | {"seed": seed})["student"] == seed / 2
    others = {"flags": {"lr": 0.2}, "version": 2, "data": "other", "task": "u"}
    assert not any(store.find_row("out", IDENTITY | {key: others[key]}) for key in others)


@pytest.mark.parametrize("line", [b'{"method": "m", "ta', b"3", b"{}", b"\xff\xfe"])
def test_a_line_that_is_no_row_is_named(line):
    Path("m.jsonl").write_bytes(line + b"\n")
    with pytest.raises(data.InputError, match="m.jsonl has a line that is no row"):
        store.save_row(".", IDENTITY, {})


def test_identity_names_files_by_content(npz, tmp_path):
    flags = {"policy": str(tmp_path), "text_encoder": "some/model"}
    row, other = (store.identity("naive", task, 3, str(tmp_path), "cpu", flags) for task in (npz, "reviews"))
    assert (row["task"], row["data"]) == ("small.npz", data.fingerprint(npz))
    assert (other["task"], other["data"]) == ("reviews", data.fingerprint(tmp_path))
    assert row["flags"] == {"policy": data.row_name(str(tmp_path)), "text_encoder": "some/model"}
    assert (row["version"], row["torch"]) == (store.VERSION, torch.__version__)
