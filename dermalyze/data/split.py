"""Which images train, which choose the model, and which judge it.

A lesion photographed twice is one case: all its images go to one part. HAM10000 has 1,956 such
lesions among its 7,470, and a split by image tests a model on lesions it has trained on. A split
is saved next to the run that used it and can be read back by a later one.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermalyze.data.split_dealing import (
    Lesions,
    checked_seed,
    deal,
    refuse_too_few_for,
    train_val_test,
)
from dermalyze.data.split_files import (
    ABOUT,
    COLUMNS,
    LEAKY,
    PARTS,
    UNUSED,
    differences,
    faults,
    first,
    read_about,
    read_rows,
    table_name,
)
from dermalyze.errors import ConfigError, DataError, nearest
from dermalyze.files import write_json, write_whole

logger = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """A table's rows, each in one of three parts or, where a split leaves it out, in none.

    `train`, `val`, `test` and `unused` are row positions into the table's frame, ascending; each
    row is in exactly one of the four. `method` and `seed` say how the split was drawn.
    `fingerprint` is a sha256, in hex, over image_id, lesion_id, dx and part (or "unused") of all
    rows; the order of the rows does not change it.
    """

    train: Rows
    val: Rows
    test: Rows
    unused: Rows
    method: str
    seed: int | None
    fingerprint: str

    @classmethod
    def of(
        cls, frame: pd.DataFrame, part_of_row: npt.NDArray[np.intp], method: str, seed: int | None
    ) -> Split:
        """Return the split that puts row i of `frame` into (*PARTS, UNUSED)[part_of_row[i]]."""
        listed = (*PARTS, UNUSED)
        train, val, test, unused = (
            np.flatnonzero(part_of_row == part) for part in range(len(listed))
        )
        names = np.array(listed)[part_of_row]
        return cls(train, val, test, unused, method, seed, _fingerprint(frame, names))

    def part(self, name: str) -> Rows:
        """Return the rows of 'train', 'val' or 'test'.

        Raises:
            ConfigError: another name.
        """
        parts = dict(zip(PARTS, (self.train, self.val, self.test), strict=True))
        if name not in parts:
            raise ConfigError(f"split={name}: no such part.{nearest(name, PARTS)}")
        return parts[name]

    def torn_lesions(self, frame: pd.DataFrame) -> list[str]:
        """Return the ids of lesions of the table's `frame` that are in more than one part."""
        number_of_row, lesions = pd.factorize(frame["lesion_id"])
        in_part = [
            np.bincount(number_of_row[self.part(part)], minlength=len(lesions)) > 0
            for part in PARTS
        ]
        return sorted(lesions[np.sum(in_part, axis=0) > 1])


class LesionStratified:
    """A random split by lesion in which every class has the same shares.

    Within each class the lesions are shuffled and dealt out by largest remainder. So in each part
    each class's number of lesions is within one of its exact share, and every class is in every
    part (`split_dealing.deal`). The result is a pure function of the seed, the class's number and
    its lesion ids, whatever the order of the rows.

    Args:
        val_size: share of the lesions for val, in (0, 1).
        test_size: share of the lesions for test, in (0, 1); train gets what is left.
        seed: >= 0.

    Raises:
        ConfigError: a size is not in (0, 1), nothing is left for train, or the seed is negative.
    """

    def __init__(self, *, val_size: float, test_size: float, seed: int) -> None:
        self.shares = train_val_test(val_size, test_size)
        self.seed = checked_seed(seed)

    def __call__(self, frame: pd.DataFrame, classes: Sequence[str]) -> Split:
        """Split the table's `frame` (columns image_id, lesion_id, dx).

        Raises:
            DataError: a class has too few lesions to be in every part within one lesion of its
                share, a dx is not among `classes`, or a lesion has two.
        """
        lesions = Lesions.of(frame, classes)
        refuse_too_few_for(self.shares, lesions.label, classes, units="lesions")
        part_of_lesion = deal(lesions.label, self.shares, self.seed)
        return Split.of(frame, part_of_lesion[lesions.of_row], "lesion_stratified", self.seed)


