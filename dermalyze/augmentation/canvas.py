"""What artefacts are drawn on: the coordinates of a picture, and quadratic forms over them.

Lengths are shares of the picture's shorter side, so that a hair is as wide at 64 pixels as at 224.
The origin is the centre; x points to the right and y down.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def on_device(values: np.ndarray, images: Tensor) -> Tensor:
    """Return values where the images lie, float64 as float32, without waiting for the device."""
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    # Only CUDA has read host memory by the time a non-blocking copy returns.
    return torch.from_numpy(values).to(images.device, non_blocking=images.is_cuda)


def coordinates(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return x_W and y_H of the pixels' centres."""
    height, width = images_BCHW.shape[2:]
    x_W, y_H = (
        (torch.arange(count, device=images_BCHW.device) - (count - 1) / 2) / min(height, width)
        for count in (width, height)
    )
    return x_W, y_H


def quadratic_terms(images_BCHW: Tensor) -> Tensor:
    """Return terms_6P, the values of 1, x, y, x x, x y and y y at the P pixels, row by row."""
    x_W, y_H = coordinates(images_BCHW)
    x_HW, y_HW = x_W.expand(len(y_H), -1), y_H[:, None].expand(-1, len(x_W))
    one_HW = torch.ones_like(x_HW)
    terms = [one_HW, x_HW, y_HW, x_HW * x_HW, x_HW * y_HW, y_HW * y_HW]
    return torch.stack(terms).flatten(1)


def linear_form(
    direction_xy: tuple[np.ndarray, np.ndarray], origin_xy: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return (..., 6) coefficients of the coordinate along a direction, counted from an origin."""
    (along_x, along_y), (x, y) = direction_xy, origin_xy
    nothing = np.zeros_like(along_x * x)
    form = [-(along_x * x + along_y * y), along_x + nothing, along_y + nothing]
    return np.stack([*form, nothing, nothing, nothing], axis=-1)


def product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the coefficients of the product of two linear forms."""
    (a, b, c), (d, e, f) = (np.moveaxis(form[..., :3], -1, 0) for form in (first, second))
    terms = [a * d, a * e + b * d, a * f + c * d, b * e, b * f + c * e, c * f]
    return np.stack(terms, axis=-1)
