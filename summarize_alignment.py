"""Rows of methods/raven_dpo.py -> table, samples and figure.

    python summarize_alignment.py             # reads runs/raven_dpo.jsonl, prints, draws a figure into runs/
    python summarize_alignment.py --publish   # also results/alignment.*, and the table in README.md

Intervals and paired differences as in summarize.py. There is no weak win rate and so no PGR: "recovered" is
(win rate - 1/2) / (ceiling's win rate - 1/2), where the ceiling is trained on the true preferences.
"""

import json
import sys
from pathlib import Path
from statistics import mean

import alignment
import data
import models
from summarize import HERE, interval, markdown, parse_args, percent

# Supervision -> name, colour. DPO-R has two controls, which differ from it in one flag.
NAMES = {
    "one": ("one reward model", "#888888"),
    "mean": ("ensemble", "#1f77b4"),
    "raven": ("DPO-R", "#6a3d9a"),
    "equal": ("DPO-R, equal weights", "#ff7f0e"),
    "code": ("DPO-R, code's form", "#d62728"),
    "gold": ("ceiling", "black"),
}
RECIPE = ("epochs", "lr", "batch_size", "beta", "encoder_steps", "policy")  # flags that all must share


def variant(row) -> str:
    """The key of NAMES."""
    if row["supervision"] != "raven":
        return row["supervision"]
    if row["flags"]["form"] == "code":
        return "code"
    return "raven" if row["flags"]["weight_lr"] else "equal"


def read(folder: Path, task: str) -> dict[str, dict[int, dict]]:
    """The rows of FOLDER/raven_dpo.jsonl on the task as table[variant][seed]; of each variant those with the
    latest flags and the code as it stands. Raises InputError where the variants were not run alike."""
    code = alignment.code_hash(HERE / "methods" / "raven_dpo.py")
    rows = [row for row in models.read_rows(folder / "raven_dpo.jsonl") if row["code"] == code]
    rows = [row for row in rows if row["task"] == task]
    latest = {variant(row): (row["torch"], row["device"], row["flags"]) for row in rows}
    table = {name: {} for name in NAMES if name in latest}
    for row in sorted(rows, key=lambda row: row["seed"]):
        if latest[variant(row)] == (row["torch"], row["device"], row["flags"]):
            table[variant(row)][row["seed"]] = row
    recipes = {(torch, device, *map(flags.get, RECIPE)) for torch, device, flags in latest.values()}
    if len(recipes) > 1:
        raise data.InputError(f"{folder}: rows that cannot be compared: {' and '.join(map(str, recipes))}")
    return table


def common(rows, others, figure) -> list[float]:
    """figure(row, other row) at the seeds that both have."""
    return [figure(row, others[seed]) for seed, row in rows.items() if seed in others]


def recovered(row, ceiling) -> float | None:
    """None where the ceiling's win rate is not clearly above one half."""
    above = ceiling["win_rate"] - 0.5
    return (row["win_rate"] - 0.5) / above if above > ceiling["win_interval"] else None


def plain(numbers: list[float], digits: int) -> str:
    """ "0.123 ±0.045"."""
    return percent([number / 100 for number in numbers], digits)


def tables(table) -> str:
    some = max(table.values(), key=len)
    first, lines = next(iter(some.values())), []
    measured = [("gold_reward", 2), ("kl", 3), ("length", 1), ("well_formed", 2)]
    before = {key: plain([row[f"{key}_before"] for row in some.values()], digits)
              for key, digits in measured if key != "kl"}  # fmt: skip
    lines.append(["before training", "50", "", "", *(before.get(key, "0") for key, _ in measured)])
    for name, rows in table.items():
        wins = percent([row["win_rate"] for row in rows.values()])
        gap = common(rows, table.get("gold", {}), recovered)
        to_mean = common(rows, table.get("mean", {}), lambda a, b: a["win_rate"] - b["win_rate"])
        differences = percent(to_mean, 1, "+") if to_mean and name != "mean" else ""
        figures = [plain([row[key] for row in rows.values()], digits) for key, digits in measured]
        cells = [percent(gap, 0) if gap and name != "gold" else "", differences, *figures]
        lines.append([f"{NAMES[name][0]} (n = {len(rows)})", wins, *cells])
    header = ["preferences of", "win rate", "recovered", "win rate − ensemble's"]
    header += ["gold reward", "KL per token", "tokens", "well-formed"]
    models_header, models_lines = ["reward model", "accuracy on the pairs"], []
    learned = [name for name in ("raven", "code") if name in table]
    for m, reward_model in enumerate(first["reward_models"]):
        weights = [plain([row["weights"][m] for row in table[name].values()], 2) for name in learned]
        accuracy = percent([row["reward_accuracy"][m] for row in some.values()])
        models_lines.append([reward_model, accuracy, *weights])
    models_header += [f"weight in {NAMES[name][0]}" for name in learned]
    half = 100 * mean(row["win_interval"] for row in some.values())
    easy = percent([row["easy_fraction"] for row in some.values()])
    return f"""\
{first["task"]}: win rate in % by gold reward against the policy before training, on
{first["n_test"]} held-out prompts; mean ±95 % t-interval over n seeds (of one seed, over prompts:
±{half:.1f}). Recovered: (win rate − 1/2) / (ceiling − 1/2) in %. Differences are paired by seed. KL to the
policy before training, in nats. All reward models rank {easy} % of the pairs alike.

{markdown(header, lines)}

{markdown(models_header, models_lines)}
"""


