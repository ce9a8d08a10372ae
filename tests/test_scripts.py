"""run_all.sh, run_tests.sh and setup.sh, with a stand-in for Python that notes what it is asked to do."""

import os
import shutil
import subprocess

import pytest
from conftest import METHODS, ROOT

import data
import evaluate
import tables

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
    for folder in ("a folder", "bin"):
        (tmp_path / folder).mkdir()
    for name in ("setup.sh", "run_all.sh", "run_tests.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / "a folder")
    (tmp_path / "bin" / "python3").write_text(FAKE)
    (tmp_path / "bin" / "python3").chmod(0o755)
    log, usual = tmp_path / "log", {key: os.environ[key] for key in os.environ.keys() - {"PYTHON", "OUT"}}
    usual |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LOG": str(log)}

    def call(script, *arguments, **variables):
        log.write_text("")
        command = [str(tmp_path / "a folder" / script), *arguments]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, env=usual | variables)
        return done.returncode, done.stderr, log.read_text().splitlines()

    return call


def installations(calls):
    return sum("pip install" in line for line in calls)


def test_first_use_installs_and_second_does_not(call, tmp_path):
    status, stderr, calls = call("run_tests.sh", "-k", "raven")
    assert status == 0 and installations(calls) == 1, stderr
    assert calls[-1].endswith(".venv/bin/python -m pytest -k raven")
    status, _, calls = call("run_tests.sh")
    assert status == 0 and len(calls) == 1
    (tmp_path / "a folder" / "requirements.txt").write_text("more")
    assert installations(call("run_tests.sh")[2]) == 1


def test_a_broken_installation_fails_loudly_and_is_taken_up_again(call):
    status, _, calls = call("run_all.sh", PIP_FAILS="7")
    assert status != 0 and not any("methods/" in line for line in calls)
    status, _, calls = call("run_tests.sh")
    assert status == 0 and installations(calls) == 1


def test_an_old_or_missing_python_is_refused(call, tmp_path):
    status, stderr, _ = call("run_tests.sh", TOO_OLD="1")
    assert status == 1 and "3.11" in stderr and not (tmp_path / "a folder" / ".venv").exists()
    status, stderr, calls = call("run_tests.sh", PYTHON="/no/such/python")
    assert status == 1 and "/no/such/python" in stderr and not calls


def test_another_interpreter_is_used_as_it_is_or_makes_the_environment(call, tmp_path):
    other = shutil.copy(tmp_path / "bin" / "python3", tmp_path / "other-python")
    assert call("run_tests.sh", PYTHON=str(other), HAS_PACKAGES="0")[2][-1] == f"{other} -m pytest"
    assert not (tmp_path / "a folder" / ".venv").exists()
    _, _, calls = call("run_tests.sh", PYTHON=str(other))
    assert f"{other} -m venv .venv" in calls and calls[-1].endswith(".venv/bin/python -m pytest")


SEVERITIES = "--task glyphs-shift-0.2 glyphs-shift-0.6 glyphs-shift-0.8 --seeds 0 1 2"
AUTHORS = {"glyphs-distill": "0.5 0", "glyphs-noisy-symmetric-0.2": "0.5 0.25", "glyphs-transfer": "4 0"}


def runs_of(calls):
    return sorted(line.split("methods/")[1] for line in calls if "methods/" in line)


def test_run_all_runs_every_method_on_all_default_tasks_and_reports(call):
    status, stderr, calls = call("run_all.sh", OUT="else where")
    assert status == 0 and calls[-1].endswith("report.py else where"), stderr
    runs = [run.removesuffix(" --out else where") for run in runs_of(calls)]
    every = {f"{method}.py" for method in METHODS}
    every |= {f"{method}.py --supervision mean" for method in METHODS[:3]} | {"naive.py --supervision vote"}
    expected = {*every, *(f"{run} {SEVERITIES}" for run in every), "raven.py --weight-lr 0"} - {"naive.py"}
    assert expected < set(runs) and len(runs) == len(set(runs))
    kinds = set(runs) - expected  # naive.py by kinds, as it computes what all share
    assert all(run.startswith("naive.py --task ") for run in kinds)
    assert {task for run in kinds for task in run.split()[2:]} == set(data.EMBEDDED)


