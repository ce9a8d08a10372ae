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

MARKS = "real scores against families confidence weights auto protocol protocol-scores".split()
MARKS += "protocol-against parts specialists settings ablation alignment".split()


def make_rows(method, accuracies, task="glyphs", flags=None, **more):
    """A row per seed, of what the tables and figures read."""
    row = {"method": method, "task": task, "data": None, "flags": flags or {}, "version": store.VERSION}
    row |= {"torch": "0", "device": "cpu", "commit": "c", "setting": None, "encoder": "e", "ceiling": 0.9}
    row |= {"weak_models": ["a", "b", "c"], "weak": [0.5, 0.6, 0.7], "weak_confidence": [0.5] * 3}
    row |= {"weights": [0.1, 0.2, 0.7], "weight_history": [[1 / 3] * 3, [0.1, 0.2, 0.7]]}
    row |= {"agreement_history": [0.5, 0.6], "disagreement_beta_history": [0.1, None]}
    row |= {"agreement_naive": 0.8, "students": [], "n_test": 2000, "lr": 1.0} | more
    return [row | {"seed": s, "student": own, "pgr": (own - 0.6) / 0.3} for s, own in enumerate(accuracies)]


def rows_of(columns, accuracies, task="glyphs", **more):
    """The same in every column."""
    made = (make_rows(method, accuracies, task, flags, **more) for method, flags, *_ in columns.values())
    return [row for rows in made for row in rows]


def main_rows(**more):
    """With the wrong largest weight at seed 1."""
    rows = make_rows("naive", (0.70, 0.72, 0.74), **more)
    rows += make_rows("naive", (0.75, 0.75, 0.75), flags={"supervision": "mean"}, **more)
    rows += make_rows("raven", (0.80, 0.78, 0.85), **more)
    rows[-2]["weights"] = [0.1, 0.8, 0.1]
    return rows


def settings_rows(task, setting, **more):
    """KD, AugConf, AdaptConf and select with the setting's flags."""
    columns = tables.settings_columns({"setting": setting, "task": task})
    students = {"KD": (0.80, 0.82), "AugConf": (0.80, 0.80)}
    students |= {"AdaptConf": (0.81, 0.84), "select": (0.79, 0.83)}
    more = {"setting": setting, "weak": [0.7], **more}
    made = (rows_of({name: columns[name]}, own, task, **more) for name, own in students.items())
    return [row for rows in made for row in rows]


def policy_rows(gold=(0.80, 0.80, 0.80)):
    """raven_dpo's rows of win rates."""
    more = {"reward_models": ["u", "v"], "win_interval": 0.04, "win_rate_before": 0.512, "kl": 0.1}
    more |= {"gold_reward": 0.12, "gold_reward_before": -0.1, "length": 20.0, "length_before": 19.0}
    more |= {"well_formed": 0.5, "well_formed_before": 0.4, "easy_fraction": 0.4, "weights": [0.2, 0.8]}
    more |= {"reward_accuracy": [0.5, 0.6], "history": [{"step": s, "weights": [0.5, 0.5]} for s in (0, 10)]}
    wins = {"ensemble": (0.60, 0.62, 0.64), "DPO-R": (0.65, 0.65, 0.65), "ceiling": gold}
    rows = [rows_of({name: tables.POLICIES[name]}, own, "reviews-dpo", **more) for name, own in wins.items()]
    return [row | {"win_rate": row["student"]} for own in rows for row in own]


def texts(rows):
    return tables.texts(tables.of(rows))


def line(text, start):
    """The cells of the only line that starts so."""
    [found] = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_interval_by_hand():
    center, half = tables.interval([0.70, 0.72, 0.74])
    assert center == pytest.approx(0.72) and half == pytest.approx(4.303 * 0.02 / math.sqrt(3))
    assert math.isnan(tables.interval([0.5])[1])
    assert tables.interval([0.0, 1.0] * 20)[1] == pytest.approx(2.228 * math.sqrt(10 / 39) / math.sqrt(40))


