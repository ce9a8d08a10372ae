"""How a network is trained: batches, optimizer, epochs that survive a kill, and the plain supervised fit."""

import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import store

CHECKPOINT_SECONDS = 60  # between two checkpoints; shorter trainings leave none


class Batches:
    """All samples in random order, anew at each iteration: (x, weak_probs, labels) of B samples.

    x (N, ...); weak_probs (N, S, C) and labels (N, ...), or None, which then stays None. `view`, if the task
    has one, is applied to each batch: settings.View.
    """

    def __init__(self, x, weak_probs, labels, batch_size: int, seed: int, view=None):
        self.samples = (x, weak_probs, labels)
        self.batch_size = batch_size
        self.view = view
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self):
        return math.ceil(len(self.samples[0]) / self.batch_size)

    def __iter__(self):
        x = self.samples[0]
        for batch in torch.randperm(len(x), generator=self.generator).to(x.device).split(self.batch_size):
            drawn = [None if part is None else part.index_select(0, batch) for part in self.samples]
            yield self.view(*drawn) if self.view else drawn

    def state_dict(self):
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])


def make_optimizer(kind: str, model, lr: float, steps: int, fused=None, captured: bool = False):
    """An optimizer and its schedule, to be stepped after every batch; no step makes the host wait for a GPU.
    fused: True for all parameters in one kernel, None for PyTorch's choice. captured: for steps that become a
    CUDA graph (fast.captured), which finds the rate in a tensor.

    adam  cosine to 0 over all steps
    sgd   what AdaptConf's authors train CIFAR-100 networks with: Nesterov momentum .9, weight decay 5e-4,
          linear warm-up over the first 1/24 of the steps (10 of 240 epochs), cosine to lr / 100
    """
    if kind == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=fused, capturable=captured)
        warm_up, last = 0, 0.0
    else:
        assert kind == "sgd", kind
        optimizer = torch.optim.SGD(
            model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=fused
        )
        warm_up, last = math.ceil(steps / 24), 0.01

    def factor(step):
        if step < warm_up:
            return (step + 1) / warm_up
        return last + (1 - last) * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    if captured:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)
    return optimizer, schedule


def resumable(epochs: int, progress: str | None, checkpoint: Path | None = None, **state):
    """Counts the epochs from 0, with a progress bar of that name.

    `state` is all that training changes: what has a state_dict, tensors, lists. It is written to the file
    `checkpoint` from time to time. Where that file exists, state and random numbers are restored from it and
    the count goes on there, so that a run that was killed ends like one that was not; then it is removed.
    """
    first, saved = 0, time.monotonic()
    if checkpoint and checkpoint.exists():
        first = restore(checkpoint, state)
    for epoch in tqdm(
        range(first, epochs), desc=progress, initial=first, total=epochs, leave=False,
        disable=None if progress else True,
    ):
        yield epoch
        if checkpoint and epoch + 1 < epochs and time.monotonic() - saved >= CHECKPOINT_SECONDS:
            parts = {
                name: value.state_dict() if hasattr(value, "state_dict") else value
                for name, value in state.items()
            }
            content = {"epoch": epoch + 1, "random": torch.get_rng_state(), "state": parts}
            store.write_atomically(checkpoint, lambda file, content=content: torch.save(content, file))
            saved = time.monotonic()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)


def restore(checkpoint: Path, state: dict) -> int:
    """Puts what the file holds into the objects of `state`; the number of epochs done."""
    try:
        content = store.load(checkpoint)
    except Exception as error:  # zipfile and torch.load raise many kinds
        print(f"{checkpoint} is damaged ({error}): training starts anew", file=sys.stderr)
        return 0
    for name, value in content["state"].items():
        if hasattr(state[name], "state_dict"):
            state[name].load_state_dict(value)
        elif isinstance(value, list):
            state[name][:] = value
        else:
            state[name].data.copy_(value)
    torch.set_rng_state(content["random"])
    return content["epoch"]


def fit(
    model, x, y, *, epochs, lr, batch_size, seed, optimizer="adam", view=None, progress=None, checkpoint=None
):
    """Supervised training on x (N, ...), y (N,), or y (N, L) for logits (N, C, L). Returns the model."""
    batches = Batches(x, None, y, batch_size, seed, view)
    # Not fused, which rounds differently: the encoders stay those with which the defaults were chosen.
    optimizer, schedule = make_optimizer(optimizer, model, lr, epochs * len(batches))
    state = {"model": model, "optimizer": optimizer, "schedule": schedule, "batches": batches}
    model.train()
    for _ in resumable(epochs, progress, checkpoint, **state):
        for inputs, _, targets in batches:
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
