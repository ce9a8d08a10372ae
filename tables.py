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
BASES = {"Conf": "naive", "AdaptConf": "naive"}  # naive students of the same labels
BASES |= {f"{name} on ensemble": "ensemble" for name in BASES}
CONTROLS = {"half": "1/2", "one": "1", "swapped": "1 − b", "select": "0 or 1"}  # --beta -> instead of b
LABEL_FREE = ("glyphs-shift", "reviews-shift", "preferences-shift")  # also in the ablation of b
SEVERITY = {"glyphs": 0, "glyphs-shift": 0.4} | {f"glyphs-shift-{x}": x for x in (0.2, 0.6, 0.8)}
KINDS = "cifar100 glyphs mnist usps folder reviews text preferences hh".split()  # in this order, then others
FAMILIES = {  # how their lines start
    "rendered digits": "glyphs", "handwriting": ("usps-mnist", "mnist-usps"), "photographs": "folder",
    "generated reviews": "reviews", "generated preferences": "preferences", "HH-RLHF": "hh",
    "Amazon reviews": tuple(f"text:{each}" for each in "books dvd electronics kitchen video".split()),
    "tweets": tuple(f"text:{each}" for each in "boston oklahoma sandy west".split()),
}  # fmt: skip
FIRST_TASKS = """glyphs-shift usps-mnist folder:caltech:amazon folder:amazon+caltech+dslr:webcam reviews-shift
    text:books:kitchen preferences-shift hh-helpful-harmless""".split()  # in README.md
# Quantile .975 of Student's t at 1, 2, ... 10 degrees of freedom; beyond, the last serves (a bit too wide).
T975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]
Table = dict[str, dict[str, dict[int, dict]]]  # table[line][column][seed] is a row


def at_rates(names: tuple, rates: list) -> dict:
    """(name, rate) -> method and flags, of which its usual rate is none."""
    return {
        (name, lr): (method, flags if lr == USUAL_RATES[method] else flags | {"lr": lr})
        for name in names for method, flags, _ in [COLUMNS[name]] for lr in rates
    }  # fmt: skip


def protocol_columns(row: dict) -> dict:
    """The same methods with what protocol.py found last for the row's kind and supervision."""
    found = row["flags"].get("protocol")
    if found is None:
        return {}
    searched = {"method": row["method"], "kind": row["kind"], "flags": found}
    whose = (row["flags"].get("supervision", "each"), None)
    lines = [line for line in evaluate.searches() if searched.items() <= line.items()]
    columns = COLUMNS | CO_SUP if any(line["supervision"] in whose for line in lines) else {}
    return {name: (method, flags | {"protocol": found}) for name, (method, flags, _) in columns.items()}


def settings_columns(row: dict) -> dict:
    """KD, AugConf, AdaptConf with its authors' flags for the setting; the same with other choices of b."""
    if not row["setting"] and row["task"] not in LABEL_FREE:
        return {}
    flags, _ = SETTINGS.get(row["setting"], (DEFAULTS.values(), ""))
    own = {key: flag for (key, default), flag in zip(DEFAULTS.items(), flags) if flag != default}
    same_rate = {} if row["setting"] else {"lr": 1e-4}  # as the confidence losses: what differs is b
    columns = {"KD": ("naive", same_rate), "AugConf": ("confidence", {})}
    columns |= {"AdaptConf": ("adaptive_confidence", own)}
    return columns | {beta: ("adaptive_confidence", own | {"beta": beta}) for beta in CONTROLS}


def tabulate(rows: list[dict], columns_of, whole=False) -> Table:
    """The rows that columns_of(row) names; of several in one place the last. A line is a task, with
    the user's data where there are several, and an encoder or policy of choice; whole: only lines that
    have rows in all columns."""
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
        if seeds and (all(columns.values()) or not whole):
            table[line] = {name: {s: rows[s] for s in seeds if rows} for name, rows in columns.items()}
    return table


def place(line: str) -> tuple:
    """By which a table's lines are sorted; False comes first."""
    return [not line.startswith(kind) for kind in KINDS], SEVERITY.get(line, 0), line


def by_shots(rows: list[dict]):
    """The rows; few-shot ones twice, with their 1-shot and 5-shot accuracies on novel classes."""
    for row in rows:
        for shots, scores in row.get("few_shot", {"test": {"": {}}})["test"].items():
            own = {name: [accuracy] if name == "weak" else accuracy for name, (accuracy, _) in scores.items()}
            yield row | own | {"task": f"{row['task']} {shots}".strip()}


