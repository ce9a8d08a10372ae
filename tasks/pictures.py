"""Folders of images, and the pretrained networks by name that look at them.

    resnet50                  a torchvision model with its default weights and their transform
    hub:REPOSITORY:ENTRY      of torch.hub, whose code is run: hub:facebookresearch/dino:dino_vitb8
    timm:NAME                 where timm is installed
    pixels                    the image itself, SIDE x SIDE: what small weak models see
    python:MODULE:FUNCTION    FUNCTION() -> (module: images -> features (N, D), transform: PIL -> tensor);
                              MODULE is imported from PYTHONPATH or the current folder; features are kept
                              until its file changes, whatever weights it reads
"""

import importlib
import os
import sys

import torch
from torch import nn
from tqdm import tqdm

from tasks.files import InputError, fingerprint

SIDE = 64  # pixels of what a small network sees
WORKERS = min(4, os.cpu_count())  # processes that read images


def photographs(domain: str, data_dir: str) -> list[tuple[str, str, str]]:
    """data_dir/DOMAIN/CLASS/*.jpg -> (fingerprint, file, name of the class)."""
    from torchvision.datasets import ImageFolder  # here, as its import takes a second

    try:
        images = ImageFolder(f"{data_dir}/{domain}", allow_empty=True)
    except OSError as error:  # no such folder, or none in it
        expected = "--data-dir names the folder with DOMAIN/CLASS/*.jpg"
        raise InputError(f"no image in {data_dir}/{domain}/CLASS: {expected}") from error
    return [(fingerprint(file), file, images.classes[i]) for file, i in images.samples]


def own_module(name: str):
    """The module of python:MODULE:FUNCTION."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that it hides none of our modules
    try:
        return importlib.import_module(name.split(":")[1])
    except Exception as error:  # whatever that module raises
        raise InputError(f"cannot import the module of {name} ({error})") from error


def encoder(name: str, whole: bool):
    """The network by that name, with its classifier or without, and what makes its input of a PIL image.
    InputError where it cannot be had."""
    from torchvision import models, transforms  # here, as their import takes a second

    try:
        match name.split(":"):
            case ["pixels"]:
                steps = [transforms.Resize((SIDE, SIDE)), transforms.PILToTensor()]
                return nn.Identity(), transforms.Compose(steps)
            case ["python", _, function]:
                return getattr(own_module(name), function)()
            case ["hub", *repository, entry] if repository:
                network = torch.hub.load(":".join(repository), entry, trust_repo=True)
                usual = models.ResNet50_Weights.IMAGENET1K_V1.transforms  # here bicubic, as DINO's authors
                return network, usual(interpolation=transforms.InterpolationMode.BICUBIC)
            case ["timm", model]:
                import timm

                network = timm.create_model(model, pretrained=True, **({} if whole else {"num_classes": 0}))
                return network, timm.data.create_transform(**timm.data.resolve_model_data_config(network))
        weights = models.get_model_weights(name).DEFAULT
        network = models.get_model(name, weights=weights)
        if not whole:
            *_, last = (key for key, module in network.named_modules() if isinstance(module, nn.Linear))
            network.set_submodule(last, nn.Identity())
        return network, weights.transforms()
    except Exception as error:  # of code that is not ours, and of the network
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        more = f"what is not in {torch.hub.get_dir()} is downloaded; --image-encoder python:MODULE:FUNCTION"
        raise InputError(f"cannot use {name} ({reason}); {more} reads from disk") from error


def features(name: str, network, transform, files: list[str], device: str, half: bool) -> torch.Tensor:
    """N files -> what the encoder `name` makes of them, (N, D); if `half` in bfloat16 on CUDA, which is
    enough for features, not for logits."""
    from torchvision.datasets.folder import default_loader

    network.eval().to(device)

    def load(paths):
        for path in paths:
            try:
                yield transform(default_loader(path))
            except Exception as error:  # PIL raises many kinds
                raise InputError(f"cannot read {path} ({' '.join(str(error).split())})") from error

    # Forked on macOS too, where else what the workers get would be pickled: a user's transform may not be.
    parallel = {"num_workers": WORKERS, "multiprocessing_context": "fork"}
    batches = torch.utils.data.DataLoader(files, 64, collate_fn=lambda b: torch.stack([*load(b)]), **parallel)
    parts = []
    try:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=half and "cuda" in device):
            for batch in tqdm(batches, name, unit=" images", unit_scale=64, disable=None):
                out = network(batch.to(device))
                if not torch.is_tensor(out) or len(out) != len(batch):
                    raise InputError(f"cannot use {name}: expected is a tensor with a row for each image")
                parts.append((out if name == "pixels" else out.float()).flatten(1).cpu())
    except InputError as error:  # a worker's comes with its traceback, the message in the last line
        raise InputError(str(error).splitlines()[-1].removeprefix("tasks.files.InputError: ")) from error
    return torch.cat(parts)
