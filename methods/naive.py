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
the mean of their soft labels: the baseline that RAVEN's authors call the ensemble. `--supervision vote` takes
what most of them say, as hard labels.

Differences from the paper: several weak models; the numbers of the equations are ours. As in the paper's
vision setting the student is a linear head on frozen features, which are standardised here; in the tasks of
tasks/labelled.py it is a whole network. Where a task hands out labels, their cross-entropy is added: that is
knowledge distillation (KD).

    python methods/naive.py --task glyphs-shift

student .923, PGR .83 over 5 seeds; 60 s on 2 CPU cores, 10 s once encoder and weak labels are cached.
"""

import torch
import torch.nn.functional as F
from tqdm import tqdm


def naive_loss(student_logits: torch.Tensor, weak_probs: torch.Tensor) -> torch.Tensor:
    """Mean soft-target cross-entropy, equation (1), in nats. Its gradient is (p - q) / N.

    student_logits (N, C); weak_probs (N, C), rows sum to 1 -> scalar. Half types are computed in float32."""
    precision = torch.promote_types(student_logits.dtype, torch.float32)
    log_p = student_logits.log_softmax(-1, dtype=precision)
    return -(weak_probs * log_p).sum(-1).mean()


def train_student(student, batches, epochs: int, optimizer, schedule, loss_of=naive_loss) -> None:
    """Trains the student in place.

    student: a module, x (B, ...) -> logits (B, C); batches: gives (x, weak_probs (B, C)), or with labels to
    learn besides (x, weak_probs, labels (B,)); schedule: of the learning rate, stepped after every batch;
    loss_of: naive_loss, or the same compiled."""
    student.train()
    for _ in tqdm(range(epochs), "naive", leave=False, disable=None):
        for x, weak_probs, *labels in batches:
            student_logits = student(x)
            loss = loss_of(student_logits, weak_probs)
            loss = loss + sum(F.cross_entropy(student_logits, y) for y in labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    student.eval()


# ---- To reproduce. Whoever copies this file deletes from here on. ------------------------------------------


def main(argv=None) -> None:
    import evaluate

    parser = evaluate.flags(__file__, __doc__)
    choices = ["each", "mean", "vote"]
    parser.add_argument("--supervision", choices=choices, default="each", help="whose labels")
    for problem in evaluate.problems(parser, argv):
        students = []
        for weak_probs in evaluate.supervisors(problem):
            student, training = evaluate.start(problem, weak_probs)
            train_student(student, **training, loss_of=evaluate.loss_of(problem, naive_loss))
            students.append(student)
        evaluate.report(problem, students)


if __name__ == "__main__":
    import sys

    sys.path.insert(0, sys.path[0] + "/..")  # evaluate.py and the others stand in the folder above
    import evaluate

    evaluate.run(main)
