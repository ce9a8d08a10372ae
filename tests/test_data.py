import os

import numpy as np
import pytest
import torch

import data
import images

DIGITS_DIR = os.environ.get("DIGITS_DIR")  # a folder that torchvision has downloaded MNIST and USPS into


@pytest.mark.parametrize(
    "name, severity",
    [
        ("glyphs", 0),
        ("glyphs-shift", 0.4),
        ("glyphs-shift-0.65", 0.65),
        ("glyphs-shift-.8", 0.8),
        ("glyphs-shift-0", 0),
        ("glyphs-shift-1", 1),
        ("glyphs-shift-1.5", None),
        ("glyphs-shift-", None),
        ("mnist-usps", None),
        ("glyph", None),
    ],
)
def test_severity(name, severity):
    assert data.severity(name) == severity


@pytest.mark.parametrize("name", ["glyph", "glyphs-shift-2", "mnist", "usps-usps", "missing.npz", ""])
def test_unknown_names(name):
    with pytest.raises(data.InputError, match="unknown task|no file"):
        data.check_name(name)


def test_a_task_has_one_name():
    names = [
        "glyphs",
        "glyphs-shift-0",
        "glyphs-shift",
        "glyphs-shift-0.40",
        "glyphs-shift-.4",
        "glyphs-shift-.60",
    ]
    expected = ["glyphs", "glyphs", "glyphs-shift", "glyphs-shift", "glyphs-shift", "glyphs-shift-0.6"]
    assert [data.check_name(name) for name in names] == expected
    assert data.check_name("mnist-usps") == "mnist-usps"


def unique(rows):
    return {row.numpy().tobytes() for row in rows}


def test_rendered_splits_are_disjoint_large_enough_and_fixed_by_the_seed():
    task = data.load("glyphs-shift", seed=3)
    splits = [task.weak_train, task.strong_train, task.val, task.test]
    assert len(task.strong_train.y) >= 5000 and len(task.test.y) >= 2000
    drawn = [unique(split.x) for split in splits]
    assert len(set.union(*drawn)) == sum(len(split.y) for split in splits)
    for split in splits:
        assert split.x.shape[1:] == (1, 28, 28) and 0 <= split.x.min() and split.x.max() <= 1
        assert (split.y.bincount(minlength=10) > 0.07 * len(split.y)).all()
    again, other = data.load("glyphs-shift", seed=3), data.load("glyphs-shift", seed=4)
    assert torch.equal(again.test.x, task.test.x) and torch.equal(again.test.y, task.test.y)
    assert not torch.equal(other.test.x, task.test.x)


def test_severity_changes_the_target_domain_only():
    none, mild, strong = (data.load(f"glyphs-shift-{severity}", seed=0) for severity in (0, 0.2, 0.8))
    assert torch.equal(none.weak_train.x, strong.weak_train.x)
    assert torch.equal(none.test.y, strong.test.y)
    assert torch.equal(none.test.x, data.load("glyphs", seed=0).test.x)
    distances = [(task.test.x - none.test.x).abs().mean() for task in (none, mild, strong)]
    assert 0 == distances[0] < distances[1] < distances[2]
    inverted = [
        (task.test.x.flatten(1).median(1).values > 0.5).float().mean() for task in (none, mild, strong)
    ]
    assert inverted[0] == 0 and abs(inverted[1] - 0.1) < 0.03 and abs(inverted[2] - 0.4) < 0.05


def test_source_domain_has_four_typefaces_only():
    """A source image without jitter is one of the source typefaces' glyphs."""
    atlas = images.draw_atlas(images.DIGITS)
    assert len(images.TYPEFACES) == 16 == len(set(images.TYPEFACES)) == len(atlas)
    seen = []
    original = images.paste
    try:
        images.paste = lambda glyphs, *rest: seen.append(glyphs) or original(glyphs, *rest)
        y = torch.arange(10).repeat(50)
        images.render(atlas, y, torch.zeros(500), torch.Generator().manual_seed(0))
    finally:
        images.paste = original
    assert all(
        any(torch.equal(glyph, known) for known in atlas[:4, digit]) for glyph, digit in zip(seen[0], y)
    )


def test_letters_have_no_digit():
    assert not set(images.LETTERS) & set(images.DIGITS)
    assert len(images.LETTERS) == 52


