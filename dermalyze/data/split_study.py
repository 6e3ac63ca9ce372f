"""How exactly splits keep the classes' shares: this project's and scikit-learn's, over many seeds.

python -m dermalyze.data.split_study METADATA.csv --seeds 1000

METADATA.csv needs the columns lesion_id, image_id and dx, and no images. docs/splits.md shows what
comes out for HAM10000.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold
from tqdm import tqdm

from dermalyze.data.metadata_file import Report, read_metadata_file
from dermalyze.data.split import LesionStratified, Rows
from dermalyze.data.split_by_image import RandomByImage
from dermalyze.data.split_dealing import Lesions
from dermalyze.data.split_folds import LesionFolds
from dermalyze.errors import DermalyzeError

# As in conf/data/split.
SIZE = 0.15
FOLDS = 5
QUANTILES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}
RAREST = 2  # classes that the tables show


class Method(NamedTuple):
    """A way to choose a test part: its name, the share it aims at, and seed to rows."""

    name: str
    share: float
    test_rows: Callable[[int], Rows]


def read_lesions(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return image_id, lesion_id and dx of a table, sorted by image_id, and its classes.

    Raises:
        DataError: the file cannot be read, or rows of it are malformed.
    """
    columns = ("image_id", "lesion_id", "dx")
    file = read_metadata_file(path, needed=columns)
    Report(file).raise_problems()
    frame = file.frame(columns)[list(columns)].sort_values("image_id", ignore_index=True)
    return frame, tuple(sorted(set(frame["dx"])))


def pairs(frame: pd.DataFrame, classes: Sequence[str]) -> list[tuple[Method, Method]]:
    """Return this project's splits of `frame`, each with scikit-learn's for the same purpose."""
    lesion = Lesions.of(frame, classes).of_row
    dx = pd.factorize(frame["dx"])[0]

    def lesion_stratified(seed: int) -> Rows:
        return LesionStratified(val_size=SIZE, test_size=SIZE, seed=seed)(frame, classes).test

    def group_shuffle_split(seed: int) -> Rows:
        split = GroupShuffleSplit(n_splits=1, test_size=SIZE, random_state=seed)
        return np.asarray(next(split.split(lesion, groups=lesion))[1], dtype=np.int64)

    def kfold(seed: int) -> Rows:
        folds = LesionFolds(folds=FOLDS, fold=0, val_size=SIZE, seed=seed)
        return folds(frame, classes).test

    def stratified_group_k_fold(seed: int) -> Rows:
        folds = StratifiedGroupKFold(n_splits=FOLDS, shuffle=True, random_state=seed)
        return np.asarray(next(folds.split(lesion, dx, groups=lesion))[1], dtype=np.int64)

    return [
        (
            Method("`lesion_stratified`", SIZE, lesion_stratified),
            Method("GroupShuffleSplit", SIZE, group_shuffle_split),
        ),
        (
            Method("`kfold`", 1 / FOLDS, kfold),
            Method("StratifiedGroupKFold", 1 / FOLDS, stratified_group_k_fold),
        ),
    ]


