"""Uneven light on some images of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from dermalyze.augmentation.canvas import on_device, quadratic_terms
from dermalyze.augmentation.ranges import probability_problems
from dermalyze.config import raise_problems


@dataclass(frozen=True)
class LightParameters:
    """The light on N of the B images.

    Attributes:
        rows_N: positions in the batch, ascending.
        slopes_N: natural logarithm of the brightest over the darkest edge.
        directions_N: degrees, where it is brightest, clockwise from the right.
        falloffs_N: natural logarithm of the centre over the middle of an edge.
    """

    rows_N: np.ndarray
    slopes_N: np.ndarray
    directions_N: np.ndarray
    falloffs_N: np.ndarray


class Light:
    """A lamp that stands to one side and lights the middle more than the rim.

    The image is multiplied by exp(slope u - 4 falloff (x^2 + y^2)), with x and y from the centre in
    shares of the shorter side and u the coordinate towards the lamp. The logarithm is 0 on average
    over a square, so that the image stays as bright as it was.

    Args:
        probability: that the light of an image is uneven.
        slope: largest ratio of the brightest to the darkest edge, >= 1; log-uniform from 1.
        falloff: largest ratio of the centre to the middle of an edge, >= 1; log-uniform from 1.

    Raises:
        ConfigError: a value out of its range; all of them are named.
    """

    own_columns: ClassVar[int] = 4

    def __init__(self, *, probability: float, slope: float, falloff: float) -> None:
        place = "augmentation.light"
        problems = probability_problems(place, probability=probability)
        problems += [
            f"{place}.{name}={value}: a ratio between 1 and 4 is needed, such as 1.3; 1 is even "
            "light, and 4 hides what lies in the dark"
            for name, value in {"slope": slope, "falloff": falloff}.items()
            if not 1 <= value <= 4
        ]
        raise_problems(problems)
        self.probability = probability
        self.log_slope, self.log_falloff = np.log(slope), np.log(falloff)

    def parameters(self, uniform_BP: np.ndarray) -> LightParameters:
        """Turn uniforms in [0, 1), `own_columns` for each image, into what happens to the image."""
        rows_N = np.flatnonzero(uniform_BP[:, 0] < self.probability)
        slope_N, direction_N, falloff_N = uniform_BP[rows_N, 1:].T
        return LightParameters(
            rows_N=rows_N,
            slopes_N=self.log_slope * slope_N,
            directions_N=360 * direction_N,
            falloffs_N=self.log_falloff * falloff_N,
        )

    def apply(self, images_BCHW: Tensor, parameters: LightParameters) -> Tensor:
        """Light the chosen images in place, up to 255, and return the batch."""
        if len(parameters.rows_N) == 0:
            return images_BCHW
        rows = on_device(parameters.rows_N, images_BCHW)
        forms_N6 = on_device(exponents(parameters), images_BCHW)
        factor_NP = (forms_N6 @ quadratic_terms(images_BCHW)).exp_()
        lit_NCHW = images_BCHW[rows]
        lit_NCHW.mul_(factor_NP.view(len(rows), 1, *images_BCHW.shape[2:])).clamp_(max=255)
        images_BCHW[rows] = lit_NCHW
        return images_BCHW


def exponents(parameters: LightParameters) -> np.ndarray:
    """Return forms_N6, coefficients of the logarithm of the light's factor."""
    angle_N = np.deg2rad(parameters.directions_N)
    falloff_N = 4 * parameters.falloffs_N
    # The mean of x^2 + y^2 over a square of side 1 is 1/6.
    return np.stack(
        [
            falloff_N / 6,
            parameters.slopes_N * np.cos(angle_N),
            parameters.slopes_N * np.sin(angle_N),
            -falloff_N,
            np.zeros_like(falloff_N),
            -falloff_N,
        ],
        axis=1,
    )
