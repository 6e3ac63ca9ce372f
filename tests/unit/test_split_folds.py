"""Folds by lesion: each lesion is tested once, and every class has its share everywhere."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dermalyze.config import CONF_DIR, target_problems
from dermalyze.data.split import FromFiles, Split, save_split
from dermalyze.data.split_folds import LesionFolds
from dermalyze.errors import ConfigError, DataError

PARTS = ("train", "val", "test")


def drawn_table(lesions_of: dict[str, int], seed: int) -> pd.DataFrame:
    """Lesions of one to four images in random order."""
    rng = np.random.default_rng(seed)
    dx = np.repeat(list(lesions_of), list(lesions_of.values()))
    lesion = np.repeat(rng.permutation(len(dx)), rng.integers(1, 5, len(dx)))
    frame = pd.DataFrame({"lesion_id": [f"HAM_{n:03d}" for n in lesion], "dx": dx[lesion]})
    frame["image_id"] = [f"ISIC_{n:04d}" for n in rng.permutation(len(frame))]
    return frame.sample(frac=1, random_state=seed % 2**32).reset_index(drop=True)


def lesions_in(frame: pd.DataFrame, split: Split) -> list[set[str]]:
    """The lesion ids of train, val and test."""
    return [set(frame["lesion_id"].iloc[split.part(name)]) for name in PARTS]


def counts_of(frame: pd.DataFrame, classes: tuple[str, ...], ids: set[str]) -> list[int]:
    """Of a set of lesions, how many of each class."""
    dx = frame.drop_duplicates("lesion_id").set_index("lesion_id")["dx"]
    return dx[list(ids)].value_counts().reindex(list(classes), fill_value=0).tolist()


def check(
    frame: pd.DataFrame, classes: tuple[str, ...], splits: list[Split], val_size: float
) -> None:
    """Hold the splits of all folds of one seed against everything they promise."""
    folds = len(splits)
    every = set(frame["lesion_id"])
    totals = counts_of(frame, classes, every)
    tested: list[str] = []
    for split in splits:
        rows = np.concatenate([split.train, split.val, split.test])
        np.testing.assert_array_equal(np.sort(rows), np.arange(len(frame)))
        train, val, test = lesions_in(frame, split)
        assert len(train) + len(val) + len(test) == len(every), "a lesion in two parts"
        tested += sorted(test)
        assert len(every) // folds <= len(test) <= -(-len(every) // folds)
        by_class = zip(*(counts_of(frame, classes, ids) for ids in (train, val, test)), strict=True)
        for total, (in_train, in_val, in_test) in zip(totals, by_class, strict=True):
            assert total // folds <= in_test <= -(-total // folds)
            assert min(in_train, in_val, in_test) >= 1, "a class is absent from a part"
            share = Fraction(str(val_size))
            assert abs(in_val - (in_train + in_val) * share) < 1
    assert sorted(tested) == sorted(every), "a lesion that is not tested exactly once"


@st.composite
def problems(draw: st.DrawFn) -> tuple[pd.DataFrame, tuple[str, ...], dict[str, Any]]:
    folds = draw(st.integers(2, 7))
    counts = draw(st.lists(st.integers(max(folds, 4), 25), min_size=1, max_size=5))
    lesions_of = {f"class{n}": count for n, count in enumerate(counts)}
    arguments = {
        "folds": folds,
        "val_size": draw(st.integers(1, 99)) / 100,
        "seed": draw(st.integers(0, 2**63)),
    }
    return drawn_table(lesions_of, draw(st.integers(0, 2**32 - 1))), tuple(lesions_of), arguments


@settings(max_examples=60)
@given(problem=problems())
def test_the_folds_keep_their_promises(
    problem: tuple[pd.DataFrame, tuple[str, ...], dict[str, Any]],
) -> None:
    frame, classes, arguments = problem
    methods = [LesionFolds(fold=fold, **arguments) for fold in range(arguments["folds"])]
    splits = [method(frame, classes) for method in methods]
    check(frame, classes, splits, arguments["val_size"])
    assert {(split.method, split.seed) for split in splits} == {("kfold", arguments["seed"])}

    shuffled = frame.sample(frac=1, random_state=1).reset_index(drop=True)
    for method, split in zip(methods, splits, strict=True):
        assert method(shuffled, classes).fingerprint == split.fingerprint
        assert lesions_in(shuffled, method(shuffled, classes)) == lesions_in(frame, split)


TABLE = drawn_table({"df": 6, "mel": 7, "nv": 40}, seed=0)
CLASSES = ("df", "mel", "nv")


def fold(
    number: int, folds: int = 5, val_size: float = 0.15, seed: int = 0, frame: pd.DataFrame = TABLE
) -> Split:
    method = LesionFolds(folds=folds, fold=number, val_size=val_size, seed=seed)
    return method(frame, tuple(sorted(set(frame["dx"]))))


def test_counts_by_hand() -> None:
    # Dealt to folds 0, 1, 2, 3, 4, 0 | 1, 2, 3, 4, 0, 1, 2 | 3, 4, 0, ... and 40 more.
    tested = [counts_of(TABLE, CLASSES, lesions_in(TABLE, fold(k))[2]) for k in range(5)]
    assert tested == [[2, 1, 8], [1, 2, 8], [1, 2, 8], [1, 1, 8], [1, 1, 8]]
    # Fold 0 leaves 4, 6 and 32; 0.15 of them are 0.6, 0.9 and 4.8.
    val = [counts_of(TABLE, CLASSES, lesions_in(TABLE, fold(0))[1])]
    assert val == [[1, 1, 5]]


def test_the_test_parts_depend_on_folds_and_seed_only() -> None:
    np.testing.assert_array_equal(fold(3, val_size=0.15).test, fold(3, val_size=0.5).test)
    tests = {tuple(fold(0, seed=seed).test) for seed in range(50)}
    assert len(tests) == 50


def test_each_lesion_is_as_likely_in_every_fold() -> None:
    # 1,000 seeds: each of 20 lesions is in fold 2 of 5 0.2 of the time, standard error 0.0126.
    frame = pd.DataFrame({"image_id": map(str, range(20)), "dx": "nv"})
    frame["lesion_id"] = frame["image_id"]
    times = np.zeros(20)
    for seed in range(1000):
        times[fold(2, seed=seed, frame=frame).test] += 1
    assert np.abs(times / 1000 - 0.2).max() < 5 * 0.0126


def test_val_is_drawn_anew_in_each_fold() -> None:
    # Of 500 lesions each is val in 4 folds with probability 0.25. Drawn independently, about
    # 500 (1 - 0.75^4) = 342 are val at least once; drawn in one order it would be near 125.
    frame = drawn_table({"nv": 500}, seed=1)
    vals = [lesions_in(frame, fold(k, val_size=0.25, frame=frame))[1] for k in range(5)]
    assert [len(val) for val in vals] == [100] * 5
    assert 310 < len(set().union(*vals)) < 375


def test_a_saved_fold_comes_back_the_same(tmp_path: Path) -> None:
    split = fold(4)
    save_split(split, TABLE, tmp_path)
    back = FromFiles(directory=str(tmp_path))(TABLE, CLASSES)
    assert (back.fingerprint, back.method, back.seed) == (split.fingerprint, "kfold", 0)
    np.testing.assert_array_equal(back.test, split.test)


@pytest.mark.slow
def test_all_folds_of_20_seeds_on_the_table_of_ham10000() -> None:
    root = os.environ.get("DERMALYZE_HAM10000")
    if not root:
        pytest.skip("DERMALYZE_HAM10000 does not name a folder with HAM10000_metadata.csv")
    frame = pd.read_csv(
        Path(root) / "HAM10000_metadata.csv", usecols=["lesion_id", "image_id", "dx"], dtype=str
    )
    assert len(frame) == 10_015
    classes = tuple(sorted(set(frame["dx"])))
    for seed in range(20):
        splits = [
            LesionFolds(folds=5, fold=k, val_size=0.15, seed=seed)(frame, classes) for k in range(5)
        ]
        check(frame, classes, splits, 0.15)


# Refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"folds": 1}, r"data\.split\.folds=1: give at least 2"),
        ({"fold": 5}, r"data\.split\.fold=5: the 5 folds are counted from 0 to 4"),
        ({"fold": -1}, r"data\.split\.fold=-1: the 5 folds"),
        ({"val_size": 0.0}, r"data\.split\.val_size=0\.0: not a share"),
        ({"val_size": float("nan")}, r"data\.split\.val_size=nan"),
        ({"seed": -1}, r"data\.split\.seed=-1: negative"),
    ],
)
def test_values_that_cannot_be(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LesionFolds(**({"folds": 5, "fold": 0, "val_size": 0.15, "seed": 0} | changed))


def test_classes_with_too_few_lesions_are_all_named_with_their_counts() -> None:
    frame = drawn_table({"nv": 30, "df": 4, "vasc": 1}, seed=0)
    method = LesionFolds(folds=5, fold=0, val_size=0.15, seed=0)
    with pytest.raises(DataError) as caught:
        method(frame, ("df", "mel", "nv", "vasc"))
    assert str(caught.value) == (
        "lesions of a class: df 4, mel 0, vasc 1; at least 5 are needed to be in every fold "
        "(data.split.folds=5), and in train and val beside it. Use fewer folds, add lesions of the "
        "class, or leave the class out of the table."
    )


@pytest.mark.parametrize(("folds", "needed"), [(2, 4), (3, 3), (4, 4)])
def test_the_fewest_lesions_that_are_enough(folds: int, needed: int) -> None:
    frame = drawn_table({"bcc": needed, "nv": needed}, seed=0)
    splits = [fold(k, folds=folds, frame=frame) for k in range(folds)]
    check(frame, ("bcc", "nv"), splits, 0.15)
    with pytest.raises(DataError, match=f"bcc {needed - 1}; at least {needed} are needed"):
        fold(0, folds=folds, frame=drawn_table({"bcc": needed - 1, "nv": 9}, seed=0))


def test_a_lesion_with_two_dx_and_a_dx_that_is_no_class() -> None:
    torn = TABLE.copy()
    row = torn.index[torn["lesion_id"].duplicated()][0]
    torn.loc[row, "dx"] = "df" if torn.loc[row, "dx"] == "nv" else "nv"
    with pytest.raises(DataError, match=f"lesion_id {torn.loc[row, 'lesion_id']}: more than one"):
        fold(0, frame=torn)
    with pytest.raises(DataError, match="dx mel: not among the classes df, nv"):
        LesionFolds(folds=5, fold=0, val_size=0.15, seed=0)(TABLE, ("df", "nv"))


def test_the_option_builds_what_it_names() -> None:
    node = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "data" / "split" / "kfold.yaml"))
    assert isinstance(node, dict)
    assert {name: node[name] for name in ("folds", "fold", "seed")} == {
        "folds": 5, "fold": 0, "seed": 0,
    }  # fmt: skip
    assert target_problems("data.split", node) == []
    assert target_problems("data.split", node | {"fold": 0.5}) != []
    assert instantiate(node)(TABLE, CLASSES).fingerprint == fold(0).fingerprint
