"""run_all.sh, run_tests.sh and setup.sh, with a stand-in for Python that notes what it is asked to do."""

import importlib
import os
import shutil
import subprocess

import pytest
from conftest import ROOT

import data
import evaluate
import tables
from tasks import labelled

FAKE = """#!/usr/bin/env bash
echo "$0 $*" >> "$LOG"
case "$*" in
    *find_spec*) exit "${HAS_PACKAGES:-1}" ;;
    *version_info*) exit "${TOO_OLD:-0}" ;;
    "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *"pip install"*) exit "${PIP_FAILS:-0}" ;;
    *"${FAILS:-no such word}"*) exit 1 ;;
esac
"""


@pytest.fixture
def call(tmp_path):
    """call(script, arguments, variables): runs a copy of the script, in "a folder", and with it the stand-in.
    Returns (exit status, stderr, the lines that the stand-in noted)."""
    (tmp_path / "a folder").mkdir()
    for name in ("setup.sh", "run_all.sh", "run_tests.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / "a folder")
    fake, log = tmp_path / "python3", tmp_path / "log"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    usual = {key: os.environ[key] for key in os.environ.keys() - {"PYTHON", "OUT"}}
    usual |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}

    def call(script, *arguments, **variables):
        log.write_text("")
        command = [str(tmp_path / "a folder" / script), *arguments]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, env=usual | variables)
        return done.returncode, done.stderr, log.read_text().splitlines()

    return call


def test_what_is_broken_new_or_changed_is_installed_once(call, tmp_path):
    status, _, calls = call("run_all.sh", PIP_FAILS="7")
    assert status != 0 and not any("methods/" in line for line in calls)
    for more, installations in (("", 1), ("", 0), ("more", 1)):
        with open(tmp_path / "a folder" / "requirements.txt", "a") as file:
            file.write(more)
        status, stderr, calls = call("run_tests.sh", "-k", "raven")
        assert status == 0 and sum("pip install" in line for line in calls) == installations, stderr
        assert calls[-1].endswith(".venv/bin/python -m pytest -k raven")


def test_another_interpreter_is_used_as_it_is_or_makes_the_environment_or_is_refused(call, tmp_path):
    other = shutil.copy(tmp_path / "python3", tmp_path / "other-python")
    assert call("run_tests.sh", PYTHON=other, HAS_PACKAGES="0")[2][-1] == f"{other} -m pytest"
    for variables, message in (({"PYTHON": "/no/such"}, "/no/such"), ({"TOO_OLD": "1"}, "3.11")):
        status, stderr, _ = call("run_tests.sh", **variables)
        assert status == 1 and message in stderr and not (tmp_path / "a folder" / ".venv").exists()
    _, _, calls = call("run_tests.sh", PYTHON=other)
    assert f"{other} -m venv .venv" in calls and calls[-1].endswith(".venv/bin/python -m pytest")


SHIFTED = ["glyphs-shift", "reviews-shift", "preferences-shift"]
WHOLE = [*data.EMBEDDED, "glyphs-shift-0.2", "glyphs-shift-0.6", "glyphs-shift-0.8"]
LABELLED = "distill noisy-symmetric-0.2 noisy-asymmetric-0.4 fewshot transfer".split()
FILLED = {  # word of run_all.sh -> the tables that it fills, and their lines
    "": {"heads": WHOLE, "trust": data.EMBEDDED},
    "rates": {"rates": data.EMBEDDED, "auto": data.EMBEDDED},
    "protocol": {"protocol": data.EMBEDDED},
    "ablations": {"parts": SHIFTED, "numbers": SHIFTED, "controls": SHIFTED, "specialists": SHIFTED[1:]},
    "alignment": {"policies": ["reviews-dpo"]},
    "settings": {"settings": [f"glyphs-{name}" for name in LABELLED] + SHIFTED},
    "cifar100": {"settings": ["cifar100-distill"]},
}
UNFILLED = {"cifar100": tables.CONTROLS, "protocol": tables.CO_SUP}  # columns that may be empty


@pytest.mark.parametrize("word", FILLED)
def test_run_all_runs_what_its_tables_want(word, call, monkeypatch):
    """Rows without figures, of what each command asks for: they fill the tables."""
    status, stderr, calls = call("run_all.sh", *word.split(), OUT="else where")
    assert status == 0 and calls[-1].endswith("report.py else where"), stderr
    rows, missing = [], evaluate.missing

    def note(parser, argv, *others, **more):
        seeds = parser.parse_args(argv).seeds
        for known, _, row in missing(parser, [*argv, "--seeds", "0"], *others, **more):
            settings = [own.name for task, own in labelled.SETTINGS.items() if known.name.startswith(task)]
            row |= {"kind": known.kind, "setting": settings[0] if settings else None}
            rows.extend(row | {"seed": seed} for seed in seeds)
        return []

    monkeypatch.setattr(evaluate, "missing", note)
    for line in calls:
        if "methods/" in line:
            script, *arguments = line.split("methods/")[1].removesuffix(" --out else where").split()
            importlib.import_module(script.removesuffix(".py")).main(arguments)
    found = tables.of(rows)
    for name, lines in FILLED[word].items():
        assert set(found[name]) == set(lines)
        for columns in found[name].values():
            for column in columns.keys() - UNFILLED.get(word, {}):
                assert {0, 1, 2} <= columns[column].keys(), column


def test_run_all_fails_with_a_run_and_refuses_other_words(call):
    assert call("run_all.sh", "settings", FAILS="half")[0] != 0
    status, stderr, calls = call("run_all.sh", "alignement")
    assert status == 2 and len(stderr.splitlines()) == 1 and not calls