def test_every_glyph_is_drawn_whole_and_differs_between_typefaces():
    atlas = images.draw_atlas(images.DIGITS)
    assert atlas.flatten(2).amax(2).min() > 0.9
    assert (
        atlas[..., 0, :].max()
        == atlas[..., -1, :].max()
        == atlas[..., :, 0].max()
        == atlas[..., :, -1].max()
        == 0
    )
    for digit in range(10):
        assert len(unique(atlas[:, digit])) == 16


def test_framing_removes_position_scale_and_margin():
    generator = torch.Generator().manual_seed(0)
    glyph = torch.randint(200, 256, (1, 10, 6), generator=generator).float()
    frames = []
    for height, width, top, left, scale in ((16, 16, 3, 5, 1), (28, 28, 12, 1, 1), (40, 30, 9, 9, 2)):
        image = torch.zeros(1, height, width)
        pasted = glyph.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        image[:, top : top + 10 * scale, left : left + 6 * scale] = pasted
        frames.append(data.frame(image))
    ink = frames[0][0, 0] > 0.5
    rows, columns = ink.any(1).nonzero()[:, 0], ink.any(0).nonzero()[:, 0]
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (
        4,
        23,
        8,
        19,
    )  # 20 high, 12 wide, centred
    torch.testing.assert_close(frames[1], frames[0])
    assert (frames[2] - frames[0]).abs().mean() < 0.06
    assert data.frame(torch.zeros(2, 16, 16)).isfinite().all()


@pytest.mark.skipif(not DIGITS_DIR, reason="DIGITS_DIR names no folder with the real digits")
@pytest.mark.parametrize("name, n_test, n_train", [("mnist-usps", 2007, 6291), ("usps-mnist", 10000, 7000)])
def test_real_digits(name, n_test, n_train):
    task = data.load(name, 0, DIGITS_DIR)
    assert (len(task.test.y), len(task.strong_train.y), len(task.val.y)) == (n_test, n_train, 1000)
    assert len(task.weak_train.y) == 4000
    assert not unique(task.val.x) & unique(task.strong_train.x)
    assert not unique(task.test.x) & unique(task.strong_train.x)


def test_digit_splits_come_from_where_they_should():
    """Each image holds its own number; source and target, train and test start at other numbers."""

    def numbered(start):
        y = torch.arange(start, start + 9000)
        return data.Split(y.float().view(-1, 1, 1, 1), y)

    source, target = ({"train": numbered(i), "test": numbered(i + 20000)} for i in (0, 40000))
    task = data.digits_task(source, target, seed=0)
    for split, start, n in (
        (task.weak_train, 0, 4000),
        (task.strong_train, 40000, 7000),
        (task.val, 40000, 1000),
        (task.test, 60000, 9000),
    ):
        assert len(split.y.unique()) == len(split.y) == n
        assert start <= split.y.min() and split.y.max() < start + 9000
        assert torch.equal(split.x.flatten().long(), split.y)
    assert not set(task.val.y.tolist()) & set(task.strong_train.y.tolist())
    other = data.digits_task(source, target, seed=1)
    assert not torch.equal(other.weak_train.y, task.weak_train.y) and not torch.equal(other.val.y, task.val.y)


def test_a_missing_or_damaged_folder_says_what_was_looked_for(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(data.InputError, match="MNIST/raw") as error:
            data.load("mnist-usps", 0, str(folder))
        assert str(folder) in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "usps.bz2").write_bytes(b"no bzip2")
    with pytest.raises(data.InputError, match="usps.bz2"):
        data.load("usps-mnist", 0, str(tmp_path))


def test_downloads_are_complete_or_absent(monkeypatch):
    """A stand-in for torchvision's data set: the first download breaks off, the second does not."""
    from torchvision import datasets

    attempts = []

    class Digits:
        def __init__(self, root, train, download):
            root = data.Path(root)
            if download:
                attempts.append(train)
                (root / f"{train}.txt").write_text("whole")
                if len(attempts) == 2:
                    raise OSError("connection lost")
            assert (root / f"{train}.txt").exists()
            self.data, self.targets = np.full((3, 16, 16), 255, dtype=np.uint8), [0, 1, 2]

    monkeypatch.setattr(datasets, "USPS", Digits)
    with pytest.raises(data.InputError, match="connection lost"):
        data.read_digits("usps", None)
    assert not (data.DOWNLOADS / "usps").exists()
    assert data.read_digits("usps", None)["test"].y.tolist() == [0, 1, 2]
    assert len(attempts) == 4
    data.read_digits("usps", None)
    assert len(attempts) == 4


# ------------------------------------------------------------------------------------------------- FILE.npz


