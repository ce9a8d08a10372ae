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
import json
import math
import random
import re
import time
from collections import namedtuple
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
from tasks import text

TASKS = ["reviews-dpo", "hh-helpful-harmless"]
NUM_TEST, NUM_VAL = 600, 280  # prompts; of reviews-dpo 2,000 are left for training
SOURCE_PAIRS = 200  # of its own domain, labelled, for each reward model of reviews-dpo
# Of sampling for the scores, before and after training: far from the seeds of runs, which sample the pairs.
SCORE_SEEDS = {"val": (1_000_001, 1_000_002), "test": (1_000_003, 1_000_004)}


class Sequences(NamedTuple):
    """Prompts with their responses: (N, L) each, (N, 2, L) for pairs of responses."""

    tokens: torch.Tensor  # int64
    response: torch.Tensor  # bool: True on the response and the end-of-text token after it


class Alignment(NamedTuple):
    """A policy, pairs of responses in the target domain, and who judges them."""

    policy: nn.Module  # before training
    pairs: Sequences  # (N, 2, L)
    rewards: torch.Tensor  # (N, 2, M), by M reward models
    gold: torch.Tensor  # (N, 2), the truth
    reward_models: list[str]  # their M names
    prompts: dict[str, list[str]]  # of "val" and "test", held out
    judge: Callable  # prompts, responses (lists of N) -> gold reward (N,), well-formed (N,) bool


# What a policy writes for N held-out prompts: Sequences, gold reward (N,), bool (N,).
Responses = namedtuple("Responses", "sequences gold well_formed")


def resolve(task: str) -> data.Known:
    """Raises data.InputError on a task that is not known."""
    if task not in TASKS:
        raise data.InputError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    return data.Known(task, None, {}, "policy", has_files=task.startswith("hh"))


def prepare(name: str, args) -> Alignment:
    """args: the flags, and a seed, which draws the pairs and what the reward models learn from."""
    if name == "reviews-dpo":
        if args.policy or args.data_dir or args.lora:
            raise data.InputError(f"{name} has a policy of its own: without --policy, --data-dir, --lora")
        return reviews(args.seed, args.device, args.encoder_steps)
    if not args.policy:
        raise data.InputError(f"{name} needs a Hugging Face causal model: --policy NAME or folder")
    return dialogues(args.seed, args.data_dir, args.device, args.policy, args.lora)


# ------------------------------------------------------------------------------------------------- sequences


def collate(prompts: list[list[int]], responses: list[list[int]]) -> Sequences:
    """N prompts and N responses as token numbers -> padded on the right with 0."""
    rows = [torch.tensor(prompt + response) for prompt, response in zip(prompts, responses)]
    masks = [torch.arange(len(row)) >= len(prompt) for row, prompt in zip(rows, prompts)]
    pad = nn.utils.rnn.pad_sequence
    return Sequences(pad(rows, batch_first=True), pad(masks, batch_first=True))


@torch.no_grad()
def sample(policy: nn.Module, prompts: list[str], seed: int) -> Sequences:
    """A response to each of N prompts, at temperature 1; the seed fixes them."""
    ids, responses = [policy.prompt_ids(prompt) for prompt in prompts], []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in tqdm(range(0, len(ids), policy.write_batch), "sampling", disable=None, leave=False):
            written = [row[: policy.longest] for row in policy.write(ids[start : start + policy.write_batch])]
            responses += [row[: (row + [policy.end]).index(policy.end) + 1] for row in written]
    return collate(ids, responses)


def texts(policy: nn.Module, sequences: Sequences) -> list[str]:
    """The N responses in words."""
    return [policy.decode(row[own].tolist()) for row, own in zip(sequences.tokens, sequences.response)]


def respond(policy: nn.Module, task: Alignment, split: str, trained: bool) -> Responses:
    """What the policy, trained or not, writes for the "val" or "test" prompts, and its worth."""
    prompts = task.prompts[split]
    sequences = sample(policy, prompts, SCORE_SEEDS[split][trained])
    return Responses(sequences, *task.judge(prompts, texts(policy, sequences)))


