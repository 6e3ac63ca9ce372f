"""A test on pictures from elsewhere: one source of the table is the test part."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from dermalyze.data.split import Split
from dermalyze.data.split_dealing import (
    Lesions,
    checked_seed,
    deal,
    exact_share,
    refuse_small_classes,
)
from dermalyze.data.split_files import BY_SOURCE, PARTS, first
from dermalyze.data.table import UNKNOWN
from dermalyze.errors import DataError, nearest

logger = logging.getLogger(__name__)


class LeaveOneSourceOut:
    """Test on one source (the column `dataset`: a clinic, a camera), learn from all others.

    The lesions of the other sources are dealt to train and val as `LesionStratified` does: each
    class's number in val is within one lesion of its share (`split_dealing.deal`). The test part is
    the source as it is. So, unlike in the other splits, it may lack classes; they are named in a
    warning, and metrics of theirs are undefined on it. Train and val hold every class.

    Images whose dataset is "unknown" are learnt from; a warning counts them, since they may be of
    the source left out.

    Args:
        source: a value of `dataset`; HAM10000 has rosendahl, vidir_modern, vidir_molemax and
            vienna_dias.
        val_size: share of the lesions of the other sources for val, in (0, 1).
        seed: >= 0.

    Raises:
        ConfigError: val_size is not in (0, 1), or the seed is negative.
    """

    def __init__(self, *, source: str, val_size: float, seed: int) -> None:
        val = exact_share("val_size", val_size)
        self.train_val = (1 - val, val)
        self.source = source
        self.seed = checked_seed(seed)

    def __call__(self, frame: pd.DataFrame, classes: Sequence[str]) -> Split:
        """Split the table's `frame` (columns image_id, lesion_id, dx, dataset).

        Raises:
            DataError: there is no column `dataset` or no such source in it; a lesion has images of
                two sources; a class has fewer than two lesions outside the source; a dx is not
                among `classes`; or a lesion has two.
        """
        lesions = Lesions.of(frame, classes)
        is_test_row = self._rows(frame)
        is_test = np.zeros(len(lesions.ids), dtype=np.bool_)
        is_test[lesions.of_row] = is_test_row
        others = np.flatnonzero(~is_test)
        refuse_small_classes(
            lesions.label[others],
            classes,
            needed=len(self.train_val),
            units="lesions",
            why=f"outside the source {self.source}, for train and val to hold every class",
            mend="Leave out another source, add",
        )
        absent = set(range(len(classes))) - set(lesions.label[is_test].tolist())
        if absent:
            logger.warning(
                "split %s: the source %s, and so the test part, has no %s; metrics of a class that "
                "is absent are undefined.",
                BY_SOURCE,
                self.source,
                ", ".join(classes[number] for number in sorted(absent)),
            )
        part_of_lesion = np.full_like(lesions.label, PARTS.index("test"))
        part_of_lesion[others] = deal(lesions.label[others], self.train_val, self.seed)
        return Split.of(frame, part_of_lesion[lesions.of_row], BY_SOURCE, self.seed)

    def _rows(self, frame: pd.DataFrame) -> pd.Series[bool]:
        """Return for each row whether it is of the source."""
        here = f"data.split.source={self.source}"
        if "dataset" not in frame:
            raise DataError(
                f"{here}: the table has no column `dataset`, which tells where each image comes "
                "from. Take HAM10000_metadata of the Harvard Dataverse (doi:10.7910/DVN/DBW86T), "
                "which has it, as data.source.metadata; copies found elsewhere often lack it."
            )
        sources = set(frame["dataset"]) - {UNKNOWN}
        if self.source not in sources:
            raise DataError(
                f"{here}: no image of the table has this dataset.{nearest(self.source, sources)}"
            )
        in_two = frame.groupby("lesion_id")["dataset"].nunique() > 1
        if in_two.any():
            raise DataError(
                f"{here}: {in_two.sum()} lesions have images of more than one dataset: "
                f"{first(sorted(in_two.index[in_two]))}. Correct dataset or lesion_id, or where "
                "data.merge_duplicates has joined them, set it to false."
            )
        unknown = int((frame["dataset"] == UNKNOWN).sum())
        if unknown:
            logger.warning(
                "split %s: %d images have no known dataset and are learnt from; if some are of %s, "
                "the test is not on a foreign source.",
                BY_SOURCE,
                unknown,
                self.source,
            )
        return frame["dataset"] == self.source
