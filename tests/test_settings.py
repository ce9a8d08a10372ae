"""Tasks whose student is a whole network that also gets labels, and training that survives a kill."""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import METHODS, ROOT

import data
import images
import models
import settings
import store
import training

NAMES = ["glyphs-distill", "glyphs-noisy-symmetric-0.2", "glyphs-fewshot", "glyphs-transfer"]
FLAGS = "--seeds 0 --encoder-steps 4 --epochs 3 --device cpu".split()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Few images, teachers that train for one epoch, and a cache of its own, as its key does not see that."""
    monkeypatch.setattr(settings, "SIZES", {"strong_train": 120, "val": 50, "test": 100})
    monkeypatch.setattr(settings, "PER_NOVEL_CLASS", 20)
    brief = {name: recipe | {"epochs": 1} for name, recipe in settings.TEACHERS.items()}
    monkeypatch.setattr(settings, "TEACHERS", brief)
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")


def supervise(name, seed=0):
    return models.supervise(name, seed, None, "cpu", 4)


def run(method, *arguments):
    [row] = importlib.import_module(method).main([*arguments, *FLAGS])
    return row


# ------------------------------------------------------------------------------------------------- names


def test_names():
    for name in [*NAMES, "glyphs-noisy-asymmetric-0.4", "cifar100-distill", "cifar100-distill-vgg"]:
        assert data.check_name(name) == name
    assert data.check_name("glyphs-noisy-symmetric-0.20") == "glyphs-noisy-symmetric-0.2"
    for name in ("glyphs-noisy", "glyphs-noisy-symmetric", "glyphs-noisy-asymmetric-1.5", "glyphs-distill-0"):
        with pytest.raises(data.InputError, match="glyphs-noisy-symmetric-RATE"):
            data.check_name(name)


def test_recipes():
    assert settings.recipe("cifar100-distill-vgg") == {
        "epochs": 240, "lr": 0.2, "ceiling_lr": 0.2, "batch_size": 512, "optimizer": "sgd"
    }  # fmt: skip
    assert settings.recipe("glyphs-noisy-symmetric-0.2") == settings.recipe("glyphs-distill")
    names = ("glyphs-shift-0.6", "glyphs", "reviews", "x.npz", "cifar100.npz", "glyphs-transfer-x.npz")
    heads = [settings.recipe(name) for name in names]
    assert all(recipe == heads[0] for recipe in heads) and heads[0]["lr"] == 3e-5
    assert settings.recipe("glyphs-transfer")["lr"] not in (3e-5, settings.recipe("glyphs-distill")["lr"])


# ------------------------------------------------------------------------------------------------- noise


def test_noise_matrices_by_hand():
    symmetric = settings.noise_matrix("symmetric", 0.2, 5)
    torch.testing.assert_close(symmetric, torch.full((5, 5), 0.05) + 0.75 * torch.eye(5))
    asymmetric = settings.noise_matrix("asymmetric", 0.4, 10)
    torch.testing.assert_close(asymmetric.sum(1), torch.ones(10))
    for true, other in {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}.items():
        assert asymmetric[true, true].item() == pytest.approx(0.6)
        assert asymmetric[true, other].item() == pytest.approx(0.4)
    for true in (0, 1, 4, 8, 9):
        assert asymmetric[true, true] == 1


@pytest.mark.parametrize("kind, rate", [("symmetric", 0.2), ("asymmetric", 0.4), ("symmetric", 1.0)])
def test_corrupted_labels_follow_the_matrix(kind, rate):
    y = torch.arange(10).repeat(5000)
    matrix = settings.noise_matrix(kind, rate, 10)
    labels = settings.corrupt(y, matrix, torch.Generator().manual_seed(0))
    counts = torch.zeros(10, 10).index_put_((y, labels), torch.ones(len(y)), accumulate=True) / 5000
    torch.testing.assert_close(counts, matrix, atol=0.03, rtol=0)
    assert ((matrix == 0) <= (counts == 0)).all()


def test_student_and_teacher_learn_the_corrupted_labels_and_nobody_the_truth(small, monkeypatch):
    plain = data.load("glyphs-noisy-asymmetric-0.4", 0)
    wrong = plain.labels != plain.strong_train.y
    assert wrong.any() and torch.equal(data.load("glyphs-noisy-asymmetric-0", 0).labels, plain.strong_train.y)
    assert {2, 3, 5, 6, 7} >= set(plain.strong_train.y[wrong].tolist())
    fit, seen = training.fit, []
    monkeypatch.setattr(training, "fit", lambda model, x, y, **etc: seen.append(y) or fit(model, x, y, **etc))
    task = supervise("glyphs-noisy-asymmetric-0.4")
    assert torch.equal(seen[0], plain.labels) and torch.equal(task.labels, plain.labels)
    recipe = {"seed": 0, "epochs": 1, "lr": 1e-3, "batch_size": 64, "optimizer": "adam"}
    models.train_ceiling(task, **recipe)
    assert torch.equal(seen[1], plain.strong_train.y) and len(seen) == 2
    assert 0 <= models.labels_alone(task, **recipe)["labels_alone"] <= 1
    assert torch.equal(seen[2], plain.labels) and len(seen) == 3
    assert models.labels_alone(supervise("glyphs-distill"), **recipe) == {}


# ---------------------------------------------------------------------------------------------- few-shot


def test_episodes_support_and_query_are_disjoint():
    y = torch.arange(8).repeat(30)[torch.randperm(240, generator=torch.Generator().manual_seed(1))]
    for shots in (1, 5):
        support, query = settings.draw_episodes(y, shots, 200, torch.Generator().manual_seed(0))
        assert support.shape == (200, 5, shots) and query.shape == (200, 5, 15)
        for s, q in zip(support, query):
            used = torch.cat([s.flatten(), q.flatten()])
            assert len(used.unique()) == len(used)
            classes = y[torch.cat([s, q], 1)]
            assert (classes == classes[:, :1]).all() and len(classes[:, 0].unique()) == 5
        assert len(y[support[:, :, 0]].unique()) == 8 and len(support.unique()) > 200


def test_episode_accuracy_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(6).repeat_interleave(25)
    features = torch.randn(6, 9, generator=generator)[y] + 2 * torch.randn(150, 9, generator=generator)
    support, query = settings.draw_episodes(y, 5, 20, generator)
    scores = settings.episode_accuracy(features, support, query)
    for episode in range(20):
        centroids = [features[support[episode, way]].mean(0) for way in range(5)]
        right = 0
        for way in range(5):
            for i in query[episode, way]:
                cosines = [torch.cosine_similarity(features[i], c, dim=0).item() for c in centroids]
                right += cosines.index(max(cosines)) == way
        assert scores[episode].item() == pytest.approx(right / 75)
    assert 0.3 < scores.mean() < 0.9


def test_novel_classes_are_not_base_classes_and_are_scored(small):
    assert not set(settings.BASE) & set(settings.NOVEL_VAL + settings.NOVEL_TEST)
    assert not set(settings.NOVEL_VAL) & set(settings.NOVEL_TEST) and settings.EPISODES >= 600
    row = run("naive", "--task", "glyphs-fewshot")
    for part in ("val", "test"):
        for shots in ("1-shot", "5-shot"):
            entry = row["few_shot"][part][shots]
            assert set(entry) == {"student", "ceiling", "weak"}
            for accuracy, half in entry.values():
                assert 0.15 < accuracy < 0.95 and 0.001 < half < 0.02
    assert "few_shot" not in run("naive", "--task", "glyphs-distill")


def test_all_methods_meet_the_same_episodes(small):
    task = supervise("glyphs-fewshot")
    network = models.load_teacher(task)
    first, again = (settings.few_shot(task.novel, {"student": network}) for _ in range(2))
    assert first == again
    x, y, _ = task.novel["test"]
    support, query = settings.draw_episodes(y, 1, 600, torch.Generator().manual_seed(0))
    scores = settings.episode_accuracy(network[:-1](x).detach(), support, query)
    mean, half = first["test"]["1-shot"]["student"]
    assert mean == pytest.approx(scores.mean().item(), abs=1e-6)
    assert half == pytest.approx(1.96 * scores.std().item() / 600**0.5, abs=1e-6)


# ------------------------------------------------------------------------------------------ augmentation


@pytest.mark.parametrize("view", ["affine", "crops", "crops, AutoAugment, mixup"])
def test_augmentation_keeps_labels_and_range(view):
    glyphs = view == "affine"
    x = torch.rand(40, 1, 28, 28) if glyphs else torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    labels, teacher = torch.arange(40), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(7))
    teacher(x.float())
    torch.manual_seed(0)
    seen, weak_probs, given = settings.View(view, teacher)(x, torch.full((40, 1, 7), 1 / 7), labels)
    assert seen.shape == x.shape and seen.dtype == torch.float32
    assert seen.min() >= 0 and seen.max() <= 1 and 0.1 < seen.mean() < 0.9
    whole = x if glyphs else x / 255
    assert sum(not torch.allclose(a, b, atol=0.01) for a, b in zip(seen, whole)) > 30
    # The teacher labels what the student sees.
    torch.testing.assert_close(weak_probs[:, 0], teacher(seen).softmax(-1).detach())
    if "mixup" in view:
        assert given.shape == (40, 100) and ((given > 0).sum(1) <= 2).all()
        torch.testing.assert_close(given.sum(1), torch.ones(40))
        assert (given.argmax(1) == labels).all() or (given.argmax(1) == labels.roll(1)).all()
    else:
        assert torch.equal(given, labels)
    seen, nothing, _ = settings.View(view, None)(x, None, labels)  # as a teacher is trained
    assert nothing is None and seen.shape == x.shape


def test_augmentation_differs_between_images():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 28, 28).expand(32, 1, 28, 28)
    seen, _, _ = settings.View("affine", None)(x, None, None)
    assert len({tuple(image.flatten().tolist()) for image in seen}) == 32 // settings.GROUP


@pytest.mark.parametrize("method", METHODS)
def test_mixing_reaches_the_labels_in_every_method(small, method, monkeypatch):
    """Labels that a view turns into class 3 for certain are what the student learns."""

    def view(x, weak_probs, labels):
        return x, weak_probs, torch.nn.functional.one_hot(torch.full_like(labels, 3), 10).float()

    module, students = importlib.import_module(method), []
    train_student = module.train_student

    def spy(student, **arguments):
        students.append(student)
        return train_student(student=student, **arguments)

    monkeypatch.setattr(models, "make_view", lambda task: view)
    monkeypatch.setattr(module, "train_student", spy)
    module.main(["--task", "glyphs-distill", *FLAGS, "--epochs", "10", "--batch-size", "20"])
    predicted = training.predict(students[0], supervise("glyphs-distill").strong_train.x)[:, 0].argmax(-1)
    assert (predicted == 3).float().mean() > 0.6


# --------------------------------------------------------------------------------------- whole networks


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_whole_networks(small, method, name, capsys):
    row = run(method, "--task", name)
    assert json.loads(capsys.readouterr().out) == row
    assert row["student_kind"] == ("fine-tuned" if name == "glyphs-transfer" else "from scratch")
    assert len(row["weak"]) == 1 and row["n_test"] == 100 and 0 < row["student"] <= 1
    assert row["flags"]["optimizer"] == "adam" and row["flags"]["epochs"] == 3
    assert "weights" not in row or row["weights"] == [1.0]
    again = run(method, "--task", name, "--out", "again")
    assert {**again, "seconds": 0} == {**row, "seconds": 0}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["glyphs-distill", "glyphs-transfer", "glyphs"])
def test_networks_change_while_the_encoder_of_a_probe_does_not(small, method, name, monkeypatch):
    module, seen = importlib.import_module(method), {}
    original = module.train_student

    def spy(student, **arguments):
        before = {key: value.clone() for key, value in student.state_dict().items()}
        result = original(student=student, **arguments)
        assert not student.training
        seen.update({key: torch.equal(before[key], value) for key, value in student.state_dict().items()})
        return result

    monkeypatch.setattr(module, "train_student", spy)
    monkeypatch.setattr(data, "SIZES", {"weak_train": 60, "strong_train": 100, "val": 50, "test": 100})
    models.image_features(torch.zeros(1, 1, 28, 28), 4, "cpu")  # pretrains the encoder that the run reads
    [encoder] = store.CACHE.glob("encoder-*")
    kept = encoder.read_bytes(), encoder.stat().st_mtime_ns
    run(method, "--task", name)
    assert seen and not any(seen.values()), [key for key, same in seen.items() if same]
    if name == "glyphs":
        assert set(seen) == {"linear.weight", "linear.bias"}  # the encoder is no part of the student
    else:
        assert len(seen) > 20 and any("conv" in key for key in seen)
    assert list(store.CACHE.glob("encoder-*")) == [encoder]
    assert kept == (encoder.read_bytes(), encoder.stat().st_mtime_ns)


def test_fine_tuning_starts_from_the_encoder_and_seeds_fix_the_start(small):
    task = supervise("glyphs-transfer")
    assert task.augmentation == "affine" and models.make_view(task) is not None
    student = models.make_student(task, 2, seed=3)
    encoder = images.image_encoder(24)
    encoder.load_state_dict(task.weights["encoder"])
    x = task.test.x
    torch.testing.assert_close(student.eval().networks[0][:-1](x), encoder.eval()(x))
    assert student(x).shape == (100, 2, 10)
    torch.testing.assert_close(student(x)[:, 0], student(x)[:, 1])
    again, other = (models.make_student(task, 1, seed).eval()(x) for seed in (3, 4))
    torch.testing.assert_close(student(x)[:, :1], again)
    assert not torch.allclose(again, other)


def test_images_are_not_standardised_and_the_teacher_labels_them(small):
    plain, task = data.load("glyphs-distill", 0), supervise("glyphs-distill")
    assert torch.equal(task.strong_train.x, plain.strong_train.x) and task.encoder == "residual CNN"
    teacher = models.load_teacher(task)
    for split in (task.strong_train, task.val, task.test):
        torch.testing.assert_close(split.weak_probs[:, 0], training.predict(teacher, split.x).softmax(-1))
    assert task.weak_models == ["narrow CNN"] and models.make_view(task) is None


def test_ceilings_are_told_apart_in_the_cache(small):
    task, other = supervise("glyphs-distill"), supervise("glyphs-distill", seed=1)
    recipe = {"seed": 0, "epochs": 1, "lr": 1e-3, "batch_size": 64, "optimizer": "adam"}

    def weights(task, **changed):
        return torch.cat([p.flatten() for p in models.train_ceiling(task, **recipe | changed).parameters()])

    first = weights(task)
    assert torch.equal(first, weights(task))
    for changed in ({"lr": 2e-3}, {"epochs": 2}, {"seed": 1}, {"batch_size": 32}, {"optimizer": "sgd"}):
        assert not torch.equal(first, weights(task, **changed)), changed
    assert not torch.equal(first, weights(other))
    relabelled = task.strong_train._replace(y=task.strong_train.y.flip(0))
    assert not torch.equal(first, weights(task._replace(strong_train=relabelled)))
    assert not torch.equal(first, weights(task._replace(augmentation="affine")))


# -------------------------------------------------------------------------------------------- CIFAR-100


@pytest.mark.parametrize(
    "name, millions", [("resnet20", 0.28), ("resnet56", 0.86), ("vgg8", 3.97), ("vgg13", 9.46)]
)
def test_cifar_networks_have_their_published_size(name, millions):
    network = images.NETWORKS[name](100)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    network.eval()
    torch.testing.assert_close(network(x), network(x / 255))  # both kinds of images
    assert network[:-1](x).shape == (2, network[-1].in_features)


class Generated:
    """Stands for torchvision.datasets.CIFAR100."""

    def __init__(self, root, train, download):
        rng = np.random.default_rng(train)
        self.data = rng.integers(0, 256, (100 if train else 30, 32, 32, 3), dtype=np.uint8)
        self.targets = rng.integers(0, 100, len(self.data)).tolist()


@pytest.mark.parametrize("name", ["cifar100-distill", "cifar100-distill-vgg"])
def test_cifar_runs_the_published_path_on_generated_images(small, name, monkeypatch):
    """The loader, both networks, the views and the recipe, for a few epochs."""
    monkeypatch.setattr("torchvision.datasets.CIFAR100", Generated)
    row = run("adaptive_confidence", "--task", name, "--batch-size", "40", "--data-dir", ".")
    assert row["weak_models"] == [settings.CIFAR[name][0]] and row["encoder"] == settings.CIFAR[name][1]
    assert row["flags"]["optimizer"] == "sgd" and row["flags"]["lr"] == 0.2 and row["n_test"] == 30
    assert len(row["agreement_history"]) == 3
    task = models.supervise(name, 0, ".", "cpu", 4)
    assert task.strong_train.x.dtype == torch.uint8 and len(task.strong_train.y) == 98 == len(task.labels)


def test_missing_cifar_data_is_one_clear_line():
    with pytest.raises(data.InputError, match=r"cifar-100-python/\{train,test,meta\} in nowhere"):
        data.load("cifar100-distill", 0, "nowhere")


def test_schedule_of_the_cifar_recipe():
    """240 epochs of one step: 10 of linear warm-up to .2, then cosine to .002."""
    model = torch.nn.Linear(2, 2)
    optimizer, schedule = training.make_optimizer("sgd", model, 0.2, 240)
    rates = []
    for _ in range(240):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:11] == pytest.approx([0.02 * (i + 1) for i in range(10)] + [0.2])
    assert rates[125] == pytest.approx((0.2 + 0.002) / 2) and rates[-1] == pytest.approx(0.002, abs=1e-4)
    assert optimizer.defaults["weight_decay"] == 5e-4 and optimizer.defaults["nesterov"]
    optimizer, schedule = training.make_optimizer("sgd", model, 0.2, 1)
    assert schedule.get_last_lr() == [0.2]
    optimizer.step()
    schedule.step()


def test_sgd_by_hand():
    """Four steps on the loss 3 w: Nesterov momentum .9, weight decay 5e-4, 2 of 25 steps of warm-up."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    optimizer, schedule = training.make_optimizer("sgd", model, 0.2, 25)
    weight, velocity = model.weight.item(), 0.0
    for step in range(4):
        rate = 0.1 if step == 0 else 0.002 + 0.198 * (1 + math.cos(math.pi * max(0, step - 2) / 23)) / 2
        gradient = 3 + 5e-4 * weight
        velocity = 0.9 * velocity + gradient
        weight -= rate * (gradient + 0.9 * velocity)
        optimizer.zero_grad()
        model(torch.full((1, 1), 3.0, dtype=torch.float64)).sum().backward()
        optimizer.step()
        schedule.step()
        assert model.weight.item() == pytest.approx(weight, rel=1e-9)


