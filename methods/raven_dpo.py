"""DPO-R: align a policy with several weak reward models, and learn how far to trust each (RAVEN).

Jeon et al. 2025, "Weak-to-Strong Generalization under Distribution Shifts" (RAVEN), arXiv 2510.21332, third
demonstration. Weak reward models compare pairs of responses from a domain that none of them knows. The strong
model is a policy, trained on their preferences by DPO (Rafailov et al. 2023, arXiv 2305.18290): nothing new
is sampled while it trains. The weighted mean of the rewards says which response of a pair is preferred, and
how clearly; how clearly enters the loss, and so the weights descend it together with the policy:

    r(y) = sum_m theta_m r_m(y)            the response with the larger r is the chosen one, y_c
    b_c = sigmoid(r(y_c) - r(y_r)),    b_r = 1 - b_c
    L = mean_i -log sigmoid(b_c log[pi(y_c)/ref(y_c)] - b_r log[pi(y_r)/ref(y_r)])                    (Eq. 24)
    theta <- max(theta - eta_W dL/dtheta, 1e-6),    theta <- theta / sum(theta)                       (Eq. 13)

First, in the easy phase, the weights stay equal and the loss is plain DPO on the *easy* pairs, which all
reward models rank alike: -log sigmoid(beta (l_c - l_r)). The mean is over the full batch in either phase.

    paper | here               shape
    pi    | policy             a module, tokens (N, L) -> logits (N, L, V); ref: the policy before training
    l     | log_ratios         (N, 2)      log[pi(y)/ref(y)] of both responses, sums over their tokens
    r_m   | rewards            (N, 2, M)   Bradley-Terry rewards, fixed
    theta | weights            (M,)        start at 1/M and stay on the simplex
    eta_W | weight_lr                      plain SGD, constant rate

What moves the weights: with m the argument of the sigmoid in Eq. 24 and D_j = r_j(y_c) - r_j(y_r),

    dL/dtheta_j = mean_i -sigmoid(-m) (l_c + l_r) b_c b_r D_j

which is zero where policy = reference. In DPO both log-ratios often fall. Where l_c + l_r < 0 a pair pushes
down the weights of the reward models that agree with its choice, most the clearest; then the division in
Eq. 13 takes relatively most from the smallest weight. Nothing in this asks who is right.

Differences from the paper and its code:
- The code has -log sigmoid(b_c (l_c - l_r)): `--form code`. In dL/dtheta l_c - l_r then stands for l_c + l_r;
  where it is positive a pair pulls weight *towards* the clearest. Eq. 24 is the default.
- The easy phase is a share of the steps, not of the epochs, which are few.
- Beside it: plain DPO on the preferences of one reward model, of the mean of all, of the truth (the ceiling).
- A small transformer on generated reviews, where the truth is known. `--policy`: any Hugging Face model.
As in the paper, rewards are not normalised: a reward model with a larger scale has more say, and more pull.

    python methods/raven_dpo.py --supervision raven

win rate .689 over 5 seeds; 70 s on 2 CPU cores, 150 s with pretraining and fine-tuning of the policy.
"""

import argparse
import copy
import itertools
import json
import math
import sys
import time
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1]))  # data.py and the others stand in the folder above

import alignment
import data
import fast
import models
import store


