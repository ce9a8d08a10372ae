"""Generated reviews, the networks that read text, and the loaders of real text on small files."""

import gzip
import json
import random
import re
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

import data
import models
import store
import text
import training


def read(review: str) -> int:
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
    return sum(1 if favourable else -1 for favourable in verdict)


# ------------------------------------------------------------------------------------------ generated reviews


def test_reviews_mean_what_the_generator_says():
    rng = random.Random(0)
    drawn = [text.review(list(text.DOMAINS), rng) for _ in range(3000)]
    assert all(read(review) == verdict for review, verdict in drawn)
    assert abs(sum(verdict > 0 for _, verdict in drawn) / 3000 - 0.5) < 0.04
    assert len({review for review, _ in drawn}) == 3000
    joined = " ".join(review for review, _ in drawn)
    statements = 3000 * text.STATEMENTS
    negations = sum(joined.count(f" {word} ") for word in text.NEGATIONS)
    assert abs(negations / statements - 0.2) < 0.02
    mixed = sum(" but " in review for review, _ in drawn) / 3000
    assert 0.15 < mixed < 0.5
    shared = sum(word in text.PRAISE + text.BLAME for word in joined.split())
    assert abs(shared / statements - 0.3) < 0.02


def test_domains_share_words_have_their_own_and_disagree_about_some():
    own = {name: set(place.praise + place.blame) for name, place in text.DOMAINS.items()}
    for name, place in text.DOMAINS.items():
        assert not own[name] & {*text.PRAISE, *text.BLAME} and not set(place.praise) & set(place.blame)
        assert own[name] - set.union(*(own[other] for other in own if other != name))
    source = {word for name in text.SOURCE for word in text.DOMAINS[name].praise}
    target = {word for name in text.TARGET for word in text.DOMAINS[name].blame}
    assert len(source & target) >= 3
    assert not set(text.SOURCE) & set(text.TARGET)


def test_either_review_of_a_pair_may_stand_first():
    """The two verdicts are exchangeable, whatever they are."""
    rng = random.Random(0)
    verdicts = [tuple(map(read, text.pair(text.SOURCE, rng)[0])) for _ in range(4000)]
    common_first = sum(abs(a) > abs(b) for a, b in verdicts)
    rare_first = sum(abs(a) < abs(b) for a, b in verdicts)
    assert abs(common_first - rare_first) < 4 * (common_first + rare_first) ** 0.5
    assert all(a != b for a, b in verdicts)


def test_twenty_thousand_reviews_take_a_few_seconds():
    rng, start = random.Random(0), time.perf_counter()
    for _ in range(20_000):
        text.review(text.SOURCE, rng)
    assert time.perf_counter() - start < 5


def products(split):
    return {words.split()[0] for words in models.flat(split.x)}


@pytest.mark.parametrize("name", data.EMBEDDED[2:])
def test_generated_splits(name):
    """Sizes, domains, balance, the same again at the same seed, and no text on two sides."""
    task = data.load(name, seed=1)
    splits = [task.weak_train, task.strong_train, task.val, task.test]
    assert [len(split.y) for split in splits] == [200, 7000, 1000, 2000]
    assert (task.kind, task.num_classes) == ("preference" if "preferences" in name else "text", 2)
    source, target = (
        {product for place in places for product in text.DOMAINS[place].products}
        for places in (text.SOURCE, text.TARGET if name.endswith("-shift") else text.SOURCE)
    )
    for split in splits:
        assert products(split) == (source if split is task.weak_train else target)
        assert abs(split.y.double().mean() - 0.5) < 2.5 / len(split.y) ** 0.5
    texts = [set(models.flat(split.x)) for split in splits]
    assert len(set.union(*texts)) == sum(map(len, texts))
    again, other = data.load(name, seed=1), data.load(name, seed=2)
    assert again.test.x == task.test.x and torch.equal(again.test.y, task.test.y)
    assert other.test.x != task.test.x
    for x, y in zip(task.test.x[:300], task.test.y[:300]):
        if task.kind == "text":
            assert (read(x) > 0) == y
        else:
            verdicts = [read(each) for each in x]
            assert verdicts[y] > verdicts[1 - y] and x[0].split()[0] == x[1].split()[0]


# ----------------------------------------------------------------------------------------- causal transformer


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    return text.CausalTransformer()


