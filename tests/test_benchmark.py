"""The benchmark compares what computes the same; tables and publishing."""

import json

import pytest
import torch
from conftest import write_lines

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


def test_what_is_published_of_a_device_beside_the_other(tmp_path, monkeypatch):
    """The limit of RAVEN: logits and three weak labels read, a gradient written: 5 of (40, 7), of a copy's
    bytes."""
    times = iter([4.0, 3.0, 2.0, 8.0, 0.5, 1.0, 12.3456])  # published, ours, compiled, copy; the loops
    monkeypatch.setattr(benchmark, "seconds", lambda run, *given: [next(times), run(*given)][0])
    monkeypatch.setattr(benchmark.evaluate, "compiled", lambda loss, argnums=(0,): loss)
    monkeypatch.setattr(benchmark, "SHAPES", [(40, 7, "float32")])
    monkeypatch.setattr(benchmark, "PUBLISHED", {"raven": benchmark.published_raven})
    monkeypatch.setattr(benchmark, "PROBES", {"cpu": [(9, 2, 3)]})
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    readme, kept = tmp_path / "README.md", {"machine": "a GPU", "kind": "loss", "method": "naive", "n": 9}
    readme.write_text("a\n<!-- benchmark -->\nold\n<!-- end of benchmark -->\nb\n")
    write_lines(tmp_path / "benchmark.jsonl", [{"device": "cuda"} | kept, {"device": "cpu"}])
    benchmark.main(["--publish", "--device", "cpu"])
    other, loss, loop = map(json.loads, (tmp_path / "benchmark.jsonl").read_text().splitlines())
    assert other == {"device": "cuda"} | kept and loop["ours, compiled, s"] == 12.3456
    assert loss["ours, ms"] == 3000 and loss["published / compiled"] == 2
    limit = 8.0 * 5 * 40 * 7 * 4 / (2 * 4 * 2**26)
    assert [loss["limit, ms"], loss["limit / compiled"]] == pytest.approx([1000 * limit, limit / 2])
    first = "Loss path; a GPU:\n\n| method | n |\n| --- | --- |\n| naive | 9 |"
    assert readme.read_text().startswith(f"a\n<!-- benchmark -->\n{first}\n\n")
    assert readme.read_text().endswith("\n| 9 | 2 | 3 | 0.5 | 1 | 12.3 |\n<!-- end of benchmark -->\nb\n")