def test_accuracy_and_pgr_by_hand():
    rows = main_rows(task="glyphs-shift") + main_rows()
    rows += [row | {"flags": row["flags"] | {"image_encoder": "vit"}} for row in rows[:9]]
    found = texts(rows)
    # naive 72 ± 4.303 * 2 / sqrt(3); PGR (72 - 60) / 30 = 40 ± 16.6
    weak, some = "a 50.0 ±0.0, b 60.0 ±0.0, c 70.0 ±0.0", ["glyphs (n = 3)"]
    scores = ["e", weak, "72.0 ±5.0 / 40 ±17", "75.0 ±0.0 / 50 ±0", *["– / –"] * 5]
    scores += ["81.0 ±9.0 / 70 ±30", *["– / –"] * 3]
    assert line(found["scores"], "glyphs (") == [*some, *scores, "90.0 ±0.0"]
    cells = ["60.0 ±0.0", "72.0 ±5.0", "75.0 ±0.0", "–", "81.0 ±9.0", "–", "90.0 ±0.0"]
    assert line(found["table"], "glyphs-shift (") == ["glyphs-shift (n = 3)", *cells]
    assert "glyphs (" not in found["table"] + found["real"]
    assert line(found["real"], "glyphs-shift")[1:] == line(found["table"], "glyphs-shift vit")[1:] == cells
    rows[9]["pgr"] = None  # naive's, at the first seed of glyphs
    assert line(texts(rows)["scores"], "glyphs (")[3] == "72.0 ±5.0 / –"


def test_weights_and_confidence_by_hand():
    """RAVEN's weights: .7 on the best, .8 on another, .4; b: .9 of 1/2, .1 of .2, at the end."""
    rows = main_rows() + make_rows("raven", (0.79, 0.77, 0.84), flags={"weight_lr": 0.0})
    rows[8]["weights"] = [0.3, 0.3, 0.4]
    cells = ["0.63 ±0.52", "2 of 3", "1 of 2", "+1.0 ±0.0", "+5.0 ±9.0"]  # .04 .02 .09
    assert line(texts(rows)["weights"], "glyphs")[1:] == cells
    last = {"agreement_naive": 0.95, "agreement_history": [0.9], "disagreement_beta_history": [0.2]}
    for name, own in {"Conf": 0.71, "Conf on ensemble": 0.72, "AdaptConf": 0.73}.items():
        rows += rows_of({name: tables.COLUMNS[name]}, [own] * 3)
    rows += rows_of({"": tables.COLUMNS["AdaptConf on ensemble"]}, [0.74] * 3, **last)
    gains = ["−1.0 ±5.0", "+1.0 ±5.0", "−3.0 ±0.0", "−1.0 ±0.0"]
    found = line(texts(rows)["confidence"], "glyphs")[1:]
    assert found == [*gains, "0.47 ±0.00", "80.0 ±0.0", "95.0 ±0.0"]


def test_ravens_parts_by_hand():
    """The best weak model is the third; its students have .76 and .80: PGR (.76 - .6) / .3 = 53 and 67."""
    raven = {name: own for name, own in tables.ABLATION.items() if own[0] == "raven"}
    rows = make_rows("naive", [0.7, 0.72], students=[0.9, 0.7, 0.76]) + rows_of(raven, [0.81, 0.84])
    rows[1]["students"] = [0.9, 0.7, 0.80]
    text, half = texts(rows)["parts"], 12.706 * 0.02 / math.sqrt(2) / math.sqrt(2) * 100
    best = f"78.0 ±{2 * half:.1f} / 60 ±{2 * half / 0.3:.0f}"
    assert line(text, "glyphs (n = 2)")[2:] == [*["82.5 ±19.1 / 75 ±64"] * 5, best]
    assert line(text, "mean PGR (1 tasks)")[1:] == ["37", *["75"] * 5, "60"]
    assert line(text, "the same, published")[1:] == ["1.8", "10.4", "11.1", "10.7", "14.3", "16.1", "15"]
    assert "mean PGR (0 tasks)" in texts([row | {"pgr": None} for row in rows])["parts"]


def test_specialists_by_hand():
    special = {name: own for name, own in tables.SPECIALISTS.items() if name == "Co-sup" or "special" in name}
    rows = rows_of(tables.SPECIALISTS, [0.8, 0.8]) + rows_of(special, [0.8, 0.8], weak=[0.5, 0.6, 0.9, 0.8])
    cells = line(texts(rows)["specialists"], "glyphs")[1:]
    assert cells == ["60.0 ±0.0", "70.0 ±0.0", *["80.0 ±0.0"] * 9, "90.0 ±0.0"]


