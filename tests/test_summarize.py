import json
import math
import shutil

import pytest
from conftest import ROOT

import data
import store
import summarize


def make_row(
    method, seed, student, supervision="each", task="glyphs", weak=(0.5, 0.6, 0.7), ceiling=0.9, **more
):
    return {
        "method": method,
        "task": task,
        "seed": seed,
        "supervision": supervision,
        "torch": "0",
        "device": "cpu",
        "code": store.code_hash(ROOT / "methods" / f"{method}.py"),
        "flags": {"lr": 0.1, "own": 1},
        "kind": "image",
        "student_kind": "head",
        "encoder": "e",
        "weak_confidence": [0.5, 0.5, 0.5],
        "weak_models": ["a", "b", "c"],
        "weak": list(weak),
        "student": student,
        "ceiling": ceiling,
        "pgr": (student - 0.6) / 0.3,
        "n_test": 100,
    } | more


def raven_row(seed, student, weights, **more):
    history = [[1 / 3] * 3, weights]
    return make_row("raven", seed, student, "weighted", weights=weights, weight_history=history, **more)


@pytest.fixture
def rows():
    """naive .70 .72 .74, ensemble .75 .75 .75, RAVEN .80 .78 .85 on three seeds of one task."""
    naive = [make_row("naive", seed, value) for seed, value in enumerate((0.70, 0.72, 0.74))]
    ensemble = [make_row("naive", seed, 0.75, "mean") for seed in range(3)]
    weights = [[0.1, 0.1, 0.8], [0.1, 0.8, 0.1], [0.0, 0.3, 0.7]]
    raven = [raven_row(seed, v, w) for seed, (v, w) in enumerate(zip((0.80, 0.78, 0.85), weights))]
    return naive + ensemble + raven


