import math

import naive
import torch
from conftest import gradient, random_problem, train

import models


def test_loss_and_gradient_against_a_loop():
    student_logits, weak_probs = random_problem()
    weak_probs = weak_probs[:, 0]
    expected, expected_gradient = 0.0, torch.zeros_like(student_logits)
    n, c = student_logits.shape
    for i in range(n):
        exponentials = [math.exp(z) for z in student_logits[i].tolist()]
        for k in range(c):
            p = exponentials[k] / sum(exponentials)
            expected -= weak_probs[i, k].item() * math.log(p) / n
            expected_gradient[i, k] = (p - weak_probs[i, k]) / n
    value, grad = gradient(lambda z: naive.naive_loss(z, weak_probs), student_logits)
    torch.testing.assert_close(value.item(), expected)
    torch.testing.assert_close(grad, expected_gradient)


def test_values_of_the_released_code(parity):
    student_logits, weak_probs = (
        torch.tensor(parity[key], dtype=torch.float64) for key in ("logits", "weak_logits")
    )
    weak_probs = weak_probs.softmax(-1)
    value, grad = gradient(lambda z: naive.naive_loss(z, weak_probs), student_logits)
    per_sample = torch.stack([naive.naive_loss(z[None], q[None]) for z, q in zip(student_logits, weak_probs)])
    torch.testing.assert_close(per_sample.tolist(), parity["naive"]["per_sample"], rtol=0, atol=1e-10)
    torch.testing.assert_close(grad.tolist(), parity["naive"]["grad_of_mean"], rtol=0, atol=1e-10)
    torch.testing.assert_close(value, per_sample.mean())


def test_labels_that_the_task_hands_out_are_learned_too():
    """One-hot weak labels that equal the labels: twice the same loss, and Adam ignores the factor."""
    labels = torch.randint(5, (300,), generator=torch.Generator().manual_seed(2))
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    alone, _ = train(naive, one_hot)
    both, _ = train(naive, one_hot, labels)
    torch.testing.assert_close(alone, both, rtol=1e-3, atol=1e-4)
    _, weak_probs = random_problem(n=300)
    without, _ = train(naive, weak_probs[:, 0].float())
    assert not torch.allclose(without, train(naive, weak_probs[:, 0].float(), labels)[0])


def test_a_student_recovers_more_than_its_teacher():
    """Weak labels of which 40 % are wrong, at random: a linear student averages the noise out."""
    generator = torch.Generator().manual_seed(0)
    centers = 3 * torch.randn(4, 6, generator=generator)
    y = torch.randint(4, (2000,), generator=generator)
    x = centers[y] + torch.randn(2000, 6, generator=generator)
    wrong = torch.rand(2000, generator=generator) < 0.4
    weak = torch.where(wrong, (y + torch.randint(1, 4, y.shape, generator=generator)) % 4, y)
    student = models.LinearHead(6, 4, pairs=False)
    batches = models.Batches((x, torch.nn.functional.one_hot(weak, 4).float()), 64, seed=0)
    naive.train_student(student, batches, 5, *models.make_optimizer("adam", student, 1e-2, 5 * len(batches)))
    right = (models.predict(student, x).argmax(-1) == y).float().mean()
    assert right > 0.9 > 0.65 > (weak == y).float().mean()
