"""A method file above its dashed line needs nothing of ours: somebody else's module, batches, folder."""

import subprocess
import sys

import pytest
from conftest import ROOT

FILES = sorted((ROOT / "methods").glob("*.py"))
LINE = "# ---- To reproduce. Whoever copies this file deletes from here on. -"
PROGRAM = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, sys.argv[1])  # holds the copies alone; -I keeps everything else of ours out
torch.manual_seed(0)
images, truth = torch.randn(60, 1, 6, 6), torch.randint(4, (60,))
weak_probs = torch.softmax(3 * nn.functional.one_hot(truth, 4)[:, None] + torch.randn(60, 3, 4), -1)
for name in "naive", "confidence", "adaptive_confidence", "raven":
    method = __import__(name)
    targets = weak_probs if name == "raven" else weak_probs[:, 0]
    student = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    batches = DataLoader(TensorDataset(images, targets), batch_size=20, shuffle=True)
    more = {"num_weak": 3} if name == "raven" else {}
    method.train_student(student, batches, 20, optimizer, schedule, **more)
    print(name, (student(images).argmax(-1) == truth).float().mean().item())

method = __import__("raven_dpo")
policy = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))  # tokens (N, L) -> logits (N, L, V)
tokens = torch.randint(5, (40, 2, 6))
response = (torch.arange(6) > 1).expand(40, 2, 6)
rewards = (tokens * response == 3).sum(-1, keepdim=True).float() + 0.1 * torch.randn(40, 2, 3)
first = torch.tensor([[0]])
before = policy(first).softmax(-1)[0, 0, 3].item()
optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
method.train_policy(policy, (tokens, response), rewards, 5, optimizer, schedule, batch_size=8)
print("raven_dpo", policy(first).softmax(-1)[0, 0, 3].item() > before)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the program prints, a line per method."""
    folder = tmp_path_factory.mktemp("copies")
    for file in FILES:
        (folder / file.name).write_text(file.read_text().split(LINE)[0])
    command = [sys.executable, "-I", "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_a_copy_trains_a_strangers_module(trained, name):
    assert trained[name] == "True" if name == "raven_dpo" else float(trained[name]) > 0.6


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_line_stands_in_every_file_once(file):
    assert file.read_text().count(LINE) == 1
