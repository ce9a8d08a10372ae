"""What is kept on disk: the rows of results in OUT/METHOD.jsonl, and in cache/ what is slow to compute.

A run that is killed at any moment leaves no half file, and several processes may work at a time.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

import data

VERSION = 2  # raised by hand when results change on purpose: rows and cache of another version do not count
CACHE = Path("cache")
torch.serialization.add_safe_globals([data.Task, data.Split, data.labelled.Setting])  # the cache holds them


def rank() -> tuple[int, int]:
    """Which of how many processes this one is: under torchrun its RANK and the WORLD_SIZE, else 0 of 1."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def locked(path: Path):
    """One process at a time for each path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        yield


def write_atomically(path: Path, write) -> None:
    """write(file) to a temporary file, which is then renamed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        write(file)
    os.replace(partial, path)


def cached(kind: str, compute, **key):
    """compute(), kept under cache/ by VERSION, torch's version and `key`, which has to name all that the
    value depends on. Of processes that want the same value, one computes it. A damaged file is replaced."""
    identity = repr((sorted(key.items()), VERSION, torch.__version__))
    path = CACHE / f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.pt"
    with locked(path):
        if path.exists():
            try:
                if damaged := zipfile.ZipFile(path).testzip():  # torch.load does not look at checksums
                    raise zipfile.BadZipFile(damaged)
                return torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # zipfile and torch.load raise many kinds
                print(f"{path} is damaged ({error}) and is computed again", file=sys.stderr)
        value = compute()
        write_atomically(path, lambda file: torch.save(value, file))
    return value


def identity(method: str, task: str, seed: int, folder: str | None, device: str, flags: dict) -> dict:
    """All that a row's figures depend on. Files of the user's are named by content, not by place or time.

    folder: the user's --data-dir; flags: those that differ from the defaults."""
    own, name = (task, Path(task).name) if task.endswith(".npz") else (folder, task)
    users = {"text_encoder", "image_encoder", "weak_encoder", "policy"} & flags.keys()
    flags = flags | {key: data.row_name(flags[key]) for key in users}
    content = own and data.fingerprint(own, data.folders(task))
    row = {"method": method, "task": name, "data": content, "seed": seed, "version": VERSION}
    return row | {"torch": torch.__version__, "device": device, "flags": flags}


@functools.cache
def commit() -> str | None:
    """The commit of this code, "-dirty" if it was changed since; None outside a git repository."""
    command = "git describe --always --dirty --exclude='*'"  # by a shell, which says so if there is no git
    done = subprocess.run(command, shell=True, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or None


def read_rows(path: Path) -> list[dict]:
    """The rows of a .jsonl file, none if there is no file. Raises InputError on a line that is no row."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if not all({"method", "task", "seed", "flags"} <= row.keys() for row in rows):
            raise ValueError("a field is missing")
    except (ValueError, AttributeError) as error:
        raise data.InputError(f"{path} has a line that is no row; mend or remove it ({error})") from error
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, lambda file: file.write(lines.encode()))


def find_row(out: str, wanted: dict) -> dict | None:
    """The row of OUT/METHOD.jsonl that agrees with `wanted` in all it names, or None."""
    rows = read_rows(Path(out, f"{wanted['method']}.jsonl"))
    return next((row for row in rows if wanted.items() <= row.items()), None)


def save_row(out: str, identity: dict, figures: dict) -> dict:
    """Adds a row to OUT/METHOD.jsonl, unless another process was faster, and returns what is there."""
    path = Path(out, f"{identity['method']}.jsonl")
    with locked(path):
        if (row := find_row(out, identity)) is None:
            row = identity | {"commit": commit()} | figures
            write_rows(path, [*read_rows(path), row])
    return row
