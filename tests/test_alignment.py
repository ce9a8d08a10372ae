"""What a policy is trained on: prompts, gold reward, sampling, pairs, reward models, any causal model."""

import json
import random
import re
from argparse import Namespace

import pytest
import raven_dpo
import torch
from conftest import run_script

import data
import store
from tasks import alignment, text

# ------------------------------------------------------------------------------------ prompts and gold reward


def test_prompts_name_product_aspect_and_a_favourable_wish():
    found = alignment.all_prompts(["kitchen"])
    place = text.DOMAINS["kitchen"]
    assert len(found) == len(set(found)) == 3 * 5 * (16 + 3 * 16)
    for prompt in found:
        product, aspect, *negation, word, end = prompt.split()
        assert product in place.products and aspect in place.aspects and end == ":"
        assert (word in place.praise + text.PRAISE) != (word in place.blame + text.BLAME)
        assert (word in place.praise + text.PRAISE) != bool(negation)


def test_held_out_prompts_are_in_no_other_part_and_not_in_fine_tuning(monkeypatch):
    parts, seen, encode = alignment.target_prompts(), [], text.encode
    assert [len(parts[part]) for part in ("train", "val", "test")] == [2000, 280, 600]
    assert len(set().union(*parts.values())) == 2880 and parts == alignment.target_prompts()
    monkeypatch.setattr(text, "encode", lambda texts: seen.append(texts) or encode(texts))
    alignment.fine_tune(8, "cpu")
    prompts = {f"{text.split(' :')[0]} :" for text in seen[-1]}
    assert len(seen[-1]) == 12 * 32 and not prompts & {*parts["val"], *parts["test"]}
    assert prompts & {*parts["train"]} and prompts & {*alignment.all_prompts(text.SOURCE)}


def test_what_the_generator_writes_is_well_formed_and_means_its_verdict():
    """The verdict is counted here without the parser: by the signs of words."""
    rng = random.Random(0)
    for prompt in rng.choices(alignment.all_prompts(list(text.DOMAINS)), k=500):
        response, verdict = alignment.written(prompt, rng), 0
        place = text.DOMAINS[alignment.PLACES[prompt.split()[0]]]
        parts = re.split(" , | and | but ", response[:-2])
        for part in parts:
            sign = 1 if part.split()[-2] in place.praise + text.PRAISE else -1
            verdict += -sign if part.split()[0] in text.NEGATIONS else sign
        assert alignment.gold_reward(prompt, response) == (pytest.approx(verdict / 7), True)
        (_, aspect, *wish, _), first = prompt.split(), parts[0].split()
        assert first[-1] == aspect and first[-2] == wish[-1]
        negated = first[0] in text.NEGATIONS
        assert first[:-1] == wish or negated != (wish[0] in text.NEGATIONS)


GOOD = "not leaky lid , solid lid and sharp motor , quiet handle , solid lid and handy blade but loud motor ."


@pytest.mark.parametrize(
    "old, new, points, count",
    [
        ("", "", 5, 7),
        ("leaky lid , solid", "leaky blade , solid", 3, 7),  # the first is not on the asked aspect
        ("not leaky lid", "hardly leaky lid", 5, 7),
        ("not leaky lid", "leaky lid", 3, 7),  # the wish denied
        ("not leaky lid", "solid lid", 3, 7),
        ("quiet handle", "quiet screen", 3, 7),  # no aspect of a kettle
        ("quiet handle", "thrilling handle", 3, 7),  # no word of its domain
        ("quiet handle", "quiet handle handle", 3, 7),
        ("not leaky", "not not leaky", 3, 7),
        ("and sharp", "but sharp", 3, 7),  # of one mind
        ("but loud", "and loud", 5, 7),  # against it, well-formed or not
        ("and handy blade but loud motor .", "and handy blade", 3, 6),  # never ended, one is missing
        (" but loud motor .", " .", 5, 6),  # six of seven
        ("loud motor .", "loud motor , good lid , good lid .", 7, 9),
        (GOOD, "", -7, 1),
        (GOOD, "not leaky lid .", -5, 1),
        (GOOD, "and , but not", -7, 1),
    ],
)
def test_gold_reward_by_hand(old, new, points, count):
    response = GOOD.replace(old, new)
    reward, well_formed = alignment.gold_reward("kettle lid not leaky :", response)
    assert reward == pytest.approx(points / max(7, count))
    sound = ["", "not leaky lid"]  # what was changed without harm to the form
    assert well_formed == (response == GOOD or old in sound and new in ("hardly leaky lid", "leaky lid"))


