"""The benchmark compares what computes the same, and its arithmetic and tables are right."""

import json

import pytest
import torch
from conftest import ROOT

import benchmark
import models

SMALL = {"n": 40, "m": 1, "c": 7, "dtype": "float32", "device": "cpu"}


@pytest.mark.parametrize("method", benchmark.LOSSES)
def test_published_formula_and_ours_have_the_same_gradients(method):
    inputs = benchmark.arguments({**SMALL, "method": method, "m": 3 if method == "raven" else 1})
    if method == "raven":
        inputs[2:] = torch.tensor([0.5, 0.3, 0.2]), torch.arange(40) % 3 > 0
    elif inputs[2:]:
        inputs[2].fill_(0.3)
    published, ours = benchmark.LOSSES[method]
    value, *gradients = benchmark.differentiate(published, *inputs)
    own_value, *own = ours(*inputs)
    if method != "adaptive_confidence":  # whose KL divergence differs by the entropy of q
        torch.testing.assert_close(own_value, value)
    for gradient, theirs in zip(own, gradients):
        torch.testing.assert_close(gradient, theirs, rtol=1e-5, atol=1e-6)
    assert len(gradients) == (2 if method == "raven" else 1)


def test_peak_memory_counts_all_that_is_held_at_a_time():
    def run():
        first = torch.ones(1000)
        second = first + 1  # the first is still there
        del first
        return second + 1  # never more than two at a time

    assert benchmark.peak_memory(run, "cpu") == pytest.approx(8000, abs=100)


def test_time_is_the_median(monkeypatch):
    ticks = iter([0, 1, 0, 5, 0, 3])
    monkeypatch.setattr(benchmark, "REPEATS", 3)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks))
    calls = []
    assert benchmark.time_of(lambda: calls.append(1), "cpu") == 3 and len(calls) == 6  # 3 to warm up


def test_limit_and_memory_of_a_loss(monkeypatch):
    """Logits and weak labels read once, the gradient written once; memory in gradients."""
    monkeypatch.setattr(benchmark, "bandwidth", lambda device: 1000.0)
    monkeypatch.setattr(benchmark, "time_of", lambda run, device: run() and 2.0)
    monkeypatch.setattr(benchmark, "peak_memory", lambda run, device: 5600)
    entry = {**SMALL, "method": "raven", "m": 3, "variants": ["published", "eager"]}
    figures = benchmark.measure_loss(entry)
    gradient = 40 * 7 * 4
    assert figures["limit"] == pytest.approx(1e3 * 5 * gradient / 1000)
    assert figures["published"] == figures["eager"] == 2000 and figures["eager_memory"] == 5600 / gradient


def test_both_loops_make_the_same_student(monkeypatch):
    monkeypatch.setattr(benchmark, "EPOCHS", 3)
    x, weak_probs = torch.randn(300, 6), torch.randn(300, 1, 4).softmax(-1)
    students = [models.LinearHeads(6, 4, 1, False) for _ in range(2)]
    benchmark.loader_loop(students[0], x, weak_probs)
    benchmark.our_loop(students[1], x, weak_probs, compiled=False)
    torch.testing.assert_close(students[0].linear.weight, students[1].linear.weight, rtol=1e-4, atol=1e-6)
    assert students[0].linear.weight.abs().max() > 1e-3


def test_entries_cover_the_methods_and_sizes():
    for device, probes in (("cuda", 1), ("cpu", 2)):
        entries = benchmark.entries(device)
        losses = [entry for entry in entries if entry["kind"] == "loss"]
        assert len(losses) == 4 * 2 * 2 and all(entry["device"] == device for entry in entries)
        assert {entry["m"] for entry in losses if entry["method"] == "raven"} == {3}
        loops = [entry for entry in entries if entry["kind"] == "loop"]
        assert len(loops) == 6 * probes and sum(entry["m"] == 3 for entry in loops) == 2 * probes


