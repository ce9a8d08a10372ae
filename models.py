"""Networks, the plain supervised fit, the pretrained strong encoder, and what a student is given.

    supervise(name, seed, ...) -> Task with the strong encoder's features and the weak models' weak_probs

What is slow is computed once and kept under cache/, named by a hash of its arguments, of the source text of
data.py and models.py and of the torch version: changed code never meets an old result.
"""

import argparse
import fcntl
import hashlib
import json
import math
import os
import sys
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import data

CACHE = Path("cache")
ENCODER_STEPS = 800
torch.serialization.add_safe_globals([data.Task, data.Split])  # what else than tensors the cache may hold


# ------------------------------------------------------------------------------------------------ the student


class LinearHeads(nn.Module):
    """S linear students side by side on the same features, as one wide matrix product.

    Features (N, D) -> logits (N, S, C). Features of a pair of responses (N, 2, D) -> (N, S, 2): both classes
    share one reward head, z = (r(a), r(b)), so that cross-entropy is the Bradley-Terry loss.
    All start from the same weights, and none sees another: each is the student that it would be alone.
    """

    def __init__(self, num_features: int, num_classes: int, num_students: int, pairs: bool, seed: int):
        super().__init__()
        outputs = 1 if pairs else num_classes
        weight = torch.randn(outputs, num_features, generator=torch.Generator().manual_seed(seed))
        self.pairs = pairs
        self.num_students = num_students
        self.linear = nn.Linear(num_features, num_students * outputs)
        with torch.no_grad():
            self.linear.weight.copy_(weight.repeat(num_students, 1) / num_features**0.5)
            self.linear.bias.zero_()

    def forward(self, x):
        if self.pairs:
            return self.linear(x).transpose(1, 2)
        return self.linear(x).unflatten(1, (self.num_students, -1))


def make_student(task: data.Task, num_students: int, seed: int) -> LinearHeads:
    """The student(s) of a supervised task; the same seed gives the same initial weights in every method."""
    x = task.strong_train.x
    return LinearHeads(x.shape[-1], task.num_classes, num_students, x.dim() == 3, seed).to(x.device)


def supervisors(weak_probs: torch.Tensor, supervision: str) -> torch.Tensor:
    """What S students learn from, (N, M, C) -> (N, S, C): "each" weak model or the "mean" of their labels."""
    return {"each": weak_probs, "mean": weak_probs.mean(1, keepdim=True)}[supervision]


def label_loss(student_logits: torch.Tensor, labels: torch.Tensor | None, batch: torch.Tensor):
    """Cross-entropy with the labels that a task hands out, summed over the S students; 0 where it has none.

    student_logits (B, S, C); labels (N,) or None; batch (B,) indices into labels.
    """
    if labels is None:
        return 0.0
    num_students = student_logits.shape[1]
    targets = labels[batch].repeat_interleave(num_students)
    return num_students * F.cross_entropy(student_logits.flatten(0, 1), targets)


def fit(model, x, y, *, epochs, lr, batch_size, seed, progress=None):
    """Supervised training on x (N, ...), y (N,): Adam, cosine to 0 over all steps, last epoch returned."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    steps = epochs * -(-len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    with tqdm(total=steps, desc=progress, disable=None if progress else True) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(len(x), generator=generator).to(x.device).split(batch_size):
                loss = F.cross_entropy(model(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return model.eval()


def train_ceiling(task: data.Task, *, epochs, lr, batch_size, seed) -> nn.Module:
    """The same student, trained on the ground truth of strong_train."""
    student = make_student(task, 1, seed)
    recipe = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
    fit(nn.Sequential(student, nn.Flatten(1)), task.strong_train.x, task.strong_train.y, **recipe)
    return student


@torch.no_grad()
def predict(model, x, batch_size=1000):
    """Outputs of the model for x (N, ...), a batch at a time."""
    return torch.cat([model(batch) for batch in x.split(batch_size)])


# -------------------------------------------------------------------------------- types of command-line flags


def number(kind: type, low: float, high: float = 2**31 - 1):
    """An argparse type: a number of that kind in [low, high]."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__} from {low} to {high}")
        return value

    return parse


