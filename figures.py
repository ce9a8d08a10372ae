"""The figures of results/, each from a table of tables.py; and one of features, drawn by

    python figures.py FILE.png
"""

import sys
from statistics import mean

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import data
import evaluate
import models
import tables
import teachers
from methods import prototypes
from tables import COLORS, COLUMNS, CONTROLS, NUMBERS, SEVERITY, SOME, Table, interval, merged, title, values

STYLE = {"font.size": 9, "axes.titlesize": 8, "figure.dpi": 120, "legend.frameon": False}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}
matplotlib.rcParams.update(STYLE)


def panels(table: Table, wide: int, sharey=False):
    """A figure of `wide` panels a row, and for every line of the table: its panel and columns."""
    wide, high = min(len(table), wide), -(-len(table) // wide)
    figure = Figure(figsize=(1.6 + 2.4 * wide, 0.4 + 2.2 * high))
    axes = figure.subplots(high, wide, sharey=sharey, squeeze=False).flatten()
    for axis, line in zip(axes, table):
        axis.set_title(line.replace("+", "+\n").replace(" ", "\n"), loc="left")  # long names, side by side
    for axis in axes[len(table) :]:
        axis.remove()
    return figure, list(zip(axes, table.values()))


def bars(axis, at, numbers: list[list[float]], **style):
    """Mean and 95 % interval of each list, against `at`."""
    centers, halves = zip(*map(interval, numbers))
    return axis.errorbar(at, centers, yerr=halves, **style)


def curve(axis, label: str, at, numbers: list[list], form="o-") -> None:
    """The same with a line, in the colour of the method; of weak models' accuracies, of their mean."""
    style = {"color": COLORS.get(label, "black"), "markersize": 3, "linewidth": 1.2, "capsize": 2}
    means = [[float(np.mean(each)) for each in own] for own in numbers]
    bars(axis, at, means, fmt=form, label=label, **style)


def legend(figure: Figure, axis, ncols: int) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=ncols)


def curves(table: Table, names, at: list, xlabel: str):
    """Per task, accuracy of the columns (name, x) against x in `at`: figure, panels."""
    figure, found = panels(table, 4)
    for axis, columns in found:
        some = merged(columns)
        axis.plot(at, [np.mean(values(columns["ensemble", x], "weak")) for x in at], "k:", label="weak mean")
        axis.axhline(mean(values(some, "ceiling")), color="black", linestyle="--", label="ceiling")
        for name in names:
            curve(axis, name, at, [values(columns[name, x], "student") for x in at])
        axis.set(xscale="log", xlabel=f"{xlabel} (n = {len(some)})")
    return figure, found


def draw_rates(table: Table) -> Figure:
    """Against the student's learning rate; those that auto chose are marked."""
    figure, found = curves(table, SOME, evaluate.RATES, "learning rate")
    for axis, columns in found:
        chosen = values(columns["ensemble", "auto"], "lr")
        place = {"transform": axis.get_xaxis_transform(), "clip_on": False, "color": COLORS["ensemble"]}
        axis.plot(chosen, [0] * len(chosen), "^", markersize=7, alpha=0.6, label="chosen by auto", **place)
    legend(figure, axis, 8)
    return figure


def draw_numbers(table: Table) -> Figure:
    """Against the number of weak models."""
    figure, found = curves(table, tables.COUNTED, NUMBERS, "weak models")
    for axis, _ in found:
        axis.set_xticks(NUMBERS, NUMBERS)
        axis.minorticks_off()
    legend(figure, axis, 5)
    return figure


def draw_severity(table: Table) -> Figure:
    """Accuracy against shift severity, set apart sideways so that no interval hides another."""
    figure = Figure(figsize=(6.4, 3.4))
    axis, at = figure.subplots(), np.array([SEVERITY[line] for line in table])
    shown = {"ceiling": ("ceiling", "--")} | dict.fromkeys(COLUMNS, ("student", "o-"))
    shown |= {"weak mean": ("weak", ":")}
    for i, (name, (key, form)) in enumerate(shown.items()):
        numbers = [values(columns.get(name, merged(columns)), key) for columns in table.values()]
        there = [j for j, own in enumerate(numbers) if own]
        if there:
            curve(axis, name, at[there] + 0.005 * (i - 4), [numbers[j] for j in there], form)
    axis.set_xticks(at, [f"{x:g}\n(n = {len(merged(own))})" for x, own in zip(at, table.values())])
    axis.set(xlabel="shift severity", ylabel="test accuracy")
    figure.legend(loc="outside right center")
    return figure


