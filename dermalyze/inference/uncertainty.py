"""How sure a prediction is, from the spread of what views and members say of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import entr


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Of each of N images; all are >= 0, and larger means less sure but for the margin.

    Attributes:
        entropy_N: of the final probabilities, in nats, at most log K.
        mutual_information_N: entropy of the mean of the members minus the mean of their entropies,
            each member's views averaged first, in nats (Depeweg et al. 2018, "Decomposition of
            uncertainty in Bayesian deep learning", equation 4): what the members disagree about; 0
            where there is only one, in however many views.
        deviation_N: standard deviation (of the population) over views and members of the
            probability of the predicted class.
        margin_N: the largest of the final probabilities minus the second largest, at most 1.
    """

    entropy_N: np.ndarray
    mutual_information_N: np.ndarray
    deviation_N: np.ndarray
    margin_N: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """Return them by what they are called in tables of predictions."""
        return {
            "predictive_entropy": self.entropy_N,
            "mutual_information": self.mutual_information_N,
            "predicted_class_deviation": self.deviation_N,
            "margin": self.margin_N,
        }


def uncertainty(probs_NK: np.ndarray, probs_MVNK: np.ndarray, weights_M: np.ndarray) -> Uncertainty:
    """Return how sure the final probabilities are.

    Args:
        probs_NK: the final ones, whatever they were merged by.
        probs_MVNK: of M members in V views each. The mean that mutual information needs is the
            arithmetic one, which alone can never be less uncertain than its parts.
        weights_M: of the members, >= 0, summing to 1; the views of one share its weight.
    """
    views = probs_MVNK.shape[1]
    answers_ANK = probs_MVNK.reshape(-1, *probs_NK.shape)
    weights_A = np.repeat(weights_M / views, views)
    members_MNK = probs_MVNK.mean(axis=1)
    mean_NK = np.einsum("m,mnk->nk", weights_M, members_MNK)
    expected_N = np.einsum("m,mn->n", weights_M, _entropy(members_MNK))
    of_predicted_AN = answers_ANK[:, np.arange(len(probs_NK)), probs_NK.argmax(axis=1)]
    centre_N = weights_A @ of_predicted_AN
    second_N, first_N = np.sort(probs_NK, axis=1)[:, -2:].T
    return Uncertainty(
        entropy_N=_entropy(probs_NK),
        # Where all agree, rounding leaves less than 1e-15 on either side of 0.
        mutual_information_N=np.maximum(_entropy(mean_NK) - expected_N, 0.0),
        deviation_N=np.sqrt(weights_A @ (of_predicted_AN - centre_N) ** 2),
        margin_N=first_N - second_N,
    )


def _entropy(probs_XK: np.ndarray) -> np.ndarray:
    """Return the entropy over the last axis, in nats."""
    nats: np.ndarray = entr(probs_XK).sum(axis=-1)
    return nats
