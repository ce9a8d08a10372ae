"""What README.md, results/README.md and the docstrings promise: commands that parse, figures, links."""

import importlib
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

import data
import evaluate
import protocol

PAGES = {path: path.read_text() for path in (ROOT / "README.md", ROOT / "results" / "README.md")}


def commands():
    """Every command line of the pages and of the docstrings of the scripts."""
    lines = "".join("".join(re.findall(r"```bash\n(.*?)```", page, re.S)) for page in PAGES.values())
    for path in [*ROOT.glob("*.py"), *ROOT.glob("methods/*.py")]:
        lines += "".join(re.findall(r"^    (python .*\n)", path.read_text().split('"""')[1], re.M))
    lines = lines.replace("torchrun --nproc-per-node 8", "python")
    return sorted({line.split(" # ")[0].strip() for line in lines.splitlines()} - {""})


@pytest.mark.parametrize("command", [each for each in commands() if each.startswith(("python ", "./"))])
def test_every_command_is_understood(command, monkeypatch):
    words = shlex.split(command)
    if not command.startswith("python methods/"):
        script, *given = words if words[0].startswith("./") else words[1:]
        assert (ROOT / script).is_file()
        parts = "ablations alignment rates protocol settings cifar100".split()
        known = {"./run_all.sh": parts, "./run_tests.sh": []}
        known["protocol.py"] = [*protocol.TASKS, "--data-dir", "crisis", "--text-encoder", "FOLDER"]
        known["figures.py"] = ["FILE.png", "results/geometry.png"]
        assert set(given) <= {*known.get(script, ["--publish", "[FOLDER]", "runs/trial"])}
        return
    known = data.Known("glyphs", None, data.HEAD)  # FILE.npz stands for the reader's own
    monkeypatch.setattr(data, "resolve", lambda name: known)
    monkeypatch.setattr(evaluate, "missing", lambda parser, argv, *_, **__: parser.parse_args(argv) and [])
    importlib.import_module(words[1].removeprefix("methods/").removesuffix(".py")).main(words[2:])


def test_links_exist():
    for path, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_example_of_copying_runs(tmp_path):
    """As a reader would: the command that copies, then the lines of Python, with nothing else of ours."""
    [copy] = [each for each in commands() if each.startswith("sed ")]
    subprocess.run(copy.replace("methods/", f"{ROOT}/methods/"), shell=True, check=True, cwd=tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", PAGES[ROOT / "README.md"], re.S)
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_flags_in_the_text_exist():
    flags = set(re.findall(r"`(--[a-z-]+)", "".join(PAGES.values())))
    sources = "".join(path.read_text() for path in [*ROOT.glob("methods/*.py"), *ROOT.glob("*.py")])
    assert flags and all(f'"{flag}"' in sources for flag in flags), flags