def draw_weights(table: Table) -> Figure:
    """RAVEN's weights over epochs, a line per seed, beside each weak model's accuracy and confidence."""
    figure, found = panels(table, 5, sharey=True)
    for axis, columns in found:
        rows, names = columns["RAVEN"], values(columns["RAVEN"], "weak_models")[0]
        for history in values(rows, "weight_history"):
            axis.set_prop_cycle(None)  # a weak model's colour is the same at all seeds
            axis.plot(history, alpha=0.6, linewidth=1)
        axis.set(xlabel=f"epoch (n = {len(rows)})", ylim=(-0.03, 1.03))
        beside = axis.inset_axes([1.04, 0, 0.4, 1], sharey=axis)
        at, colors = range(len(names)), [f"C{m}" for m in range(len(names))]
        centers, halves = zip(*map(interval, zip(*values(rows, "weak"))))
        beside.bar(at, centers, yerr=halves, color=colors, alpha=0.6, capsize=2, width=0.7)
        confidence = zip(*values(rows, "weak_confidence"))
        mark = bars(beside, at, confidence, fmt="kD", markersize=3, capsize=2)
        beside.set_xticks(at, names, rotation=90)
        beside.tick_params(axis="y", labelleft=False)
    key = [Patch(color="#999999"), mark]
    figure.legend(key, ["weak model's accuracy", "its mean confidence"], loc="outside lower center", ncols=2)
    return figure


def rank_correlation(a, b) -> float:
    """Spearman's, of two lists without NaN; equal numbers share a rank."""
    ranks = [(x[:, None] > x).sum(1) + (x[:, None] == x).sum(1) / 2 for x in map(np.array, (a, b))]
    return np.corrcoef(*ranks)[0, 1]


def draw_controls(table: Table) -> Figure:
    """Per task, RAVEN's weight of each weak model, with its labels sharper, as they are and softer; below,
    how the weights of many weak models go with their accuracy, confidence and agreement."""
    figure = Figure(figsize=(0.8 + 2.4 * len(table), 4.4))
    axes = figure.subplots(2, len(table), sharey="row", squeeze=False)
    for (line, columns), (top, bottom) in zip(table.items(), axes.T):
        usual = columns[0, "as it is"]
        for i, (name, T) in enumerate(tables.SHARP.items()):
            weights = [[row["weights"][m] for row in columns[m, name].values()] for m in range(3)]
            label = f"{name}: T = {T:g}" if T != 1 else name
            bars(top, np.arange(3) + 0.2 * (i - 1), weights, fmt="^ov"[i], capsize=2, label=label)
        means = zip(*(np.mean(values(usual, key), 0) for key in ("weak", "weak_confidence")))
        named = zip(values(usual, "weak_models")[0], means)
        top.set_xticks(range(3), [f"{name}\n{own:.0%}, {sure:.2f}" for name, (own, sure) in named])
        top.set(title=title(line, columns), xlabel="weak model: accuracy, confidence")
        many, keys = columns["many"].values(), ("weak", "weak_confidence", "weak_agreement")
        found = [[rank_correlation(row["weights"], row[key]) for row in many] for key in keys]
        bottom.plot(found, "o", color="C7", alpha=0.4, markersize=4)
        bars(bottom, range(3), found, fmt="ko", capsize=3)
        bottom.axhline(0, color="black", linewidth=0.6)
        bottom.set_xticks(range(3), ["accuracy", "confidence", "agreement"])
        bottom.set(xlim=(-0.5, 2.5), ylim=(-1.05, 1.05))
    axes[0, 0].set_ylabel("RAVEN's weight")
    axes[1, 0].set_ylabel(f"rank correlation with the\nweights of {NUMBERS[-1]} weak models")
    legend(figure, axes[0, 0], 3)
    return figure


