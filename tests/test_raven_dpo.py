"""DPO-R: the losses by hand and by autograd, the log-probabilities, the loop, and the script end to end."""

import copy
import json
import math

import pytest
import raven_dpo
import torch
from conftest import ROOT, gradient
from torch import nn

import alignment
import data
import models
import store


def random_pairs(n=6, m=3, seed=0):
    """Log-ratios (n, 2) and rewards (n, 2, m) in float64."""
    generator = torch.Generator().manual_seed(seed)
    log_ratios = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return log_ratios, torch.randn(n, 2, m, generator=generator, dtype=torch.float64)


WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def naive_dpo_r(log_ratios, rewards, weights, form):
    """The loss, and its gradients to log-ratios and weights as papers give them, pair by pair."""
    losses, to_ratios, to_weights = [], [], [0.0] * len(weights)
    for ratios, pair in zip(log_ratios.tolist(), rewards.tolist()):
        combined = [sum(t * r for t, r in zip(weights.tolist(), each)) for each in pair]
        c = 0 if combined[0] > combined[1] else 1
        r = 1 - c
        b_c = sigmoid(combined[c] - combined[r])
        b_r = 1 - b_c if form == "paper" else b_c
        margin = b_c * ratios[c] - b_r * ratios[r]
        losses.append(-math.log(sigmoid(margin)))
        own = [0.0, 0.0]
        own[c], own[r] = -sigmoid(-margin) * b_c, sigmoid(-margin) * b_r
        to_ratios.append(own)
        moved = ratios[c] + ratios[r] if form == "paper" else ratios[c] - ratios[r]
        for j in range(len(weights)):
            gap = pair[c][j] - pair[r][j]
            to_weights[j] -= sigmoid(-margin) * moved * b_c * (1 - b_c) * gap
    n = len(losses)
    return sum(losses) / n, [[x / n for x in own] for own in to_ratios], [x / n for x in to_weights]


@pytest.mark.parametrize("form", ["paper", "code"])
def test_dpo_r_and_its_gradients_in_closed_form(form):
    log_ratios, rewards = random_pairs()
    found = gradient(lambda ratios, w: raven_dpo.dpo_r_loss(ratios, rewards, w, form), log_ratios, WEIGHTS)
    expected = naive_dpo_r(log_ratios, rewards, WEIGHTS, form)
    for value, other in zip(found, expected):
        torch.testing.assert_close(value, torch.tensor(other, dtype=torch.float64))


def test_dpo_r_by_hand():
    """Rewards 2 and 2 - ln 3 prefer the second-named response: b_c = 3/4."""
    rewards = torch.tensor([[[2 - math.log(3)], [2.0]]], dtype=torch.float64)
    log_ratios = torch.tensor([[0.8, -0.4]], dtype=torch.float64)  # of the rejected, of the chosen one
    weight = torch.ones(1, dtype=torch.float64)
    paper = 0.75 * -0.4 - 0.25 * 0.8
    code = 0.75 * (-0.4 - 0.8)
    assert raven_dpo.dpo_r_loss(log_ratios, rewards, weight).item() == pytest.approx(
        math.log1p(math.exp(-paper))
    )
    assert raven_dpo.dpo_r_loss(log_ratios, rewards, weight, "code").item() == pytest.approx(
        math.log1p(math.exp(-code))
    )
    plain = raven_dpo.dpo_loss(log_ratios, rewards, weight, torch.tensor([True]), 0.1)
    assert plain.item() == pytest.approx(math.log1p(math.exp(0.1 * 1.2)))


def test_weights_do_not_move_at_the_start():
    """log pi = log ref: no gradient to the weights; where both fall, weight leaves the clearest model."""
    _, rewards = random_pairs()
    _, _, to_weights = gradient(
        lambda ratios, w: raven_dpo.dpo_r_loss(ratios, rewards, w),
        torch.zeros(6, 2, dtype=torch.float64),
        WEIGHTS,
    )
    assert to_weights.abs().max() == 0
    clear = torch.tensor([[[3.0, 0.1], [0.0, 0.0]]])
    fallen = torch.tensor([[-1.0, -2.0]])
    _, _, to_weights = gradient(
        lambda ratios, w: raven_dpo.dpo_r_loss(ratios, clear, w), fallen, torch.tensor([0.5, 0.5])
    )
    assert to_weights[0] > to_weights[1] > 0  # and a step against it


