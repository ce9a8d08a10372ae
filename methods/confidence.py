"""Confidence loss (Conf, AugConf): mix the student's own prediction into every weak label, on a schedule.

Burns et al. 2023, "Weak-to-Strong Generalization: Eliciting Strong Capabilities With Weak Supervision",
arXiv 2312.09390, section 4.3.2 and appendix A.4. A student that may disagree confidently with its teacher is
less drawn to imitate the teacher's mistakes. The two later papers use it as the baseline to beat.

    L = (1 - a) CE(z, q) + a CE(z, e_k)             = CE(z, (1 - a) q + a e_k)                          (1)
    a = alpha * min(1, t / (alpha_ramp * steps))    in step t = 0, 1, ...: linear, then constant        (2)

    paper  | here             shape
    f(x)   | student_logits   (N, C)   here logits z
    f_w(x) | weak_probs       (N, C)   q, a weak model's soft labels, fixed
    f^_t(x)| own_class        (N,)     k = argmax z, or by a threshold: --balanced; e_k is its one-hot
    alpha  | a                         in step t; its largest value, .5 (in the paper .75 for the largest
                                       students), is the flag --alpha

No gradient flows through k. The numbers of the equations are ours. Where a task hands out labels, their
cross-entropy is added.

Three published implementations differ:
- Burns et al. (language models, two classes): k is not the argmax. A threshold on p makes the student's
  classes as frequent in the batch as the weak labels make them (in the paper: equally frequent): --balanced.
  Their code ramps over 10 % of the steps instead of 20, and by t / steps instead of t / (ramp * steps): a
  grows to .05 and then jumps to .5.
- RAVEN's authors (Conf): the argmax, any number of classes, (1) and (2) as above, no labels.
- AdaptConf's authors (AugConf): the argmax; a grows by epochs, by default over 30 % of them; for CE(z, q)
  stands a KL divergence at a distillation temperature; the labels' cross-entropy is added.

    python methods/confidence.py --task glyphs-shift

student .936, PGR .87 over 5 seeds; 60 s on 2 CPU cores, 10 s once encoder and weak labels are cached.
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

MANY_CLASSES = ("glyphs", "mnist", "usps", "cifar100")  # tasks on which --balanced is refused at once


def own_class(student_logits: torch.Tensor, weak_probs: torch.Tensor, balanced: bool = False) -> torch.Tensor:
    """k, what the student itself says: (N, ..., C), (N, ..., C) -> (N, ...).

    balanced, for two classes: class 1 is for the samples with the smallest p_0, as many as the mean of the
    weak labels' q_1 says. Raises ValueError where there are not two classes.
    """
    if not balanced:
        return student_logits.argmax(-1)
    if student_logits.shape[-1] != 2:
        raise ValueError(f"balanced needs two classes, not {student_logits.shape[-1]}")
    margin = (student_logits[..., 0] - student_logits[..., 1]).detach()
    rank = margin.argsort(dim=0, stable=True).argsort(dim=0)  # 0 for the smallest p_0 of the batch
    # Those below torch.quantile(p_0, mean of q_1), which the released code takes for its threshold.
    return (rank < weak_probs[..., 1].mean(0) * (len(rank) - 1)).long()


def confidence_loss(
    student_logits: torch.Tensor,
    weak_probs: torch.Tensor,
    a: float = 0.5,
    own: torch.Tensor | None = None,
) -> torch.Tensor:
    """Equation (1), mean over N, in nats.

    student_logits, weak_probs (N, C), rows of weak_probs sum to 1; own (N,): own_class, by default the argmax
    -> scalar.
    """
    own = student_logits.argmax(-1) if own is None else own
    own = F.one_hot(own, student_logits.shape[-1]).to(weak_probs.dtype)
    targets = (1 - a) * weak_probs + a * own
    return F.cross_entropy(student_logits, targets)


@fast.closed_form
def value_and_gradient(
    student_logits: torch.Tensor,
    weak_probs: torch.Tensor,
    a: float | torch.Tensor,
    labels: torch.Tensor | None = None,
    balanced: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`confidence_loss` of S students, summed, and the labels' cross-entropy; with its gradient.

    student_logits, weak_probs (N, S, C); labels (N,), or (N, C) where the task mixes samples, or None
    -> scalar, (N, S, C).
    """
    own = fast.one_hot(own_class(student_logits, weak_probs, balanced), student_logits.shape[-1])
    targets = (1 - a) * weak_probs + a * own.to(weak_probs.dtype)
    return fast.cross_entropy(student_logits.log_softmax(-1), targets, labels)


def ramp_at(step: int, steps: int, alpha_ramp: float) -> float:
    """Factor of alpha in a step counted from 0, equation (2)."""
    return 1.0 if step >= alpha_ramp * steps else step / (alpha_ramp * steps)


def train_student(
    *, student, x, weak_probs, labels, epochs, lr, batch_size, seed, alpha, alpha_ramp, balanced=False,
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
    a = torch.zeros((), device=x.device)  # a tensor, as fast.captured asks

    def step(x, weak_probs, labels):
        student_logits = student(x)  # (B, S, C)
        # Of the sum over students, so that each gets the gradient that it would get alone.
        _, gradient = evaluate(student_logits, weak_probs, a, labels, balanced)
        optimizer.zero_grad()
        student_logits.backward(gradient)
        optimizer.step()

    step = fast.captured(step, capture)
    student.train()
    for epoch in training.resumable(epochs, "confidence", checkpoint, **state):
        for t, batch in enumerate(batches, start=epoch * len(batches)):
            a.fill_(alpha * ramp_at(t, steps, alpha_ramp))
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
    add, number = parser.add_argument, models.number
    add("--supervision", choices=["each", "mean"], default="each", help="as in naive.py")
    # Both from the papers.
    add("--alpha", type=number(float, 0, 1), default=0.5, help="largest share of the student's own class")
    add("--alpha-ramp", type=number(float, 0, 1), default=0.2, help="share of the steps until it is reached")
    add("--balanced", action="store_true", help="two classes: as many of each as the weak labels say")
    return parser.parse_args(argv)


def main(argv=None) -> list[dict]:
    """Prints, saves and returns one row per task and seed."""
    args = parse_args(argv)
    if args.balanced and (many := [name for name in args.task if name.startswith(MANY_CLASSES)]):
        raise data.InputError(f"--balanced is for two classes, not for {', '.join(many)}")
    rows = []
    for name, seed in itertools.product(args.task, args.seeds):
        flags = settings.recipe(name) | vars(args)
        identity = row_identity(args.supervision, name, seed, flags)
        row = store.find_row(args.out, identity)
        if row is None:
            task = models.supervise(
                name, seed, args.data_dir, args.device, args.encoder_steps, args.text_encoder
            )
            if args.balanced and task.num_classes != 2:
                raise data.InputError(f"--balanced is for two classes, {name} has {task.num_classes}")
            recipe = {key: flags[key] for key in ("epochs", "batch_size", "optimizer")} | {"seed": seed}
            ceiling = models.train_ceiling(task, lr=flags["ceiling_lr"], **recipe)
            x, _, weak_probs = task.strong_train
            weak_probs = models.supervisors(weak_probs, args.supervision)
            student = models.make_student(task, weak_probs.shape[1], seed)
            start = time.perf_counter()
            train_student(
                student=student, x=x, weak_probs=weak_probs, labels=task.labels, lr=flags["lr"], **recipe,
                alpha=args.alpha, alpha_ramp=args.alpha_ramp, balanced=args.balanced,
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
