"""Students, plain supervised training, weak models, strong encoders, and what a student is given.

    supervise(known, seed, ...) -> data.Task with what the student sees and the weak models' weak_probs

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


def image_weak_models(split: data.Split, num_classes: int, seed: int, device: str) -> dict:
    """Three weak models trained on `split` of the source domain, {name: images -> logits (N, C)}."""
    x, y = split.x, split.y
    generator = torch.Generator().manual_seed(seed)
    noisy = noisy_labels(y, num_classes, generator)
    few = torch.cat([x[:500], 1 - x[:500]])
    augmented = few + 0.2 * torch.randn(few.shape, generator=generator)
    recipes = {  # they differ as supervisors do: in their network, labels, samples, epochs
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


def folder_weak_models(task: data.Task, seed: int, device: str, encoder: str | None) -> dict:
    """The same for files of images: networks on 64 x 64 pixels, or linear heads on what `encoder` makes of
    them. Several sources: of each one. No source: one weak model, the classifier that `encoder` names."""
    if not task.weak_train:
        if not encoder:
            raise data.InputError("a folder without a source needs a classifier: --weak-encoder alexnet")

        def classify(x):
            logits, wanted = look(task, x, encoder, device, whole=True), task.num_classes
            if logits.shape[1] != wanted:
                raise data.InputError(f"{encoder} knows {logits.shape[1]} classes, the folder has {wanted}")
            return logits

        return {data.row_name(encoder): classify}

    @functools.lru_cache(1)  # the weak models look at the same files
    def see(x):  # each image, or its features, of mean 0 and deviation 1
        x = look(task, x, encoder or "pixels", device).float()
        return F.layer_norm(x, x.shape[1:]).unflatten(1, (-1,) if encoder else (3, pictures.SIDE, -1))

    head, cnn = images.linear_net, images.photo_net
    if isinstance(task.weak_train, dict):
        parts = task.weak_train.items()
        recipes = {name: (head if encoder else cnn, see(tuple(part.x)), part.y) for name, part in parts}
    else:
        x, y, few = see(tuple(task.weak_train.x)), task.weak_train.y, math.ceil(len(task.weak_train.x) / 4)
        noisy = noisy_labels(y, task.num_classes, torch.Generator().manual_seed(seed))
        recipes = {"head": (head, x, y), "noisy": (head, x, noisy), "few": (head, x[:few], y[:few])}
        if not encoder:
            recipes = {"linear": (head, x, y), "mlp": (images.mlp_net, x, noisy), "cnn": (cnn, x, y)}
    weak_models, recipe = {}, {"epochs": 20, "length": 20, "batch_size": 32, "seed": seed}
    for name, (network, x, y) in recipes.items():
        if not encoder:
            x, y = torch.cat([x, x.flip(3)]), y.repeat(2)
        torch.manual_seed(seed)
        model = network(task.num_classes, x[0].numel()).to(device)
        lr = 3e-3 if network is cnn else 1e-3  # of 1e-3 and 3e-3 by held-out images of the source
        fit(model, x, y.to(device), lr=lr, progress=f"weak model {name}", **recipe)
        weak_models[name] = lambda x, model=model: predict(model, see(tuple(x)))
    return weak_models


def text_weak_models(weak_train: data.Split | dict, num_classes: int, seed: int, device: str) -> dict:
    """The same for texts: bags of words, or of words and pairs of neighbouring words, on a quarter of the
    samples ("phrases"). Classifiers, or where a sample is a pair reward models. Several sources: of each one
    bag of words."""
    if isinstance(weak_train, dict):
        pairs, recipes = False, {name: (*split[:2], False) for name, split in weak_train.items()}
    else:
        x, y, *_ = weak_train
        few, pairs = math.ceil(len(x) / 4), isinstance(x[0], tuple)
        noisy = noisy_labels(y, num_classes, torch.Generator().manual_seed(seed))
        recipes = {"words": (x, y, False), "noisy": (x, noisy, False), "phrases": (x[:few], y[:few], True)}
    weak_models = {}
    for name, (texts, targets, phrases) in recipes.items():
        model = text.BagOfWords(flat(texts), phrases, num_classes, pairs).to(device)
        if not model.vocabulary:
            raise data.InputError("no word occurs in two texts of the source domain")

        def encode(x, model=model):
            return unflat(model.encode(flat(x)), pairs).to(device)

        lr = 3e-3 if pairs else 3e-2  # a reward sums its terms: larger gradients than those of their mean
        recipe = {"epochs": 20, "lr": lr, "batch_size": 16, "seed": seed}
        fit(model, encode(texts), targets.to(device), **recipe)
        weak_models[name] = lambda x, model=model, encode=encode: predict(model, encode(x))
    return weak_models


def flat(x: list) -> list[str]:
    """Texts as they are; N pairs of texts as 2 N texts."""
    return x if isinstance(x[0], str) else [response for pair in x for response in pair]


def unflat(rows: torch.Tensor, pairs: bool) -> torch.Tensor:
    """What was computed of flat texts, (2 N, D) -> (N, 2, D) where they are pairs."""
    return rows.unflatten(0, (-1, 2)) if pairs else rows


def pretrain_image_encoder(steps: int, device: str) -> dict[str, torch.Tensor]:
    """Weights of the image encoder, after classifying rendered letters at all severities: no digits."""
    torch.manual_seed(0)
    model = make_network("letters CNN", len(images.LETTERS), device)
    epochs, batch_size = min(4, steps), 128
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(len(images.LETTERS), (steps * batch_size // epochs,), generator=generator)
    severity = torch.rand(len(y), generator=generator)
    x = images.render(images.draw_atlas(images.LETTERS), y, severity, generator)
    recipe = {"epochs": epochs, "lr": 3e-3, "batch_size": batch_size, "seed": 0}
    x, y = x.to(device, memory_format=torch.channels_last), y.to(device)
    fit(model, x, y, progress="pretraining the image encoder", **recipe)
    return model[:-1].state_dict()


def pretrain_transformer(steps: int, device: str) -> dict[str, torch.Tensor]:
    """Weights of the causal transformer, after predicting the next word of unlabelled reviews of all domains,
    in three times as many steps as the image encoder's."""
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
    """N files of a folder task's domains -> (N, D) from a network: pictures.features. All images of a domain
    are read, for all seeds, SHARD at a time; of several processes each begins with another shard."""
    rows, (rank, world) = {}, store.rank()
    domains = [domain for domain in task.files.values() if not set(domain).isdisjoint(files)]
    shards = [domain[i : i + SHARD] for domain in domains for i in range(0, len(domain), SHARD)]
    first = rank * len(shards) // world
    for shard in shards[first:] + shards[:first]:
        content = [data.fingerprint(file) for file in shard]
        key = {"name": data.row_name(name), "content": content, "device": device, "whole": whole}

        def read(shard=shard):
            return pictures.features(name, *image_encoder(name, whole), shard, device, half=not whole)

        rows |= zip(shard, cached("pictures", read, **key))
    return torch.stack([rows[file] for file in files]).to(device)


