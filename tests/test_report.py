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

MARKS = "scores differences settings ablation alignment samples".split()


def make_row(method, seed, student, task="glyphs", flags=None, **more):
    row = {"method": method, "task": task, "data": None, "seed": seed, "flags": flags or {}}
    row |= {"version": store.VERSION, "torch": "0", "device": "cpu", "kind": "image", "setting": None}
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
    flags = report.PUBLISHED[setting]
    columns = {
        "naive": ({}, (0.80, 0.82)),
        "confidence": ({}, (0.80, 0.80)),
        "adaptive_confidence": (flags, (0.81, 0.84)),
        "select": (flags | {"beta": "select"}, (0.79, 0.83)),
    }
    rows = []
    for method, (own, values) in columns.items():
        method = "adaptive_confidence" if method == "select" else method
        own = {"flags": own, "setting": setting, "weak": [0.7], **more}
        rows += [make_row(method, seed, value, task, **own) for seed, value in enumerate(values)]
    return rows


def policy_rows(**wins):
    """Win rates by supervision; by default ensemble .60 .62 .64, DPO-R .65 .65 .65, ceiling .80 .80 .80."""
    wins = wins or {"mean": (0.60, 0.62, 0.64), "raven": (0.65, 0.65, 0.65), "gold": (0.80, 0.80, 0.80)}
    rows = []
    for name, rates in wins.items():
        for seed, win in enumerate(rates):
            sample = {"prompt": "p", "before": "b", "after": f"{name} {seed}"}
            flags = {} if name == "raven" else {"supervision": name}
            row = make_row("raven_dpo", seed, win, "reviews-dpo", flags, kind="policy")
            row |= {"reward_models": ["u", "v"], "reward_accuracy": [0.5, 0.6], "easy_fraction": 0.4}
            row |= {"win_rate": win, "win_interval": 0.04, "win_rate_before": 0.512, "weights": [0.2, 0.8]}
            row |= {"gold_reward": win - 0.5, "gold_reward_before": -0.1, "kl": 0.1, "length": 20.0}
            row |= {"length_before": 19.0, "well_formed": 0.5, "well_formed_before": 0.4}
            row |= {"history": [{"step": step, "weights": [0.5, 0.5]} for step in (0, 10)]}
            rows.append(row | {"samples": [sample | {"gold_before": 0, "gold_after": win}]})
    return rows


def main_table(rows):
    return report.tabulate(rows, lambda _: report.COLUMNS)


def settings_text(rows):
    return report.settings_tables(report.compared(report.tabulate(rows, report.settings_columns)))


def alignment_text(rows):
    return report.alignment_tables(report.tabulate(rows, lambda _: report.POLICIES))


def line(text, start):
    [found] = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_interval_by_hand():
    center, half = report.interval([0.70, 0.72, 0.74])
    assert center == pytest.approx(0.72) and half == pytest.approx(4.303 * 0.02 / math.sqrt(3))
    assert math.isnan(report.interval([0.5])[1]) and report.interval([0.5, 0.5])[1] == 0
    assert report.interval([0.0, 1.0] * 20)[1] == pytest.approx(2.086 * math.sqrt(10 / 39) / math.sqrt(40))


def test_t_quantiles_against_the_density():
    """Between -t and t Student's density integrates to .95, by the trapezoid rule."""
    for degrees, t in enumerate(report.T975, start=1):
        scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
        scale = math.exp(scale) / math.sqrt(degrees * math.pi)
        step = t / 5000
        density = [scale * (1 + (i * step) ** 2 / degrees) ** (-(degrees + 1) / 2) for i in range(5001)]
        assert 2 * step * (sum(density) - (density[0] + density[-1]) / 2) == pytest.approx(0.95, abs=1e-4)