def test_npz_roundtrip_with_and_without_split(arrays, npz):
    task = data.load(npz, seed=0)
    sizes = [len(split.y) for split in (task.strong_train, task.val, task.test)]
    assert sizes == [280, 40, 80] and task.num_classes == 4 and len(task.weak_models) == 3
    rows = torch.cat([split.x for split in (task.strong_train, task.val, task.test)])
    assert len(unique(rows)) == 400
    assert not torch.equal(data.load(npz, seed=1).test.x, task.test.x)
    np.savez("split.npz", **arrays, split=np.arange(400) % 3, labels=arrays["y"][::-1])
    task = data.load("split.npz", seed=0)
    torch.testing.assert_close(task.val.x, torch.tensor(arrays["x"][1::3]).float())
    torch.testing.assert_close(task.test.weak_probs, torch.tensor(arrays["weak_probs"][2::3]).float())
    assert task.labels.tolist() == arrays["y"][::-1][::3].tolist()


def test_half_precision_probabilities_are_renormalised(arrays):
    np.savez("half.npz", **arrays | {"weak_probs": arrays["weak_probs"].astype(np.float16)})
    sums = data.load("half.npz", 0).test.weak_probs.sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)


def test_npz_with_pairs(arrays):
    weak_probs = np.full((400, 1, 2), 0.5)
    np.savez("pairs.npz", x=np.ones((400, 2, 3)), weak_probs=weak_probs, y=arrays["y"] % 2)
    assert data.load("pairs.npz", 0).test.x.shape == (80, 2, 3)


def changed(key, value):
    return lambda arrays: arrays | {key: value(arrays) if callable(value) else value}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: {key: a[key] for key in ("x", "y")}, "missing: weak_probs"),
        (changed("x", np.zeros((400, 3, 4))), "x has shape"),
        (changed("x", np.zeros((0, 4))), "nothing in it"),
        (changed("x", np.zeros((399, 4))), "has shape"),
        (changed("x", lambda a: a["x"].astype(int)), "x has type int64, expected float32"),
        (changed("x", lambda a: np.where(np.arange(6) == 2, np.nan, a["x"])), "x has NaN"),
        (changed("x", lambda a: np.array([{}] * 400)), "not an .npz file of plain arrays"),
        (changed("x", np.zeros((400, 2, 3))), "pairs"),
        (changed("weak_probs", lambda a: a["weak_probs"][:, 0]), "weak_probs has shape"),
        (changed("weak_probs", lambda a: a["weak_probs"][:, :0]), "too small"),
        (changed("weak_probs", lambda a: a["weak_probs"] * 1.1), "not to 1"),
        (changed("weak_probs", lambda a: a["weak_probs"] * np.array([-1, 1, 1, 1.0])), "negative"),
        (changed("weak_probs", lambda a: a["weak_probs"] * np.inf), "weak_probs has NaN"),
        (changed("y", lambda a: a["y"] + 1), "y has values outside 0..3"),
        (changed("y", lambda a: a["y"] - 1), "y has values outside"),
        (changed("y", lambda a: a["y"] * 1.0), "y has type float64, expected int64"),
        (changed("x", lambda a: a["x"] * 1e300), "x has NaN, infinite or too large"),
        (changed("y", lambda a: a["y"].astype(str)), "y has type"),
        (changed("y", lambda a: a["y"][:, None]), "y has shape"),
        (changed("y", np.array(3)), "y has shape"),
        (changed("split", np.zeros(400, dtype=int)), "no sample in split val"),
        (changed("split", np.full(400, 3)), "split has values outside 0..2"),
        (changed("labels", lambda a: a["y"] + 1), "labels has values outside"),
    ],
)
def test_bad_npz(arrays, change, message):
    np.savez("bad.npz", **change(arrays))
    with pytest.raises(data.InputError, match=message) as error:
        data.load("bad.npz", seed=0)
    assert str(error.value).startswith("bad.npz: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_npz(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(data.InputError, match="not an .npz file"):
        data.load("bad.npz", seed=0)


def test_a_row_names_a_file_by_its_content(npz, tmp_path):
    name = data.row_name(npz)
    assert name.startswith("small.npz-") and str(tmp_path) not in name
    (tmp_path / "elsewhere").mkdir()
    copy = data.Path(npz).rename(tmp_path / "elsewhere" / "small.npz")
    assert data.row_name(str(copy)) == name
    copy.write_bytes(copy.read_bytes() + b" ")
    assert data.row_name(str(copy)) != name
    assert data.row_name("glyphs-shift") == "glyphs-shift"
