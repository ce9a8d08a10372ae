"""report.py: numbers by hand, which rows count, what is published and what is refused."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest

import data
import report
import store

MARKS = "scores differences settings ablation alignment".split()


def make_row(method, seed, student, task="glyphs", flags=None, **more):
    row = {"method": method, "task": task, "data": None, "seed": seed, "flags": flags or {}}
    row |= {"version": store.VERSION, "torch": "0", "device": "cpu", "commit": "c", "setting": None}
    row |= {"kind": "image"}
    row |= {"encoder": "e", "weak_models": ["a", "b", "c"], "weak": [0.5, 0.6, 0.7], "ceiling": 0.9}
    row |= {"weak_confidence": [0.5] * 3, "student": student, "pgr": (student - 0.6) / 0.3}
    if method == "raven":
        row |= {"weights": [0.1, 0.2, 0.7], "weight_history": [[1 / 3] * 3, [0.1, 0.2, 0.7]]}
    if method == "adaptive_confidence":
        row |= {"agreement_history": [0.5, 0.6 + seed / 10], "disagreement_beta_history": [0.1, None]}
    return row | more


def main_rows(**more):
    """naive .70 .72 .74, ensemble .75 .75 .75, RAVEN .80 .78 .85, with the wrong largest weight at seed 1."""
    naive = [make_row("naive", seed, value, **more) for seed, value in enumerate((0.70, 0.72, 0.74))]
    mean = [make_row("naive", seed, 0.75, flags={"supervision": "mean"}, **more) for seed in range(3)]
    raven = [make_row("raven", seed, value, **more) for seed, value in enumerate((0.80, 0.78, 0.85))]
    raven[1]["weights"] = [0.1, 0.8, 0.1]
    return naive + mean + raven


def settings_rows(task, setting, **more):
    """KD .80 .82, AugConf .80 .80, AdaptConf .81 .84, select .79 .83, with the setting's flags."""
    known = report.settings_columns({"setting": setting, "task": "reviews-shift"})
    flags = known["AdaptConf"][1]
    columns = [("naive", {}, (0.80, 0.82)), ("confidence", {}, (0.80, 0.80))]
    columns += [("adaptive_confidence", flags, (0.81, 0.84))]
    columns += [("adaptive_confidence", flags | {"beta": "select"}, (0.79, 0.83))]
    own = {"setting": setting, "weak": [0.7], **more}
    return [make_row(method, seed, value, task, flags, **own) for method, flags, values in columns
            for seed, value in enumerate(values)]  # fmt: skip


def policy_rows(**wins):
    """Win rates by supervision; by default ensemble .60 .62 .64, DPO-R .65 .65 .65, ceiling .80 .80 .80."""
    wins = wins or {"mean": (0.60, 0.62, 0.64), "raven": (0.65, 0.65, 0.65), "gold": (0.80, 0.80, 0.80)}
    rows = []
    for name, rates in wins.items():
        for seed, win in enumerate(rates):
            flags = {} if name == "raven" else {"supervision": name}
            row = make_row("raven_dpo", seed, win, "reviews-dpo", flags, kind="policy")
            row |= {"reward_models": ["u", "v"], "reward_accuracy": [0.5, 0.6], "easy_fraction": 0.4}
            row |= {"win_rate": win, "win_interval": 0.04, "win_rate_before": 0.512, "weights": [0.2, 0.8]}
            row |= {"gold_reward": win - 0.5, "gold_reward_before": -0.1, "kl": 0.1, "length": 20.0}
            row |= {"length_before": 19.0, "well_formed": 0.5, "well_formed_before": 0.4}
            rows.append(row | {"history": [{"step": step, "weights": [0.5, 0.5]} for step in (0, 10)]})
    return rows


def main_table(rows):
    return report.tabulate(rows, lambda row: {} if row["setting"] else report.COLUMNS)


def settings_text(rows):
    return report.settings_tables(report.tabulate(rows, report.settings_columns))


def alignment_text(rows):
    return report.alignment_tables(report.tabulate(rows, lambda _: report.POLICIES))


