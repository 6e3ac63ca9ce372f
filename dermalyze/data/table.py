"""The one table that everything works from: one row an image, checked, tidy.

A reader collects every fault of a table and raises them together. What can be kept without a
guess is kept and told as a `Finding`. Source files are never changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermalyze.data.image_folder import (
    EXTENSIONS,
    ImageFolder,
    OnMissing,
    find_files,
    find_table,
    join_images,
    open_folder,
)
from dermalyze.data.metadata_file import Finding, MetadataFile, Report, at, read_metadata_file
from dermalyze.data.tidying import UNKNOWN, drop_repeated, tidy_lesions, tidy_values
from dermalyze.errors import DataError
from dermalyze.taxonomy import HAM10000_CODES

__all__ = [
    "UNKNOWN",
    "Finding",
    "LesionTable",
    "read_ham10000",
    "read_isic2018",
    "summary",
    "table_of",
]

HAM10000_COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
COLUMNS = (
    "image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "dataset", "path",
)  # fmt: skip
PARTS = {"ham10000_images_part_1", "ham10000_images_part_2"}
HAM10000_FOLDERS = {"images", *PARTS}
HAM10000_HELP = (
    "To get HAM10000: python -m dermalyze.prepare data.root=DIR data.download=true; or take from "
    "the Harvard Dataverse, doi:10.7910/DVN/DBW86T, HAM10000_images_part_1.zip, "
    "HAM10000_images_part_2.zip and HAM10000_metadata, unzip them into one folder DIR and give "
    "data.root=DIR. data=synthetic needs no download."
)
ISIC_NAME = "isic2018_task3"
ISIC_COLUMNS = ("image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
ISIC_HELP = (
    "To get the ISIC 2018 task 3 test set: python -m dermalyze.prepare data=isic2018_test "
    "data.root=DIR data.download=true; or take the test input and the test ground truth from the "
    "data page of the ISIC challenge (2018, task 3), unzip them into one folder DIR and give "
    "data.root=DIR. data=synthetic needs no download."
)


@dataclass(frozen=True, eq=False)
class LesionTable:
    """Images with their lesions and diagnoses.

    `frame` has one row an image, sorted by image_id, with a RangeIndex and the columns image_id,
    lesion_id, dx, dx_type, age (float, years in (0, 120], NaN when unknown), sex, localization
    ("unknown" when missing), dataset (only where the file has it), path (absolute) and label
    (int64, the position of dx in `classes`); and original_lesion_id, the id as it was read, where
    lesions were joined (`duplicates.join_lesions`).
    """

    frame: pd.DataFrame
    classes: tuple[str, ...]
    name: str
    findings: tuple[Finding, ...]
    missing_images: tuple[str, ...]  # image ids of the rows dropped for want of an image

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The label of each row, in [0, len(classes))."""
        return self.frame["label"].to_numpy(dtype=np.int64)

    @property
    def original_lesions(self) -> pd.Series[str]:
        """The lesion id of each row as it was read: lesion_id, where no lesions were joined."""
        joined = "original_lesion_id" in self.frame
        return self.frame["original_lesion_id" if joined else "lesion_id"]

    @property
    def fingerprint(self) -> str:
        """The sha256, in hex, over image_id, lesion_id and dx of all rows in order."""
        rows = self.frame[["image_id", "lesion_id", "dx"]].to_numpy(dtype=object).tolist()
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.frame)


def summary(table: LesionTable) -> pd.DataFrame:
    """Return images, lesions and share_of_images in [0, 1] of each class, absent ones with 0."""
    by_class = table.frame.groupby("dx")["lesion_id"]
    counts = pd.DataFrame({"images": by_class.size(), "lesions": by_class.nunique()})
    counts = counts.reindex(pd.Index(table.classes, name="dx"), fill_value=0)
    return counts.assign(share_of_images=counts["images"] / len(table))


