import json

import pytest
from conftest import ROOT

import data
import store
import summarize_settings
from summarize import read


def make_row(method, task, seed, student, beta=None, **more):
    flags = {"temperature": 0.5, "beta_ramp": 0.25} | ({"beta": beta} if beta else {})
    history = {"agreement_history": [0.5, 0.6 + seed / 10], "disagreement_beta_history": [0.1, None]}
    return {
        "method": method,
        "task": task,
        "seed": seed,
        "supervision": "each",
        "torch": "0",
        "device": "cpu",
        "code": store.code_hash(ROOT / "methods" / f"{method}.py"),
        "flags": flags,
        "kind": "image",
        "student_kind": "from scratch",
        "weak": [0.7],
        "student": student,
        "ceiling": 0.9,
    } | (history if beta else {}) | more


def three(task, **more):
    """KD .80 .82, AugConf .80 .80, AdaptConf .81 .84, select .79 .83."""
    rows = []
    for seed, values in enumerate(((0.80, 0.80, 0.81, 0.79), (0.82, 0.80, 0.84, 0.83))):
        kd, augconf, adaptconf, select = values
        rows += [
            make_row("naive", task, seed, kd, **more),
            make_row("confidence", task, seed, augconf, **more),
            make_row("adaptive_confidence", task, seed, adaptconf, "adaptive", **more),
            make_row("adaptive_confidence", task, seed, select, "select", **more),
        ]
    return rows


