"""Adaptive confidence loss (AdaptConf): mix the weak label with the student's own view, by sample.

Guo et al. 2024, "Vision Superalignment: Weak-to-Strong Generalization for Vision Foundation Models",
arXiv 2402.03749. The student learns from two targets at once: the weak model's soft label, and its own hard
prediction. How far it listens to itself is read from its own logits: one half where both name the same class,
and less the more sharply it prefers its class to the weak model's.

    L    = (1 - b) CE(z, q) + b CE(z, e_k)                       k = argmax z, w = argmax q          (Eq. 2)
    b(x) = exp(CE(z, e_k) / T) / ( exp(CE(z, e_k) / T) + exp(CE(z, e_w) / T) )                       (Eq. 2)
         = sigmoid((z_w - z_k) / T)                              since CE(z, e_c) = logsumexp(z) - z_c
    with a distillation temperature tau, and the cross-entropy of labels y where the task hands them out:
    L    = [CE(z, e_y) +] (1 - b) tau^2 CE_tau(z, q) + b CE(z, e_k)    CE_tau: z and log q both divided by tau

    paper | here                 shape
    z     | student_logits       (N, C)
    q     | weak_probs           (N, C)   softmax of a weak model's logits, fixed
    b     | confidence_weight    (N,)     0 <= b <= 1/2, and 1/2 exactly where z_w = z_k: on agreement
    T     | temperature                   to infinity: b = 1/2 everywhere; to 0: b = 0 on disagreement
    tau   | distill_temperature

No gradient flows through b. Note what Eq. 2 says: on disagreement b *falls* as the student grows surer of
itself. The weak model's confidence enters L, but not b.

Differences from paper and code: b is the closed form, as the printed one overflows; T = 1 in Eq. 2, while the
code divides by a T of .25 to 8; CE_tau stands where the code has a KL divergence, which differs by the
entropy of q and has the same gradient; a ramp of b, which the code has in two of its four settings (over
25 % of the epochs), is a flag. The defaults, chosen on validation data, are T = 8 and a long ramp: close to a
fixed b = 1/2, that is, to the confidence loss. For Eq. 2 itself: --temperature 1 --beta-ramp 0. Controls of
b, and a choice between the two labels instead of a mixture: --beta half, one, swapped, select.

    python methods/adaptive_confidence.py --task glyphs-shift

student .945, PGR .89 over 5 seeds; 60 s on 2 CPU cores, 10 s once encoder and weak labels are cached.
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


def confidence_weight(
    student_logits: torch.Tensor, weak_probs: torch.Tensor, temperature: float
) -> torch.Tensor:
    """b(x), the trust in the student's own prediction, in [0, 1/2]; carries no gradient.

    student_logits, weak_probs (N, ..., C); temperature > 0 -> (N, ...).
    """
    logits = student_logits.detach()
    weak_class = weak_probs.argmax(-1, keepdim=True)
    return torch.sigmoid((logits.gather(-1, weak_class).squeeze(-1) - logits.amax(-1)) / temperature)


def half(student_logits, weak_probs, temperature):
    """Control: b = 1/2 everywhere. Arguments and shape as in confidence_weight, also of the next three."""
    return torch.full_like(weak_probs[..., 0], 0.5)


def one(student_logits, weak_probs, temperature):
    """Control: b = 1, self-training. (Under a ramp, as every b: it begins with the weak labels.)"""
    return torch.ones_like(weak_probs[..., 0])


def swapped(student_logits, weak_probs, temperature):
    """Control: 1 - b, in [1/2, 1]: on disagreement, the surer the student, the more it is trusted."""
    return 1 - confidence_weight(student_logits, weak_probs, temperature)


def select(student_logits, weak_probs, temperature):
    """The label of whichever is more confident instead of a mixture: b is 0 or 1; at equal ranks, 0.

    The two confidences are not comparable as numbers: one network may simply be sharper. So each is replaced
    by its rank in the batch: is the student, by its own standards, surer of this sample than the weak model?
    This needs no labels, and no monotone rescaling of either confidence changes it. T is not used.
    """

    def rank(confidence):  # (N, ...): 0 for the least confident sample of the batch
        return confidence.argsort(dim=0, stable=True).argsort(dim=0)

    own = torch.log_softmax(student_logits.detach(), dim=-1).amax(-1)  # its log, as p would round to 1
    return (rank(own) > rank(weak_probs.amax(-1))).to(weak_probs.dtype)


BETAS = {"adaptive": confidence_weight, "half": half, "one": one, "swapped": swapped, "select": select}


def mixed_loss(
    student_logits: torch.Tensor, weak_probs: torch.Tensor, b: torch.Tensor, distill_temperature: float
) -> torch.Tensor:
    """(1 - b) tau^2 CE_tau(z, q) + b CE(z, e_k), mean over N, in nats.

    student_logits, weak_probs (N, C), rows of weak_probs sum to 1; b (N,), fixed -> scalar.
    """
    # log q is the weak logits up to a constant, so this is their softmax at the distillation temperature.
    softened = torch.softmax(weak_probs.log() / distill_temperature, dim=-1)
    from_weak = F.cross_entropy(student_logits / distill_temperature, softened, reduction="none")
    from_self = F.cross_entropy(student_logits, student_logits.argmax(-1), reduction="none")
    return ((1 - b) * distill_temperature**2 * from_weak + b * from_self).mean()


def adaptive_confidence_loss(
    student_logits: torch.Tensor,
    weak_probs: torch.Tensor,
    temperature: float = 1.0,
    distill_temperature: float = 1.0,
    ramp: float = 1.0,
) -> torch.Tensor:
    """Eq. 2 (without the labels' term), mean over N, in nats. `ramp` in [0, 1] multiplies b.

    student_logits, weak_probs (N, C), rows of weak_probs sum to 1 -> scalar.
    """
    b = ramp * confidence_weight(student_logits, weak_probs, temperature)
    return mixed_loss(student_logits, weak_probs, b, distill_temperature)


@fast.closed_form
def value_and_gradient(
    student_logits: torch.Tensor,
    weak_probs: torch.Tensor,
    ramp: float | torch.Tensor,
    labels: torch.Tensor | None = None,
    weight=confidence_weight,
    temperature: float = 1.0,
    distill_temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`adaptive_confidence_loss` of S students, summed, and the labels' cross-entropy; with its gradient.

    student_logits, weak_probs (N, S, C), rows of weak_probs sum to 1; labels (N,), or (N, C) where the task
    mixes samples, or None; weight: one of BETAS -> scalar, (N, S, C), and (2,): on how many of the N * S
    student and weak model disagree, and the sum of b over those.
    """
    b = ramp * weight(student_logits, weak_probs, temperature)  # (N, S)
    own_class = student_logits.argmax(-1)
    from_self = b[..., None] * fast.one_hot(own_class, student_logits.shape[-1])
    trust = 1 - b[..., None]
    log_p = student_logits.log_softmax(-1)
    if distill_temperature == 1:  # then both terms have the same p
        value, gradient = fast.cross_entropy(log_p, trust * weak_probs + from_self, labels)
    else:
        value, gradient = fast.cross_entropy(log_p, from_self, labels)
        softened = torch.softmax(weak_probs.log() / distill_temperature, dim=-1)
        softened_log_p = (student_logits / distill_temperature).log_softmax(-1)
        more, slope = fast.cross_entropy(softened_log_p, trust * distill_temperature**2 * softened)
        value, gradient = value + more, gradient + slope / distill_temperature
    differ = own_class != weak_probs.argmax(-1)
    return value, gradient, torch.stack([differ.sum(), (b * differ).sum()])


def ramp_at(epoch: int, epochs: int, beta_ramp: float) -> float:
    """Factor of b in an epoch counted from 0: linear from 0 to 1 over the first beta_ramp * epochs."""
    return 1.0 if epoch >= beta_ramp * epochs else epoch / (beta_ramp * epochs)


def train_student(
    *, student, x, weak_probs, labels, epochs, lr, batch_size, seed, temperature, distill_temperature,
    beta_ramp, weight=confidence_weight, optimizer="adam", view=None, checkpoint=None, compiled=False
) -> list[list]:
    """Trains S students in place, student s on weak_probs[:, s].

    x (N, ...) as the student takes it; weak_probs (N, S, C); labels (N,) of a task that hands them out, or
    None; weight: one of BETAS; optimizer "adam" or "sgd", view, checkpoint: see make_optimizer, Batches,
    resumable in training.py; compiled: see fast.py. Returns for each epoch [share of samples on which student
    and weak model agreed when they were trained on, mean of b, ramp included, on the others; None if there
    were none].
    """
    batches = training.Batches(x, weak_probs, labels, batch_size, seed, view)
    capture = fast.capturable(compiled, x)
    steps = epochs * len(batches)
    optimizer, schedule = training.make_optimizer(optimizer, student, lr, steps, fused=True, captured=capture)
    history = []
    state = {"student": student, "optimizer": optimizer, "schedule": schedule, "batches": batches}
    evaluate = fast.compiled(value_and_gradient, compiled)
    ramp = torch.ones((), device=x.device)  # a tensor, as fast.captured asks
    counts = torch.zeros(2, device=x.device)  # of disagreements in an epoch, the sum of b on them

    def step(x, weak_probs, labels):
        student_logits = student(x)  # (B, S, C)
        # Of the sum over students, so that each gets the gradient that it would get alone.
        _, gradient, disagreement = evaluate(
            student_logits, weak_probs, ramp, labels, weight, temperature, distill_temperature
        )
        optimizer.zero_grad()
        student_logits.backward(gradient)
        optimizer.step()
        counts.add_(disagreement)

    step = fast.captured(step, capture)
    student.train()
    for epoch in training.resumable(epochs, "adaptive confidence", checkpoint, **state, history=history):
        ramp.fill_(ramp_at(epoch, epochs, beta_ramp))
        counts.zero_()
        for batch in batches:
            step(*batch)
            schedule.step()
        differing, trust = counts.tolist()
        agreement = 1 - differing / weak_probs[..., 0].numel()
        history.append([agreement, trust / differing if differing else None])
    student.eval()
    return history


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
    add(
        "--temperature",
        type=number(float, 1e-3),
        default=8.0,
        help="T; Eq. 2: 1, the authors' code: .25 to 8",
    )
    add("--beta", choices=[*BETAS], default="adaptive", help="b(x) of Eq. 2, or one of its controls")
    add("--beta-ramp", type=number(float, 0, 1), default=0.5, help="share of the epochs; code: 0 or .25")
    add(
        "--distill-temperature", type=number(float, 1e-3), default=1.0, help="tau; code: 1 to 20, with labels"
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
            history = train_student(
                student=student, x=x, weak_probs=weak_probs, labels=task.labels, lr=flags["lr"], **recipe,
                temperature=args.temperature, distill_temperature=args.distill_temperature,
                beta_ramp=args.beta_ramp, weight=BETAS[args.beta],
                view=models.make_view(task), checkpoint=store.cache_path("training", identity),
                compiled=fast.wanted(args.compile, args.device),
            )
            seconds = time.perf_counter() - start
            targets = models.supervisors(task.test.weak_probs, args.supervision)
            row = identity | score(task, student, ceiling, targets)
            row |= models.labels_alone(task, lr=flags["ceiling_lr"], **recipe)
            agreement, trust = zip(*history)
            row["agreement_history"], row["disagreement_beta_history"] = list(agreement), list(trust)
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