# --------------------------------------------------------------------------------------------------- sampling


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    policy = alignment.ReviewPolicy().eval()
    # At random the end would come after 100 tokens or so: make it likelier.
    policy.network.head[1].bias.data[text.END] = 2.0
    return policy


PROMPTS = ["kettle lid solid :", "hotel pool not dirty :", "phone menu never bad :"] * 10


def test_sampling_is_fixed_by_the_seed(policy):
    state = torch.get_rng_state()
    first = alignment.sample(policy, PROMPTS, 5)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws change
    torch.manual_seed(99)
    again, other = alignment.sample(policy, PROMPTS, 5), alignment.sample(policy, PROMPTS, 6)
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.response, again.response)
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)


def test_sampled_sequences_are_prompt_then_response_then_padding(policy):
    sequences = alignment.sample(policy, PROMPTS, 0)
    ended = 0
    for prompt, tokens, response in zip(PROMPTS, *sequences):
        ids = policy.prompt_ids(prompt)
        place = response.nonzero()[:, 0].tolist()
        assert tokens[: len(ids)].tolist() == ids and place == list(range(len(ids), len(ids) + len(place)))
        assert 0 < len(place) <= policy.longest and not tokens[place[-1] + 1 :].any()
        own = tokens[response].tolist()
        assert text.END not in own[:-1] and (own[-1] == text.END or len(own) == policy.longest)
        ended += own[-1] == text.END
    assert 0 < ended < len(PROMPTS)
    words = alignment.texts(policy, sequences)[0]
    assert len(words.split()) == sequences.response[0].sum() - (sequences.tokens[0] == text.END).sum()


def test_one_token_at_a_time_gives_the_same_logits(policy):
    tokens = alignment.sample(policy, PROMPTS, 0).tokens
    past = [[] for _ in policy.network.blocks]
    with torch.no_grad():
        each = torch.stack([policy.next(tokens[:, i], i, past) for i in range(tokens.shape[1])], dim=1)
        torch.testing.assert_close(each, policy(tokens), rtol=1e-4, atol=1e-4)


def test_samples_follow_the_policy(policy, monkeypatch):
    """The first token of 3,000 responses to one prompt, against its probabilities."""
    monkeypatch.setattr(policy, "longest", 1)
    ids = policy.prompt_ids(PROMPTS[0])
    first = alignment.sample(policy, PROMPTS[:1] * 3000, 0).tokens[:, len(ids)]
    with torch.no_grad():
        expected = policy(torch.tensor([ids]))[0, -1].softmax(-1)
    counts = first.bincount(minlength=len(expected)) / 3000
    assert (counts - expected).abs().max() < 4 * (expected.max() / 3000).sqrt()


# --------------------------------------------------------------------------------------- pairs, reward models


def prepare(task, seed=0, folder=None, policy=None):
    given = {"data_dir": folder, "policy": policy, "device": "cpu", "encoder_steps": 10}
    return alignment.prepare(task, Namespace(seed=seed, **given))


