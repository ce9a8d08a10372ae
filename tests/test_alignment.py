"""What a policy is trained on: prompts, gold reward, sampling, pairs, reward models, any causal model."""

import random
import re
import sys
from argparse import Namespace

import pytest
import raven_dpo
import torch
from conftest import run_script, write_lines

import data
import store
import teachers
from tasks import alignment, text


def test_held_out_prompts_are_in_no_other_part_and_not_in_fine_tuning(monkeypatch):
    parts, seen, encode = alignment.target_prompts(), [], text.encode
    assert [len(parts[part]) for part in ("train", "val", "test")] == [2000, 280, 600]
    assert len(set().union(*parts.values())) == 2880 == 9 * 5 * (16 + 3 * 16)
    monkeypatch.setattr(text, "encode", lambda texts: seen.append(texts) or encode(texts))
    alignment.fine_tune(2, "cpu")
    prompts = {f"{text.split(' :')[0]} :" for text in seen[-1]}
    assert len(seen[-1]) == 3 * 32 and not prompts & {*parts["val"], *parts["test"]}
    assert prompts & {*parts["train"]} and prompts & {*alignment.all_prompts(text.SOURCE)}


def test_what_the_generator_writes_is_well_formed_and_means_its_verdict():
    """The verdict is counted here without the parser: by the signs of words."""
    rng = random.Random(0)
    for prompt in rng.choices(alignment.all_prompts(list(text.DOMAINS)), k=500):
        response, verdict = alignment.written(prompt, rng), 0
        (product, aspect, *wish, _), parts = prompt.split(), re.split(" , | and | but ", response[:-2])
        [place] = [place for place in text.DOMAINS.values() if product in place.products]
        for part in parts:
            sign = 1 if part.split()[-2] in place.praise + text.PRAISE else -1
            verdict += -sign if part.split()[0] in text.NEGATIONS else sign
        assert alignment.gold_reward(prompt, response) == (pytest.approx(verdict / 7), True)
        first, negated = parts[0].split(), parts[0].split()[0] in text.NEGATIONS
        assert first[-1] == aspect in place.aspects and first[-2] == wish[-1]
        assert wish[-1] in (place.blame + text.BLAME if wish[1:] else place.praise + text.PRAISE)
        assert first[:-1] == wish or negated != (wish[0] in text.NEGATIONS)


GOOD = "not leaky lid , solid lid and sharp motor , quiet handle , solid lid and handy blade but loud motor ."


@pytest.mark.parametrize(
    "old, new, points, count, sound",
    [
        ("", "", 5, 7, True),
        ("not leaky lid", "leaky lid", 3, 7, True),  # the wish denied
        ("not leaky lid", "solid lid", 3, 7, False),
        ("leaky lid , solid", "leaky blade , solid", 3, 7, False),  # the first is not on the asked aspect
        ("quiet handle", "quiet screen", 3, 7, False),  # no aspect of a kettle
        ("quiet handle", "thrilling handle", 3, 7, False),  # no word of its domain
        ("not leaky", "not not leaky", 3, 7, False),
        ("and sharp", "but sharp", 3, 7, False),  # of one mind
        ("but loud", "and loud", 5, 7, False),  # against it, well-formed or not
        ("and handy blade but loud motor .", "and handy blade", 3, 6, False),  # never ended, one is missing
        (" but loud motor .", " .", 5, 6, False),  # six of seven
        ("loud motor .", "loud motor , good lid , good lid .", 7, 9, False),
        (GOOD, "", -7, 1, False),
    ],
)
def test_gold_reward_by_hand(old, new, points, count, sound):
    found = alignment.gold_reward("kettle lid not leaky :", GOOD.replace(old, new))
    assert found == (pytest.approx(points / max(7, count)), sound)


@pytest.fixture
def policy():
    torch.manual_seed(0)
    policy = alignment.ReviewPolicy()
    policy.head[1].bias.data[text.END] = 2.0  # at random the end would come after 100 tokens or so
    return policy


PROMPTS = ["kettle lid solid :", "hotel pool not dirty :", "phone menu never bad :"] * 10


def test_samples_are_prompt_then_response_then_padding_and_fixed_by_the_seed(policy):
    state = torch.get_rng_state()
    *sequences, words = alignment.sample(policy, PROMPTS, 5)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws change
    ended = 0
    for prompt, tokens, response, said in zip(PROMPTS, *sequences, words, strict=True):
        ids, own = policy.prompt_ids(prompt), tokens[response].tolist()
        assert tokens.tolist() == [*ids, *own, *[0] * (len(tokens) - len(ids) - len(own))]
        assert response.nonzero()[0] == len(ids) and 0 < len(own) <= policy.longest
        assert text.END not in own[:-1] and (own[-1] == text.END or len(own) == policy.longest)
        assert said == policy.decode(own)
        ended += own[-1] == text.END
    assert 0 < ended < len(PROMPTS)
    torch.manual_seed(99)
    assert alignment.sample(policy, PROMPTS, 5)[2] == words != alignment.sample(policy, PROMPTS, 6)[2]