def measure(
    rows: Rows, share: float, lesions: Lesions, label_of_row: npt.NDArray[np.intp], num_classes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return what a test part holds of each class.

    Returns:
        counts_2K: lesions and images of each class.
        deviations_2: of lesions and of images, the largest difference over the classes between the
            share of the class that is in the part and `share`, in percentage points.
    """

    def counts(lesion_numbers: Rows, row_numbers: Rows) -> npt.NDArray[np.float64]:
        labels = (lesions.label[lesion_numbers], label_of_row[row_numbers])
        return np.stack([np.bincount(x, minlength=num_classes) for x in labels]).astype(np.float64)

    counts_2K = counts(np.unique(lesions.of_row[rows]), rows)
    of_all_2K = counts(np.arange(len(lesions.ids)), np.arange(len(label_of_row)))
    return counts_2K, 100 * np.abs(counts_2K / of_all_2K - share).max(axis=1)


def exactness(
    frame: pd.DataFrame, classes: Sequence[str], seeds: int, slow_seeds: int
) -> list[str]:
    """Return one markdown table for each of `pairs`: spreads over the seeds 0, 1, ...

    Args:
        frame: image_id, lesion_id and dx.
        classes: the codes of dx.
        seeds: how many.
        slow_seeds: how many for StratifiedGroupKFold, which takes seconds for each.
    """
    lesions = Lesions.of(frame, classes)
    label_of_row = lesions.label[lesions.of_row]
    of_class = np.bincount(lesions.label, minlength=len(classes))
    rarest = sorted(np.argsort(of_class, kind="stable")[:RAREST].tolist())
    units = ("lesions", "images")
    names = [f"{classes[k]}, {unit}" for k in rarest for unit in units]
    names += [f"largest deviation of a class, points, {unit}" for unit in units]

    tables = []
    for pair in pairs(frame, classes):
        rows: list[list[str]] = [[] for _ in names]
        for method in pair:
            count = slow_seeds if method.name == "StratifiedGroupKFold" else seeds
            results = []
            for seed in tqdm(range(count), desc=method.name.strip("`")):
                found = method.test_rows(seed)
                counts_2K, deviations_2 = measure(
                    found, method.share, lesions, label_of_row, len(classes)
                )
                results.append([*counts_2K[:, rarest].T.ravel(), *deviations_2])
            spread = spread_over_seeds(np.array(results))
            for number, name in enumerate(names):
                digits = 2 if "deviation" in name else 0
                cells = [f"{value:.{digits}f}" for value in spread[:, number]]
                rows[number].append(f"| {name} | {method.name} | {' | '.join(cells)} |")
        header = (
            f"| in a test part of {100 * pair[0].share:.0f} % | split | {' | '.join(QUANTILES)} |"
        )
        rule = "| --- | --- |" + " ---: |" * len(QUANTILES)
        tables.append("\n".join([header, rule, *(line for lines in rows for line in lines)]))
    return tables


def leakage(frame: pd.DataFrame, classes: Sequence[str], seeds: int) -> str:
    """Return a markdown table of what splits by image tear apart, over the seeds 0, 1, ..."""
    lesion = Lesions.of(frame, classes).of_row
    results = []
    for seed in tqdm(range(seeds), desc="random"):
        split = RandomByImage(val_size=SIZE, test_size=SIZE, seed=seed)(frame, classes)
        known = np.isin(lesion[split.test], lesion[split.train])
        results.append((len(split.torn_lesions(frame)), 100 * known.mean()))
    spread = spread_over_seeds(np.array(results))
    return "\n".join(
        [
            f"| with `random` | {' | '.join(QUANTILES)} |",
            "| --- |" + " ---: |" * len(QUANTILES),
            f"| lesions torn apart | {' | '.join(f'{value:.0f}' for value in spread[:, 0])} |",
            "| test images whose lesion is in train, % | "
            f"{' | '.join(f'{value:.1f}' for value in spread[:, 1])} |",
        ]
    )


def spread_over_seeds(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the QUANTILES of each column, each a value that occurred."""
    return np.quantile(values, list(QUANTILES.values()), axis=0, method="inverted_cdf")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables as markdown; the progress goes to standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m dermalyze.data.split_study",
        description="Compare splits by lesion with scikit-learn's over many seeds.",
    )
    parser.add_argument("metadata", type=Path, help="a table with lesion_id, image_id and dx")
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument(
        "--slow-seeds",
        type=int,
        help="how many for StratifiedGroupKFold, which takes seconds for each (default: --seeds)",
    )
    given = parser.parse_args(arguments)
    slow_seeds = given.seeds if given.slow_seeds is None else given.slow_seeds
    if min(given.seeds, slow_seeds) < 1:
        parser.error("--seeds and --slow-seeds: at least 1")
    # Each leaky split would warn; here leaking is what is measured.
    logging.getLogger("dermalyze.data.split").setLevel(logging.ERROR)
    try:
        frame, classes = read_lesions(given.metadata)
        tables = [
            leakage(frame, classes, given.seeds),
            *exactness(frame, classes, given.seeds, slow_seeds),
        ]
    except DermalyzeError as error:
        parser.error(str(error))
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