def test_pairs_of_the_task(monkeypatch, tmp_path):
    """Two responses to each training prompt; rewards and truth are of these texts; the seed decides."""
    known = alignment.target_prompts()
    monkeypatch.setattr(alignment, "target_prompts", lambda: known | {"train": known["train"][:30]})
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    task = prepare("reviews-dpo")
    assert task.pairs.tokens.shape[:2] == (30, 2) and task.rewards.shape == (30, 2, 3)
    models_of = [alignment.reward_model(domain, 0, "cpu") for domain in text.SOURCE]
    for i, prompt in enumerate(known["train"][:30]):
        pair = alignment.Sequences(task.pairs.tokens[i], task.pairs.response[i])
        responses, ids = alignment.texts(task.policy, pair), task.policy.prompt_ids(prompt)
        assert all(row.tolist()[: len(ids)] == ids for row in pair.tokens)
        truth = [alignment.gold_reward(prompt, response)[0] for response in responses]
        assert task.gold[i].tolist() == pytest.approx(truth)
        for m, reward in enumerate(models_of):
            torch.testing.assert_close(task.rewards[i, :, m], reward(["good bad", *responses])[1:])
    other, again = prepare("reviews-dpo", 1), prepare("reviews-dpo")  # again: out of the cache
    assert not torch.equal(other.rewards, task.rewards) and torch.equal(again.rewards, task.rewards)
    assert torch.equal(again.pairs.tokens, task.pairs.tokens)
    assert other.prompts == task.prompts == {split: known[split] for split in ("val", "test")}


def test_reward_models_know_their_own_domain_better_than_the_target():
    rng = random.Random("test")

    def accuracy(reward, domain):
        prompts = rng.choices(alignment.all_prompts([domain]), k=400)
        first, second = ([alignment.written(prompt, rng) for prompt in prompts] for _ in range(2))
        gold = [alignment.judge_reviews(prompts, side)[0] for side in (first, second)]
        right = (reward(first) > reward(second)) == (gold[0] > gold[1])
        return right[gold[0] != gold[1]].double().mean()

    for domain in text.SOURCE:
        reward = alignment.reward_model(domain, 0, "cpu")
        assert accuracy(reward, domain) > max(0.7, accuracy(reward, "hotels") + 0.04)


# ------------------------------------------------------------------------------------------- any causal model


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny Llama with random weights and a tokenizer of whole words, in a folder."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    vocabulary = ["<unk>", "</s>", *"Human Assistant : how are you good bad fine no yes maybe".split()]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"
    )
    torch.manual_seed(0)
    small = {"vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 32, "eos_token_id": 1}
    small |= {"num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": None}
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small))
    network.generation_config.no_repeat_ngram_size = 1  # checkpoints bring such rules; a policy has none
    network.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


@pytest.fixture
def dialogue_files(tmp_path):
    """60 pairs of answers per domain, some with two turns; "good" is helpful, "bad" is harmless."""
    rng, words = random.Random(0), "how are you good bad fine no yes maybe".split()
    for domain, better in (("helpful-base", ("good", "bad")), ("harmless-base", ("bad", "good"))):
        rows = []
        for i in range(60):
            start = f"\n\nHuman: {domain} {i} {' '.join(rng.choices(words, k=6))}\n\nAssistant:"
            start += " yes\n\nHuman: how\n\nAssistant:" if i % 3 == 0 else ""
            ends = [" ".join([word, *rng.choices(words, k=rng.randrange(5))]) for word in better]
            answers = [f"{start} {end}" for end in ends]
            rows.append(json.dumps(dict(zip(("chosen", "rejected"), answers))))
        folder = tmp_path / "files" / domain
        folder.mkdir(parents=True)
        (folder / "test.jsonl").write_text("\n".join(rows))
    return str(tmp_path / "files")


def test_a_pretrained_policy_in_any_company(checkpoint):
    """Log-probabilities with and without padding; sampling from prompts of different lengths."""
    policy = alignment.PretrainedPolicy(checkpoint)
    prompts, responses = ["Human : how", "Human : how are you Assistant :"], [" good", " fine yes maybe no"]
    ids = list(map(policy.prompt_ids, prompts))
    sequences = alignment.collate(ids, list(map(policy.response_ids, prompts, responses)))
    assert (sequences.tokens[sequences.response] == policy.end).sum() == 2
    assert alignment.texts(policy, sequences) == ["good", "fine yes maybe no"]
    with torch.no_grad():
        together = raven_dpo.response_log_probs(policy(sequences.tokens), *sequences)
        for tokens, response, value in zip(*sequences, together):
            length = int(response.nonzero().max()) + 1
            tokens, response = tokens[None, :length], response[None, :length]
            alone = raven_dpo.response_log_probs(policy(tokens), tokens, response)
            torch.testing.assert_close(alone[0], value)
    sampled = alignment.sample(policy, prompts * 40, 3)
    assert torch.equal(sampled.tokens, alignment.sample(policy, prompts * 40, 3).tokens)
    with torch.no_grad():  # the first token after the shorter, left-padded prompt
        expected = policy(sequences.tokens[:1, :3])[0, -1].softmax(-1)
    first = alignment.sample(policy, prompts * 1500, 4).tokens[::2, 3]
    drawn = first.bincount(minlength=len(expected)) / 1500
    assert (drawn - expected).abs().max() < 0.05