def test_figures_of_weak_models():
    """Weights that follow the accuracy, and one of three that its temperature moves."""
    more = {"weak_confidence": [0.6, 0.5, 0.8, 0.7], "weak_agreement": [0.4, 0.3, 0.2, 0.1]}
    more |= {"weights": [0.1, 0.2, 0.7, 0.8], "weak": [0.5, 0.6, 0.7, 0.8]}
    rows = rows_of(tables.NUMBERED, [0.7, 0.8], **more)
    for (m, name), own in (item for item in tables.SHARPENED.items() if item[0] != "many"):
        weights = [0.25 / tables.SHARP[name] if i == m else 0 for i in range(3)]
        rows += rows_of({name: own}, [0.7, 0.8], weights=weights if name != "as it is" else [0.1, 0.2, 0.7])
    found = tables.of(rows)
    [axis] = figures.draw_numbers(found["numbers"]).axes
    labels = dict(zip(*reversed(axis.get_legend_handles_labels())))
    assert labels["weak mean"].get_ydata() == pytest.approx([0.65] * 5)
    assert labels["RAVEN"][0].get_ydata() == pytest.approx([0.75] * 5)
    top, bottom = figures.draw_controls(found["controls"]).axes
    sharper, usual, softer = (each[0].get_ydata().tolist() for each in top.containers)
    assert sharper == [1.0] * 3 and usual == [0.1, 0.2, 0.7] and softer == [0.0625] * 3
    assert bottom.containers[0][0].get_ydata() == pytest.approx([1, 0.6, -1])
    with_a_tie = figures.rank_correlation([1e-6, 1e-6, 0.3, 0.7], [0.1, 0.2, 5, 6])
    assert with_a_tie == pytest.approx(4.5 / math.sqrt(4.5 * 5))  # ranks .5 .5 2 3 and 0 1 2 3


def test_auto_by_hand():
    rows = rows_of({name: tables.COLUMNS[name] for name in tables.TUNED}, [0.7] * 3)
    rows += make_rows("naive", [0.72] * 3, flags={"supervision": "mean", "lr": "auto"})
    for row, lr in zip(rows[-3:], (3e-5, 1e-5, 1e-5)):
        row["lr"] = lr
    rows += [row | {"flags": row["flags"] | {"lr": "auto"}} for row in rows[3:9]]
    cells = ["1e-05, 1e-05, 3e-05", "+2.0 ±0.0", "+0.0 ±0.0", "+0.0 ±0.0"]
    assert line(texts(rows)["auto"], "glyphs")[1:] == cells


def test_against_raven_by_hand():
    """Two Amazon tasks and one of digits; every method but prototypes 5 points below RAVEN."""
    rows = make_rows("raven", [0.9], "reviews")  # of which other methods have no row
    for task, gain in {"text:books:dvd": 0.1, "text:dvd:books": 0.05, "glyphs": -0.02}.items():
        for name, own in tables.COLUMNS.items():
            student = {"RAVEN": 0.75, "prototypes": 0.75 + gain}.get(name, 0.7)
            rows += rows_of({name: own}, [student, student], task)
    found = texts(rows)
    half = 4.303 * math.sqrt((5.667**2 + 0.667**2 + 6.333**2) / 2) / math.sqrt(3)  # of 10, 5, -2 around 4.333
    cells = ["64 ±50", f"+4.3 ±{half:.1f}", "2", "−2.0 (glyphs)"]  # PGR (.75 - .6 + .0433) / .3
    assert line(found["against"], "prototypes")[1:] == cells
    assert line(found["against"], "RAVEN")[1:] == ["50 ±0"]
    half = 12.706 * 0.05 / math.sqrt(2) / math.sqrt(2) * 100
    assert line(found["families"], "Amazon reviews (2)")[-1] == f"+7.5 ±{half:.1f}"
    assert line(found["families"], "rendered digits (1)")[-1] == "−2.0"
    files = [row | {"task": f"my{i}_x.npz"} for i in (1, 2) for row in rows if row["task"] == "glyphs"]
    assert line(texts(files)["families"], "my1 (1)")[-1] == "−2.0"


