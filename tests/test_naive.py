import math
from types import SimpleNamespace

import naive
import torch
from conftest import gradient, random_problem, train

import evaluate


def test_loss_and_gradient_against_a_loop():
    student_logits, weak_probs = random_problem()
    expected, slopes = 0.0, torch.zeros(12, 5, dtype=torch.float64)
    for i, (z, q) in enumerate(zip(student_logits.tolist(), weak_probs[:, 0].tolist())):
        for k in range(5):
            p = math.exp(z[k]) / sum(map(math.exp, z))
            expected -= q[k] * math.log(p) / 12
            slopes[i, k] = (p - q[k]) / 12
    value, grad = gradient(lambda z: naive.naive_loss(z, weak_probs[:, 0]), student_logits)
    torch.testing.assert_close(value.item(), expected)
    torch.testing.assert_close(grad, slopes)


def test_values_of_the_released_code(parity):
    z, weak_logits = torch.tensor([parity["logits"], parity["weak_logits"]], dtype=torch.float64)
    q, published = weak_logits.softmax(-1), parity["naive"]
    per_sample = [naive.naive_loss(*pair).item() for pair in zip(z.split(1), q.split(1))]
    torch.testing.assert_close(per_sample, published["per_sample"], rtol=0, atol=1e-10)
    grad = gradient(lambda z: naive.naive_loss(z, q), z)[1]
    torch.testing.assert_close(grad.tolist(), published["grad_of_mean"], rtol=0, atol=1e-10)


def test_labels_count_as_much_as_weak_labels():
    """Both together are twice the loss of their mean, and Adam ignores the factor."""
    weak_probs, labels = random_problem(n=300)[1][:, 0].float(), torch.arange(300) % 5
    mean = (weak_probs + torch.nn.functional.one_hot(labels, 5)) / 2
    both, of_mean = train(naive, weak_probs, labels)[0], train(naive, mean)[0]
    torch.testing.assert_close(both, of_mean, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(both, train(naive, weak_probs)[0], atol=1e-2)


def test_whose_labels():
    """Two of three weak models name class 1; each names another, and the mean prefers 2."""
    weak_probs = torch.tensor([
        [[0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.3, 0.7, 0.0]],
        [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.0, 0.0, 1.0]],
    ])  # fmt: skip

    def supervisors(name):
        task = SimpleNamespace(strong_train=SimpleNamespace(weak_probs=weak_probs))
        return evaluate.supervisors(SimpleNamespace(task=task, args=SimpleNamespace(supervision=name)))

    assert [each.tolist() for each in supervisors("each")] == weak_probs.transpose(0, 1).tolist()
    assert supervisors("mean")[0].tolist() == weak_probs.mean(1).tolist()
    assert supervisors("vote")[0].tolist() == [[0, 1, 0], [0, 0, 1]]
