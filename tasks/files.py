"""Readers of files: handwritten digits and CIFAR-100, reviews, dialogues, and FILE.npz of the user's own.

All raise InputError where a file cannot be used, in one line that names it and says what was expected.
"""

import fileinput
import functools
import glob
import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from tasks import images, text

DOWNLOADS = Path("cache/downloads")


class InputError(Exception):
    """What the user gave cannot be used; the message is one line that says what was expected."""


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


def labelled_images(name: str, data_dir: str | None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{"train" and "test": (x, y (N,))}. mnist and usps: x (N, 1, 28, 28) framed alike; cifar100: x uint8
    (N, 3, 32, 32). Read from data_dir, without it from cache/ after a download on first use."""
    from torchvision import datasets  # here, as its import takes a second

    dataset, files = {
        "mnist": (datasets.MNIST, "MNIST/raw/{train,t10k}-*-ubyte"),
        "usps": (datasets.USPS, "usps.bz2 and usps.t.bz2"),
        "cifar100": (datasets.CIFAR100, "cifar-100-python/{train,test,meta}"),
    }[name]
    folder, found = data_dir or DOWNLOADS / name, {}
    for part in ("train", "test"):
        try:
            read = dataset(folder, part == "train", download=not data_dir)
        except Exception as error:  # torchvision and what it calls raise many kinds
            reason = f"{' '.join(str(error).split())}; without --data-dir they are downloaded to {DOWNLOADS}"
            raise InputError(f"cannot read {files} in {folder}: {reason}") from error
        x, y = torch.as_tensor(read.data), torch.as_tensor(read.targets)
        found[part] = x.permute(0, 3, 1, 2).contiguous() if name == "cifar100" else images.frame(x), y
    return found


def reviews(domain: str, data_dir: str) -> list[tuple[str, str, int]]:
    """DOMAIN.jsonl[.gz] in data_dir, lines {"text": str, "label": 0, 1, ...} -> (words, text, label)."""
    rows = read_json_lines(data_dir, f"{domain}.jsonl", {"text": str, "label": int})
    return [(" ".join(text.terms(row["text"], False)), row["text"], row["label"]) for row in rows]


def dialogues(domain: str, data_dir: str | None) -> list[tuple[str, tuple[str, str], int]]:
    """Pairs of dialogues of HH-RLHF, from data_dir/DOMAIN/*.jsonl[.gz] or from the Hugging Face hub
    -> (first human turn, (chosen, rejected), 0) each."""
    if data_dir:
        rows = read_json_lines(data_dir, f"{domain}/*.jsonl", {"chosen": str, "rejected": str})
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


def read_json_lines(data_dir: str, names: str, fields: dict[str, type]) -> list[dict]:
    """The rows of JSON-lines files, plain or .gz. InputError names file and line where a field is missing."""
    ends, folder = (".gz", ""), glob.escape(data_dir)  # of a file that is there as both, the plain one
    found = {file.removesuffix(".gz"): file for end in ends for file in glob.glob(f"{folder}/{names}{end}")}
    if not found:
        raise InputError(f"no {names}[.gz] in {data_dir}: --data-dir names the folder")
    rows = []
    with fileinput.FileInput(sorted(found.values()), mode="rb", openhook=fileinput.hook_compressed) as lines:
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


def arrays(path: str, seed: int) -> list[dict[str, torch.Tensor]]:
    """The arrays of an .npz file, read without pickle, of its three splits.

    x           (N, D) features, or (N, 2, D) of a pair of responses, of which class y is the better
    weak_probs  (N, M, C) soft labels of M weak models
    y           (N,) ground truth in [0, C)
    labels      (N,) optional: labels in [0, C) that the student may use; read on the training split
    split       (N,) optional: 0 train, 1 val, 2 test; without it 70/10/20 % at random, by the seed
    """
    types = {"x": "float32", "weak_probs": "float32", "y": "int64", "split": "int64", "labels": "int64"}
    found, key = {}, "x"
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in [key for key in types if key in file or key in ("x", "weak_probs", "y")]:
                found[key] = file[key].astype(types[key], casting="same_kind")
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        expected = f"expected is an .npz file with {key} as plain {types[key]}"
        raise InputError(f"{path}: {expected}: {error}") from error
    x, weak_probs = found["x"], found["weak_probs"]

    def require(condition, message):
        if not condition:
            raise InputError(f"{path}: {message}")

    fits, shape = weak_probs.ndim == 3 and weak_probs.size, weak_probs.shape
    require(fits, f"weak_probs has shape {shape}, expected (N, M, C)")
    n, _, num_classes = shape
    fits = x.ndim == 2 or x.ndim == 3 and x.shape[1] == num_classes == 2
    fits = fits and x.size and len(x) == n
    require(fits, f"x has shape {x.shape}, expected ({n}, D), or of pairs, where C is 2, ({n}, 2, D)")
    require(np.isfinite(x).all(), "x has NaN, infinite or too large values")
    for key, limit in {"y": num_classes, "labels": num_classes, "split": 3}.items():
        array = found.get(key, np.zeros(n))
        fits = array.shape == (n,) and ((0 <= array) & (array < limit)).all()
        require(fits, f"{key} of shape {array.shape}: expected are {n} numbers from 0 to {limit - 1}")
    sums = weak_probs.sum(-1, keepdims=True)
    probs = (weak_probs >= 0).all() and np.allclose(sums, 1, atol=1e-3)
    require(probs, f"weak_probs are negative or sum to {sums.min():g}..{sums.max():g}, not to 1")
    found["weak_probs"] = weak_probs / sums  # what half precision left over
    rank = np.random.default_rng(seed).permutation(n)
    split = found.pop("split", np.digitize(rank / n, [0.7, 0.8]))
    require(len(np.unique(split)) == 3, "a split has no sample")
    return [{key: torch.from_numpy(array[split == i]) for key, array in found.items()} for i in range(3)]
