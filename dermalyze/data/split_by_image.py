"""The split that leaks, kept to show what leakage does to the numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dermalyze.data.split import Split, warn_of_leak
from dermalyze.data.split_dealing import (
    Lesions,
    checked_seed,
    deal,
    refuse_too_few_for,
    train_val_test,
)
from dermalyze.data.split_files import BY_IMAGE


class RandomByImage:
    """A random split by image: images of one lesion may train a model and test it.

    Images are dealt out as `LesionStratified` deals out lesions, every class in the same shares in
    all parts. Grouping by lesion is thus all that the two differ in, and the gap between their
    results is what leakage does. A split with torn lesions is warned of, and its method is called
    random_by_image_leaky wherever it is written down.

    Args:
        val_size: share of the images for val, in (0, 1).
        test_size: share of the images for test, in (0, 1); train gets what is left.
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
            DataError: a class has too few images to be in every part within one image of its
                share, or a dx is not among `classes`.
        """
        # The leak: every image is taken for a lesion of its own.
        images = Lesions.of(frame.assign(lesion_id=frame["image_id"]), classes)
        refuse_too_few_for(self.shares, images.label, classes, units="images")
        part_of_image = deal(images.label, self.shares, self.seed)
        split = Split.of(frame, part_of_image[images.of_row], BY_IMAGE, self.seed)
        warn_of_leak(split, frame)
        return split
