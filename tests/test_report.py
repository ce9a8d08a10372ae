"""report.py: numbers by hand, which rows count, what is published and what is refused."""

import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import write_lines

import data
import evaluate
import figures
import report
import store
import tables
import teachers

MARKS = "real scores differences against families confidence weights auto encoders protocol".split()
MARKS += "protocol-scores protocol-against parts specialists settings ablation alignment".split()


def make_rows(method, students, task="glyphs", flags=None, **more):
    """A row per seed, of what the tables and figures read."""
    row = {"method": method, "task": task, "data": None, "flags": flags or {}, "version": store.VERSION}
    row |= {"torch": "0", "device": "cpu", "commit": "c", "setting": None, "encoder": "e", "ceiling": 0.9}
    row |= {"weak_models": ["a", "b", "c"], "weak": [0.5, 0.6, 0.7], "weak_confidence": [0.5] * 3}
    row |= {"weights": [0.1, 0.2, 0.7], "weight_history": [[1 / 3] * 3, [0.1, 0.2, 0.7]]}
    row |= {"agreement_history": [0.5, 0.6], "disagreement_beta_history": [0.1, None]} | more
    return [row | {"seed": s, "student": own, "pgr": (own - 0.6) / 0.3} for s, own in enumerate(students)]


def main_rows(**more):
    """With the wrong largest weight at seed 1."""
    rows = make_rows("naive", (0.70, 0.72, 0.74), **more)
    rows += make_rows("naive", (0.75, 0.75, 0.75), flags={"supervision": "mean"}, **more)
    rows += make_rows("raven", (0.80, 0.78, 0.85), **more)
    rows[-2]["weights"] = [0.1, 0.8, 0.1]
    return rows


def settings_rows(task, setting, adapted=(0.81, 0.84), **more):
    """KD, AugConf, AdaptConf and select with the setting's flags."""
    wanted = tables.settings_columns({"setting": setting, "task": "reviews-shift"})
    flags = wanted["AdaptConf"][1]
    columns = [("naive", (0.80, 0.82), wanted["KD"][1]), ("confidence", (0.80, 0.80), {})]
    columns += [("adaptive_confidence", adapted, flags)]
    columns += [("adaptive_confidence", (0.79, 0.83), flags | {"beta": "select"})]
    more = {"setting": setting, "weak": [0.7], **more}
    return [row for method, own, flags in columns for row in make_rows(method, own, task, flags, **more)]


def policy_rows(mean=(0.60, 0.62, 0.64), raven=(0.65, 0.65, 0.65), gold=(0.80, 0.80, 0.80)):
    """raven_dpo's rows of these win rates."""
    more = {"reward_models": ["u", "v"], "win_interval": 0.04, "win_rate_before": 0.512, "kl": 0.1}
    more |= {"gold_reward": 0.12, "gold_reward_before": -0.1, "length": 20.0, "length_before": 19.0}
    more |= {"well_formed": 0.5, "well_formed_before": 0.4, "easy_fraction": 0.4, "weights": [0.2, 0.8]}
    more |= {"reward_accuracy": [0.5, 0.6]}
    more |= {"history": [{"step": step, "weights": [0.5, 0.5]} for step in (0, 10)]}
    rows = []
    for students, flags in ((mean, {"supervision": "mean"}), (raven, {}), (gold, {"supervision": "gold"})):
        rows += make_rows("raven_dpo", students, "reviews-dpo", flags, **more)
    return [row | {"win_rate": row["student"]} for row in rows]


def main_table(rows):
    return tables.tabulate(rows, lambda row: {} if row["setting"] else tables.COLUMNS)


def line(text, start):
    """The cells of the only line that starts so."""
    [found] = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_interval_by_hand():
    center, half = tables.interval([0.70, 0.72, 0.74])
    assert center == pytest.approx(0.72) and half == pytest.approx(4.303 * 0.02 / math.sqrt(3))
    assert math.isnan(tables.interval([0.5])[1]) and tables.interval([0.5, 0.5])[1] == 0
    assert tables.interval([0.0, 1.0] * 20)[1] == pytest.approx(2.228 * math.sqrt(10 / 39) / math.sqrt(40))


