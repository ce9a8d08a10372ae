"""Prototypes and weighed votes: labels from the strong features and the weak models' votes together.

The strong features of a class lie near each other, which no weak model sees. Prototypes of the classes, at
first those of the weak labels, and votes, weighed by how often a weak model agrees with the present labels,
correct each other: a mixture model of the features, joined with the one-coin model of Dawid & Skene (1979).
The combination is ours; prototypes that label what they were made of are known from source-free adaptation:
SHOT (Liang et al. 2020, arXiv 2002.08546), DECISION (Ahmed et al. 2021, arXiv 2104.01845).

    mu_c     = u / |u|,  u = sum_i t_ic x_i                           prototype of class c                (1)
    s_ic     = x_i . mu_c, centred over c, then of deviation 1 over all i and c                           (2)
    a_m      = mean_i t_i[w_im], in [1/C, .99]                        agreement with the present labels   (3)
    lambda_m = log a_m - log((1 - a_m) / (C - 1))                     weight of a vote                    (4)
    t_i      = softmax_c(beta s_ic + kappa sum_m lambda_m [w_im = c])                                     (5)

It starts from t = the mean weak label; (1) to (5) are done `rounds` times.

    symbol | here          shape
    x      | x             (N, D)      strong features, standardised by column; rows are scaled to length 1
    w      | votes         (N, M)      argmax of the weak labels
    t      | targets       (N, C)
    mu     | centroids     (C, D)
    a      | agreement     (M,)

A pair of responses (N, 2, D) stands in both orders as a difference: x_0 - x_1 of class 0, and x_1 - x_0 of
class 1, where the first is the better. So prototypes are opposite, and the order of a pair does not matter.

So far these labels serve to choose a learning rate without true ones: `--lr auto` of the other methods.
"""

import torch
import torch.nn.functional as F


def centroids(x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Equation (1): x (N, D), targets (N, C) -> (C, D), of length 1. That of a class without samples is 0."""
    return F.normalize(targets.T @ x, dim=-1)


def similarity(x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Equation (2): x (N, D), targets (N, C) -> s (N, C)."""
    s = x @ centroids(x, targets).T
    s = s - s.mean(-1, keepdim=True)
    return s / s.std(correction=0).clamp(min=1e-6)


def agreement(votes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Equation (3): votes (N, M), targets (N, C) -> (M,)."""
    return targets.gather(1, votes).mean(0).clamp(1 / targets.shape[1], 0.99)


def posterior(s: torch.Tensor, votes: torch.Tensor, a: torch.Tensor, beta: float, kappa: float):
    """Equations (4) and (5): s (N, C), votes (N, M), agreement a (M,) -> targets (N, C), rows sum to 1."""
    num_classes = s.shape[1]
    vote_weights = a.log() - ((1 - a) / (num_classes - 1)).log()
    voted = (F.one_hot(votes, num_classes) * vote_weights[:, None]).sum(1)
    return (beta * s + kappa * voted).softmax(-1)


def label(
    x: torch.Tensor, weak_probs: torch.Tensor, rounds: int = 3, beta: float = 4.0, kappa: float = 0.5
) -> torch.Tensor:
    """Labels of N samples from their strong features and weak labels together.

    x (N, D), or (N, 2, D) of pairs; weak_probs (N, M, C) -> (N, C), rows sum to 1."""
    pairs = x.dim() == 3
    if pairs:
        difference = x[:, 0] - x[:, 1]
        x, weak_probs = torch.cat([difference, -difference]), torch.cat([weak_probs, weak_probs.flip(-1)])
    x, votes, targets = F.normalize(x, dim=-1), weak_probs.argmax(-1), weak_probs.mean(1)
    for _ in range(rounds):
        targets = posterior(similarity(x, targets), votes, agreement(votes, targets), beta, kappa)
    return targets[: len(targets) // 2] if pairs else targets