def line(text, start):
    [found] = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_interval_by_hand():
    center, half = report.interval([0.70, 0.72, 0.74])
    assert center == pytest.approx(0.72) and half == pytest.approx(4.303 * 0.02 / math.sqrt(3))
    assert math.isnan(report.interval([0.5])[1]) and report.interval([0.5, 0.5])[1] == 0
    assert report.interval([0.0, 1.0] * 20)[1] == pytest.approx(2.228 * math.sqrt(10 / 39) / math.sqrt(40))


def test_scores_and_differences_by_hand():
    texts = report.main_tables(main_table(main_rows()))
    # naive 72 ± 4.303 * 2 / sqrt(3); PGR (72 - 60) / 30 = 40 ± 16.6
    weak, some = "a 50.0 ±0.0, b 60.0 ±0.0, c 70.0 ±0.0", ["glyphs (n = 3)"]
    scores = ["e", weak, "72.0 ±5.0 / 40 ±17", "75.0 ±0.0 / 50 ±0", *["– / –"] * 4, "81.0 ±9.0 / 70 ±30"]
    assert line(texts["scores"], "glyphs") == [*some, *scores, "90.0 ±0.0"]
    # RAVEN - naive seed by seed .10 .06 .11: 9.0 ± 4.303 * 2.6458 / sqrt(3)
    gains = ["+3.0 ±5.0", *"––––", "+9.0 ±6.6", "2 of 3"]
    assert line(texts["differences"], "glyphs") == [*some, *gains]
    rows = main_rows()
    rows[0]["pgr"] = None
    assert "| 72.0 ±5.0 / – |" in report.main_tables(main_table(rows))["scores"]


def test_a_line_has_the_seeds_that_all_its_columns_share():
    rows = main_rows()
    del rows[1]  # naive's second seed
    texts = report.main_tables(main_table(rows))
    assert line(texts["scores"], "glyphs")[0] == "glyphs (n = 2)"
    assert line(texts["differences"], "glyphs")[6] == "+10.5 ±6.4"  # .10 and .11
    assert not main_table(rows[:1] + rows[-1:])


def test_rows_with_other_flags_or_seeds_change_nothing():
    rows = main_rows() + settings_rows("glyphs-distill", "distillation") + policy_rows()
    others = [row | {"seed": 5} for row in rows] + [row | {"flags": row["flags"] | {"lr": 1}} for row in rows]
    others += [make_row("naive", 0, 0.1, flags={"supervision": "mean", "compile": "on"})]
    others += [make_row("confidence", 0, 0.1, flags={"alpha_ramp": 0.5}), make_row("new", 0, 0.1)]
    flags = {"beta_ramp": 0.0}  # not those of the setting's authors
    others += [make_row("adaptive_confidence", 0, 0.1, "glyphs-distill", flags, setting="distillation")]
    for columns in (lambda _: report.COLUMNS, report.settings_columns, lambda _: report.POLICIES):
        assert report.tabulate(others + rows + others, columns) == report.tabulate(rows, columns)


def test_the_last_row_counts_and_files_and_text_encoders_are_told_apart():
    old, new = make_row("naive", 0, 0.1, torch="old"), make_row("naive", 0, 0.2, torch="new")
    assert main_table([old, new])["glyphs"]["naive"] == {0: new}
    rows = main_rows() + main_rows(task="my.npz", data="abcdef0123")
    rows += [row | {"flags": row["flags"] | {"text_encoder": "gpt"}} for row in main_rows(task="reviews")]
    rows += main_rows(task="glyphs-shift") + main_rows(task="glyphs-shift-0.2")  # in the order of severity
    tasks = ["glyphs", "glyphs-shift-0.2", "glyphs-shift", "reviews gpt", "my.npz"]
    assert list(main_table(rows)) == tasks


