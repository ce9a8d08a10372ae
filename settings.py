"""The settings of AdaptConf's paper: the student is a whole network, and gets labels besides a teacher's.

    glyphs-distill                 distillation: true labels
    glyphs-noisy-symmetric-RATE    noisy labels: at RATE a label is one of the other nine classes
    glyphs-noisy-asymmetric-RATE   at RATE 2 becomes 7, 3 becomes 8, 7 becomes 1, 5 and 6 each other; the
                                   other five classes stay: about RATE / 2 of all labels are wrong
    glyphs-fewshot                 few-shot: letters a-z with labels; scored on digits, classes it never saw
    glyphs-transfer                transfer: the encoder pretrained on letters is fine-tuned on 500 digits
    cifar100-distill               distillation as published: ResNet20 -> ResNet56
    cifar100-distill-vgg           VGG8 -> VGG13, with AutoAugment and mixup

The student starts from scratch but in glyphs-transfer. The teacher is one smaller network, trained on the
same images and labels: half as wide as the student; in glyphs-transfer, the network that is the student
elsewhere. Characters are rendered as in glyphs-shift, at its default severity. The true class is never drawn
as a wrong label. (Where it may be, as in the loader of DivideMix, 20 % leave 18 % wrong.)

The defaults of adaptive_confidence.py were chosen for tasks without labels. Its authors' own:

    distill    --temperature 0.5 --beta-ramp 0       fewshot    --temperature 8 --beta-ramp 0.25
    noisy      --temperature 0.5 --beta-ramp 0.25    transfer   --temperature 4 --beta-ramp 0

To stand beside their 73.81 / 73.86 / 74.17 (KD / AugConf / AdaptConf); a run that was stopped goes on:

    python methods/naive.py --task cifar100-distill
    python methods/confidence.py --task cifar100-distill
    python methods/adaptive_confidence.py --task cifar100-distill --temperature 0.5 --beta-ramp 0
    python summarize_settings.py

Differences from their CIFAR-100: 49,000 training images, as 1,000 are held out; the last epoch instead of the
best on test; padded crops and flips, drawn once for 8 images; PyTorch's initialisation; weight decay also on
biases and normalisation. Nobody has run it to its end here.
"""

import math
import re
from typing import NamedTuple

import torch
import torch.nn.functional as F

import data
import images
import training

SIZES = {"strong_train": 2000, "val": 1000, "test": 4000}
# Patrini et al. 2017: digits that look alike. The other five classes keep their labels.
CONFUSED = {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}
BASE, NOVEL_VAL, NOVEL_TEST = "abcdefghijklmnopqrstuvwxyz", "ABDEGHNQRT", images.DIGITS
PER_NOVEL_CLASS = 100
WAYS, SHOTS, QUERIES, EPISODES = 5, (1, 5), 15, 600
GROUP = 8
# Teacher, student and augmentation of each cifar100 task.
CIFAR = {
    "cifar100-distill": ("resnet20", "resnet56", "crops"),
    "cifar100-distill-vgg": ("vgg8", "vgg13", "crops, AutoAugment, mixup"),
}


class Recipe(NamedTuple):
    """How a task trains student and ceiling where no flag says otherwise."""

    epochs: int
    lr: float
    ceiling_lr: float
    batch_size: int
    optimizer: str = "adam"


HEAD = Recipe(20, 3e-5, 1e-3, 128)  # README, "How the defaults were chosen"
RECIPES = {  # of whole networks, by the start of the task's name
    "cifar100-": Recipe(240, 0.2, 0.2, 512, "sgd"),
    "glyphs-transfer": Recipe(20, 1e-3, 1e-3, 64),
    "glyphs-": Recipe(12, 1e-2, 1e-2, 128),
}
PUBLISHED = {"epochs": 240, "lr": 0.2, "batch_size": 512, "optimizer": "sgd"}
TEACHERS = {
    "narrow CNN": {"epochs": 15, "lr": 3e-3, "batch_size": 64},
    "residual CNN": {"epochs": 30, "lr": 3e-3, "batch_size": 64},
    "resnet20": PUBLISHED,
    "vgg8": PUBLISHED,
}


