"""Rows -> tables (mean, 95 % interval over seeds, paired differences) and figures.

    python report.py [FOLDER]      # reads runs/*.jsonl, prints the tables, draws the figures into the folder
    python report.py --publish     # also writes results/, and the first table of README.md

A column names its method and flags and takes the default seeds, so that no other row changes a table. At one
seed all methods share data, splits, weak models and initial student: differences are taken seed by seed.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import data
import evaluate
import store

HERE = Path(__file__).resolve().parent
COLUMNS = {  # name -> method, flags that differ from its defaults, colour
    "naive": ("naive", {}, "#888888"),
    "ensemble": ("naive", {"supervision": "mean"}, "#1f77b4"),
    "Conf": ("confidence", {}, "#8c564b"),
    "Conf on ensemble": ("confidence", {"supervision": "mean"}, "#2ca02c"),
    "AdaptConf": ("adaptive_confidence", {}, "#ff7f0e"),
    "AdaptConf on ensemble": ("adaptive_confidence", {"supervision": "mean"}, "#d62728"),
    "RAVEN": ("raven", {}, "#6a3d9a"),
}
POLICIES = {
    "one reward model": ("raven_dpo", {"supervision": "one"}, "#888888"),
    "ensemble": ("raven_dpo", {"supervision": "mean"}, "#1f77b4"),
    "DPO-R": ("raven_dpo", {}, "#6a3d9a"),
    "DPO-R, equal weights": ("raven_dpo", {"weight_lr": 0.0}, "#ff7f0e"),
    "DPO-R, code's form": ("raven_dpo", {"form": "code"}, "#d62728"),
    "ceiling": ("raven_dpo", {"supervision": "gold"}, "black"),
}
PUBLISHED = {  # AdaptConf's setting -> its authors' flags; None: tasks without labels, at our defaults
    "distillation": {"temperature": 0.5, "beta_ramp": 0.0},
    "noisy labels": {"temperature": 0.5, "beta_ramp": 0.25},
    "few-shot": {"beta_ramp": 0.25},
    "transfer": {"temperature": 4.0, "beta_ramp": 0.0},
    None: {},
}
DEFAULTS = {"temperature": 8.0, "beta_ramp": 0.5}  # of adaptive_confidence.py
NUMBERS = {  # setting or task -> published data, and KD / AugConf / AdaptConf in %
    "distillation": "CIFAR-100, ResNet20 → ResNet56: 73.81 / 73.86 / 74.17",
    "cifar100-distill-vgg": "CIFAR-100, VGG8 → VGG13: 76.41 / 76.55 / 76.84",
    "noisy labels": "CIFAR-10 and -100, mean of all noises, top-1 and top-5 mixed: 91.20 / 91.04 / 91.45",
    "few-shot": "miniImageNet, mean of 1-shot and 5-shot: 70.36 / 70.46 / 70.82",
    "transfer": "ImageNet, ResNet50 → ViT-B (MAE): 83.62 / 83.69 / 83.86",
}
CONTROLS = {"half": "1/2", "one": "1", "swapped": "1 − b", "select": "0 or 1"}  # --beta -> what stands for b
LABEL_FREE = ("glyphs-shift", "reviews-shift", "preferences-shift")  # also in the ablation of b
SEVERITY = {"glyphs": 0, "glyphs-shift-0.2": 0.2, "glyphs-shift": 0.4, "glyphs-shift-0.6": 0.6}
SEVERITY |= {"glyphs-shift-0.8": 0.8}  # in this order along the axis
TASKS = """glyphs-distill cifar100-distill cifar100-distill-vgg glyphs-noisy-symmetric-0.2
    glyphs-noisy-asymmetric-0.4 glyphs-fewshot glyphs-transfer glyphs glyphs-shift-0.2 glyphs-shift
    glyphs-shift-0.6 glyphs-shift-0.8 mnist-usps usps-mnist reviews reviews-shift amazon-books-kitchen
    amazon-dvd-electronics amazon-electronics-video amazon-kitchen-books preferences preferences-shift
    hh-helpful-harmless reviews-dpo""".split()  # lines in this order, then others by name
FIRST_TASKS = """glyphs-shift usps-mnist reviews-shift amazon-books-kitchen amazon-kitchen-books
    preferences-shift hh-helpful-harmless""".split()  # in README.md
FIRST_COLUMNS = ("naive", "ensemble", "AdaptConf on ensemble", "RAVEN")
# Quantile .975 of Student's t at 1, 2, ... 20 degrees of freedom; beyond, the last serves (a bit too wide).
T975 = [float(t) for t in """12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228 2.201 2.179 2.160
    2.145 2.131 2.120 2.110 2.101 2.093 2.086""".split()]  # fmt: skip
Table = dict[str, dict[str, dict[int, dict]]]  # table[line][column][seed] is a row


def settings_columns(setting: str | None) -> dict:
    """KD, AugConf, AdaptConf with its authors' flags for the setting; the same with other choices of b."""
    own, method = PUBLISHED[setting], "adaptive_confidence"
    columns = {"KD": ("naive", {}), "AugConf": ("confidence", {}), "AdaptConf": (method, own)}
    return columns | {beta: (method, own | {"beta": beta}) for beta in CONTROLS}


