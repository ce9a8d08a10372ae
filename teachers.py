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


def image_weak_models(split: data.Split, num_classes: int, seed: int, device: str) -> dict:
    """Three weak models trained on `split` of the source domain, {name: images -> logits (N, C)}."""
    x, y = split.x, split.y
    generator = torch.Generator().manual_seed(seed)
    noisy = models.noisy_labels(y, num_classes, generator)
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
        model = models.fit(net(num_classes).to(device), inputs.to(device), targets.to(device), **recipe)
        weak_models[name] = lambda x, model=model: models.predict(model, x.to(device))
    return weak_models


def folder_weak_models(task: data.Task, seed: int, device: str, encoder: str | None) -> dict:
    """The same for files of images: networks on 64 x 64 pixels, or linear heads on what `encoder` makes of
    them. Several sources: of each one. No source: one weak model, the classifier that `encoder` names."""
    if not task.weak_train:
        if not encoder:
            raise data.InputError("a folder without a source needs a classifier: --weak-encoder alexnet")

        def classify(x):
            logits, wanted = models.look(task, x, encoder, device, whole=True), task.num_classes
            if logits.shape[1] != wanted:
                raise data.InputError(f"{encoder} knows {logits.shape[1]} classes, the folder has {wanted}")
            return logits

        return {data.row_name(encoder): classify}

    @functools.lru_cache(1)  # the weak models look at the same files
    def see(x):  # each image, or its features, of mean 0 and deviation 1
        x = models.look(task, x, encoder or "pixels", device).float()
        return F.layer_norm(x, x.shape[1:]).unflatten(1, (-1,) if encoder else (3, pictures.SIDE, -1))

    head, cnn = images.linear_net, images.photo_net
    if isinstance(task.weak_train, dict):
        parts = task.weak_train.items()
        recipes = {name: (head if encoder else cnn, see(tuple(part.x)), part.y) for name, part in parts}
    else:
        x, y, few = see(tuple(task.weak_train.x)), task.weak_train.y, math.ceil(len(task.weak_train.x) / 4)
        noisy = models.noisy_labels(y, task.num_classes, torch.Generator().manual_seed(seed))
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
        models.fit(model, x, y.to(device), lr=lr, progress=f"weak model {name}", **recipe)
        weak_models[name] = lambda x, model=model: models.predict(model, see(tuple(x)))
    return weak_models


def text_weak_models(weak_train: data.Split | dict, num_classes: int, seed: int, device: str) -> dict:
    """The same for texts: bags of words, or of words and pairs of neighbouring words, on a quarter of the
    samples ("phrases"). Classifiers, or where a sample is a pair reward models. Several sources: of each one
    bag of words."""
    if isinstance(weak_train, dict):
        recipes = {name: (*split[:2], False) for name, split in weak_train.items()}
    else:
        x, y, *_ = weak_train
        few = math.ceil(len(x) / 4)
        noisy = models.noisy_labels(y, num_classes, torch.Generator().manual_seed(seed))
        recipes = {"words": (x, y, False), "noisy": (x, noisy, False), "phrases": (x[:few], y[:few], True)}
    weak_models = {}
    for name, (texts, targets, phrases) in recipes.items():
        pairs = isinstance(texts[0], tuple)
        model = text.BagOfWords(models.flat(texts), phrases, num_classes, pairs).to(device)
        if not model.vocabulary:
            raise data.InputError("no word occurs in two texts of the source domain")

        def encode(x, model=model, pairs=pairs):
            return models.unflat(model.encode(models.flat(x)), pairs).to(device)

        lr = 3e-3 if pairs else 3e-2  # a reward sums its terms: larger gradients than those of their mean
        recipe = {"epochs": 20, "lr": lr, "batch_size": 16, "seed": seed}
        models.fit(model, encode(texts), targets.to(device), **recipe)
        weak_models[name] = lambda x, model=model, encode=encode: models.predict(model, encode(x))
    return weak_models


