"""What README.md and the docstrings promise: commands that parse, published tables and figures."""

import importlib
import re
import shlex

import pytest
import torch
from conftest import METHODS, ROOT

import data
import models

README = (ROOT / "README.md").read_text()


def commands():
    """Every command line of README.md and of the docstrings of the scripts."""
    found = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()]
    for path in [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "methods").glob("*.py"))]:
        docstring = path.read_text().split('"""')[1]
        found += [line.strip() for line in docstring.splitlines() if line.startswith("    python ")]
    return [line.split("#")[0].strip() for line in found if line.split("#")[0].strip()]


def test_there_are_commands():
    text = "\n".join(commands())
    assert len(commands()) > 10
    scripts = [f"./run_all.sh {word}" for word in ("alignment", "settings", "cifar100")]
    scripts += ["./run_tests.sh", "raven_dpo"]
    scripts += ["summarize.py --publish", "summarize_settings.py --publish", "--task cifar100-distill"]
    for name in [*scripts, *METHODS]:
        assert name in text


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_is_understood(command, monkeypatch):
    words = shlex.split(command)
    if words[0].startswith("./"):
        assert (ROOT / words[0]).stat().st_mode & 0o111
        arguments = words[1:]
        assert words[0] == "./run_tests.sh" or arguments in ([], ["alignment"], ["settings"], ["cifar100"])
        return
    if words == ["source", ".venv/bin/activate"]:
        return
    assert words[0] == "python" and (ROOT / words[1]).is_file(), command
    monkeypatch.setattr("data.check_name", lambda name: name)  # FILE.npz stands for the reader's own
    monkeypatch.setattr("models.pick_text_encoder", lambda name: name)  # NAME too; transformers is optional
    importlib.import_module(words[1].removeprefix("methods/").removesuffix(".py")).parse_args(words[2:])


def test_tables_are_the_published_ones():
    tables = README.split("<!-- tables -->\n")[1].split("<!-- end of tables -->")[0]
    assert tables == (ROOT / "results" / "tables.md").read_text() and len(tables.splitlines()) > 10


def test_the_alignment_table_is_the_published_one():
    table = README.split("<!-- alignment -->\n")[1].split("<!-- end of alignment -->")[0]
    report = (ROOT / "results" / "alignment.md").read_text()
    assert report.startswith(table + "\n") and table.count("|") > 50 and "before [" in report


def test_the_tables_of_the_settings_are_the_published_ones():
    tables = README.split("<!-- settings -->\n")[1].split("<!-- end of settings -->")[0]
    assert tables == (ROOT / "results" / "settings.md").read_text() and tables.count("|") > 100


def test_links_and_figures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    figures = ("accuracy", "weights", "severity", "settings", "alignment")
    assert {f"results/{figure}.png" for figure in figures} <= set(targets)
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_python_example_writes_a_file_that_every_method_reads(npz, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", README, re.S)
    small = models.supervise(npz, 0, None, "cpu", 10)
    monkeypatch.setattr(models, "supervise", lambda *arguments: small)
    exec(code, {})
    task = data.load("sharp-4.npz", seed=0)
    for split in ("strong_train", "val", "test"):
        sharp, plain = getattr(task, split), getattr(small, split)
        torch.testing.assert_close(sharp.x, plain.x)
        assert torch.equal(sharp.weak_probs.argmax(-1), plain.weak_probs.argmax(-1))
        gain = (sharp.weak_probs.max(-1).values - plain.weak_probs.max(-1).values).mean(0)
        assert gain[0] > 0.01 and gain[1].abs() < 1e-6 and gain[2] < -0.01


def test_flags_in_the_text_exist():
    flags = set(re.findall(r"`(--[a-z-]+)", README))
    sources = "".join(path.read_text() for path in [*ROOT.glob("methods/*.py"), ROOT / "summarize.py"])
    assert flags and all(f'"{flag}"' in sources for flag in flags), flags
