"""How well scores rank images of one kind above the others, for many weightings at once.

Scores are sorted once; each of D draws is a row of weights (see `intervals`). Images with equal
scores are one step of every curve. Shapes: N images, D draws, G different scores.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # relative; sums of weights that should be equal differ by less


class Ranking:
    """Images in the order of falling scores: how much of either kind has each different score.

    `own_DG` and `other_DG` are the weights of the images of the kind and of the others;
    `thresholds_G` the scores, falling.
    """

    def __init__(
        self, scores_N: np.ndarray, of_kind_N: npt.NDArray[np.bool_], weights_DN: Floats
    ) -> None:
        """Sort the images.

        Args:
            scores_N: higher for what is more probably of the kind; finite.
            of_kind_N: which images are.
            weights_DN: >= 0.
        """
        order = np.argsort(-scores_N, kind="stable")
        falling = scores_N[order]
        starts = np.flatnonzero(np.r_[True, falling[1:] < falling[:-1]])
        sorted_DN = weights_DN[:, order]
        self.thresholds_G: Floats = falling[starts]
        self.own_DG: Floats = np.add.reduceat(sorted_DN * of_kind_N[order], starts, axis=1)
        self.other_DG: Floats = np.add.reduceat(sorted_DN, starts, axis=1) - self.own_DG
        self._found_DG: Floats = np.cumsum(self.own_DG, axis=1)
        self._false_DG: Floats = np.cumsum(self.other_DG, axis=1)
        self._own_D, self._others_D = self._found_DG[:, -1], self._false_DG[:, -1]

    def auc(self) -> Floats:
        """Return the area under the ROC curve of each draw; NaN where one kind is absent.

        It is the share of pairs, one of the kind and one other, that are ranked right; equal scores
        count half (Fawcett 2006, section 7).
        """
        below_DG = self._others_D[:, None] - self._false_DG + self.other_DG / 2
        right_D = np.einsum("dg,dg->d", self.own_DG, below_DG)
        return _ratio(right_D, self._own_D * self._others_D)

    def average_precision(self) -> Floats:
        """Return the mean precision at each recall, without interpolation; NaN without the kind.

        As scikit-learn's average_precision_score: every step of recall weighs its own size.
        """
        taken_DG = self._found_DG + self._false_DG
        precision_DG = np.divide(
            self._found_DG, taken_DG, out=np.zeros_like(taken_DG), where=taken_DG > 0
        )
        return _ratio(np.einsum("dg,dg->d", self.own_DG, precision_DG), self._own_D)

    def sensitivity(self, specificity: float) -> Floats:
        """Return the largest sensitivity at a threshold with at least that specificity.

        NaN where one kind is absent; 0 where no threshold that finds anything is so specific.

        Args:
            specificity: in [0, 1].
        """
        allowed_D = (1 - specificity + _ROUNDING) * self._others_D
        steps_D = (self._false_DG <= allowed_D[:, None]).sum(axis=1)
        last_D1 = np.maximum(steps_D - 1, 0)[:, None]
        found_D = np.take_along_axis(self._found_DG, last_D1, axis=1)[:, 0] * (steps_D > 0)
        sensitivity_D = _ratio(found_D, self._own_D)
        sensitivity_D[self._others_D == 0] = np.nan
        return sensitivity_D

    def roc_curve(self) -> tuple[Floats, Floats]:
        """Return the false and true positive rates of the first draw, rising from 0 to 1."""
        false_G = self._false_DG[0] / self._others_D[0]
        return np.r_[0, false_G], np.r_[0, self._found_DG[0] / self._own_D[0]]

    def precision_recall_curve(self) -> tuple[Floats, Floats]:
        """Return recall, rising from above 0 to 1, and precision of the first draw."""
        found_G, taken_G = self._found_DG[0], self._found_DG[0] + self._false_DG[0]
        return found_G / self._own_D[0], found_G / taken_G


def _ratio(over_D: Floats, under_D: Floats) -> Floats:
    ratio_D: Floats = np.divide(
        over_D, under_D, out=np.full(len(over_D), np.nan), where=under_D > 0
    )
    return ratio_D