def test_the_first_table_by_hand():
    rows = main_rows(task="glyphs-shift") + main_rows()
    rows += [row | {"flags": row["flags"] | {"text_encoder": "gpt"}} for row in rows[:9]]
    text = report.main_tables(main_table(rows))["table"]
    cells = ["glyphs-shift (n = 3)", "60.0 ±0.0", "72.0 ±5.0", "75.0 ±0.0", "–", "81.0 ±9.0", "90.0 ±0.0"]
    assert line(text, "glyphs-shift") == cells and len(text.splitlines()) == 3
    assert not report.main_tables(main_table(main_rows()))["table"]


def test_settings_by_hand():
    """Means of two seeds ± 12.706 * s / sqrt(2); seed by seed .00 -.02, .01 .02, .01 .04."""
    rows = settings_rows("glyphs-distill", "distillation")
    texts = settings_text([*rows, make_row("naive", 2, 0.1, "glyphs-distill", setting="distillation")])
    cells = line(texts["settings"], "glyphs-distill")
    assert cells[:4] == ["glyphs-distill (n = 2)", "0.5, 0", "70.0 ±0.0", "90.0 ±0.0"]
    assert cells[4:7] == ["81.0 ±12.7", "80.0 ±0.0", "82.5 ±19.1"]
    assert cells[7:10] == [f"{gain}, not shown" for gain in ("−1.0 ±12.7", "+1.5 ±6.4", "+2.5 ±19.1")]
    assert cells[10].endswith("73.81 / 73.86 / 74.17")
    cells = line(texts["ablation"], "glyphs-distill")
    assert cells == ["glyphs-distill (n = 2)", "81.0 ±12.7", "+1.5 ±6.4", "–", "–", "–", "+0.0 ±12.7"]


def test_marks_noisy_labels_and_novel_classes():
    """.10 and .10 above KD is shown; two students without a teacher; shots apart."""
    rows = settings_rows("glyphs-noisy-symmetric-0.35", "noisy labels", labels_alone=0.75)
    rows = [row | {"student": 0.9 + row["seed"] / 50} if "beta_ramp" in row["flags"] else row for row in rows]
    cells = line(settings_text(rows)["settings"], "glyphs-noisy")
    assert cells[3] == "75.0 ±0.0 / 90.0 ±0.0" and cells[8] == "+10.0 ±0.0"
    shots = {name: {"student": [value, 0.01], "weak": [0.3, 0], "ceiling": [0.7, 0]} for name, value in
             (("1-shot", 0.5), ("5-shot", 0.6))}  # fmt: skip
    rows = settings_rows("glyphs-fewshot", "few-shot", few_shot={"test": shots})
    for start, score in (("1-shot", "50.0 ±0.0"), ("5-shot", "60.0 ±0.0")):
        cells = line(settings_text(rows)["settings"], f"glyphs-fewshot {start} (")
        assert cells[1:5] == ["8, 0.25", "30.0 ±0.0", "70.0 ±0.0", score]


def test_alignment_by_hand():
    text = alignment_text(policy_rows())["alignment"]
    # .62 ± 4.303 * .02 / sqrt(3); recovered (.10, .12, .14) / .30; DPO-R - ensemble .05 .03 .01
    mean = ["62.0 ±5.0", "40 ±17", "+0.0 ±0.0", "0.12 ±0.05", "0.100 ±0.000", "20.0 ±0.0", "0.50 ±0.00"]
    assert line(text, "ensemble")[1:] == mean
    assert line(text, "DPO-R |")[1:4] == ["65.0 ±0.0", "50 ±0", "+3.0 ±5.0"]
    assert line(text, "ceiling")[1:4] == ["80.0 ±0.0", "100 ±0", "+18.0 ±5.0"]
    before = ["51.2 ±0.0", "4 ±0", "−10.8 ±5.0", "−0.10 ±0.00", "0.000 ±0.000", "19.0 ±0.0", "0.40 ±0.00"]
    assert line(text, "before")[1:] == before
    assert line(text, "v") == ["v", "60.0 ±0.0", "0.80 ±0.00", "–"]
    assert "reviews-dpo (n = 3)" in text and "all agree on 40.0 ±0.0 % of the pairs" in text


