"""Rows of methods/raven_dpo.py -> table, samples and figure.

    python summarize_alignment.py             # reads runs/raven_dpo.jsonl, prints, draws a figure into runs/
    python summarize_alignment.py --publish   # also results/alignment.*, and the table in README.md

Intervals and paired differences as in summarize.py. There is no weak win rate and so no PGR: "recovered" is
(win rate - 1/2) / (ceiling's win rate - 1/2), where the ceiling is trained on the true preferences.
"""

import sys
from pathlib import Path
from statistics import mean

import alignment
import data
import store
from summarize import HERE, insert, interval, markdown, parse_args, percent, plotting, write_rows

# Supervision -> name, colour. DPO-R has two controls, which differ from it in one flag.
NAMES = {
    "one": ("one reward model", "#888888"),
    "mean": ("ensemble", "#1f77b4"),
    "raven": ("DPO-R", "#6a3d9a"),
    "equal": ("DPO-R, equal weights", "#ff7f0e"),
    "code": ("DPO-R, code's form", "#d62728"),
    "gold": ("ceiling", "black"),
}
RECIPE = ("epochs", "batch_size", "beta", "encoder_steps", "policy")  # flags that all must share
JUDGES = {
    "reviews-dpo": "what the generator knows",
    "hh-helpful-harmless": "a head trained on the target's labels; well-formed: not empty",
}


def variant(row) -> str:
    """The key of NAMES."""
    if row["supervision"] != "raven":
        return row["supervision"]
    if row["flags"]["form"] == "code":
        return "code"
    return "raven" if row["flags"]["weight_lr"] else "equal"


def setting(row) -> tuple:
    return row["torch"], row["device"], row["data"], row["flags"]


def read(folder: Path, task: str) -> dict[str, dict[int, dict]]:
    """The rows of FOLDER/raven_dpo.jsonl on the task as table[variant][seed]; of each variant those with the
    latest flags and the code as it stands, with a word on stderr about others. Raises InputError where the
    variants were not run alike."""
    code = alignment.code_hash(HERE / "methods" / "raven_dpo.py")
    rows = [row for row in store.read_rows(folder / "raven_dpo.jsonl") if row["task"] == task]
    latest = {variant(row): setting(row) for row in rows if row["code"] == code}
    kept = [row for row in rows if row["code"] == code and latest[variant(row)] == setting(row)]
    if len(kept) < len(rows):
        print(f"{folder}: {len(rows) - len(kept)} of {len(rows)} rows left out", file=sys.stderr)

    def values(names, *keys):
        return {tuple(map(latest[name][-1].get, keys)) for name in names if name in latest}

    alike = [{(*machine, *map(flags.get, RECIPE)) for *machine, flags in latest.values()}]
    # The ceiling has a rate of its own: what suits weak preferences leaves it undertrained.
    alike.append(values(NAMES.keys() - {"gold"}, "lr"))
    alike += [values(("raven", "equal", "code"), "easy_phase"), values(("raven", "code"), "weight_lr")]
    if max(map(len, alike)) > 1:
        raise data.InputError(f"{folder}: rows of {task} cannot be compared: their flags differ")
    table = {name: {} for name in NAMES if name in latest}
    for row in sorted(kept, key=lambda row: row["seed"]):
        table[variant(row)][row["seed"]] = row
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
    before = [
        plain([first.get(f"{key}_before", 0)], digits if key != "kl" else 0) for key, digits in measured
    ]
    again = f"{100 * first['win_rate_before']:.1f}"
    lines.append(["before training, sampled again", again, "", "", *before])
    for name, rows in table.items():
        gap = common(rows, table.get("gold", {}), recovered)
        to_mean = common(rows, table.get("mean", {}), lambda a, b: a["win_rate"] - b["win_rate"])
        cells = [
            (gap, 0, "") if name != "gold" else ([], 0, ""),
            (to_mean, 1, "+") if name != "mean" else ([], 0, ""),
        ]
        cells = [percent(*cell) + other_n(cell[0], rows) if cell[0] else "" for cell in cells]
        figures = [plain([row[key] for row in rows.values()], digits) for key, digits in measured]
        wins = percent([row["win_rate"] for row in rows.values()])
        lines.append([f"{NAMES[name][0]} (n = {len(rows)})", wins, *cells, *figures])
    header = ["preferences of", "win rate", "recovered", "win rate − ensemble's"]
    header += ["gold reward", "KL per token", "tokens", "well-formed"]
    models_header, models_lines = ["reward model", "accuracy on the pairs"], []
    learned = [name for name in ("raven", "code") if name in table]
    for m, reward_model in enumerate(first["reward_models"]):
        weights = [plain([row["weights"][m] for row in table[name].values()], 2) for name in learned]
        accuracy = percent([row["reward_accuracy"][m] for row in some.values()])
        models_lines.append([reward_model, accuracy, *weights])
    models_header += [f"weight in {NAMES[name][0]}" for name in learned]
    task, n = first["task"], first["n_test"]
    half = 100 * mean(row["win_interval"] for row in some.values())
    easy = percent([row["easy_fraction"] for row in some.values()])
    return f"""\
{task}: win rate in % by gold reward ({JUDGES[task]}) against the policy before
training; mean ±95 % t-interval over n seeds. All runs share {n} held-out prompts and the responses before
training, which leaves up to about ±{half:.1f} in a win rate, less in differences; these are paired by seed.
Recovered: (win rate − 1/2) / (ceiling − 1/2) in %. KL to the policy before training, in nats. All
reward models rank {easy} % of the pairs alike.

{markdown(header, lines)}

{markdown(models_header, models_lines)}
"""


