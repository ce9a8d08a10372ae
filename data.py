"""Tasks: which domain the weak models learn from, which the student learns on, and how samples are split.

    load(name, seed, data_dir) -> Task

A weak model is trained on `weak_train` (source domain, with labels). It then labels `strong_train` (target
domain), from which the student learns without the ground truth. Settings are chosen on `val`, scores are from
`test`; both are target domain too. There, ground truth serves the ceiling and the scores only.

    glyphs                   rendered digits, four typefaces, clean -> the same
    glyphs-shift[-SEVERITY]  the same -> 16 typefaces, turned, cluttered, noisy, inverted (severity 0 to 1)
    mnist-usps, usps-mnist   handwritten digits of one institution -> another's, through torchvision
    reviews                  generated reviews of books, films and games -> the same
    reviews-shift            the same -> of phones, kitchenware and hotels
    amazon-SOURCE-TARGET     real reviews of one kind of product -> another, from JSON lines in data_dir
    preferences              pairs of reviews of one product, the more favourable preferred; domains: reviews
    preferences-shift        the same; domains: reviews-shift
    hh-helpful-harmless      pairs of answers, the more helpful one preferred -> the more harmless (HH-RLHF)
    glyphs-distill, ...      whole networks that also get labels: settings.py lists them
    FILE.npz                 outputs of your own models: arrays x, weak_probs, y; optionally split, labels
"""

import codecs
import gzip
import hashlib
import json
import math
import os
import random
import re
import shutil
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import images
import text

SIZES = {"weak_train": 4000, "strong_train": 7000, "val": 1000, "test": 2000}  # upper limits of real text
TEXT_SIZES = SIZES | {"weak_train": 200}  # of generated text; 4,000 samples would leave little gap
EMBEDDED = ["glyphs", "glyphs-shift", "reviews", "reviews-shift", "preferences", "preferences-shift"]
# Tasks whose student is a whole network: settings.py.
NETWORK_TASKS = r"glyphs-(distill|fewshot|transfer|noisy-(a?symmetric)-(0?\.\d+|0|1))|cifar100-distill(-vgg)?"
DEFAULT_SEVERITY = 0.4
DOWNLOADS = Path("cache/downloads")


class InputError(Exception):
    """What the user gave cannot be used; the message is one line that says what was expected."""


class Split(NamedTuple):
    """N samples of one domain."""

    # images (N, 1, 28, 28) in [0, 1], of cifar100 (N, 3, 32, 32) uint8; N texts, or pairs of texts; features
    # (N, D), of a pair (N, 2, D)
    x: torch.Tensor | list
    y: torch.Tensor  # (N,) ground truth, int64 in [0, C)
    weak_probs: torch.Tensor | None = None  # (N, M, C) soft labels of M weak models, each row sums to 1


class Task(NamedTuple):
    """One weak-to-strong problem. models.supervise adds weak_probs, and where the student is a linear head it
    replaces images and texts by features.

    The class of a pair of responses, 0 or 1, says which is the better one."""

    kind: str  # "image", "text", "preference"; "features" of a FILE.npz without pairs
    num_classes: int
    weak_train: Split | None  # None where the weak models' outputs are given, or they learn on strong_train
    strong_train: Split
    val: Split
    test: Split
    weak_models: list[str] = []  # their M names, in the order of weak_probs
    encoder: str = ""  # what the features come from; where x stay images, the student in images.NETWORKS
    labels: torch.Tensor | None = None  # (N,) handed to the student on strong_train; None: weak labels only
    student_kind: str = "head"  # a linear "head", or a whole network, "from scratch" or "fine-tuned"
    augmentation: str = ""  # of the student's batches: settings.View
    novel: dict[str, Split] = {}  # "val" and "test" samples of classes that are not among the num_classes
    weights: dict[str, dict] = {}  # of the "teacher", and of the "encoder" from which fine-tuning starts