def recipe(name: str) -> dict:
    """The recipe of the task `name`, as flags."""
    if not re.fullmatch(data.NETWORK_TASKS, name):
        return HEAD._asdict()
    return next(recipe for start, recipe in RECIPES.items() if name.startswith(start))._asdict()


def load(name: str, seed: int, data_dir: str | None) -> data.Task:
    """The task of that name, its images still without a teacher's labels."""
    if name.startswith("cifar100"):
        return cifar100(name, seed, data_dir)
    generator = torch.Generator().manual_seed(seed)
    few_shot, transfer = name == "glyphs-fewshot", name == "glyphs-transfer"
    classes = BASE if few_shot else images.DIGITS
    sizes = SIZES | ({"strong_train": 500} if transfer else {})
    splits = {
        split: draw(classes, torch.randint(len(classes), (size,), generator=generator), generator)
        for split, size in sizes.items()
    }
    labels = splits["strong_train"].y
    if "noisy" in name:
        kind, rate = name.split("-")[2:]
        labels = corrupt(labels, noise_matrix(kind, float(rate), len(classes)), generator)
    novel = {}
    if few_shot:
        y = torch.arange(10).repeat_interleave(PER_NOVEL_CLASS)
        novel = {"val": draw(NOVEL_VAL, y, generator), "test": draw(NOVEL_TEST, y, generator)}
    return data.Task(
        "image", len(classes), None, **splits, labels=labels, novel=novel,
        weak_models=["residual CNN" if transfer else "narrow CNN"],
        student_kind="fine-tuned" if transfer else "from scratch",
        encoder="letters CNN" if transfer else "residual CNN",
        augmentation="affine" if transfer else "",
    )  # fmt: skip


def draw(characters: str, y: torch.Tensor, generator) -> data.Split:
    """Images of characters[y], at the default severity."""
    severity = torch.full((len(y),), data.DEFAULT_SEVERITY)
    return data.Split(images.render(images.draw_atlas(characters), y, severity, generator), y)


