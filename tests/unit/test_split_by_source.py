"""One source is the test part, whole; the others are dealt to train and val by lesion."""

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
from dermalyze.data.split import FromFiles, save_split
from dermalyze.data.split_by_source import LeaveOneSourceOut
from dermalyze.errors import ConfigError, DataError

SOURCES = ("rosendahl", "vidir_modern", "vidir_molemax")


def drawn_table(lesions_of: dict[tuple[str, str], int], seed: int) -> pd.DataFrame:
    """Lesions of one to three images in random order, counted by (source, dx)."""
    rng = np.random.default_rng(seed)
    pairs = [pair for pair, count in lesions_of.items() for _ in range(count)]
    lesion = np.repeat(rng.permutation(len(pairs)), rng.integers(1, 4, len(pairs)))
    frame = pd.DataFrame([pairs[n] for n in lesion], columns=["dataset", "dx"])
    frame["lesion_id"] = [f"HAM_{n:03d}" for n in lesion]
    frame["image_id"] = [f"ISIC_{n:04d}" for n in rng.permutation(len(frame))]
    return frame.sample(frac=1, random_state=seed % 2**32).reset_index(drop=True)


TABLE = drawn_table(
    {
        ("rosendahl", "mel"): 9, ("rosendahl", "nv"): 11,
        ("vidir_modern", "bkl"): 6, ("vidir_modern", "nv"): 30,
        ("vidir_molemax", "bkl"): 4, ("vidir_molemax", "mel"): 5, ("vidir_molemax", "nv"): 7,
    },
    seed=0,
)  # fmt: skip
CLASSES = ("bkl", "mel", "nv")


def without(source: str, val_size: float = 0.2, seed: int = 0) -> LeaveOneSourceOut:
    return LeaveOneSourceOut(source=source, val_size=val_size, seed=seed)


@settings(max_examples=40)
@given(
    counts=st.lists(st.tuples(*[st.integers(2, 9)] * 3), min_size=1, max_size=4),
    percent=st.integers(1, 99),
    seed=st.integers(0, 2**63),
)
def test_every_split_keeps_its_promises(
    counts: list[tuple[int, int, int]], percent: int, seed: int
) -> None:
    classes = tuple(f"class{n}" for n in range(len(counts)))
    lesions_of = {
        (source, code): count
        for code, of_sources in zip(classes, counts, strict=True)
        for source, count in zip(SOURCES, of_sources, strict=True)
    }
    frame = drawn_table(lesions_of, seed % 1000)
    shuffled = frame.sample(frac=1, random_state=1).reset_index(drop=True)
    for source in SOURCES:
        method = without(source, percent / 100, seed)
        split = method(frame, classes)
        np.testing.assert_array_equal(split.test, np.flatnonzero(frame["dataset"] == source))
        rows = np.concatenate([split.train, split.val, split.test])
        np.testing.assert_array_equal(np.sort(rows), np.arange(len(frame)))
        assert split.torn_lesions(frame) == []
        train, val = (
            frame.iloc[split.part(name)].groupby("dx")["lesion_id"].nunique()
            for name in ("train", "val")
        )
        for code in classes:
            others = sum(n for (s, c), n in lesions_of.items() if c == code and s != source)
            assert train[code] + val[code] == others
            assert abs(int(val[code]) - others * Fraction(percent, 100)) < 1
        assert method(shuffled, classes).fingerprint == split.fingerprint


def test_counts_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    # Outside vidir_molemax: 6 bkl, 9 mel, 41 nv; a fifth is 1.2, 1.8, 8.2.
    split = without("vidir_molemax")(TABLE, CLASSES)
    val = TABLE.iloc[split.val].groupby("dx")["lesion_id"].nunique()
    assert val.to_dict() == {"bkl": 1, "mel": 2, "nv": 8}
    assert (split.method, split.seed) == ("leave_one_source_out", 0)
    assert caplog.record_tuples == []


def test_another_seed_gives_another_val_and_the_same_test() -> None:
    splits = [without("rosendahl", seed=seed)(TABLE, CLASSES) for seed in range(30)]
    assert len({tuple(split.val) for split in splits}) == 30
    assert len({tuple(split.test) for split in splits}) == 1


def test_classes_that_the_source_lacks_are_named_in_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    split = without("rosendahl")(TABLE, CLASSES)
    assert set(TABLE["dx"].iloc[split.test]) == {"mel", "nv"}
    ((_, level, message),) = caplog.record_tuples
    assert level == logging.WARNING
    assert "the source rosendahl, and so the test part, has no bkl;" in message


