"""What a student is given: features of the target domain by the strong encoder, labels by weak models.

    supervise(known, seed, ...) -> data.Task with x and weak_probs
"""

import functools
import math

import torch
import torch.nn.functional as F

import data
import models
from store import cached
from tasks import images, labelled, pictures, text

MANY = 20  # weak models, of which --weak-models N takes the first N


def image_weak_models(task: data.Task, seed: int, device: str, encoder: str | None) -> dict:
    """Of images: networks on 28 x 28 pixels. Of files: on 64 x 64 pixels, or linear heads on what `encoder`
    makes of them."""

    @functools.lru_cache(1)  # the weak models look at the same files
    def look(files):  # each image, or its features, of mean 0 and deviation 1
        x = models.look(task, files, encoder or "pixels", device).float()
        return F.layer_norm(x, x.shape[1:]).unflatten(1, (-1,) if encoder else (3, pictures.SIDE, -1))

    def see(x):
        return look(tuple(x)) if task.files else x.to(device)

    linear, mlp, cnn = images.linear_net, images.mlp_net, images.photo_net
    if isinstance(task.weak_train, dict):
        network, parts = linear if encoder else cnn, task.weak_train.items()
        recipes = {name: (network, see(part.x), part.y) for name, part in parts}
    else:
        x, y, generator = see(task.weak_train.x), task.weak_train.y, torch.Generator().manual_seed(seed)
        noisy, few = models.noisy_labels(y, task.num_classes, generator), math.ceil(len(y) / 4)
        recipes = {"linear": (linear, x, y), "mlp": (mlp, x, noisy), "cnn": (cnn, x, y)}
        if encoder:
            recipes = {"head": (linear, x, y), "noisy": (linear, x, noisy), "few": (linear, x[:few], y[:few])}
        elif not task.files:
            both = torch.cat([x[:500], 1 - x[:500]])
            noise = 0.2 * torch.randn(both.shape, generator=generator)
            recipes["cnn"] = images.cnn_net, both + noise.to(device), y[:500].repeat(2)
    weak_models = {}
    for name, (network, x, y) in recipes.items():
        recipe = {"epochs": 40 if network is images.cnn_net else 10, "batch_size": 64, "lr": 1e-3}
        if task.files:  # lr: of 1e-3 and 3e-3 by held-out images of the source
            recipe = {"epochs": 20, "length": 20, "batch_size": 32, "lr": 3e-3 if network is cnn else 1e-3}
            x, y = (x, y) if encoder else (torch.cat([x, x.flip(3)]), y.repeat(2))
        torch.manual_seed(seed)
        model = network(task.num_classes, x[0].numel()).to(device)
        models.fit(model, x, y.to(device), seed=seed, progress=f"weak model {name}", **recipe)
        weak_models[name] = lambda x, model=model: models.predict(model, see(x))
    return weak_models


def text_weak_models(weak_train: data.Split | dict, num_classes: int, seed: int, device: str) -> dict:
    """Of texts: bags of words, or of words and pairs of neighbouring words, on a quarter of the samples
    ("phrases"). Classifiers, or where a sample is a pair reward models."""

    def train(texts, y, phrases=False):
        pairs = isinstance(texts[0], tuple)
        model = text.BagOfWords(models.flat(texts), phrases, num_classes, pairs).to(device)
        if not model.vocabulary:
            raise data.InputError("no word occurs in two texts of the source domain")

        def see(x):
            return models.unflat(model.encode(models.flat(x)), pairs).to(device)

        lr = 3e-3 if pairs else 3e-2  # a reward sums its terms: larger gradients than those of their mean
        models.fit(model, see(texts), y.to(device), epochs=20, lr=lr, batch_size=16, seed=seed)
        return lambda x: models.predict(model, see(x))

    if isinstance(weak_train, dict):
        return {name: train(*split[:2]) for name, split in weak_train.items()}
    x, y, *_ = weak_train
    noisy = models.noisy_labels(y, num_classes, torch.Generator().manual_seed(seed))
    few = math.ceil(len(x) / 4)
    return {"words": train(x, y), "noisy": train(x, noisy), "phrases": train(x[:few], y[:few], phrases=True)}


