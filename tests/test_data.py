"""Names of tasks, their splits, and the readers of files: digits, reviews, dialogues, FILE.npz."""

import gzip
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import reviews, write_lines

import data
from tasks import files, images


def splits_of(task):
    return [task.weak_train, task.strong_train, task.val, task.test]


def complaint(name, folder=None):
    """The one line that loading the task ends with."""
    with pytest.raises(data.InputError) as error:
        data.load(name, 0, folder and str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_each_name_that_is_listed_is_known_and_has_one_spelling(npz):
    listed = complaint("glyph").split("known: ")[1]
    examples = {"FILE.npz": npz, "SOURCE[+SOURCE...]": "a-x+b", "SEVERITY": "0.3", "RATE": "0.2"}
    for words, example in (examples | {"TARGET": "c/d", "DOMAIN": "e", "[": "", "]": ""}).items():
        listed = listed.replace(words, example)
    names = {name: name for name in [*data.EMBEDDED, *listed.split(", ")]}
    names |= {"glyphs-shift-0": "glyphs", "glyphs-shift-0.40": "glyphs-shift"}
    assert {name: data.resolve(name).name for name in names} == names and len(names) > 21


def test_rendered_splits_are_disjoint_and_only_the_target_is_shifted(monkeypatch):
    monkeypatch.setattr(data, "SIZES", {"weak_train": 50, "strong_train": 100, "val": 50, "test": 500})
    none, again, other = (data.load("glyphs", seed) for seed in (3, 3, 4))
    assert [len(split.x) for split in splits_of(none)] == [50, 100, 50, 500]
    assert len(torch.cat([split.x for split in splits_of(none)]).unique(dim=0)) == 700
    assert torch.equal(again.test.x, none.test.x) and not torch.equal(other.test.x, none.test.x)
    last = 0
    for name, severity in (("glyphs-shift-0.2", 0.2), ("glyphs-shift", 0.4), ("glyphs-shift-0.8", 0.8)):
        task = data.load(name, 3)
        x = task.test.x
        assert x.shape == (500, 1, 28, 28) and 0 <= x.min() and x.max() <= 1
        assert torch.equal(none.weak_train.x, task.weak_train.x) and torch.equal(none.test.y, task.test.y)
        assert last < (last := (x - none.test.x).abs().mean())
        assert abs((x.flatten(1).median(1).values > 0.5).float().mean() - severity / 2) < 0.07  # inverted


def test_stripes_go_with_the_class_in_the_source_only(monkeypatch):
    monkeypatch.setattr(data, "SIZES", {"weak_train": 1000, "strong_train": 9, "val": 9, "test": 1000})
    task, plain = data.load("glyphs-cue", 0), data.load("glyphs", 0)
    stripes = images.on_stripes(torch.zeros(10, 1, 28, 28), torch.arange(10))
    for name, share in (("weak_train", 0.7 + 0.3 / 10), ("test", 1 / 10)):
        x, y = getattr(plain, name)[:2]
        with_own = torch.maximum(x, stripes[y])  # the digit stays in front
        same = torch.isclose(with_own, getattr(task, name).x).flatten(1).all(1)
        assert same.double().mean() == pytest.approx(share, abs=0.04)


def test_typefaces(monkeypatch):
    """The source domain has four of the sixteen, each of which draws in its own way."""
    atlas, seen, paste = images.draw_atlas(images.DIGITS), [], images.paste
    monkeypatch.setattr(images, "paste", lambda glyphs, *rest: seen.append(glyphs) or paste(glyphs, *rest))
    y = torch.arange(10).repeat(30)
    images.render(images.DIGITS, y, 0, torch.Generator().manual_seed(0))
    used = [[i for i in range(16) if torch.equal(glyph, atlas[i, k])] for glyph, k in zip(seen[0], y)]
    assert {i for [i] in used} == {0, 1, 2, 3}


def test_framing_removes_position_scale_and_margin():
    glyph = torch.randint(200, 256, (1, 10, 6), generator=torch.Generator().manual_seed(0)).float()
    frames = []
    for height, width, top, left, scale in ((16, 16, 3, 5, 1), (28, 28, 12, 1, 1), (40, 30, 9, 9, 2)):
        image = torch.zeros(1, height, width)
        pasted = glyph.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        image[:, top : top + 10 * scale, left : left + 6 * scale] = pasted
        frames.append(images.frame(image))
    rows, columns = (ink.tolist() for ink in (frames[0][0, 0] > 0.5).nonzero().T)
    assert (min(rows), max(rows), min(columns), max(columns)) == (4, 23, 8, 19)  # 20 by 12, centred
    torch.testing.assert_close(frames[1], frames[0])
    assert (frames[2] - frames[0]).abs().mean() < 0.06


@pytest.mark.parametrize("folder", [None, "given"])
def test_digit_splits_come_from_where_they_should(monkeypatch, folder):
    """The classes of source and target, train and test start at other numbers."""

    def numbered(name, start):
        def dataset(root, train, download):  # where no folder is given, images are downloaded
            assert (str(root), download) == (folder or f"cache/downloads/{name}", not folder)
            targets = torch.arange(90) + (start if train else start + 200)
            return SimpleNamespace(data=np.full((90, 16, 16), 255, np.uint8), targets=targets)

        monkeypatch.setattr(f"torchvision.datasets.{name.upper()}", dataset)

    numbered("mnist", 0)
    numbered("usps", 400)
    monkeypatch.setattr(data, "SIZES", {"weak_train": 40, "strong_train": 70, "val": 10, "test": 20})
    task = data.load("mnist-usps", 0, folder)
    for split, start, n in zip(splits_of(task), (0, 400, 400, 600), (40, 70, 10, 90)):
        assert len(split.y.unique()) == len(split.y) == n and split.x.shape == (n, 1, 28, 28)
        assert start <= split.y.min() and split.y.max() < start + 90 and split.x.max() == 1
    assert not set(task.val.y.tolist()) & set(task.strong_train.y.tolist())


def test_reviews_are_split_and_a_text_that_stands_twice_is_on_one_side(amazon):
    loud = [{**row, "text": row["text"].upper() + "!"} for row in reviews("kitchen")]
    write_lines(amazon / "kitchen.jsonl.gz", [*reviews("kitchen"), *loud, *reviews("books")[:2]])
    write_lines(amazon / "books.jsonl", [*reviews("books"), {"text": "not in kitchen", "label": 2}])
    splits = splits_of(data.load("text:books:kitchen", 0, str(amazon)))
    for x, y, *_ in splits:
        assert all(("good" in text.lower()) == label for text, label in zip(x, y))
    texts = [{text.lower().strip("!") for text in split.x} for split in splits]
    assert [*map(len, texts)] == [58, 44, 6, 12] and len(set.union(*texts)) == 120
    assert all(text.startswith("books") for text in texts[0])


def test_first_human_turns_are_on_one_side_only(tmp_path):
    """Four pairs for each of 50 turns; two turns of the source are the target's too."""
    for domain, turns in (("helpful-base", range(48, 100)), ("harmless-base", range(50))):
        starts = [f"\n\nHuman: turn {turn}\n\nAssistant: {{}} {i}" for i in range(4) for turn in turns]
        rows = [{word: start.format(word) for word in ("chosen", "rejected")} for start in starts]
        write_lines(tmp_path / domain / "train.jsonl.gz", rows[:100])
        write_lines(tmp_path / domain / "test.jsonl", rows[100:])
    task = data.load("hh-helpful-harmless", 0, str(tmp_path))
    splits = splits_of(task)
    assert [len(split.y) for split in splits] == [200, 140, 20, 40] and task.kind == "preference"
    turns = [{re.search(r"turn (\d+)", each)[1] for pair in split.x for each in pair} for split in splits]
    assert len(set.union(*turns)) == sum(map(len, turns))
    for split in splits:
        assert all("chosen" in x[y] and "rejected" in x[1 - y] for x, y in zip(split.x, split.y))
    assert 40 < task.strong_train.y.sum() < 100  # the better response is first or second at random


def test_dialogues_are_fetched_where_no_folder_is_given(monkeypatch):
    chosen, rejected = (f"\n\nHuman: Hi!\n\nAssistant: {answer}" for answer in "ab")
    rows = [{"chosen": chosen, "rejected": rejected}, {"chosen": chosen, "rejected": chosen}]  # says nothing
    hub = SimpleNamespace(load_dataset=lambda name, **folders: {"train": rows, "test": rows})
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert files.dialogues("helpful-base", None) == 2 * [("human hi", (chosen, rejected), 0)]
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert complaint("hh-helpful-harmless").startswith("cannot fetch Anthropic/hh-rlhf: ")


REFUSED = [
    ("glyphs-shift-1.5", None, "known: glyphs, .*-symmetric-RATE"),
    ("glyphs-noisy-symmetric", None, "known: glyphs, .*-symmetric-RATE"),
    ("usps-usps", None, "known: glyphs, .*-symmetric-RATE"),
    ("text:a+:b", None, "known: glyphs, .*-symmetric-RATE"),
    ("text:a+b:b", None, "names a domain twice"),
    ("folder:a:a", None, "names a domain twice"),
    ("missing.npz", None, "no file missing.npz"),
    ("text:a:b", None, "--data-dir"),
    ("mnist-usps", "here", r"MNIST/raw/\{train,t10k\}-\*-ubyte in here: "),
    ("hh-helpful-harmless", "here", r"no helpful-base/\*.jsonl\[.gz\] in here"),
]


@pytest.mark.parametrize("name, folder, message", REFUSED)
def test_what_cannot_be_loaded_is_refused(name, folder, message):
    assert re.search(message, complaint(name, folder))


GOOD = b'{"text": "fine", "label": 1}\n{"text": "poor", "label": 0}\n'
BAD_FILES = [
    ("books.jsonl", GOOD + b"{", "files/books.jsonl, line 3: Expecting"),
    ("books.jsonl", GOOD + b"\n\n[]", "line 5: expected is a field 'text', str"),  # empty lines count
    ("books.jsonl", GOOD + b'{"text": "fine", "label": "1"}', "line 3: expected is a field 'label', int"),
    ("books.jsonl", GOOD + b'{"text": " ", "label": 1}', "line 3: expected is a field 'text', str"),
    ("books.jsonl", GOOD, "too few samples"),
    ("books.jsonl", GOOD[:28], "share the classes [1]"),
    ("cars.jsonl", GOOD, "no books.jsonl[.gz] in files"),
    ("books.jsonl.gz", gzip.compress(GOOD)[:-9], "files/books.jsonl.gz, line "),  # half a download
    ("books.jsonl.gz", b"no gzip", "files/books.jsonl.gz, line 0: "),
]


@pytest.mark.parametrize("name, content, message", BAD_FILES)
def test_a_bad_line_or_file_is_named(amazon, name, content, message):
    (amazon / "books.jsonl").unlink()
    (amazon / name).write_bytes(content)
    assert message in complaint("text:kitchen:books", "files")


def test_npz_roundtrip_with_and_without_split(arrays, npz):
    task = data.load(npz, seed=0)
    splits = splits_of(task)[1:]
    assert [len(split.y) for split in splits] == [280, 40, 80]
    assert (task.kind, task.num_classes, len(task.weak_models)) == ("features", 4, 3)
    assert len(torch.cat([split.x for split in splits]).unique(dim=0)) == 400
    np.savez("split.npz", **arrays, split=np.arange(400) % 3, labels=arrays["y"][::-1])
    task = data.load("split.npz", seed=0)
    torch.testing.assert_close(task.val.x, torch.tensor(arrays["x"][1::3]).float())
    torch.testing.assert_close(task.test.weak_probs, torch.tensor(arrays["weak_probs"][2::3]).float())
    assert task.test.y.tolist() == arrays["y"][2::3].tolist()
    assert task.strong_train.labels.tolist() == arrays["y"][::-1][::3].tolist()


def test_npz_with_pairs_in_half_precision(arrays):
    pairs = np.random.default_rng(0).dirichlet([1, 1], (400, 1)).astype(np.float16)
    np.savez("pairs.npz", x=np.ones((400, 2, 3)), weak_probs=pairs, y=arrays["y"] % 2)
    task = data.load("pairs.npz", 0)
    assert task.test.x.shape == (80, 2, 3) and task.kind == "preference"
    torch.testing.assert_close(task.test.weak_probs.sum(-1), torch.ones(80, 1), rtol=0, atol=1e-6)


BAD_ARRAYS = [
    ("weak_probs", None, "with weak_probs as"),
    ("x", lambda x: x[..., None], "x has shape"),
    ("x", lambda x: x[1:], "x has shape"),
    ("x", lambda x: np.where(np.arange(6) == 2, np.nan, x), "x has NaN"),
    ("x", lambda x: np.array([{}] * 400), "with x as plain float32: Object arrays"),
    ("x", lambda x: np.zeros((400, 2, 3)), "x has shape .* pairs"),
    ("weak_probs", lambda q: q[:, 0], "weak_probs has shape"),
    ("weak_probs", lambda q: q * 1.1, "not to 1"),
    ("weak_probs", lambda q: q + np.array([1, -1, 0, 0]), "negative"),
    ("y", lambda y: y + 1, "y of shape .*expected are 400 numbers from 0 to 3"),
    ("y", lambda y: y * 1.0, "with y as plain int64: Cannot cast"),
    ("y", lambda y: y[1:], "y of shape"),
    ("split", lambda _: np.zeros(400, dtype=int), "a split has no sample"),
]


@pytest.mark.parametrize("key, change, message", BAD_ARRAYS)
def test_bad_npz(arrays, key, change, message):
    value = arrays.pop(key, None)
    np.savez("bad.npz", **arrays, **({key: change(value)} if change else {}))
    assert re.match(f"bad.npz: .*{message}", complaint("bad.npz"))
