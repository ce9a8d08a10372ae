"""Rows -> tables (mean, 95 % interval over seeds, paired differences) and figures.

    python summarize.py                    # reads runs/*.jsonl, prints the tables, draws the figures into runs/
    python summarize.py --publish          # also writes results/ and the tables in README.md

Every interval is a t-interval over seeds. Methods share data, splits, weak models and initial student at the same seed, so
differences are taken seed by seed before their interval is computed. Only rows of the code as it stands are counted.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import mean, stdev

import data
import models

HERE = Path(__file__).parent
NAMES = {
    "naive each": "naive",
    "naive mean": "ensemble",
    "adaptive_confidence each": "AdaptConf",
    "adaptive_confidence mean": "AdaptConf on ensemble",
    "raven weighted": "RAVEN",
}
# Quantile .975 of Student's t with 1, 2, ... 30 degrees of freedom; beyond, the last serves (it is a little too wide).
T975 = [
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
    2.080,
    2.074,
    2.069,
    2.064,
    2.060,
    2.056,
    2.052,
    2.048,
    2.045,
    2.042,
]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval; the half-width of a single value is NaN."""
    n = len(values)
    return mean(values), T975[min(n - 1, 30) - 1] * stdev(values) / math.sqrt(n) if n > 1 else math.nan


def read(folder: Path) -> dict[str, dict[str, dict[int, dict]]]:
    """table[task][method][seed] = row, of every FOLDER/*.jsonl.

    Left out, with a word on stderr: rows of other code, and rows of other flags than the method's latest row has there.
    """
    rows = [row for path in sorted(folder.glob("*.jsonl")) for row in models.read_rows(path)]
    setting = {
        (row["task"], name(row)): comparable(row) for row in rows if is_current(row)
    }  # the last one stays
    kept = [row for row in rows if setting.get((row["task"], name(row))) == comparable(row)]
    if len(kept) < len(rows):
        print(
            f"{folder}: {len(rows) - len(kept)} of {len(rows)} rows left out (other code or flags)",
            file=sys.stderr,
        )
    table = {}
    for row in sorted(kept, key=lambda row: (task_order(row["task"]), method_order(row), row["seed"])):
        table.setdefault(row["task"], {}).setdefault(name(row), {})[row["seed"]] = row
    return table


def is_current(row):
    path = HERE / "methods" / f"{row['method']}.py"
    return path.exists() and row["code"] == models.code_hash(path)


def comparable(row):
    return [row[key] for key in ("code", "torch", "device", "flags")]


def name(row):
    known = f"{row['method']} {row['supervision']}"
    return NAMES.get(known, known.removesuffix(" each").replace("_", " "))


def method_order(row):
    return row["method"] != "naive", row["method"], row["supervision"]


def task_order(task):
    severity = data.severity(task)
    return math.inf if severity is None else severity, task


# ----------------------------------------------------------------------------------------------------- tables


def paired(rows, others, key):
    """The differences in `key` at the seeds that both have; empty where one of the values is null."""
    pairs = [(rows[seed][key], others[seed][key]) for seed in rows if seed in others]
    return [] if any(None in pair for pair in pairs) else [a - b for a, b in pairs]


def best_other(methods):
    """The method with the highest mean accuracy, RAVEN aside."""
    others = [method for method in methods if method != "RAVEN"]
    return max(
        others, key=lambda method: mean(row["student"] for row in methods[method].values()), default=None
    )


def top_weight_hits(rows):
    """How many of the rows have the largest weight on the weak model that is most accurate on test."""
    return sum(
        row["weights"].index(max(row["weights"])) == row["weak"].index(max(row["weak"]))
        for row in rows.values()
    )


def cell(accuracies, pgrs, sign=""):
    """ "85.1 ±0.4 / 61 ±2": accuracy in percent (differences: points) and PGR likewise, "–" where it is undefined."""
    texts = []
    for values, digits in ((accuracies, 1), (pgrs, 0)):
        if not values or None in values:
            texts.append("–")
            continue
        center, half = interval([100 * value for value in values])
        texts.append(f"{center:{sign}.{digits}f}" + ("" if math.isnan(half) else f" ±{half:.{digits}f}"))
    return " / ".join(texts)


