"""Rows of the tasks in settings.py -> tables in the form of AdaptConf's paper, ablation of b, and a figure.

    python summarize_settings.py             # reads runs/*.jsonl, prints the tables, draws runs/settings.png
    python summarize_settings.py --publish   # also results/settings.*, and the tables in README.md

Intervals and paired differences as in summarize.py. KD is naive.py with the labels that the task hands out.
"""

import math
import re
import sys
from pathlib import Path
from statistics import mean

import data
from summarize import (
    HERE,
    Table,
    differences,
    insert,
    interval,
    markdown,
    parse_args,
    percent,
    plotting,
    read,
    write_rows,
)

NOISY = "CIFAR-10 and -100, mean of all noises, top-1 and top-5 mixed: 91.20 / 91.04 / 91.45"
SETTINGS = {  # task -> name of the setting; published data, and KD / AugConf / AdaptConf in %
    "glyphs-distill": ("distillation", "CIFAR-100, ResNet20 → ResNet56: 73.81 / 73.86 / 74.17"),
    "cifar100-distill": ("distillation", "CIFAR-100, ResNet20 → ResNet56: 73.81 / 73.86 / 74.17"),
    "cifar100-distill-vgg": ("distillation", "CIFAR-100, VGG8 → VGG13: 76.41 / 76.55 / 76.84"),
    "glyphs-noisy-symmetric": ("noisy labels", NOISY),
    "glyphs-noisy-asymmetric": ("noisy labels", NOISY),
    "glyphs-fewshot": ("few-shot", "miniImageNet, mean of 1-shot and 5-shot: 70.36 / 70.46 / 70.82"),
    "glyphs-transfer": ("transfer", "ImageNet, ResNet50 → ViT-B (MAE): 83.62 / 83.69 / 83.86"),
}
LABEL_FREE = ("glyphs-shift", "reviews-shift", "preferences-shift")  # also in the ablation
PAIRS = (("AugConf", "KD"), ("AdaptConf", "KD"), ("AdaptConf", "AugConf"))
COLUMNS = {"naive": "KD", "confidence": "AugConf", "adaptive": "AdaptConf"}
CONTROLS = ("half", "one", "swapped", "select")
COLORS = dict(zip(["AdaptConf", *CONTROLS], ["#ff7f0e", "#1f77b4", "#d62728", "#2ca02c", "#6a3d9a"]))


def belongs_here(row) -> bool:
    whole = row.get("student_kind", "head") != "head"
    return (whole or row["task"] in LABEL_FREE) and row["supervision"] == "each" and row["method"] != "raven"


def column(row) -> str:
    key = row["flags"].get("beta", row["method"])
    return COLUMNS.get(key, key)


def setting(task: str) -> str:
    """The key of SETTINGS, of LABEL_FREE the task itself."""
    return re.sub(r"-[\d.]+$", "", task)


def order(task: str) -> tuple:
    return [*SETTINGS, *LABEL_FREE].index(setting(task)), task


def at_common_seeds(table: Table) -> Table:
    """The table in the order of SETTINGS, with the seeds that all columns of a task have. Raises InputError
    where there are none."""
    result = {}
    for task in sorted(table, key=order):
        seeds = set.intersection(*(set(rows) for rows in table[task].values()))
        if not seeds:
            raise data.InputError(f"{task}: no seed that {', '.join(table[task])} have in common")
        result[task] = {name: {seed: rows[seed] for seed in seeds} for name, rows in table[task].items()}
    return result


def scores(table: Table) -> Table:
    """The table with a task that has novel classes replaced by its 1-shot and 5-shot accuracies."""
    expanded = {}
    for task, methods in table.items():
        rows = [row for by_seed in methods.values() for row in by_seed.values()]
        if "few_shot" not in rows[0]:
            expanded[task] = methods
            continue
        for shots in ("1-shot", "5-shot"):

            def novel(row, shots=shots):
                entry = row["few_shot"]["test"][shots]
                own = {name: accuracy for name, (accuracy, _) in entry.items()}
                return row | own | {"weak": [own["weak"]], "over_episodes": entry["student"][1]}

            expanded[f"{task} {shots}"] = {
                name: {seed: novel(row) for seed, row in by_seed.items()} for name, by_seed in methods.items()
            }
    return expanded


def accuracies(rows: dict[int, dict], key="student") -> str:
    return percent([mean(row[key]) if key == "weak" else row[key] for row in rows.values()])


def gain(methods, name: str, other: str) -> str:
    """Paired differences in points; "–" where either has not been run."""
    pairs = differences(methods.get(name, {}), methods.get(other, {}), "student")
    return percent(pairs, sign="+") if pairs else "–"


def comparison(methods, name: str, other: str) -> str:
    """The gain, with a word where its interval does not lie above zero."""
    pairs = differences(methods.get(name, {}), methods.get(other, {}), "student")
    center, half = interval(pairs) if pairs else (1, 0)
    return gain(methods, name, other) + ("" if center > half else ", not shown")