def test_main_tables_by_hand():
    rows = main_rows(task="glyphs-shift") + main_rows()
    texts = tables.main_tables(main_table(rows))
    # naive 72 ± 4.303 * 2 / sqrt(3); PGR (72 - 60) / 30 = 40 ± 16.6
    weak, some = "a 50.0 ±0.0, b 60.0 ±0.0, c 70.0 ±0.0", ["glyphs (n = 3)"]
    scores = ["e", weak, "72.0 ±5.0 / 40 ±17", "75.0 ±0.0 / 50 ±0", *["– / –"] * 5]
    scores += ["81.0 ±9.0 / 70 ±30", *["– / –"] * 3]
    assert line(texts["scores"], "glyphs (") == [*some, *scores, "90.0 ±0.0"]
    # RAVEN - naive seed by seed .10 .06 .11: 9.0 ± 4.303 * 2.6458 / sqrt(3)
    gains = ["+3.0 ±5.0", *"–––––", "+9.0 ±6.6", *"–––"]
    assert line(texts["differences"], "glyphs (") == [*some, *gains]
    cells = ["60.0 ±0.0", "72.0 ±5.0", "75.0 ±0.0", "–", "81.0 ±9.0", "–", "90.0 ±0.0"]
    assert line(texts["table"], "glyphs") == ["glyphs-shift (n = 3)", *cells]  # and no other task
    assert not texts["real"]
    encoded = [row | {"flags": row["flags"] | {"image_encoder": "vit"}} for row in rows[:9]]
    assert line(tables.main_tables(main_table(encoded))["real"], "glyphs-shift vit (")[1:] == cells
    rows[-9]["pgr"] = None  # naive's, at the first seed of glyphs
    assert line(tables.main_tables(main_table(rows))["scores"], "glyphs (")[3] == "72.0 ±5.0 / –"


def test_weights_and_confidence_by_hand():
    """RAVEN's weights: .7 on the best, .8 on another, .4; b: .9 of 1/2, .1 of .2, at the end."""
    rows = main_rows()
    rows[-1]["weights"] = [0.3, 0.3, 0.4]
    equal = make_rows("raven", (0.79, 0.77, 0.84), flags={"weight_lr": 0.0})
    last = {"agreement_naive": 0.95, "agreement_history": [0.9], "disagreement_beta_history": [0.2]}
    adapted = make_rows("adaptive_confidence", [0.74] * 3, flags={"supervision": "mean"}, **last)
    found = tables.of(rows + equal)["trust"]
    cells = ["0.63 ±0.52", "2 of 3", "1 of 2", "+1.0 ±0.0", "+5.0 ±9.0"]  # .04 .02 .09
    assert line(tables.weight_tables(found)["weights"], "glyphs")[1:] == cells
    cells = ["–", "–", "–", "−1.0 ±0.0", "0.47 ±0.00", "–", "95.0 ±0.0"]
    text = tables.confidence_tables(main_table(rows + adapted))["confidence"]
    assert line(text, "glyphs")[1:] == cells


def test_ravens_parts_by_hand():
    """The best weak model is the third; its students have .76 and .80: PGR (.76 - .6) / .3 = 53 and 67."""
    rows = [row | {"students": [0.9, 0.7, 0.76], "n_test": 2000} for row in make_rows("naive", [0.7, 0.72])]
    rows[1]["students"] = [0.9, 0.7, 0.80]
    for method, flags, _ in tables.ABLATION.values():
        rows += make_rows(method, [0.81, 0.84], flags=flags) if method == "raven" else []
    text = tables.ablation_tables(tables.of(rows)["ablation"])["parts"]
    half = 12.706 * 0.02 / math.sqrt(2) / math.sqrt(2) * 100
    expected = f"78.0 ±{2 * half:.1f} / 60 ±{2 * half / 0.3:.0f}"
    assert line(text, "glyphs (n = 2)")[-1] == expected
    assert line(text, "glyphs (n = 2)")[2:-1] == ["82.5 ±19.1 / 75 ±64"] * 5
    assert line(text, "mean PGR (1 tasks)")[1:] == ["37", *["75"] * 5, "60"]
    assert line(text, "the same, published")[1:] == ["1.8", "10.4", "11.1", "10.7", "14.3", "16.1", "15"]