def other_n(numbers, rows) -> str:
    return f" (n = {len(numbers)})" if len(numbers) != len(rows) else ""


def samples(table) -> str:
    """The first prompts of the first seed: before, and after training on each kind of preferences."""
    parts = [
        "What the policy writes for the first held-out prompts, at the first seed; gold reward in brackets:"
    ]
    written = {}
    for name, by_seed in table.items():
        row = next(iter(by_seed.values()))
        written[NAMES[name][0]] = row.get("samples") or row["policies"][0]["samples"]
        if "policies" in row:
            written[f"one reward model, {row['reward_models'][0]}"] = written.pop(NAMES[name][0])
    for same in zip(*written.values()):
        lines = [f"before [{same[0]['gold_before']:.2f}]: {same[0]['before']}"]
        lines += [f"{name} [{each['gold_after']:.2f}]: {each['after']}" for name, each in zip(written, same)]
        parts.append(f"    {same[0]['prompt']}\n" + "\n".join(f"        {line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def draw(table, path: Path) -> None:
    """Win rate per variant; gold reward against KL; DPO-R's weights over steps. A dot or line per seed."""
    pyplot = plotting()
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
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    rows = [row for by_seed in table.values() for row in by_seed.values()]
    write_rows(folder / "alignment.jsonl", rows)
    (folder / "alignment.md").write_text(f"{text}\n{samples(table)}")
    draw(table, folder / "alignment.png")
    insert(HERE / "README.md", "alignment", text)


def main(argv=None) -> None:
    args = parse_args(argv, __doc__)
    found = {task: table for task in alignment.TASKS if (table := read(args.folder, task))}
    if not found:
        raise data.InputError(f"no row of the present code in {args.folder}/raven_dpo.jsonl")
    for task, table in found.items():
        print(f"{tables(table)}\n{samples(table)}")
        draw(table, args.folder / f"alignment-{task}.png")
    if args.publish:
        if "reviews-dpo" not in found:
            raise data.InputError("reviews-dpo is what is published, and there is no row of it")
        publish(found["reviews-dpo"], tables(found["reviews-dpo"]))


if __name__ == "__main__":
    try:
        main()
    except (data.InputError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2)