@pytest.fixture(scope="module")
def tokens():
    rng = random.Random(0)
    return text.encode([text.review(text.SOURCE, rng)[0] for _ in range(8)])


def test_tokens(tokens):
    words = "novel : not dull plot .".split()
    [row] = text.encode([" ".join(words)]).tolist()
    assert row[0] == text.BEGIN and row[-1] == text.END
    assert [text.WORDS[token - 3] for token in row[1:-1]] == words
    for row in tokens:
        real = row != text.PAD
        assert row[0] == text.BEGIN and row[real.sum() - 1] == text.END and real[: real.sum()].all()


def test_a_future_token_never_changes_a_past_logit(transformer, tokens):
    logits = transformer(tokens)
    assert logits.shape == (8, len(text.WORDS) + 3, tokens.shape[1])
    for position in (1, 7, tokens.shape[1] - 1):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 50
        other = transformer(changed)
        torch.testing.assert_close(other[..., :position], logits[..., :position])
        assert (other[..., position] - logits[..., position]).abs().amax() > 1e-3
    later = (transformer(tokens[:, [0, 2, 1, *range(3, tokens.shape[1])]]) - logits)[..., 5:]
    assert later.abs().amax() > 1e-4  # but a past token does change what follows


def test_padding_changes_neither_logits_nor_features(transformer, tokens):
    padded = torch.nn.functional.pad(tokens, (0, 9), value=text.PAD)
    torch.testing.assert_close(transformer(padded)[..., : tokens.shape[1]], transformer(tokens))
    torch.testing.assert_close(transformer.features(padded), transformer.features(tokens))
    one_by_one = torch.cat([transformer.features(row[None, row != text.PAD]) for row in tokens])
    torch.testing.assert_close(transformer.features(tokens), one_by_one)


def test_features_end_with_the_last_word(transformer, tokens):
    """END, whose own embedding is never trained, does not count."""
    without_end = tokens.masked_fill(tokens == text.END, text.PAD)
    torch.testing.assert_close(transformer.features(without_end), transformer.features(tokens))


def test_pool_by_hand():
    x = torch.arange(12.0).view(2, 3, 2)  # rows (0 1, 2 3, 4 5) and (6 7, 8 9, 10 11)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    expected = [[2, 3, 1, 2, 4, 6, 2, 4], [10, 11, 8, 9, 20, 22, 16, 18]]
    assert text.pool([x, 2 * x], mask).tolist() == expected


def test_pretraining_sees_all_domains_and_learns_to_predict(monkeypatch):
    seen = []
    encode = text.encode
    monkeypatch.setattr(text, "encode", lambda texts: seen.extend(texts) or encode(texts))
    fit, trained_on = training.fit, []
    monkeypatch.setattr(
        training, "fit", lambda m, x, y, **etc: trained_on.extend((x, y)) or fit(m, x, y, **etc)
    )
    weights = models.pretrain_transformer(steps=25, device="cpu")
    x, following = trained_on
    real = following != -100
    assert torch.equal(real, (x != text.PAD) & (x != text.END))  # no padding is ever to be predicted
    assert torch.equal(x[:, 1:][real[:, :-1]], following[:, :-1][real[:, :-1]])
    assert {review.split()[0] for review in seen} == {p for d in text.DOMAINS.values() for p in d.products}
    model = text.CausalTransformer()
    held_out = encode([text.review(list(text.DOMAINS), random.Random(5))[0] for _ in range(50)])

    def loss():
        logits, following = model(held_out[:, :-1]), held_out[:, 1:]
        return torch.nn.functional.cross_entropy(logits, following, ignore_index=text.PAD).item()

    before = loss()
    model.load_state_dict(weights)
    assert loss() < before - 1.5
    assert not set(seen) & set(data.load("reviews-shift", seed=0).test.x)


# ---------------------------------------------------------------------------------------------- bags of words


def test_terms_and_vocabulary_by_hand():
    assert text.terms("It's GOOD, not bad!", False) == ["it's", "good", "not", "bad"]
    assert text.terms("Très bon", False) == ["très", "bon"]
    assert text.terms("not so bad", True) == ["not", "so", "bad", "not so", "so bad"]
    texts = ["a a a b", "a b c", "b d", "b"]
    assert text.vocabulary(texts, False, size=9) == {"b": 1, "a": 2}  # c and d occur in one text only
    assert text.vocabulary(texts, False, size=1) == {"b": 1}


