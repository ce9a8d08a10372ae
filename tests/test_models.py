import multiprocessing
import os
import time

import pytest
import torch
from conftest import random_problem

import data
import models


def test_heads_start_alike_and_do_not_touch():
    student = models.LinearHeads(6, 4, 3, False, seed=0)
    x = torch.randn(5, 6)
    logits = student(x)
    assert logits.shape == (5, 3, 4)
    torch.testing.assert_close(logits[:, 0], logits[:, 2])
    torch.testing.assert_close(logits[:, 1], models.LinearHeads(6, 4, 1, False, seed=0)(x)[:, 0])
    logits[:, 1].sum().backward()
    touched = student.linear.weight.grad.view(3, 4, 6).abs().sum((1, 2))
    assert touched[0] == touched[2] == 0 < touched[1]


def test_a_pair_shares_one_reward_head():
    student = models.LinearHeads(6, 2, 3, True, seed=0)
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


def test_label_loss():
    logits, labels = torch.randn(4, 2, 3), torch.tensor([9, 9, 0, 2, 1, 0])
    batch = torch.tensor([2, 3, 4, 5])
    assert models.label_loss(logits, None, batch) == 0
    log_p = logits.log_softmax(-1)
    expected = -sum(log_p[i, s, labels[batch[i]]] for i in range(4) for s in range(2)) / 4
    torch.testing.assert_close(models.label_loss(logits, labels, batch), expected)


def test_fit_learns_and_is_fixed_by_the_seed():
    x = torch.randn(500, 6)
    y = (x[:, 0] > 0).long()

    def train(seed):
        student = models.LinearHeads(6, 2, 1, False, seed=0)
        model = torch.nn.Sequential(student, torch.nn.Flatten(1))
        models.fit(model, x, y, epochs=5, lr=0.05, batch_size=32, seed=seed)
        assert (models.predict(model, x).argmax(-1) == y).float().mean() > 0.95
        return student.linear.weight

    assert torch.equal(train(0), train(0)) and not torch.equal(train(0), train(1))


def test_predict_in_pieces_is_predict_at_once():
    model, x = torch.nn.Linear(3, 2), torch.randn(2500, 3)
    torch.testing.assert_close(models.predict(model, x), model(x).detach())


def test_strong_encoder_is_pretrained_on_letters_only(monkeypatch):
    drawn = []
    draw_atlas = data.draw_atlas
    monkeypatch.setattr(
        data, "draw_atlas", lambda characters: drawn.append(characters) or draw_atlas(characters)
    )
    weights = models.pretrain_encoder(steps=4, device="cpu")
    assert drawn == [data.LETTERS]
    encoder = models.image_encoder()
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


def test_ceiling_is_the_student_with_the_truth(npz):
    task = models.supervise(npz, 0, None, "cpu", 10)
    ceiling = models.train_ceiling(task, epochs=30, lr=0.03, batch_size=16, seed=0)
    assert (models.predict(ceiling, task.test.x)[:, 0].argmax(-1) == task.test.y).float().mean() > 0.9


@pytest.mark.parametrize("name", ["cuda:77", "abacus", ""])
def test_a_device_that_is_not_here(name):
    with pytest.raises(data.InputError, match="no device"):
        models.pick_device(name)
    assert models.pick_device("cpu") == "cpu" and models.pick_device("auto") in ("cpu", "cuda")


# ------------------------------------------------------------------------------------------------------ disk


def test_cache_depends_on_arguments_and_code_and_survives_damage(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(models, "CACHE", tmp_path / "cache")
    calls = []

    def square(n):
        calls.append(n)
        return {"value": torch.tensor(n * n)}

    assert [models.cached("square", square, n=n)["value"].item() for n in (2, 3, 2, 3)] == [4, 9, 4, 9]
    assert calls == [2, 3]
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 2
    files[0].write_bytes(files[0].read_bytes()[:50])
    assert [models.cached("square", square, n=n)["value"].item() for n in (2, 3)] == [4, 9]
    assert len(calls) == 3 and "damaged" in capsys.readouterr().err
    changed = tmp_path / "models.py"
    changed.write_text(data.Path(models.__file__).read_text() + "# changed")
    monkeypatch.setattr(models, "__file__", str(changed))
    models.cached("square", square, n=2)
    assert len(calls) == 4


def write_slowly(path):
    def write(file):
        file.write(b"half")
        file.flush()
        time.sleep(60)

    models.write_atomically(data.Path(path), write)


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("whole")
    process = multiprocessing.get_context("fork").Process(target=write_slowly, args=(path,))
    process.start()
    while not any(file.read_bytes() for file in tmp_path.glob("*.partial")):
        time.sleep(0.01)
    os.kill(process.pid, 9)
    process.join()
    assert path.read_text() == "whole"
    models.write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_text() == "new"


def test_rows_are_found_by_identity():
    identity = {"method": "m", "task": "t", "seed": 0, "flags": {"lr": 0.1}}
    assert models.find_row("out", identity) is None
    models.save_row("out", identity | {"student": 0.5})
    models.save_row("out", identity | {"seed": 1, "student": 0.6})
    assert models.find_row("out", identity)["student"] == 0.5
    assert models.find_row("out", identity | {"seed": 1})["student"] == 0.6
    assert models.find_row("out", identity | {"flags": {"lr": 0.2}}) is None
    assert len(models.read_rows(data.Path("out/m.jsonl"))) == 2
    with open("out/m.jsonl", "a") as file:
        file.write('{"method": "m", "ta\n')
    with pytest.raises(data.InputError, match="no row"):
        models.save_row("out", identity)