@pytest.mark.parametrize("form", ["paper", "code"])
def test_what_dpo_r_reduces_to(form):
    log_ratios, rewards = random_pairs()
    every, one = torch.ones(6, dtype=torch.bool), torch.ones(1, dtype=torch.float64)

    def dpo(beta, rewards=rewards, weights=WEIGHTS):
        return raven_dpo.dpo_loss(log_ratios, rewards, weights, every, beta)

    def dpo_r(rewards, weights=WEIGHTS):
        return raven_dpo.dpo_r_loss(log_ratios, rewards, weights, form)

    # Rewards that hardly differ: b_c = 1/2, plain DPO at beta 1/2.
    torch.testing.assert_close(dpo_r(1e-12 * rewards), dpo(0.5))
    # Equal weights are the mean of the rewards as one reward model.
    equal, mean = torch.full_like(WEIGHTS, 1 / 3), rewards.mean(-1, keepdim=True)
    torch.testing.assert_close(dpo_r(rewards, equal), dpo_r(mean, one))
    torch.testing.assert_close(dpo(0.3, weights=equal), dpo(0.3, mean, one))
    # All weight on one model is that model.
    torch.testing.assert_close(
        dpo_r(rewards, torch.tensor([0.0, 1.0, 0.0]).double()), dpo_r(rewards[..., 1:2], one)
    )
    # Rewards far apart: b_c = 1; in the paper's form the rejected response no longer counts.
    far = dpo_r(1e6 * rewards)
    order = (rewards @ WEIGHTS).argsort(1, descending=True)
    chosen, rejected = log_ratios.gather(1, order).unbind(1)
    margin = chosen if form == "paper" else chosen - rejected
    torch.testing.assert_close(far, -nn.functional.logsigmoid(margin).mean())


def test_plain_dpo_as_beta_vanishes():
    log_ratios, rewards = random_pairs()
    every = torch.ones(6, dtype=torch.bool)
    value, slope = gradient(
        lambda ratios: raven_dpo.dpo_loss(ratios, rewards, WEIGHTS, every, 1e-9), log_ratios
    )
    assert value.item() == pytest.approx(math.log(2))
    combined = rewards @ WEIGHTS
    sign = torch.where(combined == combined.amax(1, keepdim=True), 1.0, -1.0).double()
    torch.testing.assert_close(slope / 1e-9, -sign / 2 / 6)


@pytest.mark.parametrize("loss", ["dpo", "paper", "code"])
def test_the_order_within_a_pair_does_not_matter(loss):
    log_ratios, rewards = random_pairs()
    every = torch.ones(6, dtype=torch.bool)

    def value(log_ratios, rewards):
        if loss == "dpo":
            return raven_dpo.dpo_loss(log_ratios, rewards, WEIGHTS, every, 0.1)
        return raven_dpo.dpo_r_loss(log_ratios, rewards, WEIGHTS, loss)

    torch.testing.assert_close(value(log_ratios.flip(1), rewards.flip(1)), value(log_ratios, rewards))
    assert abs(value(log_ratios.flip(1), rewards) - value(log_ratios, rewards)) > 1e-3


def test_only_kept_pairs_count_and_the_mean_is_over_all():
    log_ratios, rewards = random_pairs()
    keep = torch.tensor([True, False, True, True, False, False])
    each = [
        raven_dpo.dpo_loss(log_ratios[i : i + 1], rewards[i : i + 1], WEIGHTS, keep[:1], 0.4)
        for i in (0, 2, 3)
    ]
    torch.testing.assert_close(raven_dpo.dpo_loss(log_ratios, rewards, WEIGHTS, keep, 0.4), sum(each) / 6)


def test_unanimous_and_project_by_hand():
    first = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, -3.0], [1.0, 2.0]])
    second = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 2.0], [1.0, 1.0]])
    assert raven_dpo.unanimous(torch.stack([first, second], 1)).tolist() == [True, False, True, False]
    weights = raven_dpo.project(torch.tensor([0.6, -0.2, 0.6]))
    assert weights.tolist() == pytest.approx([0.6 / (1.2 + 1e-6), 1e-6 / (1.2 + 1e-6), 0.6 / (1.2 + 1e-6)])


# ----------------------------------------------------------------------------------------- log-probabilities


def random_sequences(n=4, length=7, vocab=5):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, length, vocab, generator=generator, dtype=torch.float64)
    tokens = torch.randint(vocab, (n, length), generator=generator)
    starts, ends = torch.tensor([1, 2, 3, 2]), torch.tensor([7, 4, 5, 2])  # the last response is empty
    place = torch.arange(length)
    return logits, tokens, (place >= starts[:, None]) & (place < ends[:, None])


