"""Tasks: which domain the weak models learn from, which the student learns on, and how samples are split.

    load(name, seed, data_dir) -> Task

A weak model is trained on `weak_train` (source domain, with labels). It then labels `strong_train` (target
domain), from which the student learns without the ground truth. Settings are chosen on `val`, scores are from
`test`; both are target domain too. There, ground truth serves the ceiling and the scores only.

    glyphs                   rendered digits, four typefaces, clean -> the same
    glyphs-shift[-SEVERITY]  the same -> 16 typefaces, turned, cluttered, noisy, inverted (severity 0 to 1)
    mnist-usps, usps-mnist   handwritten digits of one institution -> another's, through torchvision
    FILE.npz                 outputs of your own models: arrays x, weak_probs, y; optionally split, labels
"""

import hashlib
import math
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

SIZES = {"weak_train": 4000, "strong_train": 7000, "val": 1000, "test": 2000}  # of the rendered tasks
DEFAULT_SEVERITY = 0.4
DOWNLOADS = Path("cache/torchvision")

DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Files in matplotlib's font folder, so that every machine draws from the same typefaces.
SOURCE_TYPEFACES = "DejaVuSans DejaVuSerif STIXGeneral cmr10".split()
TYPEFACES = [
    *SOURCE_TYPEFACES,
    *"""DejaVuSans-Bold DejaVuSans-Oblique DejaVuSansMono DejaVuSansMono-Bold
    DejaVuSerif-Bold DejaVuSerif-Italic STIXGeneralBol STIXGeneralItalic STIXGeneralBolIta cmb10 cmss10
    cmtt10""".split(),
]


class InputError(Exception):
    """What the user gave cannot be used; the message is one line that says what was expected."""


class Split(NamedTuple):
    """N samples of one domain."""

    x: torch.Tensor  # images (N, 1, 28, 28) in [0, 1]; features (N, D), or (N, 2, D) of a pair of responses
    y: torch.Tensor  # (N,) ground truth, int64 in [0, C)
    weak_probs: torch.Tensor | None = None  # (N, M, C) soft labels of M weak models, each row sums to 1


class Task(NamedTuple):
    """One weak-to-strong problem. models.supervise replaces images by features and adds weak_probs."""

    num_classes: int
    weak_train: Split | None  # None where the weak models' outputs were given
    strong_train: Split
    val: Split
    test: Split
    weak_models: list[str] = []  # their M names, in the order of weak_probs
    labels: torch.Tensor | None = None  # (N,) handed to the student on strong_train; None: weak labels only


def load(name: str, seed: int, data_dir: str | None = None) -> Task:
    """The task `name`; `seed` fixes what is drawn at random. Raises InputError if it cannot be had."""
    if name.endswith(".npz"):
        return load_npz(Path(name), seed)
    if name in ("mnist-usps", "usps-mnist"):
        source, target = (read_digits(domain, data_dir) for domain in name.split("-"))
        return digits_task(source, target, seed)
    return glyphs_task(severity(check_name(name)), seed)


def check_name(name: str) -> str:
    """The task's one name: glyphs-shift-0.40 is glyphs-shift. Raises InputError on a name that `load` does
    not know. Cheap, so that a typing error is found before any work."""
    if name.endswith(".npz"):
        if not Path(name).is_file():
            raise InputError(f"no file {name}")
        return name
    if name in ("mnist-usps", "usps-mnist"):
        return name
    if severity(name) is None:
        known = "glyphs, glyphs-shift, glyphs-shift-SEVERITY (0 to 1), mnist-usps, usps-mnist, FILE.npz"
        raise InputError(f"unknown task {name!r}; known: {known}")
    short = {0.0: "glyphs", DEFAULT_SEVERITY: "glyphs-shift"}
    return short.get(severity(name), f"glyphs-shift-{severity(name):g}")


def row_name(name: str) -> str:
    """How a row names the task: a file by its base name and the start of its sha256, since folders differ."""
    if not name.endswith(".npz"):
        return name
    return f"{Path(name).name}-{hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16]}"


def severity(name: str) -> float | None:
    """Shift severity in [0, 1] of a rendered task's name, 0 for `glyphs`; None for any other name."""
    if name == "glyphs":
        return 0.0
    match = re.fullmatch(r"glyphs-shift(?:-(0|1|[01]?\.\d+))?", name)
    value = float(match[1] or DEFAULT_SEVERITY) if match else math.inf
    return value if value <= 1 else None


# ---------------------------------------------------------------------------------------- rendered characters


def glyphs_task(severity: float, seed: int) -> Task:
    """Digits in the source style -> digits at `severity`. Every sample is a new draw: disjoint splits."""
    atlas = draw_atlas(DIGITS)
    generator = torch.Generator().manual_seed(seed)
    splits = {}
    for split, size in SIZES.items():
        # The draws do not depend on the severity: at one seed the same digits are more or less shifted.
        y = torch.randint(len(DIGITS), (size,), generator=generator)
        shift = torch.full((size,), 0.0 if split == "weak_train" else severity)
        splits[split] = Split(render(atlas, y, shift, generator), y)
    return Task(len(DIGITS), **splits)