def test_specialists_by_hand():
    rows = []
    for name, (method, flags, *_) in tables.SPECIALISTS.items():
        weak = [0.5, 0.6, 0.9, 0.8] if name == "Co-sup" or "special" in name else [0.5, 0.6, 0.7]
        rows += make_rows(method, [0.8, 0.8], flags=flags, weak=weak)
    text = tables.specialist_tables(tables.of(rows)["specialists"])["specialists"]
    assert line(text, "glyphs")[1:] == ["60.0 ±0.0", "70.0 ±0.0", *["80.0 ±0.0"] * 9, "90.0 ±0.0"]


def test_figures_of_weak_models():
    """Weights that follow the accuracy, and one of three that its temperature moves."""
    rows, more = [], {"weak_confidence": [0.6, 0.5, 0.7], "weak_agreement": [0.3, 0.2, 0.1]}
    many = more | {"weak_models": [*"abcd"], "weights": [0.1, 0.2, 0.7, 0.8], "weak": [0.5, 0.6, 0.7, 0.8]}
    many |= {"weak_confidence": [0.6, 0.5, 0.8, 0.7], "weak_agreement": [0.4, 0.3, 0.2, 0.1]}
    for method, flags in tables.NUMBERED.values():
        rows += make_rows(method, [0.7, 0.8], flags=flags, **many)
    for m in range(3):
        for T in (0.25, 4.0):
            own = {"weak_temperatures": [T if i == m else 1.0 for i in range(3)]}
            weights = [0.25 / T if i == m else 0 for i in range(3)]
            rows += make_rows("raven", [0.7, 0.8], flags=own, weights=weights)
    found = tables.of(rows + make_rows("raven", [0.7, 0.8]))
    [axis] = figures.draw_numbers(found["numbers"]).axes
    drawn = {each.get_label(): each[0].get_ydata().tolist() for each in axis.containers}
    assert drawn["weak mean"] == pytest.approx([0.65] * 5) and drawn["RAVEN"] == pytest.approx([0.75] * 5)
    top, bottom = figures.draw_controls(found["controls"]).axes
    sharper, usual, softer = (each[0].get_ydata().tolist() for each in top.containers)
    assert sharper == [1.0] * 3 and usual == [0.1, 0.2, 0.7] and softer == [0.0625] * 3
    assert [each[0].get_ydata()[0] for each in bottom.containers] == pytest.approx([1, 0.6, -1])


def test_rank_correlation_by_hand():
    with_a_tie = figures.rank_correlation([1e-6, 1e-6, 0.3, 0.7], [0.1, 0.2, 5, 6])
    assert with_a_tie == pytest.approx(4.5 / math.sqrt(4.5 * 5))  # ranks .5 .5 2 3 and 0 1 2 3
    assert figures.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def rate_rows(task="glyphs"):
    """At every rate .7; + .02 for the ensemble at auto, which took 1e-5 twice and 3e-5."""
    rows = []
    columns = tables.variants(tables.SOME, "lr", [*evaluate.RATES, "auto"], tables.USUAL_RATES)
    for (name, rate), (method, flags) in columns.items():
        own = 0.72 if (name, rate) == ("ensemble", "auto") else 0.7
        rows += make_rows(method, [own] * 3, task, flags, lr=rate)
    for row, lr in zip([row for row in rows if row["lr"] == "auto"], [3e-5, 1e-5, 1e-5] * 4):
        row["lr"] = lr
    return rows


def test_auto_by_hand():
    found = tables.of(rate_rows())["auto"]
    cells = line(tables.auto_tables(found)["auto"], "glyphs")
    assert cells[1:] == ["1e-05, 1e-05, 3e-05", "+2.0 ±0.0", "+0.0 ±0.0", "+0.0 ±0.0"]


def test_encoders_by_hand():
    rows = []
    usual = dict.fromkeys(tables.USUAL_RATES, 800)
    columns = tables.variants(tables.SOME, "encoder_steps", tables.ENCODERS, usual)
    for (_, steps), (method, flags) in columns.items():
        rows += make_rows(method, [steps / 1000, steps / 1000 + 0.02], flags=flags)
    text = tables.encoder_tables(tables.of(rows)["encoders"])["encoders"]
    assert line(text, "glyphs")[1:] == ["81.0 / 81.1"] * 5


