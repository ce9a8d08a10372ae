import json
import shutil

import pytest
from conftest import ROOT

import alignment
import data
import summarize_alignment


def make_row(supervision, seed, win, **more):
    flags = {"epochs": 3, "lr": 0.1, "batch_size": 8, "beta": 0.5, "encoder_steps": 10, "policy": None}
    flags |= {"form": "paper", "weight_lr": 0.1, "easy_phase": 0.2 if supervision == "raven" else 1.0}
    sample = {
        "prompt": "p",
        "before": "b",
        "after": f"{supervision} {seed}",
        "gold_before": 0,
        "gold_after": win,
    }
    others = [{**sample, "prompt": f"p{i}", "after": f"{supervision} {seed} {i}"} for i in (1, 2)]
    weights = [[1 / 3] * 3, [0.2, 0.3, 0.5]]
    return {
        "method": "raven_dpo",
        "task": "reviews-dpo",
        "seed": seed,
        "supervision": supervision,
        "torch": "0",
        "device": "cpu",
        "data": None,
        "code": alignment.code_hash(ROOT / "methods" / "raven_dpo.py"),
        "flags": flags,
        "kind": "policy",
        "reward_models": ["a", "b", "c"],
        "reward_accuracy": [0.5, 0.6, 0.7],
        "easy_fraction": 0.4,
        "n_test": 600,
        "win_rate": win,
        "win_interval": 0.04,
        "win_rate_before": 0.512,
        "gold_reward": win - 0.5,
        "gold_reward_before": -0.1,
        "kl": 0.1,
        "length": 20.0,
        "length_before": 19.0,
        "well_formed": 0.5,
        "well_formed_before": 0.4,
        "weights": weights[-1],
        "history": [{"step": 10 * i, "weights": each} for i, each in enumerate(weights)],
        "samples": [sample, *others],
    } | more


@pytest.fixture
def rows():
    """Win rates of the ensemble .60 .62 .64, of DPO-R .65 .65 .65, of the ceiling .80 .80 .80."""
    wins = {"mean": (0.60, 0.62, 0.64), "raven": (0.65, 0.65, 0.65), "gold": (0.80, 0.80, 0.80)}
    return [make_row(name, seed, win) for name in wins for seed, win in enumerate(wins[name])]


