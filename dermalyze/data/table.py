"""The one table that everything works from: one row an image, checked, tidy.

A reader collects every fault of a table and raises them together. What can be kept without a
guess is kept and told as a `Finding`. Source files are never changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermalyze.data.image_folder import (
    ImageFolder,
    OnMissing,
    find_files,
    find_table,
    join_images,
    open_folder,
)
from dermalyze.data.metadata_file import Finding, Report, at, read_metadata_file
from dermalyze.errors import DataError, nearest
from dermalyze.taxonomy import HAM10000_CODES

__all__ = ["Finding", "LesionTable", "read_ham10000", "read_isic_one_hot", "summary"]

UNKNOWN = "unknown"
MISSING = ("", UNKNOWN, "na", "n/a", "nan", "none", "null")  # said of a value, never of an id
OLDEST = 120.0  # years; an age above it is a slip

DESCRIPTIONS = frozenset({"dx_type", "sex", "localization", "dataset"})
HAM10000_COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
COLUMNS = (
    "image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "dataset", "path",
)  # fmt: skip
HAM10000_FOLDERS = {"images", "ham10000_images_part_1", "ham10000_images_part_2"}
HAM10000_HELP = (
    "To get HAM10000: from the Harvard Dataverse, doi:10.7910/DVN/DBW86T, take "
    "HAM10000_images_part_1.zip, HAM10000_images_part_2.zip and HAM10000_metadata, unzip them "
    "into one folder DIR and give data.root=DIR. data=synthetic needs no download."
)
ISIC_COLUMNS = ("image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
ISIC_HELP = (
    "To get the ISIC 2018 task 3 test set: from the data page of the ISIC challenge (2018, task 3) "
    "take the test input and the test ground truth, unzip them into one folder DIR and give "
    "data.root=DIR. data=synthetic needs no download."
)


@dataclass(frozen=True, eq=False)
class LesionTable:
    """Images with their lesions and diagnoses.

    `frame` has one row an image, sorted by image_id, with a RangeIndex and the columns image_id,
    lesion_id, dx, dx_type, age (float, years in (0, 120], NaN when unknown), sex, localization
    ("unknown" when missing), dataset (only where the file has it), path (absolute) and label
    (int64, the position of dx in `classes`).
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
    columns = [name for name in file.header if name in (*HAM10000_COLUMNS, "dataset")]
    _note_extra_columns(report, columns)
    return _table(file.frame(columns), folder, report, on_missing=on_missing, name="ham10000")


