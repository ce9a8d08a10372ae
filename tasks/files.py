"""Readers of files: handwritten digits and CIFAR-100, reviews, dialogues, and FILE.npz of the user's own.

All raise InputError where a file cannot be used, in one line that names it and says what was expected.
"""

import gzip
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch

from tasks import images, text

DOWNLOADS = Path("cache/downloads")


class InputError(Exception):
    """What the user gave cannot be used; the message is one line that says what was expected."""


def digits(domain: str, data_dir: str | None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The data set mnist or usps, {"train" and "test": (x (N, 1, 28, 28), y (N,))}, framed alike."""
    return {split: (images.frame(x), y) for split, (x, y) in read_torchvision(domain, data_dir).items()}


def cifar100(data_dir: str | None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """CIFAR-100, {"train" and "test": (x uint8 (N, 3, 32, 32), y (N,))}."""
    parts = read_torchvision("cifar100", data_dir)
    return {split: (x.permute(0, 3, 1, 2).contiguous(), y) for split, (x, y) in parts.items()}


def read_torchvision(name: str, data_dir: str | None) -> dict:
    """A data set of torchvision, from data_dir if that is given, else from a folder under cache/ into which
    it is downloaded on first use."""
    from torchvision import datasets  # here, as its import takes a second

    dataset, files = {
        "mnist": (datasets.MNIST, "MNIST/raw/{train,t10k}-*-ubyte"),
        "usps": (datasets.USPS, "usps.bz2 and usps.t.bz2"),
        "cifar100": (datasets.CIFAR100, "cifar-100-python/{train,test,meta}"),
    }[name]
    folder = Path(data_dir) if data_dir else DOWNLOADS / name
    try:
        if not data_dir and not folder.exists():
            partial = folder.with_suffix(".partial")  # so that a broken download never looks complete
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for train in (True, False):
                dataset(partial, train=train, download=True)
            partial.rename(folder)
        parts = {split: dataset(folder, train=split == "train") for split in ("train", "test")}
    except Exception as error:  # torchvision and what it calls raise many kinds
        remedy = "without --data-dir they are downloaded" if data_dir else "or name a folder: --data-dir"
        reason = " ".join(str(error).split()).removesuffix(" You can use download=True to download it")
        raise InputError(f"cannot read {files} in {folder} ({reason}); {remedy}") from error
    return {key: (torch.as_tensor(part.data), torch.as_tensor(part.targets)) for key, part in parts.items()}


def reviews(domain: str, data_dir: str | None) -> list[tuple[str, str, int]]:
    """DOMAIN.jsonl[.gz] in data_dir, lines {"text": str, "label": 0, 1, ...} -> (words, text, label)."""
    if not data_dir:
        raise InputError("no folder given: name the one that has the reviews by --data-dir")
    files = [file for end in ("", ".gz") if (file := Path(data_dir, f"{domain}.jsonl{end}")).is_file()]
    if not files:
        raise InputError(f"no {domain}.jsonl or {domain}.jsonl.gz in {data_dir}: --data-dir names the folder")
    rows = read_json_lines({"text": str, "label": int}, files[:1])
    labels = sorted({row["label"] for row in rows})
    if len(labels) < 2 or labels != list(range(len(labels))):
        found = ", ".join(map(str, labels[:10]))
        raise InputError(f"{files[0]} has the labels {found}; expected are two or more, from 0 on")
    return [(" ".join(text.terms(row["text"], False)), row["text"], row["label"]) for row in rows]


def dialogues(domain: str, data_dir: str | None) -> list[tuple[str, tuple[str, str], int]]:
    """Pairs of dialogues of HH-RLHF, from data_dir/DOMAIN/*.jsonl[.gz] or from the Hugging Face hub
    -> (first human turn, (chosen, rejected), 0) each."""
    if data_dir:
        files = sorted(file for end in ("", ".gz") for file in Path(data_dir, domain).glob(f"*.jsonl{end}"))
        if not files:
            raise InputError(f"no {domain}/*.jsonl[.gz] in {data_dir}; without --data-dir they are fetched")
        rows = read_json_lines({"chosen": str, "rejected": str}, files)
    else:
        try:
            import datasets  # here, as it takes a second

            parts = datasets.load_dataset("Anthropic/hh-rlhf", data_dir=domain, cache_dir=str(DOWNLOADS))
        except Exception as error:  # datasets and what it calls raise many kinds
            reason = " ".join(str(error).split())
            raise InputError(f"cannot fetch Anthropic/hh-rlhf: {reason}; or --data-dir FOLDER") from error
        rows = [row for part in parts.values() for row in part]
    pairs = [(row["chosen"], row["rejected"]) for row in rows if row["chosen"] != row["rejected"]]
    if not all("\n\nAssistant:" in response for pair in pairs for response in pair):
        raise InputError(f"{domain} has a dialogue without 'Assistant:' after an empty line")
    return [(" ".join(text.terms(pair[0].split("\n\nAssistant:")[0], False)), pair, 0) for pair in pairs]


def read_json_lines(fields: dict[str, type], files: list[Path]) -> list[dict]:
    """The rows of JSON-lines files, plain or compressed. Raises InputError, with file and line, on an
    unreadable row or a missing, empty or mistyped field."""

    def parse(line):
        row = json.loads(line)
        for field, kind in fields.items():
            if not isinstance(row, dict) or row.get(field) is None:
                raise ValueError(f"no field {field!r}")
            if type(row[field]) is not kind:
                raise ValueError(f"{field!r} is no {kind.__name__}")
            if kind is str and not row[field].strip():
                raise ValueError(f"{field!r} is empty")
        return row

    rows = []
    for file in files:
        number = 0
        try:
            with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as lines:
                for line in lines:
                    number += 1
                    if line.strip():
                        rows.append(parse(line))
        except (ValueError, OSError, EOFError, zlib.error) as error:
            raise InputError(f"{file}, line {number}: {error}") from error
    if not rows:
        raise InputError(f"nothing in {', '.join(map(str, files))}")
    return rows


def arrays(path: Path, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The arrays of an .npz file, read without pickle, and the split (N,) of each sample.

    x           (N, D) features, or (N, 2, D) of a pair of responses, of which class y is the better
    weak_probs  (N, M, C) soft labels of M weak models
    y           (N,) ground truth in [0, C)
    labels      (N,) optional: labels in [0, C) that the student may use; read on the training split
    split       (N,) optional: 0 train, 1 val, 2 test; without it 70/10/20 % at random, by the seed
    """
    types = {"x": "float32", "weak_probs": "float32", "y": "int64", "split": "int64", "labels": "int64"}
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in types if key in file}
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        raise InputError(f"{path}: not an .npz file of plain arrays ({error})") from error

    def require(condition, message):
        if not condition:
            raise InputError(f"{path}: {message}")

    missing = [key for key in ("x", "weak_probs", "y") if key not in found]
    require(not missing, f"array missing: {', '.join(missing)}")
    for key, array in found.items():
        kind = "f" if types[key] == "float32" else "iu"
        require(array.dtype.kind in kind, f"{key} has type {array.dtype}, expected {types[key]}")
        with np.errstate(over="ignore"):
            found[key] = array.astype(types[key])  # first, so that what is checked is what is used
        require(np.isfinite(found[key]).all(), f"{key} has NaN, infinite or too large values")
    x, weak_probs = found["x"], found["weak_probs"]
    pairs = x.ndim == 3 and x.shape[1] == 2
    require(x.ndim == 2 or pairs, f"x has shape {x.shape}, expected (N, D) or (N, 2, D)")
    require(x.size > 0, f"x has shape {x.shape}: nothing in it")
    require(weak_probs.ndim == 3, f"weak_probs has shape {weak_probs.shape}, expected (N, M, C)")
    _, num_weak, num_classes = weak_probs.shape
    require(num_weak > 0 and num_classes > 1, f"weak_probs has shape {weak_probs.shape}: M or C too small")
    require(not pairs or num_classes == 2, f"x has pairs, which have 2 classes; weak_probs has {num_classes}")
    require(len(weak_probs) == len(x), f"weak_probs has shape {weak_probs.shape}, but x {x.shape}")
    for key, limit in (("y", num_classes), ("labels", num_classes), ("split", 3)):
        if key in found:
            array = found[key]
            require(array.shape == x.shape[:1], f"{key} has shape {array.shape}, expected {x.shape[:1]}")
            require(0 <= array.min() and array.max() < limit, f"{key} has values outside 0..{limit - 1}")
    require((weak_probs >= 0).all(), "weak_probs has negative values")
    sums = weak_probs.sum(-1, keepdims=True)
    require(np.allclose(sums, 1, atol=1e-3), f"weak_probs sum to {sums.min():g}..{sums.max():g}, not to 1")
    found["weak_probs"] = weak_probs / sums  # what half precision left over

    rank = np.random.default_rng(seed).permutation(len(x))
    split = found.pop("split", np.digitize(rank / len(x), [0.7, 0.8]))
    for part, name in enumerate(("train", "val", "test")):
        require((split == part).any(), f"no sample in split {name}")
    return {key: torch.from_numpy(array) for key, array in found.items()}, torch.from_numpy(split)
