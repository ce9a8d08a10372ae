"""Students, plain supervised training, strong encoders.

The networks are in tasks/images.py and tasks/text.py. What is slow is computed once and kept under cache/.
"""

import functools
import math
import random
from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import data
import store
from store import cached
from tasks import images, labelled, pictures, text

ENCODER_STEPS = 800
SHARD = 1000  # images


class Batches:
    """Tuples of B samples of each of `parts`, tensors (N, ...), in random order, again and again.

    length: how many an epoch has, by default those of all samples; else an epoch goes on where the last one
    stopped. `view`, if there is one, is applied to each batch: labelled.view."""

    def __init__(self, parts, batch_size: int, seed: int, view=None, length: int | None = None):
        self.parts, self.view, self.length = parts, view, length or math.ceil(len(parts[0]) / batch_size)
        self.drawn = self.draw(batch_size, torch.Generator().manual_seed(seed))

    def draw(self, batch_size, generator):
        n, device = len(self.parts[0]), self.parts[0].device
        while True:
            yield from torch.randperm(n, generator=generator).to(device).split(batch_size)

    def __len__(self):
        return self.length

    def __iter__(self):
        for batch in islice(self.drawn, self.length):
            parts = [part.index_select(0, batch) for part in self.parts]
            yield self.view(*parts) if self.view else parts


def make_optimizer(kind: str, model, lr: float, steps: int, fused=None):
    """An optimizer and its schedule, to be stepped after every batch.

    adam  cosine to 0 over all steps
    sgd   what AdaptConf's authors train CIFAR-100 networks with: Nesterov momentum .9, weight decay 5e-4,
          linear warm-up over the first 1/24 of the steps (10 of 240 epochs), cosine to lr / 100
    """
    if kind == "adam":
        optimizer, warm_up, last = torch.optim.Adam(model.parameters(), lr=lr, fused=fused), 0, 0.0
    else:
        sgd = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, **sgd, fused=fused)
        warm_up, last = math.ceil(steps / 24), 0.01

    def factor(step):
        if step < warm_up:
            return (step + 1) / warm_up
        return last + (1 - last) * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def fit(
    model, x, y, *, epochs, lr, batch_size, seed, length=None, optimizer="adam", view=None, progress=None
):
    """Supervised training on x (N, ...), y (N,), or y (N, L) for logits (N, C, L). Returns the model."""
    batches = Batches((x, y), batch_size, seed, view, length)
    # Not fused, which rounds differently: the encoders stay those with which the defaults were chosen.
    optimizer, schedule = make_optimizer(optimizer, model, lr, epochs * len(batches))
    model.train()
    for _ in tqdm(range(epochs), progress, leave=False, disable=None if progress else True):
        for inputs, targets in batches:
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def predict(model, x, batch_size=1000):
    """Outputs of the model for x (N, ...), a batch at a time."""
    return torch.cat([model(batch) for batch in x.split(batch_size)])


class LinearHead(nn.Linear):
    """A linear student. Features (N, D) -> logits (N, C). Those of a pair of responses (N, 2, D) -> (N, 2):
    both classes share one reward head, z = (r(a), r(b)), so that cross-entropy is the Bradley-Terry loss.

    It starts from zero: a small learning rate stops early, and would leave much of a random start in it."""

    def __init__(self, num_features: int, num_classes: int, pairs: bool):
        super().__init__(num_features, 1 if pairs else num_classes)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x):
        return super().forward(x).squeeze(-1) if x.dim() == 3 else super().forward(x)


def make_network(name: str, num_classes: int, device) -> nn.Module:
    return images.NETWORKS[name](num_classes).to(device, memory_format=torch.channels_last)


def make_student(task: data.Task, seed: int) -> nn.Module:
    """The student of a supervised task, untrained. `seed` also fixes how batches are augmented."""
    x = task.strong_train.x
    torch.manual_seed(seed)
    if task.setting is None:
        return LinearHead(x.shape[-1], task.num_classes, pairs=x.dim() == 3).to(x.device)
    network = make_network(task.encoder, task.num_classes, x.device)
    if task.setting.fine_tuned:
        network[:-1].load_state_dict(task.weights["student"])
    return network


def load_teacher(task: data.Task) -> nn.Module:
    """The teacher of a task of labelled.py."""
    teacher = make_network(task.setting.teacher, task.num_classes, task.strong_train.x.device)
    teacher.load_state_dict(task.weights["teacher"])
    return teacher.eval()


def make_view(task: data.Task):
    """How teacher and student see a batch of strong_train, None where they see it as it is."""
    if task.setting is None or not task.setting.augmentation:
        return None
    teacher = load_teacher(task)
    return labelled.view(task.setting.augmentation, lambda x: predict(teacher, x).softmax(-1))


def noisy_labels(y: torch.Tensor, num_classes: int, generator) -> torch.Tensor:
    """y (N,) with 30 % of the labels replaced by random ones."""
    wrong = torch.rand(len(y), generator=generator) < 0.3
    return torch.where(wrong, torch.randint(num_classes, y.shape, generator=generator), y)


def flat(x: list) -> list[str]:
    """Texts as they are; N pairs of texts as 2 N texts."""
    return x if isinstance(x[0], str) else [response for pair in x for response in pair]