def test_protocol_by_hand(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "PROTOCOL", tmp_path / "protocol.jsonl")
    each = {"trials": [[1e-3, 5, 0.5], [1e-2, 10, 0.75]], "flags": {"lr": 1e-2, "steps": 10}}
    lines = [{"kind": kind, "method": "naive", "supervision": "mean", **each} for kind in ("image", "text")]
    write_lines(evaluate.PROTOCOL, lines)
    own = {"protocol": each["flags"], "supervision": "mean"}
    rows = make_rows("naive", [0.8, 0.8], flags=own, kind="image")
    rows += make_rows("naive", [0.1, 0.1], flags=own | {"protocol": {"lr": 0.1}}, kind="image")  # old
    rows += make_rows("naive", [0.1, 0.1], flags=own | {"supervision": "vote"}, kind="image")  # not its own
    found = texts(rows)
    assert line(found["protocol"], "ensemble: --lr, --steps")[1:] == ["0.01, 10: 75.0 (50.0)"] * 2
    assert line(found["protocol-scores"], "glyphs")[1:] == ["–", "80.0 ±0.0", *["–"] * 10]


def test_which_rows_count():
    """Seeds that all columns share, default seeds, the last of several, no row of other flags."""
    rows = main_rows() + settings_rows("glyphs-distill", "distillation") + policy_rows()
    others = [row | {"seed": 5} for row in rows] + [row | {"flags": row["flags"] | {"lr": 1}} for row in rows]
    flags, setting = {"beta_ramp": 0.0}, "distillation"  # not those of the setting's authors
    others += make_rows("adaptive_confidence", [0.1], "glyphs-distill", flags, setting=setting)
    others += make_rows("new", [0.1])
    assert tables.of(others + rows + others) == tables.of(rows)
    assert tables.of([row | {"student": 0.0} for row in rows] + rows) == tables.of(rows)
    del rows[1]  # naive's second seed
    assert set(tables.of(rows)["heads"]["glyphs"]["RAVEN"]) == {0, 2}
    assert not tables.of(rows[:1] + rows[3:4])["heads"]


def test_files_and_encoders_are_told_apart_and_severities_are_in_order():
    rows = main_rows(task="my.npz", data="abcdef0123") + main_rows(task="my.npz", data="012345abcd")
    rows += [row | {"flags": row["flags"] | {"text_encoder": "gpt"}} for row in main_rows(task="reviews")]
    rows += main_rows(task="glyphs-shift") + main_rows(task="glyphs-shift-0.2")
    lines = ["glyphs-shift-0.2", "glyphs-shift", "reviews gpt", "my.npz 012345", "my.npz abcdef"]
    assert list(tables.of(rows)["heads"]) == lines


def test_settings_by_hand():
    """Means of two seeds ± 12.706 * s / sqrt(2); seed by seed .00 -.02, .01 .02, .01 .04."""
    rows = settings_rows("glyphs-distill", "distillation")
    found, title = texts(rows), "glyphs-distill (n = 2)"
    *cells, published = line(found["settings"], title)
    assert cells[:4] == [title, "0.5, 0", "70.0 ±0.0", "90.0 ±0.0"]
    assert cells[4:7] == ["81.0 ±12.7", "80.0 ±0.0", "82.5 ±19.1"]
    assert cells[7:] == [f"{gain}, not shown" for gain in ("−1.0 ±12.7", "+1.5 ±6.4", "+2.5 ±19.1")]
    assert published.endswith("73.81 / 73.86 / 74.17")
    assert line(found["ablation"], title)[1:] == ["81.0 ±12.7", "+1.5 ±6.4", *"–––", "+0.0 ±12.7"]
    assert not found["scores"] and not texts([row for row in rows if "beta" not in row["flags"]])["ablation"]
    one, five = ({"student": [own, 0.01], "weak": [0.3, 0], "ceiling": [0.7, 0]} for own in (0.52, 0.6))
    shots = {"test": {"1-shot": one, "5-shot": five}}
    text = texts(settings_rows("glyphs-fewshot", "few-shot", few_shot=shots, labels_alone=0.75))["settings"]
    cells = ["8, 0.25", "30.0 ±0.0", "75.0 ±0.0 / 70.0 ±0.0", "52.0 ±0.0"]
    assert line(text, "glyphs-fewshot 1-shot (")[1:5] == cells
    assert line(text, "glyphs-fewshot 5-shot (")[4] == "60.0 ±0.0"


