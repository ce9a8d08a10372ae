"""RAVEN: learn how far to trust each of several weak models while the student learns from them.

Jeon et al. 2025, "Weak-to-Strong Generalization under Distribution Shifts" (RAVEN: robust adaptive
weighting), arXiv 2510.21332. Under distribution shift weak models fail differently, and without labels nobody
says whom to trust. RAVEN lets the student's own loss decide: the target is a weighted mean of the weak
labels, and the weights descend the same loss as the student, towards the weak model that the student finds
easiest to follow. As an untrained student is no judge, it first learns from *easy* samples, those on which
all weak models agree, while the weights stay equal.

    y = sum_m theta_m q_m,    y <- y / sum_c y_c                                                   (Eq. 2, 3)
    L = mean_i s_i CE(z_i, y_i)                      one backward pass for the student and the weights
    theta <- max(theta - eta_W dL/dtheta, 1e-6),    theta <- theta / sum(theta)                       (Eq. 13)
    dL/dtheta_m = mean_i s_i [CE(q_m, p) - CE(y, p)]    with CE(a, p) = -sum_c a_c log p_c, sum(theta) = 1

That is for images. On text, and on preferences, where a weak model is a reward model, logits are combined:

    y = softmax(sum_m theta_m log q_m)      log q_m stands for the weak model's logits: the same softmax
    dL/dtheta_m = -mean_i s_i Cov_y(log q_m, log p)                              over the classes, under y

    paper | here            shape
    z     | student_logits  (N, C)      p = softmax(z)
    q_m   | weak_probs      (N, M, C)   softmax of the m-th weak model's logits, fixed
    theta | weights         (M,)        start at 1/M and stay on the simplex
    s     | keep            (N,)        bool: all, in the easy phase the easy ones; the mean is over all N
    eta_W | weight_lr                   plain SGD, constant rate

In the easy phase, the first `easy_phase` of the epochs, mask and frozen weights go together. The student of
the last epoch is returned. With probabilities L is linear in theta, so that the weights drift towards a
vertex: how far they get depends on eta_W times the steps. And a weak model with sharp labels is easy to
follow whether or not it is right: look at `weights` beside `weak` in the rows.

Differences from the paper:
- The student is a linear head on the standardised features of a frozen encoder.
- Preferences: the paper trains a policy with DPO-R (Eq. 24): see raven_dpo.py. Here the student is a reward
  model, trained on the combined soft preference and scored by the share of pairs that it ranks right.
- One setting of the flags serves all tasks, where the paper searches a grid for each.
- Where a task hands out labels, their cross-entropy is added, unmasked.

    python methods/raven.py --task glyphs-shift

student .950, PGR .91 over 5 seeds; 60 s on 2 CPU cores, 10 s once encoder and weak labels are cached.
"""

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).resolve().parents[1]))  # data.py and the others stand in the folder above

import data
import fast
import models
import settings
import store
import training


