"""Prototypes: labels from the geometry of the strong features, which the weak models only begin.

The strong features of a class lie near each other, which no weak model sees. The prototype of a class is the
mean of what the weak models call so: their mistakes average out. Every sample is then named after the nearest
prototype, and prototypes are made anew. Near is measured by a covariance that all classes share, shrunk
towards the identity: without it the names drift to whatever varies most (a topic, say), and with it alone
they follow the weak models' mistakes along directions that hardly vary.

    S    = Sigma + gamma (tr Sigma / D) I          Sigma: covariance of x, of all classes together      (1)
    mu_c = sum_i t_ic x_i / |x_i|                  prototype of class c; |x|^2 = x' S^-1 x              (2)
    k_i  = argmax_c  x_i' S^-1 mu_c / |mu_c|       the nearest, by angle                                (3)

It starts from t = the mean weak label; (2) and (3) are done `rounds` times, with t_i = one-hot(k_i) from the
second on. An ordinary head learns the last t, at a rate that clean labels bear.

    symbol | here          shape
    x      | x             (N, D)      strong features, centred
    t      | targets       (N, C)

The combination is ours. Prototypes that name what they were made of are known from source-free adaptation:
SHOT (Liang et al. 2020, arXiv 2002.08546), DECISION (Ahmed et al. 2021, arXiv 2104.01845); the shrunk
covariance is that of regularized discriminant analysis (Friedman 1989).

A pair of responses (N, 2, D) stands in both orders as a difference: x_0 - x_1 of class 0, and x_1 - x_0 of
class 1, where the first is the better. So prototypes are opposite, and the order of a pair does not matter.

    python methods/prototypes.py --task glyphs-shift

student .972, PGR .96 over 5 seeds; where classes are no clusters, they lose (results/README.md). `--lr auto`
of the other methods chooses by these labels too.
"""

import torch
import torch.nn.functional as F


def whiten(x: torch.Tensor, gamma: float) -> torch.Tensor:
    """Equation (1): x (N, D) -> (N, D), centred, of length 1; inner products are x' S^-1 y / (|x| |y|)."""
    x = x - x.mean(0)
    covariance = x.T @ x / len(x)
    covariance.diagonal().add_(gamma * covariance.diagonal().mean())
    factor = torch.linalg.cholesky(covariance)
    return F.normalize(torch.linalg.solve_triangular(factor, x.T, upper=False).T, dim=-1)


def similarity(x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Equation (2) and what (3) compares: x (N, D) from `whiten`, targets (N, C) -> cosines (N, C)."""
    cosines = x @ F.normalize(targets.T @ x, dim=-1).T
    return cosines.masked_fill(targets.sum(0) == 0, -torch.inf)  # a class without samples has no prototype


def label(x: torch.Tensor, weak_probs: torch.Tensor, gamma: float = 2.0, rounds: int = 4) -> torch.Tensor:
    """Labels of N samples from their strong features and weak labels together.

    x (N, D), or (N, 2, D) of pairs; weak_probs (N, M, C) -> (N, C), one-hot rows."""
    pairs, targets = x.dim() == 3, weak_probs.mean(1)
    if pairs:
        difference = x[:, 0] - x[:, 1]
        x, targets = torch.cat([difference, -difference]), torch.cat([targets, targets.flip(-1)])
    x = whiten(x, gamma)
    for _ in range(rounds):
        nearest = similarity(x, targets).argmax(-1)
        targets = F.one_hot(nearest, targets.shape[1]).to(targets)
    return targets[: len(targets) // 2] if pairs else targets


# ---- To reproduce. Whoever copies this file deletes from here on. ------------------------------------------


def main(argv=None) -> None:
    import evaluate
    from methods import naive

    parser = evaluate.flags(__file__, __doc__, lr=1e-3)
    add = parser.add_argument
    add("--gamma", type=evaluate.number(float, 1e-3), default=2.0, help="of the covariance's shrinkage")
    add("--rounds", type=evaluate.number(int, 1), default=4, help="how often prototypes are made")
    for problem in evaluate.problems(parser, argv, heads=True):
        strong, own = problem.task.strong_train, {"gamma": problem.args.gamma, "rounds": problem.args.rounds}
        targets = label(strong.x, strong.weak_probs, **own)
        student, training = evaluate.start(problem, targets)
        naive.train_student(student, **training, loss_of=evaluate.loss_of(problem, naive.naive_loss))
        evaluate.report(problem, [student], labels_right=evaluate.accuracy(targets, strong.y))


if __name__ == "__main__":
    import sys

    sys.path.insert(0, sys.path[0] + "/..")  # evaluate.py and the others stand in the folder above
    import evaluate

    evaluate.run(main)