class FromFiles:
    """The split of an earlier run, as `save_split` wrote it.

    Args:
        directory: the folder with train_split.csv, val_split.csv, test_split.csv and split.json,
            and unused_split.csv where the split left images out.
    """

    def __init__(self, *, directory: str) -> None:
        self.directory = Path(directory)

    def __call__(self, frame: pd.DataFrame, classes: Sequence[str]) -> Split:
        """Return the saved split as rows of the table's `frame` (image_id, lesion_id, dx).

        Raises:
            DataError: a file is missing or malformed; the files and the table differ in images,
                lesions or dx; an image or a lesion is in two parts; a class is absent from one; or
                the fingerprint is another one. All that is found at once. What a split's method
                does on purpose is no fault: a split by image tears lesions, and is warned of; one
                by source may lack classes in test.
        """
        problems: list[str] = []
        saved = read_rows(self.directory, problems)
        about = read_about(self.directory, problems)
        self._raise(problems)

        table = {row[0]: row[1:] for row in frame[list(COLUMNS)].itertuples(index=False, name=None)}
        self._raise(differences(saved, table) + faults(saved, classes, about["method"]))

        part_of = {row.image_id: (*PARTS, UNUSED).index(row.part) for row in saved}
        part_of_row = np.array([part_of[image_id] for image_id in frame["image_id"]], dtype=np.intp)
        split = Split.of(frame, part_of_row, about["method"], about["seed"])
        if split.fingerprint != about["fingerprint"]:
            self._raise(
                [
                    f"split.json has the fingerprint {about['fingerprint'][:12]}..., the "
                    f"tables make {split.fingerprint[:12]}...: rows were moved between the parts"
                ]
            )
        if split.method in LEAKY:
            warn_of_leak(split, frame)
        return split

    def _raise(self, problems: Sequence[str]) -> None:
        if problems:
            raise DataError(
                f"data.split.directory={self.directory}: the saved split does not fit.\n  - "
                + "\n  - ".join(problems)
                + "\nUse the data and the untouched files of the run that made it; to train, "
                "data/split=lesion_stratified draws a new split."
            )


def warn_of_leak(split: Split, frame: pd.DataFrame) -> None:
    """Log a warning if `split` of `frame` has a lesion in several parts, with how many it has."""
    torn = split.torn_lesions(frame)
    if torn:
        logger.warning(
            "split %s: %d lesions have images in more than one part (%s). The model is tested on "
            "lesions that it has trained on, so all its numbers are too good; "
            "data/split=lesion_stratified gives numbers that hold.",
            split.method,
            len(torn),
            first(torn),
        )


def save_split(split: Split, frame: pd.DataFrame, directory: str | Path) -> None:
    """Write `split` of `frame` so that FromFiles can read it back.

    train_split.csv, val_split.csv and test_split.csv hold image_id, lesion_id and dx, and so does
    unused_split.csv if the split leaves images out; split.json holds method, seed, the fingerprints
    of the split and of the table, and the counts of images and lesions of each class. Each file is
    whole or absent, whatever happens; split.json comes last.

    Raises:
        DataError: `frame` is not the table that was split, or the folder cannot be written.
    """
    rows_of = {part: split.part(part) for part in PARTS}
    if len(split.unused):
        rows_of[UNUSED] = split.unused
    names = np.empty(sum(map(len, rows_of.values())), dtype="U6")
    for part, rows in rows_of.items():
        names[rows] = part
    if len(names) != len(frame) or _fingerprint(frame, names) != split.fingerprint:
        raise DataError(
            f"split {split.fingerprint[:12]}...: made from another table than this one of "
            f"{len(frame)} rows, nothing saved. Split this table anew."
        )
    about = {
        "method": split.method,
        "seed": split.seed,
        "fingerprint": split.fingerprint,
        "table_fingerprint": _fingerprint(frame),
        "parts": {part: _counts(frame.iloc[rows]) for part, rows in rows_of.items()},
    }
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, rows in rows_of.items():
            listed = frame.iloc[rows][list(COLUMNS)]
            write_whole(folder / table_name(part), listed.to_csv(index=False, lineterminator="\n"))
        if UNUSED not in rows_of:  # an earlier split's would be taken for this one's
            (folder / table_name(UNUSED)).unlink(missing_ok=True)
        write_json(folder / ABOUT, about)
    except OSError as error:
        raise DataError(
            f"{folder}: the split cannot be saved ({error}). Make room, or choose a folder that "
            "can be written."
        ) from error


def _fingerprint(frame: pd.DataFrame, *more: npt.NDArray[Any]) -> str:
    """Hash the rows' ids and dx, and further values of each row, in the order of image_id."""
    columns = [frame[column].tolist() for column in COLUMNS] + [values.tolist() for values in more]
    rows = sorted(zip(*columns, strict=True))
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    by_class = rows.groupby("dx")["lesion_id"].agg(images="size", lesions="nunique")
    classes = {str(code): {k: int(v) for k, v in n.items()} for code, n in by_class.iterrows()}
    return {"images": len(rows), "lesions": int(rows["lesion_id"].nunique()), "classes": classes}
