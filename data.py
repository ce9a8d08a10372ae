"""Tasks: which domain the weak models learn from, which the student learns on, and how samples are split.

    load(name, seed, data_dir) -> Task

A weak model is trained on `weak_train` (source domain, with labels). It then labels `strong_train` (target
domain), from which the student learns without the ground truth. Settings are chosen on `val`, scores are from
`test`; both are target domain too. There, ground truth serves the ceiling and the scores only.

    glyphs                         rendered digits, four typefaces, clean -> the same
    glyphs-shift[-SEVERITY]        the same -> 16 typefaces, turned, cluttered, noisy, inverted (0 to 1)
    glyphs-cue                     on stripes whose direction goes with the class -> does not: a wrong cue
    mnist-usps, usps-mnist         handwritten digits of one institution -> another's, through torchvision
    reviews                        generated reviews of books, films and games -> the same
    reviews-shift                  the same -> of phones, kitchenware and hotels
    text:SOURCE[+SOURCE...]:TARGET real text, DOMAIN.jsonl[.gz] in data_dir; of several sources each has a
                                   weak model of its own
    folder:SOURCE[+SOURCE...]:TARGET   images, data_dir/DOMAIN/CLASS/*.jpg, of the classes that all share
    folder:DOMAIN                  in distribution: weak labels by a classifier, --weak-encoder; 78/2/20 %, so
                                   that 50,000 images leave 39,000 to learn on, 1,000 for val, 10,000 for test
    preferences[-shift]            pairs of such reviews of one product, the more favourable preferred
    hh-helpful-harmless            pairs of answers, the more helpful one preferred -> the more harmless
    FILE.npz                       outputs of your own models: arrays x, weak_probs, y[, split, labels]

The student is a whole network that also gets labels (tasks/labelled.py):

    glyphs-distill                 distillation: true labels, and a smaller teacher's
    glyphs-noisy-symmetric-RATE    at RATE a label is one of the other nine classes
    glyphs-noisy-asymmetric-RATE   at RATE 2 becomes 7, 3 becomes 8, 7 becomes 1, 5 and 6 each other
    glyphs-fewshot                 letters a-z with labels; scored on digits, classes it never saw
    glyphs-transfer                the encoder pretrained on letters is fine-tuned on 500 digits
    cifar100-distill[-vgg]         distillation as published: ResNet20 -> ResNet56, VGG8 -> VGG13
"""

import functools
import hashlib
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tasks import files, images, labelled, pictures, text
from tasks.files import InputError

SIZES = {"weak_train": 4000, "strong_train": 7000, "val": 1000, "test": 2000}  # upper limits of real text
TEXT_SIZES = SIZES | {"weak_train": 200}  # of generated text; 4,000 samples would leave little gap
SEVERITY = 0.4  # of glyphs-shift and of the tasks of labelled.py
EMBEDDED = "glyphs glyphs-shift glyphs-cue reviews reviews-shift preferences preferences-shift".split()
# How linear heads are trained: results/README.md, "How the defaults were chosen".
HEAD = {"steps": 1100, "ceiling_lr": 1e-3, "batch_size": 128, "optimizer": "adam"}


class Split(NamedTuple):
    """N samples of one domain. x: images (N, 1, 28, 28) in [0, 1], of cifar100 (N, 3, 32, 32) uint8; N files
    of images; N texts, or pairs of texts; features (N, D), of a pair (N, 2, D)."""

    x: torch.Tensor | list
    y: torch.Tensor  # (N,) ground truth, int64 in [0, C); of a pair, which response is the better
    weak_probs: torch.Tensor | None = None  # (N, M, C) soft labels of M weak models, each row sums to 1
    labels: torch.Tensor | None = None  # (N,) what the student may learn besides, right or wrong


class Task(NamedTuple):
    """One weak-to-strong problem. teachers.supervise adds weak_probs, and where the student is a linear head,
    replaces images and texts by features."""

    kind: str  # "image", "text", "preference"; "features" of a FILE.npz without pairs
    num_classes: int
    # of several sources {name: Split}; None without a source domain
    weak_train: Split | dict[str, Split] | None
    strong_train: Split
    val: Split
    test: Split
    encoder: str  # what the features come from; of a whole network, its name
    weak_models: list[str]  # their M names, in the order of weak_probs; [] before supervise
    setting: labelled.Setting | None = None  # None: the student is a linear head
    novel: dict[str, Split] | None = None  # few-shot: "val" and "test" samples of classes never seen
    weights: dict[str, dict] | None = None  # whole networks: of the teacher, and of a student to fine-tune
    files: dict[str, list[str]] | None = None  # of each domain of a folder task all images, drawn or not


