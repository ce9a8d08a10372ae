"""Alignment: policies that write responses, reward models that compare them, and what is true.

    reviews-dpo           The transformer of text.py writes reviews of phones, kitchenware and hotels; its
                          reward models know books, films and games. The truth: favourable, well-formed.
    hh-helpful-harmless   Any Hugging Face causal model, the preferences of HH-RLHF; its reward models know
                          helpfulness. The truth: harmlessness, as far as labelled pairs teach it.

A policy is a module with tokens (N, L) -> logits (N, L, V), the methods `prompt_ids`, `write` and `decode`,
and the numbers `end` (the token after a response), `longest` (response, in tokens), `read_batch` and
`write_batch` (sequences at a time). Padding is on the right, where no real token of a causal model sees it.
"""

import copy
import itertools
import json
import math
import random
import re
import time
from collections.abc import Callable
from statistics import mean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import data
import models
import store
import teachers
from tasks import text

NUM_TEST, NUM_VAL = 600, 280  # prompts; of reviews-dpo 2,000 are left for training
SOURCE_PAIRS = 200  # of its own domain, labelled, for each reward model of reviews-dpo
# Of sampling for the scores, before and after training: far from the seeds of runs, which sample the pairs.
SCORE_SEEDS = {"val": (1_000_001, 1_000_002), "test": (1_000_003, 1_000_004)}


class Alignment(NamedTuple):
    """A policy, pairs of responses in the target domain, and who judges them."""

    policy: nn.Module  # before training
    pairs: tuple[torch.Tensor, torch.Tensor]  # tokens and response as of `sample`, but (N, 2, L)
    rewards: torch.Tensor  # (N, 2, M), by M reward models
    gold: torch.Tensor  # (N, 2), the truth
    reward_models: list[str]  # their M names
    prompts: dict[str, list[str]]  # of "val" and "test", held out
    judge: Callable  # prompts, responses (lists of N) -> gold reward (N,), well-formed (N,): 0 or 1


