"""Generated reviews, the networks that read text, and what a student of text is given."""

import random
import re

import pytest
import torch
from conftest import reviews, write_lines

import data
import models
import store
import teachers
from tasks import text


def verdict_of(review: str) -> int:
    """The verdict of a review, found by taking the text apart, without the generator."""
    product, statements = re.fullmatch(r"(\w+) : (.*) \.", review).groups()
    [place] = [place for place in text.DOMAINS.values() if product in place.products]
    verdict = []
    for part in re.split(r" , | and | but ", statements):
        *negation, word, aspect = part.split()
        assert aspect in place.aspects and len(negation) < 2
        favourable = word in place.praise + text.PRAISE
        assert favourable != (word in place.blame + text.BLAME)
        verdict.append(favourable != bool(negation))
    for joint, before, after in zip(re.findall(r" (,|and|but) ", statements), verdict, verdict[1:]):
        assert joint == "," or (joint == "and") == (before == after)
    assert len(verdict) == text.STATEMENTS
    return 2 * sum(verdict) - len(verdict)


SIZES = {"weak_train": 200, "strong_train": 60, "val": 50, "test": 200}


@pytest.mark.parametrize("name", ["reviews", "reviews-shift", "preferences", "preferences-shift"])
def test_generated_splits(name, monkeypatch):
    """Sizes, domains, labels, the same again at the same seed, and no text on two sides."""
    monkeypatch.setattr(data, "TEXT_SIZES", SIZES)
    task, again = data.load(name, 1), data.load(name, 1)
    splits = [task.weak_train, task.strong_train, task.val, task.test]
    assert [len(split.y) for split in splits] == list(SIZES.values())
    assert (task.kind, task.num_classes) == ("preference" if "preferences" in name else "text", 2)
    target = text.TARGET if name.endswith("-shift") else text.SOURCE
    for split, domains in zip(splits, [text.SOURCE, target, target, target]):
        products = {product for domain in domains for product in text.DOMAINS[domain].products}
        assert {review.split()[0] for review in models.flat(split.x)} == products
        assert abs(split.y.double().mean() - 0.5) < 2.5 / len(split.y) ** 0.5
    texts = [set(models.flat(split.x)) for split in splits]
    assert len(texts := set.union(*texts)) == sum(len(models.flat(split.x)) for split in splits)
    words = " ".join(texts).split()
    for kind, share in ((text.NEGATIONS, 0.2), (text.PRAISE + text.BLAME, 0.3)):
        assert abs(sum(word in kind for word in words) / (len(texts) * text.STATEMENTS) - share) < 0.04
    assert again.test.x == task.test.x and torch.equal(again.test.y, task.test.y)
    for x, y in zip(task.test.x, task.test.y):
        verdicts = [verdict_of(each) for each in models.flat([x])]
        assert verdicts[y] > verdicts[1 - y] if len(verdicts) == 2 else (verdicts[0] > 0) == y
        assert len({each.split()[0] for each in models.flat([x])}) == 1  # a pair is on one product


def test_tokens():
    rows = text.encode(["novel : not dull plot .", "dull ."])
    assert [text.WORDS[token - 3] for token in rows[0, 1:-1]] == "novel : not dull plot .".split()
    assert rows[0, [0, -1]].tolist() == [text.BEGIN, text.END]
    assert rows[1, 3:].tolist() == [text.END, *[text.PAD] * 4]


def test_the_transformer_sees_no_future_token_no_padding_and_its_features_no_end():
    torch.manual_seed(0)
    transformer = text.CausalTransformer()
    tokens = text.encode([text.review(text.SOURCE, random.Random(i))[0] for i in range(8)])
    logits, changed = transformer(tokens), tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 50
    difference = (transformer(changed) - logits).abs()
    assert difference[..., :7].max() < 1e-5
    assert difference[..., 7].amax() > 1e-3 and difference[..., 8:].amax() > 1e-4  # a past one does
    padded = torch.nn.functional.pad(tokens, (0, 9), value=text.PAD)
    torch.testing.assert_close(transformer(padded)[..., : tokens.shape[1]], logits)
    without_end = tokens.masked_fill(tokens == text.END, text.PAD)  # its own embedding is never trained
    for other in (padded, without_end):
        torch.testing.assert_close(transformer.features(other), transformer.features(tokens))