def test_log_probs_and_kl_against_a_loop():
    logits, tokens, response = random_sequences()
    other = logits.flip(0)
    log_probs, kl = [0.0] * 4, []
    for i in range(4):
        for t in range(1, 7):
            if response[i, t]:
                p, q = logits[i, t - 1].softmax(-1), other[i, t - 1].softmax(-1)
                log_probs[i] += math.log(p[tokens[i, t]])
                kl.append(sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist())))
    found = raven_dpo.response_log_probs(logits, tokens, response)
    assert found.tolist() == pytest.approx(log_probs) and found[3] == 0
    assert raven_dpo.token_kl(logits, other, response).tolist() == pytest.approx(kl)
    assert raven_dpo.token_kl(logits, logits, response).tolist() == [0] * len(kl)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_promoted(dtype):
    logits, tokens, response = random_sequences()
    half = logits.to(dtype)
    found = raven_dpo.response_log_probs(half, tokens, response)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, raven_dpo.response_log_probs(half.float(), tokens, response))
    assert raven_dpo.token_kl(half, half, response).dtype == torch.float32


@pytest.mark.parametrize("poison", [1e30, math.inf, math.nan])
def test_padding_and_prompt_never_count(poison):
    """Neither in value nor in gradient, whatever stands there."""
    logits, tokens, response = random_sequences()
    reference = torch.zeros_like(logits)
    predicts = torch.cat([response[:, 1:], torch.zeros(4, 1, dtype=torch.bool)], 1)
    poisoned = torch.where(predicts[..., None], logits, poison)
    other_tokens = torch.where(response, tokens, 0)
    for function in (
        lambda z, ids: raven_dpo.response_log_probs(z, ids, response),
        lambda z, ids: raven_dpo.token_kl(z, reference, response),
    ):
        value, slope = gradient(lambda z: function(z, tokens).sum(), logits)  # noqa: B023
        other, other_slope = gradient(lambda z: function(z, other_tokens).sum(), poisoned)  # noqa: B023
        torch.testing.assert_close(other, value)
        torch.testing.assert_close(other_slope, slope)
        assert not slope[~predicts].any() and slope[predicts].any()


def test_columns_of_padding_are_left_out_and_change_nothing():
    task, read = toy(n=8), []
    task.policy.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape))
    chosen = torch.tensor([5, 2])
    alone = raven_dpo.log_probs_of_pairs(task.policy, task.pairs, chosen)
    padded = alignment.Sequences(*(nn.functional.pad(part, (0, 3)) for part in task.pairs))
    torch.testing.assert_close(raven_dpo.log_probs_of_pairs(task.policy, padded, chosen), alone)
    assert read == [(4, 6), (4, 6)] and alone.shape == (2, 2)
    tokens = task.pairs.tokens[5, 1]
    expected = task.policy.lean.log_softmax(-1)[tokens[1:] - 1].sum()
    torch.testing.assert_close(alone[0, 1], expected)


# ---------------------------------------------------------------------------------------------- a toy policy


class Coins(nn.Module):
    """Writes five tokens, each 1 or 2, from one learned logit; 0 begins and 3 ends a text."""

    read_batch, write_batch, longest = 16, 64, 5

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
        drawn = (
            torch.multinomial(self.lean.detach().float().softmax(-1), 5 * len(prompts), replacement=True) + 1
        )
        return drawn.view(-1, 5).tolist()


