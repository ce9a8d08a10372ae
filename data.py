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
    text:SOURCE[+SOURCE...]:TARGET  real text, DOMAIN.jsonl[.gz] in data_dir, of the classes that all
                                   share; of several sources each has a weak model of its own
    folder:SOURCE[+SOURCE...]:TARGET  the same of images, data_dir/DOMAIN/CLASS/*.jpg
    folder:DOMAIN                  in distribution, 78/2/20 %: weak labels by a classifier, --weak-encoder
    preferences[-shift]            pairs of such reviews of one product, the more favourable preferred
    hh-helpful-harmless            pairs of answers, the more helpful one preferred -> the more harmless
    FILE.npz                       outputs of your own models: arrays x, weak_probs, y[, split, labels]

The student is a whole network that also gets labels (tasks/labelled.py):

    glyphs-distill                 distillation: true labels, and a smaller teacher's
    glyphs-noisy-symmetric-RATE    at RATE (0 to 1) a label is one of the other nine classes
    glyphs-noisy-asymmetric-RATE   at RATE 2 becomes 7, 3 becomes 8, 7 becomes 1, 5 and 6 each other
    glyphs-fewshot                 letters a-z with labels; scored on digits, classes it never saw
    glyphs-transfer                the encoder pretrained on letters is fine-tuned on 500 digits
    cifar100-distill[-vgg]         distillation as published: ResNet20 -> ResNet56, VGG8 -> VGG13
"""

import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tasks import files, images, labelled, pictures, text
from tasks.files import InputError, fingerprint

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
    if found := re.fullmatch(r"(glyphs-.*-)(\d*\.?\d+)", name):
        name = f"{found[1]}{float(found[2]):g}"
    name = {"glyphs-shift-0": "glyphs", f"glyphs-shift-{SEVERITY}": "glyphs-shift"}.get(name, name)
    for pattern, loader, kind, has_files in FAMILIES:
        if re.fullmatch(pattern, name):
            if kind == "features" and not Path(name).is_file():
                raise InputError(f"no file {name}")
            domains = re.split("[:+]", name)[1:] if has_files else []
            if len({*domains}) < len(domains):
                raise InputError(f"{name} names a domain twice")
            setting = labelled.setting_of(name)
            return Known(name, partial(loader, name), setting.recipe if setting else HEAD, kind, has_files)
    names = re.findall(r"^    (\S.*?)  ", __doc__, re.MULTILINE)  # as listed above
    raise InputError(f"unknown task {name!r}; known: {', '.join(names)}")


def folders(name: str) -> list[str]:
    """The domains of a folder task, the target last; of another task none."""
    return re.split("[:+]", name)[1:] if name.startswith("folder:") else []


def row_name(name: str) -> str:
    """How a row names what may be a file or folder of the user's: by base name and content."""
    if name.startswith("python:"):
        return f"{name}-{fingerprint(pictures.own_module(name).__file__)}"
    local = name.endswith(".npz") or Path(name).is_dir()
    return f"{Path(name).name}-{fingerprint(name)}" if local else name


def draw_splits(sizes: dict[str, int], characters: str, severity: float, generator) -> dict[str, Split]:
    """Every sample is a new draw: disjoint splits. The draws do not depend on the severity, 0 in weak_train:
    at one seed the same characters are more or less shifted."""
    splits = {}
    for split, size in sizes.items():
        y = torch.randint(len(characters), (size,), generator=generator)
        own = 0 if split == "weak_train" else severity
        splits[split] = Split(images.render(characters, y, own, generator), y)
    return splits


def rendered(name: str, seed: int, _) -> Task:
    """Digits in the source style -> digits at the severity that the name says.

    Or on stripes. In the source domain their direction is the class's in 70 % of the images, else and in the
    target domain it is any: a cue that is wrong in the target."""
    named = {"glyphs": 0, "glyphs-cue": 0, "glyphs-shift": SEVERITY}
    severity = named[name] if name in named else float(name.split("-")[-1])
    generator = torch.Generator().manual_seed(seed)
    splits = draw_splits(SIZES, images.DIGITS, severity, generator)
    if name == "glyphs-cue":
        generator.manual_seed(seed)
        for part, (x, y, *_) in splits.items():
            followed = torch.rand(y.shape, generator=generator) < (0.7 if part == "weak_train" else 0)
            direction = torch.where(followed, y, torch.randint(10, y.shape, generator=generator))
            splits[part] = Split(images.on_stripes(x, direction), y)
    return Task("image", 10, **splits, encoder="letters CNN", weak_models=[])


def labelled_glyphs(name: str, seed: int, _) -> Task:
    """A task of tasks/labelled.py, its images still without a teacher's labels."""
    setting, generator, novel = labelled.setting_of(name), torch.Generator().manual_seed(seed), None
    classes = labelled.BASE if setting.name == "few-shot" else images.DIGITS
    sizes = labelled.SIZES | ({"strong_train": 500} if setting.name == "transfer" else {})
    splits = draw_splits(sizes, classes, SEVERITY, generator)
    labels = splits["strong_train"].y
    if setting.name == "noisy labels":
        *_, kind, rate = name.split("-")
        matrix = labelled.noise_matrix(kind, float(rate))
        labels = torch.multinomial(matrix[labels], 1, generator=generator)[:, 0]
    splits["strong_train"] = splits["strong_train"]._replace(labels=labels)
    if setting.name == "few-shot":
        y = torch.arange(10).repeat_interleave(labelled.PER_NOVEL_CLASS)
        novel = {
            part: Split(images.render(own, y, SEVERITY, generator), y) for part, own in labelled.NOVEL.items()
        }
    names = {"encoder": setting.student, "weak_models": [setting.teacher], "setting": setting}
    return Task("image", len(classes), None, **splits, **names, novel=novel)


def shuffled(x: torch.Tensor, y: torch.Tensor, ends: list[int], generator) -> list[Split]:
    """Samples in random order, cut at `ends`."""
    parts = torch.randperm(len(y), generator=generator).tensor_split(ends)
    return [Split(x[part], y[part]) for part in parts]


def handwritten(name: str, seed: int, data_dir: str | None) -> Task:
    """One handwriting -> another: the student learns on the target's training set, its test set scores."""
    source, target = (files.labelled_images(domain, data_dir) for domain in name.split("-"))
    generator, n = torch.Generator().manual_seed(seed), SIZES["val"]
    weak_train, _ = shuffled(*source["train"], [SIZES["weak_train"]], generator)
    val, strong_train, _ = shuffled(*target["train"], [n, n + SIZES["strong_train"]], generator)
    return Task("image", 10, weak_train, strong_train, val, Split(*target["test"]), "letters CNN", [])


def cifar100(name: str, seed: int, data_dir: str | None) -> Task:
    """CIFAR-100 with 1,000 of its 50,000 training images held out for validation. Images are uint8."""
    setting, parts = labelled.setting_of(name), files.labelled_images("cifar100", data_dir)
    ends, generator = [len(parts["train"][1]) // 50], torch.Generator().manual_seed(seed)
    val, train = shuffled(*parts["train"], ends, generator)
    splits = train._replace(labels=train.y), val, Split(*parts["test"])
    return Task("image", 100, None, *splits, setting.student, [setting.teacher], setting)


def generated_text(name: str, seed: int, _) -> Task:
    """Reviews, class 1 where the verdict is favourable; or pairs of reviews of one product."""
    rng, pairs = random.Random(seed), name.startswith("preferences")
    target = text.TARGET if name.endswith("-shift") else text.SOURCE
    splits = {}
    for split, size in TEXT_SIZES.items():
        own = text.SOURCE if split == "weak_train" else target
        x, y = zip(*((text.pair if pairs else text.review)(own, rng) for _ in range(size)))
        splits[split] = Split(list(x), torch.tensor(y) if pairs else (torch.tensor(y) > 0).long())
    return Task("preference" if pairs else "text", 2, **splits, encoder="transformer", weak_models=[])


def real(name: str, seed: int, data_dir: str | None) -> Task:
    """Files of the user's, SIZES samples at most, of the classes that all domains share. A reader gives each
    (group, x, label); no group is on two sides: weak_train is of the sources without groups of the target,
    strong_train, val and test have 70, 10 and 20 % of the target's. A domain alone is used whole."""
    kind = resolve(name).kind
    read = {"text": files.reviews, "image": pictures.photographs, "preference": files.dialogues}[kind]
    if not data_dir and kind != "preference":
        raise InputError("no folder given: --data-dir names the one that has the files")
    *sources, target = re.split("[:+]", name)[1:] or ["helpful-base", "harmless-base"]
    samples = {domain: read(domain, data_dir) for domain in (*sources, target)}
    classes = sorted(set.intersection(*({label for *_, label in each} for each in samples.values())))
    if len(classes) < 2 and kind != "preference":
        raise InputError(f"{', '.join(samples)} share the classes {classes}; needed are two")
    samples = {key: [each for each in samples[key] if each[2] in classes] for key in samples}
    rng = random.Random(seed)
    groups = sorted({group for group, *_ in samples[target]})
    rng.shuffle(groups)
    ends = (0.7, 0.8) if sources else (0.78, 0.8)
    side = dict(zip(groups, np.digitize(np.arange(len(groups)) / len(groups), ends)))
    drawn = {domain: rng.sample(samples[domain], len(samples[domain])) for domain in (target, *sources)}

    def split(domain, part, size):
        found = [(x, classes.index(label)) for group, x, label in drawn[domain] if side.get(group) == part]
        if not found:
            raise InputError(f"too few samples to split: a part of {domain} is empty")
        if kind == "preference":  # the better response comes first in the files, here at random
            found = [((b, a), 1) if rng.random() < 0.5 else ((a, b), 0) for (a, b), _ in found]
        x, y = zip(*found[: size if sources else None])
        return Split(list(x), torch.tensor(y))

    limit, *limits = SIZES.values()
    weak_train = {domain: split(domain, None, limit) for domain in sources}
    if len(sources) < 2:
        weak_train = next(iter(weak_train.values()), None)
    splits = [split(target, part, limit) for part, limit in enumerate(limits)]
    listed = {key: [x for _, x, _ in samples[key]] for key in samples} if kind == "image" else None
    encoder = "resnet50" if listed else "bag of words"
    return Task(kind, max(2, len(classes)), weak_train, *splits, encoder, [], files=listed)


def load_npz(name: str, seed: int, _) -> Task:
    """A task from a FILE.npz: tasks/files.py says what is in it."""
    splits = [Split(**arrays) for arrays in files.arrays(name, seed)]
    _, num_weak, num_classes = splits[0].weak_probs.shape
    kind = "preference" if splits[0].x.dim() == 3 else "features"
    return Task(kind, num_classes, None, *splits, "given", [f"weak model {m + 1}" for m in range(num_weak)])


NUMBER, DOMAIN = r"(0|1|0\.\d+)", "[^/:+][^:+]*"
# What the names of a family look like, its loader, its kind, and whether it reads data_dir.
FAMILIES = (
    (r".*\.npz", load_npz, "features", False),
    (rf"glyphs(-cue|-shift|-shift-{NUMBER})?", rendered, "image", False),
    (rf"glyphs-(distill|fewshot|transfer|noisy-a?symmetric-{NUMBER})", labelled_glyphs, "image", False),
    ("mnist-usps|usps-mnist", handwritten, "image", True),
    ("cifar100-distill(-vgg)?", cifar100, "image", True),
    ("reviews(-shift)?", generated_text, "text", False),
    ("preferences(-shift)?", generated_text, "preference", False),
    (rf"text:{DOMAIN}(\+{DOMAIN})*:{DOMAIN}", real, "text", True),
    (rf"folder:({DOMAIN}(\+{DOMAIN})*:)?{DOMAIN}", real, "image", True),
    ("hh-helpful-harmless", real, "preference", True),
)