class Known(NamedTuple):
    """What is known of a task by its name."""

    name: str  # its one spelling: glyphs-shift-0.40 is glyphs-shift
    load: Callable  # seed, data_dir -> Task
    recipe: dict  # how student and ceiling are trained where no flag says otherwise
    kind: str = "image"  # as in Task, but "features" of any FILE.npz
    has_files: bool = False  # whether it reads data_dir


def load(name: str, seed: int, data_dir: str | None = None) -> Task:
    """The task `name`; `seed` fixes what is drawn at random. Raises InputError if it cannot be had."""
    return resolve(name).load(seed, data_dir)


def resolve(name: str) -> Known:
    """Reads the name, before any work is done. Raises InputError where it is not known."""
    match name.split("-"):
        case _ if name.endswith(".npz"):
            if not Path(name).is_file():
                raise InputError(f"no file {name}")
            return Known(name, lambda seed, _: load_npz(Path(name), seed), HEAD, "features")
        case _ if found := re.fullmatch(r"text:([^:+]+(?:\+[^:+]+)*):([^:+]+)", name):
            sources, target = found[1].split("+"), found[2]
            if len({*sources, target}) <= len(sources):
                raise InputError(f"{name} names a domain twice")
            texts = ("text", files.reviews, sources, target)
            return Known(name, lambda *given: real(*texts, *given), HEAD, "text", True)
        case _ if domains := folders(name):
            if len(set(domains)) < len(domains):
                raise InputError(f"{name} names a domain twice")
            return Known(name, lambda *given: photographs(domains, *given), HEAD, has_files=True)
        case ["glyphs"] | ["glyphs", "shift"]:
            return resolve(f"glyphs-shift-{SEVERITY if name.endswith('shift') else 0}")
        case ["glyphs", "shift", severity] if (severity := share(severity)) is not None:
            name = f"glyphs-shift-{severity:g}".removesuffix(f"-{SEVERITY}") if severity else "glyphs"
            return Known(name, lambda seed, _: rendered(severity, seed), HEAD)
        case ["glyphs", "cue"]:
            return Known(name, lambda seed, _: cued(seed), HEAD)
        case ["mnist", "usps"] | ["usps", "mnist"]:
            return Known(name, lambda *given: handwritten(*name.split("-"), *given), HEAD, has_files=True)
        case ["reviews" | "preferences"] | ["reviews" | "preferences", "shift"]:
            kind = "text" if name.startswith("reviews") else "preference"
            return Known(name, lambda seed, _: generated_text(name, seed), HEAD, kind)
        case ["hh", "helpful", "harmless"]:
            dialogues = ("preference", files.dialogues, ["helpful-base"], "harmless-base")
            return Known(name, lambda *given: real(*dialogues, *given), HEAD, "preference", True)
        case ["glyphs", "noisy", "symmetric" | "asymmetric" as kind, rate] if share(rate) is not None:
            rate, setting = share(rate), labelled.SETTINGS[f"glyphs-noisy-{kind}"]
            name = f"glyphs-noisy-{kind}-{rate:g}"
            return Known(name, lambda seed, _: labelled_glyphs(setting, seed, kind, rate), setting.recipe)
        case _ if name in labelled.SETTINGS and "noisy" not in name:
            setting = labelled.SETTINGS[name]
            if name.startswith("cifar100"):
                return Known(name, lambda *given: cifar100(setting, *given), setting.recipe, has_files=True)
            return Known(name, lambda seed, _: labelled_glyphs(setting, seed), setting.recipe)
    known = [*EMBEDDED, "glyphs-shift-SEVERITY (0 to 1)", "glyphs-cue"]
    known += ["mnist-usps", "usps-mnist", "text:SOURCE[+SOURCE...]:TARGET", "hh-helpful-harmless"]
    known += ["folder:SOURCE[+SOURCE...]:TARGET", "folder:DOMAIN"]
    known += [f"{key}-RATE (0 to 1)" if "noisy" in key else key for key in labelled.SETTINGS]
    raise InputError(f"unknown task {name!r}; known: {', '.join(known)}, FILE.npz")


def share(word: str) -> float | None:
    """A share written plainly, from 0 to 1; None for any other word."""
    return float(word) if re.fullmatch(r"0|1|[01]?\.\d+", word) and float(word) <= 1 else None


def folders(name: str) -> list[str]:
    """The domains of a folder task, the target last; of another task none."""
    known = re.fullmatch(r"folder:([^/:+][^:+]*(\+[^/:+][^:+]*)*:)?[^/:+][^:+]*", name)
    return re.split("[:+]", name)[1:] if known else []