def settings_table(table) -> str:
    lines = []
    for task, methods in table.items():
        if setting(task.split()[0]) in LABEL_FREE:
            continue
        rows = next(iter(methods.values()))
        keys = [key for key in ("labels_alone", "ceiling") if key in next(iter(rows.values()))]
        name, published = SETTINGS[setting(task.split()[0])]
        flags = [row["flags"] for row in methods.get("AdaptConf", {}).values()][:1]
        name += "".join(f", T {f['temperature']:g}, ramp {f['beta_ramp']:g}" for f in flags)
        own = [accuracies(methods[each]) if each in methods else "–" for each in COLUMNS.values()]
        gains = [comparison(methods, *pair) for pair in PAIRS]
        ends = [accuracies(rows, "weak"), " / ".join(accuracies(rows, key) for key in keys)]
        lines.append([f"{task} (n = {len(rows)}; {name})", *ends, *own, *gains, published])
    header = ["setting", "teacher", "labels alone", *COLUMNS.values(), *(" − ".join(pair) for pair in PAIRS)]
    return markdown([*header, "published: KD / AugConf / AdaptConf"], lines)


def ablation_table(table) -> str:
    choices = [COLUMNS["adaptive"], *CONTROLS]
    lines = []
    for task, methods in table.items():
        if "KD" in methods:
            gains = [gain(methods, choice, "KD") for choice in choices]
            lines.append([f"{task} (n = {len(methods['KD'])})", accuracies(methods["KD"]), *gains])
    names = ["adaptive", "half: 1/2", "one: 1", "swapped: 1 − b", "select: 0 or 1"]
    return markdown(["task", "b = 0 (KD, naive)", *names], lines)


def tables(table) -> str:
    table = scores(table)
    rows = [row for methods in table.values() for by_seed in methods.values() for row in by_seed.values()]
    widths = [100 * row["over_episodes"] for row in rows if "over_episodes" in row]
    episodes = f"Few-shot: ±{max(widths):.1f} over the 600 episodes of a seed." if widths else ""
    return f"""\
Test accuracy in %, mean ±95 % t-interval over n seeds; differences in points, paired by seed. "Not shown":
the interval does not lie above zero, so that the first is not shown to beat the second. Labels alone: the
same student without a teacher; where labels are corrupted, on these / on the true ones. The published
numbers come from other data and networks, but for cifar100-distill; those of CIFAR-100 are from each run's
best epoch on test, ours from the last. {episodes}

{settings_table(table)}

What b does: the accuracy with b = 0, and what each choice of `--beta` adds to it, in points. Every b grows
from 0 over the share of epochs that the first table calls ramp. The tasks that are not in that table, the
shifted ones of those without labels, train linear heads, with T = 8 and a ramp of .5. No control was tuned.

{ablation_table(table)}
"""


def draw(table, path: Path) -> None:
    """How often student and weak labels agree while it trains, and mean b where they do not, over epochs: the
    mean of the seeds, and a thin line for each."""
    pyplot = plotting()
    tasks = [task for task in table if "AdaptConf" in table[task]]
    blocks = [tasks[i : i + 4] for i in range(0, len(tasks), 4)]
    size = (1 + 2.1 * len(blocks[0]), 3.6 * len(blocks))
    figure, axes = pyplot.subplots(2 * len(blocks), len(blocks[0]), figsize=size, sharey=True, squeeze=False)
    for block, above, below in zip(blocks, axes[::2], axes[1::2]):
        for task, *panels in zip(block, above, below):
            for name, color in COLORS.items():
                rows = table[task].get(name, {}).values()
                for key, axis in zip(("agreement_history", "disagreement_beta_history"), panels):
                    # None, of an epoch without any disagreement, leaves a gap in the line.
                    histories = [[math.nan if y is None else y for y in row[key]] for row in rows]
                    epochs = range(1, 1 + max(map(len, histories), default=0))
                    for history in histories:
                        axis.plot(epochs, history, color=color, alpha=0.3, linewidth=0.6)
                    means = [mean(values) for values in zip(*histories)]
                    axis.plot(epochs, means, color=color, label=name, linewidth=1.4)
            panels[0].set_title(f"{task} (n = {len(table[task]['AdaptConf'])})", fontsize=7.5)
            panels[1].set_xlabel("epoch")
            for axis in panels:
                axis.xaxis.get_major_locator().set_params(integer=True)
        above[0].set(ylabel="agreement", ylim=(-0.03, 1.03))
        below[0].set_ylabel("b on disagreement")
        for axis in [*above[len(block) :], *below[len(block) :]]:
            axis.remove()
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path)
    print(path, file=sys.stderr)


def publish(table, text: str) -> None:
    """results/settings.{jsonl,md,png}, and the tables between the two marks in README.md."""
    folder = HERE / "results"
    rows = [row for methods in table.values() for by_seed in methods.values() for row in by_seed.values()]
    write_rows(folder / "settings.jsonl", rows)
    (folder / "settings.md").write_text(text)
    draw(table, folder / "settings.png")
    insert(HERE / "README.md", "settings", text)


def main(argv=None) -> None:
    args = parse_args(argv, __doc__)
    table = at_common_seeds(read(args.folder, belongs_here, column))
    if not table:
        raise data.InputError(f"no row of the present code in {args.folder}/*.jsonl: ./run_all.sh settings")
    text = tables(table)
    print(text)
    draw(table, args.folder / "settings.png")
    if args.publish:
        publish(table, text)


if __name__ == "__main__":
    try:
        main()
    except (data.InputError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2)
