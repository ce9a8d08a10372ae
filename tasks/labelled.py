"""The settings of AdaptConf's paper: the student is a whole network, and gets labels besides a teacher's.

The teacher is one smaller network, trained on the same images and labels as the student. Characters are
rendered as in glyphs-shift. A wrong label is never the true class (in the loader of DivideMix it may be).

Differences from the authors' CIFAR-100: 49,000 training images, as 1,000 are held out; the last epoch instead
of the best on test; padded crops and flips, drawn once for 8 images; PyTorch's initialisation; weight decay
also on biases and normalisation. Nobody has run it to its end here.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from tasks import images

SIZES = {"strong_train": 2000, "val": 1000, "test": 4000}
# Patrini et al. 2017: digits that look alike. The other five classes keep their labels.
CONFUSED = {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}
BASE, NOVEL = "abcdefghijklmnopqrstuvwxyz", {"val": "ABDEGHNQRT", "test": images.DIGITS}
PER_NOVEL_CLASS = 100
WAYS, SHOTS, QUERIES, EPISODES = 5, (1, 5), 15, 600
GROUP = 8


class Setting(NamedTuple):
    """Who learns from whom, and how. Networks by their names in images.NETWORKS; recipes as flags."""

    name: str
    teacher: str
    student: str
    recipe: dict  # of student and ceiling
    teacher_recipe: dict
    augmentation: str = ""  # of all three: transforms
    fine_tuned: bool = False  # else the student starts from scratch


SCRATCH = {"steps": 200, "lr": 1e-2, "ceiling_lr": 1e-2, "batch_size": 128, "optimizer": "adam"}
NARROW = ("narrow CNN", "residual CNN", SCRATCH, {"epochs": 15, "lr": 3e-3, "batch_size": 64})
TUNED = {"steps": 160, "lr": 1e-3, "ceiling_lr": 1e-3, "batch_size": 64, "optimizer": "adam"}
WIDE = ("residual CNN", "letters CNN", TUNED, {"epochs": 30, "lr": 3e-3, "batch_size": 64})
SGD = {"lr": 0.2, "batch_size": 512, "optimizer": "sgd"}
PUBLISHED = (SGD | {"steps": 23_040, "ceiling_lr": 0.2}, SGD | {"epochs": 240})
SETTINGS = {  # by the task's name, without a rate of noise
    "glyphs-distill": Setting("distillation", *NARROW),
    "glyphs-noisy-symmetric": Setting("noisy labels", *NARROW),
    "glyphs-noisy-asymmetric": Setting("noisy labels", *NARROW),
    "glyphs-fewshot": Setting("few-shot", *NARROW),
    "glyphs-transfer": Setting("transfer", *WIDE, "affine", fine_tuned=True),
    "cifar100-distill": Setting("distillation", "resnet20", "resnet56", *PUBLISHED, "crops"),
    "cifar100-distill-vgg": Setting("distillation", "vgg8", "vgg13", *PUBLISHED, "crops, AutoAugment, mixup"),
}


def setting_of(task: str) -> Setting | None:
    return SETTINGS.get(task.rstrip("-.0123456789"))


def noise_matrix(kind: str, rate: float) -> torch.Tensor:
    """Probability of each label (columns) given the true digit (rows): (10, 10). At `rate` a label is one of
    the other digits, or if kind is "asymmetric" that of CONFUSED."""
    if kind == "symmetric":
        return torch.full((10, 10), rate / 9).fill_diagonal_(1 - rate)
    matrix = torch.eye(10)
    for true, other in CONFUSED.items():
        matrix[true, true], matrix[true, other] = 1 - rate, rate
    return matrix


def draw_episodes(y: torch.Tensor, shots: int, episodes: int, generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes y (N,), equally many samples of each -> indices of E episodes, all distinct within one: support
    (E, WAYS, shots) and query samples (E, WAYS, QUERIES)."""
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


def few_shot(y: torch.Tensor, features: dict[str, torch.Tensor], generator) -> dict:
    """{"1-shot" and "5-shot": {network: [mean accuracy, half of its 95 % interval over the episodes]}}, of
    every network's features (N, D) of the same samples with classes y (N,), in the same episodes."""
    table = {}
    for shots in SHOTS:
        support, query = draw_episodes(y, shots, EPISODES, generator)
        entry = table[f"{shots}-shot"] = {}
        for name, own in features.items():
            scores = episode_accuracy(own, support, query)
            entry[name] = [scores.mean().item(), 1.96 * scores.std().item() / EPISODES**0.5]
    return table


def view(augmentation: str, teacher=None):
    """A function (x, [weak_probs,] labels) -> what teacher and student see of a batch: augmented images x
    (B, ...), what `teacher` (images -> (B, C)) says of these, and labels (B,), (B, C) where they are mixed.

    GROUP images share an angle or a crop. (One at a time, CIFAR-100 would cost 200 microseconds an image
    instead of 14.)
    """
    from torchvision.transforms import v2  # here, as its import takes a second

    crops = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    steps = {
        "affine": [v2.RandomAffine(10, translate=(0.07, 0.07), scale=(0.9, 1.1))],
        "crops": crops,
        "crops, AutoAugment, mixup": [*crops, v2.AutoAugment()],  # ImageNet's policy
    }[augmentation]
    augment = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])
    mix = v2.MixUp(alpha=0.1, num_classes=100) if "mixup" in augmentation else None

    def see(x, *rest):
        *weak_probs, labels = rest
        x = torch.cat([augment(part) for part in x.split(GROUP)])
        if mix:
            x, labels = mix(x, labels)
        return x, *(teacher(x).view_as(probs) for probs in weak_probs), labels

    return see