def weighted_sum(parts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(N, M, C), (M,) -> (N, C). Term by term, so that it compiles into the same kernel as all the rest."""
    return sum(weight * part for weight, part in zip(weights, parts.unbind(1)))


def combine(weak_probs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean of the weak labels, normalised within the graph (Eq. 2, 3).

    weak_probs (N, M, C), weights (M,) -> (N, C), rows sum to 1.
    """
    combined = weighted_sum(weak_probs, weights)
    return combined / combined.sum(-1, keepdim=True)


def combine_logits(weak_probs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Softmax of the weighted mean of the weak logits, of a pair: of the rewards. Shapes as in `combine`.

    log q differs from the logits by a constant of the sample, which the softmax does not see: neither value
    nor gradients change. A q of 0 is clamped to the smallest normal number.
    """
    return torch.softmax(weighted_sum(safe_log(weak_probs), weights), dim=-1)


def safe_log(probs: torch.Tensor) -> torch.Tensor:
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def unanimous(weak_probs: torch.Tensor) -> torch.Tensor:
    """Easy samples, on which all M weak models name the same class: (N, M, C) -> bool (N,)."""
    classes = weak_probs.argmax(-1)
    return (classes == classes[:, :1]).all(-1)


def raven_loss(
    student_logits: torch.Tensor,
    weak_probs: torch.Tensor,
    weights: torch.Tensor,
    keep: torch.Tensor,
    combination=combine,
) -> torch.Tensor:
    """L, in nats: the mean over all N, of which `keep` counts. Gradients reach the student and the weights.

    student_logits (N, C); weak_probs (N, M, C); weights (M,); keep bool (N,); combination: combine or
    combine_logits -> scalar.
    """
    targets = combination(weak_probs, weights)
    return (keep * F.cross_entropy(student_logits, targets, reduction="none")).mean()


@fast.closed_form
def value_and_gradient(
    student_logits: torch.Tensor,
    weak_probs: torch.Tensor,
    weights: torch.Tensor,
    keep: torch.Tensor,
    labels: torch.Tensor | None = None,
    combination=combine,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`raven_loss` and the labels' cross-entropy; with the gradients of logits and weights.

    student_logits (N, 1, C); weak_probs (N, M, C); weights (M,); keep bool (N,); labels (N,), or (N, C) where
    the task mixes samples, or None -> scalar, (N, 1, C), (M,).
    """
    log_p, keep = student_logits.log_softmax(-1), keep[:, None]
    targets = combination(weak_probs, weights)
    value, gradient = fast.cross_entropy(log_p, (keep * targets)[:, None], labels)
    # dL/dy up to a constant of the sample, which the normalisation of y takes away: how much worse than the
    # target the student finds each class. Then through that normalisation, and to the weak models.
    slope = keep * ((targets * log_p[:, 0]).sum(-1, keepdim=True) - log_p[:, 0])
    if combination is combine:
        parts = weak_probs.unbind(1)
        slope = slope / weighted_sum(weak_probs, weights).sum(-1, keepdim=True)
    else:
        log_probs = safe_log(weak_probs).unbind(1)
        # Centred, which loses least to rounding.
        parts = [each - (targets * each).sum(-1, keepdim=True) for each in log_probs]
        slope = slope * targets
    weight_gradient = torch.stack([(part * slope).sum() for part in parts]) / len(keep)
    return value, gradient, weight_gradient


def project(weights: torch.Tensor) -> torch.Tensor:
    """Clamp from below and renormalise, the second line of Eq. 13: (M,) -> (M,) on the simplex."""
    weights = weights.clamp(min=1e-6)
    return weights / weights.sum()


def train_student(
    *, student, x, weak_probs, labels, epochs, lr, batch_size, seed, weight_lr, easy_phase, combination,
    optimizer="adam", view=None, checkpoint=None, compiled=False
) -> torch.Tensor:
    """Trains the student in place, and the weights with it (SGD).

    x (N, ...) as the student takes it; weak_probs (N, M, C); labels (N,) of a task that hands them out, or
    None; optimizer "adam" or "sgd", view, checkpoint: see make_optimizer, Batches, resumable in training.py;
    compiled: see fast.py. Returns the weights before the first and after every epoch, (epochs + 1, M).
    """
    batches = training.Batches(x, weak_probs, labels, batch_size, seed, view)
    capture = fast.capturable(compiled, x)
    steps = epochs * len(batches)
    optimizer, schedule = training.make_optimizer(optimizer, student, lr, steps, fused=True, captured=capture)
    num_weak = weak_probs.shape[1]
    weights = torch.full((num_weak,), 1 / num_weak, device=x.device)
    weight_history = [weights.clone()]  # clones, as the weights change in place
    state = {"student": student, "optimizer": optimizer, "schedule": schedule, "batches": batches}
    state |= {"weights": weights, "weight_history": weight_history}
    evaluate = fast.compiled(value_and_gradient, compiled)

    def step(x, weak_probs, labels, in_easy_phase):
        student_logits = student(x)  # (B, 1, C)
        if in_easy_phase:
            keep = unanimous(weak_probs)
        else:
            keep = torch.ones(len(x), dtype=torch.bool, device=x.device)
        _, gradient, weight_gradient = evaluate(
            student_logits, weak_probs, weights, keep, labels, combination
        )
        optimizer.zero_grad()
        student_logits.backward(gradient)
        optimizer.step()
        if not in_easy_phase:
            weights.copy_(project(weights - weight_lr * weight_gradient))

    step = fast.captured(step, capture)
    student.train()
    for epoch in training.resumable(epochs, "raven", checkpoint, **state):
        for batch in batches:
            step(*batch, epoch < easy_phase * epochs)
            schedule.step()
        weight_history.append(weights.clone())
    student.eval()
    return torch.stack(weight_history)


# ---- From here to the next line of dashes: the same text in every method file, held so by a test. ----------


def accuracy(scores: torch.Tensor, y: torch.Tensor) -> list[float]:
    """scores (N, S, C) of S models, y (N,) -> share of correct argmaxes of each."""
    return (scores.argmax(-1) == y[:, None]).double().mean(0).tolist()


def pgr(weak: float, student: float, ceiling: float, n: int) -> float | None:
    """Performance gap recovered, of accuracies on the same n samples. None where the gap to recover is not
    above two standard errors: dividing by it would amplify noise."""
    standard_error = math.sqrt((weak * (1 - weak) + ceiling * (1 - ceiling)) / n)
    return (student - weak) / (ceiling - weak) if ceiling - weak > 2 * standard_error else None


def score(task: data.Task, student, ceiling, targets: torch.Tensor) -> dict:
    """The figures of a row. targets (N, S, C): what supervised each of the S students, on the test samples.

    The PGR compares the student of one weak model with that model, and the student of several with their mean
    accuracy (RAVEN, Eq. 18).
    """
    x, y, weak_probs = task.test
    logits = training.predict(student, x)
    if not logits.isfinite().all():
        raise data.InputError("training diverged: lower the learning rates")
    weak, students = accuracy(weak_probs, y), accuracy(logits, y)
    [best] = accuracy(training.predict(ceiling, x), y)
    teachers = weak if len(students) == len(weak) else [mean(weak)] * len(students)
    recovered = [pgr(teacher, own, best, len(y)) for teacher, own in zip(teachers, students)]
    return {
        "kind": task.kind,
        "student_kind": task.student_kind,
        "encoder": task.encoder,
        "weak_models": task.weak_models,
        "weak": weak,
        "weak_confidence": weak_probs.amax(-1).double().mean(0).tolist(),
        **({"students": students} if len(students) > 1 else {}),
        "student": mean(students),
        "ceiling": best,
        "pgr": None if None in recovered else mean(recovered),
        "agreement": (logits.argmax(-1) == targets.argmax(-1)).double().mean().item(),
        "val": mean(accuracy(training.predict(student, task.val.x), task.val.y)),
        "n_test": len(y),
        **models.few_shot(task, student, ceiling),
    }


def shared_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,  # else an error would print it before its one line
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, number = parser.add_argument, models.number
    add("--task", nargs="+", type=data.check_name, default=data.EMBEDDED, help="see data.py")
    add("--seeds", nargs="+", type=number(int, 0), default=[0, 1, 2, 3, 4], help="a row per task and seed")
    add("--data-dir", help="folder of a real data set; digits, CIFAR-100 and HH-RLHF are else downloaded")
    add("--device", type=models.pick_device, default="auto", help="auto: CUDA if there is any, else cpu")
    add("--compile", choices=["auto", "on", "off"], default="auto", help="fast.py; auto: with CUDA")
    add("--out", default="runs", help="folder of the rows, one METHOD.jsonl per method")
    add("--encoder-steps", type=number(int, 1), default=models.ENCODER_STEPS, help="to pretrain it")
    add("--text-encoder", type=models.pick_text_encoder, help="Hugging Face name or folder, for text tasks")
    # Where these are not given, the task decides: settings.RECIPES; README, "How the defaults were chosen".
    of_task = {"default": argparse.SUPPRESS}
    add("--epochs", type=number(int, 1), **of_task, help="of student and ceiling (linear heads: 20)")
    add("--lr", type=number(float, 0), **of_task, help="of the student (linear heads: 3e-5)")
    add("--ceiling-lr", type=number(float, 0), **of_task, help="true labels bear more (linear heads: 1e-3)")
    add("--batch-size", type=number(int, 1), **of_task, help="the papers' value for linear heads: 128")
    return parser


def row_identity(supervision: str, task: str, seed: int, flags: dict) -> dict:
    """All that a row's figures depend on: with the same identity it is not computed again."""
    elsewhere = ("task", "seeds", "data_dir", "out", "device", "supervision")
    return {
        "method": Path(__file__).stem,
        "task": data.row_name(task),
        "data": flags["data_dir"] and data.fingerprint(Path(flags["data_dir"])),
        "seed": seed,
        "supervision": supervision,
        "torch": torch.__version__,
        "device": flags["device"],
        "code": store.code_hash(__file__),
        "flags": {flag: value for flag, value in flags.items() if flag not in elsewhere}
        | {"text_encoder": flags["text_encoder"] and data.row_name(flags["text_encoder"])},
    }


# ------------------------------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = shared_flags()
    add, number = parser.add_argument, models.number
    add("--weight-lr", type=number(float, 0), default=1e-3, help="eta_W; the paper searches 1e-6 to 1e-3")
    add("--easy-phase", type=number(float, 0, 1), default=0.2, help="share of the epochs; paper: .1, .2, .5")
    add("--combine", choices=["auto", "probs", "logits"], default="auto", help="auto: by the kind of task")
    return parser.parse_args(argv)


def main(argv=None) -> list[dict]:
    """Prints, saves and returns one row per task and seed."""
    args = parse_args(argv)
    rows = []
    for name, seed in itertools.product(args.task, args.seeds):
        flags = settings.recipe(name) | vars(args)
        # "weighted": from all weak models by learned weights, neither from "each" nor from their "mean".
        identity = row_identity("weighted", name, seed, flags)
        row = store.find_row(args.out, identity)
        if row is None:
            task = models.supervise(
                name, seed, args.data_dir, args.device, args.encoder_steps, args.text_encoder
            )
            recipe = {key: flags[key] for key in ("epochs", "batch_size", "optimizer")} | {"seed": seed}
            ceiling = models.train_ceiling(task, lr=flags["ceiling_lr"], **recipe)
            x, _, weak_probs = task.strong_train
            usual = "logits" if task.kind in ("text", "preference") else "probs"
            combined = usual if args.combine == "auto" else args.combine
            combination = {"probs": combine, "logits": combine_logits}[combined]
            student = models.make_student(task, 1, seed)
            start = time.perf_counter()
            weight_history = train_student(
                student=student, x=x, weak_probs=weak_probs, labels=task.labels, lr=flags["lr"], **recipe,
                weight_lr=args.weight_lr, easy_phase=args.easy_phase, combination=combination,
                view=models.make_view(task), checkpoint=store.cache_path("training", identity),
                compiled=fast.wanted(args.compile, args.device),
            )
            seconds = time.perf_counter() - start
            targets = combination(task.test.weak_probs, weight_history[-1])[:, None]
            row = identity | score(task, student, ceiling, targets)
            row |= models.labels_alone(task, lr=flags["ceiling_lr"], **recipe)
            easy = unanimous(weak_probs)
            row["combined"] = combined
            row["weights"] = weight_history[-1].tolist()
            row["weight_history"] = weight_history.tolist()
            row["easy_fraction"] = easy.double().mean().item()
            row["easy_classes"] = weak_probs[easy, 0].argmax(-1).bincount(minlength=task.num_classes).tolist()
            row["seconds"] = round(seconds, 2)  # of training the student
            store.save_row(args.out, row)
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


if __name__ == "__main__":
    try:
        main()
    except (data.InputError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2)
