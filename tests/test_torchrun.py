"""Several processes, as torchrun numbers them: each has its share of tasks, seeds and images."""

import naive
import torch
from conftest import run_script

import evaluate
import models


def test_two_processes_make_the_rows_of_one(npz, monkeypatch, capsys):
    flags = ["--task", npz, *"--seeds 0 1 2 --steps 20 --out".split()]
    alone, shares = run_script(naive, *flags, "one"), []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        evaluate.run(lambda: shares.append(run_script(naive, *flags, "two")))
    assert [[row["seed"] for row in share] for share in shares] == [[0, 2], [1]]
    rows = sorted(sum(shares, []), key=lambda row: row["seed"])
    assert [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in alone]
    assert "rank 1 of 2: " in capsys.readouterr().err


def test_each_process_reads_another_shard_first(monkeypatch):
    """Ten images in shards of three; the second of two processes begins in the middle."""
    read, files = [], [str(i) for i in range(10)]
    monkeypatch.setattr(models, "SHARD", 3)
    monkeypatch.setattr(models.data, "fingerprint", str)
    monkeypatch.setattr(models, "cached", lambda kind, compute, **key: compute())
    monkeypatch.setattr(models, "image_encoder", lambda *_: ("network", "transform"))

    def see(name, network, transform, shard, *_, **__):
        read.append(shard)
        return torch.tensor([[float(file)] for file in shard])

    monkeypatch.setattr(models.pictures, "features", see)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    task = models.data.Task("image", 2, None, *[None] * 3, "e", [], files={"domain": files})
    found = models.look(task, ["7", "0"], "e", "cpu")
    assert found.tolist() == [[7.0], [0.0]] and read == [files[6:9], files[9:], files[:3], files[3:6]]