def unflat(rows: torch.Tensor, pairs: bool) -> torch.Tensor:
    """What was computed of flat texts, (2 N, D) -> (N, 2, D) where they are pairs."""
    return rows.unflatten(0, (-1, 2)) if pairs else rows


def pretrain_image_encoder(steps: int, device: str) -> dict[str, torch.Tensor]:
    """Weights of the image encoder, after classifying rendered letters at all severities: no digits."""
    torch.manual_seed(0)
    model, epochs = make_network("letters CNN", len(images.LETTERS), device), min(4, steps)
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(len(images.LETTERS), (steps * 128 // epochs,), generator=generator)
    severity = torch.rand(len(y), generator=generator)
    x = images.render(images.LETTERS, y, severity, generator)
    x, y = x.to(device, memory_format=torch.channels_last), y.to(device)
    recipe = {"epochs": epochs, "lr": 3e-3, "batch_size": 128, "seed": 0}
    fit(model, x, y, progress="pretraining the image encoder", **recipe)
    return model[:-1].state_dict()


def pretrain_transformer(steps: int, device: str) -> dict[str, torch.Tensor]:
    """Weights of the causal transformer, after predicting the next word of unlabelled reviews of all domains,
    in three times as many steps as the image encoder's."""
    torch.manual_seed(0)
    model, epochs, rng = text.CausalTransformer().to(device), min(4, 3 * steps), random.Random("pretraining")
    corpus = [text.review(list(text.DOMAINS), rng)[0] for _ in range(3 * steps * 32 // epochs)]
    tokens = text.encode(corpus).to(device)
    following = tokens[:, 1:].masked_fill(tokens[:, 1:] == text.PAD, -100)  # which cross_entropy leaves out
    recipe = {"epochs": epochs, "lr": 2e-3, "batch_size": 32, "seed": 0}
    fit(model, tokens[:, :-1], following, progress="pretraining the transformer", **recipe)
    return model.state_dict()


def pretrained(encoder: str, steps: int, device: str) -> dict[str, torch.Tensor]:
    """Weights of the "letters CNN" or the "transformer", pretrained on first use."""
    pretrain = {"letters CNN": pretrain_image_encoder, "transformer": pretrain_transformer}[encoder]
    return cached("encoder", lambda: pretrain(steps, device), encoder=encoder, steps=steps, device=device)


def encode(task: data.Task, x, steps: int, device: str) -> torch.Tensor:
    """Images, texts or pairs of texts, N of any split of the task -> features (N, D), of pairs (N, 2, D)."""
    if task.encoder == "letters CNN":
        encoder = make_network(task.encoder, task.num_classes, device)[:-1].eval()
        encoder.load_state_dict(pretrained(task.encoder, steps, device))
        return predict(encoder, x.to(device, memory_format=torch.channels_last))
    if task.encoder == "transformer":
        model = text.CausalTransformer()
        model.load_state_dict(pretrained(task.encoder, steps, device))
        features = predict(model.to(device).features, text.encode(flat(x)).to(device))
    elif task.files:
        features = look(task, x, task.encoder, device).float()
    elif task.encoder == "bag of words":
        features = text.bag_features(flat(x), flat(task.strong_train.x))
    else:
        features = read(task.encoder, flat(x), device)
    return unflat(features, task.kind == "preference")


def read(name: str, texts: list[str], device: str) -> torch.Tensor:
    """N texts -> (N, D) from a Hugging Face model. Each set of texts is read once: where a domain has no more
    samples than a task uses, once for all seeds. Raises data.InputError where there is no such model."""
    known = sorted(set(texts))
    key = {"name": data.row_name(name), "texts": known, "device": device}
    try:
        features = cached("read", lambda: text.pretrained_features(name, known, device), **key)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise data.InputError(f"cannot use {name}: {' '.join(str(error).split())[:300]}") from error
    place = {each: i for i, each in enumerate(known)}
    return features[[place[each] for each in texts]]


@functools.cache
def image_encoder(name: str, whole: bool):
    """pictures.encoder, by one process at a time, as a download may be part of it."""
    with store.locked(store.CACHE / "encoder"):
        return pictures.encoder(name, whole)


def look(task: data.Task, files: list[str], name: str, device: str, whole=False) -> torch.Tensor:
    """N files of a folder task's domains -> (N, D) from a network: pictures.features; whole: its classifier's
    logits (N, C). All images of a domain are read, for all seeds, SHARD at a time; of several processes each
    begins with another shard."""

    def read(shard):
        return pictures.features(name, *image_encoder(name, whole), shard, device, half=not whole)

    rows, (rank, world) = {}, store.rank()
    domains = [domain for domain in task.files.values() if not set(domain).isdisjoint(files)]
    shards = [domain[i : i + SHARD] for domain in domains for i in range(0, len(domain), SHARD)]
    first = rank * len(shards) // world
    for shard in shards[first:] + shards[:first]:
        key = {"name": data.row_name(name), "device": device, "whole": whole}
        key["content"] = [data.fingerprint(file) for file in shard]
        rows |= zip(shard, cached("pictures", functools.partial(read, shard), **key))
    found, wanted = torch.stack([rows[file] for file in files]), task.num_classes
    if whole and found.shape[1] != wanted:
        raise data.InputError(f"{name} knows {found.shape[1]} classes, the folder has {wanted}")
    return found.to(device)