def load(name: str, seed: int, data_dir: str | None = None) -> Task:
    """The task `name`; `seed` fixes what is drawn at random. Raises InputError if it cannot be had."""
    name = check_name(name)
    if name.endswith(".npz"):
        return load_npz(Path(name), seed)
    if name in ("mnist-usps", "usps-mnist"):
        source, target = (read_digits(domain, data_dir) for domain in name.split("-"))
        return digits_task(source, target, seed)
    if name.startswith(("reviews", "preferences")):
        return generated_text(name, seed)
    if name.startswith("amazon-"):
        source, target = (read_reviews(domain, data_dir) for domain in name.split("-")[1:])
        return real_text("text", source, target, seed)
    if name == "hh-helpful-harmless":
        source, target = (read_dialogues(domain, data_dir) for domain in ("helpful-base", "harmless-base"))
        return real_text("preference", source, target, seed)
    if re.fullmatch(NETWORK_TASKS, name):
        import settings  # here, as it builds on this file

        return settings.load(name, seed, data_dir)
    return glyphs_task(severity(name), seed)


def check_name(name: str) -> str:
    """The task's one name: glyphs-shift-0.40 is glyphs-shift. Raises InputError on a name that `load` does
    not know. Cheap, so that a typing error is found before any work."""
    if name.endswith(".npz"):
        if not Path(name).is_file():
            raise InputError(f"no file {name}")
        return name
    known = [*EMBEDDED, "mnist-usps", "usps-mnist", "hh-helpful-harmless"]
    if name in known or re.fullmatch(r"amazon-([a-z_]+)-(?!\1$)[a-z_]+", name):
        return name
    if match := re.fullmatch(NETWORK_TASKS, name):
        return f"glyphs-noisy-{match[2]}-{float(match[3]):g}" if match[3] else name
    if severity(name) is None:
        known += ["glyphs-shift-SEVERITY (0 to 1)", "amazon-SOURCE-TARGET", "glyphs-distill"]
        known += [f"glyphs-noisy-{kind}-RATE (0 to 1)" for kind in ("symmetric", "asymmetric")]
        known += ["glyphs-fewshot"]
        known += ["glyphs-transfer", "cifar100-distill", "cifar100-distill-vgg", "FILE.npz"]
        raise InputError(f"unknown task {name!r}; known: {', '.join(known)}")
    return "glyphs" if severity(name) == 0 else f"glyphs-shift-{severity(name):g}".removesuffix("-0.4")


def row_name(name: str) -> str:
    """How a row names a task or an encoder: an .npz file or a folder, by its base name and fingerprint."""
    is_local = name.endswith(".npz") or (os.path.isabs(name) and os.path.isdir(name))
    return f"{Path(name).name}-{fingerprint(Path(name))}" if is_local else name


