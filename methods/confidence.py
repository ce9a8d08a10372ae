"""Confidence loss (Conf, AugConf): mix the student's own prediction into every weak label, on a schedule.

Burns et al. 2023, "Weak-to-Strong Generalization: Eliciting Strong Capabilities With Weak Supervision",
arXiv 2312.09390, section 4.3.2 and appendix A.4. A student that may disagree confidently with its teacher is
less drawn to imitate the teacher's mistakes. The two later papers use it as the baseline to beat.

    L = (1 - a) CE(z, q) + a CE(z, e_k)             = CE(z, (1 - a) q + a e_k)                          (1)
    a = alpha * min(1, t / (alpha_ramp * steps))    in step t = 0, 1, ...: linear, then constant        (2)

    paper  | here             shape
    f(x)   | student_logits   (N, C)   here logits z
    f_w(x) | weak_probs       (N, C)   q, a weak model's soft labels, fixed
    f^_t(x)| own              (N,)     k = argmax z, or by a threshold: --balanced; e_k is its one-hot
    alpha  | a                         --alpha: its largest value, .5 (.75 for the paper's largest students)

No gradient flows through k. The equations' numbers are ours. The cross-entropy of labels, if any, is added.

Three published implementations differ:
- Burns et al. (language models, two classes): --balanced: for k, a threshold on p makes the student's classes
  as frequent in the batch as the weak labels do (in the paper: equally frequent). Their code ramps over 10 %
  of the steps, not 20, and by t / steps, not t / (ramp * steps): a grows to .05 and then jumps to .5.
- RAVEN's authors (Conf): the argmax, any number of classes, (1) and (2) as above, no labels.
- AdaptConf's authors (AugConf): the argmax; a grows by epochs, by default over 30 % of them; for CE(z, q)
  stands a KL divergence at a distillation temperature; the labels' cross-entropy is added.

    python methods/confidence.py --task glyphs-shift

student .952, PGR .90 over 5 seeds; 60 s on 2 CPU cores, 10 s once encoder and weak labels are cached.
"""

import torch
import torch.nn.functional as F
from tqdm import tqdm


def own_class(student_logits: torch.Tensor, weak_probs: torch.Tensor, balanced: bool = False) -> torch.Tensor:
    """k, what the student itself says: (N, C), (N, C) -> (N,).

    balanced, for two classes: class 1 is for the samples with the smallest p_0, as many as the mean of the
    weak labels' q_1 says. Raises ValueError where there are not two classes."""
    if not balanced:
        return student_logits.argmax(-1)
    if student_logits.shape[-1] != 2:
        raise ValueError(f"balanced needs two classes, not {student_logits.shape[-1]}")
    margin = (student_logits[:, 0] - student_logits[:, 1]).detach()
    rank = margin.argsort(stable=True).argsort()  # 0 for the smallest p_0 of the batch
    # Those below torch.quantile(p_0, mean of q_1), which the released code takes for its threshold.
    return (rank < weak_probs[:, 1].mean() * (len(rank) - 1)).long()


def confidence_loss(student_logits, weak_probs, a: float | torch.Tensor = 0.5, own=None) -> torch.Tensor:
    """Equation (1), mean over N, in nats.

    student_logits, weak_probs (N, C), rows of weak_probs sum to 1; own (N,): own_class, by default the argmax
    -> scalar. Half types are computed in float32."""
    own = student_logits.argmax(-1) if own is None else own
    log_p = student_logits.log_softmax(-1, dtype=torch.promote_types(student_logits.dtype, torch.float32))
    from_weak = -(weak_probs * log_p).sum(-1)
    from_self = -log_p.gather(-1, own[:, None]).squeeze(-1)
    return ((1 - a) * from_weak + a * from_self).mean()


def ramp_at(step: int, steps: int, alpha_ramp: float) -> float:
    """Factor of alpha in a step counted from 0, equation (2): by steps, as its authors count."""
    return 1.0 if step >= alpha_ramp * steps else step / (alpha_ramp * steps)


def train_student(
    student, batches, epochs: int, optimizer, schedule,
    alpha: float = 0.5, alpha_ramp: float = 0.2, balanced: bool = False, loss_of=confidence_loss,
) -> None:  # fmt: skip
    """Trains the student in place.

    student: a module, x (B, ...) -> logits (B, C); batches, of known number: gives (x, weak_probs (B, C)), or
    with labels to learn besides (x, weak_probs, labels (B,)); schedule: of the learning rate, stepped after
    every batch; loss_of: confidence_loss, or the same compiled."""
    student.train()
    step, steps = 0, epochs * len(batches)
    for _ in tqdm(range(epochs), "confidence", leave=False, disable=None):
        for x, weak_probs, *labels in batches:
            student_logits = student(x)
            # A tensor, as each new number would be compiled anew.
            a = torch.full((), alpha * ramp_at(step, steps, alpha_ramp), device=x.device)
            own = own_class(student_logits, weak_probs, balanced)
            loss = loss_of(student_logits, weak_probs, a, own)
            loss = loss + sum(F.cross_entropy(student_logits, y) for y in labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
    student.eval()


# ---- To reproduce. Whoever copies this file deletes from here on. ------------------------------------------


def main(argv=None) -> None:
    import data
    import evaluate

    parser = evaluate.flags(__file__, __doc__, lr=1e-4)
    add, share = parser.add_argument, evaluate.number(float, 0, 1)
    add("--supervision", choices=["each", "mean"], default="each", help="as in naive.py")
    add("--alpha", type=share, default=0.5, help="largest share of the student's own class; the papers: .5")
    add("--alpha-ramp", type=share, default=0.2, help="share of the steps to reach it; the papers: .2")
    add("--balanced", action="store_true", help="two classes: as many of each as the weak labels say")
    for problem in evaluate.problems(parser, argv):
        args, students = problem.args, []
        if args.balanced and (number := problem.task.num_classes) != 2:
            raise data.InputError(f"--balanced is for two classes, {problem.identity['task']} has {number}")
        for weak_probs in evaluate.supervisors(problem):
            student, training = evaluate.start(problem, weak_probs)
            own = {"alpha": args.alpha, "alpha_ramp": args.alpha_ramp, "balanced": args.balanced}
            train_student(student, **training, **own, loss_of=evaluate.loss_of(problem, confidence_loss))
            students.append(student)
        evaluate.report(problem, students, naive=True)


if __name__ == "__main__":
    import sys

    sys.path.insert(0, sys.path[0] + "/..")  # evaluate.py and the others stand in the folder above
    import evaluate

    evaluate.run(main)