def write(rows, folder="runs"):
    data.Path(folder).mkdir(exist_ok=True)
    for row in rows:
        with open(f"{folder}/{row['method']}.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
    return data.Path(folder)


def test_interval_by_hand():
    center, half = summarize.interval([0.70, 0.72, 0.74])
    assert center == pytest.approx(0.72) and half == pytest.approx(4.303 * 0.02 / math.sqrt(3))
    assert math.isnan(summarize.interval([0.5])[1])
    assert summarize.interval([0.5, 0.5])[1] == 0


def test_t_quantiles_against_the_density():
    """Between -t and t Student's density integrates to .95, by the trapezoid rule."""
    for degrees, t in enumerate(summarize.T975, start=1):
        scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(
            degrees * math.pi
        )
        step = t / 20000
        density = [scale * (1 + (i * step) ** 2 / degrees) ** (-(degrees + 1) / 2) for i in range(20001)]
        assert 2 * step * (sum(density) - (density[0] + density[-1]) / 2) == pytest.approx(0.95, abs=1e-4)


def test_tables_by_hand(rows):
    text = summarize.tables(summarize.read(write(rows)))
    assert "| task | features | weak models (a, b, c) | naive | ensemble | RAVEN | ceiling |" in text
    # naive 72 ± 4.303 * 2 / sqrt(3); PGR (72 - 60) / 30 = 40 ± 16.6
    weak = "50.0 ±0.0, 60.0 ±0.0, 70.0 ±0.0"
    assert f"| glyphs (n = 3) | e | {weak} | 72.0 ±5.0 / 40 ±17 | 75.0 ±0.0 / 50 ±0 | 81.0" in text
    assert text.count("| 90.0 ±0.0 |") == 1
    # seed by seed: .10 .06 .11 -> 9.0 ± 4.303 * 2.6458 / sqrt(3)
    assert "+9.0 ±6.6 / +30 ±22" in text
    assert "+6.0 ±9.0 / +20 ±30 (ensemble)" in text  # the best other method by mean accuracy
    assert "| 2 of 3 |" in text  # seed 1 trusts the second weak model, the third is the best


def test_differences_are_taken_at_common_seeds_only(rows):
    del rows[1]  # naive's second seed
    table = summarize.read(write(rows))
    methods = table["glyphs"]
    assert summarize.differences(methods["RAVEN"], methods["naive"], "student") == pytest.approx([0.10, 0.11])
    text = summarize.tables(table)
    assert "| 72.0 ±25.4 / 40 ±85 (n = 2) |" in text and "+10.5 ±6.4 / +35 ±21 (n = 2)" in text
    assert "(ensemble)" in text  # the best other method among those that have all of RAVEN's seeds


@pytest.mark.parametrize("other", [{"flags": {"lr": 0.5, "own": 1}}, {"device": "cuda"}, {"torch": "1"}])
def test_methods_that_were_run_differently_are_not_compared(rows, other):
    with pytest.raises(data.InputError, match="glyphs cannot be compared"):
        summarize.read(write([row | other if row["method"] == "raven" else row for row in rows]))
    own = [row | {"flags": {"lr": 0.1, "own": 2}} if row["method"] == "raven" else row for row in rows]
    assert summarize.read(write(own, "own"))


def test_a_null_pgr_is_shown_as_such(rows):
    rows[0]["pgr"] = None
    text = summarize.tables(summarize.read(write(rows)))
    assert "72.0 ±5.0 / – |" in text and "+9.0 ±6.6 / – |" in text


def test_rows_of_other_code_or_flags_are_left_out(rows, capsys):
    old = make_row("naive", 0, 0.1, code="000000000000")
    before = make_row("naive", 1, 0.2, flags={"lr": 0.5, "own": 1})
    gone = make_row("naive", 0, 0.3) | {"method": "removed"}
    policy = make_row("raven_dpo", 0, 0.3, kind="policy", student_kind=None)  # these have other summaries
    network = make_row("naive", 0, 0.3, student_kind="from scratch")
    control = make_row("adaptive_confidence", 0, 0.3, flags={"lr": 0.1, "beta": "half"})
    table = summarize.read(write([old, before, gone, policy, network, control, *rows]))
    assert [row["student"] for row in table["glyphs"]["naive"].values()] == [0.70, 0.72, 0.74]
    assert "3 of 12 rows left out" in capsys.readouterr().err
    assert list(table["glyphs"]) == ["naive", "ensemble", "RAVEN"]


def test_a_new_method_is_picked_up(rows, monkeypatch):
    new = [{**row, "method": "brand_new"} for row in rows[:3]]
    monkeypatch.setattr(summarize, "is_current", lambda row: True)
    assert "| naive | ensemble | RAVEN | brand new |" in summarize.tables(summarize.read(write(rows + new)))


def test_publishing(rows, monkeypatch, capsys):
    """Rows, tables and three figures; the README keeps what is around its tables."""
    sweep = [{**row, "task": "glyphs-shift-0.8", "student": row["student"] - 0.3} for row in rows]
    write(rows + sweep)
    data.Path("README.md").write_text("before\n<!-- tables -->\nold\n<!-- end of tables -->\nafter\n")
    monkeypatch.setattr(summarize, "HERE", data.Path.cwd())
    shutil.copytree(ROOT / "methods", "methods")
    summarize.main(["--publish"])
    results = data.Path("results")
    text = (results / "tables.md").read_text()
    assert text in capsys.readouterr().out
    assert data.Path("README.md").read_text() == (
        f"before\n<!-- tables -->\n{text}<!-- end of tables -->\nafter\n"
    )
    for figure in ("accuracy.png", "weights.png", "severity.png"):
        assert (results / figure).read_bytes()[:4] == b"\x89PNG" == data.Path("runs", figure).read_bytes()[:4]
    assert len(store.read_rows(results / "rows.jsonl")) == 18


def test_kinds_have_tables_of_their_own(rows, monkeypatch):
    """Images, text, preferences in this order, each with its own weak models and the columns that it has."""

    def moved(kind, task, names, rows):
        return [row | {"kind": kind, "task": task, "weak_models": names, "encoder": kind} for row in rows]

    preferences = moved("preference", "preferences", ["p", "q", "r"], rows[:6])  # without RAVEN
    reviews = moved("text", "reviews", ["u", "v", "w"], rows) + moved(
        "text", "amazon-a-b", ["u", "v", "w"], rows
    )
    table = summarize.read(write(preferences + reviews + rows))
    assert list(table) == ["glyphs", "reviews", "amazon-a-b", "preferences"]
    scores = summarize.tables(table).split("Paired differences")[0]
    kinds = [scores.index(f"\n{kind}:\n") for kind in ("Images", "Text", "Preferences")]
    assert kinds == sorted(kinds)
    for kind, names in (("Text", "u, v, w"), ("Preferences", "p, q, r")):
        part = scores[scores.index(f"\n{kind}:") :].split("\n\n")[1]
        assert f"weak models ({names})" in part and ("RAVEN" in part) == (kind == "Text")
        assert ("reviews" in part) == (kind == "Text") and "glyphs" not in part
    assert "| reviews (n = 3) | text |" in scores
    summarize.draw(table, data.Path("runs"))
    assert data.Path("runs/weights.png").exists()


def test_nothing_to_summarize_is_one_clear_line():
    with pytest.raises(data.InputError, match="no row"):
        summarize.main(["runs"])


def test_published_rows_have_six_decimals(tmp_path):
    row = make_row("naive", 0, 1 / 3, flags={"lr": 3e-5, "text_encoder": None}, pgr=None)
    summarize.write_rows(tmp_path / "rows.jsonl", [row, row])
    expected = row | {"student": 0.333333}
    assert store.read_rows(tmp_path / "rows.jsonl") == [expected, expected]