def test_a_class_is_the_mean_and_a_reward_the_sum_of_known_terms():
    texts = ["good plot", "bad plot", "good bad", "plot"]
    for pairs, outputs in ((False, 3), (True, 1)):
        model = text.BagOfWords(texts, False, num_classes=3 if not pairs else 2, pairs=pairs)
        weight = torch.randn(len(model.vocabulary) + 1, outputs, generator=torch.Generator().manual_seed(0))
        model.bag.weight.data.copy_(weight)
        good, bad, plot = (weight[model.vocabulary[word]] for word in ("good", "bad", "plot"))
        ids = model.encode(["good unheard plot", "bad", "", "plot plot bad"])
        if not pairs:
            expected = torch.stack([(good + plot) / 2, bad, torch.zeros(3), (2 * plot + bad) / 3])
            torch.testing.assert_close(model(ids), expected)
        else:
            torch.testing.assert_close(
                model(models.unflat(ids, True)),
                torch.cat([good + plot, bad, 0 * bad, 2 * plot + bad]).view(2, 2),
            )
            # Swapping the responses swaps the logits; a shared prompt shifts both alike.
            swapped = model(models.unflat(ids[[1, 0, 3, 2]], True))
            torch.testing.assert_close(swapped, model(models.unflat(ids, True)).flip(1))
            prompted = model(models.unflat(model.encode(["good bad good plot", "good bad bad"]), True))
            plain = model(models.unflat(model.encode(["good plot", "bad"]), True))
            torch.testing.assert_close(prompted - plain, (good + bad).expand(1, 2))


def test_bag_features_by_hand():
    unlabelled = ["a a b", "a c", "b a"]
    features = text.bag_features(["a b b z", ""], unlabelled, size=2)
    torch.testing.assert_close(features, torch.tensor([[1.0, 2.0], [0.0, 0.0]]).log1p())


# ------------------------------------------------------------------------------------------------ supervision


@pytest.mark.parametrize("name", ["reviews-shift", "preferences-shift"])
def test_supervision_of_generated_text(name):
    task = models.supervise(name, 0, None, "cpu", encoder_steps=10)
    pair = (2,) if task.kind == "preference" else ()
    assert task.encoder == "transformer" and task.weak_models == ["words", "noisy", "phrases"]
    assert task.strong_train.x.shape == (7000, *pair, 576) and task.test.weak_probs.shape == (2000, 3, 2)
    features = task.strong_train.x.flatten(0, -2)
    assert features.mean(0).abs().max() < 1e-2 and abs(features.std(0).median() - 1) < 1e-2
    correct = (task.test.weak_probs.argmax(-1) == task.test.y[:, None]).float().mean(0)
    assert (correct > 0.55).all() and (correct < 0.8).all()


@pytest.mark.parametrize("name", ["reviews-shift", "preferences-shift"])
def test_each_text_keeps_its_place(name, monkeypatch):
    """Weak labels and features of a sample are those of its own texts; weak models see the source only."""
    task, seen = data.load(name, 0), []
    pairs = task.kind == "preference"

    def spy(split, num_classes, pairs, seed, device):
        seen.append(split)
        return {"length": lambda x: torch.tensor([lengths(each) for each in x])}

    def lengths(each):
        return [len(t) / 100 for t in each] if pairs else [len(each) / 100, len(each) / 50]

    monkeypatch.setattr(models, "text_weak_models", spy)
    monkeypatch.setattr(
        models, "transformer_features", lambda texts, *_: torch.tensor([[len(t)] for t in texts])
    )
    task_as_supervised = models.label_and_encode(name, 0, None, "cpu", 10, None)
    assert len(seen) == 1 and seen[0].x == task.weak_train.x
    for split in ("strong_train", "val", "test"):
        own, got = getattr(task, split), getattr(task_as_supervised, split)
        assert torch.equal(got.y, own.y)
        expected = torch.tensor([lengths(x) for x in own.x]).softmax(-1)
        torch.testing.assert_close(got.weak_probs[:, 0], expected)
        lengths_only = [[[len(t)] for t in x] if pairs else [len(x)] for x in own.x]
        assert got.x.tolist() == lengths_only


