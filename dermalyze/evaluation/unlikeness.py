"""How far an image's features lie from those that a model makes of images it is meant for.

Shapes: N images, F features, R directions. scikit-learn and scipy's algebra are imported where they
fit: who only measures distances takes no second longer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dermalyze.errors import DataError

Floats = npt.NDArray[np.float32]

_SMALLEST = 1e-6  # of a variance: what never varies still divides
_STILL = 0.01  # of the median deviation, which a feature that hardly varies is given


@dataclass(frozen=True, eq=False)
class Seen:
    """A Gaussian of features: R principal directions, and one variance for all others.

    Probabilistic principal components (Tipping & Bishop 1999, section 3.2), of features that were
    first scaled to a deviation of 1: a covariance that a few hundred images can tell. Features that
    hardly vary among these images, as of a neuron that they leave dead, are scaled by a hundredth
    of the median deviation: that one stirs tells of an unlike image, but by its own deviation of
    next to nothing it would outweigh all others.
    """

    mean_F: Floats
    deviation_F: Floats
    directions_RF: Floats
    variances_R: Floats
    other_variance: float

    @classmethod
    def of(cls, features_NF: np.ndarray, directions: int) -> Seen:
        """Fit it to images; of N images there are at most N - 2 directions.

        Raises:
            DataError: fewer than 3 images, or no feature that varies.
        """
        from scipy.linalg import eigh

        images, features = features_NF.shape
        if images < 3:
            raise DataError(f"{images} images: at least 3 are needed to tell how features vary.")
        exact_NF = features_NF.astype(np.float64)
        mean_F = exact_NF.mean(axis=0).astype(np.float32)
        exact_F = exact_NF.std(axis=0)
        varying = exact_F[exact_F > _SMALLEST * np.abs(exact_NF).max()]
        if not len(varying):
            raise DataError(f"no feature varies among {images} images.")
        deviation_F = np.maximum(exact_F, _STILL * np.median(varying)).astype(np.float32)
        scaled_NF = _scaled(features_NF, mean_F, deviation_F)
        covariance_FF = scaled_NF.T @ scaled_NF / images
        kept = min(directions, images - 2, features - 1)
        largest = (features - kept, features - 1)
        variances_R, directions_FR = eigh(covariance_FF, subset_by_index=largest)
        others = (np.trace(covariance_FF) - variances_R.sum()) / (features - kept)
        return cls(
            mean_F,
            deviation_F,
            directions_FR.T.astype(np.float32),
            variances_R.astype(np.float32),
            float(others),
        )

    def distance(self, features_NF: np.ndarray) -> npt.NDArray[np.float64]:
        """Return the Mahalanobis distance over the root of F: about 1 for images like those.

        As Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples",
        section 2.1, with one Gaussian instead of one for each class.
        """
        scaled_NF = _scaled(features_NF, self.mean_F, self.deviation_F)
        along_NR = scaled_NF @ self.directions_RF.T
        beside_N = (scaled_NF**2).sum(axis=1) - (along_NR**2).sum(axis=1)
        squares_N = (along_NR**2 / np.maximum(self.variances_R, _SMALLEST)).sum(axis=1)
        squares_N += np.maximum(beside_N, 0) / max(self.other_variance, _SMALLEST)
        distances_N: npt.NDArray[np.float64] = np.sqrt(squares_N / scaled_NF.shape[1])
        return distances_N


def distances_of_unseen(
    features_NF: np.ndarray, lesion_ids_N: npt.ArrayLike, *, directions: int, folds: int
) -> npt.NDArray[np.float64]:
    """Return each image's distance to a `Seen` that no image of its lesion took part in.

    Args:
        folds: into so many the lesions are dealt, at most one each.

    Raises:
        DataError: fewer than 2 lesions, or too few images beside those of a fold.
    """
    from sklearn.model_selection import GroupKFold

    lesions = len(set(np.asarray(lesion_ids_N).tolist()))
    if lesions < 2:
        raise DataError(f"{lesions} lesions: at least 2 are needed to tell one from the others.")
    distances_N = np.empty(len(features_NF))
    dealt = GroupKFold(min(folds, lesions)).split(features_NF, groups=lesion_ids_N)
    for others, fold in dealt:
        seen = Seen.of(features_NF[others], directions)
        distances_N[fold] = seen.distance(features_NF[fold])
    return distances_N


def _scaled(features_NF: np.ndarray, mean_F: Floats, deviation_F: Floats) -> np.ndarray:
    centred_NF = features_NF.astype(np.float64) - mean_F
    scaled_NF: np.ndarray = centred_NF / deviation_F
    return scaled_NF
