"""Passes over pixels: warp, colours, blur and filling; and which code does them where."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dermalyze.augmentation import cpu_kernels
from dermalyze.augmentation.canvas import on_device


class Kernels(Protocol):
    """The passes, of whole batches or of some images of a batch."""

    def warp(self, images_BCHW: Tensor, matrices_B33: np.ndarray, size: tuple[int, int]) -> Tensor:
        """Return the warped images, float32, as a new tensor.

        Bilinear, and reflected at the borders.

        Args:
            images_BCHW: uint8 or float32.
            matrices_B33: where in the old image each pixel of the new one is found; see
                `dermalyze.augmentation.geometry.sampling_matrices`.
            size: height and width of the new images.
        """

    def recolour(self, images_BCHW: Tensor, maps_B43: np.ndarray, gammas_B: np.ndarray) -> Tensor:
        """Return the recoloured images as a new tensor whose channels lie last in memory.

        Args:
            images_BCHW: float32 in [0, 255].
            maps_B43: see `dermalyze.augmentation.colour.colour_maps`.
            gammas_B: powers of the colour in [0, 1], after values were cut off at 0 and 255.
        """

    def blur(self, images_BCHW: Tensor, rows_N: np.ndarray, kernels_NK: np.ndarray) -> None:
        """Blur images in place, each along both axes, reflected about the outermost pixels.

        Args:
            images_BCHW: float32.
            rows_N: which of them.
            kernels_NK: their kernels, K odd.
        """

    def fill(
        self, images_BCHW: Tensor, rows_N: np.ndarray, bounds_N4: np.ndarray, fill_C11: Tensor
    ) -> None:
        """Fill rectangles of images in place.

        Args:
            images_BCHW: float32.
            rows_N: which of them.
            bounds_N4: pixels: top, bottom, left, right (bottom and right outside).
            fill_C11: the colour.
        """


class TorchKernels:
    """On any device, all images at once."""

    def warp(self, images_BCHW: Tensor, matrices_B33: np.ndarray, size: tuple[int, int]) -> Tensor:
        """See `Kernels.warp`."""
        images_BCHW = images_BCHW.to(torch.float32)
        shape = [*images_BCHW.shape[:2], *size]
        matrices = on_device(matrices_B33, images_BCHW)
        if np.any(matrices_B33[:, 2, :2]):
            grid_BHW2 = perspective_grid(matrices, shape)
        else:
            grid_BHW2 = F.affine_grid(matrices[:, :2], shape, align_corners=False)
        return F.grid_sample(
            images_BCHW, grid_BHW2, mode="bilinear", padding_mode="reflection", align_corners=False
        )

    def recolour(self, images_BCHW: Tensor, maps_B43: np.ndarray, gammas_B: np.ndarray) -> Tensor:
        """See `Kernels.recolour`. With channels last, the product costs hardly more."""
        maps = on_device(maps_B43, images_BCHW)
        linear_B33, grey_B3 = maps[:, :3], maps[:, 3]
        pixels_BCN = images_BCHW.flatten(2)
        offset_B = (grey_B3 * pixels_BCN.mean(dim=2)).sum(dim=1)
        recoloured_BNC = torch.bmm(pixels_BCN.transpose(1, 2), linear_B33)
        recoloured_BNC.add_(offset_B[:, None, None]).clamp_(0, 255)
        if np.any(gammas_B != 1):
            gammas_B11 = on_device(gammas_B, images_BCHW)[:, None, None]
            recoloured_BNC.div_(255).pow_(gammas_B11).mul_(255)
        return recoloured_BNC.transpose(1, 2).view(images_BCHW.shape)

    def blur(self, images_BCHW: Tensor, rows_N: np.ndarray, kernels_NK: np.ndarray) -> None:
        """See `Kernels.blur`."""
        device, from_cuda = images_BCHW.device, images_BCHW.is_cuda
        rows = torch.from_numpy(rows_N).to(device, non_blocking=from_cuda)
        kernels = torch.from_numpy(kernels_NK.astype(np.float32))
        kernels = kernels.to(device, non_blocking=from_cuda)
        margin = kernels_NK.shape[1] // 2

        chosen_NCHW = images_BCHW[rows]
        padded_NCHW = F.pad(chosen_NCHW, (margin, margin, margin, margin), mode="reflect")
        # Every channel of every image is a channel of one convolution, with a kernel of its own.
        planes_1GHW = padded_NCHW.flatten(0, 1).unsqueeze(0)
        groups = planes_1GHW.shape[1]
        kernels_GK = kernels.repeat_interleave(chosen_NCHW.shape[1], dim=0)
        planes_1GHW = F.conv2d(planes_1GHW, kernels_GK[:, None, None, :], groups=groups)
        planes_1GHW = F.conv2d(planes_1GHW, kernels_GK[:, None, :, None], groups=groups)
        images_BCHW[rows] = planes_1GHW.view(chosen_NCHW.shape)

    def fill(
        self, images_BCHW: Tensor, rows_N: np.ndarray, bounds_N4: np.ndarray, fill_C11: Tensor
    ) -> None:
        """See `Kernels.fill`."""
        device, from_cuda = images_BCHW.device, images_BCHW.is_cuda
        height, width = images_BCHW.shape[2:]
        where = torch.from_numpy(np.column_stack([rows_N, bounds_N4]))
        rows, *bounds = where.to(device, non_blocking=from_cuda).unbind(dim=1)
        top, bottom, left, right = (bound[:, None] for bound in bounds)
        y = torch.arange(height, device=device)
        x = torch.arange(width, device=device)
        within_NH1 = ((y >= top) & (y < bottom)).unsqueeze(2)
        within_N1W = ((x >= left) & (x < right)).unsqueeze(1)
        inside_N1HW = (within_NH1 & within_N1W).unsqueeze(1)
        fill_C11 = fill_C11.to(device, non_blocking=from_cuda)
        images_BCHW[rows] = torch.where(inside_N1HW, fill_C11, images_BCHW[rows])


def kernels_of(images: Tensor) -> Kernels:
    """Return the fastest kernels where the images lie: the one place that chooses."""
    return cpu_kernels.OpenCVKernels() if images.device.type == "cpu" else TorchKernels()


def perspective_grid(matrices_B33: Tensor, shape: list[int]) -> Tensor:
    """Return grid_BHW2 as `torch.nn.functional.affine_grid` does, but of homographies."""
    batch, _, height, width = shape
    # The identity's grid, with a third coordinate of 1, goes through the matrices and back.
    identity_123 = torch.eye(2, 3, device=matrices_B33.device).unsqueeze(0)
    flat_1P2 = F.affine_grid(identity_123, [1, 1, height, width], align_corners=False).flatten(1, 2)
    linear_B23, offset_B13 = matrices_B33[:, :, :2].transpose(1, 2), matrices_B33[:, None, :, 2]
    moved_BP3 = flat_1P2 @ linear_B23 + offset_B13
    return (moved_BP3[..., :2] / moved_BP3[..., 2:]).view(batch, height, width, 2)