def toy(n=256, num_models=3, seed=0, dtype=torch.float32):
    """A task in which token 1 is good: the truth counts it, and reward models do so with noise."""
    policy = Coins(dtype)
    sequences = alignment.sample(policy, ["x"] * (2 * n), seed)
    gold = (sequences.tokens * sequences.response == 1).sum(1).to(dtype)
    noise = torch.randn(2 * n, num_models, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    parts = (*sequences, gold[:, None] + noise * torch.arange(1, num_models + 1), gold)
    tokens, response, rewards, gold = (part.unflatten(0, (-1, 2)) for part in parts)

    def judge(prompts, responses):
        counts = torch.tensor([response.count("1") for response in responses])
        return counts.float(), counts > 0

    held_out = {"val": ["v"] * 50, "test": ["t"] * 300}
    pairs = alignment.Sequences(tokens, response)
    return alignment.Alignment(policy, pairs, rewards, gold, ["a", "b", "c"], held_out, judge)


RECIPE = {"epochs": 2, "lr": 0.02, "batch_size": 32, "micro_batch": 32, "seed": 0, "beta": 0.1}
RECIPE |= {"easy_phase": 0.5, "weight_lr": 0.5, "form": "paper"}


def train(task, rewards=None, **changes):
    policy = copy.deepcopy(task.policy)
    rewards = task.rewards if rewards is None else rewards
    keep = raven_dpo.unanimous(rewards)
    recipe = RECIPE | changes
    return policy, raven_dpo.train_policy(
        policy=policy, pairs=task.pairs, rewards=rewards, keep=keep, **recipe
    )


def figures(policy, task):
    """The scores on the test prompts."""
    before = alignment.respond(task.policy, task, "test", "before")
    return raven_dpo.score(policy, task, before, alignment.respond(policy, task, "test", "after"))


@pytest.mark.parametrize("supervision", ["mean", "raven", "gold"])
def test_a_toy_policy_improves(supervision):
    task = toy()
    rewards = {
        "mean": task.rewards.mean(-1, keepdim=True),
        "raven": task.rewards,
        "gold": task.gold[..., None],
    }
    policy, _ = train(task, rewards[supervision], easy_phase=0.5 if supervision == "raven" else 1, lr=0.1)
    assert policy.lean.softmax(-1)[0] > 0.65
    scores = figures(policy, task)
    assert scores["win_rate"] - scores["win_interval"] > 0.6 and scores["kl"] > 0.01
    assert scores["gold_reward"] > scores["gold_reward_before"] + 0.5


def test_nothing_changes_at_learning_rate_zero():
    """Policy = reference: KL 0, win rate within chance, log-ratios 0, and so weights that stay."""
    task = toy()
    task.policy.lean.data[0] = 0.7  # so that responses differ in probability
    policy, history = train(task, lr=0.0)
    scores = figures(policy, task)
    assert scores["kl"] == 0 and abs(scores["win_rate"] - 0.5) < 2 * scores["win_interval"]
    assert scores["samples"][0]["before"] != scores["samples"][0]["after"]  # other draws, same policy
    assert all(state["chosen"] == state["rejected"] == 0 for state in history)
    assert all(state["weights"] == pytest.approx([1 / 3] * 3) for state in history)


def test_the_loop_against_a_plain_one():
    """Easy phase, frozen weights, simultaneous steps, the projection: step by step, pair by pair."""
    task = toy(n=24, dtype=torch.float64)
    policy, history = train(task, batch_size=8, easy_phase=0.5)
    lean = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([lean], lr=0.02)
    generator, weights = torch.Generator().manual_seed(0), torch.full((3,), 1 / 3, dtype=torch.float64)
    easy, step, frozen = raven_dpo.unanimous(task.rewards), 0, weights.clone()
    for _ in range(2):
        for batch in torch.randperm(24, generator=generator).split(8):
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * (1 + math.cos(math.pi * step / 6)) / 2
            log_p = lean.log_softmax(-1)
            losses, to_weights = [], torch.zeros(3, dtype=torch.float64)
            for i in batch.tolist():
                counts = [(task.pairs.tokens[i, k, 1:] == 1).sum() for k in range(2)]
                ratios = [n * log_p[0] + (5 - n) * log_p[1] - 5 * math.log(0.5) for n in counts]
                if step < 3:
                    c = int(task.rewards[i, 1].mean() > task.rewards[i, 0].mean())
                    margin = 0.1 * (ratios[c] - ratios[1 - c])
                    losses.append(easy[i] * -nn.functional.logsigmoid(margin))
                else:
                    detached = torch.stack(ratios).detach()[None]
                    to_weights += torch.tensor(
                        naive_dpo_r(detached, task.rewards[i : i + 1], weights, "paper")[2]
                    )
                    losses.append(
                        raven_dpo.dpo_r_loss(torch.stack(ratios)[None], task.rewards[i : i + 1], weights)
                    )
            optimizer.zero_grad()
            (sum(losses) / len(batch)).backward()
            optimizer.step()
            if step >= 3:
                moved = (weights - 0.5 * to_weights / len(batch)).clamp(min=1e-6)
                weights = moved / moved.sum()
            else:
                assert torch.equal(weights, frozen)
            step += 1
    torch.testing.assert_close(policy.lean.detach(), lean.detach())
    assert history[0]["weights"] == [1 / 3] * 3 and history[-1]["step"] == 5
    assert history[-1]["weights"] == pytest.approx(weights.tolist()) and weights.max() > 0.34


@pytest.mark.parametrize("easy_phase", [0.0, 1.0])
def test_micro_batches_give_the_same_policy_and_weights(easy_phase):
    task = toy(n=50, dtype=torch.float64)
    whole, history = train(task, easy_phase=easy_phase, batch_size=16)
    parts, other = train(task, easy_phase=easy_phase, batch_size=16, micro_batch=3)
    torch.testing.assert_close(whole.lean, parts.lean)
    assert history[-1]["weights"] == pytest.approx(other[-1]["weights"])
    assert (max(history[-1]["weights"]) > 0.34) == (easy_phase == 0)


def test_score_by_hand():
    """Two wins, a tie and a loss; KL and length over the sampled tokens; samples side by side."""
    task = toy()
    policy = copy.deepcopy(task.policy)
    policy.lean.data = torch.tensor([math.log(3.0), 0.0])
    written = {"before": ["11111", "12222", "22222", "11112"], "after": ["11112", "11222", "11111", "11112"]}

    def write(when):
        return lambda prompts: [[int(token) for token in text] for text in written[when]]

    task.policy.write, policy.write = write("before"), write("after")
    task.prompts["test"] = ["p", "q", "r", "s"]
    scores = figures(policy, task)
    assert scores["win_rate"] == (0 + 1 + 1 + 0.5) / 4
    spread = math.sqrt(sum((win - 0.625) ** 2 for win in (0, 1, 1, 0.5)) / 3)
    assert scores["win_interval"] == pytest.approx(1.96 * spread / 2)
    assert scores["gold_reward_before"] == pytest.approx(10 / 4) and scores["gold_reward"] == pytest.approx(
        15 / 4
    )
    assert scores["kl"] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)
    assert scores["length"] == 5 and scores["well_formed"] == 1 and scores["well_formed_before"] == 0.75
    assert scores["samples"][1] == dict(
        prompt="q", before="12222", after="11222", gold_before=1.0, gold_after=2.0
    )


