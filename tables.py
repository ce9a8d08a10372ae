"""Rows -> tables: mean, 95 % t-interval over seeds, paired differences.

A column names its method and flags and takes the default seeds, so that no other row changes a table; a line
has the seeds that all columns with rows share. Differences are taken seed by seed: at one seed all methods
share data, splits, weak models and initial student.
"""

import itertools
import math
import re
from collections import Counter
from statistics import mean, stdev

import numpy as np

import evaluate

COLUMNS = {  # name -> method, flags that differ from its defaults, colour
    "naive": ("naive", {}, "#888888"),
    "ensemble": ("naive", {"supervision": "mean"}, "#1f77b4"),
    "Conf": ("confidence", {}, "#8c564b"),
    "Conf on ensemble": ("confidence", {"supervision": "mean"}, "#2ca02c"),
    "AdaptConf": ("adaptive_confidence", {}, "#ff7f0e"),
    "AdaptConf on ensemble": ("adaptive_confidence", {"supervision": "mean"}, "#d62728"),
    "Bayes": ("bayes", {}, "#17becf"),
    "RAVEN": ("raven", {}, "#6a3d9a"),
    "majority vote": ("naive", {"supervision": "vote"}, "#9edae5"),
    "Dawid & Skene": ("dawid_skene", {}, "#bcbd22"),
    "prototypes": ("prototypes", {}, "#e377c2"),
}
CO_SUP = {"Co-sup": ("co_supervised", {}, None)}  # for tasks of several source domains
POLICIES = {
    "one reward model": ("raven_dpo", {"supervision": "one"}, "#888888"),
    "ensemble": ("raven_dpo", {"supervision": "mean"}, "#1f77b4"),
    "DPO-R": ("raven_dpo", {}, "#6a3d9a"),
    "DPO-R, equal weights": ("raven_dpo", {"weight_lr": 0.0}, "#ff7f0e"),
    "DPO-R, code's form": ("raven_dpo", {"form": "code"}, "#d62728"),
    "ceiling": ("raven_dpo", {"supervision": "gold"}, "black"),
}
COLORS = {name: color for name, (*_, color) in (COLUMNS | POLICIES).items()}
SOME = ("naive", "ensemble", "AdaptConf on ensemble", "RAVEN", "prototypes")  # for small tables
TUNED = SOME[1:4]
ENCODERS = [800, 801]  # steps of pretraining
CONFIDENT = ("confidence", "adaptive_confidence")
USUAL_RATES = {"naive": 3e-5, "raven": 3e-5, "adaptive_confidence": 1e-4, "prototypes": 1e-3}
TRUST = {name: COLUMNS[name] for name in ("ensemble", "RAVEN")} | {"equal": ("raven", {"weight_lr": 0.0})}
SETTINGS = {  # AdaptConf's setting -> its authors' flags; published data, KD / AugConf / AdaptConf in %
    "distillation": ((0.5, 0.0), "CIFAR-100, ResNet20 → ResNet56: 73.81 / 73.86 / 74.17"),
    "noisy labels": ((0.5, 0.25), "CIFAR, mean of all noises, top-1 and -5 mixed: 91.20 / 91.04 / 91.45"),
    "few-shot": ((8.0, 0.25), "miniImageNet, mean of 1-shot and 5-shot: 70.36 / 70.46 / 70.82"),
    "transfer": ((4.0, 0.0), "ImageNet, ResNet50 → ViT-B (MAE): 83.62 / 83.69 / 83.86"),
}
DEFAULTS = {"temperature": 8.0, "beta_ramp": 0.5}  # of these flags
ABLATION = {  # RAVEN's parts -> method and flags; published mean PGR in % of its three shifted image sets
    "naive": ("naive", {}, 1.8),
    "equal weights": ("raven", {"weight_lr": 0.0, "easy_phase": 0.0}, 10.4),
    "easy samples only": ("raven", {"easy_phase": 1.0}, 11.1),
    "equal weights, easy start": ("raven", {"weight_lr": 0.0}, 10.7),
    "learned weights": ("raven", {"easy_phase": 0.0}, 14.3),
    "RAVEN": ("raven", {}, 16.1),
    "best weak model": ("naive", {}, 15.0),  # of its students the one that an oracle chooses
}
NUMBERS = [1, 3, 5, 10, 20]  # of weak models
COUNTED = ("ensemble", "RAVEN", "prototypes")
NUMBERED = {
    (name, n): (method, flags | {"weak_models": n})
    for name in COUNTED for n in NUMBERS for method, flags, _ in [COLUMNS[name]]
}  # fmt: skip
SHARP = {"sharper": 0.25, "as it is": 1.0, "softer": 4.0}  # temperature of one of three weak models
SHARPENED = {"many": ("raven", {"weak_models": NUMBERS[-1]})}
for (name, T), m in itertools.product(SHARP.items(), range(3)):
    one = {"weak_temperatures": [T if i == m else 1.0 for i in range(3)]}
    SHARPENED[m, name] = ("raven", one if T != 1 else {})
