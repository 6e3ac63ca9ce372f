"""Rectangles that hide a part of some images of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dermalyze.augmentation.kernels import kernels_of
from dermalyze.augmentation.ranges import between, probability_problems
from dermalyze.config import raise_problems


@dataclass(frozen=True)
class CutoutParameters:
    """Which N of the B images lose a rectangle, and which one.

    Attributes:
        rows_N: positions in the batch, ascending.
        areas_N: shares of the image's area.
        aspects_N: width over height.
        places_N2: in [0, 1), from top to bottom and from left to right of all places within the
            image.
    """

    rows_N: np.ndarray
    areas_N: np.ndarray
    aspects_N: np.ndarray
    places_N2: np.ndarray


class Cutout:
    """One filled rectangle, wholly within the image, so that no single spot decides.

    After DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with
    cutout", with the random area and aspect ratio of Zhong et al. 2020, "Random erasing data
    augmentation" (algorithm 1).

    Args:
        probability: that an image loses a rectangle.
        area: smallest and largest share of the image's area, uniform between them.
        aspect: smallest and largest width over height, log-uniform between them.
        fill: red, green and blue of the rectangle, each in [0, 255].

    Raises:
        ConfigError: a value out of its range; all of them are named.
    """

    columns: ClassVar[int] = 5
    own_columns: ClassVar[int] = 0

    def __init__(
        self,
        *,
        probability: float,
        area: tuple[float, float],
        aspect: tuple[float, float],
        fill: tuple[float, float, float],
    ) -> None:
        place = "augmentation.cutout"
        problems = probability_problems(place, probability=probability)
        if not 0 < area[0] <= area[1] < 1:
            problems.append(
                f"{place}.area={list(area)}: two shares of the image's area above 0 and below 1, "
                "the smaller first, are needed, such as [0.02, 0.1]"
            )
        if not 0 < aspect[0] <= aspect[1] < np.inf:
            problems.append(
                f"{place}.aspect={list(aspect)}: two positive ratios of width to height, the "
                "smaller first, are needed, such as [0.5, 2.0]"
            )
        if len(fill) != 3 or not all(0 <= value <= 255 for value in fill):
            problems.append(
                f"{place}.fill={list(fill)}: red, green and blue in [0, 255] are needed, such as "
                "[124, 116, 104], the mean of ImageNet"
            )
        raise_problems(problems)
        self.probability = probability
        self.area = tuple(area)
        self.log_aspect = np.log(aspect)
        self.fill_C11 = torch.tensor(fill, dtype=torch.float32).view(-1, 1, 1)

    def parameters(self, uniform_BP: np.ndarray) -> CutoutParameters:
        """Turn uniforms in [0, 1), `columns` for each image, into what happens to the image."""
        rows_N = np.flatnonzero(uniform_BP[:, 0] < self.probability)
        uniform_NP = uniform_BP[rows_N]
        return CutoutParameters(
            rows_N=rows_N,
            areas_N=between(self.area, uniform_NP[:, 1]),
            aspects_N=np.exp(between(self.log_aspect, uniform_NP[:, 2])),
            places_N2=uniform_NP[:, 3:],
        )

    def apply(self, images_BCHW: Tensor, parameters: CutoutParameters) -> Tensor:
        """Fill the rectangles of the chosen images in place and return the batch."""
        if len(parameters.rows_N) == 0:
            return images_BCHW
        bounds_N4 = rectangles(parameters, *images_BCHW.shape[2:])
        kernels_of(images_BCHW).fill(images_BCHW, parameters.rows_N, bounds_N4, self.fill_C11)
        return images_BCHW


def rectangles(parameters: CutoutParameters, height: int, width: int) -> np.ndarray:
    """Return bounds_N4 in whole pixels: top, bottom, left, right (bottom and right outside).

    The area comes first: the width makes up for the rounding of the height, and where a rectangle
    of the wanted aspect would not fit into the image, the aspect gives way.
    """
    areas_N = parameters.areas_N * height * width
    heights_N = np.rint(np.sqrt(areas_N / parameters.aspects_N))
    heights_N = np.clip(heights_N, np.ceil(areas_N / width), np.clip(areas_N // 1, 1, height))
    widths_N = np.clip(np.rint(areas_N / heights_N), 1, width)
    sides_N2 = np.stack([heights_N, widths_N], axis=1)
    # A rectangle of h rows fits into H rows at H - h + 1 places.
    starts_N2 = np.floor(parameters.places_N2 * ([height, width] - sides_N2 + 1))
    ends_N2 = starts_N2 + sides_N2
    return np.stack([starts_N2, ends_N2], axis=2).reshape(-1, 4).astype(np.int64)