def test_scores_and_differences_by_hand():
    texts = report.main_tables(main_table(main_rows()))
    # naive 72 ± 4.303 * 2 / sqrt(3); PGR (72 - 60) / 30 = 40 ± 16.6
    weak = "a 50.0 ±0.0, b 60.0 ±0.0, c 70.0 ±0.0"
    scores = ["glyphs (n = 3)", "e", weak, "72.0 ±5.0 / 40 ±17", "75.0 ±0.0 / 50 ±0", "81.0 ±9.0 / 70 ±30"]
    assert line(texts["scores"], "glyphs") == [*scores, "90.0 ±0.0"]
    # RAVEN - naive seed by seed .10 .06 .11: 9.0 ± 4.303 * 2.6458 / sqrt(3); the best other is the ensemble
    gains = ["+3.0 ±5.0 / +10 ±17", "+9.0 ±6.6 / +30 ±22", "+6.0 ±9.0 / +20 ±30 (ensemble)", "2 of 3"]
    assert line(texts["differences"], "glyphs") == ["glyphs (n = 3)", *gains]


def test_partial_seeds_show_their_own_n_and_are_paired():
    rows = main_rows()
    del rows[1]  # naive's second seed
    texts = report.main_tables(main_table(rows))
    assert line(texts["scores"], "glyphs")[3] == "72.0 ±25.4 / 40 ±85 (n = 2)"
    assert line(texts["differences"], "glyphs")[2] == "+10.5 ±6.4 / +35 ±21 (n = 2)"  # .10 and .11


def test_rows_with_other_flags_or_seeds_change_nothing():
    rows = main_rows() + settings_rows("glyphs-distill", "distillation") + policy_rows()
    others = [row | {"seed": 5} for row in rows] + [row | {"flags": row["flags"] | {"lr": 1}} for row in rows]
    others += [make_row("naive", 0, 0.1, flags={"supervision": "mean", "compile": "on"})]
    others += [make_row("confidence", 0, 0.1, flags={"alpha_ramp": 0.5}), make_row("new", 0, 0.1)]
    flags = {"beta_ramp": 0.0}  # not those of the setting's authors
    others += [make_row("adaptive_confidence", 0, 0.1, "glyphs-distill", flags, setting="distillation")]
    for columns in (lambda _: report.COLUMNS, report.settings_columns, lambda _: report.POLICIES):
        assert report.tabulate(others + rows + others, columns) == report.tabulate(rows, columns)


def test_the_last_row_of_a_place_counts():
    old, new = make_row("naive", 0, 0.1, torch="old"), make_row("naive", 0, 0.2, torch="new")
    assert report.rows_of(main_table([old, new])) == [new]


def test_a_null_pgr_is_shown_as_such():
    rows = main_rows()
    rows[0]["pgr"] = None
    texts = report.main_tables(main_table(rows))
    assert "| 72.0 ±5.0 / – |" in texts["scores"] and "| +9.0 ±6.6 / – |" in texts["differences"]


def test_lines_are_told_apart_by_data_and_text_encoder():
    rows = main_rows() + main_rows(data="abcdef0123")
    rows += [row | {"flags": row["flags"] | {"text_encoder": "gpt"}} for row in main_rows(task="reviews")]
    assert list(main_table(rows)) == ["glyphs", "glyphs abcdef", "reviews gpt"]
    assert list(main_table(main_rows(data="abcdef0123"))) == ["glyphs"]


def test_known_tasks_come_first_and_in_their_order():
    names = ["zoo", "ape.npz", "hh-helpful-harmless", "reviews", "glyphs-shift", "glyphs-shift-0.2", "glyphs"]
    table = main_table([row for name in names for row in main_rows(task=name)])
    assert list(table) == [*names[:1:-1], "ape.npz", "zoo"]