def own_logits(logits: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """Logits (N, L, V), response bool (N, L), never True at 0 -> those that predict its K tokens, (K, V), in
    float32 at least. Prompt and padding are gone from here on."""
    own = logits[:, :-1][response[:, 1:]]
    return own.to(torch.promote_types(own.dtype, torch.float32))


def response_log_probs(
    logits: torch.Tensor, tokens: torch.Tensor, response: torch.Tensor, cross_entropy=F.cross_entropy
) -> torch.Tensor:
    """log pi(response | prompt), in nats, summed over the response's tokens.

    logits (N, L, V) of what follows each token; tokens (N, L); response bool (N, L); cross_entropy: F's,
    compiled or not -> (N,).
    """
    log_probs = -cross_entropy(own_logits(logits, response), tokens[response], reduction="none")
    return log_probs.new_zeros(response.shape).masked_scatter(response, log_probs).sum(1)


def token_kl(logits: torch.Tensor, reference_logits: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """KL(pi || ref) of the next token, in nats, at each of the K tokens of responses that pi has written.

    logits of pi and of ref (N, L, V), response bool (N, L) -> (K,).
    """
    log_p, log_q = (own_logits(each, response).log_softmax(-1) for each in (logits, reference_logits))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def unanimous(rewards: torch.Tensor) -> torch.Tensor:
    """Easy pairs, which all M reward models rank alike: (N, 2, M) -> bool (N,)."""
    first, second = rewards.unbind(1)
    return (first > second).all(1) | (first < second).all(1)


def chosen_first(log_ratios: torch.Tensor, combined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both (N, 2), with the response of the larger combined reward in front."""
    order = combined.argsort(1, descending=True)
    return log_ratios.gather(1, order), combined.gather(1, order)


def dpo_loss(
    log_ratios: torch.Tensor, rewards: torch.Tensor, weights: torch.Tensor, keep: torch.Tensor, beta: float
) -> torch.Tensor:
    """-log sigmoid(beta (l_c - l_r)), the mean over all N, of which `keep` counts.

    log_ratios (N, 2); rewards (N, 2, M); weights (M,), which get no gradient; keep bool (N,) -> scalar.
    """
    ratios, _ = chosen_first(log_ratios, rewards @ weights)
    return (keep * -F.logsigmoid(beta * (ratios[:, 0] - ratios[:, 1]))).mean()


def dpo_r_loss(
    log_ratios: torch.Tensor, rewards: torch.Tensor, weights: torch.Tensor, form: str = "paper"
) -> torch.Tensor:
    """Eq. 24 (form "paper") or -log sigmoid(b_c (l_c - l_r)) ("code"). Gradients reach ratios and weights.

    log_ratios (N, 2); rewards (N, 2, M); weights (M,) -> scalar, in nats.
    """
    ratios, combined = chosen_first(log_ratios, rewards @ weights)
    b_chosen = torch.sigmoid(combined[:, 0] - combined[:, 1])
    b_rejected = 1 - b_chosen if form == "paper" else b_chosen
    return -F.logsigmoid(b_chosen * ratios[:, 0] - b_rejected * ratios[:, 1]).mean()


def project(weights: torch.Tensor) -> torch.Tensor:
    """Clamp from below and renormalise, the second line of Eq. 13: (M,) -> (M,) on the simplex."""
    weights = weights.clamp(min=1e-6)
    return weights / weights.sum()


def log_probs_of_pairs(
    policy, pairs: alignment.Sequences, chosen: torch.Tensor, cross_entropy=F.cross_entropy
) -> torch.Tensor:
    """The policy's log-probabilities of the n chosen pairs, (n, 2)."""
    tokens, response = (part[chosen].flatten(0, 1) for part in pairs)
    length = response.shape[1] - int(response.any(0).flip(0).int().argmax())  # without mere padding
    tokens, response = tokens[:, :length], response[:, :length]
    return response_log_probs(policy(tokens), tokens, response, cross_entropy).view(-1, 2)


def train_policy(
    *, policy, pairs, rewards, keep, epochs, lr, batch_size, micro_batch, seed, beta, easy_phase,
    weight_lr, form, compiled=False
) -> list[dict]:
    """Trains the policy in place (Adam, cosine to 0 over all steps) and, after the easy phase, the weights.

    pairs (N, 2, L) of tokens; rewards (N, 2, M); keep bool (N,): the pairs that count in the easy phase. With
    easy_phase = 1 this is plain DPO. A batch goes through the policy `micro_batch` pairs at a time; compiled:
    their log-probabilities by torch.compile.
    Returns, at every tenth step and the last: step, weights after it, the batch's mean l_c and l_r before it.
    """
    generator, optimizer = torch.Generator().manual_seed(seed), torch.optim.Adam(policy.parameters(), lr=lr)
    steps = epochs * math.ceil(len(rewards) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    weights = torch.full_like(rewards[0, 0], 1 / rewards.shape[-1]).requires_grad_()
    cross_entropy = fast.compiled(F.cross_entropy, compiled)
    with torch.no_grad():
        parts = torch.arange(len(rewards)).split(micro_batch)
        reference = torch.cat([log_probs_of_pairs(policy, pairs, part) for part in parts])
    history, bar = [], tqdm(total=steps, desc="raven_dpo", disable=None, leave=False)
    for epoch in range(epochs):
        order = torch.randperm(len(rewards), generator=generator).to(rewards.device)
        for step, batch in enumerate(order.split(batch_size), start=epoch * steps // epochs):
            in_easy_phase = step < easy_phase * steps
            optimizer.zero_grad()
            weights.grad = torch.zeros_like(weights)
            ratios = []
            for part in batch.split(micro_batch):
                log_ratios = log_probs_of_pairs(policy, pairs, part, cross_entropy) - reference[part]
                if in_easy_phase:
                    loss = dpo_loss(log_ratios, rewards[part], weights, keep[part], beta)
                else:
                    loss = dpo_r_loss(log_ratios, rewards[part], weights, form)
                (loss * len(part) / len(batch)).backward()
                ratios.append(log_ratios.detach())
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                ratios, _ = chosen_first(torch.cat(ratios), rewards[batch] @ weights)
                if not in_easy_phase:
                    weights.copy_(project(weights - weight_lr * weights.grad))
            if step % 10 == 0 or step == steps - 1:
                state = {"step": step, "weights": weights.tolist()}
                history.append(state | dict(zip(("chosen", "rejected"), ratios.mean(0).tolist())))
            bar.update()
    optimizer.zero_grad()  # frees the gradients
    if not all(weight.isfinite().all() for weight in policy.parameters()):
        raise data.InputError("training diverged: lower --lr")
    return history


@torch.no_grad()
def score(policy, task: alignment.Alignment, before: alignment.Responses, after: alignment.Responses) -> dict:
    """The figures of a row, of responses to the same n held-out prompts before and after training.

    A win is a higher gold reward than before, a tie half a win; win_interval is the half-width of its 95 %
    interval over prompts. kl is in nats per token, the mean over the tokens that the trained policy wrote.
    """
    figures = {"n_test": len(after.prompts)}
    for suffix, responses in (("_before", before), ("", after)):
        figures["gold_reward" + suffix] = responses.gold.double().mean().item()
        figures["length" + suffix] = responses.sequences.response.double().sum(1).mean().item()  # in tokens
        figures["well_formed" + suffix] = responses.well_formed.double().mean().item()
    wins = (after.gold > before.gold).double() + 0.5 * (after.gold == before.gold)
    batches = zip(*(part.to(task.rewards.device).split(policy.read_batch) for part in after.sequences))
    kl = [token_kl(policy(tokens), task.policy(tokens), response) for tokens, response in batches]
    samples = zip(after.prompts, before.texts, after.texts, before.gold.tolist(), after.gold.tolist())
    keys = ("prompt", "before", "after", "gold_before", "gold_after")
    return figures | {
        "win_rate": wins.mean().item(),
        "win_interval": 1.96 * wins.std().item() / math.sqrt(len(wins)),
        "kl": torch.cat(kl).double().mean().item(),
        "samples": [dict(zip(keys, sample)) for sample in itertools.islice(samples, 3)],
    }


def parse_args(argv=None):
    # Without its usage, which an error would print before its one line.
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__.splitlines()[0])
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add, number = parser.add_argument, models.number
    add("--task", nargs="+", choices=alignment.TASKS, default=alignment.TASKS[:1], help="see alignment.py")
    add("--seeds", nargs="+", type=number(int, 0), default=[0, 1, 2, 3, 4], help="a row per task and seed")
    add("--supervision", choices=["one", "mean", "raven", "gold"], default="raven", help="who prefers")
    add("--form", choices=["paper", "code"], default="paper", help="of the loss of DPO-R")
    add("--policy", help="Hugging Face name or folder, for hh-helpful-harmless")
    add("--data-dir", help="folder of HH-RLHF, which is else downloaded")
    add("--device", type=models.pick_device, default="auto", help="auto: CUDA if there is any, else cpu")
    add("--compile", choices=["auto", "on", "off"], default="auto", help="fast.py; auto: with CUDA")
    add("--out", default="runs", help="folder of the rows, raven_dpo.jsonl")
    add("--encoder-steps", type=number(int, 1), default=models.ENCODER_STEPS, help="to pretrain the policy")
    # Chosen on validation prompts: README, "How the defaults were chosen".
    add("--epochs", type=number(int, 1), default=3, help="over the pairs")
    add("--lr", type=number(float, 0), default=1e-4, help="Adam's, of the policy")
    add("--ceiling-lr", type=number(float, 0), default=2e-4, help="with gold: true preferences bear more")
    add("--batch-size", type=number(int, 1), default=32, help="pairs per step")
    add("--micro-batch", type=number(int, 1), default=32, help="pairs at a time: less memory, same result")
    add("--beta", type=number(float, 0), default=0.2, help="of plain DPO; the paper searches .1, .2, .5")
    add("--easy-phase", type=number(float, 0, 1), default=0.5, help="share of the steps; paper: .1, .2, .5")
    add("--weight-lr", type=number(float, 0), default=0.1, help="eta_W; the paper searches 1e-6 to 1e-3")
    return parser.parse_args(argv)


def main(argv=None) -> list[dict]:
    """Prints, saves and returns one row per task and seed."""
    args, rows = parse_args(argv), []
    recipe = {key: getattr(args, key) for key in ("epochs", "lr", "batch_size", "micro_batch", "beta")}
    plain = {"easy_phase": 1.0, "weight_lr": 0.0, "form": "paper"}  # an easy phase that never ends
    recipe |= {key: getattr(args, key) if args.supervision == "raven" else plain[key] for key in plain}
    recipe["lr"] = args.ceiling_lr if args.supervision == "gold" else args.lr
    for name, seed in itertools.product(args.task, args.seeds):
        identity = {
            "method": Path(__file__).stem,
            "task": name,
            "data": args.data_dir and data.fingerprint(Path(args.data_dir)),
            "seed": seed,
            "supervision": args.supervision,
            "torch": torch.__version__,
            "device": args.device,
            "code": alignment.code_hash(__file__),
            "flags": recipe | {"encoder_steps": args.encoder_steps, "policy": alignment.name(args.policy)}
            | {"compile": args.compile},
        }
        row = store.find_row(args.out, identity)
        if row is None:
            task = alignment.prepare(name, seed, args.data_dir, args.device, args.encoder_steps, args.policy)
            rewards, gold = task.rewards, task.gold[..., None]
            judges = {"one": rewards.split(1, -1), "mean": [rewards.mean(-1, keepdim=True)]}
            judges |= {"raven": [rewards], "gold": [gold]}
            before = {split: alignment.respond(task.policy, task, split, "before") for split in task.prompts}
            results = []  # of one policy, or of one for each reward model
            for judge in judges[args.supervision]:
                policy, start = copy.deepcopy(task.policy), time.perf_counter()
                given = {"policy": policy, "pairs": task.pairs, "rewards": judge, "keep": unanimous(judge)}
                given["compiled"] = fast.wanted(args.compile, args.device)
                history = train_policy(**given, seed=seed, **recipe)
                seconds = round(time.perf_counter() - start, 2)
                after = {split: alignment.respond(policy, task, split, "after") for split in task.prompts}
                scores = {split: score(policy, task, before[split], after[split]) for split in after}
                own = {"weights": history[-1]["weights"], "history": history, "seconds": seconds}
                results.append(scores["test"] | own | {"val": scores["val"]["win_rate"]})
            again = alignment.respond(task.policy, task, "test", "after")  # what chance makes of no training
            correct = (rewards.argmax(1) == gold.argmax(1))[unanimous(gold)].double()  # without ties
            row = identity | {"kind": "policy", "reward_models": task.reward_models}
            row |= {"reward_accuracy": correct.mean(0).tolist(), "n_pairs": len(correct)}
            row |= {"easy_fraction": unanimous(rewards).double().mean().item()}
            row |= {"win_rate_before": score(task.policy, task, before["test"], again)["win_rate"]}
            if len(results) == 1:
                row |= results[0]
            else:
                figures = [key for key, value in results[0].items() if isinstance(value, int | float)]
                row |= {key: mean(result[key] for result in results) for key in figures}
                row["policies"] = results
            store.save_row(args.out, row)
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


if __name__ == "__main__":
    try:
        main()
    except (data.InputError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2)
