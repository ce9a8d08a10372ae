"""Rows of the tasks in settings.py -> tables in the form of AdaptConf's paper, ablation of b, and a figure.

    python summarize_settings.py             # reads runs/*.jsonl, prints the tables, draws runs/settings.png
    python summarize_settings.py --publish   # also results/settings.*, and the tables in README.md

Intervals and paired differences as in summarize.py. KD is naive.py with the labels that the task hands out.
"""

import json
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
)

SETTINGS = {  # task -> name of the setting; published data, and KD / AugConf / AdaptConf in %
    "glyphs-distill": ("distillation", "CIFAR-100, ResNet20 → ResNet56: 73.81 / 73.86 / 74.17"),
    "cifar100-distill": ("distillation", "the same data and networks: 73.81 / 73.86 / 74.17"),
    "cifar100-distill-vgg": ("distillation", "the same data, VGG8 → VGG13: 76.41 / 76.55 / 76.84"),
    "glyphs-noisy-symmetric-0.2": (
        "noisy labels, symmetric 20 %",
        "CIFAR-10 and -100, mean of all noises: 91.20 / 91.04 / 91.45",
    ),
    "glyphs-noisy-asymmetric-0.4": ("noisy labels, asymmetric 40 %", "the same mean"),
    "glyphs-fewshot": ("few-shot", "miniImageNet, mean of 1-shot and 5-shot: 70.36 / 70.46 / 70.82"),
    "glyphs-transfer": ("transfer", "ImageNet, ResNet50 → ViT-B (MAE): 83.62 / 83.69 / 83.86"),
}
LABEL_FREE = ("glyphs-shift", "reviews-shift", "preferences-shift")  # also in the ablation
COLUMNS = {"naive": "KD", "confidence": "AugConf", "adaptive": "AdaptConf"}
CONTROLS = ("half", "one", "swapped", "select")
COLORS = dict(zip(["AdaptConf", *CONTROLS], ["#ff7f0e", "#1f77b4", "#d62728", "#2ca02c", "#6a3d9a"]))


def wanted(row) -> bool:
    whole = row.get("network", "head") != "head"
    return (whole or row["task"] in LABEL_FREE) and row["supervision"] == "each" and row["method"] != "raven"


def column(row) -> str:
    key = row["flags"].get("beta", row["method"])
    return COLUMNS.get(key, key)


def scores(table: Table) -> Table:
    """The table with a task that has novel classes replaced by its 1-shot and 5-shot accuracies. Only seeds
    that all columns of a task have are kept."""
    expanded = {}
    for task, methods in table.items():
        common = set.intersection(*(set(rows) for rows in methods.values()))
        methods = {name: {seed: rows[seed] for seed in sorted(common)} for name, rows in methods.items()}
        if not any("few_shot" in row for rows in methods.values() for row in rows.values()):
            expanded[task] = methods
            continue
        for shots in ("1-shot", "5-shot"):

            def novel(row, shots=shots):
                own = {name: accuracy for name, (accuracy, _) in row["few_shot"]["test"][shots].items()}
                over_episodes = row["few_shot"]["test"][shots]["student"][1]
                return row | own | {"weak": [own["weak"]], "over_episodes": over_episodes}

            expanded[f"{task}, {shots}"] = {
                name: {seed: novel(row) for seed, row in rows.items()} for name, rows in methods.items()
            }
    return expanded


def accuracies(rows: dict[int, dict], key="student") -> str:
    return percent([mean(row[key]) if key == "weak" else row[key] for row in rows.values()])


def settings_table(table) -> str:
    lines = []
    for task, methods in table.items():
        known = SETTINGS.get(task.split(",")[0])
        if known is None or not set(COLUMNS.values()) <= methods.keys():
            continue
        kd, augconf, adaptconf = (methods[name] for name in COLUMNS.values())
        own = [accuracies(rows) for rows in (kd, augconf, adaptconf)]
        against = [percent(differences(adaptconf, other, "student"), sign="+") for other in (kd, augconf)]
        ends = [accuracies(kd, "weak"), accuracies(kd, "ceiling")]
        lines.append([f"{known[0]}: {task} (n = {len(kd)})", *ends, *own, *against, known[1]])
    header = ["setting", "teacher", "truth alone", *COLUMNS.values(), "AdaptConf − KD", "AdaptConf − AugConf"]
    return markdown([*header, "published: KD / AugConf / AdaptConf"], lines)