def test_run_all_rates_and_protocol_run_what_their_tables_want(call):
    runs = [run.removesuffix(" --out runs").split(" --") for run in runs_of(call("run_all.sh", "rates")[2])]
    assert {run[2] for run in runs} == {f"lr {rate}" for rate in "1e-5 3e-5 1e-4 3e-4 1e-3 3e-3 auto".split()}
    assert [float(rate) for rate in "1e-5 3e-5 1e-4 3e-4 1e-3 3e-3".split()] == evaluate.RATES
    assert len(runs) == len(tables.SOME) * 7
    runs = runs_of(call("run_all.sh", "protocol")[2])
    assert len(runs) == len(tables.COLUMNS | tables.CO_SUP) and all("--protocol" in run for run in runs)


def test_run_all_ablations_runs_what_its_tables_and_figures_want(call):
    found = set()  # method, flags and one task
    for method, *flags, _ in (run.split(" --") for run in runs_of(call("run_all.sh", "ablations")[2])):
        [task] = [flag for flag in flags if flag.startswith("task ")]
        found |= {(method, frozenset(flags) - {task}, name) for name in task.split()[1:]}
    shifted = ["glyphs-shift", "reviews-shift", "preferences-shift"]
    wanted = [(shifted, columns) for columns in (tables.ABLATION, tables.NUMBERED, tables.SHARPENED)]
    for tasks, columns in [*wanted, (shifted[1:], tables.SPECIALISTS)]:
        for method, flags, *_ in columns.values():
            text = set()
            for key, own in flags.items():
                words = (f"{x:g}" if x != str(x) else x for x in (own if isinstance(own, list) else [own]))
                text |= {" ".join([key.replace("_", "-"), *words])}
            assert {(f"{method}.py", frozenset(text), task) for task in tasks} <= found


def test_run_all_alignment_and_cifar100_run_each_kind_of_preferences_and_each_method(call):
    runs = runs_of(call("run_all.sh", "alignment")[2])
    assert {run.split()[2] for run in runs} == {"one", "mean", "gold", "raven"} and len(set(runs)) == 6
    runs = runs_of(call("run_all.sh", "cifar100")[2])
    assert [run.split(".py --task cifar100-distill ")[0] for run in runs] == METHODS[:3]
    assert "--temperature 0.5 --beta-ramp 0 " in runs[0]


def test_run_all_settings_runs_every_setting_with_every_method_and_control(call):
    runs = runs_of(call("run_all.sh", "settings")[2])
    assert all("--seeds 0 1 2" in run and run.endswith("--out runs") for run in runs)
    for task in [*AUTHORS, "glyphs-noisy-asymmetric-0.4", "glyphs-fewshot", *tables.LABEL_FREE]:
        own = [run for run in runs if task in run.split()]
        controls = [run for run in own if "--beta " in run]
        betas = sorted(run.split("--beta ")[1].split()[0] for run in controls)
        assert betas == ["adaptive", "half", "one", "select", "swapped"] and len(own) == 7
        if task in AUTHORS:
            temperature, ramp = AUTHORS[task].split()
            assert all(f"--temperature {temperature} --beta-ramp {ramp} " in run for run in controls)
    assert call("run_all.sh", "settings", FAILS="half")[0] != 0


def test_run_all_refuses_other_words(call):
    status, stderr, calls = call("run_all.sh", "alignement")
    assert status == 2 and len(stderr.splitlines()) == 1 and not calls


def test_scripts_are_executable_and_ci_runs_the_tests():
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec ./run_tests.sh"
    for script in ("run_all.sh", "run_tests.sh", ".ci/run"):
        assert (ROOT / script).stat().st_mode & 0o111