def letters(n: int, seed: int) -> Split:
    """n rendered letters of 52 classes at severities 0 to 1, to pretrain the strong encoder on; no digits."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(len(LETTERS), (n,), generator=generator)
    return Split(render(draw_atlas(LETTERS), y, torch.rand(n, generator=generator), generator), y)


def draw_atlas(characters: str) -> torch.Tensor:
    """Every character in every typeface, centred: (typefaces, characters, 48, 48) in [0, 1], ink = 1."""
    import matplotlib  # for its font files only
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    atlas = np.zeros((len(TYPEFACES), len(characters), 48, 48), dtype=np.float32)
    for i, typeface in enumerate(TYPEFACES):
        font = ImageFont.truetype(str(folder / f"{typeface}.ttf"), size=42)
        for j, character in enumerate(characters):
            left, top, right, bottom = font.getbbox(character)
            corner = (24 - (left + right) / 2, 24 - (top + bottom) / 2)
            image = Image.new("L", (48, 48))
            ImageDraw.Draw(image).text(corner, character, fill=255, font=font)
            atlas[i, j] = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(atlas)


def render(atlas, y, severity, generator) -> torch.Tensor:
    """Characters y (N,) of an atlas at severity (N,) in [0, 1] as images (N, 1, 28, 28) in [0, 1].

    At 0: a source typeface, turned by up to 15 degrees, scaled by .75 to 1.1, shifted by up to 2 pixels. With
    severity grow: the share of other typefaces, rotation (to 40 degrees), a second character reaching in
    from the border, loss of contrast, noise (deviation to .5), and the share of inverted images (to 1/2).
    """

    def uniform(shape, low, high):
        return low + (high - low) * torch.rand(shape, generator=generator)

    images = []
    for characters, s in zip(y.split(2000), severity.split(2000)):  # in pieces, to keep memory small
        n = len(characters)
        source, other = (
            torch.randint(k, (n,), generator=generator) for k in (len(SOURCE_TYPEFACES), len(TYPEFACES))
        )
        typeface = torch.where(uniform(n, 0, 1) < s, other, source)
        angle, size = uniform(n, -1, 1) * (15 + 25 * s), uniform(n, 0.75, 1.1)
        image = paste(atlas[typeface, characters], angle, size, uniform((n, 2), -2, 2))

        neighbour = torch.randint(atlas.shape[1], (n,), generator=generator)
        direction = uniform(n, 0, 2 * math.pi)
        offset = torch.stack([direction.cos(), direction.sin()], dim=1) * uniform((n, 1), 13, 17)
        clutter = paste(atlas[typeface, neighbour], uniform(n, -40, 40), uniform(n, 0.75, 1.1), offset)
        s = s[:, None, None, None]
        image = torch.maximum(image, clutter * (uniform(s.shape, 0, 1) < 2 * s))

        image = image * (1 - s * uniform(s.shape, 0, 0.7))
        noise = torch.randn(image.shape, generator=generator)
        image = image + s * uniform(s.shape, 0, 0.5) * noise
        image = torch.where(uniform(s.shape, 0, 1) < s / 2, 1 - image, image)
        images.append(image.clamp(0, 1))
    return torch.cat(images)


def paste(glyphs, angle, size, offset) -> torch.Tensor:
    """Glyphs (N, 48, 48), turned by angle (N,) degrees, scaled by size (N,) where 1 fills the image, moved by
    offset (N, 2) pixels -> images (N, 1, 28, 28)."""
    cos, sin = angle.deg2rad().cos() / size, angle.deg2rad().sin() / size
    # affine_grid maps output to input, so this is the inverse: undo the offset, then turn back and shrink.
    turn = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2)
    shift = -turn @ (offset / 14)[:, :, None]
    # Drawn at twice the resolution and averaged, so that thin strokes do not break.
    grid = F.affine_grid(torch.cat([turn, shift], dim=2), [len(glyphs), 1, 56, 56], align_corners=False)
    return F.avg_pool2d(F.grid_sample(glyphs[:, None], grid, align_corners=False), 2)


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
    return Task(10, weak_train, strong_train, val, target["test"])


def read_digits(domain: str, data_dir: str | None) -> dict[str, Split]:
    """The data set mnist or usps through torchvision, {"train": Split, "test": Split}, framed alike.

    Reads `data_dir` if given, else a folder under cache/ into which it is downloaded on first use.
    """
    from torchvision import datasets  # here, as its import takes a second

    dataset = {"mnist": datasets.MNIST, "usps": datasets.USPS}[domain]
    folder = Path(data_dir) if data_dir else DOWNLOADS / domain

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
        parts = read(folder, download=False)
    except Exception as error:  # torchvision and what it calls raise many kinds
        files = {"mnist": "MNIST/raw/{train,t10k}-*-ubyte", "usps": "usps.bz2 and usps.t.bz2"}[domain]
        remedy = (
            "without --data-dir they are downloaded"
            if data_dir
            else "or give a folder that has them: --data-dir"
        )
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {files} in {folder} ({reason}); {remedy}") from error
    return {
        split: Split(frame(torch.as_tensor(part.data)), torch.as_tensor(part.targets))
        for split, part in parts.items()
    }


def frame(images: torch.Tensor) -> torch.Tensor:
    """Grey images (N, H, W) in 0..255 -> (N, 1, 28, 28) in [0, 1]: the ink's box centred, its longer side 20.

    Data sets frame their digits differently: MNIST leaves a margin, USPS none. Without this the shift between
    them would mostly be one of framing.
    """
    n, height, width = images.shape
    images = images.float()[:, None] / 255
    ink = images[:, 0] > 0.2

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
    return F.grid_sample(images, grid, align_corners=False)


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
    return Task(num_classes, None, *splits, names, None if labels is None else labels[parts[0]])
