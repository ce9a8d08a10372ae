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
def supervise(monkeypatch, tmp_path):
    """Few images, teachers that train for one epoch, and a cache of its own, as its key does not see that."""
    for name, setting in labelled.SETTINGS.items():
        recipe = setting.teacher_recipe | {"epochs": 1, "batch_size": 64}
        monkeypatch.setitem(labelled.SETTINGS, name, setting._replace(teacher_recipe=recipe))
    monkeypatch.setattr(labelled, "SIZES", {"strong_train": 90, "val": 30, "test": 60})
    monkeypatch.setattr(labelled, "PER_NOVEL_CLASS", 20)
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    return lambda name, folder=None: teachers.supervise(data.resolve(name), 0, folder, "cpu", 1)


def test_noise_matrices_by_hand():
    symmetric = labelled.noise_matrix("symmetric", 0.2)
    torch.testing.assert_close(symmetric, torch.full((10, 10), 0.2 / 9).fill_diagonal_(0.8))
    asymmetric = torch.eye(10)
    for true, other in {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}.items():
        asymmetric[true, true], asymmetric[true, other] = 0.6, 0.4
    torch.testing.assert_close(labelled.noise_matrix("asymmetric", 0.4), asymmetric)


def test_the_teacher_learns_the_corrupted_labels_and_only_the_student_sees_them(supervise, monkeypatch):
    monkeypatch.setattr(labelled, "SIZES", labelled.SIZES | {"strong_train": 1000})
    x, y, _, labels = data.load("glyphs-noisy-asymmetric-0.3", 0).strong_train
    seen, confused = [], torch.tensor([0, 1, 7, 8, 4, 6, 5, 1, 8, 9])[y]
    assert ((labels == y) | (labels == confused)).all()
    assert (labels != y)[confused != y].double().mean() == pytest.approx(0.3, abs=0.06)
    monkeypatch.setattr(models, "fit", lambda model, *given, **etc: seen.append(given) or model)
    task = supervise("glyphs-noisy-asymmetric-0.3")
    assert all(map(torch.equal, seen[0], (x, labels)))
    assert torch.equal(task.strong_train.labels, labels) and torch.equal(task.strong_train.y, y)
    assert task.val.labels is None is task.test.labels and models.make_view(task) is None
    assert (task.weak_models, task.encoder) == (["narrow CNN"], "residual CNN")