def test_alignment_by_hand():
    text = texts(policy_rows())["alignment"]
    # .62 ± 4.303 * .02 / sqrt(3); recovered (.10, .12, .14) / .30; DPO-R - ensemble .05 .03 .01
    own = ["62.0 ±5.0", "40 ±17", "+0.0 ±0.0", "0.12 ±0.00", "0.100 ±0.000", "20.0 ±0.0", "0.50 ±0.00"]
    assert "reviews-dpo (n = 3)" in text and line(text, "ensemble")[1:] == own
    assert line(text, "DPO-R |")[1:4] == ["65.0 ±0.0", "50 ±0", "+3.0 ±5.0"]
    before = line(text, "before")[1:]
    assert before[:4] == ["51.2 ±0.0", "4 ±0", "−10.8 ±5.0", "−0.10 ±0.00"]
    assert before[4:] == ["0.000 ±0.000", "19.0 ±0.0", "0.40 ±0.00"]
    assert "all agree on 40.0 ±0.0 %" in text
    assert line(text, "v") == ["v", "60.0 ±0.0", "0.80 ±0.00", "–"]
    within_noise = texts(policy_rows(gold=(0.80, 0.53, 0.80)))["alignment"]
    assert line(within_noise, "ensemble")[2] == "–"


@pytest.fixture
def house(monkeypatch):
    """A clean git repository with both pages, and rows in runs/: of tasks, policies and rates."""
    pages = {name: f"<!-- {name} -->\nold\n<!-- end of {name} -->\n" for name in ("table", *MARKS)}
    Path("README.md").write_text(f"before\n{pages.pop('table')}after\n")
    Path("results").mkdir()
    Path("results/README.md").write_text("".join(pages.values()))
    subprocess.run(["git", "init", "-q"], check=True)
    monkeypatch.setattr(report, "HERE", Path.cwd())
    rows = main_rows() + main_rows(task="glyphs-shift", ceiling=8 / 9) + policy_rows()
    rows += rows_of(tables.at_rates(tables.SOME, [*evaluate.RATES, "auto"]), [0.7] * 3, "reviews")
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
    assert set(MARKS) - without == {"scores", "auto", "protocol", "alignment"}
    assert all(parts[name] in printed for name in set(MARKS) - without)
    drawn = sorted(path.name for path in Path("results").glob("*.png"))
    assert drawn == ["alignment.png", "rates.png", "severity.png", "weights.png"]
    published = {path.stem: store.read_rows(path) for path in Path("results").glob("*.jsonl")}
    assert {name: len(rows) for name, rows in published.items()} == {"rows": 33, "rates": 90, "alignment": 9}
    assert {row["ceiling"] for row in published["rows"]} == {0.9, 0.888889}  # six decimals
    assert "weight_history" in published["rows"][0] and "weight_history" not in published["rates"][0]


def test_without_publishing_all_stays_in_the_folder_of_the_rows(house, capsys):
    """And settings, tasks without labels and trials of b on others each have their place."""
    rows = settings_rows("glyphs-distill", "distillation") + settings_rows("reviews-shift", None)
    write_lines(Path("runs/rows.jsonl"), rows + [row | {"task": "mnist-usps"} for row in rows[8:]])
    report.main([])
    assert Path("runs/settings.png").exists() and not list(Path("results").glob("*.png"))
    assert "old" in Path("README.md").read_text()
    ablation = capsys.readouterr().out.split("ablation:")[1]
    assert "reviews-shift" in ablation and "mnist" not in ablation


OTHERS = [{"torch": "1"}, {"device": "cuda"}, {"commit": "1-dirty"}, {"commit": None}]


@pytest.mark.parametrize("other", OTHERS)
def test_rows_of_several_kinds_or_of_uncommitted_code_are_not_published(house, other):
    write_lines(Path("runs/rows.jsonl"), [house[0] | other, *house[1:]])
    with pytest.raises(data.InputError, match="not published: rows of"):
        report.main(["--publish"])


def test_what_else_is_refused(house):
    Path("new.py").write_text("")
    with pytest.raises(data.InputError, match="(?s)not published: code is not committed.*new.py"):
        report.main(["--publish"])
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
