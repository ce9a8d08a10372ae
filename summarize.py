"""Rows -> tables (mean, 95 % interval over seeds, paired differences) and figures.

    python summarize.py               # reads runs/*.jsonl, prints the tables, draws the figures into runs/
    python summarize.py --publish     # also writes results/, and the tables into README.md

All intervals are t-intervals over seeds. At one seed all methods share data, splits, weak models and initial
student, so differences are taken seed by seed. Only rows of the code as it stands are counted.
"""

import argparse
import itertools
import json
import math
import sys
from pathlib import Path
from statistics import mean, stdev

import data
import store

HERE = Path(__file__).parent
# Method and supervision -> name and colour of their column; others keep their name and get a free colour.
COLUMNS = {
    "naive each": ("naive", "#888888"),
    "naive mean": ("ensemble", "#1f77b4"),
    "confidence each": ("Conf", "#8c564b"),
    "confidence mean": ("Conf on ensemble", "#2ca02c"),
    "adaptive_confidence each": ("AdaptConf", "#ff7f0e"),
    "adaptive_confidence mean": ("AdaptConf on ensemble", "#d62728"),
    "raven weighted": ("RAVEN", "#6a3d9a"),
}
# Flags that all methods share.
RECIPE = ("encoder_steps", "text_encoder", "epochs", "lr", "ceiling_lr", "batch_size")
KINDS = {"image": "Images", "text": "Text", "preference": "Preferences", "features": "Files"}
# Quantile .975 of Student's t at 1, 2, ... 30 degrees of freedom; beyond, the last serves (a bit too wide).
T975 = [float(t) for t in """12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228 2.201 2.179 2.160
    2.145 2.131 2.120 2.110 2.101 2.093 2.086 2.080 2.074 2.069 2.064 2.060 2.056 2.052 2.048 2.045
    2.042""".split()]  # fmt: skip


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval, NaN for a single value."""
    n = len(values)
    return mean(values), T975[min(n - 1, 30) - 1] * stdev(values) / math.sqrt(n) if n > 1 else math.nan


def belongs_here(row) -> bool:
    """Linear heads. Whole networks and the controls of AdaptConf are for summarize_settings.py, policies for
    summarize_alignment.py."""
    return row.get("student_kind") == "head" and row["flags"].get("beta", "adaptive") == "adaptive"


def method(row) -> str:
    """The name of a row's column."""
    key = f"{row['method']} {row['supervision']}"
    return COLUMNS[key][0] if key in COLUMNS else key.removesuffix(" each").replace("_", " ")


Table = dict[str, dict[str, dict[int, dict]]]  # table[task][method][seed] is a row


def read(folder: Path, wanted=belongs_here, method=method) -> Table:
    """The `wanted` rows of FOLDER/*.jsonl. Left out, with a word on stderr: rows of other code than the
    present, and rows with other flags than the latest one of the same task and method. Raises InputError
    where the methods of a task were not run alike."""
    rows = [row for path in sorted(folder.glob("*.jsonl")) for row in store.read_rows(path) if wanted(row)]
    latest = {(row["task"], method(row)): setting(row) for row in rows if is_current(row)}
    kept = [row for row in rows if latest.get((row["task"], method(row))) == setting(row)]
    if len(kept) < len(rows):
        print(f"{folder}: {len(rows) - len(kept)} of {len(rows)} rows left out", file=sys.stderr)
    table = {}
    for row in sorted(kept, key=order):
        table.setdefault(row["task"], {}).setdefault(method(row), {})[row["seed"]] = row
    for task, methods in table.items():
        recipes = {str(recipe(row)) for rows in methods.values() for row in rows.values()}
        if len(recipes) > 1:
            raise data.InputError(
                f"{folder}: rows of {task} cannot be compared: {' and '.join(sorted(recipes))}"
            )
    return table


def is_current(row) -> bool:
    path = HERE / "methods" / f"{row['method']}.py"
    return path.exists() and row["code"] == store.code_hash(path)


def setting(row):
    return row["code"], row["torch"], row["device"], row["flags"]


def recipe(row) -> dict:
    return {"torch": row["torch"], "device": row["device"]} | {
        flag: row["flags"].get(flag) for flag in RECIPE
    }