def table(rows):
    data.Path("runs").mkdir(exist_ok=True)
    for row in rows:
        with open(f"runs/{row['method']}.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
    found = read(data.Path("runs"), summarize_settings.belongs_here, summarize_settings.column)
    return summarize_settings.at_common_seeds(found)


def line(text, start):
    [found] = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_tables_by_hand():
    """Means of two seeds ± 12.706 * s / sqrt(2); differences seed by seed."""
    text = summarize_settings.tables(table(three("glyphs-distill")))
    settings, ablation = text.split("What b does")
    cells = line(settings, "glyphs-distill")
    assert cells[0] == "glyphs-distill (n = 2; distillation, T 0.5, ramp 0.25)"
    assert cells[1:3] == ["70.0 ±0.0", "90.0 ±0.0"]
    assert cells[3:6] == ["81.0 ±12.7", "80.0 ±0.0", "82.5 ±19.1"]
    # seed by seed: .00 -.02, .01 .02, .01 .04
    assert cells[6:9] == [f"{gain}, not shown" for gain in ("−1.0 ±12.7", "+1.5 ±6.4", "+2.5 ±19.1")]
    assert cells[9].endswith("73.81 / 73.86 / 74.17")
    cells = line(ablation, "glyphs-distill")
    assert cells == ["glyphs-distill (n = 2)", "81.0 ±12.7", "+1.5 ±6.4", "–", "–", "–", "+0.0 ±12.7"]


def test_noisy_labels_show_both_students_without_a_teacher_and_any_rate():
    rows = three("glyphs-noisy-symmetric-0.35", labels_alone=0.75) + three("glyphs-noisy-asymmetric-0.4")
    text = summarize_settings.tables(table(rows)).split("What b does")[0]
    assert line(text, "glyphs-noisy-symmetric-0.35")[2] == "75.0 ±0.0 / 90.0 ±0.0"
    assert line(text, "glyphs-noisy-symmetric-0.35")[9].endswith("91.20 / 91.04 / 91.45")
    assert line(text, "glyphs-noisy-asymmetric-0.4")[2] == "90.0 ±0.0"
    assert text.index("| glyphs-noisy-symmetric") < text.index("| glyphs-noisy-asymmetric")


def test_few_shot_stands_by_shots():
    def entry(one, five):
        own = {"1-shot": {"student": [one, 0.01]}, "5-shot": {"student": [five, 0.005]}}
        for shots in own.values():
            shots |= {"weak": [0.3, 0.01], "ceiling": [0.7, 0.01]}
        return {"test": own, "val": own}

    text = summarize_settings.tables(table(three("glyphs-fewshot", few_shot=entry(0.5, 0.6))))
    for start, score in (("glyphs-fewshot 1-shot", "50.0 ±0.0"), ("glyphs-fewshot 5-shot", "60.0 ±0.0")):
        cells = line(text.split("What b does")[0], start)
        assert cells[1:4] == ["30.0 ±0.0", "70.0 ±0.0", score]
    assert "±1.0 over the 600 episodes" in text and "| glyphs-fewshot (" not in text


def test_label_free_tasks_are_in_the_ablation_only():
    rows = three("glyphs-distill") + three("reviews-shift", student_kind="head", kind="text", weak=[0.6, 0.7])
    settings, ablation = summarize_settings.tables(table(rows)).split("What b does")
    assert "reviews-shift" not in settings and line(ablation, "reviews-shift")[1] == "81.0 ±12.7"
    assert ablation.index("glyphs-distill") < ablation.index("reviews-shift")


def test_only_common_seeds_count_and_other_rows_stay_out():
    rows = three("glyphs-distill")
    rows += [make_row("naive", "glyphs-distill", 2, 0.1), make_row("naive", "glyphs-distill", 3, 0.1)]
    rows += [row | {"supervision": "mean", "student": 0.1} for row in rows[:2]]
    rows += [make_row("naive", "glyphs", seed, 0.1, student_kind="head") for seed in (0, 1)]
    rows += [make_row("naive", "glyphs-distill", 1, 0.1, code="000000000000")]
    found = table(rows)
    assert list(found) == ["glyphs-distill"] and list(found["glyphs-distill"]["KD"]) == [0, 1]
    assert line(summarize_settings.tables(found), "glyphs-distill (n = 2; d")[3] == "81.0 ±12.7"


def test_no_common_seed_is_one_clear_line():
    rows = [make_row("naive", "glyphs-distill", 0, 0.1), make_row("confidence", "glyphs-distill", 1, 0.1)]
    with pytest.raises(data.InputError, match="glyphs-distill: no seed that"):
        table(rows)


def test_a_method_that_has_not_been_run_is_a_dash():
    rows = [row for row in three("glyphs-transfer") if row["method"] != "confidence"]
    cells = line(summarize_settings.tables(table(rows)).split("What b does")[0], "glyphs-transfer")
    assert cells[4] == cells[6] == cells[8] == "–" and cells[5] == "82.5 ±19.1"


def test_what_is_shown_is_not_marked():
    rows = three("glyphs-transfer")
    for row in rows:
        if row["flags"].get("beta") == "adaptive":
            row["student"] = 0.9 + row["seed"] / 50  # .10 and .10 above KD
    cells = line(summarize_settings.tables(table(rows)).split("What b does")[0], "glyphs-transfer")
    assert cells[7] == "+10.0 ±0.0" and cells[6].endswith("not shown")


def test_publishing(monkeypatch, capsys):
    rows = three("glyphs-distill") + three("glyphs-noisy-asymmetric-0.4")
    table(rows)
    data.Path("README.md").write_text("before\n<!-- settings -->\nold\n<!-- end of settings -->\nafter\n")
    data.Path("results").mkdir()
    monkeypatch.setattr(summarize_settings, "HERE", data.Path.cwd())
    summarize_settings.main(["--publish"])
    text = data.Path("results/settings.md").read_text()
    assert text in capsys.readouterr().out
    assert data.Path("README.md").read_text() == (
        f"before\n<!-- settings -->\n{text}<!-- end of settings -->\nafter\n"
    )
    for folder in ("results", "runs"):
        assert data.Path(folder, "settings.png").read_bytes()[:4] == b"\x89PNG"
    assert len(store.read_rows(data.Path("results/settings.jsonl"))) == 16


def test_nothing_to_summarize_is_one_clear_line():
    with pytest.raises(data.InputError, match="no row"):
        summarize_settings.main(["runs"])