# ------------------------------------------------------------------------------------------- after a kill


def interrupt(monkeypatch, at: int):
    """The run is cut off while it writes checkpoint number `at`, counted from 1."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    write, calls = store.write_atomically, []

    def count(path, content):
        write(path, content)
        if path.name.startswith("training-"):
            calls.append(path)
            if len(calls) == at:
                raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_atomically", count)


@pytest.mark.parametrize("method", METHODS)
def test_resumed_training_ends_like_an_unbroken_one(small, method, monkeypatch):
    """With augmentation, whose random numbers have to be restored too; cut off twice."""
    flags = ["--task", "glyphs-transfer", "--epochs", "4"]
    if method == "adaptive_confidence":
        flags += ["--beta", "select", "--beta-ramp", "0.75"]
    main = importlib.import_module(method).main
    [whole] = main([*FLAGS, *flags, "--out", "whole"])
    for at in (1, 2):
        with monkeypatch.context() as patch:
            interrupt(patch, at)
            with pytest.raises(KeyboardInterrupt):
                main([*FLAGS, *flags])
        torch.manual_seed(999)  # another process would be elsewhere too
        [kept] = store.CACHE.glob("training-*")
        assert torch.load(kept)["epoch"] == {1: 1, 2: 3}[at]
    [row] = main([*FLAGS, *flags])
    assert {**row, "seconds": 0} == {**whole, "seconds": 0}
    assert not list(store.CACHE.glob("training-*"))


def test_learned_weights_resume(npz, monkeypatch, tmp_path):
    """RAVEN's weights of three weak models, and their history."""
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    flags = ["--task", npz, "--weight-lr", "0.5", "--easy-phase", "0", "--lr", "0.01"]
    whole = run("raven", *flags, "--out", "whole")
    for _ in range(2):
        with monkeypatch.context() as patch:
            interrupt(patch, 1)
            with pytest.raises(KeyboardInterrupt):
                run("raven", *flags)
    row = run("raven", *flags)
    assert {**row, "seconds": 0} == {**whole, "seconds": 0} and max(row["weights"]) > 0.35