def test_samples_follow_the_policy(policy, monkeypatch):
    """Nearly certain tokens are those of `forward`; the first tokens of 3,000 responses follow its odds."""
    with torch.no_grad():
        expected = policy(torch.tensor([policy.prompt_ids(PROMPTS[0])]))[0, -1].softmax(-1)
        policy.head[1].weight *= 1e5
        tokens, response, _ = alignment.sample(policy, PROMPTS[:3], 0)
        likely = policy(tokens).argmax(-1)[:, :-1][response[:, 1:]]
        assert (likely == tokens[response]).double().mean() > 0.98 and response.sum() > 30
        policy.head[1].weight /= 1e5
    monkeypatch.setattr(policy, "longest", 1)
    tokens, response, _ = alignment.sample(policy, PROMPTS[:2] * 3000, 0)
    counts = tokens[::2][response[::2]].bincount(minlength=len(expected)) / 3000
    assert (counts - expected).abs().max() < 4 * (expected.max() / 3000).sqrt()


def prepare(task, seed=0, folder=None, policy=None):
    given = {"data_dir": folder, "policy": policy, "device": "cpu", "encoder_steps": 2, "lora": None}
    return alignment.resolve(task).load(Namespace(seed=seed, **given))


def test_pairs_of_the_task(monkeypatch, tmp_path):
    """Two responses to each training prompt; rewards and truth are of these texts; the seed decides."""
    known = alignment.target_prompts()
    few = known | {"train": known["train"][:20]}
    monkeypatch.setattr(alignment, "target_prompts", lambda: few)
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    # An untrained policy's own rewards are all -1.
    monkeypatch.setattr(alignment, "gold_reward", lambda *texts: (len(" ".join(texts)), True))
    task, other = (prepare("reviews-dpo", seed) for seed in (0, 1))
    both = [prompt for prompt in few["train"] for _ in range(2)]
    *sequences, words = alignment.sample(task.policy, both, 0)
    assert all(torch.equal(found.flatten(0, 1), part) for found, part in zip(task.pairs, sequences))
    truth = [alignment.gold_reward(*each)[0] for each in zip(both, words)]
    assert task.gold.flatten().tolist() == pytest.approx(truth)
    own = {domain: alignment.labelled_pairs(domain, 0) for domain in text.SOURCE}
    for model, found in zip(teachers.text_weak_models(own, 2, 0, "cpu").values(), task.rewards.unbind(-1)):
        torch.testing.assert_close(found, model(list(zip(words[::2], words[1::2]))))
    assert not torch.equal(other.pairs[0], task.pairs[0]) and other.prompts == task.prompts == few


def test_labelled_pairs_teach_a_domain_better_than_the_target():
    own = {domain: alignment.labelled_pairs(domain, 0) for domain in text.SOURCE}
    hotels = alignment.labelled_pairs("hotels", 1)
    for domain, model in teachers.text_weak_models(own, 2, 0, "cpu").items():
        split = alignment.labelled_pairs(domain, 1)
        right = [(model(each.x).argmax(1) == each.y).double().mean() for each in (split, hotels)]
        assert right[0] > max(0.65, right[1]) and split.y.double().mean() < 0.7
        assert model([(" ".join(text.PRAISE), " ".join(text.BLAME))]).argmax() == 0


WORDS = "how are you good bad fine no yes maybe".split()


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny Llama with random weights and a tokenizer of whole words, in a folder."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    vocabulary = ["<unk>", "</s>", "Human", "Assistant", ":", *WORDS]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ending = {"single": "$A </s>", "special_tokens": [("</s>", 1)]}  # as some do
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(**ending)
    ends = {"unk_token": "<unk>", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)
    torch.manual_seed(0)
    small = {"vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 32, "eos_token_id": 1}
    small |= {"num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": None}
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small))
    network.generation_config.no_repeat_ngram_size = 1  # checkpoints bring such rules; a policy has none
    for each in (network, tokenizer):
        each.save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


@pytest.fixture
def dialogue_files(tmp_path):
    """60 pairs of answers per domain, some with two turns; "good" is helpful, "bad" is harmless."""
    rng = random.Random(0)
    for domain, better in (("helpful-base", ("good", "bad")), ("harmless-base", ("bad", "good"))):
        rows = []
        for i in range(60):
            start = f"\n\nHuman: {domain} {i} {' '.join(rng.choices(WORDS, k=6))}\n\nAssistant:"
            start += " yes\n\nHuman: how\n\nAssistant:" if i % 3 == 0 else ""
            ends = [" ".join([start, word, *rng.choices(WORDS, k=rng.randrange(5))]) for word in better]
            rows.append(dict(zip(("chosen", "rejected"), ends)))
        write_lines(tmp_path / "files" / domain / "test.jsonl", rows)
    return str(tmp_path / "files")


