"""Flips, shear, rotation, scale, translation and perspective of a whole batch, in one warp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from dermalyze.augmentation.kernels import kernels_of
from dermalyze.augmentation.ranges import between, probability_problems
from dermalyze.config import raise_problems


@dataclass(frozen=True)
class GeometryParameters:
    """How each of B images is moved.

    Attributes:
        flips_B2: bool; mirror left and right, mirror top and bottom.
        angles_B2: degrees, counter-clockwise; the rotation and the affine rotation.
        translations_B2: shares of width (positive: to the right) and height (positive: down).
        scales_B: factors; above 1 the lesion grows.
        shears_B2: degrees by which vertical lines lean, and horizontal ones rise, to the right.
        perspectives_B2: how much closer the camera is to the right and to the lower edge than to
            the centre, as a share of the distance; negative: further away.
    """

    flips_B2: np.ndarray
    angles_B2: np.ndarray
    translations_B2: np.ndarray
    scales_B: np.ndarray
    shears_B2: np.ndarray
    perspectives_B2: np.ndarray


class Geometry:
    """Flips, shear, rotation and scale about the image's centre, a move, and perspective.

    However many of them act, pixels are interpolated once. What comes in from beyond a border is
    the image itself, reflected at the border, so no invented colour touches a lesion.

    Args:
        horizontal_flip: probability that left and right change places.
        vertical_flip: probability that top and bottom change places.
        rotation: degrees; the angle is uniform in +-rotation.
        affine_rotation: degrees; a second angle, uniform in +-affine_rotation, is added.
        translation: share of width and height; each is moved by a uniform share in +-translation.
        scale: smallest and largest factor, uniform between them.
        shear: degrees, below 45; those along x and along y are each uniform in +-shear.
        perspective: below 0.3; the camera's distance to the right edge and to the lower one is each
            that to the centre times 1 - a uniform share in +-perspective.

    Raises:
        ConfigError: a value out of its range; all of them are named.
    """

    columns: ClassVar[int] = 7
    own_columns: ClassVar[int] = 4

    def __init__(
        self,
        *,
        horizontal_flip: float,
        vertical_flip: float,
        rotation: float,
        affine_rotation: float,
        translation: float,
        scale: tuple[float, float],
        shear: float,
        perspective: float,
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
        if not 0 <= shear < 45:
            problems.append(
                f"{place}.shear={shear}: degrees, at least 0 and below 45, are needed; shape is "
                "evidence in dermoscopy, and a camera held askew shears by a few degrees"
            )
        if not 0 <= perspective < 0.3:
            problems.append(
                f"{place}.perspective={perspective}: a share of the camera's distance, at least 0 "
                "and below 0.3, is needed; a dermoscope lies nearly flat on the skin"
            )
        raise_problems(problems)
        self.flips = np.array([horizontal_flip, vertical_flip])
        self.angles = np.array([rotation, affine_rotation])
        self.translation = translation
        self.scale = (smallest, largest)
        self.tilts = np.array([shear, shear, perspective, perspective])

    def parameters(self, uniform_BP: np.ndarray) -> GeometryParameters:
        """Turn uniforms in [0, 1), a row an image, into what happens to the image."""
        parts = np.split(uniform_BP, [2, 4, 6, 7], axis=1)
        flips_B2, angles_B2, translations_B2, scale_B1, tilts_B4 = parts
        shears_B2, perspectives_B2 = np.split(self.tilts * (2 * tilts_B4 - 1), 2, axis=1)
        return GeometryParameters(
            flips_B2=flips_B2 < self.flips,
            angles_B2=self.angles * (2 * angles_B2 - 1),
            translations_B2=self.translation * (2 * translations_B2 - 1),
            scales_B=between(self.scale, scale_B1[:, 0]),
            shears_B2=shears_B2,
            perspectives_B2=perspectives_B2,
        )

    def apply(
        self, images_BCHW: Tensor, parameters: GeometryParameters, size: tuple[int, int]
    ) -> Tensor:
        """Return the warped images as a new tensor; uint8 or float32 in, float32 out, any range.

        Args:
            images_BCHW: may be larger than `size`, up to twice in each direction: each new pixel is
                made of the four old ones around it, so a stronger reduction would leave out pixels.
            parameters: as drawn.
            size: height and width of the result. Images of another size are squashed to it by the
                same interpolation that warps them.
        """
        matrices_B33 = sampling_matrices(parameters, *size)
        return kernels_of(images_BCHW).warp(images_BCHW, matrices_B33, size)


def sampling_matrices(parameters: GeometryParameters, height: int, width: int) -> np.ndarray:
    """Return matrices_B33 that say where in the old image each pixel of the new one is found.

    `height` and `width` are those of the new image; the old one counts as squashed to them. In
    pixels from the centre, a point p of the old image moves to q by

        r = S R K F p + t   and   q = r / (1 - h . r),   so
        r = q / (1 + h . q)   and   p = F K^-1 R^-1 S^-1 (r - t)

    with F the flips, K the shears, R the rotation by both angles, S the scale, t the translation
    and h the perspective. `torch.nn.functional.affine_grid` measures in half widths and half
    heights instead, so the entries that mix x and y carry the aspect ratio, and in these units h is
    `perspectives_B2`. The last row of a matrix is (h, 1), and (0, 0, 1) without perspective.
    """
    angle_B = np.deg2rad(parameters.angles_B2.sum(axis=1))
    cosine_B = np.cos(angle_B) / parameters.scales_B
    sine_B = np.sin(angle_B) / parameters.scales_B
    # y points down, so this turns back a rotation that looks counter-clockwise.
    linear_B22 = np.stack([cosine_B, -sine_B, sine_B, cosine_B], axis=1).reshape(-1, 2, 2)
    linear_B22 = inverse_shears(parameters.shears_B2) @ linear_B22
    linear_B22 *= np.where(parameters.flips_B2, -1.0, 1.0)[:, :, None]
    linear_B22 *= np.array([[1.0, height / width], [width / height, 1.0]])
    offset_B21 = -linear_B22 @ (2 * parameters.translations_B2[:, :, None])
    perspective_B12 = parameters.perspectives_B2[:, None, :]
    matrices_B33 = np.zeros((len(angle_B), 3, 3))
    matrices_B33[:, :2, :2] = linear_B22 + offset_B21 @ perspective_B12
    matrices_B33[:, :2, 2:] = offset_B21
    matrices_B33[:, 2:, :2] = perspective_B12
    matrices_B33[:, 2, 2] = 1
    return matrices_B33


def inverse_shears(shears_B2: np.ndarray) -> np.ndarray:
    """Return matrices_B22 that take back a shear along y, after one along x.

    Along x a point (x, y) becomes (x - y tan first, y), along y it becomes (x, y - x tan second).
    """
    tangent_B2 = np.tan(np.deg2rad(shears_B2))
    matrices_B22 = np.tile(np.eye(2), (len(shears_B2), 1, 1))
    matrices_B22[:, 0, 0] += tangent_B2.prod(axis=1)
    matrices_B22[:, 0, 1] = tangent_B2[:, 0]
    matrices_B22[:, 1, 0] = tangent_B2[:, 1]
    return matrices_B22
