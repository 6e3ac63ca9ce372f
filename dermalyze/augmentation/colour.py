"""The colours of a whole batch, as a lamp, a camera and its settings change them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from dermalyze.augmentation.kernels import kernels_of
from dermalyze.config import raise_problems

LARGEST_HUE = 0.1
LARGEST_WHITE_BALANCE = 0.3

# RGB to YIQ (luma and two axes of chroma) of NTSC, SMPTE 170M, in four digits. The first row is
# the luma of Rec. 601 and sums to 1, the others sum to 0: grey has no chroma. (torchvision writes
# 0.2989 for the weight of red, which makes grey darker by 0.01 %.)
YIQ_OF_RGB = np.array(
    [
        [0.299, 0.587, 0.114],
        [0.5959, -0.2746, -0.3213],
        [0.2115, -0.5227, 0.3112],
    ]
)
LUMA = YIQ_OF_RGB[0]


@dataclass(frozen=True)
class ColourParameters:
    """How each of B images is recoloured.

    Attributes:
        brightness_B, contrast_B, saturation_B: factors.
        hue_B: turns of the colour circle.
        gains_B3: factors of red, green and blue.
        gammas_B: powers of the colour in [0, 1].
    """

    brightness_B: np.ndarray
    contrast_B: np.ndarray
    saturation_B: np.ndarray
    hue_B: np.ndarray
    gains_B3: np.ndarray
    gammas_B: np.ndarray


class Colour:
    """White balance, brightness, contrast, saturation, hue and gamma, in this order.

    Brightness, contrast and saturation mean what torchvision's `adjust_brightness`,
    `adjust_contrast` and `adjust_saturation` mean. Hue turns the chroma in YIQ space: the linear
    approximation of a turn of HSV's hue, but keeping the luma, where HSV keeps the largest channel.
    White balance multiplies red and blue, as a camera set for another lamp does. These five are
    affine in the colour, so they are composed before any pixel is touched, and values are clamped
    once, where torchvision clamps after each of them.

    Gamma is no affine map. It comes last, after the clamp, as the curve of a camera comes after its
    gains: a colour x in [0, 1] becomes x^gamma. Where it is off, no pixel is touched for it.

    Args:
        brightness: the factor is uniform in 1 +- brightness.
        contrast: the factor is uniform in 1 +- contrast; about the image's mean grey.
        saturation: the factor is uniform in 1 +- saturation; 0 would be grey.
        hue: turns of the colour circle, at most 0.1; the turn is uniform in +-hue.
        white_balance: the factors of red and of blue are each log-uniform from 1 / (1 +
            white_balance) to 1 + white_balance; at most 0.3.
        gamma: the power is log-uniform from 1 / (1 + gamma) to 1 + gamma.

    Raises:
        ConfigError: a value out of its range; all of them are named.
    """

    columns: ClassVar[int] = 4
    own_columns: ClassVar[int] = 3

    def __init__(
        self,
        *,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        white_balance: float,
        gamma: float,
    ) -> None:
        place = "augmentation.colour"
        factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        problems = [
            f"{place}.{name}={value}: a number between 0 and 1 is needed; the factor is drawn "
            "from 1 minus to 1 plus this value, and 0 turns it off"
            for name, value in factors.items()
            if not 0 <= value <= 1
        ]
        if not 0 <= hue <= LARGEST_HUE:
            problems.append(
                f"{place}.hue={hue}: between 0 and {LARGEST_HUE} turns are needed. Colour is "
                f"evidence in dermoscopy: {LARGEST_HUE} already turns some skin violet or olive, "
                "and more changes what a lesion looks like; use a smaller turn"
            )
        if not 0 <= white_balance <= LARGEST_WHITE_BALANCE:
            problems.append(
                f"{place}.white_balance={white_balance}: between 0 and {LARGEST_WHITE_BALANCE} are "
                "needed; cameras differ by less, and colour is evidence in dermoscopy"
            )
        if not 0 <= gamma <= 1:
            problems.append(
                f"{place}.gamma={gamma}: a number between 0 and 1 is needed; the power is drawn "
                "from 1 / (1 + gamma) to 1 + gamma, and 0 turns it off"
            )
        raise_problems(problems)
        self.ranges = np.array([brightness, contrast, saturation, hue])
        self.log_powers = np.log1p([white_balance, white_balance, gamma])

    def parameters(self, uniform_BP: np.ndarray) -> ColourParameters:
        """Turn uniforms in [0, 1), a row an image, into what happens to the image."""
        change_BP = self.ranges * (2 * uniform_BP[:, :4] - 1)
        red_B, blue_B, gamma_B = np.exp(self.log_powers * (2 * uniform_BP[:, 4:] - 1)).T
        return ColourParameters(
            brightness_B=1 + change_BP[:, 0],
            contrast_B=1 + change_BP[:, 1],
            saturation_B=1 + change_BP[:, 2],
            hue_B=change_BP[:, 3],
            gains_B3=np.stack([red_B, np.ones_like(red_B), blue_B], axis=1),
            gammas_B=gamma_B,
        )

    def apply(self, images_BCHW: Tensor, parameters: ColourParameters) -> Tensor:
        """Return the recoloured RGB images, float32 in [0, 255], as a new tensor.

        Its channels lie last in memory, whatever those of the input do: convolutions are spared a
        copy.
        """
        maps_B43 = colour_maps(parameters)
        return kernels_of(images_BCHW).recolour(images_BCHW, maps_B43, parameters.gammas_B)


def colour_maps(parameters: ColourParameters) -> np.ndarray:
    """Return maps_B43, by which a colour x (a row of red, green, blue) becomes x L + (m . g) 1.

    L is rows 0 to 2 of a map and g is row 3; m is the image's mean colour. With brightness b,
    contrast c, saturation s and hue h (1 a row of ones, w the luma's weights), after the gains d of
    the channels, D their diagonal matrix:

        x -> x D -> b x -> c x + (1 - c) (b m D . w) 1 -> s x + (1 - s) (x . w) 1 -> x H(h)

    Saturation and hue leave grey as it is, so contrast's share of grey passes them unchanged:
    g = (1 - c) b D w, and L = b c D (s I + (1 - s) w^T 1) H(h). H goes to YIQ, turns I and Q, and
    goes back.
    """
    brightness_B, contrast_B = parameters.brightness_B, parameters.contrast_B
    saturation_B11 = parameters.saturation_B[:, None, None]
    saturate_B33 = saturation_B11 * np.eye(3) + (1 - saturation_B11) * LUMA[:, None]
    linear_B33 = saturate_B33 @ hue_matrices(parameters.hue_B)
    linear_B33 *= (brightness_B * contrast_B)[:, None, None]
    linear_B33 *= parameters.gains_B3[:, :, None]
    grey_B13 = ((1 - contrast_B) * brightness_B)[:, None, None] * LUMA
    grey_B13 *= parameters.gains_B3[:, None]
    return np.concatenate([linear_B33, grey_B13], axis=1)


def hue_matrices(hue_B: np.ndarray) -> np.ndarray:
    """Return matrices_B33 that turn the hue of row colours; positive from red towards yellow."""
    angle_B = 2 * np.pi * hue_B
    cosine_B, sine_B = np.cos(angle_B), np.sin(angle_B)
    turn_B33 = np.tile(np.eye(3), (len(hue_B), 1, 1))
    turn_B33[:, 1, 1] = turn_B33[:, 2, 2] = cosine_B
    # Yellow lies clockwise of red in the plane of I and Q.
    turn_B33[:, 1, 2], turn_B33[:, 2, 1] = -sine_B, sine_B
    return YIQ_OF_RGB.T @ turn_B33 @ np.linalg.inv(YIQ_OF_RGB).T