def cifar100(name: str, seed: int, data_dir: str | None) -> data.Task:
    """CIFAR-100 with 1,000 of its 50,000 training images held out for validation. Images are uint8."""
    from torchvision import datasets  # here, as its import takes a second

    files = "cifar-100-python/{train,test,meta}"
    parts = data.read_torchvision(datasets.CIFAR100, "cifar100", files, data_dir)
    splits = [
        data.Split(torch.as_tensor(part.data).permute(0, 3, 1, 2).contiguous(), torch.as_tensor(part.targets))
        for part in (parts["train"], parts["test"])
    ]
    order = torch.randperm(len(splits[0].y), generator=torch.Generator().manual_seed(seed))
    x, y, _ = splits[0]
    held_out = max(1, len(x) // 50)
    val, train = (data.Split(x[part], y[part]) for part in (order[:held_out], order[held_out:]))
    teacher, student, augmentation = CIFAR[name]
    return data.Task(
        "image", 100, None, train, val, splits[1], labels=train.y, weak_models=[teacher],
        student_kind="from scratch", encoder=student, augmentation=augmentation,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------- noisy labels


def noise_matrix(kind: str, rate: float, num_classes: int) -> torch.Tensor:
    """Probability of each label (columns) given the true class (rows): (C, C). The kinds: see the top."""
    if kind == "symmetric":
        matrix = torch.full((num_classes, num_classes), rate / (num_classes - 1))
        return matrix.fill_diagonal_(1 - rate)
    matrix = torch.eye(num_classes)
    for true, other in CONFUSED.items():
        matrix[true, true], matrix[true, other] = 1 - rate, rate
    return matrix


def corrupt(y: torch.Tensor, matrix: torch.Tensor, generator) -> torch.Tensor:
    """Labels drawn for the true classes y (N,) -> (N,)."""
    return torch.multinomial(matrix[y], 1, generator=generator)[:, 0]


# --------------------------------------------------------------------------------------------------- few-shot


def draw_episodes(y: torch.Tensor, shots: int, episodes: int, generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of support (E, WAYS, shots) and query samples (E, WAYS, QUERIES) of WAYS classes, all distinct.

    y (N,) classes, of each of which there are equally many samples.
    """
    members = y.argsort(stable=True).view(len(y.unique()), -1)  # (classes, samples of each)
    classes = torch.rand(episodes, len(members), generator=generator).argsort(1)[:, :WAYS]
    order = torch.rand(episodes, WAYS, members.shape[1], generator=generator).argsort(2)
    chosen = members[classes].gather(2, order[:, :, : shots + QUERIES])
    return chosen[:, :, :shots], chosen[:, :, shots:]


def episode_accuracy(features: torch.Tensor, support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Share of the queries to which, by cosine, the centroid of their class is nearest: (N, D) -> (E,)."""
    centroids = F.normalize(features[support].mean(2), dim=-1)  # (E, WAYS, D)
    queries = F.normalize(features, dim=-1)[query].flatten(1, 2)  # (E, WAYS * QUERIES, D)
    nearest = (queries @ centroids.mT).argmax(-1).unflatten(1, query.shape[1:])
    return (nearest == torch.arange(WAYS)[:, None]).double().mean((1, 2))


def few_shot(novel: dict[str, data.Split], networks: dict) -> dict:
    """{part of novel: {"1-shot" and "5-shot": {network: [mean accuracy, half of its 95 % interval over the
    episodes]}}}. All networks meet the same episodes."""
    table = {}
    for part, (x, y, _) in novel.items():
        generator = torch.Generator().manual_seed(0)
        features = {name: training.predict(network[:-1], x) for name, network in networks.items()}
        for shots in SHOTS:
            support, query = draw_episodes(y.cpu(), shots, EPISODES, generator)
            entry = table.setdefault(part, {}).setdefault(f"{shots}-shot", {})
            for name, own in features.items():
                scores = episode_accuracy(own.cpu(), support, query)
                entry[name] = [scores.mean().item(), 1.96 * scores.std().item() / math.sqrt(EPISODES)]
    return table


# ------------------------------------------------------------------------------------------------------ views


def transforms(augmentation: str):
    """Of an augmentation by its name: the transform of images, and that of a batch with labels, or None."""
    from torchvision.transforms import v2  # here, as its import takes a second

    as_floats = v2.ToDtype(torch.float32, scale=True)
    crops = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    return {
        "affine": (v2.RandomAffine(10, translate=(0.07, 0.07), scale=(0.9, 1.1)), None),
        "crops": (v2.Compose([*crops, as_floats]), None),
        "crops, AutoAugment, mixup": (
            v2.Compose([*crops, v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET), as_floats]),
            v2.MixUp(alpha=0.1, num_classes=100),
        ),
    }[augmentation]


class View:
    """What teacher and student see of a batch: augmented images, with the teacher's labels of these images.

    A transform draws its random numbers once for all images that it is given: GROUP of them share an angle or
    a crop. (One at a time, CIFAR-100 would cost 200 microseconds an image instead of 14.)
    """

    def __init__(self, augmentation: str, teacher):
        self.augment, self.mix = transforms(augmentation)
        self.teacher = teacher

    def __call__(self, x, weak_probs, labels):
        """x (B, ...), weak_probs (B, 1, C) or None, labels (B,) -> the same, labels (B, C) where mixed."""
        x = torch.cat([self.augment(part) for part in x.split(GROUP)])
        if self.mix:
            x, labels = self.mix(x, labels)
        if weak_probs is not None:
            weak_probs = training.predict(self.teacher, x).softmax(-1)[:, None]
        return x, weak_probs, labels