def test_against_raven_by_hand():
    """Two Amazon tasks and one of digits; every method but prototypes 5 points below RAVEN."""
    tasks, rows = {"text:books:dvd": 0.1, "text:dvd:books": 0.05, "glyphs": -0.02}, []
    for task, gain in tasks.items():
        for name, (method, flags, _) in tables.COLUMNS.items():
            own = {"RAVEN": 0.75, "prototypes": 0.75 + gain}.get(name, 0.7)
            rows += make_rows(method, [own, own], task, flags)
    rows += make_rows("raven", [0.9], "reviews")  # of which other methods have no row
    texts = tables.against_tables(tables.of(rows)["compared"])
    half = 4.303 * math.sqrt((5.667**2 + 0.667**2 + 6.333**2) / 2) / math.sqrt(3)  # of 10, 5, -2 around 4.333
    cells = ["64 ±50", f"+4.3 ±{half:.1f}", "2", "−2.0 (glyphs)"]  # PGR (.75 - .6 + .0433) / .3
    assert line(texts["against"], "prototypes")[1:] == cells
    assert line(texts["against"], "RAVEN")[1:] == ["50 ±0"]
    assert line(texts["against"], "naive")[2:] == ["−5.0 ±0.0", "0", "−5.0 (glyphs)"]
    half = 12.706 * 0.05 / math.sqrt(2) / math.sqrt(2) * 100
    assert line(texts["families"], "Amazon reviews (2)")[-1] == f"+7.5 ±{half:.1f}"
    assert line(texts["families"], "rendered digits (1)")[-1] == "−2.0"


def test_protocol_by_hand(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "PROTOCOL", tmp_path / "protocol.jsonl")
    each = {"trials": [[1e-3, 5, 0.5], [1e-2, 10, 0.75]], "flags": {"lr": 1e-2, "steps": 10}}
    lines = [{"kind": kind, "method": "naive", "supervision": "mean", **each} for kind in ("image", "text")]
    write_lines(evaluate.PROTOCOL, lines)
    own = {"protocol": each["flags"], "supervision": "mean"}
    rows = make_rows("naive", [0.8, 0.8], flags=own, kind="image")
    rows += make_rows("naive", [0.1, 0.1], flags=own | {"protocol": {"lr": 0.1}}, kind="image")  # old
    rows += make_rows("naive", [0.1, 0.1], flags=own | {"supervision": "vote"}, kind="image")  # not its own
    texts = tables.protocol_tables(tables.of(rows)["protocol"])
    assert line(texts["protocol"], "ensemble: --lr, --steps")[1:] == ["0.01, 10: 75.0 (50.0)"] * 2
    assert line(texts["protocol-scores"], "glyphs")[1:] == ["–", "80.0 ±0.0", *["–"] * 10]


def test_a_line_has_the_seeds_that_all_its_columns_share():
    rows = main_rows()
    del rows[1]  # naive's second seed
    assert line(tables.main_tables(main_table(rows))["differences"], "glyphs (n = 2)")[7] == "+10.5 ±6.4"
    assert not main_table(rows[:1] + rows[-1:])


def test_rows_with_other_flags_or_seeds_change_nothing():
    rows = main_rows() + settings_rows("glyphs-distill", "distillation") + policy_rows()
    others = [row | {"seed": 5} for row in rows] + [row | {"flags": row["flags"] | {"lr": 1}} for row in rows]
    flags = {"beta_ramp": 0.0}  # not those of the setting's authors
    others += make_rows("adaptive_confidence", [0.1], "glyphs-distill", flags, setting="distillation")
    others += make_rows("new", [0.1])
    for columns in (lambda _: tables.COLUMNS, tables.settings_columns, lambda _: tables.POLICIES):
        assert tables.tabulate(others + rows + others, columns) == tables.tabulate(rows, columns)


def test_the_last_row_counts_and_files_and_text_encoders_are_told_apart():
    old, new = make_rows("naive", [0.1]) + make_rows("naive", [0.2])
    assert main_table([old, new])["glyphs"]["naive"] == {0: new}
    rows = main_rows(task="my.npz", data="abcdef0123") + main_rows(task="my.npz", data="012345abcd")
    rows += [row | {"flags": row["flags"] | {"text_encoder": "gpt"}} for row in main_rows(task="reviews")]
    rows += main_rows(task="glyphs-shift") + main_rows(task="glyphs-shift-0.2")  # in the order of severity
    tasks = ["glyphs-shift-0.2", "glyphs-shift", "reviews gpt", "my.npz 012345", "my.npz abcdef"]
    assert list(main_table(rows)) == tasks