def tabulate(rows: list[dict], columns_of) -> Table:
    """The rows that columns_of(setting) names, on the default seeds; of several in one place the last. A line
    is a task, with its data where these differ between the rows, and a text encoder or policy of choice."""
    kept, contents, table = [], set(), {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        flags, columns = dict(row["flags"]), columns_of(row["setting"])
        networks = [flags.pop(key, None) for key in ("text_encoder", "policy")]
        for name, (method, wanted, *_) in columns.items():
            if (row["method"], flags) == (method, wanted) and row["seed"] in evaluate.DEFAULT_SEEDS:
                kept.append((row, name, networks, columns))
                contents.add((row["task"], row["data"]))
    for row, name, networks, columns in kept:
        several = sum(task == row["task"] for task, _ in contents) > 1
        line = " ".join(filter(None, [row["task"], several and (row["data"] or "")[:6], *networks]))
        table.setdefault(line, {each: {} for each in columns})[name][row["seed"]] = row
    known = {line: TASKS.index(task) for line in table if (task := line.split()[0]) in TASKS}
    return {line: table[line] for line in sorted(table, key=lambda line: (known.get(line, len(TASKS)), line))}


def compared(table: Table) -> Table:
    """The lines of the settings, then those without labels where b was varied; each with the seeds that all
    its columns with rows have. Lines without such a seed are left out, with a word on stderr."""
    result = {}
    for line, columns in sorted(table.items(), key=lambda item: one_of(item[1])["setting"] is None):
        seeds = set.intersection(*(set(rows) for rows in columns.values() if rows))
        if not seeds:
            print(f"{line}: no seed that all its columns have", file=sys.stderr)
        elif one_of(columns)["setting"] or any(columns[beta] for beta in CONTROLS):
            common = {name: {seed: rows[seed] for seed in seeds if rows} for name, rows in columns.items()}
            result[line] = common
    return result


def merged(columns: dict[str, dict]) -> dict[int, dict]:
    """A row of each seed: weak models and ceiling are the same in all columns."""
    return {seed: row for rows in columns.values() for seed, row in rows.items()}


def one_of(columns) -> dict:
    return next(iter(merged(columns).values()))


def values(rows: dict[int, dict], key: str, minus: dict | None = None) -> list:
    """The rows' values; with `minus` differences from its rows at the seeds that both have. None stays."""
    if minus is None:
        return [row[key] for row in rows.values()]
    pairs = [(row[key], minus[seed][key]) for seed, row in rows.items() if seed in minus]
    return [None if None in pair else pair[0] - pair[1] for pair in pairs]


# ----------------------------------------------------------------------------------------------------- tables


def interval(numbers: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval, NaN for a single number."""
    n = len(numbers)
    half = T975[min(n - 1, len(T975)) - 1] * stdev(numbers) / math.sqrt(n) if n > 1 else math.nan
    return mean(numbers), half


def plain(numbers: list[float], digits: int, sign="", n: int | None = None, scale=1) -> str:
    """ "0.123 ±0.045", times scale; with their number if it is not n. "–": there is none, or one is None."""
    if not numbers or None in numbers:
        return "–"
    center, half = interval([scale * number for number in numbers])
    text = f"{center:{sign}.{digits}f}" + ("" if math.isnan(half) else f" ±{half:.{digits}f}")
    return text.replace("-", "−") + (f" (n = {len(numbers)})" if n not in (None, len(numbers)) else "")


def percent(numbers: list[float], digits=1, sign="", n: int | None = None) -> str:
    return plain(numbers, digits, sign, n, scale=100)


def markdown(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def cell(rows: dict, n: int, minus: dict | None = None) -> str:
    """ "85.1 ±0.4 / 61 ±2", accuracy and PGR, or what they are above those of `minus`."""
    sign = "" if minus is None else "+"
    accuracies, pgrs = (values(rows, key, minus) for key in ("student", "pgr"))
    return f"{percent(accuracies, 1, sign)} / {percent(pgrs, 0, sign, n)}" if accuracies else "–"


def against_best(columns: dict, n: int) -> list[str]:
    """RAVEN's gain over the best other column, and how often its largest weight is on the best weak model."""
    raven = columns["RAVEN"]
    others = [name for name in columns if name != "RAVEN" and columns[name].keys() >= raven.keys()]
    if not raven or not others:
        return ["–", "–"]
    best = max(others, key=lambda name: mean(columns[name][seed]["student"] for seed in raven))
    tops = [[row[key].index(max(row[key])) for key in ("weights", "weak")] for row in raven.values()]
    return [f"{cell(raven, n, columns[best])} ({best})", f"{sum(a == b for a, b in tops)} of {len(tops)}"]


def main_tables(table: Table) -> dict[str, str]:
    """README.md's table; accuracy and PGR; paired differences: a line per task."""
    names = [name for name in COLUMNS if any(columns[name] for columns in table.values())]
    first, scores, differences = [], [], []
    for line, columns in table.items():
        some, row = merged(columns), one_of(columns)
        n, title, ceiling = len(some), f"{line} (n = {len(some)})", percent(values(some, "ceiling"))
        if row["task"] in FIRST_TASKS and "text_encoder" not in row["flags"]:
            students = [percent(values(columns[name], "student"), n=n) for name in FIRST_COLUMNS]
            first.append([title, percent([mean(weak) for weak in values(some, "weak")]), *students, ceiling])
        weak = zip(row["weak_models"], map(list, zip(*values(some, "weak"))))
        weak = ", ".join(f"{name} {percent(accuracies)}" for name, accuracies in weak)
        scores.append([title, row["encoder"], weak, *(cell(columns[name], n) for name in names), ceiling])
        gains = [cell(columns[name], n, columns["naive"]) for name in names if name != "naive"]
        differences.append([title, *gains, *against_best(columns, n)])
    gains = [f"{name} − naive" for name in names if name != "naive"]
    return {
        "table": first and markdown(["accuracy in %", "weak mean", *FIRST_COLUMNS, "ceiling"], first),
        "scores": markdown(["accuracy / PGR in %", "features", "weak models", *names, "ceiling"], scores),
        "differences": markdown(["in points", *gains, "RAVEN − best other", "top weight"], differences),
    }


def by_shots(table: Table) -> Table:
    """The table with lines of novel classes replaced by those of their 1-shot and 5-shot accuracies."""

    def novel(rows, shots):
        own = {seed: row["few_shot"]["test"][shots] for seed, row in rows.items()}
        own = {seed: {name: accuracy for name, (accuracy, _) in each.items()} for seed, each in own.items()}
        return {seed: row | own[seed] | {"weak": [own[seed]["weak"]]} for seed, row in rows.items()}

    result = {}
    for line, columns in table.items():
        if "few_shot" not in one_of(columns):
            result[line] = columns
        for shots in one_of(columns).get("few_shot", {"test": {}})["test"]:
            result[f"{line} {shots}"] = {name: novel(rows, shots) for name, rows in columns.items()}
    return result


def settings_tables(table: Table) -> dict[str, str]:
    """AdaptConf's settings in the form of its paper, and the ablation of its b."""
    pairs = (("AugConf", "KD"), ("AdaptConf", "KD"), ("AdaptConf", "AugConf"))
    settings, ablation = [], []

    def judged(numbers):
        center, half = interval(numbers) if numbers else (1, 0)
        return percent(numbers, sign="+") + ("" if center > half else ", not shown")

    for line, columns in by_shots(table).items():
        some, row = merged(columns), one_of(columns)
        students = [percent(values(columns[name], "student")) for name in ("KD", "AugConf", "AdaptConf")]
        if setting := row["setting"]:
            flags = DEFAULTS | PUBLISHED[setting]
            title = f"n = {len(some)}; {setting}, T {flags['temperature']:g}, ramp {flags['beta_ramp']:g}"
            alone = [percent(values(some, key)) for key in ("labels_alone", "ceiling") if key in row]
            gains = [judged(values(columns[name], "student", columns[other])) for name, other in pairs]
            ends = [percent([mean(weak) for weak in values(some, "weak")]), " / ".join(alone)]
            published = NUMBERS.get(row["task"], NUMBERS[setting])
            settings.append([f"{line} ({title})", *ends, *students, *gains, published])
        if any(columns[beta] for beta in CONTROLS):
            kd, names = columns["KD"], ("AdaptConf", *CONTROLS)
            gains = [percent(values(columns[name], "student", kd), sign="+") for name in names]
            ablation.append([f"{line} (n = {len(some)})", students[0], *gains])
    header = ["accuracy in %", "teacher", "labels alone", "KD", "AugConf", "AdaptConf"]
    header += [*(" − ".join(pair) for pair in pairs), "published: KD / AugConf / AdaptConf"]
    choices = [f"{beta}: {meaning}" for beta, meaning in CONTROLS.items()]
    choices = ["accuracy in %, gains in points", "b = 0 (KD, naive)", "adaptive", *choices]
    return {
        "settings": settings and markdown(header, settings),
        "ablation": ablation and markdown(choices, ablation),
    }


def recovered(row: dict, ceiling: dict) -> float | None:
    """(win rate - 1/2) / (ceiling's - 1/2); None where that is not clearly above one half."""
    above = ceiling["win_rate"] - 0.5
    return (row["win_rate"] - 0.5) / above if above > ceiling["win_interval"] else None


def alignment_tables(table: Table) -> dict[str, str]:
    """Per task: win rates by kind of preferences; the reward models; answers to the first prompts."""
    measured = {"gold_reward": 2, "kl": 3, "length": 1, "well_formed": 2}
    header = ["recovered in %", "win rate − ensemble's"]
    header += ["gold reward", "KL per token", "tokens", "well-formed"]
    texts, samples = [], []
    for line, columns in table.items():
        some, first = merged(columns), one_of(columns)
        before = {"kl": 0} | {key: first[f"{key}_before"] for key in measured if key != "kl"}
        before = [plain([before[key]], digits) for key, digits in measured.items()]
        again = ["before training, sampled again", percent([first["win_rate_before"]]), "", "", *before]
        lines, written = [again], {}
        for name, rows in ((name, rows) for name, rows in columns.items() if rows):
            gold = columns["ceiling"]
            gaps = [recovered(row, gold[seed]) for seed, row in rows.items() if seed in gold]
            gain = values(rows, "win_rate", columns["ensemble"])
            cells = ["" if name == "ceiling" or not gaps else percent(gaps, 0, n=len(rows))]
            cells += ["" if name == "ensemble" or not gain else percent(gain, 1, "+", n=len(rows))]
            cells += [plain(values(rows, key), digits) for key, digits in measured.items()]
            lines.append([f"{name} (n = {len(rows)})", percent(values(rows, "win_rate")), *cells])
            row = next(iter(rows.values()))
            which = f", {row['reward_models'][0]}" if "policies" in row else ""
            written[name + which] = row.get("samples") or row["policies"][0]["samples"]
        wins = f"win rate in % (prompts: ±{100 * mean(values(some, 'win_interval')):.1f})"
        texts.append(markdown([line, wins, *header], lines))
        learned, lines = [name for name in ("DPO-R", "DPO-R, code's form") if columns[name]], []
        for m, reward_model in enumerate(first["reward_models"]):
            accuracies = percent([row["reward_accuracy"][m] for row in some.values()])
            weights = [[row["weights"][m] for row in columns[name].values()] for name in learned]
            lines.append([reward_model, accuracies, *(plain(each, 2) for each in weights)])
        agreed = f"accuracy in % (all agree on {percent(values(some, 'easy_fraction'))} % of the pairs)"
        texts.append(markdown(["reward model", agreed, *(f"weight in {name}" for name in learned)], lines))
        for same in zip(*written.values()):
            answers = [f"before [{same[0]['gold_before']:.2f}]: {same[0]['before']}"]
            answers += [f"{name} [{s['gold_after']:.2f}]: {s['after']}" for name, s in zip(written, same)]
            samples.append("\n        ".join([f"    {same[0]['prompt']}", *answers]))
    return {"alignment": "\n\n".join(texts), "samples": "\n\n".join(samples)}


# ---------------------------------------------------------------------------------------------------- figures


def plotting():
    """matplotlib.pyplot without a window, in the style of all figures; imported here, as it takes a while."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    small = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 120}
    pyplot.rcParams.update(small | {"figure.constrained_layout.use": True, "legend.frameon": False})
    return pyplot


def grid(pyplot, count: int, width: float, height: float, most: int, stacked=1):
    """A figure, and for each of `count` lines of a table `stacked` panels, one below another."""
    wide = min(count, most)
    high = stacked * -(-count // wide)
    size = (1.6 + width * wide, 0.4 + height * high)
    figure, axes = pyplot.subplots(high, wide, figsize=size, sharey=True, squeeze=False)
    panels = [panel for top in range(0, high, stacked) for panel in zip(*axes[top : top + stacked])]
    for axis in (axis for panel in panels[count:] for axis in panel):
        axis.remove()
    return figure, panels[:count]


def dots(axis, y: float, numbers: list[float], color: str) -> None:
    """A dot per seed, below them their mean and its interval."""
    center, half = interval(numbers)
    axis.plot(numbers, [y - 0.25] * len(numbers), ".", color=color, alpha=0.4, markersize=4)
    axis.errorbar(center, y, xerr=half, fmt="o", color=color, markersize=4, capsize=2)


def draw_accuracy(pyplot, table):
    """Per task, the students of every method between the weak models and the ceiling."""
    figure, panels = grid(pyplot, len(table), 2.2, 2.2, most=5)
    names = [name for name in COLUMNS if any(columns[name] for columns in table.values())]
    for (line, columns), (axis,) in zip(table.items(), panels):
        some = merged(columns)
        for accuracies in zip(*values(some, "weak")):
            weak = axis.axvline(mean(accuracies), color="#999999", linewidth=1, linestyle=":")
        ceiling = axis.axvline(mean(values(some, "ceiling")), color="black", linewidth=1, linestyle="--")
        for y, name in enumerate(names):
            if columns[name]:
                dots(axis, y, values(columns[name], "student"), COLUMNS[name][-1])
        axis.set(title=line, xlabel=f"test accuracy (n = {len(some)})", ylim=(len(names) - 0.5, -0.7))
        axis.set_yticks(range(len(names)), names)
    figure.legend([weak, ceiling], ["weak models", "ceiling"], loc="outside lower center", ncols=2)
    return figure


def draw_weights(pyplot, table):
    """RAVEN's weights over epochs, a line per seed, beside each weak model's accuracy and confidence."""
    figure, panels = grid(pyplot, len(table), 2.4, 2.2, most=5)
    for (line, columns), (axis,) in zip(table.items(), panels):
        rows, bars = columns["RAVEN"], axis.inset_axes([1.04, 0, 0.4, 1], sharey=axis)
        for m in range(len(one_of(columns)["weak_models"])):
            for history in values(rows, "weight_history"):
                axis.plot([weights[m] for weights in history], color=f"C{m}", alpha=0.6, linewidth=1)
            center, half = interval([accuracies[m] for accuracies in values(rows, "weak")])
            bars.bar(m, center, yerr=half, color=f"C{m}", alpha=0.6, capsize=2, width=0.7)
            center, half = interval([confidences[m] for confidences in values(rows, "weak_confidence")])
            mark = bars.errorbar(m, center, yerr=half, fmt="kD", markersize=3, capsize=2)
        axis.set(xlabel=f"epoch (n = {len(rows)})", ylim=(-0.03, 1.03))
        axis.set_title(line, loc="left")
        bars.set_xticks(range(m + 1), one_of(columns)["weak_models"], rotation=90)
        bars.tick_params(axis="y", labelleft=False)
    key = [pyplot.Rectangle((0, 0), 1, 1, color="#999999"), mark]
    figure.legend(key, ["weak model's accuracy", "its mean confidence"], loc="outside lower center", ncols=2)
    return figure


def draw_severity(pyplot, table):
    """Accuracy against shift severity, set apart sideways so that no interval hides another."""
    figure, axis = pyplot.subplots(figsize=(6.4, 3.4))
    some = {line: merged(columns) for line, columns in table.items()}
    lines = {"ceiling": {line: values(rows, "ceiling") for line, rows in some.items()}}
    lines["weak mean"] = {line: [mean(weak) for weak in values(rows, "weak")] for line, rows in some.items()}
    for name in COLUMNS:
        lines[name] = {line: values(own[name], "student") for line, own in table.items() if own[name]}
    ends = {}
    for i, (name, line) in enumerate((name, line) for name, line in lines.items() if line):
        at = [SEVERITY[task] + 0.005 * (i - 4) for task in line]
        centers, halves = zip(*map(interval, line.values()))
        form = {"ceiling": "k--", "weak mean": "k:"}.get(name, "o-")
        color = {"color": COLUMNS[name][-1]} if name in COLUMNS else {}
        style = color | {"label": name, "markersize": 3.5, "linewidth": 1.2, "capsize": 2}
        ends[axis.errorbar(at, centers, yerr=halves, fmt=form, **style)] = centers[-1]
    ticks = [f"{SEVERITY[task]:g}\n(n = {len(rows)})" for task, rows in some.items()]
    axis.set_xticks([SEVERITY[task] for task in table], ticks)
    axis.set(xlabel="shift severity", ylabel="test accuracy")
    figure.legend(handles=sorted(ends, key=ends.get, reverse=True), loc="outside right center")
    return figure


def main_figures(pyplot, table: Table) -> dict:
    main = {line: own for line, own in table.items() if not line.startswith("glyphs-shift-")}
    raven = {line: own for line, own in main.items() if own["RAVEN"]}
    sweep = {line: table[line] for line in SEVERITY if line in table}
    figures = {"accuracy": draw_accuracy(pyplot, main)} if main else {}
    figures |= {"weights": draw_weights(pyplot, raven)} if raven else {}
    return figures | ({"severity": draw_severity(pyplot, sweep)} if len(sweep) > 1 else {})


def settings_figures(pyplot, table: Table) -> dict:
    """How often student and weak labels agree while it trains, and mean b where they do not, over epochs: the
    mean of the seeds, and a thin line for each."""
    figure, panels = grid(pyplot, len(table), 2.1, 1.8, most=4, stacked=2)
    for (line, columns), (above, below) in zip(table.items(), panels):
        for color, name in zip(("C1", "C0", "C3", "C2", "C4"), ("AdaptConf", *CONTROLS)):
            for axis, key in ((above, "agreement_history"), (below, "disagreement_beta_history")):
                # None, of an epoch without any disagreement, leaves a gap in the line.
                histories = [[math.nan if y is None else y for y in h] for h in values(columns[name], key)]
                for y in histories:
                    axis.plot(range(1, len(y) + 1), y, color=color, alpha=0.3, linewidth=0.6)
                means = [mean(each) for each in zip(*histories)]
                axis.plot(range(1, len(means) + 1), means, color=color, label=name, linewidth=1.4)
                axis.xaxis.get_major_locator().set_params(integer=True)
        above.set_title(f"{line} (n = {len(merged(columns))})", fontsize=7.5)
        below.set(xlabel="epoch", ylim=(-0.03, 1.03))
        if above.get_subplotspec().is_first_col():
            above.set_ylabel("agreement")
            below.set_ylabel("b on disagreement")
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=1 + len(CONTROLS))
    return {"settings": figure}


def alignment_figures(pyplot, table: Table) -> dict:
    """Per task: win rates; gold reward against KL; DPO-R's weights over steps. A dot or line per seed."""
    size = (10.5, 3 * len(table))
    figure, axes = pyplot.subplots(len(table), 3, figsize=size, squeeze=False)
    for (line, columns), (wins, frontier, weights) in zip(table.items(), axes):
        columns = {name: rows for name, rows in columns.items() if rows}
        for y, (name, rows) in enumerate(columns.items()):
            dots(wins, y, values(rows, "win_rate"), color := POLICIES[name][-1])
            kl, gold = values(rows, "kl"), values(rows, "gold_reward")
            frontier.plot(kl, gold, "o", color=color, alpha=0.7, markersize=4)  # as in the left panel
        before = mean(values(merged(columns), "gold_reward_before"))
        frontier.plot(0, before, "k+")
        frontier.annotate("before training", (0, before), (6, -3), textcoords="offset points", fontsize=7)
        frontier.set(xlabel="KL per token (nats)", ylabel="gold reward")
        wins.axvline(0.5, color="black", linewidth=1, linestyle=":")
        wins.set(title=line, xlabel=f"win rate (n = {len(merged(columns))})", ylim=(len(columns) - 0.5, -0.7))
        wins.set_yticks(range(len(columns)), list(columns))
        for i, row in enumerate(columns.get("DPO-R", {}).values()):
            for m, model in enumerate(row["reward_models"]):
                at, y = zip(*((state["step"], state["weights"][m]) for state in row["history"]))
                weights.plot(at, y, f"C{m}", alpha=0.7, label=None if i else f"reward model of {model}")
        weights.set(xlabel="step", ylabel="weight in DPO-R", ylim=(-0.03, 1.03))
        weights.legend(fontsize=7)
    return {"alignment": figure}


# ---------------------------------------------------------------------------------------------------- publish


def rows_of(table: Table) -> list[dict]:
    return [row for columns in table.values() for rows in columns.values() for row in rows.values()]


def write_rows(path: Path, rows: list[dict]) -> None:
    """The rows with six decimals, more than any figure in them is certain to."""
    short = (json.loads(json.dumps(row), parse_float=lambda number: round(float(number), 6)) for row in rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in short))


def insert(path: Path, name: str, text: str) -> None:
    """Puts the text between <!-- NAME --> and <!-- end of NAME -->. Raises InputError where they lack."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = path.read_text().partition(start)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise data.InputError(f"{path} lacks the marks of {name}")
    path.write_text(f"{before}{start}{text}\n{end}{after}")


def mixed(rows: list[dict]) -> str:
    """Why the rows cannot be compared; empty if they can."""
    found = sorted({(row["version"], row["torch"], row["device"]) for row in rows})
    alike = len(found) == 1 and found[0][0] == store.VERSION
    return "" if alike else f"rows of {found}, not of version {store.VERSION} on one torch and device alone"


def uncommitted() -> str:
    """Code that the commit does not name, or git's complaint; empty if there is none."""
    command = ["git", "-C", HERE, "status", "--porcelain", "--", "*.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr or (done.stdout and f"code is not committed:\n{done.stdout}")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="where the rows are")
    parser.add_argument("--publish", action="store_true", help="write results/ and README.md's table")
    args = parser.parse_args(argv)
    rows = [row for path in sorted(args.folder.glob("*.jsonl")) for row in store.read_rows(path)]
    heads = [row for row in rows if row["setting"] is None]
    settings = [row for row in rows if row["setting"] or row["task"] in LABEL_FREE]
    parts = {  # name of the published rows -> table, what writes it, what draws it
        "rows": (tabulate(heads, lambda _: COLUMNS), main_tables, main_figures),
        "settings": (compared(tabulate(settings, settings_columns)), settings_tables, settings_figures),
        "alignment": (tabulate(rows, lambda _: POLICIES), alignment_tables, alignment_figures),
    }
    shown = [row for table, *_ in parts.values() for row in rows_of(table)]
    if not shown:
        raise data.InputError(f"no row of any table in {args.folder}/*.jsonl: run a method first")
    problem = mixed(shown) or (args.publish and uncommitted())
    if problem and args.publish:
        raise data.InputError(f"not published: {problem}")
    if problem:
        print(problem, file=sys.stderr)
    results, pyplot = HERE / "results", plotting()
    for part, (table, make_tables, draw) in parts.items():
        if not table:
            continue
        for name, text in make_tables(table).items():
            print(f"{name}:\n\n{text}\n")
            if args.publish and text:
                insert(HERE / "README.md" if name == "table" else results / "README.md", name, text)
        for name, figure in draw(pyplot, table).items():
            figure.savefig(args.folder / f"{name}.png")
            if args.publish:
                shutil.copy(args.folder / f"{name}.png", results)
        if args.publish:
            write_rows(results / f"{part}.jsonl", rows_of(table))


if __name__ == "__main__":
    evaluate.run(main)