def write(rows):
    data.Path("runs").mkdir(exist_ok=True)
    data.Path("runs/raven_dpo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data.Path("runs")


def test_the_table_by_hand(rows):
    text = summarize_alignment.tables(summarize_alignment.read(write(rows), "reviews-dpo"))
    # .62 ± 4.303 * .02 / sqrt(3); recovered (.10, .12, .14) / .30; DPO-R - ensemble .05 .03 .01
    assert "| ensemble (n = 3) | 62.0 ±5.0 | 40 ±17 |  | 0.12 ±0.05 | 0.100 ±0.000 | 20.0 ±0.0 |" in text
    assert "| DPO-R (n = 3) | 65.0 ±0.0 | 50 ±0 | +3.0 ±5.0 | 0.15 ±0.00 |" in text
    assert "| ceiling (n = 3) | 80.0 ±0.0 |  | +18.0 ±5.0 |" in text
    assert "| before training, sampled again | 51.2 |  |  | −0.10 | 0 | 19.0 | 0.40 |" in text
    for line in (
        "| a | 50.0 ±0.0 | 0.20 ±0.00 |",
        "| b | 60.0 ±0.0 | 0.30",
        "| c | 70.0 ±0.0 | 0.50 ±0.00 |",
    ):
        assert line in text
    caption = text.split("|")[0].replace("\n", " ")
    assert "600 held-out prompts" in caption and "about ±4.0 in" in caption
    assert "rank 40.0 ±0.0 % of the pairs" in caption


def test_controls_stand_beside_dpo_r(rows):
    def changed(**flags):
        return [row | {"flags": row["flags"] | flags} for row in rows if row["supervision"] == "raven"]

    table = summarize_alignment.read(write(rows + changed(weight_lr=0) + changed(form="code")), "reviews-dpo")
    assert list(table) == ["mean", "raven", "equal", "code", "gold"] and all(
        len(t) == 3 for t in table.values()
    )
    text = summarize_alignment.tables(table)
    assert "DPO-R, equal weights (n = 3)" in text and "weight in DPO-R, code's form |" in text


def test_partial_rows_show_their_own_n(rows):
    """Pairing is by seed, also where seeds are missing on either side."""
    some = [row for row in rows if (row["supervision"], row["seed"]) not in {("mean", 0), ("gold", 1)}]
    text = summarize_alignment.tables(summarize_alignment.read(write(some), "reviews-dpo"))
    # recovered at seed 2 only: .14 / .30; DPO-R - ensemble at seeds 1 and 2: .03 .01
    assert "| ensemble (n = 2) | 63.0 ±12.7 | 47 (n = 1) |" in text
    assert "| DPO-R (n = 3) | 65.0 ±0.0 | 50 ±0 (n = 2) | +2.0 ±12.7 (n = 2) |" in text


def test_policies_of_single_reward_models_are_named(rows):
    one = make_row("one", 0, 0.6)
    one["policies"] = [{"samples": one.pop("samples")}, {}, {}]
    text = summarize_alignment.samples(summarize_alignment.read(write([one, *rows]), "reviews-dpo"))
    assert "one reward model, a [0.60]: one 0\n" in text and "DPO-R [0.65]: raven 0 1\n" in text


def test_only_rows_of_the_present_code_that_were_run_alike(rows, capsys):
    old = [make_row("one", 0, 0.9, code="0"), make_row("mean", 3, 0.9, flags={"lr": 1, "form": "paper"})]
    table = summarize_alignment.read(write(old + rows), "reviews-dpo")
    assert list(table) == ["mean", "raven", "gold"] and len(table["mean"]) == 3
    assert "2 of 11 rows left out" in capsys.readouterr().err
    assert not summarize_alignment.read(write(rows), "hh-helpful-harmless")
    flags, dpo_r = rows[0]["flags"], rows[3]["flags"]
    unlike = [
        make_row("one", 0, 0.5, **other) for other in ({"device": "cuda"}, {"torch": "1"}, {"data": "d"})
    ]
    unlike += [make_row("one", 0, 0.5, flags=flags | {"lr": 1})]
    unlike += [make_row("raven", 0, 0.5, flags=dpo_r | {"weight_lr": 0, "easy_phase": 0.5})]
    unlike += [make_row("raven", 0, 0.5, flags=dpo_r | {"form": "code", "weight_lr": 9})]
    for row in unlike:
        with pytest.raises(data.InputError, match="cannot be compared"):
            summarize_alignment.read(write([*rows, row]), "reviews-dpo")


def test_a_ceiling_within_noise_recovers_nothing(rows):
    ceiling, row = make_row("gold", 0, 0.53), make_row("mean", 0, 0.52)
    assert summarize_alignment.recovered(row, ceiling) is None
    assert summarize_alignment.recovered(row, ceiling | {"win_rate": 0.6}) == pytest.approx(0.2)
    without = summarize_alignment.read(write([r for r in rows if r["supervision"] != "gold"]), "reviews-dpo")
    assert "| ensemble (n = 3) | 62.0 ±5.0 |  |  |" in summarize_alignment.tables(without)


def test_publishing(rows, monkeypatch, capsys):
    write(rows)
    old = "before\n<!-- alignment -->\nold\n<!-- end of alignment -->\nafter\n"
    data.Path("README.md").write_text(old)
    monkeypatch.setattr(summarize_alignment, "HERE", data.Path.cwd())
    shutil.copytree(ROOT / "methods", "methods")
    summarize_alignment.main(["--publish"])
    report = data.Path("results/alignment.md").read_text()
    table = data.Path("README.md").read_text().split("<!-- alignment -->\n")[1].split("<!-- end")[0]
    assert report.startswith(table) and report in capsys.readouterr().out
    assert "before [0.00]: b" in report and "ceiling [0.80]: gold 0" in report
    for figure in ("results/alignment.png", "runs/alignment-reviews-dpo.png"):
        assert data.Path(figure).read_bytes()[:4] == b"\x89PNG"
    assert len(data.Path("results/alignment.jsonl").read_text().splitlines()) == 9


def test_other_tasks_are_shown_but_not_published(rows, capsys):
    write([row | {"task": "hh-helpful-harmless"} for row in rows])
    with pytest.raises(data.InputError, match="no row of it"):
        summarize_alignment.main(["--publish"])
    assert "a head trained on the target's labels" in capsys.readouterr().out


def test_nothing_to_summarize_is_one_clear_line():
    with pytest.raises(data.InputError, match="no row"):
        summarize_alignment.main(["runs"])