SPECIALISTS = {name: COLUMNS[name] for name in ("ensemble", "Bayes", "RAVEN", "prototypes")}
SPECIALISTS |= {
    f"{name}, specialists": (method, flags | {"weak_models": "specialists"})
    for name, (method, flags, _) in SPECIALISTS.items()
} | CO_SUP  # fmt: skip
CONTROLS = {"half": "1/2", "one": "1", "swapped": "1 − b", "select": "0 or 1"}  # --beta -> instead of b
LABEL_FREE = ("glyphs-shift", "reviews-shift", "preferences-shift")  # also in the ablation of b
SEVERITY = {"glyphs": 0, "glyphs-shift": 0.4} | {f"glyphs-shift-{x}": x for x in (0.2, 0.6, 0.8)}
KINDS = "cifar100 glyphs mnist usps folder reviews text preferences hh".split()  # in this order, then others
FAMILIES = {  # the start of a line, the first that fits
    "glyphs": "rendered digits", "usps-mnist": "handwriting", "mnist-usps": "handwriting",
    "folder": "photographs",
    "reviews": "generated reviews", "preferences": "generated preferences", "hh": "HH-RLHF",
    **{f"text:{each}": "Amazon reviews" for each in ("books", "dvd", "electronics", "kitchen", "video")},
    **{f"text:{each}": "tweets" for each in ("boston", "oklahoma", "sandy", "west")},
}  # fmt: skip
FIRST_TASKS = """glyphs-shift usps-mnist folder:caltech:amazon folder:amazon+caltech+dslr:webcam reviews-shift
    text:books:kitchen preferences-shift hh-helpful-harmless""".split()  # in README.md
# Quantile .975 of Student's t at 1, 2, ... 10 degrees of freedom; beyond, the last serves (a bit too wide).
T975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]
Table = dict[str, dict[str, dict[int, dict]]]  # table[line][column][seed] is a row


def variants(names: tuple, flag: str, choices: list, usual: dict) -> dict:
    """(name, choice) -> method and flags, of which the method's usual choice is none."""
    columns = {}
    for name in names:
        method, flags, _ = COLUMNS[name]
        for choice in choices:
            columns[name, choice] = (method, flags if choice == usual[method] else flags | {flag: choice})
    return columns


def protocol_columns(row: dict) -> dict:
    """The same methods with what protocol.py found last for the row's kind and supervision."""
    flags, own = row["flags"], {"protocol": row["flags"].get("protocol")}
    searched = {"method": row["method"], "kind": row.get("kind"), "flags": own["protocol"]}
    whose = (flags.get("supervision", "each"), None)
    lines = evaluate.searches() if own["protocol"] else []
    last = any(searched.items() <= line.items() and line["supervision"] in whose for line in lines)
    columns = COLUMNS | CO_SUP
    return {name: (method, flags | own) for name, (method, flags, _) in columns.items() if last}


