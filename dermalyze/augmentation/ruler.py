"""The marks of a ruler along an edge of some images of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dermalyze.augmentation.canvas import coordinates, on_device
from dermalyze.augmentation.ranges import between, probability_problems, span_problems
from dermalyze.config import raise_problems

LONG_EVERY = 5  # marks: millimetres, with half centimetres longer


@dataclass(frozen=True)
class RulerParameters:
    """The ruler of N of the B images; lengths are shares of the shorter side.

    Attributes:
        rows_N: positions in the batch, ascending.
        angles_N: degrees that the ruler is turned clockwise from lying along the upper edge.
        depths_N: how far from the edge of a square the marks begin.
        phases_N: where the first long mark lies, in marks.
        spacings_N: from mark to mark.
        lengths_N: of a short mark.
        widths_N: of a mark.
        opacities_N: share of the light that a mark takes.
    """

    rows_N: np.ndarray
    angles_N: np.ndarray
    depths_N: np.ndarray
    phases_N: np.ndarray
    spacings_N: np.ndarray
    lengths_N: np.ndarray
    widths_N: np.ndarray
    opacities_N: np.ndarray


class Ruler:
    """Dark marks along one edge, as of a scale on the dermoscope's glass.

    Every fifth mark is longer by the half. The marks are printed on the glass, so they darken what
    lies below.

    Args:
        probability: that an image shows a ruler.
        spacing: share of the shorter side from mark to mark, uniform.
        length: share of the shorter side, of a short mark, uniform.
        width: share of the shorter side, of a mark, uniform.
        depth: share of the shorter side; the marks begin at up to this from the edge.
        tilt: degrees; the ruler is turned by up to this from lying along its edge.
        opacity: share of the light that a mark takes, uniform.

    Raises:
        ConfigError: a value out of its range; all of them are named.
    """

    own_columns: ClassVar[int] = 9

    def __init__(
        self,
        *,
        probability: float,
        spacing: tuple[float, float],
        length: tuple[float, float],
        width: tuple[float, float],
        depth: float,
        tilt: float,
        opacity: tuple[float, float],
    ) -> None:
        place = "augmentation.ruler"
        problems = probability_problems(place, probability=probability)
        share = "shares of the shorter side"
        problems += span_problems(place, unit=share, low=0.01, high=0.5, spacing=spacing)
        problems += span_problems(place, unit=share, low=0.005, high=0.2, length=length)
        problems += span_problems(place, unit=share, low=0.0005, high=0.05, width=width)
        problems += span_problems(place, unit="shares", low=0, high=1, opacity=opacity)
        if not 0 <= depth <= 0.3:
            problems.append(
                f"{place}.depth={depth}: a share of the shorter side between 0 and 0.3 is needed; "
                "lesions lie further inside"
            )
        if not 0 <= tilt <= 45:
            problems.append(f"{place}.tilt={tilt}: degrees between 0 and 45 are needed")
        raise_problems(problems)
        self.probability, self.depth, self.tilt = probability, depth, tilt
        self.spacing, self.length, self.width, self.opacity = spacing, length, width, opacity

    def parameters(self, uniform_BP: np.ndarray) -> RulerParameters:
        """Turn uniforms in [0, 1), `own_columns` for each image, into what happens to the image."""
        rows_N = np.flatnonzero(uniform_BP[:, 0] < self.probability)
        edge_N, tilt_N, depth_N, phase_N, *spans = uniform_BP[rows_N, 1:].T
        spacing_N, length_N, width_N, opacity_N = spans
        return RulerParameters(
            rows_N=rows_N,
            angles_N=90 * np.floor(4 * edge_N) + self.tilt * (2 * tilt_N - 1),
            depths_N=self.depth * depth_N,
            phases_N=LONG_EVERY * phase_N,
            spacings_N=between(self.spacing, spacing_N),
            lengths_N=between(self.length, length_N),
            widths_N=between(self.width, width_N),
            opacities_N=between(self.opacity, opacity_N),
        )

    def apply(self, images_BCHW: Tensor, parameters: RulerParameters) -> Tensor:
        """Print the marks on the chosen images in place and return the batch."""
        if len(parameters.rows_N) == 0:
            return images_BCHW
        rows = on_device(parameters.rows_N, images_BCHW)
        side = min(images_BCHW.shape[2:])
        angles_N = np.deg2rad(parameters.angles_N)
        numbers_N8 = np.column_stack(
            [
                np.cos(angles_N),
                np.sin(angles_N),
                0.5 - parameters.depths_N,
                parameters.phases_N,
                parameters.spacings_N,
                parameters.lengths_N,
                side * parameters.widths_N,
                parameters.opacities_N,
            ]
        )
        cosine, sine, begin, phase, spacing, length, width, opacity = (
            value_N[:, None, None] for value_N in on_device(numbers_N8, images_BCHW).unbind(dim=1)
        )
        x_W, y_H = coordinates(images_BCHW)
        marks_NHW = (cosine * x_W + sine * y_H[:, None]).div_(spacing).sub_(phase)
        inwards_NHW = (cosine * y_H[:, None] - sine * x_W).add_(begin)
        nearest_NHW = marks_NHW.round()
        # Both coverages are those of a strip by a pixel: exact where the strip lies along it.
        beside_NHW = (marks_NHW - nearest_NHW).abs_().mul_(side * spacing)
        across_NHW = torch.minimum((width + 1) / 2 - beside_NHW, width.clamp(max=1))
        fives_NHW = nearest_NHW / LONG_EVERY
        is_long_NHW = (fives_NHW - fives_NHW.round()).abs_() < 0.5 / LONG_EVERY
        end_NHW = torch.where(is_long_NHW, 1.5 * length, length)
        along_NHW = torch.minimum(inwards_NHW, end_NHW - inwards_NHW).mul_(side).add_(0.5)
        taken_NHW = across_NHW.clamp_(min=0).mul_(along_NHW.clamp_(0, 1)).mul_(opacity)
        images_BCHW[rows] = images_BCHW[rows].mul_((1 - taken_NHW).unsqueeze(1))
        return images_BCHW