def test_settings_by_hand():
    """Means of two seeds ± 12.706 * s / sqrt(2); seed by seed .00 -.02, .01 .02, .01 .04."""
    rows = settings_rows("glyphs-distill", "distillation")
    texts, title = tables.settings_tables(rows), "glyphs-distill (n = 2)"
    *cells, published = line(texts["settings"], title)
    assert cells[:4] == [title, "0.5, 0", "70.0 ±0.0", "90.0 ±0.0"]
    assert cells[4:7] == ["81.0 ±12.7", "80.0 ±0.0", "82.5 ±19.1"]
    assert cells[7:] == [f"{gain}, not shown" for gain in ("−1.0 ±12.7", "+1.5 ±6.4", "+2.5 ±19.1")]
    assert published.endswith("73.81 / 73.86 / 74.17")
    assert line(texts["ablation"], title)[1:] == ["81.0 ±12.7", "+1.5 ±6.4", *"–––", "+0.0 ±12.7"]


def test_marks_noisy_labels_and_novel_classes():
    """.10 and .10 above KD is shown; two students without a teacher; shots apart."""
    rows = settings_rows("glyphs-noisy-symmetric-0.35", "noisy labels", (0.90, 0.92), labels_alone=0.75)
    cells = line(tables.settings_tables(rows)["settings"], "glyphs-noisy")
    assert cells[3] == "75.0 ±0.0 / 90.0 ±0.0" and cells[8] == "+10.0 ±0.0"
    one, five = ({"student": [own, 0.01], "weak": [0.3, 0], "ceiling": [0.7, 0]} for own in (0.52, 0.6))
    shots = {"1-shot": one, "5-shot": five}
    rows = settings_rows("glyphs-fewshot", "few-shot", few_shot={"test": shots})
    text = tables.settings_tables(rows)["settings"]
    assert line(text, "glyphs-fewshot 1-shot (")[1:5] == ["8, 0.25", "30.0 ±0.0", "70.0 ±0.0", "52.0 ±0.0"]
    assert line(text, "glyphs-fewshot 5-shot (")[4] == "60.0 ±0.0"


def test_alignment_by_hand():
    text = tables.alignment_tables(tables.tabulate(policy_rows(), lambda _: tables.POLICIES))["alignment"]
    # .62 ± 4.303 * .02 / sqrt(3); recovered (.10, .12, .14) / .30; DPO-R - ensemble .05 .03 .01
    own = ["62.0 ±5.0", "40 ±17", "+0.0 ±0.0", "0.12 ±0.00", "0.100 ±0.000", "20.0 ±0.0", "0.50 ±0.00"]
    assert "reviews-dpo (n = 3)" in text and line(text, "ensemble")[1:] == own
    assert line(text, "DPO-R |")[1:4] == ["65.0 ±0.0", "50 ±0", "+3.0 ±5.0"]
    before = line(text, "before")[1:]
    assert before[:3] == ["51.2 ±0.0", "4 ±0", "−10.8 ±5.0"]
    assert before[3:] == ["−0.10 ±0.00", "0.000 ±0.000", "19.0 ±0.0", "0.40 ±0.00"]
    assert "all agree on 40.0 ±0.0 %" in text
    assert line(text, "v") == ["v", "60.0 ±0.0", "0.80 ±0.00", "–"]
    within_noise = tables.tabulate(policy_rows(gold=(0.80, 0.53, 0.80)), lambda _: tables.POLICIES)
    assert line(tables.alignment_tables(within_noise)["alignment"], "ensemble")[2] == "–"


@pytest.fixture
def house(monkeypatch):
    """A clean git repository with both pages, and rows in runs/: all but of the settings."""
    pages = {name: f"<!-- {name} -->\nold\n<!-- end of {name} -->\n" for name in ("table", *MARKS)}
    Path("README.md").write_text(f"before\n{pages.pop('table')}after\n")
    Path("results").mkdir()
    Path("results/README.md").write_text("".join(pages.values()))
    subprocess.run(["git", "init", "-q"], check=True)
    monkeypatch.setattr(report, "HERE", Path.cwd())
    rows = main_rows() + main_rows(task="glyphs-shift", ceiling=8 / 9) + policy_rows() + rate_rows("reviews")
    write_lines(Path("runs/rows.jsonl"), rows)
    return rows


