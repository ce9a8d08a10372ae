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

That is for images. On text, and on preferences, where a weak model is a reward model, logits are combined:
y = softmax(sum_m theta_m log q_m), where log q_m stands for the weak model's logits: the same softmax.

    paper | here            shape
    z     | student_logits  (N, C)      p = softmax(z)
    q_m   | weak_probs      (N, M, C)   softmax of the m-th weak model's logits, fixed
    theta | weights         (M,)        start at 1/M and stay on the simplex
    s     | keep            (N,)        1, in the easy phase 0 for all but the easy; the mean is over all N
    eta_W | weight_lr                   plain SGD, constant rate

In the easy phase, the first `easy_phase` of the epochs, mask and frozen weights go together. L is linear in
theta where probabilities are combined: weights drift to a vertex, as far as eta_W times the steps let them.
With logits they settle in between, but on hard votes stay. Sharp labels are easy to follow, right or wrong.

Differences from the paper: no search for each task (but --protocol); preferences train a reward model here,
a policy in raven_dpo.py; where a task hands out labels, their cross-entropy is added, unmasked.

    python methods/raven.py --task glyphs-shift

student .949, PGR .90 over 5 seeds; 60 s on 2 CPU cores, 10 s once encoder and weak labels are cached.
"""

import torch
import torch.nn.functional as F
from tqdm import tqdm


def combine(weak_probs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean of the weak labels, normalised within the graph (Eq. 2, 3).

    weak_probs (N, M, C), weights (M,) -> (N, C), rows sum to 1."""
    combined = (weights[:, None] * weak_probs).sum(1)
    return combined / combined.sum(-1, keepdim=True)


def combine_logits(weak_probs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Softmax of the weighted mean of the weak logits, of a pair: of the rewards. Shapes as in `combine`.

    log q differs from the logits by a constant of the sample, which the softmax does not see: neither value
    nor gradients change. A q of 0 is clamped to the smallest normal number."""
    log_probs = weak_probs.clamp(min=torch.finfo(weak_probs.dtype).tiny).log()
    return (weights[:, None] * log_probs).sum(1).softmax(-1)


def unanimous(weak_probs: torch.Tensor) -> torch.Tensor:
    """Easy samples, on which all M weak models name the same class: (N, M, C) -> bool (N,)."""
    classes = weak_probs.argmax(-1)
    return (classes == classes[:, :1]).all(-1)


def raven_loss(student_logits, weak_probs, weights, keep, combination=combine) -> torch.Tensor:
    """L, in nats: the mean over all N, of which `keep` counts. Gradients reach the student and the weights.

    student_logits (N, C); weak_probs (N, M, C); weights (M,); keep (N,); combination: combine,
    combine_logits or your own -> scalar. Half types are computed in float32."""
    precision = torch.promote_types(student_logits.dtype, torch.float32)
    targets = combination(weak_probs.to(precision), weights)
    return (keep * -(targets * student_logits.log_softmax(-1, dtype=precision)).sum(-1)).mean()


def project(weights: torch.Tensor) -> torch.Tensor:
    """Clamp from below and renormalise, the second line of Eq. 13: (M,) -> (M,) on the simplex."""
    weights = weights.clamp(min=1e-6)
    return weights / weights.sum()


def train_student(
    student, batches, epochs: int, optimizer, schedule, num_weak: int, weight_lr: float = 1e-3,
    easy_phase: float = 0.2, combination=combine, loss_of=raven_loss,
) -> torch.Tensor:  # fmt: skip
    """Trains the student in place, and the weights with it (SGD). Returns the weights before the first and
    after every epoch, (epochs + 1, M).

    student: a module, x (B, ...) -> logits (B, C); batches: gives (x, weak_probs (B, M, C)), with labels to
    learn besides (x, weak_probs, labels (B,)); schedule: of the learning rate, stepped after every batch;
    num_weak: M; loss_of: raven_loss, or the same compiled."""
    student.train()
    device = next(student.parameters()).device
    weights = torch.full((num_weak,), 1 / num_weak, device=device, requires_grad=True)
    weight_history = [weights.detach().clone()]
    for epoch in tqdm(range(epochs), "raven", leave=False, disable=None):
        in_easy_phase = epoch < easy_phase * epochs
        for x, weak_probs, *labels in batches:
            student_logits = student(x)
            keep = unanimous(weak_probs) if in_easy_phase else torch.ones_like(weak_probs[:, 0, 0])
            loss = loss_of(student_logits, weak_probs, weights, keep, combination)
            loss = loss + sum(F.cross_entropy(student_logits, y) for y in labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if not in_easy_phase:
                with torch.no_grad():
                    weights.copy_(project(weights - weight_lr * weights.grad))
            weights.grad = None
        weight_history.append(weights.detach().clone())
    student.eval()
    return torch.stack(weight_history)


# ---- To reproduce. Whoever copies this file deletes from here on. ------------------------------------------


def main(argv=None) -> None:
    import evaluate

    parser = evaluate.flags(__file__, __doc__)
    add, share = parser.add_argument, evaluate.number(float, 0, 1)
    add("--weight-lr", type=evaluate.number(float, 0), help="eta_W: 1e-3 to 3e-2, by kind of task")
    add("--easy-phase", type=share, default=0.2, help="share of the epochs; paper: .1, .2, .5")
    add("--combine", choices=["auto", "probs", "logits"], default="auto", help="auto: by kind of task")
    for problem in evaluate.problems(parser, argv):
        task, args, weak_probs = problem.task, problem.args, problem.task.strong_train.weak_probs
        auto, eta = {"image": ("probs", 1e-3), "features": ("probs", 1e-2)}.get(task.kind, ("logits", 3e-2))
        combined = auto if args.combine == "auto" else args.combine
        combination = {"probs": combine, "logits": combine_logits}[combined]
        own = {"easy_phase": args.easy_phase, "num_weak": weak_probs.shape[1], "combination": combination}
        own["weight_lr"] = eta if args.weight_lr is None else args.weight_lr
        own["loss_of"] = evaluate.loss_of(problem, raven_loss, argnums=(0, 2))
        student, training = evaluate.start(problem, weak_probs)
        history = train_student(student, **training, **own).tolist()
        figures = {"combined": combined, "easy_fraction": unanimous(weak_probs).double().mean().item()}
        evaluate.report(problem, [student], weights=history[-1], weight_history=history, **figures)


if __name__ == "__main__":
    import sys

    sys.path.insert(0, sys.path[0] + "/..")  # evaluate.py and the others stand in the folder above
    import evaluate

    evaluate.run(main)
