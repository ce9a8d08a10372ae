"""A method file above its dashed line needs nothing of ours: somebody else's module, batches, folder."""

import subprocess
import sys

from conftest import ROOT

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

def make_optimizer(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)

for name in "naive", "confidence", "adaptive_confidence", "bayes", "raven":
    targets = weak_probs if name in ("bayes", "raven") else weak_probs[:, 0]
    more = {"num_weak": 3} if name == "raven" else {}
    student = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    batches = DataLoader(TensorDataset(images, targets), batch_size=20, shuffle=True)
    __import__(name).train_student(student, batches, 20, *make_optimizer(student), **more)
    assert (student(images).argmax(-1) == truth).float().mean() > 0.6, name

for name, given in ("prototypes", (images.flatten(1), weak_probs)), ("dawid_skene", (weak_probs,)):
    labels = __import__(name).label(*given)
    assert (labels.argmax(-1) == truth).float().mean() > 0.6, name

knows = 9.0 * nn.functional.one_hot(truth, 4)  # what a student says that finds the truth
layers = [weak_probs[:, :1], weak_probs]
_, targets, kept = __import__("co_supervised").co_supervise(lambda *_: (None, knows), layers)
assert (targets[kept].argmax(-1) == truth[kept]).all() and len(truth) / 2 < kept.sum()

policy = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))  # tokens (N, L) -> logits (N, L, V)
tokens = torch.randint(5, (40, 2, 6))
response = (torch.arange(6) > 1).expand(40, 2, 6)
rewards = (tokens * response == 3).sum(-1, keepdim=True).float() + 0.1 * torch.randn(40, 2, 3)
before = policy(torch.tensor([0]))[0].softmax(-1)[3].item()
given = policy, (tokens, response), rewards, 5, *make_optimizer(policy)
__import__("raven_dpo").train_policy(*given, batch_size=8)
assert policy(torch.tensor([0]))[0].softmax(-1)[3].item() > before
"""


def test_copies_train_a_strangers_modules(tmp_path):
    names = {file.stem for file in (ROOT / "methods").glob("*.py")}
    for name in names:
        assert f'"{name}"' in PROGRAM
        method, *_ = (ROOT / "methods" / f"{name}.py").read_text().split(LINE)
        (tmp_path / f"{name}.py").write_text(method)
    command = [sys.executable, "-I", "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