def test_the_first_table_by_hand():
    rows = main_rows(task="glyphs-shift") + main_rows()
    rows += [row | {"flags": row["flags"] | {"text_encoder": "gpt"}} for row in rows[:9]]
    text = report.main_tables(main_table(rows))["table"]
    cells = ["glyphs-shift (n = 3)", "60.0 ±0.0", "72.0 ±5.0", "75.0 ±0.0", "–", "81.0 ±9.0", "90.0 ±0.0"]
    assert line(text, "glyphs-shift") == cells and len(text.splitlines()) == 3
    assert not report.main_tables(main_table(main_rows()))["table"]


def test_settings_by_hand():
    """Means of two seeds ± 12.706 * s / sqrt(2); seed by seed .00 -.02, .01 .02, .01 .04."""
    texts = settings_text(settings_rows("glyphs-distill", "distillation"))
    cells = line(texts["settings"], "glyphs-distill")
    assert cells[:3] == ["glyphs-distill (n = 2; distillation, T 0.5, ramp 0)", "70.0 ±0.0", "90.0 ±0.0"]
    assert cells[3:6] == ["81.0 ±12.7", "80.0 ±0.0", "82.5 ±19.1"]
    assert cells[6:9] == [f"{gain}, not shown" for gain in ("−1.0 ±12.7", "+1.5 ±6.4", "+2.5 ±19.1")]
    assert cells[9].endswith("73.81 / 73.86 / 74.17")
    cells = line(texts["ablation"], "glyphs-distill")
    assert cells == ["glyphs-distill (n = 2)", "81.0 ±12.7", "+1.5 ±6.4", "–", "–", "–", "+0.0 ±12.7"]


def test_what_is_shown_is_not_marked():
    rows = settings_rows("glyphs-transfer", "transfer")
    for row in rows:
        if row["flags"] == report.PUBLISHED["transfer"]:
            row["student"] = 0.9 + row["seed"] / 50  # .10 and .10 above KD
    assert line(settings_text(rows)["settings"], "glyphs-transfer")[7] == "+10.0 ±0.0"


def test_noisy_labels_show_both_students_without_a_teacher():
    text = settings_text(settings_rows("glyphs-noisy-symmetric-0.35", "noisy labels", labels_alone=0.75))
    assert line(text["settings"], "glyphs-noisy")[2] == "75.0 ±0.0 / 90.0 ±0.0"


def test_few_shot_stands_by_shots():
    entry = {name: {"student": [v, 0.01], "weak": [0.3, 0], "ceiling": [0.7, 0]} for name, v in
             (("1-shot", 0.5), ("5-shot", 0.6))}  # fmt: skip
    texts = settings_text(settings_rows("glyphs-fewshot", "few-shot", few_shot={"test": entry}))
    for start, score in (("glyphs-fewshot 1-shot", "50.0 ±0.0"), ("glyphs-fewshot 5-shot", "60.0 ±0.0")):
        assert line(texts["settings"], start)[1:4] == ["30.0 ±0.0", "70.0 ±0.0", score]
    assert "glyphs-fewshot (" not in texts["settings"] + texts["ablation"]


def test_tasks_without_labels_are_in_the_ablation_if_b_was_varied():
    rows = settings_rows("reviews-shift", None) + settings_rows("zoo", "distillation")
    texts = settings_text(rows + [row | {"task": "glyphs-shift"} for row in rows[:6]])
    assert [row[:8] for row in texts["ablation"].splitlines()[2:]] == ["| zoo (n", "| review"]
    assert "reviews-shift" not in texts["settings"] and "glyphs-shift" not in texts["ablation"]


def test_only_seeds_that_all_columns_have_are_compared(capsys):
    rows = settings_rows("glyphs-distill", "distillation")
    more = make_row("naive", 2, 0.1, "glyphs-distill", setting="distillation", weak=[0.7])
    assert settings_text([*rows, more]) == settings_text(rows)
    assert not settings_text([more, *rows[2:]])["settings"]
    assert "glyphs-distill: no seed" in capsys.readouterr().err


