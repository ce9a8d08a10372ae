"""Prints the tables of rows (tables.py) and draws the figures (figures.py); publishes both.

    python report.py [FOLDER]      # reads runs/*.jsonl, prints the tables, draws the figures into the folder
    python report.py --publish     # also writes results/, and the first table of README.md
"""

import argparse
import json
import re
import subprocess
from pathlib import Path

import data
import evaluate
import figures
import store
import tables

HERE = Path(__file__).resolve().parent
PARTS = {  # results/PART.jsonl -> the tables whose rows it holds
    "rows": ("heads", "trust", "protocol"),
    "rates": ("rates", "auto"),
    "settings": ("settings",),
    "alignment": ("policies",),
    "ablations": ("parts", "specialists", "numbers", "controls"),
}


def insert(path: Path, name: str, text: str) -> None:
    """Puts the text between <!-- NAME --> and <!-- end of NAME -->. Raises InputError where they lack."""
    marks = rf"(?s)(<!-- {name} -->\n).*(<!-- end of {name} -->)"
    page, found = re.subn(marks, lambda match: f"{match[1]}{text}\n{match[2]}", path.read_text())
    if not found:
        raise data.InputError(f"{path} lacks the marks of {name}")
    path.write_text(page)


def check(sources: set[tuple]) -> None:
    """Raises InputError where rows cannot be compared, or where the commit does not name the code."""
    if [committed for *_, committed in sources] != [True]:
        several = "of several torch or devices, or of code that was not committed"
        raise data.InputError(f"not published: rows of {sorted(sources)}: {several}")
    command = ["git", "-C", HERE, "status", "--porcelain", "--", "*.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    if changed := done.stdout + done.stderr:
        raise data.InputError(f"not published: code is not committed:\n{changed}")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="where the rows are")
    parser.add_argument("--publish", action="store_true", help="write results/ and README.md's table")
    args = parser.parse_args(argv)
    rows = [row for path in sorted(args.folder.glob("*.jsonl")) for row in store.read_rows(path)]
    rows = [row for row in rows if row.get("version") == store.VERSION]
    # Six decimals, more than any figure is certain to; the tables follow from the rows that are published.
    rows = json.loads(json.dumps(rows), parse_float=lambda number: round(float(number), 6))
    found = tables.of(rows)
    published, seen = {}, set()  # each row once
    for part, names in PARTS.items():
        own = [row for row in tables.rows_of([found[name] for name in names]) if id(row) not in seen]
        seen |= {id(row) for row in own}
        if part in ("rates", "ablations"):  # without histories, which nothing there draws
            own = [{key: row[key] for key in row if not key.endswith("_history")} for row in own]
        published[part] = own
    sources = {
        (row["torch"], row["device"], not (row["commit"] or "-dirty").endswith("-dirty"))
        for own in published.values() for row in own
    }  # fmt: skip
    if not sources:
        raise data.InputError(f"no row of any table in {args.folder}/*.jsonl: run a method first")
    print(f"rows of (torch, device, committed code): {sorted(sources)}\n")
    folders = [args.folder]
    if args.publish:
        check(sources)
        folders.append(HERE / "results")
    for name, text in tables.texts(found).items():
        print(f"{name}:\n\n{text}\n")
        if args.publish and text:
            insert(HERE / "README.md" if name == "table" else HERE / "results" / "README.md", name, text)
    heads = found["heads"].items()
    drawn = {name: found[name] for name in ("rates", "settings", "numbers", "controls")}
    drawn |= {"alignment": found["policies"]}
    drawn |= {"severity": {line: columns for line, columns in heads if line in tables.SEVERITY}}
    usual = ((line, own) for line, own in heads if not line.startswith("glyphs-shift-") and " " not in line)
    drawn |= {"weights": {line: columns for line, columns in usual if columns["RAVEN"]}}
    for name, table in drawn.items():
        for folder in folders if table else []:
            getattr(figures, f"draw_{name}")(table).savefig(folder / f"{name}.png")
    for part, own in published.items():
        if args.publish and own:
            path = HERE / "results" / f"{part}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in own))


if __name__ == "__main__":
    evaluate.run(main)
