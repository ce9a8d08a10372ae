"""What README.md, results/README.md and the docstrings promise: commands that parse, links, an example."""

import importlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import data
import evaluate
import protocol

PAGES = {path: path.read_text() for path in (ROOT / "README.md", ROOT / "results" / "README.md")}
SCRIPTS = [path.read_text() for path in [*ROOT.glob("*.py"), *ROOT.glob("methods/*.py")]]
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"```bash\n(.*?)```", page, re.S)]
BLOCKS += [line for text in SCRIPTS for line in re.findall(r"^    (python .*)", text, re.M)]  # of docstrings
COMMANDS = {line.split(" # ")[0].strip() for block in BLOCKS for line in block.splitlines()}
PARSED = sorted(each for each in COMMANDS if re.match(r"python|torchrun|\./", each))
WORDS = """ablations alignment rates protocol settings cifar100 --publish [FOLDER] runs/trial
    FILE.png results/geometry.png --data-dir crisis --text-encoder FOLDER""".split() + [*protocol.TASKS]


@pytest.mark.parametrize("command", PARSED)
def test_every_command_is_understood(command, monkeypatch):
    script, *given = re.sub("^(python|torchrun --nproc-per-node 8) ", "", command).split()
    if not script.startswith("methods/"):
        assert (ROOT / script).is_file() and set(given) <= set(WORDS)
        return
    known = data.Known("glyphs", None, data.HEAD)  # FILE.npz stands for the reader's own
    monkeypatch.setattr(data, "resolve", lambda name: known)
    monkeypatch.setattr(evaluate, "missing", lambda parser, argv, *_, **__: parser.parse_args(argv) and [])
    importlib.import_module(script.removeprefix("methods/").removesuffix(".py")).main(given)


def test_links_and_flags_exist():
    for path, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (path.parent / target).exists(), target
    flags = set(re.findall(r"`(--[a-z-]+)", "".join(PAGES.values())))
    assert flags and all(f'"{flag}"' in "".join(SCRIPTS) for flag in flags), flags


def test_the_example_of_copying_runs(tmp_path, monkeypatch):
    """As a reader would: the command that copies, then the lines of Python."""
    [copy] = [each for each in COMMANDS if each.startswith("sed ")]
    subprocess.run(copy.replace("methods/", f"{ROOT}/methods/"), shell=True, check=True, cwd=tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", PAGES[ROOT / "README.md"], re.S)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "raven", raising=False)
    exec(code, made := {})
    assert sys.modules["raven"].__file__ == str(tmp_path / "raven.py") and made["weights"].shape == (3,)
