"""Students, their ceiling, weak models, pretrained strong encoders, and what a student is given.

    supervise(name, seed, ...) -> Task with what the student sees and the weak models' weak_probs

The networks are in images.py and text.py, how they are trained in training.py. What is slow is computed once
and kept under cache/: store.py.
"""

import argparse
import copy
import importlib.util
import math
import random
from pathlib import Path

import torch
from torch import nn

import data
import images
import settings
import store
import text
import training

ENCODER_STEPS = 800


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


class Networks(nn.Module):
    """S whole networks side by side, which start alike: images (N, ...) -> logits (N, S, C)."""

    def __init__(self, network: nn.Module, num_students: int):
        super().__init__()
        self.networks = nn.ModuleList(copy.deepcopy(network) for _ in range(num_students))

    def forward(self, x):
        return torch.stack([network(x) for network in self.networks], dim=1)


def make_student(task: data.Task, num_students: int, seed: int) -> LinearHeads | Networks:
    """The student(s) of a supervised task, untrained. `seed` also fixes how batches are augmented."""
    x = task.strong_train.x
    torch.manual_seed(seed)
    if task.student_kind == "head":
        return LinearHeads(x.shape[-1], task.num_classes, num_students, x.dim() == 3).to(x.device)
    network = images.NETWORKS[task.encoder](task.num_classes)
    if task.student_kind == "fine-tuned":
        network[:-1].load_state_dict(task.weights["encoder"])
    return Networks(network, num_students).to(x.device, memory_format=torch.channels_last)


def supervisors(weak_probs: torch.Tensor, supervision: str) -> torch.Tensor:
    """What S students learn from, (N, M, C) -> (N, S, C): "each" weak model or the "mean" of their labels."""
    return {"each": weak_probs, "mean": weak_probs.mean(1, keepdim=True)}[supervision]


def labels_alone(task: data.Task, **recipe) -> dict:
    """What a row says of the student that learns from the labels handed out alone, by the ceiling's recipe.
    {} where there are none, or where they are the truth: then that student is the ceiling."""
    x, y, weak_probs = task.strong_train
    if task.labels is None or torch.equal(task.labels, y):
        return {}
    student = train_ceiling(task._replace(strong_train=data.Split(x, task.labels, weak_probs)), **recipe)
    predicted = training.predict(student, task.test.x)[:, 0].argmax(-1)
    return {"labels_alone": (predicted == task.test.y).double().mean().item()}


def load_teacher(task: data.Task) -> nn.Module:
    """The teacher of a task of settings.py."""
    teacher = images.NETWORKS[task.weak_models[0]](task.num_classes)
    teacher.load_state_dict(task.weights["teacher"])
    return teacher.to(task.strong_train.x.device, memory_format=torch.channels_last).eval()


def make_view(task: data.Task) -> settings.View | None:
    """How teacher and student see a batch of strong_train, None where they see it as it is."""
    return settings.View(task.augmentation, load_teacher(task)) if task.augmentation else None


def few_shot(task: data.Task, student, ceiling) -> dict:
    """What a row says of classes that nobody was trained on, {} where a task has none: settings.few_shot."""
    if not task.novel:
        return {}
    networks = {"student": student.networks[0], "ceiling": ceiling.networks[0], "weak": load_teacher(task)}
    return {"few_shot": settings.few_shot(task.novel, networks)}


