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
    *version_info*) exit "${TOO_OLD:-0}" ;;
    "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *"pip install"*) exit "${PIP_FAILS:-0}" ;;
    *"${FAILS:-no such word}"*) exit 1 ;;
esac
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the scripts, and a python3 on the PATH that is the stand-in."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("setup.sh", "run_all.sh", "run_tests.sh", "requirements.txt", "methods"):
        path = ROOT / name
        shutil.copytree(path, folder / name) if path.is_dir() else shutil.copy(path, folder)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(FAKE)
    (tmp_path / "bin" / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.delenv("PYTHON", raising=False)
    monkeypatch.delenv("OUT", raising=False)
    return folder


def call(folder, *command, **environment):
    """Runs a script from elsewhere; returns its result and the lines that the stand-in noted."""
    log = folder.parent / "log"
    log.write_text("")
    result = subprocess.run(
        [str(folder / command[0]), *command[1:]],
        cwd="/",
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return result, log.read_text().splitlines()


def test_first_use_installs_and_second_does_not(folder):
    result, calls = call(folder, "run_tests.sh", "-k", "raven")
    assert result.returncode == 0, result.stderr
    assert sum("pip install" in line for line in calls) == 1
    assert calls[-1].endswith(".venv/bin/python -m pytest -k raven")
    result, calls = call(folder, "run_tests.sh")
    assert result.returncode == 0 and len(calls) == 1
    with open(folder / "requirements.txt", "a") as file:
        file.write("more\n")
    _, calls = call(folder, "run_tests.sh")
    assert sum("pip install" in line for line in calls) == 1


def test_a_broken_installation_fails_loudly_and_is_taken_up_again(folder):
    result, calls = call(folder, "run_all.sh", PIP_FAILS="7")
    assert result.returncode != 0 and not any("methods/" in line for line in calls)
    result, calls = call(folder, "run_tests.sh")
    assert result.returncode == 0 and sum("pip install" in line for line in calls) == 1


def test_an_old_python_is_refused(folder):
    result, calls = call(folder, "run_tests.sh", TOO_OLD="1")
    assert result.returncode == 1 and "3.11" in result.stderr and not (folder / ".venv").exists()


def test_another_interpreter_is_used_as_it_is_or_makes_the_environment(folder, tmp_path):
    other = tmp_path / "other-python"
    shutil.copy(tmp_path / "bin" / "python3", other)
    _, calls = call(folder, "run_tests.sh", PYTHON=str(other), HAS_PACKAGES="0")
    assert calls[-1] == f"{other} -m pytest"
    assert not (folder / ".venv").exists()
    _, calls = call(folder, "run_tests.sh", PYTHON=str(other))
    assert any(line == f"{other} -m venv .venv" for line in calls)
    assert calls[-1].endswith(".venv/bin/python -m pytest")


def test_an_interpreter_that_does_not_exist_is_refused(folder):
    result, calls = call(folder, "run_tests.sh", PYTHON="/no/such/python")
    assert result.returncode == 1 and "/no/such/python" in result.stderr and not calls


SEVERITIES = "--task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2"
AUTHORS = {"glyphs-distill": "0.5 0", "glyphs-noisy-symmetric-0.2": "0.5 0.25", "glyphs-transfer": "4 0"}


def test_run_all_runs_every_method_on_all_default_tasks_and_reports(folder):
    result, calls = call(folder, "run_all.sh", OUT="elsewhere")
    assert result.returncode == 0, result.stderr
    runs = [line.split("methods/")[1] for line in calls if "methods/" in line]
    assert len(runs) == len(set(runs)) and all(run.endswith(" --out elsewhere") for run in runs)
    for method in METHODS:
        for given in ("", " --supervision mean") if method != "raven" else ("",):
            own = f"{method}.py{given}"
            if own == "naive.py":  # by kinds, as it computes what all share
                tasks = " ".join(run for run in runs if run.startswith("naive.py --task")).split()
                assert set(data.EMBEDDED) < set(tasks)
            else:
                assert f"{own} --out elsewhere" in runs
            assert f"{own} {SEVERITIES} --out elsewhere" in runs
    assert calls[-1].endswith("report.py elsewhere") and not any("raven_dpo" in run for run in runs)


def test_run_all_alignment_trains_a_policy_on_each_kind_of_preferences(folder):
    _, calls = call(folder, "run_all.sh", "alignment")
    runs = {line.split("methods/raven_dpo.py ")[1] for line in calls if "methods/" in line}
    flags = ["one", "mean", "gold", "raven", "raven --weight-lr 0", "raven --form code"]
    assert runs == {f"--supervision {each} --out runs" for each in flags}


def test_run_all_settings_runs_every_setting_with_every_method_and_control(folder):
    _, calls = call(folder, "run_all.sh", "settings", OUT="some where")
    runs = [line.split("methods/")[1] for line in calls if "methods/" in line]
    for task in [*AUTHORS, "glyphs-noisy-asymmetric-0.4", "glyphs-fewshot", *report.LABEL_FREE]:
        own = [run for run in runs if task in run.split()]
        betas = sorted(run.split("--beta ")[1].split()[0] for run in own if "--beta " in run)
        assert betas == ["adaptive", "half", "one", "select", "swapped"] and len(own) == 7
        for run in own:
            assert "--seeds 0 1 2" in run and run.endswith("--out some where")
            if task in AUTHORS and "--beta " in run:
                temperature, ramp = AUTHORS[task].split()
                assert f"--temperature {temperature} --beta-ramp {ramp} " in run
    assert call(folder, "run_all.sh", "settings", FAILS="half")[0].returncode != 0


def test_run_all_cifar100_runs_the_three_methods_with_the_settings_of_the_authors(folder):
    _, calls = call(folder, "run_all.sh", "cifar100")
    runs = sorted(line.split("methods/")[1] for line in calls if "methods/" in line)
    given = "--task cifar100-distill"
    adaptive = f"adaptive_confidence.py {given} --temperature 0.5 --beta-ramp 0 --out runs"
    assert runs == [adaptive, f"confidence.py {given} --out runs", f"naive.py {given} --out runs"]


def test_run_all_refuses_other_words(folder):
    result, calls = call(folder, "run_all.sh", "alignement")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and not calls


def test_scripts_are_executable_and_ci_runs_the_tests():
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec ./run_tests.sh"
    for script in ("run_all.sh", "run_tests.sh", ".ci/run"):
        assert (ROOT / script).stat().st_mode & 0o111