@functools.cache
def content(file: Path, size: int, changed: int) -> str:
    """The sha256 of a file, which a process reads once as long as its size and time of change stay."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fingerprint(path: str | Path, parts: list[str] | None = None) -> str:
    """The start of a sha256 of a file, or of the names and contents of a folder's files, of all or of the
    named folders in it."""
    path, digest = Path(path), hashlib.sha256()
    inside = [each for part in parts or [""] for each in os.walk(path / part, followlinks=True)]
    files = sorted(Path(folder, name) for folder, _, names in inside for name in names)
    for file in files if path.is_dir() else [path]:
        if file.is_file():
            about = file.stat()
            own = content(file.absolute(), about.st_size, about.st_mtime_ns)
            digest.update(f"{own} {file.relative_to(path)}\n".encode())
    return digest.hexdigest()[:12]


def row_name(name: str) -> str:
    """How a row names what may be a file or folder of the user's: by base name and content."""
    if name.startswith("python:"):
        return f"{name}-{fingerprint(pictures.own_module(name).__file__)}"
    local = name.endswith(".npz") or Path(name).is_dir()
    return f"{Path(name).name}-{fingerprint(name)}" if local else name


def draw(characters: str, y: torch.Tensor, severity: float, generator) -> Split:
    """Images of characters[y] at that severity."""
    atlas, severity = images.draw_atlas(characters), torch.full(y.shape, severity)
    return Split(images.render(atlas, y, severity, generator), y)


def draw_splits(sizes: dict[str, int], characters: str, severity: float, generator) -> dict[str, Split]:
    """Every sample is a new draw: disjoint splits. The draws do not depend on the severity, 0 in weak_train:
    at one seed the same characters are more or less shifted."""
    splits = {}
    for split, size in sizes.items():
        y = torch.randint(len(characters), (size,), generator=generator)
        splits[split] = draw(characters, y, 0.0 if split == "weak_train" else severity, generator)
    return splits


def rendered(severity: float, seed: int) -> Task:
    """Digits in the source style -> digits at `severity`."""
    splits = draw_splits(SIZES, images.DIGITS, severity, torch.Generator().manual_seed(seed))
    return Task("image", 10, **splits, encoder="letters CNN", weak_models=[])


def cued(seed: int) -> Task:
    """Digits in the source style on stripes. In the source domain their direction is the class's in 70 % of
    the images, else and in the target domain it is any: a cue that is wrong in the target."""
    task, generator = rendered(0.0, seed), torch.Generator().manual_seed(seed)

    def cover(split, share):
        followed = torch.rand(split.y.shape, generator=generator) < share
        direction = torch.where(followed, split.y, torch.randint(10, split.y.shape, generator=generator))
        return split._replace(x=images.on_stripes(split.x, direction))

    shares = {"weak_train": 0.7, "strong_train": 0.0, "val": 0.0, "test": 0.0}
    return task._replace(**{name: cover(getattr(task, name), share) for name, share in shares.items()})


def handwritten(source: str, target: str, seed: int, data_dir: str | None) -> Task:
    """One handwriting -> another: the student learns on the target's training set, its test set scores."""
    source, target = (files.labelled_images(domain, data_dir) for domain in (source, target))
    generator = torch.Generator().manual_seed(seed)

    def take(x, y, n):
        chosen = torch.randperm(len(y), generator=generator)[:n]
        return x[chosen], y[chosen]

    weak_train = Split(*take(*source["train"], SIZES["weak_train"]))
    n = SIZES["val"]
    x, y = take(*target["train"], n + SIZES["strong_train"])  # USPS has only 7,291
    val, strong_train, test = Split(x[:n], y[:n]), Split(x[n:], y[n:]), Split(*target["test"])
    return Task("image", 10, weak_train, strong_train, val, test, "letters CNN", [])


def labelled_glyphs(setting: labelled.Setting, seed: int, noise: str = "", rate: float = 0.0) -> Task:
    """A task of tasks/labelled.py, its images still without a teacher's labels."""
    generator, novel = torch.Generator().manual_seed(seed), None
    classes = labelled.BASE if setting.name == "few-shot" else images.DIGITS
    sizes = labelled.SIZES | ({"strong_train": 500} if setting.name == "transfer" else {})
    splits = draw_splits(sizes, classes, SEVERITY, generator)
    labels = splits["strong_train"].y
    if noise:
        labels = labelled.corrupt(labels, labelled.noise_matrix(noise, rate, len(classes)), generator)
    splits["strong_train"] = splits["strong_train"]._replace(labels=labels)
    if setting.name == "few-shot":
        y = torch.arange(10).repeat_interleave(labelled.PER_NOVEL_CLASS)
        novel = {part: draw(each, y, SEVERITY, generator) for part, each in labelled.NOVEL.items()}
    names = {"encoder": setting.student, "weak_models": [setting.teacher], "setting": setting}
    return Task("image", len(classes), None, **splits, **names, novel=novel)


