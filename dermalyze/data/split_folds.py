"""Cross-validation by lesion: every lesion is in the test part of exactly one fold."""

from __future__ import annotations

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
    shuffled_by_class,
)
from dermalyze.data.split_files import PARTS
from dermalyze.errors import ConfigError


class LesionFolds:
    """One fold of a k-fold cross-validation by lesion, every class in the same shares in each.

    Within each class the lesions are shuffled and dealt to the folds in turn, one class after
    another without starting anew. So each class's numbers of lesions differ between folds by one
    at most, and so do those of all lesions. The lesions of `fold` are test; of the others each
    class gives val its share within one lesion (`split_dealing.deal`), and the rest is train.

    The folds depend on `folds` and `seed`, not on `fold` or `val_size`: the test parts of fold = 0
    to folds - 1 hold each lesion once. The order of the rows has no say.

    Args:
        folds: how many, >= 2.
        fold: the one to test on, in [0, folds).
        val_size: share of the lesions outside the fold for val, in (0, 1).
        seed: >= 0.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(self, *, folds: int, fold: int, val_size: float, seed: int) -> None:
        if folds < 2:
            raise ConfigError(f"data.split.folds={folds}: give at least 2; 5 is usual.")
        if not 0 <= fold < folds:
            raise ConfigError(
                f"data.split.fold={fold}: the {folds} folds are counted from 0 to {folds - 1}."
            )
        val = exact_share("val_size", val_size)
        self.train_val = (1 - val, val)
        self.folds = folds
        self.fold = fold
        self.seed = checked_seed(seed)

    def __call__(self, frame: pd.DataFrame, classes: Sequence[str]) -> Split:
        """Split the table's `frame` (columns image_id, lesion_id, dx).

        Raises:
            DataError: a class has too few lesions to be in every fold and, beside each fold, in
                train and val; a dx is not among `classes`; or a lesion has two.
        """
        lesions = Lesions.of(frame, classes)
        refuse_small_classes(
            lesions.label,
            classes,
            # Of two folds, one may hold two of three lesions: too few are left for train and val.
            needed=self.folds if self.folds > 2 else 4,
            units="lesions",
            why=f"to be in every fold (data.split.folds={self.folds}), and in train and val beside "
            "it",
            mend="Use fewer folds, add" if self.folds > 3 else "Add",
        )
        in_turn = np.concatenate(shuffled_by_class(lesions.label, self.seed))
        fold_of_lesion = np.empty_like(lesions.label)
        fold_of_lesion[in_turn] = np.arange(len(in_turn)) % self.folds

        part_of_lesion = np.full_like(lesions.label, PARTS.index("test"))
        others = np.flatnonzero(fold_of_lesion != self.fold)
        # Shuffled anew for each fold, so that not the same lesions choose the model in all of them.
        part_of_lesion[others] = deal(lesions.label[others], self.train_val, self.seed, self.fold)
        return Split.of(frame, part_of_lesion[lesions.of_row], "kfold", self.seed)