def tables(table) -> str:
    """Two markdown tables, a line per task: accuracy and PGR; paired differences."""
    columns = list(dict.fromkeys(method for methods in table.values() for method in methods))

    def lines(header, body):
        return (
            "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *body]) + "\n"
        )

    scores, differences = [], []
    for task, methods in table.items():
        some = next(iter(methods.values())).values()
        seeds = {len(rows) for rows in methods.values()}
        label = f"{task} (n = {'–'.join(map(str, sorted(seeds)))})"
        weak = ", ".join(
            f"{100 * mean(accuracies):.1f}" for accuracies in zip(*(row["weak"] for row in some))
        )
        cells = [
            cell([row["student"] for row in methods[m].values()], [row["pgr"] for row in methods[m].values()])
            if m in methods
            else ""
            for m in columns
        ]
        ceiling, _ = interval([100 * row["ceiling"] for row in some])
        scores.append([label, weak, *cells, f"{ceiling:.1f}"])

        def difference(a, b):
            if a not in methods or b not in methods:
                return ""
            return cell(*(paired(methods[a], methods[b], key) for key in ("student", "pgr")), sign="+")

        best = best_other(methods)
        raven = methods.get("RAVEN", {})
        hits = f"{top_weight_hits(raven)} of {len(raven)}" if raven else ""
        differences.append(
            [
                label,
                *(difference(m, "naive") for m in columns if m != "naive"),
                f"{difference('RAVEN', best)} ({best})" if raven and best else "",
                hits,
            ]
        )
    return (
        "Accuracy in % / PGR in %, mean ± 95 % t-interval over n seeds:\n\n"
        + lines(["task", "weak models", *columns, "ceiling"], scores)
        + "\nPaired differences, accuracy in points / PGR in points; the last column counts the seeds in which RAVEN's largest"
        " weight is on the most accurate weak model:\n\n"
        + lines(
            [
                "task",
                *(f"{m} − naive" for m in columns if m != "naive"),
                "RAVEN − best other",
                "best weighted most",
            ],
            differences,
        )
    )


# ---------------------------------------------------------------------------------------------------- figures