def settings_columns(row: dict) -> dict:
    """KD, AugConf, AdaptConf with its authors' flags for the setting; the same with other choices of b."""
    flags, _ = SETTINGS.get(row["setting"], (DEFAULTS.values(), ""))
    own = {key: flag for (key, default), flag in zip(DEFAULTS.items(), flags) if flag != default}
    same_rate = {} if row["setting"] else {"lr": 1e-4}  # as the confidence losses: what differs is b
    columns = {"KD": ("naive", same_rate), "AugConf": ("confidence", {})}
    columns |= {"AdaptConf": ("adaptive_confidence", own)}
    columns |= {beta: ("adaptive_confidence", own | {"beta": beta}) for beta in CONTROLS}
    return columns if row["setting"] or row["task"] in LABEL_FREE else {}


def tabulate(rows: list[dict], columns_of) -> Table:
    """The rows that columns_of(row) names; of several in one place the last. A line is a task, with
    the user's data where there are several, and an encoder or policy of choice."""
    found, contents = {}, Counter(task for task, _ in {(row["task"], row["data"]) for row in rows})
    for row in sorted(rows, key=lambda row: row["seed"]):
        flags, columns = dict(row["flags"]), columns_of(row)
        own = [row["data"][:6]] if row["data"] and contents[row["task"]] > 1 else []
        named = ("text_encoder", "image_encoder", "weak_encoder", "policy")
        own += [flags.pop(key) for key in named if key in flags]
        for name, (method, wanted, *_) in columns.items():
            if (row["method"], flags) == (method, wanted) and row["seed"] in evaluate.DEFAULT_SEEDS:
                line = " ".join([row["task"], *own])
                found.setdefault(line, {each: {} for each in columns})[name][row["seed"]] = row
    table = {}
    for line, columns in sorted(found.items(), key=lambda item: place(item[0])):
        seeds = sorted(set.intersection(*(set(rows) for rows in columns.values() if rows)))
        if seeds:
            table[line] = {name: {s: rows[s] for s in seeds if rows} for name, rows in columns.items()}
    return table


def place(line: str) -> tuple:
    """By which a table's lines are sorted; False comes first."""
    return [not line.startswith(kind) for kind in KINDS], SEVERITY.get(line, 0), line


def merged(columns: dict[str, dict]) -> dict[int, dict]:
    """A row of each seed: weak models and ceiling are the same in all columns."""
    return next(rows for rows in columns.values() if rows)


def rows_of(tables: list[Table]) -> list[dict]:
    """All rows of the tables, each once."""
    cells = (cell for table in tables for line in table.values() for cell in line.values())
    return list({id(row): row for cell in cells for row in cell.values()}.values())


def title(line: str, columns: dict) -> str:
    return f"{line} (n = {len(merged(columns))})"


def values(rows: dict[int, dict], key: str, minus: dict | None = None) -> list:
    """The rows' values, or what they are above those of `minus`, seed by seed."""
    if minus is None:
        return [row[key] for row in rows.values()]
    return [row[key] - minus[seed][key] for seed, row in rows.items() if minus]


