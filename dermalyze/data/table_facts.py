"""What a table alone tells, before any picture is opened: counts, gaps, and what leaks the label.

Only the columns are looked at, so a table whose images are not there has facts too.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from scipy.stats.contingency import association

from dermalyze.data.table import UNKNOWN, LesionTable, summary

DESCRIPTIONS = ("age", "sex", "localization", "dx_type")
# Neither is seen in the picture: where an image comes from, and how its dx was established.
CONFOUNDERS = ("dataset", "dx_type")


@dataclass(frozen=True)
class ClassCount:
    """How much of a table is of one class."""

    images: int
    lesions: int
    share_of_images: float  # in [0, 1]


@dataclass(frozen=True)
class Coverage:
    """For how many images a column is filled."""

    known: int
    unknown: int
    known_share: float  # in [0, 1]


@dataclass(frozen=True)
class Confound:
    """A column that goes along with dx without being a property of the lesion.

    `images` holds, of each dx, the images of each known value. `cramers_v` in [0, 1] says how
    closely they go together: 0 not at all, 1 one tells the other (Cramér, Mathematical Methods of
    Statistics, 1946; not corrected for bias). A value of `values_of_one_dx` gives the dx away; a dx
    of `dx_of_one_value` has always been recorded in one way.
    """

    column: str
    images: dict[str, dict[str, int]]
    cramers_v: float
    values_of_one_dx: dict[str, str]
    dx_of_one_value: dict[str, str]


@dataclass(frozen=True)
class TableFacts:
    """Counts of a table. `lesions_by_images` says how many lesions have "1", "2", ... images."""

    images: int
    lesions: int
    classes: dict[str, ClassCount]
    lesions_by_images: dict[str, int]
    coverage: dict[str, Coverage]
    lesions_of_several_dx: tuple[str, ...]  # a reader refuses such a table; said all the same
    confounds: tuple[Confound, ...]

    @property
    def lesions_of_several_images(self) -> int:
        """How many lesions have more than one image."""
        return self.lesions - self.lesions_by_images.get("1", 0)


def table_facts(table: LesionTable) -> TableFacts:
    """Count what a table holds. Its frame needs neither `path` nor `label`, nor any image file."""
    frame = table.frame
    by_lesion = frame.groupby("lesion_id")["dx"]
    several_dx = by_lesion.nunique()
    sizes = by_lesion.size().value_counts().sort_index()
    return TableFacts(
        images=len(frame),
        lesions=by_lesion.ngroups,
        classes={
            str(dx): ClassCount(int(row["images"]), int(row["lesions"]), row["share_of_images"])
            for dx, row in summary(table).iterrows()
        },
        lesions_by_images={str(images): int(lesions) for images, lesions in sizes.items()},
        coverage={column: _coverage(frame[column]) for column in DESCRIPTIONS if column in frame},
        lesions_of_several_dx=tuple(several_dx.index[several_dx > 1]),
        confounds=tuple(
            confound
            for column in CONFOUNDERS
            if column in frame and (confound := _confound(frame, column)) is not None
        ),
    )


def _known(values: pd.Series) -> pd.Series:
    return values.notna() & (values != UNKNOWN)


def _coverage(values: pd.Series) -> Coverage:
    known = int(_known(values).sum())
    return Coverage(known, len(values) - known, known / len(values))


def _confound(frame: pd.DataFrame, column: str) -> Confound | None:
    """Return how a column goes along with dx; None where there is but one value, or one dx."""
    rows = frame[_known(frame[column])]
    counts = pd.crosstab(rows["dx"], rows[column])
    if min(counts.shape) < 2:
        return None
    present = counts > 0
    return Confound(
        column=column,
        images={
            str(dx): {str(value): int(images) for value, images in row.items()}
            for dx, row in counts.iterrows()
        },
        cramers_v=float(association(counts.to_numpy(), method="cramer")),
        values_of_one_dx={
            str(value): str(only.idxmax()) for value, only in present.items() if only.sum() == 1
        },
        dx_of_one_value={
            str(dx): str(only.idxmax()) for dx, only in present.iterrows() if only.sum() == 1
        },
    )