def test_images_of_no_known_source_are_learnt_from_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    frame = TABLE.assign(dataset=TABLE["dataset"].replace("vidir_modern", "unknown"))
    split = without("vidir_molemax")(frame, CLASSES)
    unknown = np.flatnonzero(frame["dataset"] == "unknown")
    assert not set(unknown) & set(split.test)
    ((_, level, message),) = caplog.record_tuples
    assert level == logging.WARNING
    assert f"{len(unknown)} images have no known dataset" in message


def test_a_saved_split_comes_back_though_its_test_part_lacks_a_class(tmp_path: Path) -> None:
    split = without("rosendahl")(TABLE, CLASSES)
    save_split(split, TABLE, tmp_path)
    back = FromFiles(directory=str(tmp_path))(TABLE, CLASSES)
    assert (back.fingerprint, back.method) == (split.fingerprint, "leave_one_source_out")

    about = json.loads((tmp_path / "split.json").read_text())
    (tmp_path / "split.json").write_text(json.dumps(about | {"method": "lesion_stratified"}))
    with pytest.raises(DataError, match="test has no image of bkl"):
        FromFiles(directory=str(tmp_path))(TABLE, CLASSES)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_saved_split_needs_every_class_in_train_and_val(tmp_path: Path, part: str) -> None:
    save_split(without("rosendahl")(TABLE, CLASSES), TABLE, tmp_path)
    rows = pd.read_csv(tmp_path / f"{part}_split.csv", dtype=str)
    mel = rows["dx"] == "mel"
    rows[~mel].to_csv(tmp_path / f"{part}_split.csv", index=False)
    rows[mel].to_csv(tmp_path / "test_split.csv", index=False, mode="a", header=False)
    with pytest.raises(DataError, match=f"{part} has no image of mel"):
        FromFiles(directory=str(tmp_path))(TABLE, CLASSES)


# Refusals


def test_a_table_that_does_not_tell_sources() -> None:
    with pytest.raises(DataError) as caught:
        without("rosendahl")(TABLE.drop(columns="dataset"), CLASSES)
    message = str(caught.value)
    assert message.startswith("data.split.source=rosendahl: the table has no column `dataset`")
    assert "HAM10000_metadata of the Harvard Dataverse" in message


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("Rosendal", "Did you mean 'rosendahl'?"),
        ("xyz", "Valid: rosendahl, vidir_modern, vidir_molemax."),
        ("unknown", "no image of the table has this dataset."),
    ],
)
def test_a_source_that_is_none(source: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        without(source)(TABLE, CLASSES)
    assert str(caught.value).startswith(f"data.split.source={source}: no image of the table has")
    assert said in str(caught.value)


def test_lesions_of_two_sources_are_named() -> None:
    frame = TABLE.copy()
    rows = frame.index[frame["lesion_id"].duplicated()][:2]
    frame.loc[rows, "dataset"] = "elsewhere"
    lesions = sorted(set(frame.loc[rows, "lesion_id"]))
    assert len(lesions) == 2
    with pytest.raises(DataError) as caught:
        without("rosendahl")(frame, CLASSES)
    assert (
        f"2 lesions have images of more than one dataset: {lesions[0]}, {lesions[1]}. Correct "
        "dataset or lesion_id, or where data.merge_duplicates has joined them, set it to false."
        in str(caught.value)
    )


def test_classes_that_only_the_source_has_are_named_with_their_counts() -> None:
    frame = drawn_table(
        {
            ("rosendahl", "df"): 5, ("rosendahl", "nv"): 5, ("rosendahl", "mel"): 5,
            ("vidir_modern", "mel"): 1, ("vidir_modern", "nv"): 8,
        },
        seed=0,
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        without("rosendahl")(frame, ("df", "mel", "nv"))
    assert str(caught.value) == (
        "lesions of a class: df 0, mel 1; at least 2 are needed outside the source rosendahl, for "
        "train and val to hold every class. Leave out another source, add lesions of the class, or "
        "leave the class out of the table."
    )


def test_the_only_source_cannot_be_left_out() -> None:
    frame = TABLE.assign(dataset="rosendahl")
    with pytest.raises(DataError, match="bkl 0, mel 0, nv 0; at least 2 are needed outside"):
        without("rosendahl")(frame, CLASSES)


def test_values_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"data\.split\.val_size=1\.5: not a share"):
        without("rosendahl", val_size=1.5)
    with pytest.raises(ConfigError, match=r"data\.split\.seed=-2"):
        without("rosendahl", seed=-2)


def test_the_option_asks_for_the_source_and_builds_what_it_names() -> None:
    path = CONF_DIR / "data" / "split" / "leave_one_source_out.yaml"
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    assert node["source"] == "???"
    node["source"] = "rosendahl"
    assert target_problems("data.split", node) == []
    expected = without("rosendahl", val_size=node["val_size"])(TABLE, CLASSES)
    assert instantiate(node)(TABLE, CLASSES).fingerprint == expected.fingerprint