def hierarchy(domains: list[str]) -> list[list[str]]:
    """All domains as one, in halves, in quarters, ..., each alone: layers of names joined by +."""
    layers = [[domains]]
    while any(len(part) > 1 for part in layers[-1]):
        halves = ((part[: -(-len(part) // 2)], part[-(-len(part) // 2) :]) for part in layers[-1])
        layers.append([half for pair in halves for half in pair if half])
    return [["+".join(part) for part in layer] for layer in layers]


def take(split: data.Split, chosen) -> data.Split:
    """Its samples of the indices `chosen`."""
    x, y, *_ = split
    return data.Split([x[i] for i in chosen] if isinstance(x, list) else x[chosen], y[chosen])


def specialists(task: data.Task) -> dict[str, data.Split]:
    """For each group of source domains in `hierarchy` its samples; of generated reviews their products tell
    the domain. InputError of a task without several sources."""
    domains = task.weak_train
    if not isinstance(domains, dict):
        texts = [""] if task.kind == "image" else domains.x
        of = [text.domain("".join(each)) for each in texts]  # generated pairs are on one product
        if None in of:
            raise data.InputError("specialists need a task of several source domains")
        own = {name: [i for i, domain in enumerate(of) if domain == name] for name in text.SOURCE}
        domains = {name: take(domains, chosen) for name, chosen in own.items()}
    found = {}
    for name in sum(hierarchy([*domains]), []):
        x, y = zip(*(domains[domain][:2] for domain in name.split("+")))
        found[name] = data.Split(sum(x, []), torch.cat(y))
    return found


def train_weak_models(task: data.Task, seed: int, device: str, encoder=None, wanted=None) -> dict:
    """Weak models that differ as supervisors do: in network, labels, samples. {name: x -> logits (N, C)}.

    wanted: None, the task's usual three, or of several sources one of each, or without a source the
    classifier that `encoder` names; "specialists"; a number, MANY of other kinds, seeds and halves of the
    samples, in random order."""
    if wanted == "specialists":
        task = task._replace(weak_train=specialists(task))
    elif wanted:
        if not isinstance(task.weak_train, data.Split):
            raise data.InputError("a number of --weak-models needs samples that are not kept by domain")
        generator, found, n = torch.Generator().manual_seed(seed), {}, len(task.weak_train.y)
        while len(found) < MANY:
            half = take(task.weak_train, torch.randperm(n, generator=generator)[: n // 2])
            own = 1000 * seed + len(found)
            trained = train_weak_models(task._replace(weak_train=half), own, device, encoder)
            found |= {f"{name} {own}": model for name, model in trained.items()}
        order, named = torch.randperm(len(found), generator=generator), list(found.items())
        return dict(named[i] for i in order[:MANY])
    if not task.weak_train:
        if not encoder:
            raise data.InputError("a folder without a source needs a classifier: --weak-encoder alexnet")
        return {data.row_name(encoder): lambda x: models.look(task, x, encoder, device, whole=True)}
    if task.kind == "image":
        return image_weak_models(task, seed, device, encoder)
    return text_weak_models(task.weak_train, task.num_classes, seed, device)


def supervise(known, seed: int, folder, device: str, steps: int, **chosen) -> data.Task:
    """A data.Known as its student sees it: x features, standardised on strong_train, weak_probs (N, M, C).

    Weak models trained on the source domain label the target splits; the strong encoder, pretrained in
    `steps`, describes them. A FILE.npz brings both. In the tasks of labelled.py the weak model is a teacher
    trained on strong_train, and x stay images. chosen: text_encoder, image_encoder and weak_encoder;
    weak_models: "specialists", or how many of MANY.
    Raises data.InputError as data.load does."""
    chosen = {key: value for key, value in chosen.items() if value}
    first = None  # of the weak models all
    if isinstance(chosen.get("weak_models"), int):
        first, chosen["weak_models"] = chosen["weak_models"], MANY
    if known.name.endswith(".npz"):
        task = standardise(known.load(seed, folder))
    else:
        key = {"name": known.name, "seed": seed, "device": device, "steps": steps}
        parts = data.folders(known.name)
        key |= {"data": data.fingerprint(folder, parts) if folder and known.has_files else None}
        key |= {name: data.row_name(str(each)) for name, each in chosen.items()}
        make = label_and_encode if known.recipe is data.HEAD else label_by_teacher
        given = seed, device, steps, chosen
        task = cached("supervision", lambda: make(known.load(seed, folder), *given), **key)

    def move(split):
        x, *others = (None if part is None else part.to(device) for part in split)
        return data.Split(x.float() if task.setting is None else x, *others)

    task = each_split(task, lambda split: split._replace(weak_probs=split.weak_probs[:, :first]))
    novel = task.novel and {part: move(split) for part, split in task.novel.items()}
    return each_split(task, move)._replace(novel=novel, weak_models=task.weak_models[:first])


def each_split(task: data.Task, function, *more) -> data.Task:
    """The task with function(split) for each split of the target domain, without the source domain. more:
    for each of the three splits another argument."""
    strong_train, val, test = map(function, (task.strong_train, task.val, task.test), *more)
    return task._replace(weak_train=None, files=None, strong_train=strong_train, val=val, test=test)


def sharpen(task: data.Task, temperatures: list[float]) -> data.Task:
    """The task with the m-th weak model's logits divided by the m-th temperature: no argmax changes."""
    if len(temperatures) != len(task.weak_models):
        raise data.InputError(f"--weak-temperatures: {len(task.weak_models)} weak models need one each")
    exponents = 1 / torch.tensor(temperatures, device=task.test.y.device)[:, None]

    def power(split):
        logs = split.weak_probs.clamp(min=torch.finfo(split.weak_probs.dtype).tiny).log()
        return split._replace(weak_probs=(logs * exponents).softmax(-1))

    return each_split(task, power)


def standardise(task: data.Task) -> data.Task:
    std, mean = torch.std_mean(task.strong_train.x.flatten(0, -2), dim=0, correction=0)
    return each_split(task, lambda split: split._replace(x=(split.x - mean) / (std + 1e-6)))


def label_and_encode(task: data.Task, seed, device, steps, chosen) -> data.Task:
    """A task of a linear head, with weak labels and features. The features, of deviation 1, are rounded to
    float16: they are most of what is in the cache."""
    if own := chosen.get("image_encoder" if task.kind == "image" else "text_encoder"):
        task = task._replace(encoder=own)
    weak_models = train_weak_models(task, seed, device, chosen.get("weak_encoder"), chosen.get("weak_models"))
    parts = [task.strong_train.x, task.val.x, task.test.x]
    x, sizes = sum(parts, []) if isinstance(parts[0], list) else torch.cat(parts), list(map(len, parts))
    weak_probs = torch.stack([logits(x).softmax(-1) for logits in weak_models.values()], dim=1).cpu()
    features = models.encode(task, x, steps, device).cpu().split(sizes)

    def describe(split, x, probs):
        return split._replace(x=x, weak_probs=probs.clone())  # else the whole is saved with each part

    task = standardise(each_split(task, describe, features, weak_probs.split(sizes)))
    task = each_split(task, lambda split: split._replace(x=split.x.clamp(-6e4, 6e4).half()))
    return task._replace(weak_models=list(weak_models), encoder=data.row_name(own) if own else task.encoder)


def label_by_teacher(task: data.Task, seed, device, steps, _) -> data.Task:
    """A task of labelled.py with its teacher's labels, and the weights of the teacher."""
    setting, (x, _, _, labels) = task.setting, task.strong_train
    torch.manual_seed(seed)
    teacher = models.make_network(setting.teacher, task.num_classes, device)
    view = labelled.view(setting.augmentation) if setting.augmentation else None
    recipe = setting.teacher_recipe | {"seed": seed, "view": view, "progress": "teacher"}
    models.fit(teacher, x.to(device), labels.to(device), **recipe)

    def label(split):
        weak_probs = models.predict(teacher, split.x.to(device)).softmax(-1)
        return split._replace(weak_probs=weak_probs[:, None].cpu())

    task = each_split(task, label)
    weights = {"teacher": teacher.cpu().state_dict()}
    if setting.fine_tuned:
        weights["student"] = models.pretrained("letters CNN", steps, device)
    return task._replace(weights=weights)