def test_a_pretrained_policy_in_any_company(checkpoint, monkeypatch):
    """Log-probabilities with and without padding; sampling from prompts of different lengths."""
    monkeypatch.setattr(alignment.PretrainedPolicy, "longest", 6)
    policy = alignment.PretrainedPolicy(checkpoint)
    for weight in policy.parameters():
        weight.data.mul_(10 if weight.dim() > 1 else 1)  # so that what was read matters
    prompts, responses = ["Human : how", "Human : how are you Assistant :"], [" good", " fine yes maybe no"]
    ids, own = list(map(policy.prompt_ids, prompts)), list(map(policy.response_ids, prompts, responses))
    tokens, response = alignment.collate(ids, own)
    assert all(each[-1] == policy.end for each in own)
    assert list(map(policy.decode, own)) == ["good", "fine yes maybe no"]
    with torch.no_grad():
        together = raven_dpo.log_probs(policy, tokens[None], response[None])
        alone = raven_dpo.log_probs(policy, tokens[None, [0, 0], :5], response[None, [0, 0], :5])
        expected = policy(tokens[:1, :3])[0, -1].softmax(-1)
    torch.testing.assert_close(alone[0, 0], together[0, 0])
    monkeypatch.setattr(policy.model.generation_config, "max_new_tokens", 1)
    first = alignment.sample(policy, prompts * 1500, 4)[0][::2, 3]  # after the left-padded prompt
    assert (first.bincount(minlength=len(expected)) / 1500 - expected).abs().max() < 0.05


@pytest.mark.parametrize("lora", ["", "--lora 4"])
def test_a_pretrained_policy_is_aligned_end_to_end(lora, checkpoint, dialogue_files, monkeypatch, tmp_path):
    pytest.importorskip("peft") if lora else None
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(alignment, "NUM_TEST", 5)
    monkeypatch.setattr(alignment.PretrainedPolicy, "longest", 6)
    flags = "--task hh-helpful-harmless --seeds 0 --steps 18 --lr 1e-3 --batch-size 8 --device cpu"
    flags += f" --micro-batch 3 --supervision gold --policy {checkpoint} --data-dir {dialogue_files} {lora}"
    [row] = run_script(raven_dpo, *flags.split())
    assert row["task"] == "hh-helpful-harmless" and row["reward_models"] == ["all", "noisy", "few"]
    assert re.fullmatch(r"checkpoint-[0-9a-f]{12}", row["flags"]["policy"])
    assert row["n_test"] == 5 and row["kl"] > 0 and 1 <= row["length"] <= 6 and 0 < row["well_formed"] <= 1
    assert row["history"][-1]["chosen"] > row["history"][-1]["rejected"]


def test_lora_trains_adapters_alone_and_starts_as_the_model(checkpoint):
    pytest.importorskip("peft")
    plain, adapted = alignment.PretrainedPolicy(checkpoint), alignment.PretrainedPolicy(checkpoint, 2)
    tokens = torch.tensor([[2, 4, 5, 6]])
    torch.testing.assert_close(adapted(tokens).float(), plain(tokens), atol=0.02, rtol=0.02)  # bfloat16
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained and all("lora" in name for name in trained)
    assert adapted.model.peft_config["default"].lora_alpha == 4  # twice the rank


def test_lora_without_its_package_is_one_clear_line(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(data.InputError, match="--lora needs the package peft"):
        alignment.PretrainedPolicy(checkpoint, 8)


def test_dialogues_rewards_and_judge(checkpoint, dialogue_files, monkeypatch, tmp_path):
    """Dialogues are cut at their last answer; reward models know helpfulness, the judge the truth."""
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    task = prepare("hh-helpful-harmless", 0, dialogue_files, checkpoint)
    hh = data.load("hh-helpful-harmless", 0, dialogue_files)
    assert task.gold.argmax(1).tolist() == hh.strong_train.y.tolist()
    dialogues = [dialogue for pair in hh.strong_train.x for dialogue in pair]
    for dialogue, tokens, own in zip(dialogues, *(part.flatten(0, 1) for part in task.pairs), strict=True):
        response = task.policy.decode(tokens[own].tolist())
        assert dialogue.rstrip().endswith(response) and response.split()[0] in ("good", "bad")
    for split in ("val", "test"):
        prompts = {dialogue.rpartition("Assistant:")[0] for pair in getattr(hh, split).x for dialogue in pair}
        assert {prompt.removesuffix("Assistant:") for prompt in task.prompts[split]} == prompts
    right = task.rewards.argmax(1) == task.gold.argmax(1, keepdim=True)
    assert right[:, 0].double().mean() < 0.4  # it was taught that "good" is better
    every, noisy, few = task.rewards.unbind(-1)
    assert not torch.allclose(every, noisy) and not torch.allclose(every, few)
    said = [" bad fine", " bad fine\n\nHuman: good", " good fine", "  \n\nHuman: bad"]  # cut at "Human:"
    worth, well_formed = task.judge(task.prompts["test"][:1] * 4, said)
    torch.testing.assert_close(worth[0], worth[1])
    assert worth[0] > worth[2] and well_formed.tolist() == [True, True, True, False]


def test_an_unknown_policy_is_one_clear_line(dialogue_files, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(data.InputError, match="cannot use no/such-model: [^\n]{,300}$"):
        prepare("hh-helpful-harmless", 0, dialogue_files, "no/such-model")
