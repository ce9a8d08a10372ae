"""run_all.sh, run_tests.sh and setup.sh, with a stand-in for Python that notes what it is asked to do."""

import os
import shutil
import subprocess

import pytest
from conftest import METHODS, ROOT

import data
import report

FAKE = """#!/usr/bin/env bash
echo "$0 $*" >> "$LOG"
case "$*" in
    *find_spec*) exit "${HAS_PACKAGES:-1}" ;;
    *version_info*) [ -z "${TOO_OLD:-}" ] || exit 1 ;;
    "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *"pip install"*) exit "${PIP_FAILS:-0}" ;;
    *"${FAILS:-no such word}"*) exit 1 ;;
esac
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the scripts, and a python3 on the PATH that is the stand-in."""
    folder, stand_in = tmp_path / "a folder", tmp_path / "bin" / "python3"
    folder.mkdir()
    stand_in.parent.mkdir()
    for name in ("setup.sh", "run_all.sh", "run_tests.sh", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    stand_in.write_text(FAKE)
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.delenv("PYTHON", raising=False)
    monkeypatch.delenv("OUT", raising=False)
    return folder


def call(folder, *command, **environment):
    """Runs a script from elsewhere; returns its result and the lines that the stand-in noted."""
    log, environment = folder.parent / "log", {**os.environ, **environment}
    log.write_text("")
    command = [str(folder / command[0]), *command[1:]]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, env=environment)
    return result, log.read_text().splitlines()


def runs_of(calls):
    return [line.split("methods/")[1] for line in calls if "methods/" in line]


def test_requirements_are_installed_once_and_again_after_a_failure_or_a_change(folder):
    def installs(**environment):
        result, calls = call(folder, "run_tests.sh", "-k", "raven", **environment)
        tested = calls[-1].endswith(".venv/bin/python -m pytest -k raven")
        assert tested == (result.returncode == 0) == ("PIP_FAILS" not in environment), result.stderr
        return sum("pip install" in line for line in calls)

    assert [installs(PIP_FAILS="7"), installs(), installs()] == [1, 1, 0]
    with open(folder / "requirements.txt", "a") as file:
        file.write("more\n")
    assert installs() == 1


@pytest.mark.parametrize("variable, value", [("TOO_OLD", "3.11"), ("PYTHON", "/no/such/python")])
def test_an_old_or_missing_python_is_refused(folder, variable, value):
    result, _ = call(folder, "run_tests.sh", **{variable: value})
    assert result.returncode == 1 and value in result.stderr and not (folder / ".venv").exists()


@pytest.mark.parametrize("has_packages", [True, False])
def test_another_interpreter_is_used_as_it_is_or_makes_the_environment(folder, tmp_path, has_packages):
    other = shutil.copy(tmp_path / "bin" / "python3", tmp_path / "other-python")
    _, calls = call(folder, "run_tests.sh", PYTHON=str(other), HAS_PACKAGES=str(int(not has_packages)))
    assert (f"{other} -m venv .venv" in calls) == (folder / ".venv").exists() == (not has_packages)
    assert calls[-1].endswith(f"{other if has_packages else '.venv/bin/python'} -m pytest")


SEVERITIES = "--task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2"
AUTHORS = {
    "glyphs-distill": "--temperature 0.5 --beta-ramp 0 ",
    "glyphs-noisy-symmetric-0.2": "--temperature 0.5 --beta-ramp 0.25 ",
    "glyphs-transfer": "--temperature 4 --beta-ramp 0 ",
}


def test_run_all_runs_every_method_on_all_default_tasks_and_reports(folder):
    _, calls = call(folder, "run_all.sh", OUT="elsewhere")
    runs = runs_of(calls)
    assert calls[-1].endswith("report.py elsewhere") and all(run.endswith(" --out elsewhere") for run in runs)
    for method in METHODS:
        for own in (f"{method}.py", f"{method}.py --supervision mean")[: 1 if method == "raven" else 2]:
            assert f"{own} {SEVERITIES} --out elsewhere" in runs
            assert f"{own} --out elsewhere" in runs or own == "naive.py"  # which computes what all share
    tasks = " ".join(run for run in runs if run.startswith("naive.py --task")).split()
    assert set(data.EMBEDDED) < set(tasks)
    assert len(runs) == len(set(runs)) and not any("raven_dpo" in run for run in runs)


PREFERENCES = ["one", "mean", "gold", "raven", "raven --weight-lr 0", "raven --form code"]
CIFAR100 = {"naive": "", "confidence": "", "adaptive_confidence": " --temperature 0.5 --beta-ramp 0"}
EXACT = {
    "alignment": [f"raven_dpo.py --supervision {each}" for each in PREFERENCES],
    "cifar100": [f"{name}.py --task cifar100-distill{CIFAR100[name]}" for name in CIFAR100],
}


@pytest.mark.parametrize("word", EXACT)
def test_run_all_with_a_word_runs_exactly(folder, word):
    _, calls = call(folder, "run_all.sh", word)
    assert sorted(runs_of(calls)) == sorted(f"{run} --out runs" for run in EXACT[word])


def test_run_all_settings_runs_every_setting_with_every_method_and_control(folder):
    _, calls = call(folder, "run_all.sh", "settings", OUT="some where")
    for task in [*AUTHORS, "glyphs-noisy-asymmetric-0.4", "glyphs-fewshot", *report.LABEL_FREE]:
        own = [run for run in runs_of(calls) if task in run.split()]
        betas = {run.split("--beta ")[1].split()[0]: run for run in own if "--beta " in run}
        assert set(betas) == {"adaptive", "half", "one", "select", "swapped"} and len(own) == 7
        assert all("--seeds 0 1 2" in run and run.endswith("--out some where") for run in own)
        assert all(AUTHORS.get(task, "") in run for run in betas.values())
    assert call(folder, "run_all.sh", "settings", FAILS="half")[0].returncode != 0


def test_run_all_refuses_other_words(folder):
    result, calls = call(folder, "run_all.sh", "alignement")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and not calls
