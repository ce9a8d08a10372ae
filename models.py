"""Students, the plain supervised fit, weak models, pretrained strong encoders, and what a student is given.

    supervise(name, seed, ...) -> Task with the strong encoder's features and the weak models' weak_probs

What is slow is computed once and kept under cache/, named by a hash of its arguments, of our source text and
of the torch version: changed code never meets an old result. The networks are in images.py and text.py.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import json
import math
import os
import random
import sys
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import data
import images
import text

CACHE = Path("cache")
ENCODER_STEPS = 800
SOURCES = [data.__file__, images.__file__, text.__file__, __file__]  # which every result depends on
torch.serialization.add_safe_globals([data.Task, data.Split])  # what else than tensors the cache may hold


# ------------------------------------------------------------------------------------------------ the student


class LinearHeads(nn.Module):
    """S linear students side by side on the same features, as one wide matrix product.

    Features (N, D) -> logits (N, S, C). Features of a pair of responses (N, 2, D) -> (N, S, 2): both classes
    share one reward head, z = (r(a), r(b)), so that cross-entropy is the Bradley-Terry loss.
    All start from zero, and none sees another: each is the student that it would be alone.
    """

    def __init__(self, num_features: int, num_classes: int, num_students: int, pairs: bool):
        super().__init__()
        self.pairs = pairs
        self.num_students = num_students
        self.linear = nn.Linear(num_features, num_students * (1 if pairs else num_classes))
        # A small learning rate stops early, and would leave much of a random start in the student.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        if self.pairs:
            return self.linear(x).transpose(1, 2)
        return self.linear(x).unflatten(1, (self.num_students, -1))


def make_student(task: data.Task, num_students: int) -> LinearHeads:
    """The student(s) of a supervised task."""
    x = task.strong_train.x
    return LinearHeads(x.shape[-1], task.num_classes, num_students, x.dim() == 3).to(x.device)


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
    """Supervised training on x (N, ...), y (N,), or y (N, L) for logits (N, C, L): Adam, cosine to 0 over all
    steps, last epoch returned."""
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
    student = make_student(task, 1)
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


def pick_text_encoder(name: str) -> str:
    """A folder by its whole path, any other name as it is. Raises data.InputError without transformers."""
    if not importlib.util.find_spec("transformers"):
        raise data.InputError("--text-encoder needs the package transformers: pip install transformers")
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def pick_device(name: str) -> str:
    """CUDA if there is any for "auto", else the CPU. Raises data.InputError on a device that is not here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise data.InputError(f"no device {name!r} here ({str(error).splitlines()[0]})") from error
    return name


# ------------------------------------------------------------------------------------------------ weak models


def noisy_labels(y: torch.Tensor, num_classes: int, generator) -> torch.Tensor:
    """y (N,) with 30 % of the labels replaced by random ones."""
    wrong = torch.rand(len(y), generator=generator) < 0.3
    return torch.where(wrong, torch.randint(num_classes, y.shape, generator=generator), y)


def image_weak_models(split: data.Split, num_classes: int, seed: int, device: str) -> dict:
    """Three weak models trained on `split` of the source domain, {name: images -> logits (N, C)}. They differ
    in the ways supervisors differ:

    linear  on pixels, all samples
    mlp     all samples, but 30 % of the labels are replaced by random ones
    cnn     500 samples, with their inverted images and noise as augmentation
    """
    x, y = split.x, split.y
    generator = torch.Generator().manual_seed(seed)
    noisy = noisy_labels(y, num_classes, generator)
    few = torch.cat([x[:500], 1 - x[:500]])
    augmented = few + 0.2 * torch.randn(few.shape, generator=generator)
    recipes = {
        "linear": (images.linear_net, x, y, 10),
        "mlp": (images.mlp_net, x, noisy, 10),
        "cnn": (images.cnn_net, augmented, y[:500].repeat(2), 40),
    }
    weak_models = {}
    for name, (net, inputs, targets, epochs) in recipes.items():
        torch.manual_seed(seed)
        recipe = {"epochs": epochs, "lr": 1e-3, "batch_size": 64, "seed": seed}
        model = fit(net(num_classes).to(device), inputs.to(device), targets.to(device), **recipe)
        weak_models[name] = lambda x, model=model: predict(model, x.to(device))
    return weak_models