def supervise(known, seed: int, folder, device: str, steps: int, text_encoder=None, **encoders) -> data.Task:
    """A data.Known as its student sees it: x features, standardised on strong_train, weak_probs (N, M, C).

    Weak models trained on the source domain label the target splits; the strong encoder, pretrained in
    `steps`, describes them. A FILE.npz brings both. In the tasks of labelled.py the weak model is a teacher
    trained on strong_train, and x stay images. encoders: the image_encoder and weak_encoder of a folder task.
    Raises data.InputError as data.load does."""
    if known.name.endswith(".npz"):
        task = standardise(known.load(seed, folder))
    else:
        key = {"name": known.name, "seed": seed, "device": device, "steps": steps}
        parts = data.folders(known.name)
        key |= {"data": data.fingerprint(folder, parts) if folder and known.has_files else None}
        encoders["text_encoder"] = text_encoder
        key |= {name: data.row_name(encoder) for name, encoder in encoders.items() if encoder}
        make = label_and_encode if known.recipe is data.HEAD else label_by_teacher
        arguments = (seed, device, steps, encoders)
        task = cached("supervision", lambda: make(known.load(seed, folder), *arguments), **key)

    def move(split):
        x, *others = (None if part is None else part.to(device) for part in split)
        return data.Split(x.float() if task.setting is None else x, *others)

    novel = task.novel and {part: move(split) for part, split in task.novel.items()}
    return each_split(task, move)._replace(novel=novel)


def each_split(task: data.Task, function) -> data.Task:
    """The task with function(split) for each split of the target domain, without the source domain."""
    strong_train, val, test = map(function, (task.strong_train, task.val, task.test))
    return task._replace(weak_train=None, files=None, strong_train=strong_train, val=val, test=test)


def standardise(task: data.Task) -> data.Task:
    std, mean = torch.std_mean(task.strong_train.x.flatten(0, -2), dim=0, correction=0)
    return each_split(task, lambda split: split._replace(x=(split.x - mean) / (std + 1e-6)))


def label_and_encode(task: data.Task, seed, device, steps, encoders) -> data.Task:
    """A task of a linear head, with weak labels and features. The features, of deviation 1, are rounded to
    float16: they are most of what is in the cache."""
    splits = [task.strong_train.x, task.val.x, task.test.x]
    listed, sizes = isinstance(splits[0], list), list(map(len, splits))
    chosen = encoders.get("image_encoder" if task.files else "text_encoder") if listed else None
    task = task._replace(encoder=chosen or task.encoder)
    if task.files:
        weak_models = folder_weak_models(task, seed, device, encoders.get("weak_encoder"))
    else:
        train_weak = image_weak_models if task.kind == "image" else text_weak_models
        weak_models = train_weak(task.weak_train, task.num_classes, seed, device)
    x = sum(splits, []) if listed else torch.cat(splits)
    weak_probs = torch.stack([logits(x).softmax(-1) for logits in weak_models.values()], dim=1).cpu()
    parts = zip(encode(task, x, steps, device).cpu().split(sizes), weak_probs.split(sizes))

    def describe(split):
        features, probs = next(parts)
        return split._replace(x=features, weak_probs=probs.clone())  # else the whole is saved with each part

    encoder = data.row_name(chosen) if chosen else task.encoder
    task = standardise(each_split(task, describe))._replace(weak_models=list(weak_models), encoder=encoder)
    return each_split(task, lambda split: split._replace(x=split.x.clamp(-6e4, 6e4).half()))


def label_by_teacher(task: data.Task, seed, device, steps, _) -> data.Task:
    """A task of labelled.py with its teacher's labels, and the weights of the teacher."""
    setting, (x, _, _, labels) = task.setting, task.strong_train
    torch.manual_seed(seed)
    teacher = make_network(setting.teacher, task.num_classes, device)
    view = labelled.view(setting.augmentation) if setting.augmentation else None
    recipe = {**setting.teacher_recipe, "seed": seed, "view": view, "progress": "teacher"}
    fit(teacher, x.to(device), labels.to(device), **recipe)

    def label(split):
        return split._replace(weak_probs=predict(teacher, split.x.to(device)).softmax(-1)[:, None].cpu())

    weights = {"teacher": {key: value.cpu() for key, value in teacher.state_dict().items()}}
    if setting.fine_tuned:
        weights["student"] = pretrained("letters CNN", steps, device)
    return each_split(task, label)._replace(weights=weights)
