"""Two splits with the same test images, one of which leaks: what leakage does, and nothing else.

A split by image and one by lesion test different images, so their results differ by more than the
leak. Here the test part is the same to the image, and so is the number of training images of each
class. What differs is whether other pictures of the test lesions are among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dermalyze.data.split import LesionStratified, Rows, Split, warn_of_leak
from dermalyze.data.split_dealing import Lesions
from dermalyze.data.split_files import PARTS, SIBLINGS_INJECTED, UNUSED
from dermalyze.errors import DataError
from dermalyze.randomness import Purpose, generator

SIBLINGS_LEFT_OUT = "siblings_left_out"
TRAIN, TEST = PARTS.index("train"), PARTS.index("test")
IN_NO_PART = (*PARTS, UNUSED).index(UNUSED)


class LeakStudy:
    """`LesionStratified`, its test part thinned to one image a lesion, with or without a leak.

    Of each test lesion one image, drawn by the seed, stays in test. Its siblings, the other images
    of the lesion, train the model if `inject`, and else are in no part. For every sibling that
    trains, one image of its class that trained before, drawn by the seed, is in no part instead. So
    both splits of a seed have the same test and val images, and equally many training images of
    each class.

    What is left out was of lesions outside test, so the leaky model learns from fewer lesions, and
    the gap between the two understates the leak, if anything.

    With `inject` a warning counts the torn lesions, and the method is called
    siblings_injected_leaky wherever it is written down.

    Args:
        inject: whether the siblings of test images are in train.
        val_size: share of each class's lesions for val, in (0, 1).
        test_size: share of each class's lesions for test, in (0, 1); train gets what is left.
        seed: >= 0.

    Raises:
        ConfigError: a size is not in (0, 1), nothing is left for train, or the seed is negative.
    """

    def __init__(self, *, inject: bool, val_size: float, test_size: float, seed: int) -> None:
        self.by_lesion = LesionStratified(val_size=val_size, test_size=test_size, seed=seed)
        self.inject = inject
        self.seed = seed

    def __call__(self, frame: pd.DataFrame, classes: Sequence[str]) -> Split:
        """Split the table's `frame` (columns image_id, lesion_id, dx).

        Raises:
            DataError: what `LesionStratified` refuses; no test lesion has siblings; or a class has
                more siblings than training images.
        """
        split = self.by_lesion(frame, classes)
        lesions = Lesions.of(frame, classes)
        part_of_row = np.empty(len(frame), dtype=np.intp)
        for number, name in enumerate(PARTS):
            part_of_row[split.part(name)] = number
        # In the order of the ids, so that the order of the table's rows has no say.
        ordered = np.argsort(frame["image_id"].to_numpy(str))
        label, part = lesions.label[lesions.of_row[ordered]], part_of_row[ordered]
        injected = 0
        for number, code in enumerate(classes):
            train, test = (ordered[(label == number) & (part == at)] for at in (TRAIN, TEST))
            siblings, left_out = self._drawn(train, test, lesions.of_row, number)
            if len(siblings) > len(left_out):
                raise DataError(
                    f"data/split=leak_study: {code} has {len(siblings)} siblings of test images, "
                    f"and only {len(left_out)} training images to leave out for them. Use a "
                    "smaller data.split.test_size."
                )
            part_of_row[siblings] = TRAIN if self.inject else IN_NO_PART
            if self.inject:
                part_of_row[left_out[: len(siblings)]] = IN_NO_PART
            injected += len(siblings)
        if not injected:
            raise DataError(
                "data/split=leak_study: no lesion of the test part has a second image, so nothing "
                "can leak. Use a table with several images of a lesion, such as all of HAM10000 or "
                "data=synthetic."
            )
        method = SIBLINGS_INJECTED if self.inject else SIBLINGS_LEFT_OUT
        study = Split.of(frame, part_of_row, method, self.seed)
        warn_of_leak(study, frame)
        return study

    def _drawn(
        self, train: Rows, test: Rows, lesion_of_row: Rows, number: int
    ) -> tuple[Rows, Rows]:
        """Return class `number`'s siblings of test images, and its train rows in random order."""
        shuffled = generator(self.seed, Purpose.SPLIT, number, 0).permutation(test)
        _, kept = np.unique(lesion_of_row[shuffled], return_index=True)
        others = generator(self.seed, Purpose.SPLIT, number, 1).permutation(train)
        return np.delete(shuffled, kept), others