def hierarchy(domains: list[str]) -> list[list[str]]:
    """All domains as one, in halves, in quarters, ..., each alone: layers of names joined by +."""
    layers = [[domains]]
    while any(len(part) > 1 for part in layers[-1]):
        halves = ((part[: -(-len(part) // 2)], part[-(-len(part) // 2) :]) for part in layers[-1])
        layers.append([half for pair in halves for half in pair if half])
    return [["+".join(part) for part in layer] for layer in layers]


def by_domain(task: data.Task) -> dict[str, data.Split]:
    """weak_train by source domain; of generated reviews their products tell. InputError of any other one."""
    if isinstance(task.weak_train, dict):
        return task.weak_train
    x, y, *_ = task.weak_train or (None, None)
    first = [each if isinstance(each, str) else each[0] for each in x] if isinstance(x, list) else [""]
    domains = [text.domain(each) for each in first]
    if None in domains:
        raise data.InputError("specialists need a task of several source domains")
    own = {name: [i for i, domain in enumerate(domains) if domain == name] for name in text.SOURCE}
    return {name: data.Split([x[i] for i in chosen], y[chosen]) for name, chosen in own.items()}


def specialists(task: data.Task) -> dict[str, data.Split]:
    """For each group of domains in `hierarchy` its samples."""
    domains, found = by_domain(task), {}
    for name in [name for layer in hierarchy([*domains]) for name in layer]:
        x, y = zip(*(domains[domain][:2] for domain in name.split("+")))
        found[name] = data.Split(sum(x, []), torch.cat(y))
    return found


def half(split: data.Split, generator) -> data.Split:
    """Of its samples a random half."""
    x, y = split[:2]
    chosen = torch.randperm(len(y), generator=generator)[: len(y) // 2]
    return data.Split([x[i] for i in chosen] if isinstance(x, list) else x[chosen], y[chosen])


def train_weak_models(task: data.Task, seed: int, device: str, encoder=None, wanted=None) -> dict:
    """{name: x -> logits (N, C)}. wanted: None, the task's usual ones; "specialists"; a number, MANY of
    other kinds, seeds and halves of the samples, in random order."""
    if wanted == "specialists":
        task = task._replace(weak_train=specialists(task))
    elif wanted:
        if not isinstance(task.weak_train, data.Split):
            raise data.InputError("a number of --weak-models needs samples that are not kept by domain")
        generator, found = torch.Generator().manual_seed(seed), {}
        while len(found) < MANY:
            part, own = task._replace(weak_train=half(task.weak_train, generator)), 1000 * seed + len(found)
            trained = train_weak_models(part, own, device, encoder)
            found |= {f"{name} {own}": model for name, model in trained.items()}
        order, named = torch.randperm(len(found), generator=generator), list(found.items())
        return dict(named[i] for i in order[:MANY])
    if task.files:
        return folder_weak_models(task, seed, device, encoder)
    train = image_weak_models if task.kind == "image" else text_weak_models
    return train(task.weak_train, task.num_classes, seed, device)


def supervise(known, seed: int, folder, device: str, steps: int, **chosen) -> data.Task:
    """A data.Known as its student sees it: x features, standardised on strong_train, weak_probs (N, M, C).

    Weak models trained on the source domain label the target splits; the strong encoder, pretrained in
    `steps`, describes them. A FILE.npz brings both. In the tasks of labelled.py the weak model is a teacher
    trained on strong_train, and x stay images. chosen: text_encoder, image_encoder and weak_encoder;
    weak_models: "specialists", or how many of MANY.
    Raises data.InputError as data.load does."""
    chosen, number = {key: value for key, value in chosen.items() if value}, chosen.get("weak_models")
    if isinstance(number, int):
        chosen["weak_models"] = MANY
    if known.name.endswith(".npz"):
        task = standardise(known.load(seed, folder))
    else:
        key = {"name": known.name, "seed": seed, "device": device, "steps": steps}
        parts = data.folders(known.name)
        key |= {"data": data.fingerprint(folder, parts) if folder and known.has_files else None}
        key |= {name: data.row_name(str(each)) for name, each in chosen.items()}
        make = label_and_encode if known.recipe is data.HEAD else label_by_teacher
        arguments = (seed, device, steps, chosen)
        task = cached("supervision", lambda: make(known.load(seed, folder), *arguments), **key)
    if isinstance(number, int):
        task = each_split(task, lambda split: split._replace(weak_probs=split.weak_probs[:, :number]))
        task = task._replace(weak_models=task.weak_models[:number])

    def move(split):
        x, *others = (None if part is None else part.to(device) for part in split)
        return data.Split(x.float() if task.setting is None else x, *others)

    novel = task.novel and {part: move(split) for part, split in task.novel.items()}
    return each_split(task, move)._replace(novel=novel)


def each_split(task: data.Task, function) -> data.Task:
    """The task with function(split) for each split of the target domain, without the source domain."""
    strong_train, val, test = map(function, (task.strong_train, task.val, task.test))
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
    splits = [task.strong_train.x, task.val.x, task.test.x]
    listed, sizes = isinstance(splits[0], list), list(map(len, splits))
    own = chosen.get("image_encoder" if task.files else "text_encoder") if listed else None
    task = task._replace(encoder=own or task.encoder)
    named = (chosen.get(key) for key in ("weak_encoder", "weak_models"))
    weak_models = train_weak_models(task, seed, device, *named)
    x = sum(splits, []) if listed else torch.cat(splits)
    weak_probs = torch.stack([logits(x).softmax(-1) for logits in weak_models.values()], dim=1).cpu()
    parts = zip(models.encode(task, x, steps, device).cpu().split(sizes), weak_probs.split(sizes))

    def describe(split):
        features, probs = next(parts)
        return split._replace(x=features, weak_probs=probs.clone())  # else the whole is saved with each part

    encoder = data.row_name(own) if own else task.encoder
    task = standardise(each_split(task, describe))._replace(weak_models=list(weak_models), encoder=encoder)
    return each_split(task, lambda split: split._replace(x=split.x.clamp(-6e4, 6e4).half()))


def label_by_teacher(task: data.Task, seed, device, steps, _) -> data.Task:
    """A task of labelled.py with its teacher's labels, and the weights of the teacher."""
    setting, (x, _, _, labels) = task.setting, task.strong_train
    torch.manual_seed(seed)
    teacher = models.make_network(setting.teacher, task.num_classes, device)
    view = labelled.view(setting.augmentation) if setting.augmentation else None
    recipe = {**setting.teacher_recipe, "seed": seed, "view": view, "progress": "teacher"}
    models.fit(teacher, x.to(device), labels.to(device), **recipe)

    def label(split):
        weak_probs = models.predict(teacher, split.x.to(device)).softmax(-1)
        return split._replace(weak_probs=weak_probs[:, None].cpu())

    weights = {"teacher": {key: value.cpu() for key, value in teacher.state_dict().items()}}
    if setting.fine_tuned:
        weights["student"] = models.pretrained("letters CNN", steps, device)
    return each_split(task, label)._replace(weights=weights)