def order(row):
    """Tasks by kind, by severity, embedded ones first, by name; methods as in COLUMNS; seeds in order."""
    kind, severity = list(KINDS).index(row["kind"]), data.severity(row["task"])
    task = kind, math.inf if severity is None else severity, row["task"] not in data.EMBEDDED, row["task"]
    names = [name for name, _ in COLUMNS.values()]
    place = names.index(method(row)) if method(row) in names else len(names)
    return task, place, row["method"], row["supervision"], row["seed"]


def values(rows: dict[int, dict], key: str) -> list:
    return [row[key] for row in rows.values()]


def any_rows(methods: dict[str, dict]) -> dict[int, dict]:
    """The rows of the method with the most seeds: weak models and ceiling are the same in all methods."""
    return max(methods.values(), key=len)


def all_methods(table) -> list[str]:
    return list(dict.fromkeys(name for methods in table.values() for name in methods))


def by_kind(table) -> dict[str, dict]:
    """The table in parts, {title of the kind: its tasks}."""
    parts = {}
    for task, methods in table.items():
        kind = next(iter(any_rows(methods).values()))["kind"]
        parts.setdefault(KINDS[kind], {})[task] = methods
    return parts


# ----------------------------------------------------------------------------------------------------- tables


def differences(rows, others, key) -> list:
    """rows minus others in `key`, at the seeds that both have; None where a value is null."""
    pairs = [(row[key], others[seed][key]) for seed, row in rows.items() if seed in others]
    return [None if None in pair else pair[0] - pair[1] for pair in pairs]


def percent(numbers: list[float], digits=1, sign="") -> str:
    """ "85.1 ±0.4" in percent; "–" where a value is null."""
    if None in numbers:
        return "–"
    center, half = interval([100 * number for number in numbers])
    text = f"{center:{sign}.{digits}f}" + ("" if math.isnan(half) else f" ±{half:.{digits}f}")
    return text.replace("-", "−")


def cell(accuracies, pgrs, n, sign="") -> str:
    """ "85.1 ±0.4 / 61 ±2", accuracy and PGR; the number of seeds is added where it is not the task's n."""
    if not accuracies:
        return "–"
    other_n = f" (n = {len(accuracies)})" if len(accuracies) != n else ""
    return f"{percent(accuracies, 1, sign)} / {percent(pgrs, 0, sign)}{other_n}"


def compare(rows, others, n) -> str:
    return cell(*(differences(rows, others, key) for key in ("student", "pgr")), n, sign="+")


def top_weight_hits(rows) -> str:
    """In how many rows the largest weight is on the weak model that is the most accurate on test."""
    if not rows:
        return "–"
    hits = [row["weights"].index(max(row["weights"])) == row["weak"].index(max(row["weak"])) for row in rows]
    return f"{sum(hits)} of {len(hits)}"


