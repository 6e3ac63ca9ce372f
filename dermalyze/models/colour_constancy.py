"""Colours as if under white light: lamps and cameras leave casts that say nothing of a lesion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

ColourConstancy = Literal["none", "shades_of_grey"]

# The norm that Finlayson and Trezzi 2004 found best, and that Barata et al. 2015 use.
MINKOWSKI_NORM = 6
FAINTEST = 1.0  # of [0, 255]; a channel below it holds no light that could be amplified


def shades_of_grey(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return images whose channels have equal Minkowski means, each image by itself.

    The light of an image is estimated as e_c = (mean over its pixels of I_c^p)^(1/p) with p = 6,
    and each channel is multiplied by |e| / (sqrt(3) e_c). Bright pixels decide, so the black
    surround of a dermoscope's field hardly counts, and where it is wholly black not at all: it
    shrinks all three e_c by the same factor.

    After Finlayson and Trezzi 2004, "Shades of gray and colour constancy", and for dermoscopy
    Barata, Celebi and Marques 2015, "Improving dermoscopy image classification using color
    constancy".

    Args:
        images_BCHW: RGB, float in [0, 255].

    Returns:
        float of the same shape, >= 0. It is not cut off at 255: a network can use what is brighter,
        and whatever cast is multiplied into an image then changes nothing but its brightness.
    """
    mean_B311 = (images_BCHW / 255).pow(MINKOWSKI_NORM).mean(dim=(2, 3), keepdim=True)
    light_B311 = mean_B311.pow(1 / MINKOWSKI_NORM).clamp(min=FAINTEST / 255)
    # |e| / sqrt(3) is the quadratic mean of the three.
    brightness_B111 = light_B311.square().mean(dim=1, keepdim=True).sqrt()
    return images_BCHW * (brightness_B111 / light_B311)


def unchanged(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the images as they are."""
    return images_BCHW


METHODS: dict[ColourConstancy, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": unchanged,
    "shades_of_grey": shades_of_grey,
}