def test_pool_by_hand():
    x = torch.arange(12.0).view(2, 3, 2)  # rows (0 1, 2 3, 4 5) and (6 7, 8 9, 10 11)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    expected = [[2, 3, 1, 2, 4, 6, 2, 4], [10, 11, 8, 9, 20, 22, 16, 18]]
    assert text.pool([x, 2 * x], mask).tolist() == expected


def test_pretraining_sees_all_domains_and_learns_to_predict(monkeypatch):
    seen, encode, fit = [], text.encode, models.fit
    monkeypatch.setattr(text, "encode", lambda texts: seen.append(texts) or encode(texts))
    monkeypatch.setattr(models, "fit", lambda m, x, y, **etc: seen.extend((x, y)) or fit(m, x, y, **etc))
    weights = models.pretrain_transformer(steps=4, device="cpu")
    texts, x, following = seen
    real = following != -100
    assert torch.equal(real, (x != text.PAD) & (x != text.END))  # no padding is ever to be predicted
    assert torch.equal(x[:, 1:][real[:, :-1]], following[:, :-1][real[:, :-1]])
    assert {each.split()[0] for each in texts} == {p for d in text.DOMAINS.values() for p in d.products}
    losses, model = [], text.CausalTransformer()
    for _ in range(2):
        losses.append(torch.nn.functional.cross_entropy(model(x), following).item())
        model.load_state_dict(weights)
    assert losses[1] < losses[0] - 0.5


def test_terms_vocabulary_and_bag_features_by_hand():
    assert text.terms("It's GOOD, not très bad!", False) == ["it's", "good", "not", "très", "bad"]
    assert text.terms("not so bad", True) == ["not", "so", "bad", "not so", "so bad"]
    texts = ["a a a b", "a b c", "b d", "b"]
    assert text.vocabulary(texts, False, size=9) == {"b": 1, "a": 2}  # c and d occur in one text only
    assert text.vocabulary(texts, False, size=1) == {"b": 1}
    features = text.bag_features(["b a a z", ""], texts, size=2)
    torch.testing.assert_close(features, torch.tensor([[1.0, 2.0], [0.0, 0.0]]).log1p())


@pytest.mark.parametrize("pairs", [False, True])
def test_a_class_is_the_mean_and_a_reward_the_sum_of_known_terms(pairs):
    model = text.BagOfWords(["good plot", "bad plot", "good bad", "plot"], False, 3, pairs)
    assert not model.bag.weight.any()
    torch.nn.init.normal_(model.bag.weight)
    good, bad, plot = (model.bag.weight[model.vocabulary[word]] for word in ("good", "bad", "plot"))
    logits = model(models.unflat(model.encode(["good unheard plot", "bad", "", "plot plot bad"]), pairs))
    sums = torch.stack([good + plot, bad, 0 * bad, 2 * plot + bad])
    expected = sums.view(2, 2) if pairs else sums / torch.tensor([[2], [1], [1], [3]])
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("name", ["reviews-shift", "preferences-shift"])
def test_supervision_of_generated_text(name, monkeypatch, tmp_path):
    """words: all samples; noisy: wrong labels; phrases: a quarter, and neighbouring words too."""
    monkeypatch.setattr(data, "TEXT_SIZES", SIZES)
    monkeypatch.setattr(models, "pretrain_transformer", lambda *_: text.CausalTransformer().state_dict())
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    seen, fit = [], models.fit
    monkeypatch.setattr(models, "fit", lambda *given, **etc: seen.append(given) or fit(*given, **etc))
    plain, task = data.load(name, 0), teachers.supervise(data.resolve(name), 0, None, "cpu", 1)
    pair = (2,) if task.kind == "preference" else ()
    assert task.encoder == "transformer" and task.weak_models == ["words", "noisy", "phrases"]
    assert task.strong_train.x.shape == (60, *pair, 576) and task.test.weak_probs.shape == (200, 3, 2)
    correct = (task.test.weak_probs.argmax(-1) == plain.test.y[:, None]).float().mean(0)
    assert (correct > 0.52).all() and (correct < 0.9).all()
    assert [(len(y), model.phrases) for model, _, y in seen] == [(200, False), (200, False), (50, True)]
    wrong = [(y != plain.weak_train.y[: len(y)]).double().mean().item() for _, _, y in seen]
    assert wrong[0] == wrong[2] == 0 and 0.05 < wrong[1] < 0.25  # half of 30 % happen to be right
    encoder = text.CausalTransformer()
    encoder.load_state_dict(models.pretrained("transformer", 1, "cpu"))
    alone = torch.cat([encoder.features(text.encode([each])) for each in models.flat(plain.val.x[:5])])
    torch.testing.assert_close(models.encode(plain, plain.val.x[:5], 1, "cpu").view_as(alone), alone)