def token_kl(logits: torch.Tensor, reference_logits: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """KL(pi || ref) in nats at each of the K tokens that pi wrote: logits (N, L, V), bool (N, L) -> (K,)."""
    own = (each[:, :-1][response[:, 1:]] for each in (logits, reference_logits))
    log_p, log_q = (each.to(torch.promote_types(each.dtype, torch.float32)).log_softmax(-1) for each in own)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
def score(task: Alignment, policy: nn.Module, before: Responses, split: str) -> dict:
    """The figures of a row, of n held-out prompts. A win is a higher gold reward than before, a tie half a
    win; win_interval is the half-width of its 95 % interval over prompts. kl is in nats per token, the mean
    over the tokens that the trained policy wrote."""
    after, figures = respond(policy, task, split, True), {"n_test": len(before.gold)}
    for suffix, responses in (("_before", before), ("", after)):
        figures["gold_reward" + suffix] = responses.gold.double().mean().item()
        figures["length" + suffix] = responses.sequences.response.double().sum(1).mean().item()  # in tokens
        figures["well_formed" + suffix] = responses.well_formed.double().mean().item()
    wins = (after.gold > before.gold).double() + 0.5 * (after.gold == before.gold)
    figures |= {"win_rate": wins.mean().item(), "win_interval": 1.96 * wins.std().item() / len(wins) ** 0.5}
    batches = zip(*(part.to(task.rewards.device).split(policy.read_batch) for part in after.sequences))
    kl = [token_kl(policy(tokens), task.policy(tokens), response) for tokens, response in batches]
    return figures | {"kl": torch.cat(kl).double().mean().item()}


def report(task: Alignment, args, identity: dict, train: Callable, own: dict, easy: torch.Tensor) -> None:
    """Trains a policy, or with --supervision one three, scores, prints and saves the row. `train` is a
    train_policy, `own` are its own arguments; easy bool (N,): pairs that all reward models rank alike."""
    rewards, gold = task.rewards, task.gold[..., None]
    judges = {"one": rewards.split(1, -1), "mean": [rewards.mean(-1, keepdim=True)]}
    judges |= {"raven": [rewards], "gold": [gold]}
    before, results = {split: respond(task.policy, task, split, False) for split in SCORE_SEEDS}, []
    for judge in judges[args.supervision]:
        begun, frozen = time.perf_counter(), [p for p in task.policy.parameters() if not p.requires_grad]
        policy = copy.deepcopy(task.policy, {id(each): each for each in frozen})  # which both share
        lr = args.ceiling_lr if args.supervision == "gold" else args.lr
        optimizer = torch.optim.Adam(policy.parameters(), lr)
        per_epoch = math.ceil(len(judge) / args.batch_size)
        epochs = math.ceil(args.steps / per_epoch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
        recipe = (epochs, optimizer, schedule, args.batch_size, args.seed)
        history = train(policy, task.pairs, judge, *recipe, **own)
        seconds = round(time.perf_counter() - begun, 2)
        if not all(weight.isfinite().all() for weight in policy.parameters()):
            raise data.InputError("training diverged: lower --lr")
        result = {"weights": history[-1]["weights"], "history": history, "seconds": seconds}
        result["val"] = score(task, policy, before["val"], "val")["win_rate"]
        results.append(score(task, policy, before["test"], "test") | result)
    correct = (rewards.argmax(1) == gold.argmax(1))[task.gold[:, 0] != task.gold[:, 1]].double()  # no ties
    row = {"kind": "policy", "setting": None, "reward_models": task.reward_models}
    row |= {"reward_accuracy": correct.mean(0).tolist(), "n_pairs": len(correct)}
    row |= {"easy_fraction": easy.double().mean().item()}
    # What chance makes of no training.
    row |= {"win_rate_before": score(task, task.policy, before["test"], "test")["win_rate"]}
    if len(results) > 1:
        figures = [key for key, value in results[0].items() if isinstance(value, int | float)]
        results = [{key: mean(each[key] for each in results) for key in figures} | {"policies": results}]
    print(json.dumps(store.save_row(args.out, identity, row | results[0])), flush=True)


# ---------------------------------------------------------------------------------------------------- reviews

# Of each product: its domain's name and aspects, all words of praise and all of blame.
PRODUCTS = {
    product: (domain, place.aspects, place.praise + text.PRAISE, place.blame + text.BLAME)
    for domain, place in text.DOMAINS.items()
    for product in place.products
}
JOINT, STATEMENT = r" (,|and|but) ", rf"(?:({'|'.join(text.NEGATIONS)}) )?(\w+) (\w+)"


def all_prompts(domains: list[str]) -> list[str]:
    """Every product, aspect and (favourable) wish: "kettle lid solid :", "kettle lid not leaky :"."""
    found = []
    for product, (domain, aspects, praise, blame) in PRODUCTS.items():
        if domain in domains:
            wishes = praise + [f"{no} {word}" for no in text.NEGATIONS for word in blame]
            found += [f"{product} {aspect} {wish} :" for aspect in aspects for wish in wishes]
    return found


def target_prompts() -> dict[str, list[str]]:
    """All prompts of the target domains in three parts, the same ones for all seeds."""
    found, held_out = all_prompts(text.TARGET), NUM_TEST + NUM_VAL
    random.Random("prompts").shuffle(found)
    return {"test": found[:NUM_TEST], "val": found[NUM_TEST:held_out], "train": found[held_out:]}


def written(prompt: str, rng: random.Random) -> str:
    """A review by the generator, in any mood, whose first statement grants the wish or denies it:
    to "kettle lid not leaky :" it begins with "not leaky lid" or "leaky lid"."""
    product, aspect, *negation, word, _ = prompt.split()
    domain, _, praise, _ = PRODUCTS[product]
    response = text.review([domain], rng)[0].split(" : ")[1]
    first, joint, others = re.split(JOINT, response, maxsplit=1)
    refused, said, _ = re.fullmatch(STATEMENT, first).groups()
    if (said in praise) == bool(refused):  # not granted
        negation = [] if negation else [rng.choice(text.NEGATIONS)]
    return " ".join([*negation, word, aspect, joint, others])


def gold_reward(prompt: str, response: str) -> tuple[float, bool]:
    """How favourable the response is, in [-1, 1], and whether it is well-formed: one `written` might return.

    A statement counts 1 if it is well-formed and in favour of the product, else -1, as does each that is
    missing of seven; the reward is their mean. A well-formed statement is on an aspect of the product in a
    word of its domain, the first on the asked aspect in the word of the wish, and "and" or "but" before it is
    in its place."""
    product, asked, *_, wish, _ = prompt.split()
    _, aspects, praise, blame = PRODUCTS[product]
    first, *others = re.split(JOINT, response.removesuffix(" ."))
    minds, sound = [], []
    for joint, part in [(None, first), *zip(others[::2], others[1::2])]:
        match = re.fullmatch(STATEMENT, part)
        negation, word, aspect = match.groups() if match else (None, None, None)
        minds.append((word in praise) != bool(negation) if word in praise + blame else None)
        on_topic = aspect in aspects if joint else (word, aspect) == (wish, asked)
        free = joint in (None, ",") or minds[-2] is None  # nothing to be joined to
        right_joint = free or (joint == "and") == (minds[-1] == minds[-2])
        sound.append(minds[-1] is not None and on_topic and right_joint)
    sound[-1] = sound[-1] and response.endswith(" .")
    good = sum(mind and right for mind, right in zip(minds, sound) if mind)
    return 2 * good / max(len(sound), text.STATEMENTS) - 1, len(sound) == text.STATEMENTS and all(sound)


def judge_reviews(prompts: list[str], responses: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    rewards, well_formed = zip(*map(gold_reward, prompts, responses))
    return torch.tensor(rewards), torch.tensor(well_formed)


class ReviewPolicy(nn.Module):
    """The causal transformer of tasks/text.py."""

    read_batch, write_batch = 300, 600
    end, longest = text.END, 40  # a well-formed response has up to 29 tokens

    def __init__(self):
        super().__init__()
        self.network = text.CausalTransformer()

    def forward(self, tokens):
        return self.network(tokens).transpose(1, 2)

    def prompt_ids(self, prompt: str) -> list[int]:
        return [text.BEGIN, *map(text.TOKENS.__getitem__, prompt.split())]

    def decode(self, ids: list[int]) -> str:
        return " ".join(text.WORDS[i - 3] if i > text.END else "?" for i in ids if i != text.END)

    def write(self, prompts: list[list[int]]) -> list[list[int]]:
        """Samples token by token. Keys and values of the past are kept: the same logits as `forward`'s."""
        prompt = collate(prompts, [[]] * len(prompts)).tokens.to(self.network.position.weight.device)
        given, ended = F.pad(prompt, (0, self.longest)), torch.zeros_like(prompt[:, 0], dtype=torch.bool)
        tokens, past = [prompt[:, 0]], [[] for _ in self.network.blocks]
        for position in range(1, given.shape[1]):
            logits = self.next(tokens[-1], position - 1, past)
            drawn = torch.multinomial(logits.softmax(-1), 1)[:, 0].masked_fill(ended, text.PAD)
            inside = given[:, position] != text.PAD  # where a longer prompt is still being read
            tokens.append(torch.where(inside, given[:, position], drawn))
            ended = ended | (tokens[-1] == text.END)
            if ended.all():
                break
        return [row[len(own) :] for row, own in zip(torch.stack(tokens, 1).tolist(), prompts)]

    def next(self, tokens, position, past):
        """One token each (N,), and the keys and values of those before, to which it adds -> logits (N, V)."""
        network = self.network
        x = network.token(tokens) + network.position.weight[position]
        for block, seen in zip(network.blocks, past):
            q, k, v = block.qkv(block.norm1(x)).unflatten(-1, (3, block.heads, 1, -1)).unbind(1)
            seen[:] = [k, v] if not seen else [torch.cat(pair, dim=2) for pair in zip(seen, (k, v))]
            x = x + block.out(F.scaled_dot_product_attention(q, *seen).flatten(1))
            x = x + block.mlp(block.norm2(x))
        return network.head(x)


def fine_tune(steps: int, device: str) -> dict[str, torch.Tensor]:
    """Weights of the policy before alignment: the pretrained transformer, after reading prompts with reviews,
    of all domains and in any mood, without the held-out prompts."""
    policy, rng = ReviewPolicy().to(device), random.Random("fine-tuning")
    policy.network.load_state_dict(models.pretrained("transformer", steps, device))
    chosen = rng.choices(all_prompts(text.SOURCE) + target_prompts()["train"], k=steps * 3 // 2 * 32)
    tokens = text.encode([f"{prompt} {written(prompt, rng)}" for prompt in chosen]).to(device)
    following = tokens[:, 1:].masked_fill(tokens[:, 1:] == text.PAD, -100)  # which cross_entropy leaves out
    recipe = {"epochs": 1, "lr": 3e-3, "batch_size": 32, "seed": 0}
    models.fit(policy.network, tokens[:, :-1], following, progress="fine-tuning on prompts", **recipe)
    return policy.state_dict()


def reward_model(domain: str, seed: int, device: str) -> Callable:
    """A bag of words, trained on pairs of reviews of one domain: N responses -> rewards (N,)."""
    rng, known, pairs, y = random.Random(f"{domain} {seed}"), all_prompts([domain]), [], []
    while len(pairs) < SOURCE_PAIRS:
        prompt = rng.choice(known)
        pair = written(prompt, rng), written(prompt, rng)
        a, b = (gold_reward(prompt, response)[0] for response in pair)
        if a != b:
            pairs.append(pair)
            y.append(int(b > a))
    model = text.BagOfWords(models.flat(pairs), False, 2, pairs=True).to(device)
    x = models.unflat(model.encode(models.flat(pairs)), True).to(device)
    models.fit(model, x, torch.tensor(y, device=device), epochs=20, lr=3e-3, batch_size=16, seed=seed)
    return lambda responses: models.predict(model.bag, model.encode(responses).to(device))[:, 0]


def sample_pairs(policy: ReviewPolicy, seed: int, device: str) -> list[torch.Tensor]:
    """Two responses to each training prompt: tokens, response (N, 2, L), rewards (N, 2, M), gold (N, 2)."""
    both = [prompt for prompt in target_prompts()["train"] for _ in range(2)]
    sequences = sample(policy, both, seed)
    responses = texts(policy, sequences)
    rewards = [reward_model(domain, seed, device)(responses).cpu() for domain in text.SOURCE]
    found = (*sequences, torch.stack(rewards, dim=1), judge_reviews(both, responses)[0])
    return [each.unflatten(0, (-1, 2)) for each in found]


def reviews(seed: int, device: str, steps: int) -> Alignment:
    policy, key = ReviewPolicy(), {"steps": steps, "device": device}
    policy.load_state_dict(store.cached("policy", lambda: fine_tune(steps, device), **key))
    policy.to(device).eval()
    found = store.cached("pairs", lambda: sample_pairs(policy, seed, device), seed=seed, **key)
    *pairs, rewards, gold = (each.to(device) for each in found)
    return Alignment(policy, Sequences(*pairs), rewards, gold, text.SOURCE, target_prompts(), judge_reviews)


# -------------------------------------------------------------------------------------------------- dialogues


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
        if self.end is None:
            raise data.InputError(f"--policy {name}: its tokenizer has no end of text")
        dtype = torch.bfloat16 if lora else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(name).to(dtype).eval()
        # A checkpoint's own may bring repetition penalties and the like: samples of another distribution.
        self.model.generation_config = GenerationConfig()
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
        longest, device = max(map(len, prompts)), self.model.device
        padded = torch.tensor([[self.end] * (longest - len(ids)) + ids for ids in prompts], device=device)
        real = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        plain = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        ends = {"max_new_tokens": self.longest, "eos_token_id": self.end, "pad_token_id": self.end}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return self.model.generate(padded, attention_mask=real, **plain, **ends)[:, longest:].tolist()


def reward_heads(features: torch.Tensor, targets: list[torch.Tensor], device: str) -> Callable:
    """M linear Bradley-Terry heads on frozen features. features (N, 2, D) of pairs; M targets (n,), each for
    the first n pairs -> a function from features (K, D) to rewards (K, M)."""
    std, mean = torch.std_mean(features.flatten(0, 1), dim=0)
    x, heads = ((features - mean) / (std + 1e-6)).to(device), []
    for y in targets:
        head = models.LinearHead(x.shape[-1], 2, pairs=True).to(device)
        models.fit(head, x[: len(y)], y.to(device), epochs=20, lr=1e-3, batch_size=128, seed=0)
        heads.append(head.requires_grad_(False).cpu())
    return lambda features: torch.cat([head((features - mean) / (std + 1e-6)) for head in heads], dim=1)


def dialogues(seed: int, folder, device: str, name: str, lora: int | None) -> Alignment:
    """HH-RLHF. The reward models are heads on the policy's own frozen features, trained on pairs that say
    which answer is the more helpful: all; with 30 % of the labels replaced; a quarter. The policy's pairs and
    the truth about them are the data set's. A new response is judged by one more such head, trained on the
    target's labels: it shares its features, and so their errors, with the reward models. A base model goes on
    to write the next question: only what is before that is judged."""
    task = data.load("hh-helpful-harmless", seed, folder)
    own, known = (
        models.unflat(models.read(name, models.flat(split.x), device), True)  # first: it may not be there
        for split in (task.strong_train, task.weak_train)
    )
    policy, y = PretrainedPolicy(name, lora).to(device), task.weak_train.y
    noisy = models.noisy_labels(y, 2, torch.Generator().manual_seed(seed))
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
    pairs = Sequences(*(part.unflatten(0, (-1, 2)).to(device) for part in pairs))
    val, test = (list(dict.fromkeys(parts(a)[0] for a, _ in split.x)) for split in (task.val, task.test))
    prompts = {"val": val[:NUM_VAL], "test": test[:NUM_TEST]}
    rewards = reward(own.flatten(0, 1)).unflatten(0, (-1, 2)).to(device)
    gold = F.one_hot(task.strong_train.y, 2).float().to(device)
    return Alignment(policy, pairs, rewards, gold, ["all", "noisy", "few"], prompts, judge)