def test_a_pretrained_policy_is_aligned_end_to_end(checkpoint, dialogue_files, monkeypatch, tmp_path):
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(alignment, "NUM_TEST", 5)
    monkeypatch.setattr(alignment.PretrainedPolicy, "longest", 6)
    flags = "--task hh-helpful-harmless --seeds 0 --epochs 2 --lr 1e-3 --batch-size 8 --device cpu"
    flags = [*flags.split(), "--policy", checkpoint, "--data-dir", dialogue_files]
    [row] = run_script(raven_dpo, *flags, "--micro-batch", "3")
    assert row["task"] == "hh-helpful-harmless" and row["reward_models"] == ["all", "noisy", "few"]
    assert re.fullmatch(r"checkpoint-[0-9a-f]{12}", row["flags"]["policy"])
    assert row["n_test"] == 5 and row["kl"] > 0 and 1 <= row["length"] <= 6 and 0 < row["well_formed"] <= 1
    assert row["reward_accuracy"][0] < 0.4  # it was taught that "good" is better
    [gold] = run_script(raven_dpo, *flags, "--supervision", "gold")
    assert gold["history"][-1]["chosen"] > gold["history"][-1]["rejected"]


def test_dialogues_rewards_and_judge(checkpoint, dialogue_files, monkeypatch, tmp_path):
    """Dialogues are cut at their last answer; reward models know helpfulness, the judge the truth."""
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    task = prepare("hh-helpful-harmless", 0, dialogue_files, checkpoint)
    hh = data.load("hh-helpful-harmless", 0, dialogue_files)
    assert task.gold.argmax(1).tolist() == hh.strong_train.y.tolist()
    for i, pair in enumerate(hh.strong_train.x):
        sequences = alignment.Sequences(task.pairs.tokens[i], task.pairs.response[i])
        for dialogue, response in zip(pair, alignment.texts(task.policy, sequences)):
            assert dialogue.rstrip().endswith(response) and response.split()[0] in ("good", "bad")
    for split in ("val", "test"):
        whole = [dialogue for pair in getattr(hh, split).x for dialogue in pair]
        prompts = {dialogue.rpartition("\n\nAssistant:")[0] for dialogue in whole}
        assert {prompt.removesuffix("\n\nAssistant:") for prompt in task.prompts[split]} == prompts
    decided = task.rewards.argmax(1) == task.gold.argmax(1, keepdim=True)
    assert decided[:, 0].double().mean() < 0.4
    every, noisy, few = task.rewards.unbind(-1)
    assert not torch.allclose(every, noisy) and not torch.allclose(every, few)
    prompts = task.prompts["test"]
    worth, said = task.judge(prompts, [" bad fine"] * len(prompts))
    other, empty = task.judge(prompts, [" good fine", *["  \n\nHuman: bad"] * (len(prompts) - 1)])
    assert worth[0] > other[0] and said.all() and empty.tolist() == [True] + [False] * (len(prompts) - 1)
    asked_on = [f" bad fine\n\nHuman: good {i}" for i in range(len(prompts))]
    torch.testing.assert_close(task.judge(prompts, asked_on)[0], worth)


def test_an_unknown_policy_is_one_clear_line(dialogue_files, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("no/such-model", dialogue_files):
        with pytest.raises(data.InputError, match="--policy") as error:
            prepare("hh-helpful-harmless", 0, dialogue_files, name)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
