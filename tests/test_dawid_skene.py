import math

import dawid_skene
import torch


def test_em_against_a_loop():
    weak_probs = torch.randn(30, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    votes = weak_probs.argmax(-1).tolist()
    t = [[row.count(c) / 3 for c in range(4)] for row in votes]
    for _ in range(5):
        prior = [sum(row[c] for row in t) / 30 for c in range(4)]
        pi = [[[2.0] * 4 for _ in range(4)] for _ in range(3)]
        for row, given in zip(t, votes):
            for m, k in enumerate(given):
                for c in range(4):
                    pi[m][c][k] += row[c]
        pi = [[[cell / sum(row) for cell in row] for row in matrix] for matrix in pi]
        for i, given in enumerate(votes):
            odds = [prior[c] * math.prod(pi[m][c][k] for m, k in enumerate(given)) for c in range(4)]
            t[i] = [each / sum(odds) for each in odds]
    found = dawid_skene.label(weak_probs, smoothing=2.0, rounds=5)
    torch.testing.assert_close(found, torch.tensor(t, dtype=torch.float64))
