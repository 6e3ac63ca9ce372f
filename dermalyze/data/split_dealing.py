"""How lesions are dealt out to the parts of a split: class by class, exactly.

All of it is a pure function of the seed and of each class's lesion ids: lesions are numbered in the
order of their ids, so that the order of a table's rows has no say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermalyze.data.split_files import first
from dermalyze.errors import ConfigError, DataError
from dermalyze.randomness import Purpose, generator

Numbers = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions of a table, numbered in the order of their ids.

    `ids` are their names, `label` is the position of each one's dx among the classes, and `of_row`
    is the number of the lesion of each row of the table.
    """

    ids: pd.Index[str]
    label: Numbers
    of_row: Numbers

    @classmethod
    def of(cls, frame: pd.DataFrame, classes: Sequence[str]) -> Lesions:
        """Return the lesions of `frame` (columns lesion_id, dx).

        Raises:
            DataError: a dx is not among `classes`, or a lesion has two.
        """
        label_of_row = pd.Index(classes).get_indexer(pd.Index(frame["dx"]))
        if (label_of_row < 0).any():
            foreign = sorted(set(frame["dx"].to_numpy()[label_of_row < 0]))
            raise DataError(f"dx {first(foreign)}: not among the classes {', '.join(classes)}.")
        of_row, ids = pd.factorize(frame["lesion_id"], sort=True)
        label = np.empty(len(ids), dtype=np.intp)
        label[of_row] = label_of_row
        torn = ids[np.unique(of_row[label[of_row] != label_of_row])]
        if len(torn):
            raise DataError(f"lesion_id {first(torn)}: more than one dx. Correct dx or lesion_id.")
        return cls(ids, label, of_row)


def exact_share(name: str, size: float) -> Fraction:
    """Return a share in (0, 1) as people wrote it: 0.7 + 0.2 + 0.1 is 1, equal shares are equal.

    Raises:
        ConfigError: `size` is not in (0, 1); `name` is the key of data.split that has it.
    """
    if not 0 < size < 1:
        raise ConfigError(
            f"data.split.{name}={size}: not a share of the lesions in (0, 1). Give one such as "
            "0.15."
        )
    return Fraction(str(float(size)))


def train_val_test(val_size: float, test_size: float) -> tuple[Fraction, Fraction, Fraction]:
    """Return the exact shares of the three parts; train gets what the others leave.

    Raises:
        ConfigError: a size is not in (0, 1), or nothing is left for train.
    """
    val, test = exact_share("val_size", val_size), exact_share("test_size", test_size)
    if val + test >= 1:
        raise ConfigError(
            f"data.split.val_size={val_size} and data.split.test_size={test_size}: together "
            ">= 1, so nothing is left to train on. Make them smaller, such as 0.15 each."
        )
    return 1 - val - test, val, test


def checked_seed(seed: int) -> int:
    """Return `seed`.

    Raises:
        ConfigError: it is negative.
    """
    if seed < 0:
        raise ConfigError(f"data.split.seed={seed}: negative. Give a whole number >= 0.")
    return seed


def refuse_small_classes(
    label: Numbers, classes: Sequence[str], *, needed: int, units: str, why: str, mend: str
) -> None:
    """Name all classes with fewer than `needed` lesions (or other units), with their counts.

    Args:
        label: of each lesion, in [0, len(classes)).
        classes: the codes.
        needed: how many each class must have.
        units: what is counted, such as "lesions".
        why: what fewer cannot do, to follow "are needed".
        mend: what to do about it, to come before "or leave the class out of the table".

    Raises:
        DataError: there are such classes.
    """
    counts = np.bincount(label, minlength=len(classes)).tolist()
    short = [f"{code} {n}" for code, n in zip(classes, counts, strict=True) if n < needed]
    if short:
        raise DataError(
            f"{units} of a class: {', '.join(short)}; at least {needed} are needed {why}. {mend} "
            f"{units} of the class, or leave the class out of the table."
        )


def refuse_too_few_for(
    shares: tuple[Fraction, Fraction, Fraction], label: Numbers, classes: Sequence[str], units: str
) -> None:
    """Refuse classes that cannot be in train, val and test by these shares.

    Raises:
        DataError: a class has fewer lesions (or other units) than `fewest` of the shares.
    """
    needed = fewest(shares)
    refuse_small_classes(
        label,
        classes,
        needed=needed,
        units=units,
        why=f"for every part to hold every class within one {units.removesuffix('s')} of its share "
        f"(data.split.val_size={float(shares[1])}, data.split.test_size={float(shares[2])})",
        mend="Use larger sizes, add" if needed > len(shares) else "Add",
    )


def shuffled_by_class(label: Numbers, seed: int, *time: int) -> list[Numbers]:
    """Return the numbers of each class's lesions, shuffled by that class's own generator."""
    return [
        generator(seed, Purpose.SPLIT, number, *time).permutation(np.flatnonzero(label == number))
        for number in range(label.max(initial=-1) + 1)
    ]


def deal(label: Numbers, shares: Sequence[Fraction], seed: int, *time: int) -> Numbers:
    """Return for each lesion the position in `shares` of the part it goes to.

    Each class is shuffled and dealt out by `lesions_per_part`, so in each part each class's number
    of lesions is within one of its exact share, and every class is in every part. Rounding adds up
    over the classes to less than one lesion a class; ties of remainders go to the first part in
    classes of even number and to the last in the others, so that no part gets all of them.

    Args:
        label: the class of each lesion; each class has at least `fewest` of the shares.
        shares: of each part, each > 0, sum 1.
        seed: >= 0.
        time: tells several dealings of one seed apart.
    """
    part_of_lesion = np.empty(len(label), dtype=np.intp)
    last_to_first = np.arange(len(shares))[::-1]
    for number, lesions in enumerate(shuffled_by_class(label, seed, *time)):
        dealt = lesions_per_part(len(lesions), shares, ties_to_last=number % 2 == 1)
        # The last part, test, is dealt first: another val_size leaves the test lesions as they are.
        part_of_lesion[lesions] = np.repeat(last_to_first, dealt[::-1])
    return part_of_lesion


def fewest(shares: Sequence[Fraction]) -> int:
    """Return how many lesions can be dealt to every part within one of each share."""
    # A part with a share below one lesion gets one, at the cost of the largest part. Where all the
    # others need that, the largest stays within one if they are owed all of theirs but one.
    return max(len(shares), ceil((len(shares) - 2) / (1 - max(shares))))


def lesions_per_part(
    lesions: int, shares: Sequence[Fraction], *, ties_to_last: bool
) -> tuple[int, ...]:
    """Deal out a number of lesions by shares (sum 1): largest remainder, at least one a part.

    Args:
        lesions: how many, >= the number of parts.
        shares: of each part, each > 0.
        ties_to_last: whether equal remainders favour the last part or the first.
    """
    dealt = [max(1, int(lesions * share)) for share in shares]
    left = lesions - sum(dealt)
    if left < 0:  # all smaller parts were owed less than the one lesion they got
        dealt[max(range(len(shares)), key=shares.__getitem__)] += left
    order = range(len(shares))[:: -1 if ties_to_last else 1]
    by_remainder = sorted(order, key=lambda part: dealt[part] - lesions * shares[part])
    for part in by_remainder[: max(0, left)]:
        dealt[part] += 1
    return tuple(dealt)
