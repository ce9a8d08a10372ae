import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, random_problem

import data
import images
import models
import store
import text
import training


def test_heads_start_alike_and_do_not_touch():
    student = models.LinearHeads(6, 4, 3, False)
    x = torch.randn(5, 6)
    logits = student(x)
    assert logits.shape == (5, 3, 4)
    torch.testing.assert_close(logits[:, 0], logits[:, 2])
    torch.testing.assert_close(logits[:, 1], models.LinearHeads(6, 4, 1, False)(x)[:, 0])
    logits[:, 1].sum().backward()
    touched = student.linear.weight.grad.view(3, 4, 6).abs().sum((1, 2))
    assert touched[0] == touched[2] == 0 < touched[1]


def test_a_pair_shares_one_reward_head():
    student = models.LinearHeads(6, 2, 3, True)
    pairs = torch.randn(5, 2, 6)
    logits = student(pairs)
    assert logits.shape == (5, 3, 2) and student.linear.out_features == 3
    torch.testing.assert_close(student(pairs.flip(1)), logits.flip(2))
    torch.testing.assert_close(
        logits[:, 0, 0], pairs[:, 0] @ student.linear.weight[0] + student.linear.bias[0]
    )


def test_supervisors():
    _, weak_probs = random_problem()
    assert models.supervisors(weak_probs, "each") is weak_probs
    averaged = models.supervisors(weak_probs, "mean")
    torch.testing.assert_close(averaged[:, 0], (weak_probs[:, 0] + weak_probs[:, 1] + weak_probs[:, 2]) / 3)


def test_fit_learns_and_is_fixed_by_the_seed():
    x = torch.randn(500, 6)
    y = (x[:, 0] > 0).long()

    def train(seed):
        student = models.LinearHeads(6, 2, 1, False)
        model = torch.nn.Sequential(student, torch.nn.Flatten(1))
        training.fit(model, x, y, epochs=5, lr=0.05, batch_size=32, seed=seed)
        assert (training.predict(model, x).argmax(-1) == y).float().mean() > 0.95
        return student.linear.weight

    assert torch.equal(train(0), train(0)) and not torch.equal(train(0), train(1))


def test_predict_in_pieces_is_predict_at_once():
    model, x = torch.nn.Linear(3, 2), torch.randn(2500, 3)
    torch.testing.assert_close(training.predict(model, x), model(x).detach())


def test_strong_encoder_is_pretrained_on_letters_only(monkeypatch):
    drawn = []
    draw_atlas = images.draw_atlas
    monkeypatch.setattr(
        images, "draw_atlas", lambda characters: drawn.append(characters) or draw_atlas(characters)
    )
    weights = models.pretrain_image_encoder(steps=4, device="cpu")
    assert drawn == [images.LETTERS]
    encoder = images.image_encoder(24)
    encoder.load_state_dict(weights)
    assert encoder.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 384)


def test_supervision_of_a_rendered_task():
    """Weak models that differ, standardised features, no images left, and the same again from the cache."""
    task = models.supervise("glyphs-shift", 0, None, "cpu", encoder_steps=10)
    assert task.weak_models == ["linear", "mlp", "cnn"] and task.weak_train is None
    x, y, weak_probs = task.strong_train
    assert x.shape == (7000, 384) and weak_probs.shape == (7000, 3, 10)
    torch.testing.assert_close(weak_probs.sum(-1), torch.ones(7000, 3))
    assert x.mean(0).abs().max() < 1e-3 and abs(x.std(0).median() - 1) < 1e-3
    correct = (task.test.weak_probs.argmax(-1) == task.test.y[:, None]).float().mean(0)
    assert (correct > 0.3).all() and (correct < 0.95).all() and correct.max() - correct.min() > 0.05
    again = models.supervise("glyphs-shift", 0, None, "cpu", encoder_steps=10)
    assert all(torch.equal(a, b) for a, b in zip(task.test, again.test))
    other = models.supervise("glyphs-shift", 1, None, "cpu", encoder_steps=10)
    assert not torch.equal(other.test.weak_probs, task.test.weak_probs)


def test_nobody_sees_what_is_not_for_them(monkeypatch):
    """The weak models get the source domain alone; what comes out belongs to its own split."""
    task = data.load("glyphs", seed=0)
    seen = []

    def spy(split, num_classes, seed, device):
        seen.append(split)
        return {"first pixels": lambda x: x.flatten(1)[:, 300:310]}

    monkeypatch.setattr(models, "image_weak_models", spy)
    monkeypatch.setattr(images, "image_encoder", lambda width: torch.nn.Flatten())
    monkeypatch.setattr(models, "pretrain_image_encoder", lambda steps, device: {})
    monkeypatch.setattr(store, "CACHE", data.Path("cache"))
    supervised = models.supervise("glyphs", 0, None, "cpu", encoder_steps=1)
    assert len(seen) == 1 and all(torch.equal(a, b) for a, b in zip(seen[0][:2], task.weak_train[:2]))
    for split in ("strong_train", "val", "test"):
        pixels, got = getattr(task, split), getattr(supervised, split)
        assert torch.equal(got.y, pixels.y)
        torch.testing.assert_close(got.weak_probs[:, 0], pixels.x.flatten(1)[:, 300:310].softmax(-1))
        # Standardised by strong_train, whichever split it is.
        own = task.strong_train.x.flatten(1)
        expected = (pixels.x.flatten(1) - own.mean(0)) / (own.std(0, correction=0) + 1e-6)
        torch.testing.assert_close(got.x, expected, rtol=1e-3, atol=1e-3)