def test_a_ceiling_within_noise_recovers_nothing():
    for ceiling, share in ((0.53, "–"), (0.6, "20")):
        texts = alignment_text(policy_rows(mean=[0.52], gold=[ceiling]))
        assert line(texts["alignment"], "ensemble")[2] == share


@pytest.fixture
def house(monkeypatch):
    """A clean git repository with both pages, and rows in runs/: all but of the settings."""
    Path("results").mkdir()
    pages = {name: f"<!-- {name} -->\nold\n<!-- end of {name} -->\n" for name in ("table", *MARKS)}
    Path("README.md").write_text(f"before\n{pages.pop('table')}after\n")
    Path("results/README.md").write_text("".join(pages.values()))
    subprocess.run(["git", "init", "-q"], check=True)
    monkeypatch.setattr(report, "HERE", Path.cwd())
    rows = main_rows() + main_rows(task="glyphs-shift", ceiling=8 / 9) + policy_rows()
    write(rows)
    return rows


def write(rows):
    shutil.rmtree("runs", ignore_errors=True)
    Path("runs").mkdir()
    Path("runs/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_publishing(house, capsys):
    report.main(["--publish"])
    printed, page = capsys.readouterr().out, Path("results/README.md").read_text()
    first = Path("README.md").read_text()
    assert first.startswith("before\n<!-- table -->\n| accuracy") and "old" not in first
    assert first.endswith("|\n<!-- end of table -->\nafter\n")
    parts = {name: page.split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name}")[0] for name in MARKS}
    assert [name for name in MARKS if parts[name] == "old\n"] == ["settings", "ablation"]  # without rows
    assert all(parts[name] in printed for name in MARKS if parts[name] != "old\n")
    for name in ("accuracy", "weights", "severity", "alignment"):
        figure = Path(f"results/{name}.png").read_bytes()
        assert figure[:4] == b"\x89PNG" and figure == Path(f"runs/{name}.png").read_bytes()
    published = store.read_rows(Path("results/rows.jsonl"))
    assert len(published) == 18 and published[-1]["ceiling"] == 0.888889  # six decimals
    assert not Path("results/settings.jsonl").exists()


def test_without_publishing_all_stays_in_the_folder_of_the_rows(house, capsys):
    """And settings, tasks without labels and trials of b on others each have their place."""
    rows = settings_rows("glyphs-distill", "distillation") + settings_rows("reviews-shift", None)
    write(rows + settings_rows("mnist-usps", None))
    report.main([])
    assert Path("runs/settings.png").read_bytes()[:4] == b"\x89PNG"
    assert "old" in Path("README.md").read_text() and not Path("results/settings.png").exists()
    printed = capsys.readouterr().out
    assert "glyphs-distill" not in printed.split("settings:")[0] and "[('0', 'cpu', True)]" in printed
    assert "reviews-shift" in printed.split("ablation:")[1] and "mnist" not in printed.split("settings:")[1]


OTHERS = [{"torch": "1"}, {"device": "cuda"}, {"commit": "1-dirty"}, {"commit": None}]


@pytest.mark.parametrize("other", OTHERS)
def test_rows_of_several_kinds_or_of_uncommitted_code_are_not_published(house, other):
    write([house[0] | other, *house[1:]])
    with pytest.raises(data.InputError, match="not published: rows of"):
        report.main(["--publish"])


def test_rows_of_another_version_or_of_none_do_not_count(house):
    write([row | {"version": store.VERSION + 1} for row in house[1:]] + [house[0] | {"version": None}])
    with pytest.raises(data.InputError, match="no row of any table"):
        report.main([])


def test_a_tree_with_uncommitted_code_is_not_published(house):
    Path("new.py").write_text("")
    with pytest.raises(data.InputError, match="(?s)not published: code is not committed.*new.py"):
        report.main(["--publish"])


def test_a_page_without_marks_and_a_folder_without_rows_are_one_clear_line():
    Path("page.md").write_text("<!-- x -->\n")
    with pytest.raises(data.InputError, match="page.md lacks the marks of x"):
        report.insert(Path("page.md"), "x", "text")
    with pytest.raises(data.InputError, match="no row of any table"):
        report.main(["runs"])