def of(rows: list[dict]) -> dict[str, Table]:
    """All tables of the rows, by name."""
    confident = {name: own for name, own in COLUMNS.items() if name in BASES or name in BASES.values()}
    rates = at_rates(SOME, [*evaluate.RATES, "auto"])
    auto = {(name, "usual"): COLUMNS[name] for name in TUNED} | at_rates(TUNED, ["auto"])
    whole = {"compared": COLUMNS, "trust": TRUST, "confidence": confident, "rates": rates, "auto": auto}
    whole |= {"parts": ABLATION, "specialists": SPECIALISTS, "numbers": NUMBERED, "controls": SHARPENED}
    found = {name: tabulate(rows, lambda _, own=own: own, True) for name, own in whole.items()}
    found["heads"] = tabulate(rows, lambda row: {} if row["setting"] else COLUMNS)
    found |= {"protocol": tabulate(rows, protocol_columns), "policies": tabulate(rows, lambda _: POLICIES)}
    found |= {"settings": tabulate(rows, settings_columns)}
    return found | {"shots": tabulate([*by_shots(rows)], settings_columns)}


def merged(columns: dict[str, dict]) -> dict[int, dict]:
    """A row of each seed: weak models and ceiling are the same in all columns."""
    return next(rows for rows in columns.values() if rows)


def rows_of(tables: list[Table]) -> list[dict]:
    """All rows of the tables, each once."""
    cells = (cell for table in tables for line in table.values() for cell in line.values())
    return list({id(row): row for cell in cells for row in cell.values()}.values())


def title(line: str, columns: dict) -> str:
    return f"{line} (n = {len(merged(columns))})"


def values(rows: dict[int, dict], key: str) -> list:
    return [row[key] for row in rows.values()]


def gains(rows: dict[int, dict], other: dict[int, dict], key="student") -> list[float]:
    """What the rows are above those of `other`, seed by seed."""
    return [row[key] - other[seed][key] for seed, row in rows.items() if seed in other]


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


def gain(rows: dict, other: dict, key="student") -> str:
    return show(gains(rows, other, key), sign="+")


def students(columns: dict[str, dict], names) -> dict[str, str]:
    return {name: show(values(columns[name], "student")) for name in names}


def weak_mean(rows: dict[int, dict]) -> str:
    return show([mean(accuracies) for accuracies in values(rows, "weak")])


def score(rows: dict[int, dict]) -> str:
    return f"{show(values(rows, 'student'))} / {show(values(rows, 'pgr'), 0)}"