def read_ham10000(*, root: str, metadata: str | None, on_missing: OnMissing) -> LesionTable:
    """Read HAM10000 as the Dataverse or Kaggle gives it.

    Args:
        root: folder with the images, or with their folders (images, HAM10000_images_part_1, ...).
        metadata: the table, relative to `root` or to the working folder; None: found below `root`.
        on_missing: what to do for a row without an image: refuse the table, or leave the row out.

    Raises:
        DataError: no such folder or table, or faults in it, all of them in one message.
    """
    folder = open_folder(root, holds_images=HAM10000_FOLDERS.issuperset, how_to_get=HAM10000_HELP)
    path = find_table(
        folder,
        metadata,
        names=("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab"),
        option="data.source.metadata",
        how_to_get=HAM10000_HELP,
    )
    file = read_metadata_file(path, needed=HAM10000_COLUMNS)
    report = Report(file)
    _note_ham10000_layout(report, folder)
    return _ham10000_table(file, folder, report, on_missing=on_missing, name="ham10000")


def _ham10000_table(
    file: MetadataFile, folder: ImageFolder, report: Report, *, on_missing: OnMissing, name: str
) -> LesionTable:
    columns = [column for column in file.header if column in (*HAM10000_COLUMNS, "dataset")]
    note_extra_columns(report, columns)
    rows = file.frame(columns)
    return table_of(rows, HAM10000_CODES, folder, report, on_missing=on_missing, name=name)


def _note_ham10000_layout(report: Report, folder: ImageFolder) -> None:
    """Say where such a table comes from; of a layout that fits no source, nothing is said."""
    tabs, sources = report.file.delimiter == "\t", "dataset" in report.file.header
    parts = [
        place.relative_to(folder.root).as_posix()
        for place in map(Path, folder.searched)
        if place.name.casefold() in PARTS
    ]
    if tabs and sources:
        report.note_layout("Dataverse (tab-separated, with the column dataset)")
    elif tabs:
        report.note_layout("Dataverse (tab-separated, without the column dataset)")
    elif sources:
        report.note_layout("Dataverse (as uploaded: comma-separated, with the column dataset)")
    elif parts:
        report.note_layout(f"Kaggle (comma-separated, images in {', '.join(parts)})")


def read_isic2018(*, root: str, ground_truth: str | None, on_missing: OnMissing) -> LesionTable:
    """Read the ISIC 2018 task 3 test set, as the challenge or the Dataverse gives it.

    The challenge's ground truth has a column a class, and in each row exactly one 1. Lesions come
    from a file `*LesionGroupings.csv`; without one, each image is its own lesion. It holds no age,
    sex or localization. The Dataverse's ground truth has HAM10000's columns.

    Args:
        root: folder with the images, or with sub-folders that hold them.
        ground_truth: the table, as `metadata` in `read_ham10000`; None: `*GroundTruth.csv`, or
            without ending, or with `.tab`.
        on_missing: as in `read_ham10000`.

    Raises:
        DataError: as in `read_ham10000`.
    """
    folder = open_folder(
        root, holds_images=lambda below: len(set(below)) <= 1, how_to_get=ISIC_HELP
    )
    path = find_table(
        folder,
        ground_truth,
        names=("*GroundTruth.csv", "*GroundTruth", "*GroundTruth.tab"),
        option="data.source.ground_truth",
        how_to_get=ISIC_HELP,
    )
    file = read_metadata_file(path, needed=ISIC_COLUMNS, or_needed=HAM10000_COLUMNS)
    report = Report(file)
    if set(file.header) >= set(HAM10000_COLUMNS):
        report.note_layout("Dataverse's ISIC 2018 task 3 (HAM10000's columns)")
        return _ham10000_table(file, folder, report, on_missing=on_missing, name=ISIC_NAME)
    rows = _one_hot_rows(file, folder, report)
    return table_of(rows, HAM10000_CODES, folder, report, on_missing=on_missing, name=ISIC_NAME)