def test_weak_models_of_text_differ_and_pairs_are_symmetric():
    task = data.load("preferences", 0)
    weak_models = models.text_weak_models(task.weak_train, 2, True, seed=0, device="cpu")
    x = task.test.x[:50]
    for logits in weak_models.values():
        rewards = logits(x)
        assert rewards.shape == (50, 2)
        torch.testing.assert_close(logits([(b, a) for a, b in x]), rewards.flip(1))
    outputs = torch.stack([logits(x) for logits in weak_models.values()])
    assert all((outputs[i] - outputs[j]).abs().max() > 0.01 for i, j in ((0, 1), (0, 2), (1, 2)))


# -------------------------------------------------------------------------------------------------- real text


def write(path, rows, compress=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (gzip.open if compress else open)(path, "wt").write(lines)


def reviews(domain, n=60):
    return [{"text": f"{domain} {['bad', 'good'][i % 2]} {i}", "label": i % 2} for i in range(n)]


@pytest.fixture
def amazon(tmp_path):
    pytest.importorskip("datasets")
    write(tmp_path / "files" / "books.jsonl", reviews("books"))
    write(tmp_path / "files" / "kitchen.jsonl.gz", reviews("kitchen"), compress=True)
    return tmp_path / "files"


def dialogue(prompt, answer):
    return f"\n\nHuman: {prompt}\n\nAssistant: {answer}"


@pytest.fixture
def dialogues(tmp_path):
    """Four pairs for each of 50 first human turns; two turns of the source are the target's too."""
    pytest.importorskip("datasets")
    for domain, turns in (("helpful-base", range(48, 100)), ("harmless-base", range(50))):
        rows = [
            {
                "chosen": dialogue(f"turn {turn}", f"fine {domain} {i}"),
                "rejected": dialogue(f"turn {turn}", f"poor {domain} {i}"),
            }
            for i in range(4)
            for turn in turns
        ]
        for part, piece in (("train", rows[:100]), ("test", rows[100:])):
            write(tmp_path / "hh" / domain / f"{part}.jsonl.gz", piece, compress=True)
    return tmp_path / "hh"


def test_amazon(amazon):
    task = data.load("amazon-books-kitchen", 0, str(amazon))
    sizes = [len(split.y) for split in (task.weak_train, task.strong_train, task.val, task.test)]
    assert sizes == [60, 42, 6, 12] and (task.kind, task.num_classes) == ("text", 2)
    texts = [set(split.x) for split in (task.weak_train, task.strong_train, task.val, task.test)]
    assert len(set.union(*texts)) == 120
    for split in (task.weak_train, task.strong_train, task.val, task.test):
        domain = "books" if split is task.weak_train else "kitchen"
        assert all(x.startswith(domain) and ("good" in x) == y for x, y in zip(split.x, split.y))
    assert data.load("amazon-books-kitchen", 1, str(amazon)).test.x != task.test.x


def test_a_text_that_stands_twice_is_on_one_side(amazon):
    loud = [{**row, "text": row["text"].upper() + "!"} for row in reviews("kitchen")]
    rows = reviews("kitchen") + reviews("kitchen") + loud + reviews("books")[:2]
    write(amazon / "kitchen.jsonl.gz", rows, compress=True)
    task = data.load("amazon-books-kitchen", 0, str(amazon))
    splits = (task.weak_train, task.strong_train, task.val, task.test)
    texts = [{" ".join(text.terms(x, False)) for x in split.x} for split in splits]
    assert len(set.union(*texts)) == sum(map(len, texts)) and len(task.weak_train.y) == 58


def test_first_human_turns_are_on_one_side_only(dialogues):
    task = data.load("hh-helpful-harmless", 0, str(dialogues))
    splits = [task.weak_train, task.strong_train, task.val, task.test]
    assert [len(split.y) for split in splits] == [200, 140, 20, 40] and task.kind == "preference"
    turns = [{re.search(r"turn (\d+)", each)[1] for each in models.flat(split.x)} for split in splits]
    assert len(set.union(*turns)) == sum(map(len, turns))
    for split in splits:
        assert all("fine" in x[y] and "poor" in x[1 - y] for x, y in zip(split.x, split.y))
    assert 40 < task.strong_train.y.sum() < 100


def test_real_text_goes_through_a_method(amazon):
    import raven

    flags = f"--seeds 0 --data-dir {amazon} --batch-size 8 --lr 0.01".split()
    [row] = raven.main(["--task", "amazon-books-kitchen", *flags])
    assert (row["encoder"], row["combined"], row["n_test"]) == ("bag of words", "logits", 12)
    assert row["ceiling"] == 1 == row["weak"][0]


def test_other_data_give_another_row(amazon, monkeypatch):
    """Also where the folder's name is the same, and relative."""
    import naive

    monkeypatch.chdir(amazon.parent)
    monkeypatch.setattr(store, "CACHE", data.Path("cache"))
    command = "--task amazon-books-kitchen --seeds 0 --epochs 1 --data-dir files".split()
    [first] = naive.main(command)
    assert naive.main(command) == [first]
    write(amazon / "kitchen.jsonl.gz", reviews("kitchen", 90), compress=True)
    [second] = naive.main(command)
    assert (first["n_test"], second["n_test"]) == (12, 18)


GOOD = {"text": "fine", "label": 1}


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 3: Expecting"),
        ("[1]", "line 3: no field 'text'"),
        ({"text": "fine"}, "line 3: no field 'label'"),
        ({"label": 1}, "line 3: no field 'text'"),
        ({"text": " ", "label": 1}, "line 3: 'text' is empty"),
        ({"text": None, "label": 1}, "line 3: no field 'text'"),
        ({"text": "fine", "label": 1.5}, "line 3: 'label' is no int"),
        ({"text": "fine", "label": True}, "line 3: 'label' is no int"),
        ({"text": ["fine"], "label": 1}, "line 3: 'text' is no str"),
        ({"text": "fine", "label": 3}, "labels 0, 1, 3;"),
        ({"text": "fine", "label": -1}, "labels -1, 0, 1;"),
    ],
)
def test_a_bad_line_is_named(amazon, line, message):
    write(amazon / "books.jsonl", [GOOD, {"text": "poor", "label": 0}, line, GOOD])
    with pytest.raises(data.InputError, match=message) as error:
        data.load("amazon-books-kitchen", 0, str(amazon))
    assert "books.jsonl" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ([GOOD] * 20, "labels 1;"),
        ([], "books.jsonl"),
        (["{}"], "line 1: no field 'text'"),
    ],
)
def test_a_bad_file_is_named(amazon, content, message):
    write(amazon / "books.jsonl", content)
    with pytest.raises(data.InputError, match=message):
        data.load("amazon-books-kitchen", 0, str(amazon))


