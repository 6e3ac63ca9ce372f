"""Two splits with one test part: they differ in the leak, and in nothing else."""

from __future__ import annotations

import json
import logging
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
from dermalyze.data.split_leak_study import LeakStudy
from dermalyze.errors import ConfigError, DataError

PARTS = ("train", "val", "test")
CLASSES = ("bkl", "mel", "nv")


def drawn_table(lesions_of: dict[str, int], seed: int) -> pd.DataFrame:
    """Lesions of one to three images in random order."""
    rng = np.random.default_rng(seed)
    dx = np.repeat(list(lesions_of), list(lesions_of.values()))
    lesion = np.repeat(np.arange(len(dx)), rng.integers(1, 4, len(dx)))
    frame = pd.DataFrame({"lesion_id": [f"HAM_{n:03d}" for n in lesion], "dx": dx[lesion]})
    frame["image_id"] = [f"ISIC_{n:04d}" for n in rng.permutation(len(frame))]
    return frame.sample(frac=1, random_state=seed).reset_index(drop=True)


TABLE = drawn_table({"bkl": 20, "mel": 21, "nv": 60}, seed=0)


def study(inject: bool, frame: pd.DataFrame = TABLE, **changed: float) -> Split:
    values = {"val_size": 0.15, "test_size": 0.25, "seed": 0} | changed
    return LeakStudy(inject=inject, **values)(frame, CLASSES)  # type: ignore[arg-type]


def images(split: Split, part: str, frame: pd.DataFrame = TABLE) -> set[str]:
    rows = split.unused if part == "unused" else split.part(part)
    return set(frame["image_id"].iloc[rows])


def lesions(split: Split, part: str, frame: pd.DataFrame = TABLE) -> set[str]:
    return set(frame["lesion_id"].iloc[split.part(part)])


@settings(max_examples=40)
@given(table_seed=st.integers(0, 2**31), seed=st.integers(0, 2**63))
def test_only_the_leak_differs(table_seed: int, seed: int) -> None:
    frame = drawn_table({"bkl": 20, "mel": 21, "nv": 60}, table_seed)
    none, injected = (study(inject, frame, seed=seed) for inject in (False, True))
    base = LesionStratified(val_size=0.15, test_size=0.25, seed=seed)(frame, CLASSES)

    for split in (none, injected):
        rows = np.concatenate([split.train, split.val, split.test, split.unused])
        np.testing.assert_array_equal(np.sort(rows), np.arange(len(frame)))
    np.testing.assert_array_equal(none.test, injected.test)
    np.testing.assert_array_equal(none.val, injected.val)
    np.testing.assert_array_equal(none.val, base.val)
    np.testing.assert_array_equal(none.train, base.train)
    of_class = [frame["dx"].iloc[split.train].value_counts() for split in (none, injected)]
    assert of_class[0].to_dict() == of_class[1].to_dict()

    # One image of each lesion that the split by lesion tests.
    assert lesions(none, "test", frame) == lesions(base, "test", frame)
    assert not frame["lesion_id"].iloc[none.test].duplicated().any()
    siblings = images(base, "test", frame) - images(none, "test", frame)
    assert images(none, "unused", frame) == siblings
    assert none.torn_lesions(frame) == []
    assert images(injected, "train", frame) - images(base, "train", frame) == siblings
    known = lesions(injected, "test", frame) & lesions(injected, "train", frame)
    of_siblings = frame["lesion_id"][frame["image_id"].isin(siblings)]
    assert known == set(of_siblings)
    assert injected.torn_lesions(frame) == sorted(known)


def test_every_image_of_a_lesion_may_be_the_one_that_is_tested() -> None:
    # One lesion of three images a class is in test; each image is kept a third of the time:
    # over 300 seeds 100 +- 8 (standard deviation) where its lesion is always in test.
    frame = TABLE.assign(lesion_id=TABLE["dx"]).groupby("dx").head(3).reset_index(drop=True)
    extra = [
        {"image_id": f"{code}_{n}", "lesion_id": f"{code}_{n}", "dx": code}
        for code in CLASSES
        for n in range(3)
    ]
    frame = pd.concat([frame, pd.DataFrame(extra)], ignore_index=True)
    times = np.zeros(len(frame))
    draws = 0
    for seed in range(1200):
        try:
            split = LeakStudy(inject=False, val_size=0.25, test_size=0.25, seed=seed)(
                frame, CLASSES
            )
        except DataError:  # the lesions of one image are in test
            continue
        times[split.test] += 1
        draws += len(set(frame["lesion_id"].iloc[split.test]) & set(CLASSES))
    shares = times[frame["lesion_id"].isin(CLASSES)] / draws * len(CLASSES)
    assert draws > 800
    np.testing.assert_allclose(shares, 1 / 3, atol=0.1)


def test_the_order_of_the_rows_has_no_say() -> None:
    shuffled = TABLE.sample(frac=1, random_state=1).reset_index(drop=True)
    for inject in (False, True):
        assert study(inject, shuffled).fingerprint == study(inject).fingerprint


