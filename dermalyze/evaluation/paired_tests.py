"""Whether two models judged on the same images differ by more than chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from dermalyze.errors import DataError


class McNemar(NamedTuple):
    """Images that only one of two models got right, and how likely so uneven a count is by chance.

    `p` is two-sided and exact, in [0, 1].
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first_right_N: npt.NDArray[np.bool_], second_right_N: npt.NDArray[np.bool_]) -> McNemar:
    """Test whether two models are right equally often (McNemar 1947, the exact binomial form).

    Only images that one model got right and the other wrong tell the two apart; were the models
    equally good, each would win one of them with probability 1/2.

    Images count as independent. Where lesions have several images they are not, and p is too
    small: the interval over lesions of `intervals` is then the one to trust.

    Args:
        first_right_N: whether the first model got each image right.
        second_right_N: likewise the second, for the same images in the same order.

    Raises:
        DataError: the two have not the same number of images.
    """
    if first_right_N.shape != second_right_N.shape:
        raise DataError(
            f"{len(first_right_N)} and {len(second_right_N)} images: McNemar's test compares two "
            "models on the same ones."
        )
    only_first = int((first_right_N & ~second_right_N).sum())
    only_second = int((second_right_N & ~first_right_N).sum())
    apart = only_first + only_second
    p = float(stats.binomtest(only_first, apart, 0.5).pvalue) if apart else 1.0
    return McNemar(only_first, only_second, p)


def holm(p_M: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return p-values corrected for there being M of them (Holm 1979), in the order given.

    Rejecting where the corrected p is below 0.05 rejects any true hypothesis at all in 5 % of such
    families of tests, however they depend on each other.
    """
    p_M = np.asarray(p_M, dtype=np.float64)
    order = np.argsort(p_M, kind="stable")
    stepped = np.maximum.accumulate(np.arange(len(p_M), 0, -1) * p_M[order])
    corrected_M = np.empty_like(p_M)
    corrected_M[order] = np.minimum(1, stepped)
    return corrected_M
