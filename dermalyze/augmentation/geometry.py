"""Flips, rotation, translation and scale of a whole batch, as one bilinear warp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dermalyze.augmentation.ranges import probability_problems
from dermalyze.config import raise_problems


@dataclass(frozen=True)
class GeometryParameters:
    """How each of B images is moved.

    Attributes:
        flips_B2: bool; mirror left and right, mirror top and bottom.
        angles_B2: degrees, counter-clockwise; the rotation and the affine rotation.
        translations_B2: shares of width (positive: to the right) and height (positive: down).
        scales_B: factors; above 1 the lesion grows.
    """

    flips_B2: np.ndarray
    angles_B2: np.ndarray
    translations_B2: np.ndarray
    scales_B: np.ndarray


class Geometry:
    """Flips, then a rotation, then an affine move, about the image's centre.

    However many of them act, pixels are interpolated once. What comes in from beyond a border is
    the image itself, reflected at the border, so no invented colour touches a lesion.

    Args:
        horizontal_flip: probability that left and right change places.
        vertical_flip: probability that top and bottom change places.
        rotation: degrees; the angle is uniform in +-rotation.
        affine_rotation: degrees; a second angle, uniform in +-affine_rotation, is added.
        translation: share of width and height; each is moved by a uniform share in +-translation.
        scale: smallest and largest factor, uniform between them.

    Raises:
        ConfigError: a value out of its range; all of them are named.
    """

    columns: ClassVar[int] = 7

    def __init__(
        self,
        *,
        horizontal_flip: float,
        vertical_flip: float,
        rotation: float,
        affine_rotation: float,
        translation: float,
        scale: tuple[float, float],
    ) -> None:
        place = "augmentation.geometry"
        problems = probability_problems(
            place, horizontal_flip=horizontal_flip, vertical_flip=vertical_flip
        )
        problems += [
            f"{place}.{name}={value}: degrees between 0 and 180 are needed; the angle is drawn "
            "from minus to plus this value"
            for name, value in {"rotation": rotation, "affine_rotation": affine_rotation}.items()
            if not 0 <= value <= 180
        ]
        if not 0 <= translation < 1:
            problems.append(
                f"{place}.translation={translation}: a share of width and height, at least 0 and "
                "below 1, is needed; 1 would move the whole image out of sight"
            )
        smallest, largest = scale
        if not 0 < smallest <= largest < np.inf:
            problems.append(
                f"{place}.scale={list(scale)}: two positive factors, the smaller first, are "
                "needed, such as [0.9, 1.1]; [1.0, 1.0] turns it off"
            )
        raise_problems(problems)
        self.flips = np.array([horizontal_flip, vertical_flip])
        self.angles = np.array([rotation, affine_rotation])
        self.translation = translation
        self.scale = (smallest, largest)

    def parameters(self, uniform_BP: np.ndarray) -> GeometryParameters:
        """Turn uniforms in [0, 1), `columns` for each image, into what happens to the image."""
        flips_B2, angles_B2, translations_B2, scale_B1 = np.split(uniform_BP, [2, 4, 6], axis=1)
        smallest, largest = self.scale
        return GeometryParameters(
            flips_B2=flips_B2 < self.flips,
            angles_B2=self.angles * (2 * angles_B2 - 1),
            translations_B2=self.translation * (2 * translations_B2 - 1),
            scales_B=smallest + (largest - smallest) * scale_B1[:, 0],
        )

    def apply(self, images_BCHW: Tensor, parameters: GeometryParameters) -> Tensor:
        """Return the warped images as a new tensor; float in, float out, any value range."""
        matrices_B23 = sampling_matrices(parameters, *images_BCHW.shape[2:])
        # Only CUDA has read host memory by the time a non-blocking copy returns.
        matrices = torch.from_numpy(matrices_B23.astype(np.float32)).to(
            images_BCHW.device, non_blocking=images_BCHW.is_cuda
        )
        grid_BHW2 = F.affine_grid(matrices, list(images_BCHW.shape), align_corners=False)
        return F.grid_sample(
            images_BCHW, grid_BHW2, mode="bilinear", padding_mode="reflection", align_corners=False
        )


def sampling_matrices(parameters: GeometryParameters, height: int, width: int) -> np.ndarray:
    """Return matrices_B23 that say where in the old image each pixel of the new one is found.

    In pixels from the centre, a point p of the old image moves to

        q = S R F p + t,   so   p = F R^-1 S^-1 (q - t)

    with F the flips, R the rotation by both angles, S the scale and t the translation.
    `torch.nn.functional.affine_grid` measures in half widths and half heights instead, so the
    entries that mix x and y carry the aspect ratio.
    """
    angle_B = np.deg2rad(parameters.angles_B2.sum(axis=1))
    cosine_B = np.cos(angle_B) / parameters.scales_B
    sine_B = np.sin(angle_B) / parameters.scales_B
    # y points down, so this turns back a rotation that looks counter-clockwise.
    linear_B22 = np.stack([cosine_B, -sine_B, sine_B, cosine_B], axis=1).reshape(-1, 2, 2)
    linear_B22 *= np.where(parameters.flips_B2, -1.0, 1.0)[:, :, None]
    linear_B22 *= np.array([[1.0, height / width], [width / height, 1.0]])
    offset_B21 = -linear_B22 @ (2 * parameters.translations_B2[:, :, None])
    return np.concatenate([linear_B22, offset_B21], axis=2)
