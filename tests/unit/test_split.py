"""Lesions stay whole, classes keep their shares, and a saved split comes back the same."""

from __future__ import annotations

import hashlib
import json
import os
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dermalyze.config import CONF_DIR, target_problems
from dermalyze.data.split import (
    FromFiles,
    LesionStratified,
    Split,
    save_split,
)
from dermalyze.data.split_dealing import lesions_per_part
from dermalyze.errors import ConfigError, DataError
from dermalyze.taxonomy import HAM10000_CODES

PARTS = ("train", "val", "test")
HAM10000_LESIONS = {
    "akiec": 228, "bcc": 327, "bkl": 727, "df": 73, "mel": 614, "nv": 5403, "vasc": 98,
}  # fmt: skip


def drawn_table(lesions_of: dict[str, int], seed: int = 0) -> pd.DataFrame:
    """Lesions of one to six images in random order."""
    rng = np.random.default_rng(seed)
    dx = np.repeat(list(lesions_of), list(lesions_of.values()))
    lesion_ids = np.array([f"HAM_{n:07d}" for n in rng.permutation(len(dx))])
    lesion = np.repeat(np.arange(len(dx)), rng.choice([1, 2, 3, 4, 5, 6], len(dx), p=_SIZES))
    frame = pd.DataFrame({"lesion_id": lesion_ids[lesion], "dx": dx[lesion]})
    frame["image_id"] = [f"ISIC_{n:07d}" for n in rng.permutation(len(frame))]
    return frame.sample(frac=1, random_state=seed).reset_index(drop=True)


_SIZES = [0.7, 0.2, 0.06, 0.02, 0.01, 0.01]
CLASSES = ("bkl", "mel", "nv")
TABLE = drawn_table({"bkl": 11, "mel": 20, "nv": 43})
STRATIFIED = LesionStratified(val_size=0.15, test_size=0.15, seed=0)


def numbered(frame: pd.DataFrame, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The number of each row's lesion and of its class."""
    lesion = np.unique(frame["lesion_id"].to_numpy(str), return_inverse=True)[1]
    return lesion, pd.Index(classes).get_indexer(pd.Index(frame["dx"]))


def images_of_lesions(lesion: np.ndarray, split: Split) -> np.ndarray:
    """Images of each lesion in each part, shape (parts, lesions)."""
    count = lesion.max() + 1
    return np.stack([np.bincount(lesion[split.part(name)], minlength=count) for name in PARTS])


def lesion_counts(frame: pd.DataFrame, classes: tuple[str, ...], split: Split) -> np.ndarray:
    """Lesions of each class in each part, shape (classes, parts)."""
    lesion, label = numbered(frame, classes)
    label_of_lesion = label[np.unique(lesion, return_index=True)[1]]
    held = images_of_lesions(lesion, split) > 0
    return np.stack([held[:, label_of_lesion == n].sum(1) for n in range(len(classes))])


def check(
    lesion: np.ndarray, label: np.ndarray, split: Split, shares: tuple[Fraction, ...]
) -> None:
    """Hold a split against everything it promises."""
    rows = np.concatenate([split.train, split.val, split.test])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(lesion)))
    for name in PARTS:
        assert split.part(name).dtype == np.int64
        assert (np.diff(split.part(name)) > 0).all()
    images = images_of_lesions(lesion, split)
    assert ((images > 0).sum(axis=0) == 1).all(), "a lesion in two parts"
    label_of_lesion = np.empty(images.shape[1], dtype=int)
    label_of_lesion[lesion] = label
    for number in range(label.max() + 1):
        counts = (images[:, label_of_lesion == number] > 0).sum(axis=1).tolist()
        assert min(counts) >= 1, "a class is absent from a part"
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - sum(counts) * share) <= 1


def exact(val_size: float, test_size: float) -> tuple[Fraction, ...]:
    val, test = Fraction(str(val_size)), Fraction(str(test_size))
    return 1 - val - test, val, test


