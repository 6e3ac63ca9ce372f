"""Hairs across some images of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dermalyze.augmentation.canvas import linear_form, on_device, product, quadratic_terms
from dermalyze.augmentation.ranges import (
    between,
    colour_problems,
    probability_problems,
    span_problems,
)
from dermalyze.config import raise_problems

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class HairParameters:
    """The hairs of N of the B images, K of them at most; lengths are shares of the shorter side.

    Attributes:
        rows_N: positions in the batch, those with more hairs first.
        counts_N: hairs of each image, falling.
        colours_N3: red, green, blue in [0, 255] of all hairs of an image.
        centres_NK2: x and y from the image's centre.
        angles_NK: degrees from the x axis, clockwise.
        lengths_NK: from tip to tip.
        bends_NK: how far the middle lies off the line between the tips, as a share of the length.
        widths_NK: at the middle.
        opacities_NK: in [0, 1].
    """

    rows_N: np.ndarray
    counts_N: np.ndarray
    colours_N3: np.ndarray
    centres_NK2: np.ndarray
    angles_NK: np.ndarray
    lengths_NK: np.ndarray
    bends_NK: np.ndarray
    widths_NK: np.ndarray
    opacities_NK: np.ndarray


class Hair:
    """Bent hairs of one person: of one colour, mostly in one direction, thin at both tips.

    A hair is a parabola: with u along it and v across it, its distance from a pixel is close to
    |v - k u^2|, and its half width falls with u^2 to nothing at the tips. Both are quadratic in x
    and y, so that each is one product of matrices over all pixels.

    Args:
        probability: that an image has hairs.
        count: fewest and most hairs of an image, uniform.
        length: share of the shorter side, uniform.
        width: share of the shorter side, at the middle, uniform.
        bend: how far the middle may lie off the line between the tips, share of the length; uniform
            in +-bend.
        spread: degrees; each hair's direction is uniform in +-spread about that of the image.
        opacity: share of the hair's own colour, uniform.
        dark: the two ends of the colours of dark hair, RGB in [0, 255], uniform between them.
        light: and those of light hair.
        light_share: of images with hairs, those whose hair is light.

    Raises:
        ConfigError: a value out of its range; all of them are named.
    """

    def __init__(
        self,
        *,
        probability: float,
        count: tuple[int, int],
        length: tuple[float, float],
        width: tuple[float, float],
        bend: float,
        spread: float,
        opacity: tuple[float, float],
        dark: tuple[Colour, Colour],
        light: tuple[Colour, Colour],
        light_share: float,
    ) -> None:
        place = "augmentation.hair"
        problems = probability_problems(place, probability=probability, light_share=light_share)
        problems += span_problems(place, unit="hairs", low=1, high=100, count=count)
        share = "shares of the shorter side"
        problems += span_problems(place, unit=share, low=0.01, high=3, length=length)
        problems += span_problems(place, unit=share, low=0.0005, high=0.1, width=width)
        problems += span_problems(place, unit="shares", low=0, high=1, opacity=opacity)
        problems += colour_problems(place, dark=dark, light=light)
        if not 0 <= bend <= 0.25:
            problems.append(
                f"{place}.bend={bend}: a share of the length between 0 and 0.25 is needed; a "
                "parabola that is bent further is thinner at its sides than a hair"
            )
        if not 0 <= spread <= 90:
            problems.append(
                f"{place}.spread={spread}: degrees between 0 and 90 are needed; 90 is any direction"
            )
        raise_problems(problems)
        self.probability, self.light_share = probability, light_share
        self.count, self.length, self.width, self.opacity = count, length, width, opacity
        self.bend, self.spread = bend, spread
        self.colours_223 = np.array([dark, light], dtype=np.float64)

    @property
    def own_columns(self) -> int:
        """Uniforms of each image."""
        return 5 + 7 * self.count[1]

    def parameters(self, uniform_BP: np.ndarray) -> HairParameters:
        """Turn uniforms in [0, 1), `own_columns` for each image, into what happens to the image."""
        rows_N = np.flatnonzero(uniform_BP[:, 0] < self.probability)
        fewest, most = self.count
        counts_N = fewest + np.floor((most - fewest + 1) * uniform_BP[rows_N, 1]).astype(np.int64)
        order_N = np.argsort(-counts_N, kind="stable")
        rows_N, counts_N = rows_N[order_N], counts_N[order_N]
        is_light_N, shade_N, direction_N = uniform_BP[rows_N, 2:5].T
        from_N3, to_N3 = self.colours_223[(is_light_N < self.light_share).astype(int)].swapaxes(
            0, 1
        )
        hairs_7NK = uniform_BP[rows_N, 5:].reshape(len(rows_N), most, 7).transpose(2, 0, 1)
        x_NK, y_NK, turn_NK, length_NK, bend_NK, width_NK, opacity_NK = hairs_7NK
        return HairParameters(
            rows_N=rows_N,
            counts_N=counts_N,
            colours_N3=from_N3 + shade_N[:, None] * (to_N3 - from_N3),
            centres_NK2=np.stack([x_NK, y_NK], axis=2) - 0.5,
            angles_NK=180 * direction_N[:, None] + self.spread * (2 * turn_NK - 1),
            lengths_NK=between(self.length, length_NK),
            bends_NK=self.bend * (2 * bend_NK - 1),
            widths_NK=between(self.width, width_NK),
            opacities_NK=between(self.opacity, opacity_NK),
        )

    def apply(self, images_BCHW: Tensor, parameters: HairParameters) -> Tensor:
        """Draw the hairs of the chosen images in place and return the batch."""
        if len(parameters.rows_N) == 0:
            return images_BCHW
        rows = on_device(parameters.rows_N, images_BCHW)
        chosen_NCHW = images_BCHW[rows]
        terms_6P = quadratic_terms(images_BCHW)
        forms_NKQ = on_device(curves(parameters, min(images_BCHW.shape[2:])), images_BCHW)
        alpha_NP = torch.zeros(len(rows), terms_6P.shape[1], device=images_BCHW.device)
        # Hair by hair: all of them at once would take K times the memory.
        for hair in range(parameters.counts_N[0]):
            having = int(np.count_nonzero(parameters.counts_N > hair))
            across, within, fullest = forms_NKQ[:having, hair].split([6, 6, 1], dim=1)
            cover_MP = (across @ terms_6P).abs_().addmm_(within, terms_6P, beta=-1)
            torch.minimum(cover_MP, fullest, out=cover_MP)
            torch.maximum(alpha_NP[:having], cover_MP, out=alpha_NP[:having])
        alpha_N1HW = alpha_NP.view(len(rows), 1, *images_BCHW.shape[2:])
        colour_NC11 = on_device(parameters.colours_N3, images_BCHW)[:, :, None, None]
        images_BCHW[rows] = torch.lerp(chosen_NCHW, colour_NC11, alpha_N1HW)
        return images_BCHW


def curves(parameters: HairParameters, side: int) -> np.ndarray:
    """Return (N, K, 13) numbers that give how much of a pixel each hair covers.

    A line of half width r covers clip(r + 1/2 - d, 0, min(1, 2 r)) of a pixel at the distance d,
    all in pixels: the first six are coefficients of d with its sign, the next six those of r + 1/2,
    the last is the upper end. All are multiplied by the opacity.
    """
    angles_NK = np.deg2rad(parameters.angles_NK)
    cosine, sine = np.cos(angles_NK), np.sin(angles_NK)
    half_NK = parameters.lengths_NK / 2
    bow_NK1 = (parameters.bends_NK * parameters.lengths_NK / half_NK**2)[..., None]
    radius_NK1 = side * parameters.widths_NK[..., None] / 2
    centre = (parameters.centres_NK2[..., 0], parameters.centres_NK2[..., 1])
    along_NK6 = linear_form((cosine, sine), centre)
    square_NK6 = product(along_NK6, along_NK6)
    across_NK6 = side * (linear_form((-sine, cosine), centre) - bow_NK1 * square_NK6)
    within_NK6 = -radius_NK1 * square_NK6 / half_NK[..., None] ** 2
    within_NK6[..., 0] += radius_NK1[..., 0] + 0.5
    fullest_NK1 = np.minimum(1, 2 * radius_NK1)
    forms_NKQ = np.concatenate([across_NK6, within_NK6, fullest_NK1], axis=2)
    forms_NKQ *= parameters.opacities_NK[..., None]
    return forms_NKQ
