"""DPO-R: the losses by hand and by autograd, the log-probabilities, the loop, and the script end to end."""

import copy
import math

import pytest
import raven_dpo
import torch
from conftest import gradient, run_script
from torch import nn

import data
import evaluate
import store
from tasks import alignment


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def naive_dpo_r(log_ratios, rewards, weights, form="paper"):
    """The loss, and its gradients to log-ratios and weights in closed form, pair by pair."""
    n, loss = len(rewards), 0.0
    to_ratios, to_weights = torch.zeros_like(log_ratios), torch.zeros_like(weights)
    for i, (ratios, pair) in enumerate(zip(log_ratios.tolist(), rewards.tolist())):
        combined = [sum(t * r for t, r in zip(weights.tolist(), each)) for each in pair]
        c = int(combined[1] > combined[0])
        r = 1 - c
        b_c = sigmoid(combined[c] - combined[r])
        b_r, sign = (1 - b_c, 1) if form == "paper" else (b_c, -1)
        margin = b_c * ratios[c] - b_r * ratios[r]
        loss -= math.log(sigmoid(margin)) / n
        to_ratios[i, c], to_ratios[i, r] = -sigmoid(-margin) * b_c / n, sigmoid(-margin) * b_r / n
        for j in range(len(weights)):
            slope = b_c * (1 - b_c) * (pair[c][j] - pair[r][j])  # of b_c
            to_weights[j] -= sigmoid(-margin) * (ratios[c] + sign * ratios[r]) * slope / n
    return torch.tensor(loss).double(), to_ratios, to_weights


@pytest.mark.parametrize("form", ["paper", "code"])
def test_dpo_r_and_its_gradients_in_closed_form(form):
    generator = torch.Generator().manual_seed(0)
    log_ratios = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    rewards = torch.randn(6, 2, 3, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    found = gradient(lambda ratios, w: raven_dpo.dpo_r_loss(ratios, rewards, w, form), log_ratios, weights)
    for value, other in zip(found, naive_dpo_r(log_ratios, rewards, weights, form)):
        torch.testing.assert_close(value, other)


def test_losses_by_hand():
    """Rewards 2 - ln 3 and 2 prefer the second response, of log-ratio -0.4: b_c = 3/4."""
    rewards, weight = torch.tensor([[[2 - math.log(3)], [2.0]]]), torch.ones(1)
    given = (torch.tensor([[0.8, -0.4]]), rewards, weight)
    found = [raven_dpo.dpo_r_loss(*given), raven_dpo.dpo_r_loss(*given, "code")]
    found += [raven_dpo.dpo_loss(*given, 0.1)]
    margins = [0.75 * -0.4 - 0.25 * 0.8, 0.75 * (-0.4 - 0.8), 0.1 * (-0.4 - 0.8)]
    assert [value.item() for value in found] == pytest.approx([math.log1p(math.exp(-m)) for m in margins])


def test_unanimous_and_project_by_hand():
    first = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, -3.0], [1.0, 2.0]])
    second = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 2.0], [1.0, 1.0]])
    assert raven_dpo.unanimous(torch.stack([first, second], 1)).tolist() == [True, False, True, False]
    weights, total = raven_dpo.project(torch.tensor([0.6, -0.2, 0.6])), 1.2 + 1e-6
    assert weights.tolist() == pytest.approx([0.6 / total, 1e-6 / total, 0.6 / total])