def train_ceiling(task: data.Task, *, seed, **recipe) -> nn.Module:
    """The same student, trained on the ground truth of strong_train. It is the same for all methods, and kept
    in the cache. `recipe`: epochs, lr, batch_size, optimizer."""
    x, y, _ = task.strong_train
    student = make_student(task, 1, seed)
    start = store.digest(x, y, *student.state_dict().values())
    identity = {"start": start, "augmentation": task.augmentation, "device": str(x.device)}
    identity |= {"seed": seed, "recipe": recipe}

    def train(**identity):
        checkpoint = store.cache_path("training", identity)
        more = {"view": make_view(task), "progress": "ceiling", "checkpoint": checkpoint}
        training.fit(nn.Sequential(student, nn.Flatten(1)), x, y, seed=seed, **recipe, **more)
        return student.state_dict()

    student.load_state_dict(store.cached("ceiling", train, **identity))
    return student.eval()


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
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)  # else streams and graphs would be the first one's
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
        model = training.fit(net(num_classes).to(device), inputs.to(device), targets.to(device), **recipe)
        weak_models[name] = lambda x, model=model: training.predict(model, x.to(device))
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
            return training.predict(model, unflat(model.encode(flat(x)), pairs).to(device))

        lr = 3e-3 if pairs else 3e-2  # a reward sums its terms: larger gradients than those of their mean
        recipe = {"epochs": 20, "lr": lr, "batch_size": 16, "seed": seed}
        training.fit(model, unflat(model.encode(flat(texts)), pairs).to(device), targets.to(device), **recipe)
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
    model = images.NETWORKS["letters CNN"](len(images.LETTERS))
    model = model.to(device, memory_format=torch.channels_last)
    epochs, batch_size = min(4, steps), 128
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(len(images.LETTERS), (steps * batch_size // epochs,), generator=generator)
    severity = torch.rand(len(y), generator=generator)
    x = images.render(images.draw_atlas(images.LETTERS), y, severity, generator)
    recipe = {"epochs": epochs, "lr": 3e-3, "batch_size": batch_size, "seed": 0}
    x, y = x.to(device, memory_format=torch.channels_last), y.to(device)
    training.fit(model, x, y, progress="pretraining the image encoder", **recipe)
    return model[:-1].state_dict()


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
    training.fit(model, tokens[:, :-1], following, progress="pretraining the transformer", **recipe)
    return model.state_dict()


def image_features(x: torch.Tensor, steps: int, device: str) -> torch.Tensor:
    """Images (N, 1, 28, 28) -> (N, 384)."""
    encoder = images.image_encoder(24)
    encoder.load_state_dict(store.cached("encoder", pretrain_image_encoder, steps=steps, device=device))
    encoder = encoder.to(device, memory_format=torch.channels_last).eval()
    return training.predict(encoder, x.to(device, memory_format=torch.channels_last))


def transformer_features(texts: list[str], steps: int, device: str) -> torch.Tensor:
    """N generated reviews -> (N, 576)."""
    model = text.CausalTransformer()
    model.load_state_dict(store.cached("transformer", pretrain_transformer, steps=steps, device=device))
    return training.predict(model.to(device).features, text.encode(texts).to(device))


def pretrained_features(name: str, texts: list[str], device: str) -> torch.Tensor:
    """N texts -> (N, D) from a Hugging Face model. Each set of texts is read once: where a domain has no more
    samples than a task uses, once for all seeds. Raises data.InputError where there is no such model."""
    known = sorted(set(texts))
    try:
        features = store.cached("pretrained", text.pretrained_features, name=name, texts=known, device=device)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise data.InputError(f"cannot use --text-encoder {name}: {reason}") from error
    place = {each: i for i, each in enumerate(known)}
    return features[[place[each] for each in texts]]


# ------------------------------------------------------------------------------------------------ supervision


def supervise(name: str, seed: int, data_dir, device, encoder_steps: int, text_encoder=None) -> data.Task:
    """The task as its student sees it: x features, standardised on strong_train, and weak_probs (N, M, C).

    The weak models, trained here on the source domain, label the target splits; the strong encoder describes
    them. A FILE.npz brings both. In the tasks of settings.py the weak model is a teacher trained on
    strong_train, and x stay images. Raises data.InputError as data.load does.
    """
    if name.endswith(".npz"):
        task = data.load(name, seed)
    else:
        folder = data_dir and str(Path(data_dir).resolve())
        arguments = {"name": name, "seed": seed, "data_dir": folder, "device": device}
        arguments |= {"encoder_steps": encoder_steps, "text_encoder": text_encoder}
        task = store.cached("supervision", label_and_encode, **arguments)
    splits = {split: getattr(task, split) for split in ("strong_train", "val", "test")}
    if task.student_kind == "head":
        std, mean = torch.std_mean(task.strong_train.x.flatten(0, -2), dim=0, correction=0)
        splits = {key: split._replace(x=(split.x - mean) / (std + 1e-6)) for key, split in splits.items()}

    def move(split):
        return data.Split(*(None if part is None else part.to(device) for part in split))

    labels = None if task.labels is None else task.labels.to(device)
    novel = {key: move(split) for key, split in task.novel.items()}
    return task._replace(labels=labels, novel=novel, **{key: move(split) for key, split in splits.items()})


def label_and_encode(name, seed, data_dir, device, encoder_steps, text_encoder) -> data.Task:
    """What `supervise` keeps in the cache: features as the encoder gives them."""
    task = data.load(name, seed, data_dir)
    if task.student_kind != "head":
        return label_by_teacher(task, seed, device, encoder_steps)
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


def label_by_teacher(task: data.Task, seed: int, device: str, encoder_steps: int) -> data.Task:
    """A task of settings.py with its teacher's labels, and the weights of the teacher."""
    [name] = task.weak_models
    torch.manual_seed(seed)
    teacher = images.NETWORKS[name](task.num_classes).to(device, memory_format=torch.channels_last)
    x, labels = task.strong_train.x, task.labels
    identity = {"start": store.digest(x, labels, *teacher.state_dict().values()), "seed": seed}
    identity |= {"augmentation": task.augmentation, "device": device}
    training.fit(
        teacher, x.to(device), labels.to(device), seed=seed, **settings.TEACHERS[name], progress="teacher",
        view=settings.View(task.augmentation, None) if task.augmentation else None,
        checkpoint=store.cache_path("training", identity),
    )  # fmt: skip
    splits = {}
    for key in ("strong_train", "val", "test"):
        x, y, _ = getattr(task, key)
        splits[key] = data.Split(x, y, training.predict(teacher, x.to(device)).softmax(-1)[:, None].cpu())
        if not splits[key].weak_probs.isfinite().all():
            raise data.InputError(f"the training of the teacher {name} diverged")
    weights = {"teacher": {key: value.cpu() for key, value in teacher.state_dict().items()}}
    if task.student_kind == "fine-tuned":
        arguments = {"steps": encoder_steps, "device": device}
        weights["encoder"] = store.cached("encoder", pretrain_image_encoder, **arguments)
    return task._replace(weights=weights, **splits)