def markdown(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def grid(corner: str, lines: dict[str, dict[str, str]]) -> str:
    """lines[name][header] as a table; empty without lines."""
    header = [corner, *next(iter(lines.values()), [])]
    return markdown(header, [[name, *cells.values()] for name, cells in lines.items()]) if lines else ""


def sheet(corner: str, table: Table, cells) -> str:
    """A line of cells(columns) for each line of the table."""
    return grid(corner, {title(line, columns): cells(columns) for line, columns in table.items()})


def brief(columns: dict) -> dict[str, str]:
    """README.md's line."""
    some = merged(columns)
    ceiling = {"ceiling": show(values(some, "ceiling"))}
    return {"weak mean": weak_mean(some)} | students(columns, SOME) | ceiling


def scores(columns: dict) -> dict[str, str]:
    """Accuracy and PGR of every method."""
    some = merged(columns)
    weak = zip(values(some, "weak_models")[0], map(show, zip(*values(some, "weak"))))
    own = {"features": values(some, "encoder")[0], "weak models": ", ".join(map(" ".join, weak))}
    return own | {name: score(columns[name]) for name in COLUMNS} | {"ceiling": show(values(some, "ceiling"))}


def weights(columns: dict) -> dict[str, str]:
    """What RAVEN's weights do, and what they are good for."""
    ensemble, raven, equal = (columns[name] for name in TRUST)
    far = [row for row in raven.values() if max(row["weights"]) > 0.4]
    right = sum(np.argmax(row["weights"]) == np.argmax(row["weak"]) for row in far)
    return {
        "largest weight": show([max(each) for each in values(raven, "weights")], 2, scale=1),
        "above .4": f"{len(far)} of {len(raven)}",
        "on the most accurate": f"{right} of {len(far)}",
        "RAVEN − equal weights": gain(raven, equal),
        "equal weights − ensemble": gain(equal, ensemble),
    }


def parts(table: Table) -> str:
    """RAVEN's parts, one by one; the last is the student of the weak model that is best on test."""
    lines, means = {}, {name: [] for name in ABLATION}
    for line, columns in table.items():
        best = {}
        for seed, row in columns["naive"].items():
            own = row["students"][np.argmax(row["weak"])]
            pgr = evaluate.pgr(mean(row["weak"]), own, row["ceiling"], row["n_test"])
            best[seed] = row | {"student": own, "pgr": pgr}
        columns = columns | {"best weak model": best}
        lines[title(line, columns)] = {name: score(rows) for name, rows in columns.items()}
        pgrs = {name: values(rows, "pgr") for name, rows in columns.items()}
        if not any(None in own for own in pgrs.values()):  # the mean is over the same tasks for all
            for name, own in pgrs.items():
                means[name].append(mean(own))
    if lines:
        lines[f"mean PGR ({len(means['RAVEN'])} tasks)"] = {name: show(own, 0) for name, own in means.items()}
        lines["the same, published"] = {name: f"{pgr:g}" for name, (*_, pgr) in ABLATION.items()}
    return grid("accuracy / PGR in %", lines)


def specialists(columns: dict) -> dict[str, str]:
    """Students of the usual weak models, and of specialists."""
    weak = {"weak mean": weak_mean(columns["RAVEN"]), "specialists' mean": weak_mean(columns["Co-sup"])}
    return weak | students(columns, columns) | {"ceiling": show(values(columns["RAVEN"], "ceiling"))}


def confidence(columns: dict) -> dict[str, str]:
    """What the confidence losses make of a naive student of the same labels."""
    own = {f"{name} − {base}": gain(columns[name], columns[base]) for name, base in BASES.items()}
    keys = ("agreement_history", "disagreement_beta_history")  # b is 1/2 on agreement
    last = [[row[key][-1] or 0 for key in keys] for row in columns["AdaptConf on ensemble"].values()]
    own["mean b at the end"] = show([agreed / 2 + (1 - agreed) * b for agreed, b in last], 2, scale=1)
    for name in ("Conf on ensemble", "AdaptConf on ensemble"):
        own[f"{name} agrees with naive at its rate"] = show(values(columns[name], "agreement_naive"))
    return own


def against(table: Table) -> str:
    """Every method against RAVEN."""
    lines, gained = {}, {line: above(columns) for line, columns in table.items()}
    pgrs = [{name: values(columns[name], "pgr") for name in COLUMNS} for columns in table.values()]
    pgrs = [own for own in pgrs if not any(None in each for each in own.values())]
    for name in COLUMNS if table else []:
        lines[name] = {f"mean PGR ({len(pgrs)} tasks)": show([mean(own[name]) for own in pgrs], 0)}
        if name != "RAVEN":
            points = {line: own[name] for line, own in gained.items()}
            worst = min(points, key=points.get)
            lines[name][f"− RAVEN ({len(points)} tasks)"] = show([*points.values()], sign="+")
            lines[name]["better on"] = str(sum(each > 0 for each in points.values()))
            lines[name]["worst"] = f"{show([points[worst]], sign='+')} ({worst})"
    return grid("points", lines)


def above(columns: dict) -> dict[str, float]:
    """What the other methods are above RAVEN, mean over seeds."""
    others = (name for name in COLUMNS if name != "RAVEN")
    return {name: mean(gains(columns[name], columns["RAVEN"])) for name in others}


def families(table: Table) -> str:
    """The same over the tasks of a family; a file's family is the start of its name."""
    found = {}
    for line, columns in table.items():
        family = next((name for name, start in FAMILIES.items() if line.startswith(start)), line.split()[0])
        if ".npz" in line:
            family = re.split("[-_.]", line)[0]
        found.setdefault(family, []).append(above(columns))
    lines = {
        f"{family} ({len(own)})": {name: show([each[name] for each in own], sign="+") for name in own[0]}
        for family, own in found.items()
    }
    return grid("− RAVEN in points", lines)


def auto(columns: dict) -> dict[str, str]:
    """The rates that auto chooses, and what students gain at them over the usual one."""
    own = {"chosen": ", ".join(f"{lr:g}" for lr in sorted(values(columns["ensemble", "auto"], "lr")))}
    pairs = {name: gain(columns[name, "auto"], columns[name, "usual"]) for name in TUNED}
    return own | {f"{name}: auto − usual": points for name, points in pairs.items()}


def searches() -> str:
    """What protocol.py found."""
    lines, columns = {}, COLUMNS | CO_SUP
    names = {(m, flags.get("supervision", "each")): name for name, (m, flags, _) in columns.items()}
    names |= {(m, None): name for (m, _), name in names.items()}
    for each in evaluate.searches():
        (_, lr), (flag, own) = each["flags"].items()
        name, vals = names[each["method"], each["supervision"]], [val for *_, val in each["trials"]]
        line = lines.setdefault(f"{name}: --lr, --{flag.replace('_', '-')}", {})
        line[each["kind"]] = f"{lr:g}, {own:g}: {100 * max(vals):.1f} ({100 * min(vals):.1f})"
    return grid("chosen: val in %", lines)


def settings(columns: dict) -> dict[str, str]:
    """AdaptConf's settings in the form of its paper."""
    some = merged(columns)
    row = some[min(some)]
    (temperature, ramp), published = SETTINGS[row["setting"]]
    own = {"T, ramp": f"{temperature:g}, {ramp:g}", "teacher": weak_mean(some)}
    alone = [show(values(some, key)) for key in ("labels_alone", "ceiling") if key in row]
    own |= {"labels alone": " / ".join(alone)} | students(columns, ("KD", "AugConf", "AdaptConf"))
    for name, other in (("AugConf", "KD"), ("AdaptConf", "KD"), ("AdaptConf", "AugConf")):
        points = gains(columns[name], columns[other])
        center, half = interval(points) if points else (1, 0)
        own[f"{name} − {other}"] = show(points, sign="+") + ("" if center > half else ", not shown")
    return own | {"published: KD / AugConf / AdaptConf": published}


def controls(columns: dict) -> dict[str, str]:
    """AdaptConf with its b, and with others in its place."""
    kd = columns["KD"]
    own = {"b = 0 (KD, naive)": show(values(kd, "student")), "adaptive": gain(columns["AdaptConf"], kd)}
    return own | {f"{beta}: {meaning}": gain(columns[beta], kd) for beta, meaning in CONTROLS.items()}


def alignment(table: Table) -> str:
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
        texts.append(grid(title(line, columns), lines))
        agreed = f"accuracy in % (all agree on {show(values(some, 'easy_fraction'))} % of the pairs)"
        lines = {}
        for m, reward_model in enumerate(values(some, "reward_models")[0]):
            lines[reward_model] = {agreed: show([each[m] for each in values(some, "reward_accuracy")])}
            for name in ("DPO-R", "DPO-R, code's form"):
                own = [each[m] for each in values(columns[name], "weights")]
                lines[reward_model][f"weight in {name}"] = show(own, 2, scale=1)
        texts.append(grid("reward model", lines))
    return "\n\n".join(texts)


def texts(found: dict[str, Table]) -> dict[str, str]:
    """What is printed and published, by the mark in the page; empty where there are no rows."""

    def lines(name, wanted):
        return {line: own for line, own in found[name].items() if wanted(line, own)}

    first = lines("heads", lambda line, _: line.split()[0] in FIRST_TASKS)
    settled = lines("shots", lambda _, own: any(row["setting"] for row in merged(own).values()))
    controlled = lines("shots", lambda _, own: any(own[beta] for beta in CONTROLS))
    searched = lines("protocol", lambda _, own: all(own[name] for name in COLUMNS))
    # Without the ceiling, which would differ: naive's --steps is its length too.
    scores_there = sheet("accuracy in %", found["protocol"], lambda own: students(own, own))
    return {
        "table": sheet("accuracy in %", first, brief),
        "real": sheet("accuracy in %", lines("heads", lambda line, _: " " in line), brief),
        "scores": sheet("accuracy / PGR in %", found["heads"], scores),
        "confidence": sheet("gains in points, agreement in %", found["confidence"], confidence),
        "against": against(found["compared"]),
        "families": families(found["compared"]),
        "weights": sheet("accuracy in points", found["trust"], weights),
        "auto": sheet("accuracy in points", found["auto"], auto),
        "parts": parts(found["parts"]),
        "specialists": sheet("accuracy in %", found["specialists"], specialists),
        "protocol": searches(),
        "protocol-scores": scores_there,
        "protocol-against": against(searched),
        "alignment": alignment(found["policies"]),
        "settings": sheet("accuracy in %", settled, settings),
        "ablation": sheet("accuracy in %, gains in points", controlled, controls),
    }