def test_ceiling_is_naive_on_the_truth_of_strong_train(npz):
    import naive

    task = models.supervise(npz, 0, None, "cpu", 10)
    recipe = {"epochs": 3, "lr": 0.03, "batch_size": 16, "seed": 0}
    ceiling = models.train_ceiling(task, **recipe)
    x, y, _ = task.strong_train
    student = models.make_student(task, 1, 0)
    truth = torch.nn.functional.one_hot(y, 4).float()[:, None]
    naive.train_student(student=student, x=x, weak_probs=truth, labels=None, **recipe)
    torch.testing.assert_close(ceiling.linear.weight, student.linear.weight)


def test_ceiling_is_the_student_with_the_truth(npz):
    task = models.supervise(npz, 0, None, "cpu", 10)
    ceiling = models.train_ceiling(task, epochs=30, lr=0.03, batch_size=16, seed=0)
    assert (training.predict(ceiling, task.test.x)[:, 0].argmax(-1) == task.test.y).float().mean() > 0.9


@pytest.mark.parametrize("name", ["cuda:77", "abacus", ""])
def test_a_device_that_is_not_here(name):
    with pytest.raises(data.InputError, match="no device"):
        models.pick_device(name)
    assert models.pick_device("cpu") == "cpu" and models.pick_device("auto") in ("cpu", "cuda")


# ------------------------------------------------------------------------------------------------------ disk


def test_cache_depends_on_arguments_and_code_and_survives_damage(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    calls = []

    def square(n):
        calls.append(n)
        return {"value": torch.full((1000,), n * n)}

    assert [store.cached("square", square, n=n)["value"][0].item() for n in (2, 3, 2, 3)] == [4, 9, 4, 9]
    assert calls == [2, 3]
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 2
    whole = files[0].read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for number, damage in enumerate((whole[:50], bytes(flipped)), start=3):
        files[0].write_bytes(damage)
        assert [store.cached("square", square, n=n)["value"][0].item() for n in (2, 3)] == [4, 9]
        assert len(calls) == number and "damaged" in capsys.readouterr().err
    for position in range(0, len(whole), 23):  # wherever the damage is: no traceback, no other value
        flipped = bytearray(whole)
        flipped[position] ^= 0b1000
        files[0].write_bytes(flipped)
        assert sorted(store.cached("square", square, n=n)["value"][0].item() for n in (2, 3)) == [4, 9]
    calls.clear()
    changed = tmp_path / "text.py"
    changed.write_text(data.Path(text.__file__).read_text() + "# changed")
    monkeypatch.setattr(store, "SOURCES", [*store.SOURCES[:-1], changed])
    store.cached("square", square, n=2)
    assert calls == [2]


WRITE_SLOWLY = """
import pathlib, sys, time
import store

def write(file):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)

store.write_atomically(pathlib.Path(sys.argv[1]), write)
"""

SAVE_ROWS = """
import sys
import store

row = {"method": "m", "task": "t", "supervision": "each", "code": "c", "flags": {}}
for seed in range(20):
    store.save_row("out", row | {"seed": seed, "process": sys.argv[1]})
"""


def start(program, argument):
    command = [sys.executable, "-c", program, str(argument)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("whole")
    process = start(WRITE_SLOWLY, path)
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert path.read_text() == "whole"
    store.write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_text() == "new"
    with pytest.raises(ZeroDivisionError):
        store.write_atomically(path, lambda file: 1 / 0)
    assert path.read_text() == "new" and len(list(tmp_path.glob("*.partial"))) == 1  # the killed one's


def test_two_processes_lose_no_row():
    data.Path("out").mkdir()
    processes = [start(SAVE_ROWS, name) for name in "ab"]
    for process in processes:
        assert process.wait() == 0
        process.stdout.close()
    rows = store.read_rows(data.Path("out/m.jsonl"))
    assert sorted((row["process"], row["seed"]) for row in rows) == [(p, s) for p in "ab" for s in range(20)]


def test_rows_are_found_by_identity():
    identity = {
        "method": "m",
        "task": "t",
        "seed": 0,
        "supervision": "each",
        "code": "c",
        "flags": {"lr": 0.1},
    }
    assert store.find_row("out", identity) is None
    store.save_row("out", identity | {"student": 0.5})
    store.save_row("out", identity | {"seed": 1, "student": 0.6})
    assert store.find_row("out", identity)["student"] == 0.5
    assert store.find_row("out", identity | {"seed": 1})["student"] == 0.6
    assert store.find_row("out", identity | {"flags": {"lr": 0.2}}) is None
    assert len(store.read_rows(data.Path("out/m.jsonl"))) == 2
    whole = data.Path("out/m.jsonl").read_bytes()
    for line in (b'{"method": "m", "ta', b"3", b"{}", b"[]", b"\xff\xfe"):
        data.Path("out/m.jsonl").write_bytes(whole + line + b"\n")
        with pytest.raises(data.InputError, match="no row"):
            store.save_row("out", identity)