def fingerprint(path: Path) -> str:
    """The start of a sha256 of a file's content, or of the names, sizes and times of a folder's files."""
    if path.is_file():
        content = path.read_bytes()
    else:
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        stats = [(file.relative_to(path), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        content = repr(stats).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def severity(name: str) -> float | None:
    """Shift severity in [0, 1] of a rendered task's name, 0 for `glyphs`; None for any other name."""
    if name == "glyphs":
        return 0.0
    match = re.fullmatch(r"glyphs-shift(?:-(0|1|[01]?\.\d+))?", name)
    value = float(match[1] or DEFAULT_SEVERITY) if match else math.inf
    return value if value <= 1 else None


# ------------------------------------------------------------------------------------------- rendered digits


def glyphs_task(severity: float, seed: int) -> Task:
    """Digits in the source style -> digits at `severity`. Every sample is a new draw: disjoint splits."""
    atlas = images.draw_atlas(images.DIGITS)
    generator = torch.Generator().manual_seed(seed)
    splits = {}
    for split, size in SIZES.items():
        # The draws do not depend on the severity: at one seed the same digits are more or less shifted.
        y = torch.randint(10, (size,), generator=generator)
        shift = torch.full((size,), 0.0 if split == "weak_train" else severity)
        splits[split] = Split(images.render(atlas, y, shift, generator), y)
    return Task("image", 10, **splits)


# ----------------------------------------------------------------------------------------- handwritten digits


def digits_task(source: dict[str, Split], target: dict[str, Split], seed: int) -> Task:
    """One handwriting -> another: the student learns on the target's training set, its test set scores."""
    generator = torch.Generator().manual_seed(seed)

    def draw(split, n):
        chosen = torch.randperm(len(split.y), generator=generator)[:n]
        return Split(split.x[chosen], split.y[chosen])

    weak_train = draw(source["train"], SIZES["weak_train"])
    x, y, _ = draw(target["train"], SIZES["val"] + SIZES["strong_train"])  # USPS has only 7,291
    val, strong_train = (
        Split(x[: SIZES["val"]], y[: SIZES["val"]]),
        Split(x[SIZES["val"] :], y[SIZES["val"] :]),
    )
    return Task("image", 10, weak_train, strong_train, val, target["test"])


def read_digits(domain: str, data_dir: str | None) -> dict[str, Split]:
    """The data set mnist or usps, {"train": Split, "test": Split}, framed alike."""
    from torchvision import datasets  # here, as its import takes a second

    files = {"mnist": "MNIST/raw/{train,t10k}-*-ubyte", "usps": "usps.bz2 and usps.t.bz2"}[domain]
    dataset = {"mnist": datasets.MNIST, "usps": datasets.USPS}[domain]
    parts = read_torchvision(dataset, domain, files, data_dir)
    return {
        split: Split(frame(torch.as_tensor(part.data)), torch.as_tensor(part.targets))
        for split, part in parts.items()
    }


def read_torchvision(dataset, name: str, files: str, data_dir: str | None) -> dict:
    """A data set of torchvision, {"train": ..., "test": ...}, from the `files` in data_dir if that is given,
    else in a folder under cache/ into which it is downloaded on first use."""
    folder = Path(data_dir) if data_dir else DOWNLOADS / name

    def read(root, download):
        return {
            split: dataset(root, train=split == "train", download=download) for split in ("train", "test")
        }

    try:
        if not data_dir and not folder.exists():
            partial = folder.with_suffix(".partial")  # so that a broken download never looks complete
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            read(partial, download=True)
            partial.rename(folder)
        return read(folder, download=False)
    except Exception as error:  # torchvision and what it calls raise many kinds
        remedy = (
            "without --data-dir they are downloaded"
            if data_dir
            else "or give a folder that has them: --data-dir"
        )
        reason = " ".join(str(error).split()).removesuffix(" You can use download=True to download it")
        raise InputError(f"cannot read {files} in {folder} ({reason}); {remedy}") from error


def frame(pixels: torch.Tensor) -> torch.Tensor:
    """Grey images (N, H, W) in 0..255 -> (N, 1, 28, 28) in [0, 1]: the ink's box centred, its longer side 20.

    Data sets frame their digits differently: MNIST leaves a margin, USPS none. Without this the shift between
    them would mostly be one of framing.
    """
    n, height, width = pixels.shape
    pixels = pixels.float()[:, None] / 255
    ink = pixels[:, 0] > 0.2

    def extent(inked):  # bool (N, L) -> centre and length of the inked stretch, (N,) each, in pixels
        first = inked.float().argmax(1)
        end = inked.shape[1] - inked.flip(1).float().argmax(1)
        return (first + end) / 2, (end - first).float()

    (y, box_height), (x, box_width) = extent(ink.any(2)), extent(ink.any(1))
    shown = torch.maximum(box_height, box_width) * 28 / 20  # input pixels across the output
    zero = torch.zeros(n)
    across = torch.stack([shown / width, zero, 2 * x / width - 1], dim=1)
    down = torch.stack([zero, shown / height, 2 * y / height - 1], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), [n, 1, 28, 28], align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


# ------------------------------------------------------------------------------------------------------- text


def generated_text(name: str, seed: int) -> Task:
    """Reviews, class 1 where the verdict is favourable; or pairs of reviews of one product."""
    rng = random.Random(seed)
    target = text.TARGET if name.endswith("-shift") else text.SOURCE
    pairs = name.startswith("preferences")
    splits = {}
    for split, size in TEXT_SIZES.items():
        domains = text.SOURCE if split == "weak_train" else target
        x, y = zip(*((text.pair if pairs else text.review)(domains, rng) for _ in range(size)))
        splits[split] = Split(list(x), torch.tensor(y) if pairs else (torch.tensor(y) > 0).long())
    return Task("preference" if pairs else "text", 2, **splits)


def real_text(kind: str, source: list[tuple], target: list[tuple], seed: int) -> Task:
    """Samples (group, x, y) of two domains -> a task with SIZES of them at most.

    weak_train is from the source, without groups that the target has too; strong_train, val and test hold 70,
    10 and 20 % of the target's groups.
    """
    classes = {y for _, _, y in target}
    if {y for _, _, y in source} != classes:
        raise InputError("source and target have different labels")
    rng = random.Random(seed)
    groups = sorted({group for group, _, _ in target})
    rng.shuffle(groups)
    side = dict(zip(groups, np.digitize(np.arange(len(groups)) / len(groups), [0.7, 0.8])))
    parts = [[], [], []]
    for group, x, y in rng.sample(target, len(target)):
        parts[side[group]].append((x, y))
    weak_train = [(x, y) for group, x, y in rng.sample(source, len(source)) if group not in side]
    splits = []
    for samples, size in zip([weak_train, *parts], SIZES.values()):
        if not samples:
            raise InputError("too few samples to split: source and target must bring ten or more each")
        if kind == "preference":  # the better response comes first in the files, here at random
            samples = [((b, a), 1) if rng.random() < 0.5 else ((a, b), 0) for (a, b), _ in samples]
        x, y = zip(*samples[:size])
        if kind == "text" and len(set(y)) < 2:
            raise InputError("too few samples to split: a part of them has one label only")
        splits.append(Split(list(x), torch.tensor(y)))
    return Task(kind, len(classes) if kind == "text" else 2, *splits)


def read_reviews(domain: str, data_dir: str | None) -> list[tuple[str, str, int]]:
    """DOMAIN.jsonl[.gz] in data_dir, lines {"text": str, "label": 0, 1, ...} -> (words, text, label)."""
    files = [Path(data_dir or ".") / f"{domain}.jsonl{ending}" for ending in ("", ".gz")]
    files = [file for file in files if file.is_file()][:1]
    if not data_dir or not files:
        place = f"no {domain}.jsonl or {domain}.jsonl.gz in {data_dir}" if data_dir else "no folder given"
        raise InputError(f"{place}: name the one that has the reviews by --data-dir")
    rows = read_json_lines({"text": str, "label": int}, files)
    labels = {row["label"] for row in rows}
    if len(labels) < 2 or labels != set(range(len(labels))):
        found = ", ".join(map(str, sorted(labels)[:10]))
        raise InputError(f"{files[0]} has the labels {found}; expected are two or more, from 0 on")
    return [(" ".join(text.terms(row["text"], False)), row["text"], row["label"]) for row in rows]


def read_dialogues(domain: str, data_dir: str | None) -> list[tuple[str, tuple[str, str], int]]:
    """Pairs of dialogues of HH-RLHF, from data_dir/DOMAIN/*.jsonl[.gz] or from the Hugging Face hub
    -> (first human turn, (chosen, rejected), 0) each."""
    fields = {"chosen": str, "rejected": str}
    if not data_dir:
        rows = read_json_lines(fields, path="Anthropic/hh-rlhf", data_dir=domain)
    else:
        folder = Path(data_dir, domain)
        files = sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")])
        if not files:
            raise InputError(f"no {domain}/*.jsonl[.gz] in {data_dir}; without --data-dir they are fetched")
        rows = read_json_lines(fields, files)
    pairs = [(row["chosen"], row["rejected"]) for row in rows if row["chosen"] != row["rejected"]]
    if not all("\n\nAssistant:" in response for pair in pairs for response in pair):
        raise InputError(f"{domain} has a dialogue without 'Assistant:' after an empty line")
    return [(" ".join(text.terms(pair[0].split("\n\nAssistant:")[0], False)), pair, 0) for pair in pairs]


def read_json_lines(fields: dict[str, type], files: list[Path] = (), **hub: str) -> list[dict]:
    """The rows of JSON-lines files, or of a data set on the hub (path, data_dir), through `datasets`.

    Raises InputError, with file and line, on an unreadable row or a missing, empty or mistyped field.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError("text from files needs the package datasets: pip install datasets") from error

    def fault(row) -> str | None:
        for field, kind in fields.items():
            if not isinstance(row, dict) or row.get(field) is None:
                return f"no field {field!r}"
            if type(row[field]) is not kind:
                return f"{field!r} is no {kind.__name__}"
            if kind is str and not row[field].strip():
                return f"{field!r} is empty"
        return None

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    where = hub or {"path": "json", "data_files": [str(file) for file in files]}
    try:
        parts = datasets.load_dataset(**where, cache_dir=str(DOWNLOADS))
        rows = [row for part in parts.values() for row in part.to_list()]
        reason = next(filter(None, map(fault, rows)), None if rows else "nothing in it")
        if reason is None:
            return rows
    except Exception as error:  # datasets and what it calls raise many kinds
        reason = " ".join(str(error.__cause__ or error).split())
    for file in files:  # which line is it?
        try:
            with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as lines:
                for number, line in enumerate(lines, start=1):
                    line = line.removeprefix(codecs.BOM_UTF8)
                    if line.strip() and (found := fault(json.loads(line))):
                        raise InputError(f"{file}, line {number}: {found}")
        except ValueError as error:
            raise InputError(f"{file}, line {number}: {error}") from error
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{file}: {error}") from error
    raise InputError(f"cannot read {', '.join(map(str, files or hub.values()))}: {reason}")


# --------------------------------------------------------------------------------------------- the user's own


def load_npz(path: Path, seed: int) -> Task:
    """A task from the arrays of an .npz file, read without pickle. Raises InputError where they do not fit.

    x           (N, D) features, or (N, 2, D) of a pair of responses, of which class y is the better
    weak_probs  (N, M, C) soft labels of M weak models
    y           (N,) ground truth in [0, C)
    split       (N,) optional: 0 train, 1 val, 2 test; without it 70/10/20 % at random, by the seed
    labels      (N,) optional: labels in [0, C) that the student may use; read on the training split
    """
    types = {"x": np.float32, "weak_probs": np.float32, "y": np.int64, "split": np.int64, "labels": np.int64}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in types if key in file}
            kinds = {key: array.dtype.kind for key, array in arrays.items()}
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        raise InputError(f"{path}: not an .npz file of plain arrays ({error})") from error

    def require(condition, message):
        if not condition:
            raise InputError(f"{path}: {message}")

    missing = [key for key in ("x", "weak_probs", "y") if key not in arrays]
    require(not missing, f"array missing: {', '.join(missing)}")
    for key, wanted in types.items():
        if key in arrays:
            numbers = {np.float32: "f", np.int64: "iu"}[wanted]
            require(kinds[key] in numbers, f"{key} has type {arrays[key].dtype}, expected {wanted.__name__}")
            with np.errstate(over="ignore"):
                arrays[key] = arrays[key].astype(wanted)  # first, so that what is checked is what is used
            require(np.isfinite(arrays[key]).all(), f"{key} has NaN, infinite or too large values")
    x, weak_probs = arrays["x"], arrays["weak_probs"]
    pairs = x.ndim == 3 and x.shape[1] == 2
    require(x.ndim == 2 or pairs, f"x has shape {x.shape}, expected (N, D) or (N, 2, D)")
    require(x.size > 0, f"x has shape {x.shape}: nothing in it")
    require(weak_probs.ndim == 3, f"weak_probs has shape {weak_probs.shape}, expected (N, M, C)")
    _, num_weak, num_classes = weak_probs.shape
    require(num_weak > 0 and num_classes > 1, f"weak_probs has shape {weak_probs.shape}: M or C too small")
    require(not pairs or num_classes == 2, f"x has pairs, which have 2 classes; weak_probs has {num_classes}")
    require(len(weak_probs) == len(x), f"weak_probs has shape {weak_probs.shape}, but x {x.shape}")
    for key, limit in (("y", num_classes), ("labels", num_classes), ("split", 3)):
        if key in arrays:
            array = arrays[key]
            require(array.shape == x.shape[:1], f"{key} has shape {array.shape}, expected {x.shape[:1]}")
            require(0 <= array.min() and array.max() < limit, f"{key} has values outside 0..{limit - 1}")
    require((weak_probs >= 0).all(), "weak_probs has negative values")
    sums = weak_probs.sum(-1, keepdims=True)
    require(np.allclose(sums, 1, atol=1e-3), f"weak_probs sum to {sums.min():g}..{sums.max():g}, not to 1")
    weak_probs = weak_probs / sums  # what half precision left over

    if "split" not in arrays:
        rank = np.random.default_rng(seed).permutation(len(x))
        arrays["split"] = np.digitize(rank / len(x), [0.7, 0.8])
    parts = [arrays["split"] == part for part in range(3)]
    for part, split in zip(parts, ("train", "val", "test")):
        require(part.any(), f"no sample in split {split}")
    y, labels = torch.from_numpy(arrays["y"]), arrays.get("labels")
    x, weak_probs, labels = (None if a is None else torch.from_numpy(a) for a in (x, weak_probs, labels))
    splits = [Split(x[part], y[part], weak_probs[part]) for part in parts]
    names = [f"weak model {m + 1}" for m in range(num_weak)]
    kind = "preference" if pairs else "features"
    labels = None if labels is None else labels[parts[0]]
    return Task(kind, num_classes, None, *splits, names, "given", labels)
