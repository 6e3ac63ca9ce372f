"""Air bubbles in the gel between glass and skin, on some images of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dermalyze.augmentation.canvas import on_device
from dermalyze.augmentation.ranges import between, probability_problems, span_problems
from dermalyze.config import raise_problems

RIM = 0.16  # of a bubble's radius, the width of its rim
THINNEST_RIM = 0.6  # pixels
GLINT_AT = 0.5  # of the radius, from the centre towards the light
GLINT = 0.2  # of the radius, the width of the lamp's reflection
RIMS_SEEN = 3  # widths outside the radius, beyond which the rim is below 0.02 %


@dataclass(frozen=True)
class BubblesParameters:
    """The bubbles of N of the B images, K at most; lengths are shares of the shorter side.

    Attributes:
        rows_N: positions in the batch, ascending.
        directions_N: degrees, where the light comes from, clockwise from the right.
        centres_NK2: x and y from the image's centre.
        radii_NK: of the bubbles.
        strengths_NK: of rim and glint, in [0, 1]; 0 for those that an image lacks to K.
    """

    rows_N: np.ndarray
    directions_N: np.ndarray
    centres_NK2: np.ndarray
    radii_NK: np.ndarray
    strengths_NK: np.ndarray


class Bubbles:
    """Small round bubbles: a rim, bright towards the lamp and dark away from it, and a glint.

    Args:
        probability: that an image has bubbles.
        count: fewest and most bubbles of an image, uniform.
        radius: share of the shorter side; the square root is uniform, so that small ones prevail.
        strength: of rim and glint, uniform; 1 reaches white.

    Raises:
        ConfigError: a value out of its range; all of them are named.
    """

    def __init__(
        self,
        *,
        probability: float,
        count: tuple[int, int],
        radius: tuple[float, float],
        strength: tuple[float, float],
    ) -> None:
        place = "augmentation.bubbles"
        problems = probability_problems(place, probability=probability)
        problems += span_problems(place, unit="bubbles", low=1, high=100, count=count)
        share = "shares of the shorter side"
        problems += span_problems(place, unit=share, low=0.002, high=0.2, radius=radius)
        problems += span_problems(place, unit="shares", low=0, high=1, strength=strength)
        raise_problems(problems)
        self.probability, self.count, self.strength = probability, count, strength
        self.largest = radius[1]
        self.root_radius = np.sqrt(radius)

    @property
    def own_columns(self) -> int:
        """Uniforms of each image."""
        return 3 + 4 * self.count[1]

    def parameters(self, uniform_BP: np.ndarray) -> BubblesParameters:
        """Turn uniforms in [0, 1), `own_columns` for each image, into what happens to the image."""
        rows_N = np.flatnonzero(uniform_BP[:, 0] < self.probability)
        uniform_NP = uniform_BP[rows_N]
        fewest, most = self.count
        counts_N1 = fewest + np.floor((most - fewest + 1) * uniform_NP[:, 1:2])
        bubbles_4NK = uniform_NP[:, 3:].reshape(len(rows_N), most, 4).transpose(2, 0, 1)
        x_NK, y_NK, radius_NK, strength_NK = bubbles_4NK
        is_there_NK = np.arange(most) < counts_N1
        return BubblesParameters(
            rows_N=rows_N,
            directions_N=360 * uniform_NP[:, 2],
            centres_NK2=np.stack([x_NK, y_NK], axis=2) - 0.5,
            radii_NK=between(self.root_radius, radius_NK) ** 2,
            strengths_NK=between(self.strength, strength_NK) * is_there_NK,
        )

    def apply(self, images_BCHW: Tensor, parameters: BubblesParameters) -> Tensor:
        """Draw the bubbles of the chosen images in place and return the batch."""
        if len(parameters.rows_N) == 0:
            return images_BCHW
        height, width = images_BCHW.shape[2:]
        shorter = min(height, width)
        # Each bubble is drawn in a window of S x S pixels around it, moved into the image.
        reach = shorter * self.largest * (1 + RIMS_SEEN * rim_width(shorter * self.largest))
        side = min(shorter, 2 * math.ceil(reach) + 1)
        centres_NK2 = shorter * parameters.centres_NK2 + np.array([width, height]) / 2
        corners_NK2 = np.rint(centres_NK2 - side / 2).clip(0, [width - side, height - side])
        bright_NKSS = reflections(
            on_device(centres_NK2 - corners_NK2, images_BCHW),
            on_device(shorter * parameters.radii_NK, images_BCHW),
            on_device(parameters.directions_N, images_BCHW),
            side,
        )
        bright_NKSS.mul_(on_device(parameters.strengths_NK, images_BCHW)[..., None, None])
        corners = on_device(corners_NK2.astype(np.int64), images_BCHW)
        window_S = torch.arange(side, device=corners.device)
        image_N111 = torch.arange(len(corners), device=corners.device)[:, None, None, None]
        x_NK1S = (corners[..., :1] + window_S).unsqueeze(2)
        y_NKS1 = (corners[..., 1:] + window_S).unsqueeze(3)
        bright_NHW = torch.zeros(len(corners), height, width, device=corners.device)
        bright_NHW.index_put_((image_N111, y_NKS1, x_NK1S), bright_NKSS, accumulate=True)
        rows = on_device(parameters.rows_N, images_BCHW)
        chosen_NCHW, bright_N1HW = images_BCHW[rows], bright_NHW.clamp_(-1, 1).unsqueeze(1)
        # Light goes towards white, shadow towards black.
        room_NCHW = torch.where(bright_N1HW > 0, 255 - chosen_NCHW, chosen_NCHW)
        images_BCHW[rows] = chosen_NCHW.addcmul_(bright_N1HW, room_NCHW)
        return images_BCHW


def rim_width(radius: float) -> float:
    """Return the width of a rim as a share of the radius, which is given in pixels."""
    return max(RIM, THINNEST_RIM / radius)


def reflections(centres_NK2: Tensor, radii_NK: Tensor, directions_N: Tensor, side: int) -> Tensor:
    """Return bright_NKSS, what each bubble adds to windows of S x S pixels, in [-1, 2].

    Args:
        centres_NK2: x and y in pixels from the window's left upper corner.
        radii_NK: pixels.
        directions_N: degrees, where the light comes from, clockwise from the right.
        side: S.
    """
    radius_NK11 = radii_NK[..., None, None]
    pixel_S = torch.arange(side, device=radii_NK.device) + 0.5
    x_NK1S = (pixel_S - centres_NK2[..., :1]).unsqueeze(2) / radius_NK11
    y_NKS1 = (pixel_S - centres_NK2[..., 1:]).unsqueeze(3) / radius_NK11
    angle_N111 = torch.deg2rad(directions_N)[:, None, None, None]
    light_x, light_y = torch.cos(angle_N111), torch.sin(angle_N111)
    distance_NKSS = (x_NK1S.square() + y_NKS1.square()).sqrt()
    rim_NK11 = (THINNEST_RIM / radius_NK11).clamp(min=RIM)
    rim_NKSS = (-((distance_NKSS - 1) / rim_NK11).square()).exp()
    rim_NKSS *= (light_x * x_NK1S + light_y * y_NKS1) / distance_NKSS.clamp(min=1e-6)
    glint_x, glint_y = x_NK1S - GLINT_AT * light_x, y_NKS1 - GLINT_AT * light_y
    glint_NKSS: Tensor = (-(glint_x.square() + glint_y.square()) / GLINT**2).exp()
    return rim_NKSS + glint_NKSS