def test_publishing(house, capsys):
    report.main(["--publish"])
    printed, page = capsys.readouterr().out, Path("results/README.md").read_text()
    first = Path("README.md").read_text()
    assert first.startswith("before\n<!-- table -->\n| accuracy") and "old" not in first
    assert first.endswith("|\n<!-- end of table -->\nafter\n")
    parts = {name: page.split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name}")[0] for name in MARKS}
    without = {name for name in MARKS if parts[name] == "old\n"}
    assert without >= {"confidence", "weights", "encoders", "protocol-scores", "settings", "ablation"}
    assert not without & {"scores", "differences", "auto", "alignment"}
    assert all(parts[name] in printed for name in MARKS if parts[name] != "old\n")
    figures = sorted(path.name for path in Path("results").glob("*.png"))
    assert figures == ["alignment.png", "rates.png", "severity.png", "weights.png"]
    published = store.read_rows(Path("results/rows.jsonl"))
    assert len(published) == 33 and {row["ceiling"] for row in published} == {0.9, 0.888889}  # six decimals
    assert len(store.read_rows(Path("results/rates.jsonl"))) == 3 * 5 * 6  # others than in rows.jsonl
    assert not Path("results/settings.jsonl").exists()


def test_without_publishing_all_stays_in_the_folder_of_the_rows(house, capsys):
    """And settings, tasks without labels and trials of b on others each have their place."""
    rows = settings_rows("glyphs-distill", "distillation") + settings_rows("reviews-shift", None)
    write_lines(Path("runs/rows.jsonl"), rows + settings_rows("mnist-usps", None))
    report.main([])
    assert Path("runs/settings.png").exists() and not list(Path("results").glob("*.png"))
    assert "old" in Path("README.md").read_text()
    printed = capsys.readouterr().out
    assert "glyphs-distill" not in printed.split("settings:")[0] and "[('0', 'cpu', True)]" in printed
    assert "reviews-shift" in printed.split("ablation:")[1] and "mnist" not in printed.split("settings:")[1]


OTHERS = [{"torch": "1"}, {"device": "cuda"}, {"commit": "1-dirty"}, {"commit": None}]


@pytest.mark.parametrize("other", OTHERS)
def test_rows_of_several_kinds_or_of_uncommitted_code_are_not_published(house, other):
    write_lines(Path("runs/rows.jsonl"), [house[0] | other, *house[1:]])
    with pytest.raises(data.InputError, match="not published: rows of"):
        report.main(["--publish"])


def test_a_tree_with_uncommitted_code_is_not_published(house):
    Path("new.py").write_text("")
    with pytest.raises(data.InputError, match="(?s)not published: code is not committed.*new.py"):
        report.main(["--publish"])


def test_without_rows_of_this_version_or_marks_in_the_page_there_is_one_clear_line(house):
    Path("page.md").write_text("<!-- x -->\n")
    with pytest.raises(data.InputError, match="page.md lacks the marks of x"):
        report.insert(Path("page.md"), "x", "text")
    write_lines(Path("runs/rows.jsonl"), [row | {"version": store.VERSION + 1} for row in house])
    with pytest.raises(data.InputError, match="no row of any table"):
        report.main([])


def test_the_figure_of_features_says_who_is_right(monkeypatch):
    """Classes apart in the first of two features, which one weak model mostly sees: 75 % right."""
    y = torch.arange(40) % 2
    x = torch.stack([4.0 * y - 2, torch.linspace(-1, 1, 40)], 1)
    weak_probs = torch.nn.functional.one_hot(torch.where(torch.arange(40) < 10, 1 - y, y), 2)[:, None].float()
    task = SimpleNamespace(strong_train=data.Split(x, y, weak_probs))
    monkeypatch.setattr(teachers, "supervise", lambda *_: task)
    titles = [axis.get_title() for axis in figures.draw_geometry(["glyphs"]).axes]
    assert titles == ["glyphs, truth", "glyphs, mean weak label: 75% right", "glyphs, prototypes: 100% right"]
