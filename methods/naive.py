"""Naive weak-to-strong generalization: train the strong student on the weak model's soft labels alone.

Burns et al. 2023, "Weak-to-Strong Generalization: Eliciting Strong Capabilities With Weak Supervision",
arXiv 2312.09390. A student that merely imitated its teacher would end where the teacher stands. A pretrained
student often ends higher: what the weak labels have in common comes easier to it than the teacher's mistakes.

    L = -sum_c q_c log p_c                               soft-target cross-entropy      (1)
    PGR = (student - weak) / (ceiling - weak)            performance gap recovered      (2)

    paper | here            shape
    z     | student_logits  (N, C)   p = softmax(z)
    q     | weak_probs      (N, C)   softmax of a weak model's logits, fixed
          | ceiling                  the same student, trained on the ground truth of the same samples

With several weak models, `--supervision each` trains one student per weak model, `--supervision mean` one on
the mean of their soft labels: the baseline that RAVEN's authors call the ensemble.

Differences from the paper: several weak models, their students trained side by side; the numbers of the
equations are ours. As in the paper's vision setting the student is a linear head on frozen features, which
are standardised here; in the tasks of settings.py it is a whole network. Where a task hands out labels, their
cross-entropy is added: that is knowledge distillation (KD).

    python methods/naive.py --task glyphs-shift

student .928, PGR .85 over 5 seeds; 60 s on 2 CPU cores, 10 s once encoder and weak labels are cached.
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


def naive_loss(student_logits: torch.Tensor, weak_probs: torch.Tensor) -> torch.Tensor:
    """Mean soft-target cross-entropy, equation (1), in nats. Its gradient is (p - q) / N.

    student_logits (N, C); weak_probs (N, C), rows sum to 1 -> scalar.
    """
    return F.cross_entropy(student_logits, weak_probs)


@fast.closed_form
def value_and_gradient(
    student_logits: torch.Tensor, weak_probs: torch.Tensor, labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`naive_loss` of S students, summed, and the labels' cross-entropy; with its gradient.

    student_logits, weak_probs (N, S, C); labels (N,), or (N, C) where the task mixes samples, or None
    -> scalar, (N, S, C).
    """
    return fast.cross_entropy(student_logits.log_softmax(-1), weak_probs, labels)


def train_student(
    *, student, x, weak_probs, labels, epochs, lr, batch_size, seed,
    optimizer="adam", view=None, checkpoint=None, compiled=False
) -> None:
    """Trains S students in place, student s on weak_probs[:, s].

    x (N, ...) as the student takes it; weak_probs (N, S, C); labels (N,) of a task that hands them out, or
    None; optimizer "adam" or "sgd", view, checkpoint: see make_optimizer, Batches, resumable in training.py;
    compiled: see fast.py.
    """
    batches = training.Batches(x, weak_probs, labels, batch_size, seed, view)
    capture = fast.capturable(compiled, x)
    steps = epochs * len(batches)
    optimizer, schedule = training.make_optimizer(optimizer, student, lr, steps, fused=True, captured=capture)
    state = {"student": student, "optimizer": optimizer, "schedule": schedule, "batches": batches}
    evaluate = fast.compiled(value_and_gradient, compiled)

    def step(x, weak_probs, labels):
        student_logits = student(x)  # (B, S, C)
        # Of the sum over students, so that each gets the gradient that it would get alone.
        _, gradient = evaluate(student_logits, weak_probs, labels)
        optimizer.zero_grad()
        student_logits.backward(gradient)
        optimizer.step()

    step = fast.captured(step, capture)
    student.train()
    for _ in training.resumable(epochs, "naive", checkpoint, **state):
        for batch in batches:
            step(*batch)
            schedule.step()
    student.eval()


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
    parser.add_argument(
        "--supervision", choices=["each", "mean"], default="each", help="see the top of the file"
    )
    return parser.parse_args(argv)


def main(argv=None) -> list[dict]:
    """Prints, saves and returns one row per task and seed."""
    args = parse_args(argv)
    rows = []
    for name, seed in itertools.product(args.task, args.seeds):
        flags = settings.recipe(name) | vars(args)
        identity = row_identity(args.supervision, name, seed, flags)
        row = store.find_row(args.out, identity)
        if row is None:
            task = models.supervise(
                name, seed, args.data_dir, args.device, args.encoder_steps, args.text_encoder
            )
            recipe = {key: flags[key] for key in ("epochs", "batch_size", "optimizer")} | {"seed": seed}
            ceiling = models.train_ceiling(task, lr=flags["ceiling_lr"], **recipe)
            x, _, weak_probs = task.strong_train
            weak_probs = models.supervisors(weak_probs, args.supervision)
            student = models.make_student(task, weak_probs.shape[1], seed)
            start = time.perf_counter()
            train_student(
                student=student, x=x, weak_probs=weak_probs, labels=task.labels, lr=flags["lr"], **recipe,
                view=models.make_view(task), checkpoint=store.cache_path("training", identity),
                compiled=fast.wanted(args.compile, args.device),
            )
            seconds = time.perf_counter() - start
            targets = models.supervisors(task.test.weak_probs, args.supervision)
            row = identity | score(task, student, ceiling, targets)
            row |= models.labels_alone(task, lr=flags["ceiling_lr"], **recipe)
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