def read_isic_one_hot(*, root: str, ground_truth: str | None, on_missing: OnMissing) -> LesionTable:
    """Read the ISIC 2018 task 3 form: a column a class, and in each row exactly one 1.

    Lesions come from a file `*LesionGroupings.csv`; without one, each image is its own lesion.
    The form holds no age, sex or localization.

    Args:
        root: folder with the images, or with sub-folders that hold them.
        ground_truth: the table, as `metadata` in `read_ham10000`; None: `*GroundTruth.csv`.
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
        names=("*GroundTruth.csv",),
        option="data.source.ground_truth",
        how_to_get=ISIC_HELP,
    )
    file = read_metadata_file(path, needed=ISIC_COLUMNS)
    report = Report(file)
    _note_extra_columns(report, ISIC_COLUMNS)
    rows = file.frame(ISIC_COLUMNS).rename(columns={"image": "image_id"})
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
    rows = rows.assign(**dict.fromkeys(("dx_type", "age", "sex", "localization"), UNKNOWN))
    return _table(rows, folder, report, on_missing=on_missing, name="isic2018_task3")


def _lesions(image_ids: pd.Series[str], folder: ImageFolder, report: Report) -> pd.Series[str]:
    """Return the lesion of each image, empty where a groupings file does not know it."""
    found = find_files(folder, ("*LesionGroupings.csv",))
    if len(found) > 1:
        report.problem("files with lesion groupings", "Keep one of them", map(str, found))
    if len(found) != 1:
        what = "images each taken for a lesion of its own, for want of a *LesionGroupings.csv"
        report.tell("note", "no_lesion_groupings", what, image_ids)
        return image_ids
    file = read_metadata_file(found[0], needed=("image", "lesion_id"))
    report.problems += file.problems
    rows = file.frame(("image", "lesion_id"))
    rows = rows.drop_duplicates(["image", "lesion_id"])
    report.problem(
        "images with more than one lesion",
        "Keep one of each",
        at(rows[rows["image"].duplicated(keep=False)], "image"),
    )
    lesions = rows.drop_duplicates("image").set_index("image")["lesion_id"]
    return image_ids.map(lesions).fillna("")


def _table(
    rows: pd.DataFrame, folder: ImageFolder, report: Report, *, on_missing: OnMissing, name: str
) -> LesionTable:
    """Check and tidy rows of text: the columns of HAM10000, `place`, and perhaps dataset."""
    classes = HAM10000_CODES
    rows = _tidy_values(rows, classes, report)
    rows = _drop_repeated(rows, report)
    rows = _tidy_lesions(rows, classes, report)
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


def _tidy_values(rows: pd.DataFrame, classes: Sequence[str], report: Report) -> pd.DataFrame:
    """Take spaces and capitals out of values, and make unknown what says nothing."""
    for column in ("image_id", "lesion_id"):
        stripped = rows[column].str.strip()
        spaced = at(rows[stripped != rows[column]], column)
        report.tell("note", "spaces", f"values of {column} read without their spaces", spaced)
        rows = rows.assign(**{column: stripped})
    nameless = rows["place"][rows["image_id"] == ""]
    report.problem("rows without an image_id", "Name the image, or remove the row", nameless)

    dx = rows["dx"].str.strip().str.lower()
    respelled = at(rows[dx != rows["dx"]], "dx")
    report.tell("note", "dx_spelling", "values of dx read without spaces and capitals", respelled)
    rows = rows.assign(dx=dx)
    foreign = rows[~dx.isin(classes)]
    report.problem(
        "rows with an unknown dx",
        f"Known are {', '.join(classes)}",
        [
            f"{place}, dx {value!r}.{nearest(value, classes)}"
            for place, value in zip(foreign["place"], foreign["dx"], strict=True)
        ],
    )

    for column in DESCRIPTIONS.intersection(rows.columns):
        value = rows[column].str.strip().str.lower()
        rows = rows.assign(**{column: value.mask(value.isin(MISSING), UNKNOWN)})
    written = rows["age"].str.strip().str.lower()
    age = pd.to_numeric(written, errors="coerce").astype(np.float64)
    believed = age.between(0, OLDEST, inclusive="right")
    nothing, zero = written.isin(MISSING), age == 0
    impossible = at(rows[~(believed | nothing | zero)], "age")
    report.tell("warning", "age", f"ages not in (0, {OLDEST:.0f}] years, made unknown", impossible)
    report.tell(
        "warning",
        "age_zero",
        "ages of 0, which HAM10000 writes where it does not know, made unknown",
        at(rows[zero], "image_id"),
    )
    for column, unknown in (
        ("age", nothing),
        ("sex", rows["sex"] == UNKNOWN),
        ("localization", rows["localization"] == UNKNOWN),
    ):
        items = rows["image_id"][unknown]
        report.tell("note", f"unknown_{column}", f"rows that do not tell {column}", items)
    return rows.assign(age=age.where(believed))


def _drop_repeated(rows: pd.DataFrame, report: Report) -> pd.DataFrame:
    """Leave one of several equal rows; several rows that differ are a problem."""
    rows = rows.assign(key=rows["image_id"].str.casefold())
    values = [column for column in rows if column not in ("image_id", "place")]
    equal = rows.duplicated(values) & (rows["key"] != "")
    repeated = at(rows[equal], "image_id")
    report.tell("warning", "repeated_rows", "rows equal to an earlier one, left out", repeated)
    rows = rows[~equal]
    differing = rows[rows.duplicated("key", keep=False) & (rows["key"] != "")]
    items = []
    for _, group in differing.groupby("key"):
        columns = [str(c) for c in values if group[c].nunique(dropna=False) > 1]
        items.append(f"{', '.join(at(group, 'image_id'))}: differ in {', '.join(columns)}")
    report.problem("images with several rows that differ", "Keep one of each", items)
    return rows


def _tidy_lesions(rows: pd.DataFrame, classes: Sequence[str], report: Report) -> pd.DataFrame:
    """Give every row a lesion, and every lesion one spelling and one dx."""
    lesion = rows["lesion_id"]
    empty = lesion == ""
    report.tell(
        "warning",
        "empty_lesion_id",
        "rows without a lesion_id, each made a lesion of its own",
        at(rows[empty], "image_id"),
    )
    lesion = lesion.mask(empty, "image:" + rows["image_id"])
    # Two spellings of one lesion would let it stand in two splits.
    spelling = lesion.groupby(lesion.str.casefold()).transform("first")
    respelled = at(rows[spelling != lesion], "lesion_id")
    report.tell(
        "warning",
        "lesion_spelling",
        "lesion_id that differs from another in capitals only, taken for the same",
        respelled,
    )
    rows = rows.assign(lesion_id=spelling)
    known = rows[rows["dx"].isin(classes)]
    torn = known[known.groupby("lesion_id")["dx"].transform("nunique") > 1]
    items = [
        f"lesion_id {lesion_id!r}: "
        + ", ".join(f"{row.dx} ({row.place})" for row in group.drop_duplicates("dx").itertuples())
        for lesion_id, group in torn.groupby("lesion_id")
    ]
    report.problem("lesions with more than one dx", "Correct dx or lesion_id", items)
    return rows


def _note_extra_columns(report: Report, used: Iterable[str]) -> None:
    extra = [column for column in report.file.header if column not in used]
    report.tell("note", "extra_columns", "columns that are not used", extra)