def collate(prompts: list[list[int]], responses: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """N prompts and N responses as token numbers -> both as tokens (N, L), padded on the right with 0, and
    which of them are the response's, bool (N, L)."""
    rows = [torch.tensor(prompt + response) for prompt, response in zip(prompts, responses)]
    masks = [torch.arange(len(row)) >= len(prompt) for row, prompt in zip(rows, prompts)]
    pad = nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(masks, batch_first=True)


@torch.no_grad()
def sample(policy: nn.Module, prompts: list[str], seed: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """A response to each of N prompts, at temperature 1, with the token that ends it; the seed fixes them ->
    tokens and response as of `collate`, and the responses in words."""
    ids, responses = [policy.prompt_ids(prompt) for prompt in prompts], []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in tqdm(range(0, len(ids), policy.write_batch), "sampling", disable=None, leave=False):
            written = [row[: policy.longest] for row in policy.write(ids[start : start + policy.write_batch])]
            responses += [row[: (row + [policy.end]).index(policy.end) + 1] for row in written]
    return *collate(ids, responses), list(map(policy.decode, responses))


@torch.no_grad()
def respond(policy: nn.Module, task: Alignment, split: str, before: dict | None = None) -> dict:
    """What the policy writes for the N "val" or "test" prompts, as {name: float64}. Of each response (N,):
    gold reward, length in tokens, whether it is well-formed. After training, of which `before` is what was
    returned before: whether the gold reward is higher (1) or the same (1/2); and of each of all tokens (K,)
    the KL to the policy before, in nats."""
    prompts = task.prompts[split]
    tokens, response, words = sample(policy, prompts, SCORE_SEEDS[split][before is not None])
    gold, well_formed = task.judge(prompts, words)
    measured = {"gold_reward": gold.double(), "length": response.sum(1), "well_formed": well_formed}
    if before:
        won = torch.heaviside(measured["gold_reward"] - before["gold_reward"], torch.tensor(0.5).double())
        batches = zip(*(part.to(task.gold.device).split(policy.read_batch) for part in (tokens, response)))
        kl = torch.cat([token_kl(policy(x), task.policy(x), own) for x, own in batches])
        measured |= {"win_rate": won, "kl": kl}
    return {name: each.double() for name, each in measured.items()}


def token_kl(logits: torch.Tensor, reference_logits: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """KL(pi || ref) in nats at each of the K tokens that pi wrote: logits (N, L, V), bool (N, L) -> (K,)."""
    own = (each[:, :-1][response[:, 1:]] for each in (logits, reference_logits))
    log_p, log_q = (each.log_softmax(-1, dtype=torch.float32) for each in own)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)


def score(task: Alignment, policy: nn.Module, before: dict[str, dict]) -> dict[str, float]:
    """The figures of a trained policy: means over test prompts, kl over their tokens; win_interval is the
    half-width of the 95 % interval over prompts. before: what `respond` said of "val" and "test"."""
    val, test = (respond(policy, task, split, before[split]) for split in ("val", "test"))
    interval = 1.96 * test["win_rate"].std().item() / len(test["win_rate"]) ** 0.5
    figures = {"win_interval": interval, "val": val["win_rate"].mean().item()}
    return figures | {name: each.mean().item() for name, each in test.items()}


def report(task: Alignment, args, identity: dict, train: Callable, own: dict, easy: torch.Tensor) -> None:
    """Trains a policy, or with --supervision one three, scores, prints and saves the row, of means over
    them. `train` is a train_policy, `own` are its own arguments; easy bool (N,): pairs that all reward models
    rank alike."""
    rewards, gold = task.rewards, task.gold[..., None]
    judges = {"one": rewards.split(1, -1), "mean": [rewards.mean(-1, keepdim=True)]}
    judges |= {"raven": [rewards], "gold": [gold]}
    lr = args.ceiling_lr if args.supervision == "gold" else args.lr
    per_epoch = math.ceil(len(rewards) / args.batch_size)
    epochs = math.ceil(args.steps / per_epoch)
    before, results = {split: respond(task.policy, task, split) for split in SCORE_SEEDS}, []
    frozen = {id(each): each for each in task.policy.parameters() if not each.requires_grad}
    for judge in judges[args.supervision]:
        begun, policy = time.perf_counter(), copy.deepcopy(task.policy, {**frozen})  # which both share
        optimizer, schedule = models.make_optimizer("adam", policy, lr, epochs * per_epoch)
        recipe = (epochs, optimizer, schedule, args.batch_size, args.seed)
        history = train(policy, task.pairs, judge, *recipe, **own)
        seconds = round(time.perf_counter() - begun, 2)
        if not all(weight.isfinite().all() for weight in policy.parameters()):
            raise data.InputError("training diverged: lower --lr")
        results.append(score(task, policy, before) | {"seconds": seconds})
    correct = (rewards.argmax(1) == gold.argmax(1))[task.gold[:, 0] != task.gold[:, 1]].double()  # no ties
    row = {"kind": "policy", "setting": None, "reward_models": task.reward_models}
    row |= {"reward_accuracy": correct.mean(0).tolist(), "n_pairs": len(correct)}
    row |= {"easy_fraction": easy.double().mean().item(), "n_test": len(task.prompts["test"])}
    row |= {f"{name}_before": each.mean().item() for name, each in before["test"].items()}
    row |= {"win_rate_before": score(task, task.policy, before)["win_rate"]}  # what chance makes of nothing
    row |= {name: mean(each[name] for each in results) for name in results[0]}
    if len(results) == 1:
        row |= {"weights": history[-1]["weights"], "history": history}
    print(json.dumps(store.save_row(args.out, identity, row)), flush=True)


def all_prompts(domains: list[str]) -> list[str]:
    """Every product, aspect and (favourable) wish: "kettle lid solid :", "kettle lid not leaky :"."""
    found = []
    for place in map(text.DOMAINS.get, domains):
        wishes = place.praise + text.PRAISE
        wishes += [f"{no} {word}" for no in text.NEGATIONS for word in place.blame + text.BLAME]
        found += map(" ".join, itertools.product(place.products, place.aspects, wishes, ":"))
    return found


def target_prompts() -> dict[str, list[str]]:
    """All prompts of the target domains in three parts, the same ones for all seeds."""
    found, held_out = all_prompts(text.TARGET), NUM_TEST + NUM_VAL
    random.Random("prompts").shuffle(found)
    return {"test": found[:NUM_TEST], "val": found[NUM_TEST:held_out], "train": found[held_out:]}


def written(prompt: str, rng: random.Random) -> str:
    """A review by the generator, in any mood, whose first statement grants the wish or denies it:
    to "kettle lid not leaky :" it begins with "not leaky lid" or "leaky lid"."""
    aspect, *negation, word = prompt.split()[1:-1]
    domain = text.domain(prompt)
    said = text.review([domain], rng)[0].split()[2:]
    refused = said[0] in text.NEGATIONS
    if (said[refused] in text.DOMAINS[domain].praise + text.PRAISE) == refused:  # not granted
        negation = [] if negation else [rng.choice(text.NEGATIONS)]
    return " ".join([*negation, word, aspect, *said[refused + 2 :]])


def gold_reward(prompt: str, response: str) -> tuple[float, bool]:
    """How favourable the response is, in [-1, 1], and whether it is well-formed: one `written` might return.

    A statement counts 1 if it is well-formed and in favour of the product, else -1, as does each that is
    missing of seven; the reward is their mean. A well-formed statement is on an aspect of the product in a
    word of its domain, the first on the asked aspect in the word of the wish, and "and" or "but" before it is
    in its place."""
    asked, *_, wish = prompt.split()[1:-1]
    place = text.DOMAINS[text.domain(prompt)]
    praise, blame = place.praise + text.PRAISE, place.blame + text.BLAME
    statement = rf"(?:({'|'.join(text.NEGATIONS)}) )?(\w+) (\w+)|.*"
    parts = re.split(" (,|and|but) ", response.removesuffix(" ."))
    minds, sound = [], []
    for joint, part in zip([None, *parts[1::2]], parts[::2]):
        negation, word, aspect = re.fullmatch(statement, part).groups()
        minds.append((word in praise) != bool(negation) if word in praise + blame else None)
        on_topic = aspect in place.aspects if joint else (word, aspect) == (wish, asked)
        free = joint in (None, ",") or minds[-2] is None  # nothing to be joined to
        right_joint = free or (joint == "and") == (minds[-1] == minds[-2])
        sound.append(minds[-1] is not None and on_topic and right_joint)
    sound[-1] = sound[-1] and response.endswith(" .")
    good = sum(mind and right for mind, right in zip(minds, sound) if mind)
    return 2 * good / max(len(sound), text.STATEMENTS) - 1, len(sound) == text.STATEMENTS and all(sound)


def judge_reviews(prompts: list[str], responses: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """gold_reward of each, (N,) and (N,)."""
    return torch.tensor(list(map(gold_reward, prompts, responses))).unbind(1)


class ReviewPolicy(text.CausalTransformer):
    read_batch, write_batch = 300, 600
    end, longest = text.END, 40  # a well-formed response has up to 29 tokens

    def forward(self, tokens):
        return super().forward(tokens).transpose(1, 2)

    def prompt_ids(self, prompt: str) -> list[int]:
        return [text.BEGIN, *map(text.TOKENS.__getitem__, prompt.split())]

    def decode(self, ids: list[int]) -> str:
        return " ".join(text.WORDS[i - 3] if i > text.END else "?" for i in ids if i != text.END)

    def write(self, prompts: list[list[int]]) -> list[list[int]]:
        """Samples token by token. Keys and values of the past are kept: the same logits as `forward`'s."""
        rows = [torch.tensor(ids, device=self.position.weight.device) for ids in prompts]
        tokens = F.pad(nn.utils.rnn.pad_sequence(rows, batch_first=True), (0, self.longest))
        past = [[] for _ in self.blocks]
        for i in range(1, tokens.shape[1]):
            x = self.token(tokens[:, i - 1]) + self.position.weight[i - 1]
            for block, seen in zip(self.blocks, past):
                q, k, v = block.qkv(block.norm1(x)).unflatten(-1, (3, block.heads, 1, -1)).unbind(1)
                seen[:] = [torch.cat(pair, dim=2) for pair in zip(seen, (k, v))] if seen else [k, v]
                x = x + block.out(F.scaled_dot_product_attention(q, *seen).flatten(1))
                x = x + block.mlp(block.norm2(x))
            drawn = torch.multinomial(self.head(x).softmax(-1), 1)[:, 0]
            tokens[:, i] = torch.where(tokens[:, i] == text.PAD, drawn, tokens[:, i])  # not a longer prompt
            if (tokens == text.END).any(1).all():
                break
        return [row[len(own) :] for row, own in zip(tokens.tolist(), prompts)]


def fine_tune(steps: int, device: str) -> dict[str, torch.Tensor]:
    """Weights of the policy before alignment: the pretrained transformer, after reading prompts with reviews,
    of all domains and in any mood, without the held-out prompts."""
    model, rng = text.CausalTransformer().to(device), random.Random("fine-tuning")
    model.load_state_dict(models.pretrained("transformer", steps, device))
    chosen = rng.choices(all_prompts(text.SOURCE) + target_prompts()["train"], k=steps * 3 // 2 * 32)
    tokens = text.encode([f"{prompt} {written(prompt, rng)}" for prompt in chosen]).to(device)
    following = tokens[:, 1:].masked_fill(tokens[:, 1:] == text.PAD, -100)  # which cross_entropy leaves out
    recipe = {"epochs": 1, "lr": 3e-3, "batch_size": 32, "seed": 0, "progress": "fine-tuning on prompts"}
    return models.fit(model, tokens[:, :-1], following, **recipe).state_dict()


def labelled_pairs(domain: str, seed: int) -> data.Split:
    """Pairs of responses to a prompt of the domain, and which has the higher gold reward."""
    rng, known, pairs, y = random.Random(f"{domain} {seed}"), all_prompts([domain]), [], []
    while len(pairs) < SOURCE_PAIRS:
        prompt = rng.choice(known)
        pair = written(prompt, rng), written(prompt, rng)
        a, b = (gold_reward(prompt, response)[0] for response in pair)
        if a != b:
            pairs.append(pair)
            y.append(int(b > a))
    return data.Split(pairs, torch.tensor(y))


def sample_pairs(policy: ReviewPolicy, seed: int, device: str) -> list[torch.Tensor]:
    """Two responses to each training prompt: tokens, response (N, 2, L), rewards (N, 2, M), gold (N, 2)."""
    both = [prompt for prompt in target_prompts()["train"] for _ in range(2)]
    *sequences, words = sample(policy, both, seed)
    known = {domain: labelled_pairs(domain, seed) for domain in text.SOURCE}
    reward_models = teachers.text_weak_models(known, 2, seed, device).values()
    pairs = list(zip(words[::2], words[1::2]))
    rewards = torch.stack([reward(pairs).cpu() for reward in reward_models], dim=2)
    gold, _ = judge_reviews(both, words)
    tokens, response, gold = (part.unflatten(0, (-1, 2)) for part in (*sequences, gold))
    return [tokens, response, rewards, gold]


def reviews(args) -> Alignment:
    if args.policy or args.data_dir or args.lora:
        raise data.InputError("reviews-dpo has a policy of its own: without --policy, --data-dir, --lora")
    policy, device, key = ReviewPolicy(), args.device, {"steps": args.encoder_steps, "device": args.device}
    policy.load_state_dict(store.cached("fine-tuned", lambda: fine_tune(**key), **key))
    policy.to(device).eval()
    found = store.cached("pairs", lambda: sample_pairs(policy, args.seed, device), seed=args.seed, **key)
    *pairs, rewards, gold = (each.to(device) for each in found)
    return Alignment(policy, tuple(pairs), rewards, gold, text.SOURCE, target_prompts(), judge_reviews)


class PretrainedPolicy(nn.Module):
    """A Hugging Face causal model (name or folder). On CUDA it computes in bfloat16, and log-ratios are right
    up to its rounding; weights stay float32, or small steps would be lost. Dropout stays off. lora: its rank,
    on all linear layers, alpha twice the rank as in the paper; only the frozen weights are then bfloat16."""

    read_batch, write_batch = 8, 64
    longest_prompt, longest = 256, 128  # tokens; a prompt keeps its end, a response its beginning

    def __init__(self, name: str, lora: int | None = None):
        super().__init__()
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        if lora:  # before anything is fetched
            try:
                import peft
            except ImportError as error:
                raise data.InputError(f"--lora needs the package peft: pip install peft ({error})") from error
        self.tokenizer = AutoTokenizer.from_pretrained(name, truncation_side="left")
        self.end = self.tokenizer.eos_token_id
        dtype = torch.bfloat16 if lora else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(name).to(dtype).eval()
        # A checkpoint's own may bring repetition penalties and the like: samples of another distribution.
        ends = {"max_new_tokens": self.longest, "eos_token_id": self.end, "pad_token_id": self.end}
        self.model.generation_config = GenerationConfig(do_sample=True, top_k=0, **ends)
        if lora:
            config = peft.LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear")
            self.model = peft.get_peft_model(self.model, config).eval()

    def forward(self, tokens):
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
            return self.model(tokens).logits

    def ids(self, words: str, **truncation) -> list[int]:
        ids = self.tokenizer(words, **truncation)["input_ids"]
        return ids[:-1] if ids[-1:] == [self.end] else ids  # some tokenizers end every text

    def prompt_ids(self, prompt: str) -> list[int]:
        return self.ids(prompt, truncation=True, max_length=self.longest_prompt)

    def response_ids(self, prompt: str, response: str) -> list[int]:
        """Read together with the prompt: a response alone may be cut into other tokens."""
        return [*self.ids(prompt + response)[len(self.ids(prompt)) :], self.end][: self.longest]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def write(self, prompts: list[list[int]]) -> list[list[int]]:
        rows = [torch.tensor(ids, device=self.model.device) for ids in prompts]
        parts = rows, [torch.ones_like(row) for row in rows]
        tokens, real = (nn.utils.rnn.pad_sequence(part, True, padding_side="left") for part in parts)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
            return self.model.generate(tokens, attention_mask=real)[:, tokens.shape[1] :].tolist()


def reward_heads(features: torch.Tensor, targets: list[torch.Tensor], device: str) -> Callable:
    """M linear Bradley-Terry heads on frozen features. features (N, 2, D) of pairs; M targets (n,), each for
    the first n pairs -> a function from features (..., D) to rewards (..., M)."""
    std, mean = torch.std_mean(features, dim=(0, 1))
    x, weights = ((features - mean) / (std + 1e-6)).to(device), []
    for y in targets:
        head = models.LinearHead(x.shape[-1], 2, pairs=True).to(device)
        models.fit(head, x[: len(y)], y.to(device), epochs=20, lr=1e-3, batch_size=128, seed=0)
        weights.append(head.weight.detach().cpu())
    return lambda features: ((features - mean) / (std + 1e-6)) @ torch.cat(weights).T


def dialogues(args) -> Alignment:
    """HH-RLHF. The reward models are heads on the policy's own frozen features, trained on pairs that say
    which answer is the more helpful: all; with 30 % of the labels replaced; a quarter. The policy's pairs and
    the truth about them are the data set's. A new response is judged by one more such head, trained on the
    target's labels: it shares its features, and so their errors, with the reward models. A base model goes on
    to write the next question: only what is before that is judged."""
    if not (name := args.policy):
        raise data.InputError("hh-helpful-harmless needs a causal model of Hugging Face: --policy")
    task = data.load("hh-helpful-harmless", args.seed, args.data_dir)._replace(encoder=name)
    splits, device = (task.strong_train, task.weak_train), args.device
    own, known = (models.encode(task, split.x, 0, device) for split in splits)  # first: it may not be there
    policy, y = PretrainedPolicy(name, args.lora).to(device), task.weak_train.y
    noisy = models.noisy_labels(y, 2, torch.Generator().manual_seed(args.seed))
    reward = reward_heads(known, [y, noisy, y[: -(-len(y) // 4)]], device)
    truth = reward_heads(own, [task.strong_train.y], device)

    def parts(dialogue):  # "...\n\nAssistant:" and what follows
        prompt, mark, response = dialogue.rpartition("\n\nAssistant:")
        return prompt + mark, response

    def judge(prompts, responses):
        answers = [response.partition("\n\nHuman:")[0].strip() for response in responses]
        whole = [f"{prompt} {answer}" for prompt, answer in zip(prompts, answers)]
        worth = truth(text.pretrained_features(name, whole, device))[:, 0]
        return worth, torch.tensor([answer != "" for answer in answers])

    asked, answers = zip(*map(parts, models.flat(task.strong_train.x)))
    pairs = collate(list(map(policy.prompt_ids, asked)), list(map(policy.response_ids, asked, answers)))
    pairs = tuple(models.unflat(part, True).to(device) for part in pairs)
    val, test = (list(dict.fromkeys(parts(a)[0] for a, _ in split.x)) for split in (task.val, task.test))
    prompts = {"val": val[:NUM_VAL], "test": test[:NUM_TEST]}
    gold = F.one_hot(task.strong_train.y, 2).float().to(device)
    names = ["all", "noisy", "few"]
    return Alignment(policy, pairs, reward(own).to(device), gold, names, prompts, judge)


TASKS = {"reviews-dpo": reviews, "hh-helpful-harmless": dialogues}


def resolve(task: str) -> data.Known:
    """What loads it takes the flags and a seed, which draws the pairs and what the reward models learn from.
    Raises data.InputError on a task that is not known."""
    if task not in TASKS:
        raise data.InputError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    return data.Known(task, TASKS[task], {}, "policy", has_files=task.startswith("hh"))