def text_weak_models(split: data.Split, num_classes: int, pairs: bool, seed: int, device: str) -> dict:
    """The same for texts: three bags of words, classifiers or, where a sample is a pair, reward models.

    words    all samples
    noisy    all samples, but 30 % of the labels are replaced by random ones
    phrases  words and pairs of neighbouring words, on a quarter of the samples
    """
    x, y = split.x, split.y
    few = -(-len(x) // 4)
    noisy = noisy_labels(y, num_classes, torch.Generator().manual_seed(seed))
    recipes = {"words": (x, y, False), "noisy": (x, noisy, False), "phrases": (x[:few], y[:few], True)}
    weak_models = {}
    for name, (texts, targets, phrases) in recipes.items():
        model = text.BagOfWords(flat(texts), phrases, num_classes, pairs).to(device)
        if not model.vocabulary:
            raise data.InputError("no word occurs in two texts of the source domain")

        def logits(x, model=model):
            return predict(model, unflat(model.encode(flat(x)), pairs).to(device))

        lr = 3e-3 if pairs else 3e-2  # a reward sums its terms: larger gradients than those of their mean
        recipe = {"epochs": 20, "lr": lr, "batch_size": 16, "seed": seed}
        fit(model, unflat(model.encode(flat(texts)), pairs).to(device), targets.to(device), **recipe)
        weak_models[name] = logits
    return weak_models


def flat(x: list) -> list[str]:
    """Texts as they are; N pairs of texts as 2 N texts."""
    return x if isinstance(x[0], str) else [response for pair in x for response in pair]


def unflat(rows: torch.Tensor, pairs: bool) -> torch.Tensor:
    """What was computed of flat texts, (2 N, D) -> (N, 2, D) where they are pairs."""
    return rows.unflatten(0, (-1, 2)) if pairs else rows


# -------------------------------------------------------------------------------------------- strong encoders


def pretrain_image_encoder(steps: int, device: str) -> dict[str, torch.Tensor]:
    """Weights of the image encoder, after classifying rendered letters at all severities: no digits."""
    torch.manual_seed(0)
    encoder, head = images.image_encoder(), nn.Linear(384, len(images.LETTERS))
    model = nn.Sequential(encoder, head).to(device, memory_format=torch.channels_last)
    epochs, batch_size = min(4, steps), 128
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(len(images.LETTERS), (steps * batch_size // epochs,), generator=generator)
    severity = torch.rand(len(y), generator=generator)
    x = images.render(images.draw_atlas(images.LETTERS), y, severity, generator)
    recipe = {"epochs": epochs, "lr": 3e-3, "batch_size": batch_size, "seed": 0}
    x, y = x.to(device, memory_format=torch.channels_last), y.to(device)
    fit(model, x, y, progress="pretraining the image encoder", **recipe)
    return encoder.state_dict()


def pretrain_transformer(steps: int, device: str) -> dict[str, torch.Tensor]:
    """Weights of the causal transformer, after predicting the next word of unlabelled reviews of all domains.

    `steps` are the image encoder's: this one takes three times as many, of a quarter of its batch size.
    """
    torch.manual_seed(0)
    model = text.CausalTransformer().to(device)
    steps, batch_size = 3 * steps, 32
    epochs, rng = min(4, steps), random.Random("pretraining")
    corpus = [text.review(list(text.DOMAINS), rng)[0] for _ in range(steps * batch_size // epochs)]
    tokens = text.encode(corpus).to(device)
    following = tokens[:, 1:].masked_fill(tokens[:, 1:] == text.PAD, -100)  # which cross_entropy leaves out
    recipe = {"epochs": epochs, "lr": 2e-3, "batch_size": batch_size, "seed": 0}
    fit(model, tokens[:, :-1], following, progress="pretraining the transformer", **recipe)
    return model.state_dict()


def image_features(x: torch.Tensor, steps: int, device: str) -> torch.Tensor:
    """Images (N, 1, 28, 28) -> (N, 384)."""
    encoder = images.image_encoder()
    encoder.load_state_dict(cached("encoder", pretrain_image_encoder, steps=steps, device=device))
    encoder = encoder.to(device, memory_format=torch.channels_last).eval()
    return predict(encoder, x.to(device, memory_format=torch.channels_last))


def transformer_features(texts: list[str], steps: int, device: str) -> torch.Tensor:
    """N generated reviews -> (N, 576)."""
    model = text.CausalTransformer()
    model.load_state_dict(cached("transformer", pretrain_transformer, steps=steps, device=device))
    return predict(model.to(device).features, text.encode(texts).to(device))


def pretrained_features(name: str, texts: list[str], device: str) -> torch.Tensor:
    """N texts -> (N, D) from a Hugging Face model. Each set of texts is read once: where a domain has no more
    samples than a task uses, once for all seeds. Raises data.InputError where there is no such model."""
    known = sorted(set(texts))
    try:
        features = cached("pretrained", text.pretrained_features, name=name, texts=known, device=device)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise data.InputError(f"cannot use --text-encoder {name}: {reason}") from error
    place = {each: i for i, each in enumerate(known)}
    return features[[place[each] for each in texts]]


# ------------------------------------------------------------------------------------------------ supervision


def supervise(name: str, seed: int, data_dir, device, encoder_steps: int, text_encoder=None) -> data.Task:
    """The task as its student sees it: x features, standardised on strong_train, and weak_probs (N, M, C).

    The weak models, trained here on the source domain, label the target splits; the strong encoder describes
    them. A FILE.npz brings both. Raises data.InputError as data.load does.
    """
    if name.endswith(".npz"):
        task = data.load(name, seed)
    else:
        folder = data_dir and str(Path(data_dir).resolve())
        arguments = {"name": name, "seed": seed, "data_dir": folder, "device": device}
        arguments |= {"encoder_steps": encoder_steps, "text_encoder": text_encoder}
        task = cached("supervision", label_and_encode, **arguments)
    std, mean = torch.std_mean(task.strong_train.x.flatten(0, -2), dim=0, correction=0)
    splits = {}
    for split in ("strong_train", "val", "test"):
        x, y, weak_probs = getattr(task, split)
        x = (x - mean) / (std + 1e-6)
        splits[split] = data.Split(x.to(device), y.to(device), weak_probs.to(device))
    return task._replace(labels=None if task.labels is None else task.labels.to(device), **splits)


def label_and_encode(name, seed, data_dir, device, encoder_steps, text_encoder) -> data.Task:
    """What `supervise` keeps in the cache: features as the encoder gives them."""
    task = data.load(name, seed, data_dir)
    splits = {split: getattr(task, split) for split in ("strong_train", "val", "test")}
    if task.kind == "image":
        encoder = "letters CNN"
        x = torch.cat([split.x for split in splits.values()])
        features = image_features(x, encoder_steps, device)
        weak_models = image_weak_models(task.weak_train, task.num_classes, seed, device)
    else:
        x, pairs = [sample for split in splits.values() for sample in split.x], task.kind == "preference"
        if text_encoder:
            encoder, features = text_encoder, pretrained_features(text_encoder, flat(x), device)
        elif name in data.EMBEDDED:
            encoder, features = "transformer", transformer_features(flat(x), encoder_steps, device)
        else:
            encoder, features = "bag of words", text.bag_features(flat(x), flat(task.strong_train.x))
        features = unflat(features, pairs)
        weak_models = text_weak_models(task.weak_train, task.num_classes, pairs, seed, device)
    weak_probs = torch.stack([logits(x).softmax(-1) for logits in weak_models.values()], dim=1)
    sizes = [len(split.y) for split in splits.values()]
    parts = zip(splits.items(), features.cpu().split(sizes), weak_probs.cpu().split(sizes))
    # Clones, as a piece of a tensor is saved with the whole of it.
    splits = {key: data.Split(own.clone(), split.y, probs.clone()) for (key, split), own, probs in parts}
    names = {"weak_models": list(weak_models), "encoder": data.row_name(encoder)}
    return task._replace(weak_train=None, **names, **splits)


# --------------------------------------------------------------------------------------- what is kept on disk


def cached(kind: str, function, **arguments):
    """function(**arguments), read from cache/ if the same code has computed it before."""
    sources = [Path(file).read_text() for file in SOURCES]
    folders = [data.row_name(value) for value in arguments.values() if isinstance(value, str)]
    identity = repr((sorted(arguments.items()), folders, sources, torch.__version__))
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
    sources = (Path(file).read_bytes() for file in (method_file, *SOURCES))
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
