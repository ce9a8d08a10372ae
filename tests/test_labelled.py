"""Tasks whose student is a whole network that also gets labels: noise, episodes, views, teachers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import data
import models
import store
import teachers
from tasks import images, labelled


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Few images, teachers that train for one epoch, and a cache of its own, as its key does not see that."""
    settings = {
        name: setting._replace(teacher_recipe=setting.teacher_recipe | {"epochs": 1, "batch_size": 64})
        for name, setting in labelled.SETTINGS.items()
    }
    monkeypatch.setattr(labelled, "SETTINGS", settings)
    monkeypatch.setattr(labelled, "SIZES", {"strong_train": 90, "val": 30, "test": 60})
    monkeypatch.setattr(labelled, "PER_NOVEL_CLASS", 20)
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")


def supervise(name, folder=None):
    return teachers.supervise(data.resolve(name), 0, folder, "cpu", 1)


def test_noise_matrices_by_hand():
    symmetric = labelled.noise_matrix("symmetric", 0.2, 5)
    torch.testing.assert_close(symmetric, torch.full((5, 5), 0.05) + 0.75 * torch.eye(5))
    asymmetric = torch.eye(10)
    for true, other in {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}.items():
        asymmetric[true, true], asymmetric[true, other] = 0.6, 0.4
    torch.testing.assert_close(labelled.noise_matrix("asymmetric", 0.4, 10), asymmetric)


def test_corrupted_labels_follow_the_matrix():
    y = torch.arange(10).repeat(5000)
    matrix = labelled.noise_matrix("asymmetric", 0.4, 10)
    labels = labelled.corrupt(y, matrix, torch.Generator().manual_seed(0))
    counts = torch.zeros(10, 10).index_put_((y, labels), torch.ones(len(y)), accumulate=True) / 5000
    torch.testing.assert_close(counts, matrix, atol=0.03, rtol=0)
    assert not counts[matrix == 0].any()


def test_the_teacher_learns_the_corrupted_labels_and_only_the_student_sees_them(small, monkeypatch):
    x, y, _, labels = data.load("glyphs-noisy-asymmetric-0.4", 0).strong_train
    fit, seen = models.fit, []
    monkeypatch.setattr(models, "fit", lambda m, x, y, **etc: seen.append((x, y)) or fit(m, x, y, **etc))
    task = supervise("glyphs-noisy-asymmetric-0.4")
    [(inputs, targets)] = seen
    assert torch.equal(inputs, x) and torch.equal(targets, labels) and not torch.equal(labels, y)
    assert torch.equal(task.strong_train.labels, labels) and torch.equal(task.strong_train.y, y)
    assert task.val.labels is None is task.test.labels


@pytest.mark.parametrize("shots", [1, 5])
def test_episodes_support_and_query_are_disjoint(shots):
    y = torch.arange(8).repeat(30)
    support, query = labelled.draw_episodes(y, shots, 200, torch.Generator().manual_seed(0))
    assert support.shape == (200, 5, shots) and query.shape == (200, 5, 15)
    used = torch.cat([support, query], 2)
    classes = y[used]
    assert all(len(episode.unique()) == episode.numel() for episode in used)
    assert all(len(episode.unique()) == 5 for episode in classes)
    assert (classes == classes[:, :, :1]).all() and len(support.unique()) > 200