# ------------------------------------------------------------------------------------------------- the script


@pytest.fixture
def few_prompts(monkeypatch, tmp_path):
    """The real task with fewer prompts and a hardly trained policy."""
    known = alignment.target_prompts()
    few = {"train": known["train"][:40], "val": known["val"][:10], "test": known["test"][:20]}
    monkeypatch.setattr(alignment, "target_prompts", lambda: few)
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    return "--encoder-steps 10 --epochs 1 --seeds 0 --device cpu".split()


def test_the_script_end_to_end(few_prompts, capsys):
    rows = {}
    for supervision in ("one", "mean", "raven", "gold"):
        [row] = raven_dpo.main([*few_prompts, "--supervision", supervision, "--out", "a"])
        assert json.loads(capsys.readouterr().out) == row
        rows[supervision] = row
        assert (row["method"], row["task"], row["seed"]) == ("raven_dpo", "reviews-dpo", 0)
        assert row["n_test"] == 20 and 0 <= row["win_rate"] <= 1 and row["kl"] > 0
        assert len(row.get("policies", [row])[0]["samples"]) == 3
        assert row["reward_models"] == ["books", "films", "games"] and len(row["reward_accuracy"]) == 3
        policies = row.get("policies", [row])
        assert all(len(policy["weights"]) == (3 if supervision == "raven" else 1) for policy in policies)
    assert store.read_rows(data.Path("a/raven_dpo.jsonl")) == list(rows.values())
    assert len(rows["one"]["policies"]) == 3 and "policies" not in rows["mean"]
    wins = [policy["win_rate"] for policy in rows["one"]["policies"]]
    assert len({policy["history"][-1]["chosen"] for policy in rows["one"]["policies"]}) == 3
    assert rows["one"]["win_rate"] == pytest.approx(sum(wins) / 3)
    same = ("gold_reward_before", "reward_accuracy", "easy_fraction", "n_pairs")
    assert all(rows[s][key] == rows["gold"][key] for s in rows for key in same)
    [again] = raven_dpo.main([*few_prompts, "--out", "b"])
    assert {**again, "seconds": 0} == {**rows["raven"], "seconds": 0}
    [other] = raven_dpo.main([*few_prompts, "--out", "b", "--form", "code"])
    assert other["flags"]["form"] == "code" and other["kl"] != again["kl"]


