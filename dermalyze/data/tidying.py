"""Rows of text made tidy: one spelling for a value, one row for an image, one dx for a lesion.

What can be mended without a guess is mended and told; what cannot is a problem of the report.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dermalyze.data.metadata_file import Report, at
from dermalyze.errors import nearest

UNKNOWN = "unknown"
MISSING = ("", UNKNOWN, "na", "n/a", "nan", "none", "null")  # said of a value, never of an id
OLDEST = 120.0  # years; an age above it is a slip
_UNSEEN = "[\u00ad\u200b-\u200f\u2060\ufeff]"  # soft hyphens, joiners, marks of direction
DESCRIPTIONS = frozenset({"dx_type", "sex", "localization", "dataset"})


def tidy_values(rows: pd.DataFrame, classes: Sequence[str], report: Report) -> pd.DataFrame:
    """Take spaces and capitals out of values, and make unknown what says nothing."""
    for column in ("image_id", "lesion_id"):
        stripped = rows[column].str.strip()
        spaced = at(rows[stripped != rows[column]], column)
        report.tell("note", "spaces", f"values of {column} read without their spaces", spaced)
        rows = rows.assign(**{column: stripped})
    nameless = rows["place"][rows["image_id"] == ""]
    report.problem("rows without an image_id", "Name the image, or remove the row", nameless)

    folded = rows["dx"].str.strip().str.casefold()
    dx = folded.map({code.casefold(): code for code in classes}).fillna(folded)
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


def drop_repeated(rows: pd.DataFrame, report: Report) -> pd.DataFrame:
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


def tidy_lesions(rows: pd.DataFrame, classes: Sequence[str], report: Report) -> pd.DataFrame:
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
    alike = lesion.str.normalize("NFC").str.replace(_UNSEEN, "", regex=True).str.casefold()
    spelling = lesion.groupby(alike).transform("first")
    respelled = at(rows[spelling != lesion], "lesion_id")
    report.tell(
        "warning",
        "lesion_spelling",
        "lesion_id that differs from another in capitals or unseen characters only, taken for the "
        "same",
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
