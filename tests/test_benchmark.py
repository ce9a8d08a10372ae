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
    times = iter([4.0, 3.0, 2.0, 8.0])  # published, ours, compiled, and the copy
    monkeypatch.setattr(benchmark, "seconds", lambda run: next(times))
    figures = benchmark.measure_loss("raven", 40, 7, "float32", "cpu")
    limit = 8.0 * 5 * 40 * 7 * 4 / (2 * 4 * 2**26)
    assert figures["limit, ms"] == pytest.approx(1000 * limit) and figures["ours, ms"] == 3000
    assert figures["published / compiled"] == 2 and figures["limit / compiled"] == pytest.approx(limit / 2)


def test_publishing_keeps_the_other_device(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- benchmark -->\nold\n<!-- end of benchmark -->\nb\n")
    row = {"kind": "loss", "method": "naive", "n": 9, "ours, ms": 12.3456}
    for device, machine in (("cpu", "a box"), ("cuda", "a GPU"), ("cpu", "another box")):
        benchmark.publish([{"device": device, "machine": machine} | row])
    rows = [json.loads(line) for line in (tmp_path / "benchmark.jsonl").read_text().splitlines()]
    assert [row["machine"] for row in rows] == ["a GPU", "another box"]
    table = "| method | n | ours, ms |\n| --- | --- | --- |\n| naive | 9 | 12.3 |"
    tables = "\n\n".join(f"Loss path; {machine}:\n\n{table}" for machine in ("a GPU", "another box"))
    assert readme.read_text() == f"a\n<!-- benchmark -->\n{tables}\n<!-- end of benchmark -->\nb\n"