def samples(table) -> str:
    """The first prompts of the first seed: before, and after training on each kind of preferences."""
    parts = [
        "What the policy writes for the first held-out prompts, at the first seed; gold reward in brackets:"
    ]
    rows = {name: next(iter(by_seed.values())) for name, by_seed in table.items()}
    for i, sample in enumerate(next(iter(rows.values()))["samples"]):
        lines = [f"before [{sample['gold_before']:.2f}]: {sample['before']}"]
        for name, row in rows.items():
            after = row["samples"][i]
            lines.append(f"{NAMES[name][0]} [{after['gold_after']:.2f}]: {after['after']}")
        parts.append(f"    {sample['prompt']}\n" + "\n".join(f"        {line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def draw(table, path: Path) -> None:
    """Win rate per variant; gold reward against KL; DPO-R's weights over steps. A dot or line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    small = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150}
    pyplot.rcParams.update(small | {"figure.constrained_layout.use": True, "legend.frameon": False})
    figure, (wins, frontier, weights) = pyplot.subplots(1, 3, figsize=(10.5, 3))
    names = list(table)
    for y, (name, rows) in enumerate(table.items()):
        label, color = NAMES[name]
        rates = [row["win_rate"] for row in rows.values()]
        wins.plot(rates, [y - 0.25] * len(rates), ".", color=color, alpha=0.4, markersize=4)
        center, half = interval(rates)
        wins.errorbar(center, y, xerr=half, fmt="o", color=color, markersize=4, capsize=2)
        kl, gold = ([row[key] for row in rows.values()] for key in ("kl", "gold_reward"))
        frontier.plot(kl, gold, "o", color=color, alpha=0.7, markersize=4, label=label)
    some = max(table.values(), key=len)
    frontier.plot(0, mean(row["gold_reward_before"] for row in some.values()), "k+", label="before training")
    wins.axvline(0.5, color="black", linewidth=1, linestyle=":")
    wins.set(xlabel=f"win rate (n = {len(some)} seeds)", ylim=(len(names) - 0.5, -0.7))
    wins.set_yticks(range(len(names)), [NAMES[name][0] for name in names])
    frontier.set(xlabel="KL per token (nats)", ylabel="gold reward")
    frontier.legend(fontsize=7)
    for row in table.get("raven", {}).values():
        for m, reward_model in enumerate(row["reward_models"]):
            history = [state["weights"][m] for state in row["history"]]
            label = reward_model if row is next(iter(table["raven"].values())) else None
            weights.plot(
                [state["step"] for state in row["history"]], history, f"C{m}", alpha=0.7, label=label
            )
    weights.set(xlabel="step", ylabel="weight in DPO-R", ylim=(-0.03, 1.03))
    if "raven" in table:
        weights.legend(title="reward model of", fontsize=7)
    figure.savefig(path)
    pyplot.close(figure)
    print(path, file=sys.stderr)


def publish(table, text: str) -> None:
    """results/alignment.{jsonl,md,png}, and the table between the two marks in README.md."""
    folder, readme = HERE / "results", HERE / "README.md"
    folder.mkdir(exist_ok=True)
    rows = [row for by_seed in table.values() for row in by_seed.values()]
    (folder / "alignment.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "alignment.md").write_text(f"{text}\n{samples(table)}")
    draw(table, folder / "alignment.png")
    start, end = "<!-- alignment -->\n", "<!-- end of alignment -->"
    before, after = (readme.read_text().split(mark) for mark in (start, end))
    readme.write_text(f"{before[0]}{start}{text}{end}{after[1]}")


def main(argv=None) -> None:
    args = parse_args(argv)
    tasks = [task for task in alignment.TASKS if read(args.folder, task)]
    if not tasks:
        raise data.InputError(f"no row of the present code in {args.folder}/raven_dpo.jsonl")
    for task in tasks:
        table = read(args.folder, task)
        text = tables(table)
        print(f"{text}\n{samples(table)}")
        draw(table, args.folder / f"alignment-{task}.png")
    if args.publish:
        publish(read(args.folder, alignment.TASKS[0]), tables(read(args.folder, alignment.TASKS[0])))


if __name__ == "__main__":
    try:
        main()
    except (data.InputError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2)