sizes = st.integers(1, 98).map(lambda percent: percent / 100)


@st.composite
def problems(draw: st.DrawFn) -> tuple[pd.DataFrame, tuple[str, ...], float, float, int]:
    val_size, test_size = draw(sizes), draw(sizes)
    shares = exact(val_size, test_size)
    assume(shares[0] > 0)
    fewest = max(3, -(-1 // (1 - max(shares))))
    counts = draw(st.lists(st.integers(fewest, fewest + 40), min_size=1, max_size=7))
    lesions_of = {f"class{n}": count for n, count in enumerate(counts)}
    frame = drawn_table(lesions_of, draw(st.integers(0, 2**32 - 1)))
    return frame, tuple(lesions_of), val_size, test_size, draw(st.integers(0, 2**63))


@settings(max_examples=150)
@given(problem=problems())
def test_every_split_keeps_its_promises(
    problem: tuple[pd.DataFrame, tuple[str, ...], float, float, int],
) -> None:
    frame, classes, val_size, test_size, seed = problem
    method = LesionStratified(val_size=val_size, test_size=test_size, seed=seed)
    split = method(frame, classes)
    check(*numbered(frame, classes), split, exact(val_size, test_size))

    again = LesionStratified(val_size=val_size, test_size=test_size, seed=seed)(frame, classes)
    assert again.fingerprint == split.fingerprint

    order = np.random.default_rng(1).permutation(len(frame))
    shuffled = frame.iloc[order].reset_index(drop=True)
    other = method(shuffled, classes)
    assert other.fingerprint == split.fingerprint
    for name in PARTS:
        ids = set(frame["image_id"].iloc[split.part(name)])
        assert set(shuffled["image_id"].iloc[other.part(name)]) == ids


def test_another_seed_gives_another_split() -> None:
    splits = [
        LesionStratified(val_size=0.15, test_size=0.15, seed=seed)(TABLE, CLASSES)
        for seed in range(50)
    ]
    assert len({split.fingerprint for split in splits}) == 50
    assert len({tuple(split.test) for split in splits}) == 50


def test_shares_are_the_same_in_expectation_for_every_lesion() -> None:
    # 1,000 seeds: each of 20 lesions is in test 0.2 of the time, standard error 0.0126.
    frame = pd.DataFrame(
        {"image_id": map(str, range(20)), "lesion_id": map(str, range(20)), "dx": "nv"}
    )
    times = np.zeros(20)
    for seed in range(1000):
        method = LesionStratified(val_size=0.2, test_size=0.2, seed=seed)
        times[method(frame, ("nv",)).test] += 1
    assert np.abs(times / 1000 - 0.2).max() < 5 * 0.0126


def test_counts_by_hand() -> None:
    # 11, 20 and 43 lesions at 0.7, 0.15, 0.15: exact shares 7.7 1.65 1.65, 14 3 3, 30.1 6.45 6.45.
    # The remaining lesions go to the largest remainders; equal ones to val in class number 2.
    counts = lesion_counts(TABLE, CLASSES, STRATIFIED(TABLE, CLASSES))
    np.testing.assert_array_equal(counts, [[8, 2, 1], [14, 3, 3], [30, 7, 6]])


def test_ties_alternate_between_val_and_test() -> None:
    # 10 lesions at 0.5, 0.25, 0.25: exact shares 5 2.5 2.5, a tie in every class.
    lesions_of = {f"class{n}": 10 for n in range(6)}
    frame = drawn_table(lesions_of)
    method = LesionStratified(val_size=0.25, test_size=0.25, seed=0)
    counts = lesion_counts(frame, tuple(lesions_of), method(frame, tuple(lesions_of)))
    np.testing.assert_array_equal(counts, [[5, 3, 2], [5, 2, 3]] * 3)


def test_another_val_size_leaves_the_test_lesions() -> None:
    # 20 x 0.15 and 20 x 0.25 are whole numbers, so that rounding has no say.
    frame = drawn_table({"mel": 20, "nv": 40})
    splits = [
        LesionStratified(val_size=val_size, test_size=0.15, seed=0)(frame, ("mel", "nv"))
        for val_size in (0.15, 0.25)
    ]
    np.testing.assert_array_equal(splits[0].test, splits[1].test)
    assert set(splits[0].val) < set(splits[1].val)


@pytest.mark.parametrize("ties_to_last", [False, True])
def test_dealing_out_agrees_with_a_search_of_all_ways(ties_to_last: bool) -> None:
    for val, test in product(range(5, 95, 10), range(5, 95, 10)):
        if val + test >= 100:
            continue
        shares = (Fraction(100 - val - test, 100), Fraction(val, 100), Fraction(test, 100))
        needed = max(3, -(-1 // (1 - max(shares))))
        for lesions in range(3, 31):
            ways = [
                (lesions - b - c, b, c)
                for b in range(1, lesions - 1)
                for c in range(1, lesions - b)
                if all(
                    abs(n - lesions * share) <= 1
                    for n, share in zip((lesions - b - c, b, c), shares, strict=True)
                )
            ]
            assert bool(ways) == (lesions >= needed)
            if ways:
                assert lesions_per_part(lesions, shares, ties_to_last=ties_to_last) in ways


def test_100_seeds_with_the_lesions_of_ham10000() -> None:
    frame = drawn_table(HAM10000_LESIONS)
    lesion, label = numbered(frame, HAM10000_CODES)
    for seed in range(100):
        split = LesionStratified(val_size=0.15, test_size=0.15, seed=seed)(frame, HAM10000_CODES)
        check(lesion, label, split, exact(0.15, 0.15))


@pytest.mark.slow
def test_1000_seeds_on_the_table_of_ham10000() -> None:
    root = os.environ.get("DERMALYZE_HAM10000")
    if not root:
        pytest.skip("DERMALYZE_HAM10000 does not name a folder with HAM10000_metadata.csv")
    frame = pd.read_csv(
        Path(root) / "HAM10000_metadata.csv", usecols=["lesion_id", "image_id", "dx"], dtype=str
    )
    frame = frame.sort_values("image_id", ignore_index=True)  # as the table reads it
    assert len(frame) == 10_015
    lesion, label = numbered(frame, HAM10000_CODES)
    for seed in range(1000):
        split = LesionStratified(val_size=0.15, test_size=0.15, seed=seed)(frame, HAM10000_CODES)
        check(lesion, label, split, exact(0.15, 0.15))


# Refusals


@pytest.mark.parametrize(
    ("val_size", "test_size", "message"),
    [
        (0.0, 0.2, r"data\.split\.val_size=0\.0: not a share"),
        (0.2, -0.1, r"data\.split\.test_size=-0\.1: not a share"),
        (1.0, 0.2, r"val_size=1\.0"),
        (float("nan"), 0.2, "val_size=nan"),
        (0.2, float("inf"), "test_size=inf"),
        (0.5, 0.5, "nothing is left to train on"),
        (0.9, 0.1, "nothing is left to train on"),
        (0.6, 0.6, "together >= 1"),
    ],
)
def test_sizes_that_cannot_be(val_size: float, test_size: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LesionStratified(val_size=val_size, test_size=test_size, seed=0)


def test_a_negative_seed() -> None:
    with pytest.raises(ConfigError, match=r"data\.split\.seed=-1"):
        LesionStratified(val_size=0.1, test_size=0.1, seed=-1)


def test_classes_with_too_few_lesions_are_all_named_with_their_counts() -> None:
    frame = drawn_table({"nv": 30, "df": 3, "vasc": 1})
    with pytest.raises(DataError) as caught:
        STRATIFIED(frame, ("df", "mel", "nv", "vasc"))
    message = str(caught.value)
    assert "lesions of a class: df 3, mel 0, vasc 1; at least 4 are needed" in message
    assert "val_size=0.15" in message
    assert "Use larger sizes, add lesions of the class, or leave the class out" in message


def test_sizes_so_small_that_a_part_would_be_empty() -> None:
    with pytest.raises(DataError, match="nv 49; at least 50 are needed"):
        LesionStratified(val_size=0.01, test_size=0.01, seed=0)(drawn_table({"nv": 49}), ("nv",))


def test_three_lesions_are_enough_where_the_sizes_allow() -> None:
    frame = drawn_table({"nv": 3})
    split = LesionStratified(val_size=0.3, test_size=0.3, seed=0)(frame, ("nv",))
    np.testing.assert_array_equal(lesion_counts(frame, ("nv",), split), [[1, 1, 1]])
    with pytest.raises(DataError, match=r"nv 2; at least 3.*\. Add lesions"):
        LesionStratified(val_size=0.3, test_size=0.3, seed=0)(drawn_table({"nv": 2}), ("nv",))


def test_a_dx_that_is_no_class() -> None:
    with pytest.raises(DataError, match="dx mel: not among the classes bkl, nv"):
        STRATIFIED(TABLE, ("bkl", "nv"))


def test_a_lesion_with_two_dx() -> None:
    torn = TABLE.copy()
    row = torn.index[torn["lesion_id"].duplicated()][0]
    torn.loc[row, "dx"] = "bkl" if torn.loc[row, "dx"] == "nv" else "nv"
    with pytest.raises(DataError, match=f"lesion_id {torn.loc[row, 'lesion_id']}: more than one"):
        STRATIFIED(torn, CLASSES)


def test_the_name_of_a_part() -> None:
    split = STRATIFIED(TABLE, CLASSES)
    assert split.part("val") is split.val
    with pytest.raises(ConfigError, match=r"split=tset: no such part\. Did you mean 'test'\?"):
        split.part("tset")


# Fingerprint and files


def test_the_fingerprint_by_hand() -> None:
    frame = pd.DataFrame(
        {"image_id": ["b", "a", "c"], "lesion_id": ["2", "1", "3"], "dx": ["nv", "mel", "nv"]}
    )
    split = Split.of(frame, np.array([1, 0, 2]), "by_hand", None)
    rows = '[["a","1","mel","train"],["b","2","nv","val"],["c","3","nv","test"]]'
    assert split.fingerprint == hashlib.sha256(rows.encode()).hexdigest()
    assert (split.train.tolist(), split.val.tolist(), split.test.tolist()) == ([1], [0], [2])


@pytest.mark.parametrize("column", ["image_id", "lesion_id", "dx"])
def test_the_fingerprint_tells_every_value(column: str) -> None:
    parts = np.arange(len(TABLE)) % 3
    changed = TABLE.copy()
    changed.loc[5, column] = "other"
    first, second = (Split.of(frame, parts, "by_hand", None) for frame in (TABLE, changed))
    assert first.fingerprint != second.fingerprint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_split(STRATIFIED(TABLE, CLASSES), TABLE, tmp_path)
    return tmp_path


def test_a_saved_split_comes_back_the_same(saved: Path) -> None:
    split = STRATIFIED(TABLE, CLASSES)
    back = FromFiles(directory=str(saved))(TABLE, CLASSES)
    for name in PARTS:
        np.testing.assert_array_equal(back.part(name), split.part(name))
        assert back.part(name).dtype == np.int64
    assert (back.method, back.seed) == ("lesion_stratified", 0)
    assert back.fingerprint == split.fingerprint


def test_a_saved_split_fits_the_table_in_another_order(saved: Path) -> None:
    shuffled = TABLE.sample(frac=1, random_state=1).reset_index(drop=True)
    back = FromFiles(directory=str(saved))(shuffled, CLASSES)
    split = STRATIFIED(TABLE, CLASSES)
    assert back.fingerprint == split.fingerprint
    assert set(shuffled["image_id"].iloc[back.test]) == set(TABLE["image_id"].iloc[split.test])


def test_the_files(saved: Path) -> None:
    split = STRATIFIED(TABLE, CLASSES)
    files = {"train_split.csv", "val_split.csv", "test_split.csv", "split.json"}
    assert {path.name for path in saved.iterdir()} == files
    val = pd.read_csv(saved / "val_split.csv", dtype=str)
    expected = TABLE.iloc[split.val][["image_id", "lesion_id", "dx"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(val, expected)
    about = json.loads((saved / "split.json").read_text())
    assert about["method"] == "lesion_stratified"
    assert about["seed"] == 0
    assert about["fingerprint"] == split.fingerprint
    rows = sorted(TABLE[["image_id", "lesion_id", "dx"]].to_numpy().tolist())
    text = json.dumps(rows, separators=(",", ":"))
    assert about["table_fingerprint"] == hashlib.sha256(text.encode()).hexdigest()
    part = about["parts"]["val"]
    assert part["images"] == len(split.val)
    assert part["lesions"] == 2 + 3 + 7
    assert {code: n["lesions"] for code, n in part["classes"].items()} == {
        "bkl": 2, "mel": 3, "nv": 7,
    }  # fmt: skip
    assert sum(n["images"] for n in part["classes"].values()) == len(split.val)


def test_ids_that_look_like_numbers_or_nothing_stay_text(tmp_path: Path) -> None:
    ids = ["NA", "0012", "nan", "a,b", 'c"d', "é"]
    frame = pd.DataFrame({"image_id": ids, "lesion_id": ids[::-1], "dx": "nv"})
    split = LesionStratified(val_size=0.3, test_size=0.3, seed=0)(frame, ("nv",))
    save_split(split, frame, tmp_path)
    assert FromFiles(directory=str(tmp_path))(frame, ("nv",)).fingerprint == split.fingerprint


def test_a_failed_save_leaves_the_old_files(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    split = LesionStratified(val_size=0.2, test_size=0.2, seed=1)(TABLE, CLASSES)
    with pytest.raises(DataError, match=r"cannot be saved .*No space left"):
        save_split(split, TABLE, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("frame", [TABLE.iloc[:-1], TABLE.assign(dx="nv")])
def test_a_split_is_not_saved_with_another_table(tmp_path: Path, frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="made from another table"):
        save_split(STRATIFIED(TABLE, CLASSES), frame, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def refusal(directory: Path, frame: pd.DataFrame = TABLE) -> str:
    with pytest.raises(DataError) as caught:
        FromFiles(directory=str(directory))(frame, CLASSES)
    message = str(caught.value)
    assert message.startswith(f"data.split.directory={directory}: the saved split does not fit.")
    assert "to train, data/split=lesion_stratified draws a new split" in message
    return message


def test_images_that_differ_are_named_five_each_way(saved: Path) -> None:
    frame = TABLE.sort_values("image_id", ignore_index=True)
    ids = frame["image_id"].tolist()
    renamed = frame.assign(image_id=[f"NEW_{n}" if n < 7 else i for n, i in enumerate(ids)])
    message = refusal(saved, renamed)
    assert f"7 images of the split are not in the table: {', '.join(ids[:5])} and 2 more" in message
    assert (
        "7 images of the table are in no part: NEW_0, NEW_1, NEW_2, NEW_3, NEW_4 and 2 more"
        in message
    )


@pytest.mark.parametrize("column", ["lesion_id", "dx"])
def test_values_that_differ_are_named(saved: Path, column: str) -> None:
    changed = TABLE.copy()
    image_id, before = changed.loc[3, "image_id"], changed.loc[3, column]
    changed.loc[3, column] = "other"
    message = refusal(saved, changed)
    assert f"1 images have another {column}: {image_id} ({before}, in the table other)" in message


def move_lines(saved: Path, count: int, of: str, to: str, keep: bool) -> list[str]:
    header, *lines = (saved / f"{of}_split.csv").read_text().splitlines(keepends=True)
    if not keep:
        (saved / f"{of}_split.csv").write_text(header + "".join(lines[count:]))
    with (saved / f"{to}_split.csv").open("a") as file:
        file.writelines(lines[:count])
    return [line.split(",")[0] for line in lines[:count]]


def test_an_image_listed_twice(saved: Path) -> None:
    (image_id,) = move_lines(saved, 1, "train", "test", keep=True)
    message = refusal(saved)
    assert f"1 images are listed more than once: {image_id}" in message
    assert "1 lesions are in more than one part: HAM_" in message


def test_a_lesion_torn_apart(saved: Path) -> None:
    train = pd.read_csv(saved / "train_split.csv", dtype=str)
    torn = train["lesion_id"].duplicated(keep="first")
    train[~torn].to_csv(saved / "train_split.csv", index=False)
    train[torn].to_csv(saved / "test_split.csv", index=False, mode="a", header=False)
    lesions = sorted(train["lesion_id"][torn].unique())
    expected = f"{len(lesions)} lesions are in more than one part: {', '.join(lesions[:5])}"
    assert expected in refusal(saved)


def test_rows_moved_by_hand_change_the_fingerprint(saved: Path) -> None:
    train = pd.read_csv(saved / "train_split.csv", dtype=str)
    lesion = train["lesion_id"] == train["lesion_id"][0]
    train[~lesion].to_csv(saved / "train_split.csv", index=False)
    train[lesion].to_csv(saved / "test_split.csv", index=False, mode="a", header=False)
    assert "rows were moved between the parts" in refusal(saved)


def test_a_class_absent_from_a_part(saved: Path) -> None:
    val = pd.read_csv(saved / "val_split.csv", dtype=str)
    bkl = val["dx"] == "bkl"
    val[~bkl].to_csv(saved / "val_split.csv", index=False)
    val[bkl].to_csv(saved / "train_split.csv", index=False, mode="a", header=False)
    assert "val has no image of bkl" in refusal(saved)


def test_missing_and_malformed_files_are_named_together(saved: Path) -> None:
    (saved / "train_split.csv").unlink()
    (saved / "val_split.csv").write_text("image_id,dx\nISIC_1,nv\n")
    (saved / "test_split.csv").write_text("image_id,lesion_id,dx\nISIC_1,HAM_1,nv\nISIC_2,nv\n")
    (saved / "split.json").write_text('{"method": "lesion_stratified"')
    message = refusal(saved)
    assert "train_split.csv: cannot be read: No such file or directory" in message
    assert "val_split.csv:1: header 'image_id,dx', expected image_id,lesion_id,dx" in message
    assert "rows that have not 3 fields: test_split.csv:3" in message
    assert "split.json: cannot be read: JSONDecodeError" in message


@pytest.mark.parametrize("content", [b"", b"image_id,lesion_id,dx\n\xff\xfe,a,b\n", b'"image_id'])
def test_a_table_that_is_none(saved: Path, content: bytes) -> None:
    (saved / "val_split.csv").write_bytes(content)
    assert "val_split.csv" in refusal(saved)


@pytest.mark.parametrize("about", ["[]", '{"method": 1, "seed": null, "fingerprint": "a"}', "{}"])
def test_a_description_that_is_none(saved: Path, about: str) -> None:
    (saved / "split.json").write_text(about)
    assert "split.json: " in refusal(saved)


# Configuration


def test_the_options_build_what_they_name() -> None:
    stratified, from_files = (
        OmegaConf.to_container(OmegaConf.load(CONF_DIR / "data" / "split" / f"{name}.yaml"))
        for name in ("lesion_stratified", "from_files")
    )
    assert isinstance(stratified, dict)
    assert isinstance(from_files, dict)
    assert stratified == {
        "_target_": "dermalyze.data.split.LesionStratified",
        "val_size": 0.15, "test_size": 0.15, "seed": 0,
    }  # fmt: skip
    assert from_files["directory"] == "???"
    assert target_problems("data.split", stratified) == []
    assert target_problems("data.split", from_files | {"directory": "run"}) == []
    assert target_problems("data.split", stratified | {"seed": "08"}) != []
