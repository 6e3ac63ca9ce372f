"""How well scores rank images of one kind above the others, for many weightings at once.

Scores are sorted once; each of D draws is a row of weights (see `intervals`). Images with equal
scores are one step of every curve. Only steps with images of the kind are kept: between them no
curve rises. Shapes: N images, P of them of the kind and Q others, D draws, G different scores of
images of the kind.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # relative; sums of weights that should be equal differ by less


def auc_draws(scores_N: np.ndarray, of_kind_N: npt.NDArray[np.bool_], weights_DN: Floats) -> Floats:
    """Return the area under the ROC curve of each draw; NaN where one kind is absent.

    It is the share of pairs, one of the kind and one other, that are ranked right; equal scores
    count half (Fawcett 2006, section 7). No curve is made, and sums run over the others alone and
    along memory: a quarter of the time of a `Ranking`.

    Args:
        scores_N, of_kind_N, weights_DN: as of `Ranking`.
    """
    own_P, others_Q = np.flatnonzero(of_kind_N), np.flatnonzero(~of_kind_N)
    others_Q = others_Q[np.argsort(scores_N[others_Q], kind="stable")]
    weights_ND = np.ascontiguousarray(weights_DN.T)
    below_QD = np.zeros((len(others_Q) + 1, len(weights_DN)))
    np.cumsum(weights_ND[others_Q], axis=0, out=below_QD[1:])
    fewer_P = np.searchsorted(scores_N[others_Q], scores_N[own_P], side="left")
    no_more_P = np.searchsorted(scores_N[others_Q], scores_N[own_P], side="right")
    weights_PD = weights_ND[own_P]
    right_D = np.einsum("pd,pd->d", weights_PD, below_QD[fewer_P] + below_QD[no_more_P]) / 2
    return _ratio(right_D, weights_PD.sum(axis=0) * below_QD[-1])


class Ranking:
    """Images of a kind and others, in the order of falling scores."""

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
        falling, of_kind = scores_N[order], of_kind_N[order]
        sorted_DN = weights_DN[:, order]
        until_DN: Floats = np.cumsum(sorted_DN, axis=1)  # the weight of all up to each image
        found_DP: Floats = np.cumsum(sorted_DN[:, of_kind], axis=1)
        # The last image with the score of one of the kind is the one before `end`.
        rising, own = -falling, -falling[of_kind]
        last_of_equals = np.r_[own[1:] > own[:-1], True][: len(own)]
        steps = own[last_of_equals]
        end_G = np.searchsorted(rising, steps, side="right")
        self._found_DG: Floats = found_DP[:, last_of_equals]
        self._own_DG: Floats = np.diff(self._found_DG, axis=1, prepend=0)
        self._taken_DG: Floats = until_DN[:, end_G - 1]
        self._false_DG: Floats = self._taken_DG - self._found_DG
        self._own_D: Floats = sorted_DN[:, of_kind].sum(axis=1)
        self._others_D: Floats = sorted_DN[:, ~of_kind].sum(axis=1)

    def average_precision(self) -> Floats:
        """Return the mean precision at each recall, without interpolation; NaN without the kind.

        As scikit-learn's average_precision_score: every step of recall weighs its own size.
        """
        precision_DG = np.divide(
            self._found_DG,
            self._taken_DG,
            out=np.zeros_like(self._taken_DG),
            where=self._taken_DG > 0,
        )
        return _ratio(np.einsum("dg,dg->d", self._own_DG, precision_DG), self._own_D)

    def sensitivity(self, specificity: float) -> Floats:
        """Return the largest sensitivity at a threshold with at least that specificity.

        NaN where one kind is absent; 0 where no threshold that finds anything is so specific.

        Args:
            specificity: in [0, 1].
        """
        allowed_D = (1 - specificity + _ROUNDING) * self._others_D
        so_specific_DG = self._false_DG <= allowed_D[:, None]
        found_D = np.max(self._found_DG, axis=1, where=so_specific_DG, initial=0)
        sensitivity_D = _ratio(found_D, self._own_D)
        sensitivity_D[self._others_D == 0] = np.nan
        return sensitivity_D


def _ratio(over_D: Floats, under_D: Floats) -> Floats:
    ratio_D: Floats = np.divide(
        over_D, under_D, out=np.full(len(over_D), np.nan), where=under_D > 0
    )
    return ratio_D