def rows():
    loss = {"kind": "loss", "device": "cpu", "machine": "a box", "method": "naive", "n": 16384, "c": 1000}
    loss |= {"dtype": "float32", "published": 90.0, "eager": 60.0, "compiled": 30.0, "limit": 6.0}
    loss |= {f"{name}_memory": 2.0 for name in ("published", "eager", "compiled")}
    loop = {"kind": "loop", "device": "cpu", "machine": "a box", "n": 9, "m": 1, "d": 2, "c": 3}
    return [
        loss,
        {**loss, "dtype": "bfloat16", "method": "raven"},
        {**loss, "kind": "unkept", "published": 990.0},
        {**loss, "kind": "scaling", "m": 3, "n": 8192, "c": 1000, "compiled": 65.536},
        {**loop, "variant": "products", "seconds": 4.0},
        {**loop, "variant": "eager", "seconds": 6.0, "accuracy": 0.75},
        {**loop, "kind": "import", "module": "naive", "seconds": 2.0, "heavy": []},
    ]


def test_tables():
    text = benchmark.report(rows())
    assert text.startswith("CUDA: not measured.\n\nCPU: a box.\n")
    assert "| (16384, 1000) float32 | naive | 90 | 60 | 30 | 6 | 3.0 | 20% | 2.0, 2.0, 2.0 |" in text
    assert text.index("not kept") < text.index("| naive | 990 | 60 | 30 | 6 | 33.0 |")
    assert "| 8192 | 3 | 1000 | 65.5 | 1.600 |" in text  # 65.536 ms for 8192 * 1000 * 5 numbers
    assert "| ours, eager | 6.00 | 1.5 | 1.0 | 0.7500 |" in text
    assert "| naive | 2.00 | none |" in text
    short = benchmark.report(rows(), short=True)
    assert "| naive | 90" in short and "1.5 | 1.0 | 0.75" in short
    assert "bfloat16" not in short and "1.600" not in short


def test_publishing_keeps_the_other_device(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text("a\n<!-- benchmark -->\nold\n<!-- end of benchmark -->\nb\n")
    benchmark.publish(rows())
    benchmark.publish([{**row, "device": "cuda", "machine": "a GPU"} for row in rows()])
    benchmark.publish([{**row, "machine": "another box"} for row in rows()])
    readme = (tmp_path / "README.md").read_text()
    assert "CUDA: a GPU." in readme and "CPU: another box." in readme and "old" not in readme
    assert len((tmp_path / "results" / "benchmark.jsonl").read_text().splitlines()) == 2 * len(rows())


def test_the_published_report_is_that_of_the_published_rows():
    lines = (ROOT / "results" / "benchmark.jsonl").read_text().splitlines()
    published = [json.loads(line) for line in lines]
    assert (ROOT / "results" / "benchmark.md").read_text() == benchmark.report(published)
    assert benchmark.report(published, short=True) in (ROOT / "README.md").read_text()
    for device in {row["device"] for row in published}:
        measured = [row for row in published if row["device"] == device]
        for row, entry in zip(measured, benchmark.entries(device), strict=True):
            assert entry.items() <= row.items()
        for sizes in benchmark.PROBES[device]:  # same start, same order of batches: the same student
            loops = [row for row in measured if row["kind"] == "loop" and row["m"] == 1 and "accuracy" in row]
            ends = [row["accuracy"] for row in loops if (row["n"], row["d"], row["c"]) == sizes]
            assert len(ends) == 3 and max(ends) - min(ends) < 0.001


def test_a_run_from_its_entries_to_its_report(monkeypatch, capsys):
    entry = {"device": "cpu", "kind": "loop", "n": 300, "m": 1, "d": 4, "c": 3, "variant": "products"}
    monkeypatch.setattr(benchmark, "entries", lambda device: [entry, {**entry, "variant": "eager"}])
    monkeypatch.setattr(benchmark.os, "environ", dict(benchmark.os.environ))
    benchmark.main(["--device", "cpu"])
    text = capsys.readouterr().out
    assert "CUDA: not measured." in text and "| 300 x 4, 3 | 1 | ours, eager |" in text
    assert "torch " + torch.__version__ in text


def test_a_method_imports_nothing_heavy():
    assert benchmark.measure_import({"module": "raven"})["heavy"] == []