@pytest.mark.parametrize("supervision", ["one", "mean", "raven", "gold"])
def test_what_each_policy_is_trained_on(supervision, monkeypatch):
    """Rewards, pairs that count, easy phase, recipe; and what the row says of the reward models, by hand."""
    task, calls, seeds = toy(n=40), [], []
    task.gold[:3] = 1.0  # three ties
    monkeypatch.setattr(alignment, "prepare", lambda name, seed, *_: seeds.append(seed) or task)

    def recorder(policy, **given):
        assert policy is not task.policy
        calls.append(given)
        return [{"weights": [1.0]}]

    monkeypatch.setattr(raven_dpo, "train_policy", recorder)
    flags = "--epochs 7 --lr 0.25 --ceiling-lr 0.5 --batch-size 5 --micro-batch 2 --beta 0.3"
    flags += " --easy-phase 0.6 --weight-lr 4"
    [row] = raven_dpo.main(["--seeds", "9", "--supervision", supervision, *flags.split(), "--form", "code"])
    rewards, gold = task.rewards, task.gold[..., None]
    expected = {
        "one": [rewards[..., m : m + 1] for m in range(3)],
        "mean": [rewards.sum(-1, keepdim=True) / 3],
        "raven": [rewards],
        "gold": [gold],
    }[supervision]
    own = {"easy_phase": 1.0, "weight_lr": 0.0, "form": "paper"}
    if supervision == "raven":
        own = {"easy_phase": 0.6, "weight_lr": 4.0, "form": "code"}
    lr = 0.5 if supervision == "gold" else 0.25
    recipe = {"epochs": 7, "lr": lr, "batch_size": 5, "micro_batch": 2, "beta": 0.3} | own
    assert len(calls) == len(expected) and seeds == [9]
    for given, judge in zip(calls, expected):
        torch.testing.assert_close(given.pop("rewards"), judge)
        better = judge[:, 0] > judge[:, 1]
        same = (better == better[:, :1]).all(1) & (judge[:, 0] != judge[:, 1]).all(1)
        assert torch.equal(given.pop("keep"), same) and given.pop("pairs") is task.pairs
        assert given == recipe | {"seed": 9, "compiled": False}
    assert row["flags"] == recipe | {"encoder_steps": models.ENCODER_STEPS, "policy": None, "compile": "auto"}
    decided = task.gold[:, 0] != task.gold[:, 1]
    right = (rewards[:, 0] > rewards[:, 1]) == (task.gold[:, :1] > task.gold[:, 1:])
    assert row["reward_accuracy"] == pytest.approx(right[decided].double().mean(0).tolist())
    assert row["n_pairs"] == decided.sum() < 40 and len(set(row["reward_accuracy"])) == 3
    assert row["easy_fraction"] == raven_dpo.unanimous(rewards).double().mean()
    assert 0 < abs(row["win_rate_before"] - 0.5) < 0.15  # other draws than before, of the same policy
    assert row["code"] == "-".join(map(store.code_hash, (raven_dpo.__file__, alignment.__file__)))


def test_a_row_is_not_computed_again(few_prompts, monkeypatch):
    raven_dpo.main(few_prompts)
    monkeypatch.setattr(alignment, "prepare", None)
    assert len(raven_dpo.main(few_prompts)) == 1
    with pytest.raises(TypeError):
        raven_dpo.main([*few_prompts, "--lr", "0.1"])


def test_divergence_is_bad_input():
    with pytest.raises(data.InputError, match="diverged"):
        train(toy(), lr=math.inf)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task", "reviews"], "reviews-dpo"),
        (["--supervision", "two"], "'one', 'mean', 'raven', 'gold'"),
        (["--task", "hh-helpful-harmless"], "--policy"),
        (["--policy", "name"], "a policy of its own"),
        (["--easy-phase", "2"], "--easy-phase"),
        (["--device", "cuda:99"], "no device 'cuda:99'"),
        (["--out", __file__], "exists"),
        (
            ["--task", "hh-helpful-harmless", "--policy", "x", "--data-dir", "nowhere"],
            "no helpful-base/*.jsonl",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, monkeypatch, capsys):
    import runpy
    import sys

    path = str(ROOT / "methods" / "raven_dpo.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(path, run_name="__main__")
    printed = capsys.readouterr()
    assert exit.value.code == 2 and printed.out == ""
    assert len(printed.err.splitlines()) == 1 and message in printed.err
