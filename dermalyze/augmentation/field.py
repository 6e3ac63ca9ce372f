"""Dark corners around the round field of a dermoscope, on some images of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from dermalyze.augmentation.canvas import coordinates, on_device
from dermalyze.augmentation.ranges import between, probability_problems, span_problems
from dermalyze.config import raise_problems


@dataclass(frozen=True)
class FieldParameters:
    """The round field of N of the B images; lengths are shares of the shorter side.

    Attributes:
        rows_N: positions in the batch, ascending.
        centres_N2: x and y from the image's centre.
        radii_N: where the light begins to fall.
        softnesses_N: over which it falls.
        darknesses_N: share of the light that is lost outside.
    """

    rows_N: np.ndarray
    centres_N2: np.ndarray
    radii_N: np.ndarray
    softnesses_N: np.ndarray
    darknesses_N: np.ndarray


class Field:
    """The dermoscope's field of view: a disc, dark beyond its soft edge.

    Args:
        probability: that an image has dark corners.
        radius: share of the shorter side, uniform; 0.5 touches the edges, 0.71 the corners.
        offset: share of the shorter side; the centre is moved by up to this in x and in y.
        softness: share of the shorter side over which the light falls, uniform.
        darkness: share of the light that is lost outside, uniform; 1 is black.

    Raises:
        ConfigError: a value out of its range; all of them are named.
    """

    own_columns: ClassVar[int] = 6

    def __init__(
        self,
        *,
        probability: float,
        radius: tuple[float, float],
        offset: float,
        softness: tuple[float, float],
        darkness: tuple[float, float],
    ) -> None:
        place = "augmentation.field"
        problems = probability_problems(place, probability=probability)
        share = "shares of the shorter side"
        problems += span_problems(place, unit=share, low=0.4, high=1, radius=radius)
        problems += span_problems(place, unit=share, low=0, high=0.5, softness=softness)
        problems += span_problems(place, unit="shares", low=0, high=1, darkness=darkness)
        if not 0 <= offset <= 0.2:
            problems.append(
                f"{place}.offset={offset}: a share of the shorter side between 0 and 0.2 is "
                "needed; more would hide what lies in the middle"
            )
        raise_problems(problems)
        self.probability, self.offset = probability, offset
        self.radius, self.softness, self.darkness = radius, softness, darkness

    def parameters(self, uniform_BP: np.ndarray) -> FieldParameters:
        """Turn uniforms in [0, 1), `own_columns` for each image, into what happens to the image."""
        rows_N = np.flatnonzero(uniform_BP[:, 0] < self.probability)
        uniform_NP = uniform_BP[rows_N]
        return FieldParameters(
            rows_N=rows_N,
            centres_N2=self.offset * (2 * uniform_NP[:, 1:3] - 1),
            radii_N=between(self.radius, uniform_NP[:, 3]),
            softnesses_N=between(self.softness, uniform_NP[:, 4]),
            darknesses_N=between(self.darkness, uniform_NP[:, 5]),
        )

    def apply(self, images_BCHW: Tensor, parameters: FieldParameters) -> Tensor:
        """Darken the corners of the chosen images in place and return the batch."""
        if len(parameters.rows_N) == 0:
            return images_BCHW
        rows = on_device(parameters.rows_N, images_BCHW)
        # An edge is never sharper than a pixel.
        softnesses_N = np.maximum(parameters.softnesses_N, 1 / min(images_BCHW.shape[2:]))
        numbers_N5 = np.column_stack(
            [parameters.centres_N2, parameters.radii_N, softnesses_N, parameters.darknesses_N]
        )
        centre_x, centre_y, radius, softness, darkness = (
            value_N[:, None, None] for value_N in on_device(numbers_N5, images_BCHW).unbind(dim=1)
        )
        x_W, y_H = coordinates(images_BCHW)
        square_NHW = (x_W - centre_x).square() + (y_H[:, None] - centre_y).square()
        fall_NHW = square_NHW.sqrt_().sub_(radius).div_(softness).clamp_(0, 1)
        # 3 s^2 - 2 s^3 begins and ends level.
        lost_NHW = fall_NHW.square().mul_(3 - 2 * fall_NHW).mul_(darkness)
        images_BCHW[rows] = images_BCHW[rows].mul_((1 - lost_NHW).unsqueeze(1))
        return images_BCHW
