"""What is kept on disk: rows of results, and in cache/ what is slow to compute.

A cached value is named by a hash of its arguments, of our source text and of the torch version: changed code
never meets an old result.
"""

import fcntl
import hashlib
import json
import os
import sys
import zipfile
from pathlib import Path

import torch

import data

CACHE = Path("cache")
NAMES = "data fast images settings store text training models".split()
SOURCES = [Path(__file__).with_name(f"{name}.py") for name in NAMES]  # which every result depends on
torch.serialization.add_safe_globals([data.Task, data.Split])  # what else than tensors the cache may hold


def cached(kind: str, function, **arguments):
    """function(**arguments), read from cache/ if the same code has computed it before."""
    path = cache_path(kind, arguments)
    if path.exists():
        try:
            return load(path)
        except Exception as error:  # zipfile and torch.load raise many kinds
            print(f"{path} is damaged ({error}) and is computed again", file=sys.stderr)
    value = function(**arguments)
    write_atomically(path, lambda file: torch.save(value, file))
    return value


def cache_path(kind: str, arguments: dict) -> Path:
    """The file in cache/ that belongs to these arguments, our code and this version of torch."""
    sources = [Path(file).read_text() for file in SOURCES]
    folders = [data.row_name(value) for value in arguments.values() if isinstance(value, str)]
    identity = repr((sorted(arguments.items()), folders, sources, torch.__version__))
    return CACHE / f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.pt"


def load(path: Path):
    """What torch.save wrote. Raises an exception of some kind on a damaged file."""
    if damaged := zipfile.ZipFile(path).testzip():  # torch.load does not look at checksums
        raise zipfile.BadZipFile(damaged)
    return torch.load(path, weights_only=True)


def digest(*tensors: torch.Tensor) -> str:
    """Names the content of tensors, as an argument of `cached`."""
    content = (tensor.cpu().contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(b"".join(content)).hexdigest()


def write_atomically(path: Path, write) -> None:
    """write(file) to a temporary file, then rename it: a run killed at any moment leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def code_hash(method_file: str | Path) -> str:
    """Names the code that a row of this method comes from."""
    sources = (Path(file).read_bytes() for file in (method_file, *SOURCES))
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]


def read_rows(path: Path) -> list[dict]:
    """The rows of a .jsonl file, none if there is no file. Raises InputError on a line that is no row."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for row in rows:
            if missing := {"method", "task", "seed", "supervision", "code", "flags"} - row.keys():
                raise ValueError(f"without {', '.join(sorted(missing))}")
    except (ValueError, AttributeError) as error:
        raise data.InputError(f"{path} has a line that is no row; mend or remove it ({error})") from error
    return rows


def find_row(out: str, identity: dict) -> dict | None:
    """The row of OUT/METHOD.jsonl that agrees with `identity` in all it names, or None."""
    Path(out).mkdir(parents=True, exist_ok=True)  # now: a folder that cannot be made costs no training
    rows = read_rows(Path(out) / f"{identity['method']}.jsonl")
    return next((row for row in rows if identity.items() <= row.items()), None)


def save_row(out: str, row: dict) -> None:
    """Adds the row to OUT/METHOD.jsonl; several runs may do so at a time."""
    path = Path(out) / f"{row['method']}.jsonl"
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        lines = "".join(json.dumps(row) + "\n" for row in [*read_rows(path), row])
        write_atomically(path, lambda file: file.write(lines.encode()))