def pick_device(name: str) -> str:
    """CUDA if there is any for "auto", else the CPU. Raises data.InputError on a device that is not here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise data.InputError(f"no device {name!r} here ({str(error).splitlines()[0]})") from error
    return name


# -------------------------------------------------------------------------------------- weak models of images


def linear_net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, num_classes))


def mlp_net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 128), nn.ReLU(), nn.Linear(128, num_classes))


def cnn_net(num_classes):
    first, second = (nn.Conv2d(i, o, 5, stride=2, padding=2) for i, o in ((1, 16), (16, 32)))
    head = nn.Linear(32 * 7 * 7, num_classes)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), head)


def train_weak_models(split: data.Split, num_classes: int, seed: int) -> dict[str, nn.Module]:
    """Three weak models trained on `split` of the source domain. They differ in the ways supervisors differ:

    linear  on pixels, all samples
    mlp     all samples, but 30 % of the labels are replaced by random ones
    cnn     500 samples, with their inverted images and noise as augmentation
    """
    x, y = split.x, split.y
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(y), generator=generator) < 0.3
    noisy = torch.where(wrong, torch.randint(num_classes, y.shape, generator=generator), y.cpu()).to(y.device)
    few = torch.cat([x[:500], 1 - x[:500]])
    augmented = few + 0.2 * torch.randn(few.shape, generator=generator).to(x.device)
    recipes = {
        "linear": (linear_net, x, y, 10),
        "mlp": (mlp_net, x, noisy, 10),
        "cnn": (cnn_net, augmented, y[:500].repeat(2), 40),
    }
    weak_models = {}
    for name, (net, inputs, targets, epochs) in recipes.items():
        torch.manual_seed(seed)
        model = net(num_classes).to(x.device)
        weak_models[name] = fit(model, inputs, targets, epochs=epochs, lr=1e-3, batch_size=64, seed=seed)
    return weak_models


# --------------------------------------------------------------------------------------------- strong encoder


class ResidualBlock(nn.Module):
    def __init__(self, inputs, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.skip = nn.Conv2d(inputs, channels, 1, stride, bias=False)

    def forward(self, x):
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.skip(x))


def image_encoder() -> nn.Module:
    """A small residual CNN: images (N, 1, 28, 28) -> features (N, 384), the last map averaged 2 x 2."""
    stem = [nn.Conv2d(1, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    blocks = [ResidualBlock(24, 24, 1), ResidualBlock(24, 48, 2), ResidualBlock(48, 96, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten())


def pretrain_encoder(steps: int, device: str) -> dict[str, torch.Tensor]:
    """Weights of the image encoder, after classifying rendered letters at all severities: no digits."""
    torch.manual_seed(0)
    encoder, head = image_encoder(), nn.Linear(384, len(data.LETTERS))
    model = nn.Sequential(encoder, head).to(device, memory_format=torch.channels_last)
    epochs, batch_size = min(4, steps), 128
    letters = data.letters(steps * batch_size // epochs, seed=0)
    x = letters.x.to(device, memory_format=torch.channels_last)
    recipe = {"epochs": epochs, "lr": 3e-3, "batch_size": batch_size, "seed": 0}
    fit(model, x, letters.y.to(device), progress="pretraining the strong encoder", **recipe)
    return encoder.state_dict()


# ------------------------------------------------------------------------------------------------ supervision


def supervise(name: str, seed: int, data_dir: str | None, device: str, encoder_steps: int) -> data.Task:
    """The task as its student sees it: x features, standardised on strong_train, and weak_probs (N, M, C).

    The weak models, trained here on the source domain, label the target splits; the strong encoder describes
    them. A FILE.npz brings both. Raises data.InputError as data.load does.
    """
    if name.endswith(".npz"):
        task = data.load(name, seed)
    else:
        arguments = {"name": name, "seed": seed, "data_dir": data_dir, "device": device}
        task = cached("supervision", label_and_encode, **arguments, encoder_steps=encoder_steps)
    std, mean = torch.std_mean(task.strong_train.x.flatten(0, -2), dim=0, correction=0)
    splits = {}
    for split in ("strong_train", "val", "test"):
        x, y, weak_probs = getattr(task, split)
        x = (x - mean) / (std + 1e-6)
        splits[split] = data.Split(x.to(device), y.to(device), weak_probs.to(device))
    return task._replace(labels=None if task.labels is None else task.labels.to(device), **splits)


def label_and_encode(name, seed, data_dir, device, encoder_steps) -> data.Task:
    task = data.load(name, seed, data_dir)
    encoder = image_encoder()
    encoder.load_state_dict(cached("encoder", pretrain_encoder, steps=encoder_steps, device=device))
    encoder = encoder.to(device, memory_format=torch.channels_last).eval()
    weak_train = data.Split(task.weak_train.x.to(device), task.weak_train.y.to(device))
    weak_models = train_weak_models(weak_train, task.num_classes, seed)
    splits = {}
    for split in ("strong_train", "val", "test"):
        x = getattr(task, split).x.to(device, memory_format=torch.channels_last)
        weak_probs = torch.stack([predict(model, x).softmax(-1) for model in weak_models.values()], dim=1)
        splits[split] = data.Split(predict(encoder, x).cpu(), getattr(task, split).y, weak_probs.cpu())
    return task._replace(weak_train=None, weak_models=list(weak_models), **splits)


# --------------------------------------------------------------------------------------- what is kept on disk


def cached(kind: str, function, **arguments):
    """function(**arguments), read from cache/ if the same code has computed it before."""
    sources = [Path(file).read_text() for file in (data.__file__, __file__)]
    identity = repr((sorted(arguments.items()), sources, torch.__version__))
    path = CACHE / f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.pt"
    if path.exists():
        try:
            damaged = zipfile.ZipFile(path).testzip()  # torch.load does not look at checksums
            if not damaged:
                return torch.load(path, weights_only=True)
        except Exception as error:  # zipfile and torch.load raise many kinds
            damaged = error
        print(f"{path} is damaged ({damaged}) and is computed again", file=sys.stderr)
    value = function(**arguments)
    write_atomically(path, lambda file: torch.save(value, file))
    return value


def write_atomically(path: Path, write) -> None:
    """write(file) to a temporary file, then rename it: a run killed at any moment leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def code_hash(method_file: str | Path) -> str:
    """Names the code that a row of this method comes from."""
    sources = (Path(file).read_bytes() for file in (method_file, data.__file__, __file__))
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]


def read_rows(path: Path) -> list[dict]:
    """The rows of a .jsonl file, none if there is no file. Raises InputError on a line that is no row."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for row in rows:
            if missing := {"method", "task", "seed", "supervision", "code", "flags"} - row.keys():
                raise ValueError(f"without {', '.join(sorted(missing))}")
    except (ValueError, AttributeError) as error:
        raise data.InputError(f"{path} has a line that is no row; mend or remove it ({error})") from error
    return rows


def find_row(out: str, identity: dict) -> dict | None:
    """The row of OUT/METHOD.jsonl that agrees with `identity` in all it names, or None."""
    Path(out).mkdir(parents=True, exist_ok=True)  # now: a folder that cannot be made costs no training
    rows = read_rows(Path(out) / f"{identity['method']}.jsonl")
    return next((row for row in rows if identity.items() <= row.items()), None)


def save_row(out: str, row: dict) -> None:
    """Adds the row to OUT/METHOD.jsonl; several runs may do so at a time."""
    path = Path(out) / f"{row['method']}.jsonl"
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        lines = "".join(json.dumps(row) + "\n" for row in [*read_rows(path), row])
        write_atomically(path, lambda file: file.write(lines.encode()))
