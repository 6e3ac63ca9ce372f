"""Gaussian blur of some images of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from dermalyze.augmentation.kernels import kernels_of
from dermalyze.augmentation.ranges import between, probability_problems
from dermalyze.config import raise_problems
from dermalyze.errors import ConfigError


@dataclass(frozen=True)
class BlurParameters:
    """Which N of the B images are blurred (rows_N, ascending) and how much (sigmas_N, pixels)."""

    rows_N: np.ndarray
    sigmas_N: np.ndarray


class Blur:
    """Gaussian blur, as of an image slightly out of focus.

    Args:
        probability: that an image is blurred.
        kernel_size: pixels, odd; the Gaussian is cut off beyond it.
        sigma: smallest and largest standard deviation in pixels, uniform between them.

    Raises:
        ConfigError: a value out of its range; all of them are named.
    """

    columns: ClassVar[int] = 2
    own_columns: ClassVar[int] = 0

    def __init__(self, *, probability: float, kernel_size: int, sigma: tuple[float, float]) -> None:
        place = "augmentation.blur"
        problems = probability_problems(place, probability=probability)
        if kernel_size < 1 or kernel_size % 2 == 0:
            problems.append(
                f"{place}.kernel_size={kernel_size}: an odd number of pixels is needed, so that "
                "the kernel has a middle; try 3, 5 or 7"
            )
        smallest, largest = sigma
        if not 0 < smallest <= largest < np.inf:
            problems.append(
                f"{place}.sigma={list(sigma)}: two positive numbers of pixels, the smaller first, "
                "are needed, such as [0.1, 2.0]"
            )
        raise_problems(problems)
        self.probability = probability
        self.kernel_size = kernel_size
        self.sigma = (smallest, largest)

    def parameters(self, uniform_BP: np.ndarray) -> BlurParameters:
        """Turn uniforms in [0, 1), `columns` for each image, into what happens to the image."""
        rows_N = np.flatnonzero(uniform_BP[:, 0] < self.probability)
        return BlurParameters(rows_N, between(self.sigma, uniform_BP[rows_N, 1]))

    def apply(self, images_BCHW: Tensor, parameters: BlurParameters) -> Tensor:
        """Blur the chosen images in place and return the batch; borders are reflected.

        Raises:
            ConfigError: the images are too small to be reflected by half a kernel.
        """
        if len(parameters.rows_N) == 0:
            return images_BCHW
        margin = self.kernel_size // 2
        smaller_side = min(images_BCHW.shape[2:])
        if margin >= smaller_side:
            raise ConfigError(
                f"augmentation.blur.kernel_size={self.kernel_size}: images of {smaller_side} "
                f"pixels cannot be reflected by {margin} pixels at their borders; use "
                f"{2 * smaller_side - 1} or less, or larger images."
            )
        kernels_NK = gaussian_kernels(parameters.sigmas_N, self.kernel_size)
        kernels_of(images_BCHW).blur(images_BCHW, parameters.rows_N, kernels_NK)
        return images_BCHW


def gaussian_kernels(sigmas_N: np.ndarray, kernel_size: int) -> np.ndarray:
    """Return kernels_NK, each exp(-x^2 / (2 sigma^2)) at whole pixels x, scaled to sum to 1."""
    x_K = np.arange(kernel_size) - kernel_size // 2
    kernels_NK: np.ndarray = np.exp(-0.5 * (x_K / sigmas_N[:, None]) ** 2)
    kernels_NK /= kernels_NK.sum(axis=1, keepdims=True)
    return kernels_NK
