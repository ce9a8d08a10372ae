"""protocol.py: which trials a search makes, what it keeps."""

from statistics import mean

import numpy as np
import pytest
from conftest import write_lines

import evaluate
import protocol
import store


def test_a_search_goes_from_the_middle_to_the_neighbours_of_the_best():
    tried = []

    def trial(row, column):  # best at (5, 3)
        tried.append((row, column))
        return -abs(row - 5) - abs(column - 3)

    found = protocol.search(trial, range(9), range(5), 2)
    middle = [(i, j) for i in (2, 3, 4) for j in (1, 2, 3)]
    assert list(found) == tried == [*middle, (4, 4), (5, 3), (5, 2)] and found[5, 2] == -1


@pytest.mark.parametrize("kind", protocol.TASKS)
def test_published_searches_follow_from_their_trials(kind, tmp_path, monkeypatch):
    """And stand beside those of other kinds, in place of older ones."""
    published, searches = evaluate.searches(), {}
    for line in published:
        trials = {(lr, own): val for lr, own, val in line["trials"]}
        searches[line["kind"], line["method"], line["supervision"]] = trials

    def val(method, fixed, flag, lr, own):
        return searches[kind, method, fixed[-1] if "--supervision" in fixed else None][lr, own]

    monkeypatch.setattr(protocol, "val", val)
    monkeypatch.setattr(protocol, "save_npz", lambda name, *given: name)
    monkeypatch.setattr(evaluate, "PROTOCOL", tmp_path / "protocol.jsonl")
    others = [line for line in published if line["kind"] != kind]
    write_lines(evaluate.PROTOCOL, [*others, {"kind": kind, "method": "old"}])
    protocol.main([kind])
    assert evaluate.searches() == published


def test_a_trial_is_the_mean_of_what_the_rows_say(npz):
    found = protocol.val("naive", ["--task", npz, "--seeds", "10", "11"], "batch_size", 1e-3, 16)
    rows = store.read_rows(protocol.Path("runs/naive.jsonl"))
    assert [row["seed"] for row in rows] == [10, 11] and rows[0]["flags"] == {"lr": 1e-3, "batch_size": 16}
    assert found == mean(row["val"] for row in rows)


def test_a_task_is_saved_as_a_file(amazon):
    path = protocol.save_npz("text:books:kitchen", ".", str(amazon), None)
    with np.load(path) as arrays:
        assert path == "kitchen.npz" and arrays["weak_probs"].shape == (60, 3, 2)
        assert arrays["x"].shape[0] == len(arrays["y"]) == 60 and set(arrays["y"]) == {0, 1}