def ablation_table(table) -> str:
    choices = [COLUMNS["adaptive"], *CONTROLS]
    lines = []
    for task, methods in table.items():
        if "KD" not in methods or not set(CONTROLS) & methods.keys():
            continue
        gains = [differences(methods.get(name, {}), methods["KD"], "student") for name in choices]
        own = [percent(gain, sign="+") if gain else "–" for gain in gains]
        lines.append([f"{task} (n = {len(methods['KD'])})", accuracies(methods["KD"]), *own])
    names = ["adaptive", "half: 1/2", "one: 1", "swapped: 1 − b", "select: 0 or 1"]
    return markdown(["task", "b = 0 (KD, naive)", *names], lines)


def tables(table) -> str:
    table = scores(table)
    rows = [row for methods in table.values() for by_seed in methods.values() for row in by_seed.values()]
    widths = [100 * row["over_episodes"] for row in rows if "over_episodes" in row]
    episodes = f"\nFew-shot: over the 600 episodes of a seed, up to ±{max(widths):.1f}.\n" if widths else ""
    return f"""\
Test accuracy in %, mean ±95 % t-interval over n seeds; differences in points, paired by seed. "Truth alone":
the same student on true labels, without a teacher. The published numbers are of other data and, but for
cifar100-distill, other networks; they are the best on test of a run, ours those of its last epoch.
{episodes}
{settings_table(table)}

What b(x) does: the accuracy with b = 0, and what each choice of `--beta` adds to it, in points. The tasks
without a setting's name hand out no labels and train linear heads.

{ablation_table(table)}
"""


def draw(table, path: Path) -> None:
    """How often student and weak labels agree while it trains, and mean b where they do not, over epochs."""
    pyplot = plotting()
    tasks = [task for task in table if "AdaptConf" in table[task]]
    size = (1 + 1.9 * len(tasks), 4)
    figure, axes = pyplot.subplots(2, len(tasks), figsize=size, sharey="row", squeeze=False)
    for task, (above, below) in zip(tasks, axes.T):
        names = [name for name in COLORS if name in table[task]]
        for name in names:
            rows = table[task][name].values()
            for axis, key in ((above, "agreement_history"), (below, "disagreement_beta_history")):
                epochs = [[y for y in epoch if y is not None] for epoch in zip(*(row[key] for row in rows))]
                drawn = {x: interval(ys) for x, ys in enumerate(epochs, start=1) if ys}
                centers, halves = zip(*drawn.values())
                [line] = axis.plot(drawn.keys(), centers, color=COLORS[name], label=name, linewidth=1.2)
                low, high = ([c + sign * h for c, h in zip(centers, halves)] for sign in (-1, 1))
                axis.fill_between(drawn.keys(), low, high, color=COLORS[name], alpha=0.15, linewidth=0)
        n = len(table[task][names[0]])
        above.set_title(task.replace("-", "-\n", 2) if len(task) > 20 else task, fontsize=8)
        below.set(xlabel=f"epoch (n = {n})", ylim=(-0.03, 1.03))
    axes[0][0].set(ylabel="agreement", ylim=(-0.03, 1.03))
    axes[1][0].set_ylabel("mean b on disagreement")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path)
    print(path, file=sys.stderr)


def publish(table, text: str) -> None:
    """results/settings.{jsonl,md,png}, and the tables between the two marks in README.md."""
    folder = HERE / "results"
    rows = [row for methods in table.values() for by_seed in methods.values() for row in by_seed.values()]
    (folder / "settings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "settings.md").write_text(text)
    draw(table, folder / "settings.png")
    insert(HERE / "README.md", "settings", text)


def main(argv=None) -> None:
    args = parse_args(argv, __doc__)
    table = read(args.folder, wanted, column)
    table = {task: table[task] for task in [*SETTINGS, *sorted(table)] if task in table}
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
