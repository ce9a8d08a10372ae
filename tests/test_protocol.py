"""protocol.py: which trials a search makes, what it keeps."""

import json

import numpy as np
from conftest import write_lines

import evaluate
import protocol

ROWS, COLUMNS = protocol.RATES, [0.1, 0.2, 0.3, 0.4, 0.5]


def hill(best):
    """The trials of a search, in order, whose value falls with the distance from `best` (row, column)."""
    tried = []

    def trial(lr, own):
        tried.append((ROWS.index(lr), COLUMNS.index(own)))
        return -abs(tried[-1][0] - best[0]) - abs(tried[-1][1] - best[1])

    found = protocol.search(trial, ROWS, COLUMNS, 2)
    assert list(found) == [(ROWS[i], COLUMNS[j]) for i, j in tried]
    return tried


def test_a_search_goes_from_the_middle_to_the_neighbours_of_the_best():
    middle = [(i, j) for i in (2, 3, 4) for j in (1, 2, 3)]
    assert hill((3, 2)) == [*middle, (1, 2), (3, 0), (3, 4)]  # whose neighbours are all tried
    assert hill((5, 3)) == [*middle, (4, 4), (5, 3), (5, 2)]
    assert hill((0, 0))[9:] == [(1, 1), (2, 0), (0, 1)]


def test_what_is_found_is_kept_beside_other_kinds(npz, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "PROTOCOL", tmp_path / "protocol.jsonl")
    monkeypatch.setattr(protocol, "TASKS", {"image": [npz], "text": []})
    monkeypatch.setattr(protocol, "OWN", {"raven": ("weight_lr", [1e-3, 1e-2, 1e-1])})
    monkeypatch.setattr(protocol, "RATES", [1e-5, 1e-4, 1e-3, 1e-2])
    monkeypatch.setattr(protocol, "TRIALS", 11)
    monkeypatch.setattr(protocol, "SEEDS", ["10"])
    old = {"kind": "text", "method": "raven", "supervision": None, "flags": {}, "trials": []}
    write_lines(evaluate.PROTOCOL, [old, old | {"kind": "image"}])
    protocol.main(["image"])
    new, kept = map(json.loads, evaluate.PROTOCOL.read_text().splitlines())
    assert kept == old and json.loads(capsys.readouterr().out) == new
    lr, weight_lr, val = max(new["trials"], key=lambda trial: trial[2])
    assert new["flags"] == {"lr": lr, "weight_lr": weight_lr} and len(new["trials"]) == 11
    rows = [json.loads(row) for row in open("runs/protocol/raven.jsonl")]
    assert len(rows) == len(new["trials"]) and val == max(row["val"] for row in rows)


def test_a_task_is_saved_as_a_file(amazon):
    path = protocol.save_npz("text:books:kitchen", ".", str(amazon), None)
    with np.load(path) as arrays:
        assert path == "kitchen.npz" and arrays["weak_probs"].shape == (60, 3, 2)
        assert arrays["x"].shape[0] == len(arrays["y"]) == 60