def markdown(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def score_table(table, columns) -> str:
    lines = []
    for task, methods in table.items():
        some = any_rows(methods)
        n = len(some)
        weak = ", ".join(percent(list(accuracies)) for accuracies in zip(*values(some, "weak")))
        cells = [cell(*(values(methods.get(m, {}), key) for key in ("student", "pgr")), n) for m in columns]
        encoder = next(iter(some.values()))["encoder"]
        lines.append([f"{task} (n = {n})", encoder, weak, *cells, percent(values(some, "ceiling"))])
    names = {", ".join(row["weak_models"]) for m in table.values() for row in any_rows(m).values()}
    weak_label = f"weak models ({names.pop()})" if len(names) == 1 else "weak models"
    return markdown(["task", "features", weak_label, *columns, "ceiling"], lines)


def difference_table(table, columns) -> str:
    lines = []
    for task, methods in table.items():
        n, raven, naive = len(any_rows(methods)), methods.get("RAVEN", {}), methods.get("naive", {})
        others = {m: rows for m, rows in methods.items() if m != "RAVEN" and rows.keys() >= raven.keys()}
        to_naive = [compare(methods.get(m, {}), naive, n) for m in columns if m != "naive"]
        to_best = "–"
        if raven and others:
            best = max(others, key=lambda m: mean(others[m][seed]["student"] for seed in raven))
            to_best = f"{compare(raven, others[best], n)} ({best})"
        lines.append([f"{task} (n = {n})", *to_naive, to_best, top_weight_hits(raven.values())])
    against_naive = [f"{m} − naive" for m in columns if m != "naive"]
    return markdown(["task", *against_naive, "RAVEN − best other", "top weight"], lines)


def tables(table) -> str:
    """Markdown, a line per task: accuracy and PGR of every method; then the paired differences."""

    def per_kind(make_table):
        parts = by_kind(table).items()
        return "\n\n".join(f"{kind}:\n\n{make_table(tasks, all_methods(tasks))}" for kind, tasks in parts)

    return f"""\
Accuracy / PGR in %, mean ±95 % t-interval over n seeds. The PGR of a student of one weak model is taken
against that model, and averaged over the weak models; that of a student of several against their mean
accuracy. "–": the gap of some seed is below two standard errors.

{per_kind(score_table)}

Paired differences, accuracy / PGR in points. "Best other" is by mean test accuracy; the last column says in
how many seeds RAVEN's largest weight is on the most accurate weak model.

{per_kind(difference_table)}
"""


# ---------------------------------------------------------------------------------------------------- figures


def plotting():
    """matplotlib.pyplot without a window, in the style of all figures; imported here, as it takes a while."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    small = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150}
    pyplot.rcParams.update(small | {"figure.constrained_layout.use": True, "legend.frameon": False})
    return pyplot


def draw(table, folder: Path) -> None:
    """accuracy.png, weights.png and severity.png into the folder, each if there are rows for it."""
    pyplot = plotting()
    color = dict(COLUMNS.values())
    free = itertools.cycle(["#e377c2", "#17becf", "#bcbd22"])
    color |= {name: next(free) for name in all_methods(table) if name not in color}
    # The severities between and beyond the two main rendered tasks are for the third figure.
    main = {task: methods for task, methods in table.items() if not task.startswith("glyphs-shift-")}
    raven = {task: methods for task, methods in main.items() if "RAVEN" in methods}
    sweep = {data.severity(task): table[task] for task in table if data.severity(task) is not None}
    figures = {
        "accuracy": draw_accuracy(pyplot, main, color) if main else None,
        "weights": draw_weights(pyplot, raven) if raven else None,
        "severity": draw_severity(pyplot, sweep, color) if len(sweep) > 1 else None,
    }
    for name, figure in figures.items():
        if figure:
            figure.savefig(folder / f"{name}.png")
            print(f"{folder / name}.png", file=sys.stderr)


def grid(pyplot, table, width, height):
    """A figure with a row of panels per kind, and (task, its methods, panel) of each task."""
    parts = by_kind(table)
    columns = max(map(len, parts.values()))
    size = (1.6 + width * columns, 0.3 + height * len(parts))
    figure, axes = pyplot.subplots(len(parts), columns, figsize=size, sharey="row", squeeze=False)
    panels = []
    for row, tasks in zip(axes, parts.values()):
        panels += [(task, methods, axis) for (task, methods), axis in zip(tasks.items(), row)]
        for axis in row[len(tasks) :]:
            axis.remove()
    return figure, panels


def draw_accuracy(pyplot, table, color):
    """Figure (a): per task, the students of every method, the weak models and the ceiling; a dot per seed."""
    figure, panels = grid(pyplot, table, 2.2, 2.2)
    names = all_methods(table)
    for task, methods, axis in panels:
        some = any_rows(methods)
        for accuracies in zip(*values(some, "weak")):
            weak = axis.axvline(mean(accuracies), color="#999999", linewidth=1, linestyle=":")
        ceiling = axis.axvline(mean(values(some, "ceiling")), color="black", linewidth=1, linestyle="--")
        for y, name in enumerate(names):
            if name in methods:
                students = values(methods[name], "student")
                center, half = interval(students)
                seeds = {"color": color[name], "alpha": 0.4, "markersize": 4}
                axis.plot(students, [y - 0.25] * len(students), ".", **seeds)
                axis.errorbar(center, y, xerr=half, fmt="o", color=color[name], markersize=4, capsize=2)
        axis.set(title=task, xlabel=f"test accuracy (n = {len(some)})", ylim=(len(names) - 0.5, -0.7))
        axis.set_yticks(range(len(names)), names)
    figure.legend([weak, ceiling], ["weak models", "ceiling"], loc="outside lower center", ncols=2)
    return figure


def draw_weights(pyplot, table):
    """Figure (b): RAVEN's weights over epochs, a line per seed, beside each weak model's accuracy."""
    figure, panels = grid(pyplot, table, 2.6, 2.2)
    for task, methods, axis in panels:
        rows = methods["RAVEN"]
        right = axis.inset_axes([1.04, 0, 0.4, 1], sharey=axis)
        names = next(iter(rows.values()))["weak_models"]
        for m in range(len(names)):
            for history in values(rows, "weight_history"):
                axis.plot([weights[m] for weights in history], color=f"C{m}", alpha=0.6, linewidth=1)
            center, half = interval([accuracies[m] for accuracies in values(rows, "weak")])
            right.bar(m, center, yerr=half, color=f"C{m}", capsize=2, width=0.7)
            center, half = interval([confidences[m] for confidences in values(rows, "weak_confidence")])
            style = {"fmt": "D", "color": "black", "markersize": 3, "capsize": 2}
            confidence = right.errorbar(m, center, yerr=half, **style)
        axis.set(title=task, xlabel=f"epoch (n = {len(rows)})", ylim=(-0.03, 1.03))
        right.set_xticks(range(len(names)), names, rotation=90)
        right.tick_params(axis="y", labelleft=False)
    key = [pyplot.Rectangle((0, 0), 1, 1, color="#999999"), confidence]
    labels = ["weak model's accuracy", "its mean confidence"]
    figure.legend(key, labels, loc="outside lower center", ncols=2)
    return figure


def draw_severity(pyplot, table, color):
    """Figure (c): accuracy against shift severity; the legend in the order of the lines' right ends."""
    figure, axis = pyplot.subplots(figsize=(6.4, 3.4))
    table = dict(sorted(table.items()))
    lines = {
        "ceiling": {s: values(any_rows(methods), "ceiling") for s, methods in table.items()},
        "weak mean": {s: [mean(weak) for weak in values(any_rows(m), "weak")] for s, m in table.items()},
    }
    for name in all_methods(table):
        lines[name] = {s: values(methods[name], "student") for s, methods in table.items() if name in methods}
    ends = {}
    for i, (name, line) in enumerate(lines.items()):
        at = [severity + 0.005 * (i - 3) for severity in line]  # set apart, so that no interval hides another
        centers, halves = zip(*map(interval, line.values()))
        style = {"ceiling": "--", "weak mean": ":"}.get(name, "o-")
        plotted = axis.errorbar(
            at, centers, yerr=halves, fmt=style, color=color.get(name, "black"), label=name,
            markersize=3.5, linewidth=1.2, capsize=2
        )
        ends[plotted] = centers[-1]
    ticks = {severity: f"{severity:g}\n(n = {len(any_rows(methods))})" for severity, methods in table.items()}
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set(xlabel="shift severity", ylabel="test accuracy")
    figure.legend(handles=sorted(ends, key=ends.get, reverse=True), loc="outside right center")
    return figure


# ---------------------------------------------------------------------------------------------------- publish


def publish(table, text: str) -> None:
    """results/: rows, tables, figures. And the tables between the two marks in README.md."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    rows = [row for methods in table.values() for by_seed in methods.values() for row in by_seed.values()]
    write_rows(folder / "rows.jsonl", rows)
    (folder / "tables.md").write_text(text)
    draw(table, folder)
    insert(HERE / "README.md", "tables", text)


def write_rows(path: Path, rows: list[dict]) -> None:
    """The rows with six decimals, more than any figure in them is certain to."""
    short = (json.loads(json.dumps(row), parse_float=lambda number: round(float(number), 6)) for row in rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in short))


def insert(readme: Path, name: str, text: str) -> None:
    """Puts the text between the marks <!-- NAME --> and <!-- end of NAME -->."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, after = (readme.read_text().split(mark) for mark in (start, end))
    readme.write_text(f"{before[0]}{start}{text}{end}{after[1]}")


def parse_args(argv=None, about=__doc__):
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=about.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="where the rows are")
    parser.add_argument("--publish", action="store_true", help="write results/ and the tables in README.md")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    table = read(args.folder)
    if not table:
        raise data.InputError(f"no row of the present code in {args.folder}/*.jsonl: run a method first")
    text = tables(table)
    print(text)
    draw(table, args.folder)
    if args.publish:
        publish(table, text)


if __name__ == "__main__":
    try:
        main()
    except (data.InputError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2)