def draw_settings(table: Table) -> Figure:
    """How often student and weak labels agree over epochs, and mean b where not; thin lines are seeds."""
    figure = Figure(figsize=(0.8 + 1.6 * len(table), 4))
    axes = figure.subplots(2, len(table), sharex="col", sharey=True, squeeze=False)
    for (line, columns), column in zip(table.items(), axes.T):
        for color, name in zip(("C1", "C0", "C3", "C2", "C4"), ("AdaptConf", *CONTROLS)):
            for axis, key in zip(column, ("agreement_history", "disagreement_beta_history")):
                # (epochs, seeds); None, of an epoch without disagreement, becomes NaN and leaves a gap.
                histories = np.array(values(columns[name], key) or [[]], float).T
                epochs = range(1, 1 + len(histories))
                axis.plot(epochs, histories, color=color, alpha=0.3, linewidth=0.6)
                axis.plot(epochs, histories.mean(1), color=color, label=name, linewidth=1.4)
        column[0].set_title(line, fontsize=7)
        column[1].set(xlabel=f"epoch (n = {len(merged(columns))})", ylim=(-0.03, 1.03))
    axes[0, 0].set_ylabel("agreement")
    axes[1, 0].set_ylabel("b on disagreement")
    legend(figure, axes[0, 0], 1 + len(CONTROLS))
    return figure


def draw_alignment(table: Table) -> Figure:
    """Per task: gold reward against KL; DPO-R's weights over steps. A dot or line per seed."""
    figure = Figure(figsize=(8, 3 * len(table)))
    axes = figure.subplots(len(table), 2, squeeze=False)
    for (line, columns), (frontier, weights) in zip(table.items(), axes):
        for name, rows in columns.items():
            kl, gold = values(rows, "kl"), values(rows, "gold_reward")
            frontier.plot(kl, gold, "o", color=COLORS[name], alpha=0.7, markersize=4, label=name)
        frontier.plot(0, mean(values(merged(columns), "gold_reward_before")), "k+", label="before training")
        frontier.locator_params(axis="x", nbins=5)
        frontier.set(title=title(line, columns), xlabel="KL per token (nats)", ylabel="gold reward")
        for row in columns["DPO-R"].values():
            weights.set_prop_cycle(None)
            steps, history = zip(*((state["step"], state["weights"]) for state in row["history"]))
            lines = weights.plot(steps, history, alpha=0.7)
            weights.legend(lines, [f"reward model of {name}" for name in row["reward_models"]], fontsize=7)
        weights.set(xlabel="step", ylabel="weight in DPO-R", ylim=(-0.03, 1.03))
    legend(figure, frontier, 4)
    return figure


def draw_geometry(names: list[str]) -> Figure:
    """Strong features of 1,000 samples of each task in the plane of their largest variance, coloured by their
    class, by what the weak models say on average, and by the prototypes, drawn as stars."""
    figure = Figure(figsize=(7.5, 2.6 * len(names)))
    for name, row in zip(names, figure.subplots(len(names), 3, squeeze=False)):
        task = teachers.supervise(data.resolve(name), 0, None, "cpu", models.ENCODER_STEPS)
        x, y, weak_probs, _ = task.strong_train
        labels = prototypes.label(x, weak_probs)
        plane = x @ torch.linalg.svd(x, full_matrices=False)[2][:2].T  # x is centred
        said = {"truth": y, "mean weak label": weak_probs.mean(1).argmax(-1), "prototypes": labels.argmax(-1)}
        for axis, (who, classes) in zip(row, said.items()):
            axis.scatter(*plane[:1000].T, c=classes[:1000], cmap="tab10", s=2)
            axis.plot(*(labels.T @ plane / labels.sum(0)[:, None]).T, "k*")
            right = f": {(classes == y).float().mean():.0%} right" if who != "truth" else ""
            axis.set(title=f"{name}, {who}{right}", xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    draw_geometry(["glyphs-shift", "reviews-shift"]).savefig(sys.argv[1])
