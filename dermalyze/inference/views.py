"""Test-time augmentation: the same images seen in other ways, all in one batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dermalyze.augmentation.canvas import on_device
from dermalyze.augmentation.geometry import GeometryParameters, sampling_matrices
from dermalyze.config import raise_problems
from dermalyze.inference.aggregate import Aggregation

Symmetry = Literal[
    "identity",
    "horizontal",
    "vertical",
    "both",
    "quarter_turn",
    "three_quarter_turn",
    "transpose",
    "anti_transpose",
]

# Of the square: pixels change places, and none is interpolated.
SYMMETRIES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda images_BCHW: images_BCHW,
    "horizontal": lambda images_BCHW: images_BCHW.flip(3),  # left and right change places
    "vertical": lambda images_BCHW: images_BCHW.flip(2),
    "both": lambda images_BCHW: images_BCHW.flip(2, 3),  # half a turn
    "quarter_turn": lambda images_BCHW: images_BCHW.rot90(1, (2, 3)),  # counter-clockwise
    "three_quarter_turn": lambda images_BCHW: images_BCHW.rot90(3, (2, 3)),
    "transpose": lambda images_BCHW: images_BCHW.transpose(2, 3),
    "anti_transpose": lambda images_BCHW: images_BCHW.transpose(2, 3).flip(2, 3),
}


class Views:
    """The V views of an image that a model is shown, and how its V answers become one.

    A rotation or a zoom is about the centre and interpolates once, as augmentation does; what a
    rotation brings in from beyond a border is the image itself, reflected there.

    Args:
        name: what results are called by.
        symmetries: names in SYMMETRIES.
        rotations: degrees, counter-clockwise, each in (-180, 180) and not 0.
        zooms: factors above 1; the middle 1 / factor of the side fills the picture.
        aggregation: see `dermalyze.inference.aggregate`.

    Raises:
        ConfigError: no view at all, one of them twice, a value out of its range, or any other than
            the image as it is under the name off.
    """

    def __init__(
        self,
        *,
        name: str,
        symmetries: Sequence[Symmetry],
        rotations: Sequence[float],
        zooms: Sequence[float],
        aggregation: Aggregation,
    ) -> None:
        problems = [
            f"tta.rotations={list(rotations)}: {angle} is not between -180 and 180 degrees, or 0"
            for angle in rotations
            if not -180 < angle < 180 or angle == 0
        ]
        problems += [
            f"tta.zooms={list(zooms)}: {zoom} is no finite factor above 1"
            for zoom in zooms
            if not 1 < zoom < np.inf
        ]
        for key, values in (("symmetries", symmetries), ("rotations", rotations), ("zooms", zooms)):
            if len(set(values)) < len(values):
                problems.append(f"tta.{key}={list(values)}: one is there twice and would count so")
        self.names = (
            *symmetries,
            *(f"rotation {angle:g}" for angle in rotations),
            *(f"zoom {zoom:g}" for zoom in zooms),
        )
        if not self.names:
            problems.append("tta: no view is left; tta=off is the image as it is")
        elif name == "off" and not self.is_off:
            problems.append(
                f"tta=off: is the image as it is, and not {', '.join(self.names)}. Choose light, "
                "medium or full, or call these otherwise: tta.name=NAME"
            )
        raise_problems(problems)
        self.name = name
        self.aggregation = aggregation
        self.symmetries = tuple(SYMMETRIES[symmetry] for symmetry in symmetries)
        self.warps = tuple(
            itertools.chain(((angle, 1.0) for angle in rotations), ((0.0, zoom) for zoom in zooms))
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_off(self) -> bool:
        """Whether the one view is the image as it is."""
        return self.names == ("identity",)

    def of(self, images_BCHW: Tensor) -> Tensor:
        """Return the views of square images, (V B, C, H, W): all images in one view, then the next.

        Symmetries keep the type; with a warp among the views all are float32, in the same range.
        """
        if self.is_off:
            return images_BCHW
        views = [symmetry(images_BCHW) for symmetry in self.symmetries]
        if self.warps:
            floats_BCHW = images_BCHW.float()
            views = [view.float() for view in views]
            views += [warped(floats_BCHW, angle, zoom) for angle, zoom in self.warps]
        return torch.cat(views)


def warped(images_BCHW: Tensor, angle: float, zoom: float) -> Tensor:
    """Return float images turned counter-clockwise by degrees and enlarged about the centre."""
    height, width = images_BCHW.shape[2:]
    parameters = GeometryParameters(
        flips_B2=np.zeros((1, 2), dtype=np.bool_),
        angles_B2=np.array([[angle, 0.0]]),
        translations_B2=np.zeros((1, 2)),
        scales_B=np.array([zoom]),
        shears_B2=np.zeros((1, 2)),
        perspectives_B2=np.zeros((1, 2)),
    )
    matrix_123 = on_device(sampling_matrices(parameters, height, width), images_BCHW)[:, :2]
    matrices_B23 = matrix_123.expand(len(images_BCHW), -1, -1)
    grid_BHW2 = F.affine_grid(matrices_B23, list(images_BCHW.shape), align_corners=False)
    return F.grid_sample(
        images_BCHW, grid_BHW2, mode="bilinear", padding_mode="reflection", align_corners=False
    )


AS_THEY_ARE = Views(
    name="off", symmetries=("identity",), rotations=(), zooms=(), aggregation="mean"
)
"""How training validates."""
