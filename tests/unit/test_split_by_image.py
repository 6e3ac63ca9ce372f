"""The split that leaks: it says so, keeps the classes' shares, and no other may tear lesions."""

from __future__ import annotations

import json
import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dermalyze.config import CONF_DIR, target_problems
from dermalyze.data.split import FromFiles, LesionStratified, Split, save_split
from dermalyze.data.split_by_image import RandomByImage
from dermalyze.errors import ConfigError, DataError

PARTS = ("train", "val", "test")
NAME = "random_by_image_leaky"


def drawn_table(images_of: dict[str, int], seed: int, images_a_lesion: int = 3) -> pd.DataFrame:
    """Images in random order, on average `images_a_lesion` of each lesion of their class."""
    rng = np.random.default_rng(seed)
    dx = np.repeat(list(images_of), list(images_of.values()))
    lesions = [
        f"{code}_{rng.integers(max(1, count // images_a_lesion)):03d}"
        for code, count in images_of.items()
        for _ in range(count)
    ]
    frame = pd.DataFrame({"lesion_id": lesions, "dx": dx})
    frame["image_id"] = [f"ISIC_{n:04d}" for n in rng.permutation(len(frame))]
    return frame.sample(frac=1, random_state=seed % 2**32).reset_index(drop=True)


TABLE = drawn_table({"bkl": 20, "mel": 21, "nv": 60}, seed=0)
CLASSES = ("bkl", "mel", "nv")
METHOD = RandomByImage(val_size=0.15, test_size=0.15, seed=0)


def torn_by_hand(frame: pd.DataFrame, split: Split) -> list[str]:
    part = pd.Series("", index=range(len(frame)))
    for name in PARTS:
        part[split.part(name)] = name
    return sorted(id_ for id_, rows in frame.groupby("lesion_id") if part[rows.index].nunique() > 1)


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(10, 40), min_size=1, max_size=5),
    percents=st.tuples(st.integers(10, 40), st.integers(10, 40)),
    seed=st.integers(0, 2**63),
)
def test_every_class_has_its_share_of_images(
    counts: list[int], percents: tuple[int, int], seed: int
) -> None:
    images_of = {f"class{n}": count for n, count in enumerate(counts)}
    frame, classes = drawn_table(images_of, seed % 1000), tuple(images_of)
    val, test = percents
    method = RandomByImage(val_size=val / 100, test_size=test / 100, seed=seed)
    split = method(frame, classes)

    rows = np.concatenate([split.train, split.val, split.test])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(frame)))
    for name, percent in zip(PARTS, (100 - val - test, val, test), strict=True):
        in_part = frame["dx"].iloc[split.part(name)].value_counts()
        for code, count in images_of.items():
            assert abs(int(in_part[code]) - count * Fraction(percent, 100)) <= 1
    assert split.torn_lesions(frame) == torn_by_hand(frame, split)

    shuffled = frame.sample(frac=1, random_state=1).reset_index(drop=True)
    assert method(shuffled, classes).fingerprint == split.fingerprint


def test_it_differs_from_the_split_by_lesion_in_the_grouping_only() -> None:
    single = TABLE.assign(lesion_id=TABLE["image_id"])
    by_lesion = LesionStratified(val_size=0.15, test_size=0.15, seed=0)(single, CLASSES)
    by_image = METHOD(TABLE, CLASSES)
    for name in PARTS:
        np.testing.assert_array_equal(by_image.part(name), by_lesion.part(name))


def test_it_warns_with_the_number_of_torn_lesions(caplog: pytest.LogCaptureFixture) -> None:
    split = METHOD(TABLE, CLASSES)
    torn = torn_by_hand(TABLE, split)
    assert len(torn) > 5
    ((_, level, message),) = caplog.record_tuples
    assert level == logging.WARNING
    assert message.startswith(
        f"split {NAME}: {len(torn)} lesions have images in more than one part "
        f"({', '.join(torn[:5])} and {len(torn) - 5} more)."
    )
    assert "data/split=lesion_stratified" in message
    assert (split.method, split.seed) == (NAME, 0)


def test_where_nothing_is_torn_there_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    single = TABLE.assign(lesion_id=TABLE["image_id"])
    assert METHOD(single, CLASSES).torn_lesions(single) == []
    assert caplog.record_tuples == []


def test_torn_lesions_by_hand() -> None:
    frame = pd.DataFrame({"image_id": [*"abcdef"], "lesion_id": [*"xyxyzz"], "dx": "nv"})
    split = Split.of(frame, np.array([0, 1, 2, 1, 0, 1]), "by_hand", None)
    assert split.torn_lesions(frame) == ["x", "z"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_split(METHOD(TABLE, CLASSES), TABLE, tmp_path)
    return tmp_path


def test_a_saved_leaky_split_comes_back_with_its_warning(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    split = METHOD(TABLE, CLASSES)
    back = FromFiles(directory=str(saved))(TABLE, CLASSES)
    assert (back.fingerprint, back.method, back.seed) == (split.fingerprint, NAME, 0)
    drawn, read = (message for _, _, message in caplog.record_tuples)
    assert drawn == read


def test_torn_lesions_are_refused_under_any_other_name(saved: Path) -> None:
    about = json.loads((saved / "split.json").read_text())
    (saved / "split.json").write_text(json.dumps(about | {"method": "lesion_stratified"}))
    torn = torn_by_hand(TABLE, METHOD(TABLE, CLASSES))
    with pytest.raises(DataError, match=f"{len(torn)} lesions are in more than one part"):
        FromFiles(directory=str(saved))(TABLE, CLASSES)


def test_an_absent_class_is_refused_all_the_same(saved: Path) -> None:
    test = pd.read_csv(saved / "test_split.csv", dtype=str)
    bkl = test["dx"] == "bkl"
    test[~bkl].to_csv(saved / "test_split.csv", index=False)
    test[bkl].to_csv(saved / "train_split.csv", index=False, mode="a", header=False)
    with pytest.raises(DataError, match="test has no image of bkl"):
        FromFiles(directory=str(saved))(TABLE, CLASSES)


def test_refusals_count_images() -> None:
    frame = drawn_table({"df": 3, "nv": 30}, seed=0)
    with pytest.raises(DataError) as caught:
        METHOD(frame, ("df", "nv", "vasc"))
    assert str(caught.value) == (
        "images of a class: df 3, vasc 0; at least 4 are needed for every part to hold every class "
        "within one image of its share (data.split.val_size=0.15, data.split.test_size=0.15). Use "
        "larger sizes, add images of the class, or leave the class out of the table."
    )
    with pytest.raises(ConfigError, match="nothing is left to train on"):
        RandomByImage(val_size=0.5, test_size=0.5, seed=0)
    with pytest.raises(ConfigError, match=r"data\.split\.seed=-1"):
        RandomByImage(val_size=0.1, test_size=0.1, seed=-1)


def test_the_option_builds_what_it_names() -> None:
    node = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "data" / "split" / "random.yaml"))
    assert target_problems("data.split", node) == []
    assert instantiate(node)(TABLE, CLASSES).fingerprint == METHOD(TABLE, CLASSES).fingerprint