def test_log_probs_and_kl_against_a_loop():
    """Columns of mere padding are not read."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, 5, generator=generator, dtype=torch.float64)
    tokens, place, other = torch.randint(5, (4, 9), generator=generator), torch.arange(9), logits.flip(0)
    starts, ends = torch.tensor([1, 2, 3, 2]), torch.tensor([7, 4, 5, 2])  # the last response is empty
    response = (place >= starts[:, None]) & (place < ends[:, None])
    log_probs, kl = [0.0] * 4, []
    for i in range(4):
        for t in range(starts[i], ends[i]):
            p, q = logits[i, t - 1].softmax(-1), other[i, t - 1].softmax(-1)
            log_probs[i] += math.log(p[tokens[i, t]])
            kl.append(sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist())))
    pairs, read = (tokens.view(2, 2, 9), response.view(2, 2, 9)), []
    found = raven_dpo.log_probs(lambda x: read.append(x) or logits, *pairs)
    assert found.flatten().tolist() == pytest.approx(log_probs) and torch.equal(read[0], tokens[:, :7])
    assert alignment.token_kl(logits, other, response[:, :7]).tolist() == pytest.approx(kl, rel=1e-4)
    half = logits.half()  # computed in float32
    found = [raven_dpo.log_probs(lambda _, each=each: each, *pairs) for each in (half, half.float())]
    torch.testing.assert_close(*found)


class Coins(nn.Module):
    """Writes five tokens, each 1 or 2, from one learned logit; 0 begins and 3 ends a text."""

    read_batch, write_batch, end, longest = 16, 64, 3, 5

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.lean = nn.Parameter(torch.zeros(2, dtype=dtype))

    def forward(self, tokens):
        logits = torch.full((*tokens.shape, 4), -30.0, dtype=self.lean.dtype)
        logits[..., 1:3] = self.lean.log_softmax(-1)
        return logits

    def prompt_ids(self, prompt):
        return [0]

    def decode(self, ids):
        return "".join(map(str, ids))

    def write(self, prompts):
        chances = self.lean.detach().float().softmax(-1)
        return (torch.multinomial(chances, 5 * len(prompts), replacement=True) + 1).view(-1, 5).tolist()


def toy(n=256, dtype=torch.float32):
    """A task in which token 1 is good: the truth counts it, and three reward models do so with noise."""
    policy = Coins(dtype)
    *sequences, _ = alignment.sample(policy, ["x"] * (2 * n), 0)
    gold = (sequences[0] == 1).sum(1).to(dtype)
    noise = torch.randn(2 * n, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    parts = (*sequences, gold[:, None] + noise * torch.arange(1, 4), gold)
    *pairs, rewards, gold = (part.unflatten(0, (-1, 2)) for part in parts)

    def judge(prompts, responses):
        counts = torch.tensor([response.count("1") for response in responses])
        return counts.float(), counts > 0

    held_out = {"val": ["v"] * 50, "test": ["t"] * 300}
    return alignment.Alignment(policy, tuple(pairs), rewards, gold, ["a", "b", "c"], held_out, judge)


@pytest.mark.parametrize("micro_batch", [32, 3])
def test_the_loop_against_a_plain_one(micro_batch):
    """Easy phase, frozen weights, simultaneous steps, the projection: step by step, pair by pair."""
    task = toy(n=24, dtype=torch.float64)
    policy = copy.deepcopy(task.policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    own = {"batch_size": 8, "micro_batch": micro_batch, "beta": 0.1, "weight_lr": 0.5}
    history = raven_dpo.train_policy(policy, task.pairs, task.rewards, 2, optimizer, schedule, **own)
    lean = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([lean], lr=0.02)
    generator, weights = torch.Generator().manual_seed(0), torch.full((3,), 1 / 3, dtype=torch.float64)
    easy, step = raven_dpo.unanimous(task.rewards), 0
    assert 0 < easy.sum() < 24
    for _ in range(2):
        for batch in torch.randperm(24, generator=generator).split(8):
            optimizer.param_groups[0]["lr"] = 0.02 * (1 + math.cos(math.pi * step / 6)) / 2
            log_p, losses, to_weights = lean.log_softmax(-1), [], torch.zeros(3, dtype=torch.float64)
            for i in batch.tolist():
                counts = [(task.pairs[0][i, k, 1:] == 1).sum() for k in range(2)]
                ratios = torch.stack([n * log_p[0] + (5 - n) * log_p[1] - 5 * math.log(0.5) for n in counts])
                pair = (ratios[None], task.rewards[i : i + 1], weights)
                if step < 3:
                    c = int(task.rewards[i, 1].mean() > task.rewards[i, 0].mean())
                    losses.append(easy[i] * -nn.functional.logsigmoid(0.1 * (ratios[c] - ratios[1 - c])))
                else:
                    to_weights += naive_dpo_r(*(part.detach() for part in pair))[2]
                    losses.append(raven_dpo.dpo_r_loss(*pair))
            optimizer.zero_grad()
            (sum(losses) / len(batch)).backward()
            optimizer.step()
            if step >= 3:
                moved = (weights - 0.5 * to_weights / len(batch)).clamp(min=1e-6)
                weights = moved / moved.sum()
            step += 1
    torch.testing.assert_close(policy.lean.detach(), lean.detach())
    assert [state["step"] for state in history] == [0, 5] and history[0]["weights"] == [1 / 3] * 3
    assert history[-1]["weights"] == pytest.approx(weights.tolist()) and weights.max() > 0.34


def test_score_by_hand():
    """Two wins, a tie and a loss; KL and length over the sampled tokens."""
    task = toy()
    policy = copy.deepcopy(task.policy)
    policy.lean.data = torch.tensor([math.log(3.0), 0.0])

    def writer(rows):
        return lambda prompts: [[int(digit) for digit in row] for row in rows.split()][: len(prompts)]

    task.policy.write, policy.write = map(writer, ("11111 12222 22222 11112", "11112 11222 11111 11112"))
    task.prompts.update(test=["p", "q", "r", "s"], val=["p"])
    before = {split: alignment.respond(task.policy, task, split) for split in ("val", "test")}
    scores = alignment.score(task, policy, before)
    spread = math.sqrt(sum((win - 0.625) ** 2 for win in (0, 1, 1, 0.5)) / 3)
    expected = {"win_rate": 0.625, "win_interval": 1.96 * spread / 2, "gold_reward": 15 / 4, "length": 5}
    expected |= {"kl": 0.75 * math.log(1.5) + 0.25 * math.log(0.5), "well_formed": 1, "val": 0}
    assert scores == pytest.approx(expected, rel=1e-5)
    assert before["test"]["gold_reward"].tolist() == [5, 1, 0, 4]
    assert before["test"]["well_formed"].tolist() == [1, 1, 0, 1]


def test_the_script_end_to_end(monkeypatch, tmp_path):
    """The real task with fewer prompts and a hardly trained policy."""
    known = alignment.target_prompts()
    few = {"train": known["train"][:10], "val": known["val"][:5], "test": known["test"][:20]}
    monkeypatch.setattr(alignment, "target_prompts", lambda: few)
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    flags = "--encoder-steps 2 --steps 4 --batch-size 8 --device cpu --seeds 0".split()
    [row] = run_script(raven_dpo, *flags)
    assert (row["method"], row["task"], row["kind"]) == ("raven_dpo", "reviews-dpo", "policy")
    assert row["n_test"] == 20 and row["kl"] > 0 and len(row["weights"]) == 3
    [again] = run_script(raven_dpo, *flags, "--out", "elsewhere")
    assert {**again, "seconds": 0} == {**row, "seconds": 0}
    monkeypatch.setitem(alignment.TASKS, "reviews-dpo", None)
    assert run_script(raven_dpo, *flags) == [row]  # not computed again


@pytest.mark.parametrize("supervision", ["one", "mean", "raven", "gold"])
def test_what_each_policy_is_trained_on(supervision, monkeypatch):
    """Rewards, easy phase, recipe; and what the row says of the reward models, by hand."""
    task, calls = toy(n=40), []
    task.gold[:3] = 1.0  # three ties

    def recorder(policy, pairs, rewards, epochs, optimizer, schedule, *others, **own):
        assert policy is not task.policy and pairs is task.pairs
        assert schedule.lr_lambdas[0](7 * 8) == 0 < schedule.lr_lambdas[0](7 * 8 - 1)
        calls.append((rewards, (optimizer.param_groups[0]["lr"], epochs, *others, own)))
        return [{"weights": [1.0]}]

    monkeypatch.setitem(alignment.TASKS, "reviews-dpo", lambda args: task)
    monkeypatch.setattr(raven_dpo, "train_policy", recorder)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    flags = "--steps 50 --lr 0.25 --ceiling-lr 0.5 --batch-size 5 --micro-batch 2 --beta 0.3 --form code"
    flags += f" --easy-phase 0.6 --weight-lr 4 --seeds 9 --compile on --supervision {supervision}"
    [row] = run_script(raven_dpo, *flags.split(), "--device", "cpu")
    rewards, gold = task.rewards, task.gold[..., None]
    expected = {"one": rewards.split(1, -1), "mean": [rewards.sum(-1, keepdim=True) / 3]}
    expected = (expected | {"raven": [rewards], "gold": [gold]})[supervision]
    own = {"easy_phase": 0.6 if supervision == "raven" else 1.0, "weight_lr": 4.0, "form": "code"}
    own |= {"beta": 0.3, "micro_batch": 2, "cross_entropy": nn.functional.cross_entropy}
    for (found, recipe), judge in zip(calls, expected, strict=True):
        torch.testing.assert_close(found, judge)
        assert recipe == (0.5 if supervision == "gold" else 0.25, 7, 5, 9, own)
    assert ("history" in row) == (len(calls) == 1)
    assert 0.4 < row["win_rate_before"] < 0.6 and row["win_rate_before"] != 0.5  # sampled again
    right = (rewards[:, 0] > rewards[:, 1]) == (gold[:, 0] > gold[:, 1])
    decided = task.gold[:, 0] != task.gold[:, 1]
    assert row["reward_accuracy"] == pytest.approx(right[decided].double().mean(0).tolist())
    assert row["n_pairs"] == decided.sum() < 40 and len(set(row["reward_accuracy"])) == 3
    assert row["easy_fraction"] == raven_dpo.unanimous(rewards).double().mean()


def test_divergence_is_bad_input_not_a_row(monkeypatch):
    monkeypatch.setitem(alignment.TASKS, "reviews-dpo", lambda args: toy(n=8))
    monkeypatch.setattr(raven_dpo, "dpo_loss", lambda log_ratios, *_: log_ratios.sum() * math.nan)
    with pytest.raises(data.InputError, match="diverged"):
        run_script(raven_dpo, "--seeds", "0", "--device", "cpu")
    assert not store.read_rows(data.Path("runs/raven_dpo.jsonl"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--task reviews", "unknown task 'reviews'; known: reviews-dpo, hh-helpful-harmless"),
        ("--policy name", "a policy of its own"),
        ("--task hh-helpful-harmless", "--policy"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        evaluate.run(lambda: raven_dpo.main(arguments.split()))
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(lines) == 1 and message in lines[0]