def cifar100(setting: labelled.Setting, seed: int, data_dir: str | None) -> Task:
    """CIFAR-100 with 1,000 of its 50,000 training images held out for validation. Images are uint8."""
    parts = files.labelled_images("cifar100", data_dir)
    x, y = parts["train"]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    n = len(order) // 50
    val, train = Split(x[order[:n]], y[order[:n]]), Split(x[order[n:]], y[order[n:]], labels=y[order[n:]])
    test = Split(*parts["test"])
    return Task("image", 100, None, train, val, test, setting.student, [setting.teacher], setting)


def generated_text(name: str, seed: int) -> Task:
    """Reviews, class 1 where the verdict is favourable; or pairs of reviews of one product."""
    rng, pairs = random.Random(seed), name.startswith("preferences")
    target = text.TARGET if name.endswith("-shift") else text.SOURCE
    splits = {}
    for split, size in TEXT_SIZES.items():
        domains = text.SOURCE if split == "weak_train" else target
        x, y = zip(*((text.pair if pairs else text.review)(domains, rng) for _ in range(size)))
        splits[split] = Split(list(x), torch.tensor(y) if pairs else (torch.tensor(y) > 0).long())
    return Task("preference" if pairs else "text", 2, **splits, encoder="transformer", weak_models=[])


def real(kind: str, read: Callable, sources, target, seed, data_dir, ends=(0.7, 0.8), sizes=None) -> Task:
    """Samples (group, x, y) that `read` finds of the domains -> a task with `sizes`, else SIZES, at most:
    weak_train from the sources, without groups that the target has too; of the target's groups by default
    70, 10 and 20 %."""
    *sources_samples, samples = (read(domain, data_dir) for domain in [*sources, target])
    classes = {y for _, _, y in samples}
    if any({y for _, _, y in each} != classes for each in sources_samples):
        raise InputError("source and target have different labels")
    rng = random.Random(seed)
    groups = sorted({group for group, _, _ in samples})
    rng.shuffle(groups)
    side = dict(zip(groups, np.digitize(np.arange(len(groups)) / len(groups), ends)))
    drawn = rng.sample(samples, len(samples))
    parts = [[(x, y) for group, x, y in drawn if side[group] == i] for i in range(3)]

    def split(samples, size):
        if len({y for _, y in samples[:size]}) < (2 if kind == "text" else 1):
            raise InputError("too few samples to split: a part of them is empty or has one label only")
        if kind == "preference":  # the better response comes first in the files, here at random
            samples = [((b, a), 1) if rng.random() < 0.5 else ((a, b), 0) for (a, b), _ in samples]
        x, y = zip(*samples[:size])
        return Split(list(x), torch.tensor(y))

    weak_size, *sizes = (sizes or SIZES).values()
    apart = [rng.sample(each, len(each)) for each in sources_samples]
    apart = [[(x, y) for group, x, y in each if group not in side] for each in apart]
    weak_train = dict(zip(sources, [split(each, weak_size) for each in apart]))
    weak_train = weak_train if len(sources) > 1 else next(iter(weak_train.values()), None)
    splits = map(split, parts, sizes)
    return Task(kind, len(classes) if kind == "text" else 2, weak_train, *splits, "bag of words", [])


def photographs(domains: list[str], seed: int, data_dir: str | None) -> Task:
    """Images of the source domains -> of the last one. An image that stands twice is on one side."""
    found, classes = pictures.listing(domains, data_dir)
    read = {domain: [(fingerprint(file), file, y) for file, y in each] for domain, each in found.items()}
    alone = {} if domains[1:] else {"ends": (0.78, 0.8), "sizes": dict.fromkeys(SIZES)}  # without limits
    task = real("image", lambda domain, _: read[domain], domains[:-1], domains[-1], seed, data_dir, **alone)
    every = {domain: [file for file, _ in each] for domain, each in found.items()}
    return task._replace(num_classes=len(classes), encoder="resnet50", files=every)


def load_npz(path: Path, seed: int) -> Task:
    """A task from a FILE.npz: tasks/files.py says what is in it."""
    arrays, part = files.arrays(path, seed)
    splits = [Split(**{key: array[part == i] for key, array in arrays.items()}) for i in range(3)]
    _, num_weak, num_classes = arrays["weak_probs"].shape
    kind = "preference" if arrays["x"].dim() == 3 else "features"
    return Task(kind, num_classes, None, *splits, "given", [f"weak model {m + 1}" for m in range(num_weak)])