def test_cifar_training_resumes(small, monkeypatch):
    """With SGD and its schedule, uint8 images, AutoAugment and mixup."""
    monkeypatch.setattr("torchvision.datasets.CIFAR100", Generated)
    data.Path("files").mkdir()
    flags = ["--task", "cifar100-distill-vgg", "--batch-size", "40", "--data-dir", "files"]
    whole = run("adaptive_confidence", *flags, "--out", "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run("adaptive_confidence", *flags)
    torch.manual_seed(999)
    assert {**run("adaptive_confidence", *flags), "seconds": 0} == {**whole, "seconds": 0}


def test_teacher_and_ceiling_resume_too(small, monkeypatch):
    monkeypatch.setattr(settings, "TEACHERS", {"narrow CNN": {"epochs": 4, "lr": 1e-3, "batch_size": 32}})
    recipe = {"seed": 0, "epochs": 4, "lr": 1e-3, "batch_size": 32, "optimizer": "adam"}

    def work():
        task = supervise("glyphs-distill")
        ceiling = models.train_ceiling(task, **recipe)
        return torch.cat([p.flatten() for p in [*task.weights["teacher"].values(), *ceiling.parameters()]])

    monkeypatch.setattr(store, "CACHE", data.Path("unbroken"))
    expected = work()
    monkeypatch.setattr(store, "CACHE", data.Path("broken"))
    for at in (2, 3):  # in the teacher after 2 of 4 epochs; then in the ceiling after 2 of 4
        with monkeypatch.context() as patch:
            interrupt(patch, at)
            with pytest.raises(KeyboardInterrupt):
                work()
        torch.manual_seed(999)
    assert torch.equal(work(), expected)


def test_a_damaged_checkpoint_is_left_aside(small, monkeypatch, capsys):
    flags = ["--task", "glyphs-distill"]
    whole = run("naive", *flags, "--out", "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run("naive", *flags)
    [kept] = store.CACHE.glob("training-*")
    kept.write_bytes(kept.read_bytes()[:-100])
    row = run("naive", *flags)
    assert {**row, "seconds": 0} == {**whole, "seconds": 0} and "starts anew" in capsys.readouterr().err


DRIVER = """
import sys
sys.path[:0] = {paths}
import settings, training
import raven

training.CHECKPOINT_SECONDS = 0
settings.SIZES = {{"strong_train": 120, "val": 50, "test": 100}}
raven.main(sys.argv[1:])
"""


def test_a_killed_process_goes_on_where_it_was():
    data.Path("driver.py").write_text(DRIVER.format(paths=[str(ROOT), str(ROOT / "methods")]))
    flags = [*FLAGS, "--task", "glyphs-distill", "--epochs", "60"]
    command = [sys.executable, "driver.py", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (list(data.Path("cache").glob("ceiling-*")) and list(data.Path("cache").glob("training-*"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not data.Path("runs/raven.jsonl").exists() and list(data.Path("cache").glob("training-*"))
    rows = []
    for out in ("runs", "unbroken"):
        result = subprocess.run([*command, "--out", out], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        rows.append({**json.loads(result.stdout), "seconds": 0})
    assert rows[0] == rows[1]


def test_short_trainings_leave_no_checkpoint(small, monkeypatch):
    write, written = store.write_atomically, []
    monkeypatch.setattr(store, "write_atomically", lambda p, w: written.append(p.name) or write(p, w))
    run("naive", "--task", "glyphs-distill")
    assert written and not any(name.startswith("training-") for name in written)


def test_two_teachers_of_one_data_set_have_checkpoints_of_their_own(small, monkeypatch):
    task = data.load("glyphs-distill", 0)
    for name in ("narrow CNN", "residual CNN"):
        with monkeypatch.context() as patch:
            patch.setitem(settings.TEACHERS, name, {"epochs": 3, "lr": 1e-3, "batch_size": 32})
            interrupt(patch, 1)
            with pytest.raises(KeyboardInterrupt):
                models.label_by_teacher(task._replace(weak_models=[name]), 0, "cpu", 4)
    assert len(list(store.CACHE.glob("training-*"))) == 2