def test_episode_accuracy_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(6).repeat_interleave(25)
    features = torch.randn(6, 9, generator=generator)[y] + 2 * torch.randn(150, 9, generator=generator)
    support, query = labelled.draw_episodes(y, 5, 10, generator)
    for score, shown, asked in zip(labelled.episode_accuracy(features, support, query), support, query):
        centroids = torch.stack([features[each].mean(0) for each in shown])
        nearest = [torch.cosine_similarity(features[i], centroids).argmax().item() for i in asked.flatten()]
        right = sum(found == way // 15 for way, found in enumerate(nearest))
        assert score.item() == pytest.approx(right / 75) and 0.2 < score < 1


def test_few_shot_scores_all_networks_on_the_same_episodes(monkeypatch):
    monkeypatch.setattr(labelled, "EPISODES", 50)
    generator = torch.Generator().manual_seed(0)
    y, features = torch.arange(8).repeat(25), torch.randn(200, 6, generator=generator)
    networks = {"student": features + y[:, None].float().sin(), "copy": features, "weak": features}
    table = labelled.few_shot(y, networks, torch.Generator().manual_seed(0))
    assert table["1-shot"]["copy"] == table["1-shot"]["weak"] != table["5-shot"]["weak"]
    episodes = labelled.draw_episodes(y, 1, 50, torch.Generator().manual_seed(0))
    scores = labelled.episode_accuracy(networks["student"], *episodes)
    expected = [scores.mean().item(), 1.96 * scores.std().item() / 50**0.5]
    assert table["1-shot"]["student"] == pytest.approx(expected)


def test_novel_classes_are_not_base_classes(small):
    assert len({*labelled.BASE, *labelled.NOVEL["val"], *labelled.NOVEL["test"]}) == 26 + 10 + 10
    task = supervise("glyphs-fewshot")
    assert task.num_classes == 26 and set(task.novel) == {"val", "test"}
    for split in task.novel.values():
        assert split.x.shape == (200, 1, 28, 28) and split.y.bincount().tolist() == [20] * 10


@pytest.mark.parametrize("augmentation", ["affine", "crops", "crops, AutoAugment, mixup"])
def test_views_keep_labels_and_range(augmentation):
    glyphs = augmentation == "affine"
    torch.manual_seed(0)
    x = torch.rand(40, 1, 28, 28) if glyphs else torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    labels, network = torch.arange(40), nn.Sequential(nn.Flatten(), nn.LazyLinear(7), nn.Softmax(-1))
    network(x.float())
    seen, weak_probs, given = labelled.view(augmentation, network)(x, torch.zeros(40, 1, 7), labels)
    assert seen.shape == x.shape and seen.dtype == torch.float32
    assert seen.min() >= 0 and seen.max() <= 1 and 0.1 < seen.mean() < 0.9
    whole = x if glyphs else x / 255
    assert sum(not torch.allclose(a, b, atol=0.01) for a, b in zip(seen, whole)) > 30
    torch.testing.assert_close(weak_probs[:, 0], network(seen))  # the teacher labels what the student sees
    if "mixup" in augmentation:
        assert given.shape == (40, 100) and ((given > 0).sum(1) <= 2).all()
        torch.testing.assert_close(given.sum(1), torch.ones(40))
        assert (given.argmax(1) == labels).all() or (given.argmax(1) == labels.roll(1)).all()
    else:
        assert torch.equal(given, labels)


def test_groups_of_images_are_augmented_differently():
    seen, _ = labelled.view("affine")(torch.rand(1, 1, 28, 28).expand(32, 1, 28, 28), torch.zeros(32))
    assert len(seen.flatten(1).unique(dim=0)) == 32 // labelled.GROUP


def test_images_are_not_standardised_and_the_teacher_labels_them(small):
    plain, task = data.load("glyphs-distill", 0), supervise("glyphs-distill")
    assert (task.weak_models, task.encoder) == (["narrow CNN"], "residual CNN")
    assert models.make_view(task) is None and torch.equal(task.strong_train.x, plain.strong_train.x)
    teacher = models.load_teacher(task)
    for split in (task.strong_train, task.val, task.test):
        expected = models.predict(teacher, split.x).softmax(-1)
        torch.testing.assert_close(split.weak_probs[:, 0], expected)


def test_fine_tuning_starts_from_the_encoder_and_seeds_fix_the_start(small):
    task = supervise("glyphs-transfer")
    x, student = task.test.x, models.make_student(task, seed=3).eval()
    encoder = images.image_encoder(24)
    encoder.load_state_dict(models.pretrained("letters CNN", 1, "cpu"))
    torch.testing.assert_close(student[:-1](x), encoder.eval()(x))
    again, other = (models.make_student(task, seed).eval()(x) for seed in (3, 4))
    assert torch.equal(student(x), again) and not torch.allclose(student(x), other)
    seen, weak_probs, _ = models.make_view(task)(x, task.test.weak_probs, task.test.y)
    assert not torch.equal(seen, x) and not weak_probs.requires_grad
    expected = models.predict(models.load_teacher(task), seen).softmax(-1)
    torch.testing.assert_close(weak_probs[:, 0], expected)


SIZES_IN_MILLIONS = {"resnet20": 0.28, "resnet56": 0.86, "vgg8": 3.97, "vgg13": 9.46}


@pytest.mark.parametrize("name, millions", SIZES_IN_MILLIONS.items())
def test_cifar_networks_have_their_published_size(name, millions):
    network = images.NETWORKS[name](100).eval()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(network(x), network(x / 255))  # both kinds of images


def generated(root, train, download):
    """Stands for torchvision.datasets.CIFAR100: the class is written into a pixel of the first row."""
    n = 100 if train else 30
    images = np.random.default_rng(train).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    images[:, 0, 5, 2] = range(n)
    return SimpleNamespace(data=images, targets=list(range(n)))


@pytest.mark.parametrize("end, teacher, student", [("", "resnet20", "resnet56"), ("-vgg", "vgg8", "vgg13")])
def test_cifar_runs_the_published_path_on_generated_images(small, end, teacher, student, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR100", generated)
    task = supervise(f"cifar100-distill{end}", ".")
    assert (task.weak_models, task.encoder, task.num_classes) == ([teacher], student, 100)
    for split, size in ((task.strong_train, 98), (task.val, 2), (task.test, 30)):
        assert split.x.dtype == torch.uint8 and split.weak_probs.shape == (size, 1, 100)
        assert torch.equal(split.x[:, 2, 0, 5].long(), split.y)
    assert torch.equal(task.strong_train.labels, task.strong_train.y)
    assert len({*task.strong_train.y.tolist(), *task.val.y.tolist()}) == 100  # disjoint
    x, _, weak_probs, labels = (part[:9] for part in task.strong_train)
    seen, _, given = models.make_view(task)(x, weak_probs, labels)
    assert nn.functional.cross_entropy(models.make_student(task, 0)(seen), given).isfinite()