def test_each_of_several_sources_has_a_weak_model_of_its_own(amazon):
    """What one source praises the other blames, and each weak model says what its own does."""
    words = ["good", "bad"]
    for domain, praise in (("first", "good"), ("second", "bad")):
        rows = [{"text": f"{word} {i}", "label": int(word == praise)} for i in range(20) for word in words]
        write_lines(amazon / f"{domain}.jsonl", rows)
    name = "text:first+second:kitchen"
    task = teachers.supervise(data.resolve(name), 0, str(amazon), "cpu", 1)
    assert task.encoder == "bag of words" and task.strong_train.x.shape == (42, 3)  # kitchen, good, bad
    assert task.weak_models == ["first", "second"]
    right = task.test.weak_probs.argmax(-1) == task.test.y[:, None]
    assert right.float().mean(0).tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_pretrained_model_reads_texts_alike_in_any_company(kind, tmp_path):
    """A tiny encoder or causal model with random weights, and a tokenizer of whole words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "books": 4, "kitchen": 5}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    small = {"vocab_size": 6, "hidden_size": 16, "intermediate_size": 32}
    small |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "bert":
        names, network = {"pad_token": "[PAD]"}, transformers.BertModel(transformers.BertConfig(**small))
    else:  # a causal model has no padding token of its own
        names = {"eos_token": "[PAD]"}
        network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]", **names)
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["good books", "bad", "good bad good kitchen books bad"]
    together = text.pretrained_features(str(tmp_path), texts, "cpu")
    assert together.shape == (3, 64)
    alone = text.pretrained_features(str(tmp_path), texts[::-1], "cpu", batch_size=1).flip(0)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_a_set_of_texts_is_read_once_for_all_seeds(amazon, monkeypatch):
    def read(name, texts, device):
        calls.append(texts)
        return torch.tensor([[float(each.split()[-1]), 1.0] for each in texts])

    calls, known = [], data.resolve("text:books:kitchen")
    monkeypatch.setattr(text, "pretrained_features", read)
    for seed in (0, 1):
        task = teachers.supervise(known, seed, str(amazon), "cpu", 1, text_encoder="model")
        numbers = [int(each.split()[-1]) for each in known.load(seed, str(amazon)).strong_train.x]
        assert task.strong_train.x[:, 0].argsort().tolist() == torch.tensor(numbers).argsort().tolist()
    assert [sorted(texts) for texts in calls] == [sorted(row["text"] for row in reviews("kitchen"))]


def test_a_model_that_cannot_be_used_is_one_clear_line(amazon, monkeypatch):
    def read(name, texts, device):
        raise OSError("no such\nmodel")

    monkeypatch.setattr(text, "pretrained_features", read)
    with pytest.raises(data.InputError, match="cannot use no/such-model: no such model"):
        known = data.resolve("text:books:kitchen")
        teachers.supervise(known, 0, str(amazon), "cpu", 1, text_encoder="no/such-model")