def draw(table, folder: Path) -> None:
    """accuracy.png, weights.png and severity.png, as far as there are rows for them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 160}
    )
    methods = list(dict.fromkeys(method for by_method in table.values() for method in by_method))
    color = dict(
        zip(methods, ["#7f7f7f", "#1f77b4", "#ff7f0e", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2"])
    )
    color["RAVEN"] = "black"
    main_tasks = [task for task in table if not task.startswith("glyphs-shift-")]
    sweep = {data.severity(task): task for task in table if data.severity(task) is not None}
    if main_tasks:
        save(
            draw_accuracy(pyplot, {task: table[task] for task in main_tasks}, methods, color),
            folder / "accuracy.png",
        )
    if any("RAVEN" in table[task] for task in main_tasks):
        save(
            draw_weights(pyplot, {t: table[t]["RAVEN"] for t in main_tasks if "RAVEN" in table[t]}),
            folder / "weights.png",
        )
    if len(sweep) > 1:
        save(
            draw_severity(pyplot, {s: table[task] for s, task in sweep.items()}, methods, color),
            folder / "severity.png",
        )


def save(figure, path):
    figure.savefig(path, bbox_inches="tight")
    print(f"drawn: {path}", file=sys.stderr)


def draw_accuracy(pyplot, table, methods, color):
    """Figure (a): per task, each method's student between its weak models and the ceiling."""
    figure, axes = pyplot.subplots(
        1, len(table), figsize=(2.6 * len(table) + 0.6, 2.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (task, by_method) in zip(axes[0], table.items()):
        some = next(iter(by_method.values())).values()
        for accuracies in zip(*(row["weak"] for row in some)):
            weak_line = axis.axvline(mean(accuracies), color="#bbbbbb", linewidth=1, linestyle=":")
        ceiling_line = axis.axvline(
            mean(row["ceiling"] for row in some), color="black", linewidth=1, linestyle="--"
        )
        for position, method in enumerate(methods):
            values = [row["student"] for row in by_method.get(method, {}).values()]
            if values:
                center, half = interval(values)
                axis.plot(values, [position] * len(values), ".", color=color[method], alpha=0.3, markersize=4)
                axis.errorbar(
                    center, position, xerr=half, fmt="o", color=color[method], markersize=4, capsize=2
                )
        axis.set(title=f"{task} (n = {len(some)})", xlabel="test accuracy")
        axis.set_yticks(range(len(methods)), methods)
    axes[0, 0].invert_yaxis()
    figure.legend(
        [weak_line, ceiling_line],
        ["weak models", "ceiling"],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    return figure


def draw_weights(pyplot, table):
    """Figure (b): RAVEN's weights over epochs, each seed a line, beside the accuracy of each weak model on test."""
    figure, axes = pyplot.subplots(
        2,
        len(table),
        figsize=(2.6 * len(table), 3.6),
        squeeze=False,
        sharey="row",
        height_ratios=[2, 1],
        layout="constrained",
    )
    for (above, below), (task, rows) in zip(axes.T, table.items()):
        num_weak = len(next(iter(rows.values()))["weak"])
        names = (
            models.WEAK_MODELS
            if num_weak == len(models.WEAK_MODELS)
            else [str(m + 1) for m in range(num_weak)]
        )
        for m in range(num_weak):
            for i, row in enumerate(rows.values()):
                above.plot(
                    [weights[m] for weights in row["weight_history"]],
                    color=f"C{m}",
                    alpha=0.6,
                    linewidth=1,
                    label=names[m] if i == 0 else None,
                )
            center, half = interval([row["weak"][m] for row in rows.values()])
            below.bar(m, center, yerr=half, color=f"C{m}", capsize=2, width=0.7)
        above.set(title=f"{task} (n = {len(rows)})", xlabel="epoch", ylim=(-0.03, 1.03))
        below.set_xticks(range(num_weak), names)
    axes[0, 0].set_ylabel("RAVEN's weights")
    axes[1, 0].set_ylabel("test accuracy")
    axes[0, 0].legend(frameon=False, loc="center left")
    return figure


def draw_severity(pyplot, table, methods, color):
    """Figure (c): accuracy against shift severity."""
    figure, axis = pyplot.subplots(figsize=(5.2, 3.4), layout="constrained")

    def line(label, value_of, **style):
        points = [
            (severity, *interval([value_of(row) for row in by_method[method].values()]))
            for severity, by_method in sorted(table.items())
            for method in [label if label in by_method else "naive"]
            if method in by_method
        ]
        severities, centers, halves = zip(*points)
        axis.errorbar(
            severities, centers, yerr=halves, capsize=2, linewidth=1.2, markersize=3.5, label=label, **style
        )

    line("ceiling", lambda row: row["ceiling"], color="black", linestyle="--")
    for method in methods:
        line(method, lambda row: row["student"], color=color[method], marker="o")
    line("weak mean", lambda row: mean(row["weak"]), color="black", linestyle=":")
    counts = {severity: len(next(iter(by_method.values()))) for severity, by_method in table.items()}
    ticks = [f"{severity:g}\n(n = {n})" for severity, n in sorted(counts.items())]
    axis.set_xticks(sorted(counts), ticks)
    axis.set(xlabel="shift severity", ylabel="test accuracy")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# ---------------------------------------------------------------------------------------------------- publish


def publish(table, text: str, folder: Path) -> None:
    """results/: the rows, the tables, the figures; and the tables between README.md's two marks."""
    folder.mkdir(exist_ok=True)
    rows = [row for methods in table.values() for by_seed in methods.values() for row in by_seed.values()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tables.md").write_text(text)
    draw(table, folder)
    readme = HERE / "README.md"
    before, rest = readme.read_text().split("<!-- tables -->", 1)
    _, after = rest.split("<!-- end of tables -->", 1)
    readme.write_text(f"{before}<!-- tables -->\n{text}<!-- end of tables -->{after}")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), help="where the methods wrote their rows"
    )
    parser.add_argument("--publish", action="store_true", help="write results/ and the tables in README.md")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    table = read(args.folder)
    if not table:
        raise data.InputError(f"no rows of the present code in {args.folder}: run a method first")
    text = tables(table)
    print(text)
    draw(table, args.folder)
    if args.publish:
        publish(table, text, HERE / "results")


if __name__ == "__main__":
    try:
        main()
    except (data.InputError, OSError) as error:
        print(f"summarize.py: {error}", file=sys.stderr)
        sys.exit(2)