def test_other_bad_files(amazon, dialogues):
    (amazon / "books.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n{\n")
    with pytest.raises(data.InputError, match="line 2: Expecting"):  # not of the byte order mark
        data.load("amazon-books-kitchen", 0, str(amazon))
    for raw, fault in ((b"\xff\xfe\x80", "line 2"), (b"\xc3", "line 2")):
        (amazon / "books.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n" + raw)
        with pytest.raises(data.InputError, match=fault):
            data.load("amazon-books-kitchen", 0, str(amazon))
    (amazon / "books.jsonl").unlink()
    whole = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in reviews("books", 5000)))
    corrupt = whole[:200] + b"damage" + whole[206:]
    for damaged in (whole[: len(whole) // 2], corrupt, b"no gzip"):
        (amazon / "books.jsonl.gz").write_bytes(damaged)
        with pytest.raises(data.InputError, match="books.jsonl.gz") as error:
            data.load("amazon-books-kitchen", 0, str(amazon))
        assert "\n" not in str(error.value)
    write(amazon / "books.jsonl", [{"text": f"{i}", "label": i % 3} for i in range(30)])
    with pytest.raises(data.InputError, match="different labels"):
        data.load("amazon-books-kitchen", 0, str(amazon))
    write(amazon / "books.jsonl", reviews("books", 4))
    write(amazon / "kitchen.jsonl", reviews("kitchen", 4))
    with pytest.raises(data.InputError, match="too few"):
        data.load("amazon-books-kitchen", 0, str(amazon))
    kitchen = [{"text": f"k {i}", "label": i % 2} for i in range(30)]
    write(amazon / "kitchen.jsonl", [*kitchen, {"text": "once", "label": 1}])
    write(amazon / "books.jsonl", [*({"text": f"b {i}", "label": 0} for i in range(30)), kitchen[1]])
    with pytest.raises(data.InputError, match="one label only"):  # once the shared text is taken out
        data.load("amazon-books-kitchen", 0, str(amazon))
    write(amazon / "books.jsonl", [*kitchen, "", "{"])  # an empty line is none, and is counted
    with pytest.raises(data.InputError, match="line 32: "):
        data.load("amazon-books-kitchen", 0, str(amazon))
    write(dialogues / "harmless-base" / "test.jsonl.gz", [{"chosen": "a", "rejected": "b"}], compress=True)
    with pytest.raises(data.InputError, match="without 'Assistant:'"):
        data.load("hh-helpful-harmless", 0, str(dialogues))
    write(dialogues / "harmless-base" / "test.jsonl.gz", [{"chosen": "a"}], compress=True)
    with pytest.raises(data.InputError, match="line 1: no field 'rejected'"):
        data.load("hh-helpful-harmless", 0, str(dialogues))


def test_a_script_ends_with_one_line_and_status_2(amazon):
    write(amazon / "books.jsonl", [GOOD, "{"])
    command = [
        sys.executable,
        ROOT / "methods" / "naive.py",
        "--task",
        "amazon-books-kitchen",
        "--data-dir",
        amazon,
    ]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and "line 2" in result.stderr


def test_texts_without_a_common_word_are_one_clear_line(amazon):
    for domain in ("books", "kitchen"):
        (amazon / "kitchen.jsonl.gz").unlink(missing_ok=True)
        write(amazon / f"{domain}.jsonl", [{"text": f"{domain}{i}", "label": i % 2} for i in range(40)])
    with pytest.raises(data.InputError, match="no word occurs in two texts"):
        models.supervise("amazon-books-kitchen", 0, str(amazon), "cpu", 10)


def test_without_datasets_it_is_asked_for(amazon, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(data.InputError, match="pip install datasets"):
        data.load("amazon-books-kitchen", 0, str(amazon))


# -------------------------------------------------------------------------------- any Hugging Face text model


def test_without_transformers_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(data.InputError, match="pip install transformers"):
        models.pick_text_encoder("any/name")


@pytest.fixture(params=["bert", "llama"])
def checkpoint(request, tmp_path, amazon):
    """A tiny encoder or causal model with random weights, and a tokenizer of whole words, in a folder."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "books": 4, "kitchen": 5}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    small = {"vocab_size": 6, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2}
    if request.param == "bert":
        names = {"pad_token": "[PAD]"}
        network = transformers.BertModel(transformers.BertConfig(**small))
    else:
        names = {"eos_token": "[PAD]"}  # a causal model has no padding token of its own
        network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small))
    folder = tmp_path / "checkpoint"
    network.save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]", **names)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_pretrained_model_reads_texts_alike_in_any_company(checkpoint):
    texts = ["good books", "bad", "good bad good kitchen books bad"]
    together = text.pretrained_features(checkpoint, texts, "cpu")
    assert together.shape == (3, 64)
    for each, row in zip(texts, together):
        alone = text.pretrained_features(checkpoint, [each], "cpu")[0]
        torch.testing.assert_close(alone, row, rtol=1e-4, atol=1e-5)
    in_other_order = text.pretrained_features(checkpoint, texts[::-1], "cpu", batch_size=2)
    torch.testing.assert_close(in_other_order.flip(0), together, rtol=1e-4, atol=1e-5)


def test_a_pretrained_model_serves_a_method_and_is_read_once(checkpoint, amazon, monkeypatch):
    import naive

    monkeypatch.setattr(store, "CACHE", data.Path("cache"))
    calls = []
    read_texts = text.pretrained_features
    monkeypatch.setattr(
        text, "pretrained_features", lambda **arguments: calls.append(arguments) or read_texts(**arguments)
    )
    flags = f"--seeds 0 1 --data-dir {amazon} --text-encoder {checkpoint}".split()
    rows = naive.main(["--task", "amazon-books-kitchen", *flags])
    assert len(calls) == 1 and set(calls[0]["texts"]) == {row["text"] for row in reviews("kitchen")}
    for row in rows:
        assert re.fullmatch(r"checkpoint-[0-9a-f]{16}", row["encoder"])
        assert row["flags"]["text_encoder"] == row["encoder"]


def test_an_unknown_model_is_one_clear_line(amazon, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("no/such-model", str(amazon)):
        with pytest.raises(data.InputError, match="--text-encoder") as error:
            models.supervise(
                "amazon-books-kitchen", 0, str(amazon), "cpu", 10, models.pick_text_encoder(name)
            )
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