def interval(numbers: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval, NaN for a single number."""
    n = len(numbers)
    half = T975[min(n - 1, len(T975)) - 1] * stdev(numbers) / math.sqrt(n) if n > 1 else math.nan
    return mean(numbers), half


def show(numbers: list[float], digits=1, sign="", scale=100) -> str:
    """ "12.3 ±4.5", times scale. "–": there is no number, or one is None."""
    if not numbers or None in numbers:
        return "–"
    center, half = interval([scale * number for number in numbers])
    text = f"{center:{sign}.{digits}f}" + ("" if math.isnan(half) else f" ±{half:.{digits}f}")
    return text.replace("-", "−")


def markdown(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def sheet(corner: str, lines: dict[str, dict[str, str]]) -> str:
    """lines[name][header] as a table; empty without lines."""
    header = [corner, *next(iter(lines.values()), [])]
    return markdown(header, [[name, *cells.values()] for name, cells in lines.items()]) if lines else ""


def gain(rows: dict, other: dict, key="student") -> str:
    return show(values(rows, key, other), sign="+")


def main_tables(table: Table) -> dict[str, str]:
    """README.md's table; the same of tasks with an encoder of choice; accuracy and PGR; paired differences: a
    line per task."""
    first, real, scores, differences = {}, {}, {}, {}
    for line, columns in table.items():
        some = merged(columns)
        head, ceiling = title(line, columns), {"ceiling": show(values(some, "ceiling"))}
        students = {name: show(values(rows, "student")) for name, rows in columns.items()}
        weak = show([mean(accuracies) for accuracies in values(some, "weak")])
        brief = {"weak mean": weak} | {name: students[name] for name in SOME} | ceiling
        first |= {head: brief} if line.split()[0] in FIRST_TASKS else {}
        real |= {head: brief} if " " in line else {}
        weak = zip(values(some, "weak_models")[0], map(show, zip(*values(some, "weak"))))
        own = {"features": values(some, "encoder")[0], "weak models": ", ".join(map(" ".join, weak))}
        pgrs = {name: show(values(rows, "pgr"), 0) for name, rows in columns.items()}
        scores[head] = own | {name: f"{students[name]} / {pgrs[name]}" for name in COLUMNS} | ceiling
        others = list(COLUMNS)[1:]
        differences[head] = {f"{name} − naive": gain(columns[name], columns["naive"]) for name in others}
    texts = {"table": sheet("accuracy in %", first), "real": sheet("accuracy in %", real)}
    texts |= {"scores": sheet("accuracy / PGR in %", scores)}
    return texts | {"differences": sheet("accuracy in points", differences)}


def weight_tables(table: Table) -> dict[str, str]:
    """What RAVEN's weights do, and what they are good for."""
    lines = {}
    for line, columns in table.items():
        ensemble, raven, equal = (columns[name] for name in TRUST)
        largest = [max(weights) for weights in values(raven, "weights")]
        far = [row for row in raven.values() if max(row["weights"]) > 0.4]
        right = sum(np.argmax(row["weights"]) == np.argmax(row["weak"]) for row in far)
        own = lines[title(line, columns)] = {"largest weight": show(largest, 2, scale=1)}
        own |= {"above .4": f"{len(far)} of {len(raven)}", "on the most accurate": f"{right} of {len(far)}"}
        own["RAVEN − equal weights"] = gain(raven, equal)
        own["equal weights − ensemble"] = gain(equal, ensemble)
    return {"weights": sheet("accuracy in points", lines)}


def ablation_tables(table: Table) -> dict[str, str]:
    """RAVEN's parts, one by one; the last is the student of the weak model that is best on test."""
    lines, means = {}, {name: [] for name in ABLATION}
    for line, columns in table.items():
        of = {name: (values(rows, "student"), values(rows, "pgr")) for name, rows in columns.items()}
        naive = columns["naive"].values()
        best = [row["students"][np.argmax(row["weak"])] for row in naive]
        base = ((mean(row["weak"]), own, row["ceiling"], row["n_test"]) for own, row in zip(best, naive))
        of["best weak model"] = (best, [evaluate.pgr(*each) for each in base])
        cells = lines[title(line, columns)] = {}
        clear = not any(None in pgrs for _, pgrs in of.values())  # the mean is over the same tasks for all
        for name, (own, pgrs) in of.items():
            cells[name] = f"{show(own)} / {show(pgrs, 0)}"
            means[name] += [mean(pgrs)] if clear else []
    if lines:
        lines[f"mean PGR ({len(means['RAVEN'])} tasks)"] = {name: show(own, 0) for name, own in means.items()}
        lines["the same, published"] = {name: f"{pgr:g}" for name, (*_, pgr) in ABLATION.items()}
    return {"parts": sheet("accuracy / PGR in %", lines)}


def specialist_tables(table: Table) -> dict[str, str]:
    """Students of the usual weak models, and of specialists."""
    lines = {}
    for line, columns in table.items():
        of = lines[title(line, columns)] = {}
        for name, key in (("weak mean", "RAVEN"), ("specialists' mean", "Co-sup")):
            of[name] = show([mean(accuracies) for accuracies in values(columns[key], "weak")])
        of |= {name: show(values(rows, "student")) for name, rows in columns.items()}
        of["ceiling"] = show(values(columns["RAVEN"], "ceiling"))
    return {"specialists": sheet("accuracy in %", lines)}


def confidence_tables(table: Table) -> dict[str, str]:
    """What the confidence losses make of a naive student of the same labels."""
    lines, bases = {}, {"Conf": "naive", "AdaptConf": "naive"}
    bases |= {f"{name} on ensemble": "ensemble" for name in bases}
    for line, columns in table.items():
        own = lines[title(line, columns)] = {}
        own |= {f"{name} − {base}": gain(columns[name], columns[base]) for name, base in bases.items()}
        histories = ("agreement_history", "disagreement_beta_history")  # b is 1/2 on agreement
        last = [[row[key][-1] or 0 for key in histories] for row in columns["AdaptConf on ensemble"].values()]
        own["mean b at the end"] = show([agreed / 2 + (1 - agreed) * b for agreed, b in last], 2, scale=1)
        for name in ("Conf on ensemble", "AdaptConf on ensemble"):
            own[f"{name} agrees with naive at its rate"] = show(values(columns[name], "agreement_naive"))
    return {"confidence": sheet("gains in points, agreement in %", lines)}


def family(line: str) -> str:
    """The task's, of a file the start of its name."""
    if ".npz" in line:
        return re.split("[-_.]", line)[0]
    return next((name for start, name in FAMILIES.items() if line.startswith(start)), line.split()[0])


def against_tables(table: Table) -> dict[str, str]:
    """Every method against RAVEN, over all tasks and over those of a family."""
    others, gains, pgrs, methods, families = [name for name in COLUMNS if name != "RAVEN"], {}, [], {}, {}
    for line, columns in table.items():
        raven, own = columns["RAVEN"], {name: values(columns[name], "pgr") for name in COLUMNS}
        gains[line] = {name: mean(values(columns[name], "student", raven)) for name in others}
        pgrs += [] if any(None in each for each in own.values()) else [own]
        families.setdefault(family(line), []).append(gains[line])
    for name in COLUMNS if gains else []:
        own = methods[name] = {f"mean PGR ({len(pgrs)} tasks)": show([mean(each[name]) for each in pgrs], 0)}
        if name in others:
            points = {line: own[name] for line, own in gains.items()}
            own[f"− RAVEN ({len(points)} tasks)"] = show([*points.values()], sign="+")
            own["better on"] = str(sum(each > 0 for each in points.values()))
            worst = min(points, key=points.get)
            own["worst"] = f"{show([points[worst]], sign='+')} ({worst})"
    families = {
        f"{name} ({len(own)})": {other: show([each[other] for each in own], sign="+") for other in others}
        for name, own in families.items()
    }
    return {"against": sheet("points", methods), "families": sheet("− RAVEN in points", families)}


def auto_tables(table: Table) -> dict[str, str]:
    """The rates that auto chooses, and what students gain at them over the usual one."""
    lines = {}
    for line, columns in table.items():
        chosen = sorted(values(columns["ensemble", "auto"], "lr"))
        own = lines[title(line, columns)] = {"chosen": ", ".join(f"{lr:g}" for lr in chosen)}
        for name in TUNED:
            own[f"{name}: auto − usual"] = gain(columns[name, "auto"], columns[name, "usual"])
    return {"auto": sheet("accuracy in points", lines)}


def encoder_tables(table: Table) -> dict[str, str]:
    """Mean accuracies with either encoder."""
    lines = {}
    for line, columns in table.items():
        own = lines[title(line, columns)] = {}
        for name in SOME:
            means = (mean(values(columns[name, steps], "student")) for steps in ENCODERS)
            own[name] = " / ".join(f"{100 * each:.1f}" for each in means)
    return {"encoders": sheet("accuracy in %: 800 / 801 steps", lines)}


def protocol_tables(table: Table) -> dict[str, str]:
    """What protocol.py found, and what students are with it."""
    found, scores = {}, {}
    columns = (COLUMNS | CO_SUP).items()
    names = {(m, flags.get("supervision", "each")): name for name, (m, flags, _) in columns}
    names |= {(m, None): name for (m, _), name in names.items()}
    for each in evaluate.searches():
        (_, lr), (flag, own) = each["flags"].items()
        name, vals = names[each["method"], each["supervision"]], [val for *_, val in each["trials"]]
        line = found.setdefault(f"{name}: --lr, --{flag.replace('_', '-')}", {})
        line[each["kind"]] = f"{lr:g}, {own:g}: {100 * max(vals):.1f} ({100 * min(vals):.1f})"
    for line, columns in table.items():
        # Without the ceiling, which would differ: naive's --steps is its length too.
        scores[title(line, columns)] = {name: show(values(rows, "student")) for name, rows in columns.items()}
    whole = {line: own for line, own in table.items() if all(own[name] for name in COLUMNS)}
    against = against_tables(whole)["against"]
    texts = {"protocol": sheet("chosen: val in %", found), "protocol-scores": sheet("accuracy in %", scores)}
    return texts | {"protocol-against": against}


def by_shots(rows: list[dict]):
    """The rows; few-shot ones twice, with their 1-shot and 5-shot accuracies on novel classes."""
    for row in rows:
        for shots, scores in row.get("few_shot", {"test": {"": {}}})["test"].items():
            own = {name: [accuracy] if name == "weak" else accuracy for name, (accuracy, _) in scores.items()}
            yield row | own | {"task": f"{row['task']} {shots}".strip()}


def settings_tables(rows: list[dict]) -> dict[str, str]:
    """AdaptConf's settings in the form of its paper, and the ablation of its b."""
    table = tabulate([*by_shots(rows)], settings_columns)
    settings, ablation = {}, {}
    for line, columns in table.items():
        some = merged(columns)
        row, head = some[min(some)], title(line, columns)
        students = {name: show(values(columns[name], "student")) for name in ("KD", "AugConf", "AdaptConf")}
        if row["setting"]:
            (temperature, ramp), published = SETTINGS[row["setting"]]
            own = {"T, ramp": f"{temperature:g}, {ramp:g}"}
            own |= {"teacher": show([weak for [weak] in values(some, "weak")])}
            alone = [show(values(some, key)) for key in ("labels_alone", "ceiling") if key in row]
            own |= {"labels alone": " / ".join(alone)} | students
            for name, other in (("AugConf", "KD"), ("AdaptConf", "KD"), ("AdaptConf", "AugConf")):
                gains = values(columns[name], "student", columns[other])
                center, half = interval(gains) if gains else (1, 0)
                own[f"{name} − {other}"] = show(gains, sign="+") + ("" if center > half else ", not shown")
            settings[head] = own | {"published: KD / AugConf / AdaptConf": published}
        if any(columns[beta] for beta in CONTROLS):
            gains = {name: gain(rows, columns["KD"]) for name, rows in columns.items()}
            ablation[head] = {"b = 0 (KD, naive)": students["KD"], "adaptive": gains["AdaptConf"]}
            ablation[head] |= {f"{beta}: {meaning}": gains[beta] for beta, meaning in CONTROLS.items()}
    ablation = sheet("accuracy in %, gains in points", ablation)
    return {"settings": sheet("accuracy in %", settings), "ablation": ablation}


def alignment_tables(table: Table) -> dict[str, str]:
    """Per task: what its policies win, and how far they are from the one before training; reward models."""
    measured = {"gold reward": ("gold_reward", 2), "KL per token": ("kl", 3)}
    measured |= {"tokens": ("length", 1), "well-formed": ("well_formed", 2)}
    keys, texts = ("win_rate", *(key for key, _ in measured.values())), []
    for line, columns in table.items():
        some, gold, lines = merged(columns), columns["ceiling"], {}
        clear = gold and all(row["win_rate"] - 0.5 > row["win_interval"] for row in gold.values())
        before = {seed: {key: row.get(f"{key}_before", 0) for key in keys} for seed, row in some.items()}
        for name, rows in {"before training, sampled again": before, **columns}.items():
            wins, best = values(rows, "win_rate"), values(gold, "win_rate")
            shares = [(win - 0.5) / (most - 0.5) for win, most in zip(wins, best) if clear]
            lines[name] = {"win rate in %": show(wins), "recovered in %": show(shares, 0)}
            lines[name]["win rate − ensemble's"] = gain(rows, columns["ensemble"], "win_rate")
            for measure, (key, digits) in measured.items():
                lines[name][measure] = show(values(rows, key), digits, scale=1)
        texts.append(sheet(title(line, columns), lines))
        agreed = f"accuracy in % (all agree on {show(values(some, 'easy_fraction'))} % of the pairs)"
        lines = {}
        for m, reward_model in enumerate(values(some, "reward_models")[0]):
            lines[reward_model] = {agreed: show([each[m] for each in values(some, "reward_accuracy")])}
            for name in ("DPO-R", "DPO-R, code's form"):
                weights = [each[m] for each in values(columns[name], "weights")]
                lines[reward_model][f"weight in {name}"] = show(weights, 2, scale=1)
        texts.append(sheet("reward model", lines))
    return {"alignment": "\n\n".join(texts)}


def of(rows: list[dict]) -> dict[str, Table]:
    """All tables of the rows, by name."""

    def whole(columns_of):  # its lines that have rows in all columns
        return {line: own for line, own in tabulate(rows, columns_of).items() if all(own.values())}

    found = {"heads": tabulate(rows, lambda row: {} if row["setting"] else COLUMNS)}
    confidence = {name: own for name, own in COLUMNS.items() if own[0] in ("naive", *CONFIDENT)}
    found |= {"compared": whole(lambda row: COLUMNS), "trust": whole(lambda row: TRUST)}
    found |= {"ablation": whole(lambda row: ABLATION), "specialists": whole(lambda row: SPECIALISTS)}
    found |= {"numbers": whole(lambda row: NUMBERED), "controls": whole(lambda row: SHARPENED)}
    found |= {"confidence": whole(lambda row: confidence)}
    of_auto = variants(TUNED, "lr", ["usual", "auto"], dict.fromkeys(USUAL_RATES, "usual"))
    of_encoders = variants(SOME, "encoder_steps", ENCODERS, dict.fromkeys(USUAL_RATES, 800))
    of_rates = variants(SOME, "lr", [*evaluate.RATES, "auto"], USUAL_RATES)
    found |= {"rates": whole(lambda row: of_rates), "auto": whole(lambda row: of_auto)}
    found |= {"encoders": whole(lambda row: of_encoders)}
    found |= {"protocol": tabulate(rows, protocol_columns), "policies": tabulate(rows, lambda row: POLICIES)}
    found["settings"] = {
        line: columns for line, columns in tabulate(rows, settings_columns).items()
        if line.split()[0] not in LABEL_FREE or any(columns[beta] for beta in CONTROLS)
    }  # fmt: skip
    return found


def texts(found: dict[str, Table], rows: list[dict]) -> dict[str, str]:
    """What is printed and published, by the mark in the page; empty where there are no rows."""
    made = {"heads": main_tables, "confidence": confidence_tables, "compared": against_tables}
    made |= {"trust": weight_tables, "auto": auto_tables}
    made |= {"ablation": ablation_tables, "specialists": specialist_tables}
    made |= {"encoders": encoder_tables, "protocol": protocol_tables, "policies": alignment_tables}
    made = [make(found[name]) for name, make in made.items()] + [settings_tables(rows)]
    return {mark: text for each in made for mark, text in each.items()}
