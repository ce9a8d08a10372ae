"""Readers of files: handwritten digits and CIFAR-100, reviews, dialogues, and FILE.npz of the user's own.

All raise InputError where a file cannot be used, in one line that names it and says what was expected.
"""

import fileinput
import json
import zlib
from pathlib import Path

import numpy as np
import torch

from tasks import images, text

DOWNLOADS = Path("cache/downloads")


class InputError(Exception):
    """What the user gave cannot be used; the message is one line that says what was expected."""


def labelled_images(name: str, data_dir: str | None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{"train" and "test": (x, y (N,))}. mnist and usps: x (N, 1, 28, 28) framed alike; cifar100: x uint8
    (N, 3, 32, 32). Read from data_dir, without it from cache/ after a download on first use."""
    from torchvision import datasets  # here, as its import takes a second

    dataset, files = {
        "mnist": (datasets.MNIST, "MNIST/raw/{train,t10k}-*-ubyte"),
        "usps": (datasets.USPS, "usps.bz2 and usps.t.bz2"),
        "cifar100": (datasets.CIFAR100, "cifar-100-python/{train,test,meta}"),
    }[name]
    folder = Path(data_dir) if data_dir else DOWNLOADS / name
    try:
        parts = {part: dataset(folder, part == "train", download=not data_dir) for part in ("train", "test")}
    except Exception as error:  # torchvision and what it calls raise many kinds
        remedy = "without --data-dir they are downloaded" if data_dir else "remove it or name one: --data-dir"
        reason = " ".join(str(error).split()).removesuffix(" You can use download=True to download it")
        raise InputError(f"cannot read {files} in {folder} ({reason}); {remedy}") from error

    def frame(x):
        return x.permute(0, 3, 1, 2).contiguous() if name == "cifar100" else images.frame(x)

    return {key: (frame(torch.as_tensor(p.data)), torch.as_tensor(p.targets)) for key, p in parts.items()}


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
        raise InputError(f"{files[0]} has the labels {labels[:10]}; expected are two or more, from 0 on")
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
            message = f"cannot fetch Anthropic/hh-rlhf: {error}; or --data-dir FOLDER"
            raise InputError(" ".join(message.split())) from error
        rows = [row for part in parts.values() for row in part]
    pairs = [(row["chosen"], row["rejected"]) for row in rows if row["chosen"] != row["rejected"]]
    if not all("\n\nAssistant:" in response for pair in pairs for response in pair):
        raise InputError(f"{domain} has a dialogue without 'Assistant:' after an empty line")
    return [(" ".join(text.terms(pair[0].split("\n\nAssistant:")[0], False)), pair, 0) for pair in pairs]


def read_json_lines(fields: dict[str, type], files: list[Path]) -> list[dict]:
    """The rows of JSON-lines files, plain or .gz. InputError names file and line where a field is missing."""
    rows = []
    with fileinput.FileInput(files, mode="rb", openhook=fileinput.hook_compressed) as lines:
        try:
            for line in filter(bytes.strip, lines):
                rows.append(row := json.loads(line))
                for field, kind in fields.items():
                    value = row.get(field) if isinstance(row, dict) else None
                    if type(value) is not kind or not str(value).strip():
                        raise ValueError(f"expected is a field {field!r}, {kind.__name__}, not empty")
        except (ValueError, OSError, EOFError, zlib.error) as error:
            raise InputError(f"{lines.filename()}, line {lines.filelineno()}: {error}") from error
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
        fits = np.can_cast(array.dtype, types[key], "same_kind")
        require(fits, f"{key} has type {array.dtype}, expected {types[key]}")
        found[key] = array.astype(types[key])  # first, so that what is checked is what is used
        require(np.isfinite(found[key]).all(), f"{key} has NaN, infinite or too large values")
    x, weak_probs = found["x"], found["weak_probs"]
    pairs, shape = x.ndim == 3 and x.shape[1] == 2, weak_probs.shape
    require(x.size and (x.ndim == 2 or pairs), f"x has shape {x.shape}, expected (N, D) or (N, 2, D)")
    n = len(x)
    fits = len(shape) == 3 and shape[0] == n and min(shape)
    require(fits, f"weak_probs has shape {shape}, expected ({n}, M, C)")
    require(not pairs or shape[2] == 2, f"x has pairs, which have 2 classes; weak_probs has {shape[2]}")
    for key, limit in {"y": shape[2], "labels": shape[2], "split": 3}.items():
        array = found.get(key, np.zeros(n))
        require(array.shape == (n,), f"{key} has shape {array.shape}, expected ({n},)")
        require(((0 <= array) & (array < limit)).all(), f"{key} has values outside 0..{limit - 1}")
    sums = weak_probs.sum(-1, keepdims=True)
    probs = (weak_probs >= 0).all() and np.allclose(sums, 1, atol=1e-3)
    require(probs, f"weak_probs are negative or sum to {sums.min():g}..{sums.max():g}, not to 1")
    found["weak_probs"] = weak_probs / sums  # what half precision left over

    rank = np.random.default_rng(seed).permutation(n)
    split = found.pop("split", np.digitize(rank / n, [0.7, 0.8]))
    for part, name in enumerate(("train", "val", "test")):
        require((split == part).any(), f"no sample in split {name}")
    return {key: torch.from_numpy(array) for key, array in found.items()}, torch.from_numpy(split)