def test_the_seed_decides_which_image_stays_and_which_is_left_out() -> None:
    kept = {frozenset(images(study(True, seed=seed), "test")) for seed in range(30)}
    left_out = {frozenset(images(study(True, seed=seed), "unused")) for seed in range(30)}
    assert len(kept) == len(left_out) == 30


def test_the_leak_is_warned_of_and_stands_in_the_name(caplog: pytest.LogCaptureFixture) -> None:
    none = study(False)
    assert (none.method, none.seed) == ("siblings_left_out", 0)
    assert caplog.record_tuples == []
    injected = study(True)
    assert (injected.method, injected.seed) == ("siblings_injected_leaky", 0)
    ((_, level, message),) = caplog.record_tuples
    assert level == logging.WARNING
    torn = injected.torn_lesions(TABLE)
    assert message.startswith(
        f"split siblings_injected_leaky: {len(torn)} lesions have images in more than one part "
    )


# Files


@pytest.mark.parametrize("inject", [False, True])
def test_a_saved_split_comes_back_with_what_it_left_out(inject: bool, tmp_path: Path) -> None:
    split = study(inject)
    save_split(split, TABLE, tmp_path)
    listed = pd.read_csv(tmp_path / "unused_split.csv", dtype=str)
    assert listed["image_id"].tolist() == TABLE["image_id"].iloc[split.unused].tolist()
    about = json.loads((tmp_path / "split.json").read_text())
    assert about["parts"]["unused"]["images"] == len(split.unused) > 0

    back = FromFiles(directory=str(tmp_path))(TABLE, CLASSES)
    assert (back.fingerprint, back.method) == (split.fingerprint, split.method)
    for part in ("train", "val", "test", "unused"):
        np.testing.assert_array_equal(getattr(back, part), getattr(split, part))


def test_the_fingerprint_covers_what_is_left_out() -> None:
    part_of_row = np.array([0, 1, 2, 0])
    frame = pd.DataFrame({"image_id": [*"abcd"], "lesion_id": [*"wxyz"], "dx": "nv"})
    used, left_out = (
        Split.of(frame, parts, "by_hand", None) for parts in (part_of_row, np.array([0, 1, 2, 3]))
    )
    assert used.fingerprint != left_out.fingerprint
    assert (left_out.train.tolist(), left_out.unused.tolist()) == ([0], [3])


def test_a_lost_or_changed_list_of_the_unused_is_noticed(tmp_path: Path) -> None:
    split = study(True)
    save_split(split, TABLE, tmp_path)
    unused = tmp_path / "unused_split.csv"
    header, first, *others = unused.read_text().splitlines()
    with (tmp_path / "train_split.csv").open("a") as file:
        file.write(first + "\n")
    unused.write_text("\n".join([header, *others]) + "\n")
    with pytest.raises(DataError, match="rows were moved between the parts"):
        FromFiles(directory=str(tmp_path))(TABLE, CLASSES)

    save_split(split, TABLE, tmp_path)
    unused.unlink()
    with pytest.raises(DataError, match=f"{len(split.unused)} images of the table are in no part"):
        FromFiles(directory=str(tmp_path))(TABLE, CLASSES)


def test_a_split_that_uses_all_leaves_no_such_list_behind(tmp_path: Path) -> None:
    save_split(study(False), TABLE, tmp_path)
    whole = LesionStratified(val_size=0.15, test_size=0.25, seed=0)(TABLE, CLASSES)
    save_split(whole, TABLE, tmp_path)
    assert not (tmp_path / "unused_split.csv").exists()
    assert FromFiles(directory=str(tmp_path))(TABLE, CLASSES).fingerprint == whole.fingerprint


# Refusals


def test_a_table_without_siblings_is_refused() -> None:
    single = TABLE.assign(lesion_id=TABLE["image_id"])
    for inject in (False, True):
        with pytest.raises(DataError, match="no lesion of the test part has a second image"):
            study(inject, single)


def test_more_siblings_than_training_images_are_refused() -> None:
    # nv: 10 lesions, of which test has 8, each with 3 images; train keeps one image.
    rows = [(f"nv_{n}_{i}", f"nv_{n}", "nv") for n in range(10) for i in range(3)]
    frame = pd.DataFrame(rows, columns=["image_id", "lesion_id", "dx"])
    method = LeakStudy(inject=True, val_size=0.1, test_size=0.8, seed=0)
    with pytest.raises(
        DataError, match=r"nv has 16 siblings of test images, and only 3 training images"
    ):
        method(frame, ("nv",))


def test_sizes_and_seeds_are_checked_as_those_of_the_split_by_lesion() -> None:
    with pytest.raises(ConfigError, match="nothing is left to train on"):
        study(True, val_size=0.5, test_size=0.5)
    with pytest.raises(ConfigError, match=r"data\.split\.seed=-1"):
        study(True, seed=-1)


def test_the_option_builds_what_it_names() -> None:
    loaded = OmegaConf.load(CONF_DIR / "data" / "split" / "leak_study.yaml")
    node = OmegaConf.to_container(OmegaConf.merge(loaded, {"inject": True, "test_size": 0.25}))
    assert target_problems("data.split", node) == []
    assert instantiate(node)(TABLE, CLASSES).fingerprint == study(True).fingerprint
