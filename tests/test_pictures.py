"""Folders of images, and the encoders that look at them: all made here, without a network."""

import shutil
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import run_script
from PIL import Image
from torchvision import models as networks

import data
import models
import store
import teachers
from methods import prototypes
from tasks import pictures

CLASSES = ["a red", "b green", "c blue"]  # the channel that is brighter
OWN = """import torch
from torchvision.transforms import ToTensor
def colours(size=1):  # at 1 the mean of each channel: also a classifier
    open("calls", "a").write("x")
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(size), torch.nn.Flatten()), ToTensor()
many = lambda: colours(9)
broken = lambda: (torch.nn.Flatten(0), ToTensor())
"""


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """20 noisy images of each colour in three domains; paint has a class of its own besides."""
    rng = np.random.default_rng(0)
    for domain in ("paint", "glass_blur/3", "real-life photos"):
        for channel, name in enumerate([*CLASSES, "gold"] if domain == "paint" else CLASSES):
            (folder := tmp_path / "photos" / domain / name).mkdir(parents=True)
            for i in range(20):
                pixels = rng.integers(0, 150, (12, 10, 3)) + 60 * (np.arange(3) == channel)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(pictures, "SIDE", 8)
    fit = models.fit
    monkeypatch.setattr(models, "fit", lambda *given, **recipe: fit(*given, **recipe | {"length": 6}))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path / "photos"


def supervise(name, **encoders):
    encoders = {"image_encoder": "python:mine:colours", "weak_encoder": "python:mine:colours"} | encoders
    return teachers.supervise(data.resolve(name), 0, "photos", "cpu", 1, **encoders)


def test_splits_are_of_the_shared_classes_and_disjoint(photos):
    shutil.copy(photos / "paint/a red/0.png", photos / "paint/a red/00.png")  # one image, one side
    task = data.load("folder:glass_blur/3+real-life photos:paint", 0, "photos")
    target, sources = [task.strong_train, task.val, task.test], task.weak_train
    for split in (*target, *sources.values()):
        assert [CLASSES[y] for y in split.y] == [Path(x).parts[-2] for x in split.x]
    assert [len(sources[domain].x) for domain in ("glass_blur/3", "real-life photos")] == [60, 60]
    content = [{data.fingerprint(x) for x in split.x} for split in target]
    assert len(set.union(*content)) == sum(map(len, content)) == 60 and len(content[0]) == 42


@pytest.mark.parametrize("name, sizes", [("paint", [63, 1, 16]), ("glass_blur/3:paint", [10, 6, 10])])
def test_one_domain_alone_is_used_whole(monkeypatch, name, sizes):
    monkeypatch.setattr(data, "SIZES", dict.fromkeys(data.SIZES, 10))
    assert [len(split.y) for split in data.load(f"folder:{name}", 0, "photos")[3:6]] == sizes


def test_rows_name_the_encoder_whose_features_are_computed_once_for_all_seeds():
    name, own = "folder:glass_blur/3:real-life photos", "python:mine:colours"
    given = f"--data-dir photos --device cpu --image-encoder {own} --seeds 0".split()
    rows = run_script(prototypes, "--task", name, *given, "1")
    for row in rows:
        assert row["task"] == name and row["weak_models"] == ["linear", "mlp", "cnn"] and row["n_test"] == 12
        assert row["encoder"] == row["flags"]["image_encoder"] == data.row_name(own) and row["student"] > 0.8
    assert Path("calls").read_text() == "x"  # of the target, not of the source
    assert run_script(prototypes, "--task", name, *given) == rows[:1]


@pytest.mark.parametrize("weak, several", [("many", True), ("many", False), (None, True)])
def test_weak_models_learn_the_colours(weak, several):
    sources = "paint+glass_blur/3" if several else "paint"
    task = supervise(f"folder:{sources}:real-life photos", weak_encoder=weak and f"python:mine:{weak}")
    assert task.weak_models == (["paint", "glass_blur/3"] if several else ["head", "noisy", "few"])
    assert (task.strong_train.weak_probs.argmax(-1) == task.strong_train.y[:, None]).double().mean() > 0.9


def test_without_a_source_weak_labels_are_the_classifiers_own():
    task, plain = supervise("folder:glass_blur/3"), data.load("folder:glass_blur/3", 0, "photos")
    mean = torch.tensor(np.stack([np.asarray(Image.open(x)).mean((0, 1)) / 255 for x in plain.test.x]))
    torch.testing.assert_close(task.test.weak_probs[:, 0].double(), mean.softmax(-1), rtol=0, atol=1e-6)


ERRORS = [
    ({"name": "folder:paint:none"}, "no image in photos/none/CLASS"),
    ({"name": "folder:single:paint"}, r"share the classes \['a red'\]; needed are two"),
    ({"name": "folder:bad:paint"}, "^cannot read photos/bad/a red/1.png .cannot identify"),
    ({"name": "folder:paint"}, "colours knows 3 classes, the folder has 4"),
    ({"name": "folder:paint", "weak_encoder": None}, "--weak-encoder alexnet"),
    ({"image_encoder": "python:missing:colours"}, "cannot import the module of python:missing:colours"),
    ({"image_encoder": "python:mine:missing"}, "cannot use python:mine:missing .AttributeError: "),
    ({"image_encoder": "python:mine:broken"}, "expected is a tensor with a row for each image"),
    ({"image_encoder": "timm:any"}, "cannot use timm:any .ModuleNotFoundError"),
    ({"image_encoder": "alexnet"}, r"URLError: .*downloaded; --image-encoder python:MODULE:FUNCTION reads"),
]


@pytest.mark.parametrize("given, message", ERRORS)
def test_what_cannot_be_used_is_one_clear_line(photos, monkeypatch, given, message):
    def fail(*_, **__):
        raise URLError("no\nnetwork")

    monkeypatch.setattr(networks.AlexNet_Weights, "get_state_dict", fail)
    monkeypatch.setitem(sys.modules, "timm", None)
    shutil.copytree(photos / "paint/a red", photos / "single/a red")
    shutil.copytree(photos / "paint", photos / "bad")
    (photos / "bad/a red/1.png").write_text("no image")
    with pytest.raises(data.InputError, match=message) as error:
        supervise(**{"name": "folder:glass_blur/3"} | given)
    assert "\n" not in str(error.value)


def test_named_networks_of_torchvision_and_hub(photos, monkeypatch):
    plain, files = networks.shufflenet_v2_x0_5().eval(), [str(photos / f"paint/gold/{i}.png") for i in (3, 1)]
    weights, name = networks.ShuffleNet_V2_X0_5_Weights, "shufflenet_v2_x0_5"
    monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: plain.state_dict())
    made = [pictures.encoder(name, whole) for whole in (False, True)]
    x, logits = (pictures.features(name, *each, files, "cpu", False) for each in made)
    torch.testing.assert_close(plain.fc(x), logits)
    monkeypatch.setattr(torch.hub, "load", lambda *given, **_: made.append(given) or torch.nn.Flatten())
    hub = pictures.features("hub", *pictures.encoder("hub:a/b:c:d", False), files, "cpu", False)
    assert hub.shape == (2, 3 * 224 * 224) and made[2] == ("a/b:c", "d")