def test_alignment_by_hand():
    text = alignment_text(policy_rows())["alignment"]
    # .62 ± 4.303 * .02 / sqrt(3); recovered (.10, .12, .14) / .30; DPO-R - ensemble .05 .03 .01
    mean = ["62.0 ±5.0", "40 ±17", "", "0.12 ±0.05", "0.100 ±0.000", "20.0 ±0.0", "0.50 ±0.00"]
    assert line(text, "ensemble (n = 3)")[1:] == mean
    assert line(text, "DPO-R (n = 3)")[1:4] == ["65.0 ±0.0", "50 ±0", "+3.0 ±5.0"]
    assert line(text, "ceiling")[1:4] == ["80.0 ±0.0", "", "+18.0 ±5.0"]
    assert line(text, "before")[1:] == ["51.2", "", "", "−0.10", "0.000", "19.0", "0.40"]
    assert line(text, "v") == ["v", "60.0 ±0.0", "0.80 ±0.00"]
    assert "prompts: ±4.0" in text and "all agree on 40.0 ±0.0 % of the pairs" in text


def test_alignment_pairs_the_seeds_that_both_have():
    rows = policy_rows()
    text = alignment_text([row for row in rows if row not in (rows[0], rows[7])])["alignment"]
    assert line(text, "ensemble")[1:4] == ["63.0 ±12.7", "47 (n = 1)", ""]  # .14 / .30 at seed 2
    assert line(text, "DPO-R")[1:4] == ["65.0 ±0.0", "50 ±0 (n = 2)", "+2.0 ±12.7 (n = 2)"]  # .03 .01


def test_a_ceiling_within_noise_recovers_nothing():
    row, ceiling = policy_rows(mean=[0.52], gold=[0.53])
    assert report.recovered(row, ceiling) is None
    assert report.recovered(row, ceiling | {"win_rate": 0.6}) == pytest.approx(0.2)


def test_samples_name_the_policy_of_a_single_reward_model():
    one, dpo_r = policy_rows(one=[0.6], raven=[0.65])
    one["policies"] = [{"samples": one.pop("samples")}]
    text = alignment_text([one, dpo_r])["samples"]
    assert text.split("\n        ")[1:] == [
        "before [0.00]: b", "one reward model, u [0.60]: one 0", "DPO-R [0.65]: raven 0"
    ]  # fmt: skip


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
    write([row | {"version": -1} for row in rows + settings_rows("mnist-usps", None)])
    report.main([])
    assert Path("runs/settings.png").read_bytes()[:4] == b"\x89PNG"
    assert "old" in Path("README.md").read_text() and not Path("results/settings.png").exists()
    printed, warning = capsys.readouterr()
    assert "glyphs-distill" not in printed.split("settings:")[0]
    assert "reviews-shift" in printed.split("ablation:")[1] and "mnist" not in printed.split("settings:")[1]
    assert "rows of [(-1, '0', 'cpu')]" in warning


@pytest.mark.parametrize("other", [{"version": -1}, {"torch": "1"}, {"device": "cuda"}])
def test_mixed_rows_are_not_published(house, other):
    write([house[0] | other, *house[1:]])
    with pytest.raises(data.InputError, match="not published: rows of"):
        report.main(["--publish"])


def test_rows_of_another_version_are_not_published(house):
    write([row | {"version": store.VERSION + 1} for row in house])
    with pytest.raises(data.InputError, match="not published: rows of"):
        report.main(["--publish"])


def test_a_tree_with_uncommitted_code_is_not_published(house):
    Path("new.py").write_text("")
    with pytest.raises(data.InputError, match="(?s)not published: code is not committed.*new.py"):
        report.main(["--publish"])


def test_a_page_without_the_marks_is_one_clear_line():
    Path("page.md").write_text("<!-- x -->\n")
    with pytest.raises(data.InputError, match="page.md lacks the marks of x"):
        report.insert(Path("page.md"), "x", "text")


def test_nothing_to_report_is_one_clear_line():
    with pytest.raises(data.InputError, match="no row of any table"):
        report.main(["runs"])
