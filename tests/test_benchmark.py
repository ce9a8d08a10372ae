"""The benchmark compares what computes the same; tables and publishing."""

import json

import pytest
import torch

import benchmark


@pytest.mark.parametrize("method", benchmark.PUBLISHED)
def test_published_formula_and_ours_have_the_same_gradients(method):
    arguments = benchmark.arguments(method, 40, 7, torch.float64, "cpu")
    arguments[2:] = [part.double() if part.is_floating_point() else part for part in arguments[2:]]
    value, *gradients = benchmark.differentiate(benchmark.PUBLISHED[method], *arguments)
    own_value, *own = benchmark.differentiate(benchmark.ours(method, False), *arguments)
    if method != "adaptive_confidence":  # whose KL divergence differs by the entropy of q
        torch.testing.assert_close(own_value, value)
    torch.testing.assert_close(own, gradients)
    assert len(gradients) == (2 if method == "raven" else 1) and all(part.abs().max() > 0 for part in own)


def test_limit_and_ratios_of_a_loss(monkeypatch):
    """Logits and three weak labels read, a gradient written: 5 of (40, 7), of a copy's bytes."""
    times = {"published": 4.0, "ours": 3.0, "compiled": 2.0, "limit": 8.0}
    monkeypatch.setattr(benchmark, "medians", lambda runs, device: {name: times[name] for name in runs})
    figures = benchmark.measure_loss("raven", 40, 7, "float32", "cpu")
    limit = 8.0 * 5 * 40 * 7 * 4 / (2 * 4 * 2**26)
    assert figures["limit, ms"] == pytest.approx(1000 * limit) and figures["ours, ms"] == 3000
    assert figures["published / compiled"] == 2 and figures["limit / compiled"] == pytest.approx(limit / 2)


def test_time_is_the_median_of_what_follows_the_warm_up(monkeypatch):
    ticks = iter([90.0, 90.0, 1.0, 5.0, 3.0])
    monkeypatch.setattr(benchmark, "seconds", lambda run, device: next(ticks))
    assert benchmark.medians({"one": None}, "cpu", repeats=3) == {"one": 3.0}


def test_both_loops_make_the_same_student(monkeypatch):
    monkeypatch.setattr(benchmark, "BATCH_SIZE", 300)  # one batch: its order does not matter
    x, weak_probs = torch.randn(300, 6), torch.randn(300, 4).softmax(-1)
    ours, loader = (benchmark.train(loop, x, weak_probs).weight for loop in ("ours", "DataLoader"))
    torch.testing.assert_close(ours, loader, rtol=1e-3, atol=1e-6)
    assert ours.abs().max() > 5e-3
    assert benchmark.train("matrix products", x, weak_probs).weight.abs().max() == 0


ROWS = [
    {"device": "cpu", "machine": "a box", "kind": "loss", "method": "naive", "n": 9, "ours, ms": 12.3456},
    {"device": "cpu", "machine": "a box", "kind": "loss", "method": "raven", "n": 9, "ours, ms": 0.5},
    {"device": "cpu", "machine": "a box", "kind": "import", "module": "torch", "s": 2.0},
]


def test_tables():
    assert benchmark.tables(ROWS) == """Loss path; a box:

| method | n | ours, ms |
| --- | --- | --- |
| naive | 9 | 12.3 |
| raven | 9 | 0.5 |

Start-up; a box:

| module | s |
| --- | --- |
| torch | 2 |"""


def test_publishing_keeps_the_other_device(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- benchmark -->\nold\n<!-- end of benchmark -->\nb\n")
    for device, machine in (("cpu", "a box"), ("cuda", "a GPU"), ("cpu", "another box")):
        benchmark.publish([row | {"device": device, "machine": machine} for row in ROWS])
    rows = [json.loads(line) for line in (tmp_path / "benchmark.jsonl").read_text().splitlines()]
    assert [row["machine"] for row in rows] == ["a GPU"] * 3 + ["another box"] * 3
    assert "Loss path; another box:" in readme.read_text() and "Start-up; a GPU:" in readme.read_text()
    assert "old" not in readme.read_text() and readme.read_text().endswith("-->\nb\n")