def test_few_shot_scores_all_networks_on_the_same_episodes_against_a_loop(monkeypatch):
    monkeypatch.setattr(labelled, "EPISODES", 50)
    y, generator = torch.arange(8).repeat(30), torch.Generator().manual_seed(0)
    network = torch.randn(8, 9, generator=generator)[y] + 2 * torch.randn(240, 9, generator=generator)
    both = {"student": network, "copy": network}
    table = labelled.few_shot(y, both, torch.Generator().manual_seed(0))
    generator.manual_seed(0)
    for shots in (1, 5):
        support, query = labelled.draw_episodes(y, shots, 50, generator)
        assert support.shape == (50, 5, shots) and query.shape == (50, 5, 15) and len(query.unique()) == 240
        scores = []
        for shown, asked in zip(support, query):
            used = torch.cat([shown, asked], 1)
            assert len(used.unique()) == used.numel() and len(y[used[:, 0]].unique()) == 5
            assert (y[used] == y[used][:, :1]).all()
            centroids = torch.stack([network[each].mean(0) for each in shown])
            nearest = [torch.cosine_similarity(network[i], centroids).argmax() for i in asked.flatten()]
            scores.append(sum(found == way // 15 for way, found in enumerate(nearest)) / 75)
        expected = [np.mean(scores), 1.96 * np.std(scores, ddof=1) / 50**0.5]
        assert table[f"{shots}-shot"]["copy"] == table[f"{shots}-shot"]["student"] == pytest.approx(expected)


def test_novel_classes_are_not_base_classes(supervise):
    assert len({*labelled.BASE, *labelled.NOVEL["val"], *labelled.NOVEL["test"]}) == 26 + 10 + 10
    task = supervise("glyphs-fewshot")
    assert task.num_classes == 26 and set(task.novel) == {"val", "test"}
    for split in task.novel.values():
        assert split.x.shape == (200, 1, 28, 28) and split.y.bincount().tolist() == [20] * 10


@pytest.mark.parametrize("augmentation", ["affine", "crops", "crops, AutoAugment, mixup"])
def test_views_keep_labels_and_range(augmentation):
    glyphs = augmentation == "affine"
    torch.manual_seed(0)
    x = torch.rand(1, 1, 28, 28) if glyphs else torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    x = x.repeat(40, 1, 1, 1)
    labels, network = torch.arange(40), nn.Sequential(nn.Flatten(), nn.LazyLinear(7), nn.Softmax(-1))
    network(x.float())
    seen, weak_probs, given = labelled.view(augmentation, network)(x, torch.zeros(40, 1, 7), labels)
    assert seen.shape == x.shape and seen.dtype == torch.float32
    assert seen.min() >= 0 and seen.max() <= 1 and 0.1 < seen.mean() < 0.9
    assert len(seen.flatten(1).unique(dim=0)) == 40 // labelled.GROUP or "mixup" in augmentation
    torch.testing.assert_close(weak_probs[:, 0], network(seen))  # the teacher labels what the student sees
    if "mixup" in augmentation:
        assert given.shape == (40, 100) and ((given > 0).sum(1) <= 2).all()
        torch.testing.assert_close(given.sum(1), torch.ones(40))
        assert (given.argmax(1) == labels).all() or (given.argmax(1) == labels.roll(1)).all()
    else:
        assert torch.equal(given, labels)


def test_fine_tuning_starts_from_the_encoder_and_the_teacher_labels_images_and_views(supervise):
    plain, task = data.load("glyphs-transfer", 0), supervise("glyphs-transfer")
    assert len(plain.strong_train.y) == 500 and torch.equal(task.strong_train.x, plain.strong_train.x)
    x, student, teacher = task.test.x, models.make_student(task, seed=3).eval(), models.load_teacher(task)
    encoder = images.NETWORKS["letters CNN"](10)[:-1].eval()
    encoder.load_state_dict(models.pretrained("letters CNN", 1, "cpu"))
    torch.testing.assert_close(student[:-1](x), encoder(x))
    again, other = (models.make_student(task, seed).eval()(x) for seed in (3, 4))
    assert torch.equal(student(x), again) and not torch.allclose(student(x), other)
    for split in (task.strong_train, task.val, task.test):
        torch.testing.assert_close(split.weak_probs[:, 0], models.predict(teacher, split.x).softmax(-1))
    seen, weak_probs, _ = models.make_view(task)(x, task.test.weak_probs, task.test.y)
    assert not torch.equal(seen, x) and not weak_probs.requires_grad
    torch.testing.assert_close(weak_probs[:, 0], models.predict(teacher, seen).softmax(-1))


def generated(root, train, download):
    """Stands for torchvision.datasets.CIFAR100: the class is written into a pixel of the first row."""
    n = 50 if train else 8
    images = np.random.default_rng(train).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    images[:, 0, 5, 2] = range(n)
    return SimpleNamespace(data=images, targets=list(range(n)))


SIZES_IN_MILLIONS = {"resnet20": 0.28, "resnet56": 0.86, "vgg8": 3.97, "vgg13": 9.46}


@pytest.mark.parametrize("end, teacher, student", [("", "resnet20", "resnet56"), ("-vgg", "vgg8", "vgg13")])
def test_cifar_runs_the_published_path_on_generated_images(supervise, end, teacher, student, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR100", generated)
    task = supervise(f"cifar100-distill{end}", ".")
    assert (task.weak_models, task.encoder, task.num_classes) == ([teacher], student, 100)
    for split, size in ((task.strong_train, 49), (task.val, 1), (task.test, 8)):
        assert split.x.dtype == torch.uint8 and split.weak_probs.shape == (size, 1, 100)
        assert torch.equal(split.x[:, 2, 0, 5].long(), split.y)
    assert torch.equal(task.strong_train.labels, task.strong_train.y)
    assert len({*task.strong_train.y.tolist(), *task.val.y.tolist()}) == 50  # disjoint
    x, _, weak_probs, labels = (part[:3] for part in task.strong_train)
    networks = {student: models.make_student(task, 0).eval(), teacher: models.load_teacher(task)}
    for name, network in networks.items():
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        assert millions == pytest.approx(SIZES_IN_MILLIONS[name], abs=0.006)
        torch.testing.assert_close(network(x), network(x / 255))  # both kinds of images
    seen, _, given = models.make_view(task)(x, weak_probs, labels)
    assert nn.functional.cross_entropy(network(seen), given).isfinite()