def _one_hot_rows(file: MetadataFile, folder: ImageFolder, report: Report) -> pd.DataFrame:
    """Return rows with HAM10000's columns."""
    note_extra_columns(report, ISIC_COLUMNS)
    rows: pd.DataFrame = file.frame(ISIC_COLUMNS).rename(columns={"image": "image_id"})
    one_hot = rows[list(ISIC_COLUMNS[1:])].apply(pd.to_numeric, errors="coerce")
    is_one_hot = one_hot.isin([0, 1]).all(axis="columns") & (one_hot.sum(axis="columns") == 1)
    report.problem(
        "rows that are not a single 1 among 0",
        "Give each image one class",
        at(rows[~is_one_hot], "image_id"),
    )
    rows, one_hot = rows[is_one_hot], one_hot[is_one_hot]
    if rows.empty:
        report.raise_problems()
    # The columns stand in another order than the classes: the name decides, never the position.
    rows = rows.assign(dx=one_hot.idxmax(axis="columns").str.lower())
    rows = rows.assign(lesion_id=_lesions(rows["image_id"], folder, report))
    rows = rows[["image_id", "lesion_id", "dx", "place"]]
    return rows.assign(**dict.fromkeys(("dx_type", "age", "sex", "localization"), UNKNOWN))


def _lesions(image_ids: pd.Series[str], folder: ImageFolder, report: Report) -> pd.Series[str]:
    """Return the lesion of each image, empty where a groupings file does not know it."""
    found = find_files(folder, ("*LesionGroupings.csv",))
    groupings = "with" if found else "without"
    report.note_layout(f"ISIC challenge (one-hot ground truth, {groupings} LesionGroupings)")
    if len(found) > 1:
        report.problem("files with lesion groupings", "Keep one of them", map(str, found))
    if len(found) != 1:
        what = "images each taken for a lesion of its own, for want of a *LesionGroupings.csv"
        report.tell("note", "no_lesion_groupings", what, image_ids)
        return image_ids
    file = read_metadata_file(found[0], needed=("image", "lesion_id"))
    report.problems += file.problems
    rows = file.frame(("image", "lesion_id"))
    rows = rows.assign(key=_as_matched(rows["image"])).drop_duplicates(["key", "lesion_id"])
    report.problem(
        "images with more than one lesion",
        "Keep one of each",
        at(rows[rows["key"].duplicated(keep=False)], "image"),
    )
    lesions = rows.drop_duplicates("key").set_index("key")["lesion_id"]
    return _as_matched(image_ids).map(lesions).fillna("")


def _as_matched(image_ids: pd.Series[str]) -> pd.Series[str]:
    """Return ids as two files name one image, whatever the capitals, spaces and endings."""
    endings = rf"\.({'|'.join(EXTENSIONS)})$"
    return image_ids.str.strip().str.casefold().str.replace(endings, "", regex=True)


def table_of(
    rows: pd.DataFrame,
    classes: tuple[str, ...],
    folder: ImageFolder,
    report: Report,
    *,
    on_missing: OnMissing,
    name: str,
) -> LesionTable:
    """Check and tidy rows of text: the columns of HAM10000, `place`, and perhaps dataset.

    Raises:
        DataError: all problems, with those that the report has already, in one message.
    """
    rows = tidy_values(rows, classes, report)
    rows = drop_repeated(rows, report)
    rows = tidy_lesions(rows, classes, report)
    rows, missing = join_images(rows, folder, report, on_missing)
    report.raise_problems()
    if rows.empty:
        raise DataError(
            f"{report.file.path}: no image of its {len(missing)} rows lies in "
            f"{', '.join(folder.searched)}. Is data.root the folder with the images?"
        )
    frame = rows[[column for column in COLUMNS if column in rows]]
    frame = frame.sort_values("image_id", ignore_index=True)
    frame = frame.assign(label=frame["dx"].map(classes.index).astype(np.int64))
    return LesionTable(frame, classes, name, tuple(report.findings), missing)


def note_extra_columns(report: Report, used: Iterable[str]) -> None:
    """Keep a note of the columns that are not among those used."""
    extra = [column for column in report.file.header if column not in used]
    report.tell("note", "extra_columns", "columns that are not used", extra)
