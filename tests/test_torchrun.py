"""Several processes by torchrun: each has its share of tasks and seeds."""

import json
import subprocess
import sys
from pathlib import Path

import naive
import torch
from conftest import ROOT, run_script

import evaluate
import models
import store


def test_two_processes_make_the_rows_of_one(npz):
    flags = ["--task", npz, "--seeds", "0", "1", "2", "--steps", "20", "--out"]
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*ranks, ROOT / "methods" / "naive.py", *flags, "two"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "rank 1 of 2" in done.stderr, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    rows = sorted(store.read_rows(Path("two/naive.jsonl")), key=lambda row: row["seed"])
    assert sorted(printed, key=lambda row: row["seed"]) == rows and len(rows) == 3
    alone = run_script(naive, *flags, "one")
    assert [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in alone]


def test_shares_are_disjoint_and_complete(npz, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parser = evaluate.flags("naive.py", "Naive.")
        found = evaluate.missing(parser, ["--task", npz, "glyphs", "--seeds", "0", "1"])
        shares.append([(known.name, args.seed) for known, args, _ in found])
    assert shares == [[(npz, 0), ("glyphs", 1)], [(npz, 1)], [("glyphs", 0)]]


def test_each_process_reads_another_shard_first(monkeypatch):
    """Ten images in shards of three; the second of two processes begins in the middle."""
    read, files = [], [str(i) for i in range(10)]
    monkeypatch.setattr(models, "SHARD", 3)
    monkeypatch.setattr(models.data, "fingerprint", str)
    monkeypatch.setattr(models, "cached", lambda kind, compute, **key: compute())
    monkeypatch.setattr(models, "image_encoder", lambda *_: ("network", "transform"))
    monkeypatch.setattr(models.pictures, "features", lambda *given, **_: see(given[3]))

    def see(shard):
        read.append(shard)
        return torch.tensor([[float(file)] for file in shard])

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    task = models.data.Task("image", 2, None, *[None] * 3, "e", [], files={"domain": files})
    found = models.look(task, ["7", "0"], "e", "cpu")
    assert found.tolist() == [[7.0], [0.0]] and read == [files[6:9], files[9:], files[:3], files[3:6]]
