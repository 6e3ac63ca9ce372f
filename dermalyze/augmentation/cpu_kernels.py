"""Passes over pixels on the CPU, by OpenCV: an image at a time, which stays in the cache.

It costs a third of what torch's kernels cost ([numbers](docs/benchmarks.md)), and differs from them
by rounding alone: OpenCV 5 computes where a pixel comes from, and its value, in float32. (OpenCV 4
moves it to the nearest 1/32 of a pixel.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor

PIXELS_WORTH_A_THREAD = 112 * 112  # measured on two cores: below it, one is faster


class OpenCVKernels:
    """`dermalyze.augmentation.kernels.Kernels` of images in the host's memory.

    An image's result depends on nothing but the image: not on its batch, nor on how many threads
    share the batch, which are as many as torch computes with. OpenCV's own threads, which would
    only be more of them, are turned off in the whole process.
    """

    def __init__(self) -> None:
        _turn_off_threads_of_opencv()

    def warp(self, images_BCHW: Tensor, matrices_B33: np.ndarray, size: tuple[int, int]) -> Tensor:
        """See `Kernels.warp`; the result's channels lie last."""
        images_BHWC = images_BCHW.permute(0, 2, 3, 1).numpy()
        count, height, width, channels = images_BHWC.shape
        warped_BHWC = np.empty((count, *size, channels), dtype=np.float32)
        pixels_B33 = in_pixels(matrices_B33, (height, width), size)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        is_affine = not np.any(matrices_B33[:, 2, :2])

        def warp_one(position: int) -> None:
            image_HWC = np.ascontiguousarray(images_BHWC[position], dtype=np.float32)
            matrix_33, target_HWC = pixels_B33[position], warped_BHWC[position]
            if is_affine:
                cv2.warpAffine(
                    image_HWC,
                    matrix_33[:2],
                    size[::-1],
                    dst=target_HWC,
                    flags=flags,
                    borderMode=cv2.BORDER_REFLECT,
                )
            else:
                cv2.warpPerspective(
                    image_HWC,
                    matrix_33,
                    size[::-1],
                    dst=target_HWC,
                    flags=flags,
                    borderMode=cv2.BORDER_REFLECT,
                )

        shared_out(warp_one, count, pixels=max(height * width, size[0] * size[1]))
        return torch.from_numpy(warped_BHWC).permute(0, 3, 1, 2)

    def recolour(self, images_BCHW: Tensor, maps_B43: np.ndarray, gammas_B: np.ndarray) -> Tensor:
        """See `Kernels.recolour`."""
        images_BHWC = images_BCHW.permute(0, 2, 3, 1).numpy()
        recoloured_BHWC = np.empty(images_BHWC.shape, dtype=np.float32)

        def recolour_one(position: int) -> None:
            image_HWC = np.ascontiguousarray(images_BHWC[position])
            map_43, target_HWC = maps_B43[position], recoloured_BHWC[position]
            # OpenCV's matrices act on columns, and add their last one.
            offset = map_43[3] @ cv2.mean(image_HWC)[:3]
            matrix_34 = np.column_stack([map_43[:3].T, np.full(3, offset)]).astype(np.float32)
            cv2.transform(image_HWC, matrix_34, dst=target_HWC)
            np.clip(target_HWC, 0, 255, out=target_HWC)
            if gammas_B[position] != 1:
                target_HWC /= 255
                cv2.pow(target_HWC, gammas_B[position], dst=target_HWC)
                target_HWC *= 255

        count, height, width, _ = images_BHWC.shape
        shared_out(recolour_one, count, pixels=height * width)
        return torch.from_numpy(recoloured_BHWC).permute(0, 3, 1, 2)

    def blur(self, images_BCHW: Tensor, rows_N: np.ndarray, kernels_NK: np.ndarray) -> None:
        """See `Kernels.blur`."""
        images_BHWC = images_BCHW.permute(0, 2, 3, 1).numpy()

        def blur_one(position: int) -> None:
            kernel_K, row = kernels_NK[position], rows_N[position]
            image_HWC = np.ascontiguousarray(images_BHWC[row])
            images_BHWC[row] = cv2.sepFilter2D(
                image_HWC, cv2.CV_32F, kernel_K, kernel_K, borderType=cv2.BORDER_REFLECT_101
            )

        shared_out(blur_one, len(rows_N), pixels=images_BHWC.shape[1] * images_BHWC.shape[2])

    def fill(
        self, images_BCHW: Tensor, rows_N: np.ndarray, bounds_N4: np.ndarray, fill_C11: Tensor
    ) -> None:
        """See `Kernels.fill`."""
        for row, (top, bottom, left, right) in zip(rows_N, bounds_N4, strict=True):
            images_BCHW[row, :, top:bottom, left:right] = fill_C11


@cache
def _turn_off_threads_of_opencv() -> None:
    cv2.setNumThreads(1)


def in_pixels(matrices_B33: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Return the matrices for whole pixels, whose centres they are at, instead of half widths.

    In the units of `torch.nn.functional.affine_grid`, the centre of pixel i of n is at
    (2 i + 1) / n - 1.

    Args:
        matrices_B33: from the new image to the old one.
        old: height and width.
        new: height and width.
    """
    (height, width), (new_height, new_width) = old, new
    to_units_33 = np.array(
        [[2 / new_width, 0, 1 / new_width - 1], [0, 2 / new_height, 1 / new_height - 1], [0, 0, 1]]
    )
    to_pixels_33 = np.array(
        [[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2], [0, 0, 1]]
    )
    pixels_B33: np.ndarray = to_pixels_33 @ matrices_B33 @ to_units_33
    return pixels_B33


def shared_out(work: Callable[[int], None], count: int, *, pixels: int) -> None:
    """Do the work of each position, in as many threads as torch computes with.

    Small images have one thread: a second would wait for Python longer than it would work.

    Args:
        work: of one image.
        count: of the images.
        pixels: of each, as it was or as it becomes, whichever are more.
    """
    most = torch.get_num_threads()
    threads = max(1, min(most, count)) if pixels >= PIXELS_WORTH_A_THREAD else 1

    def of_thread(first: int) -> None:
        for position in range(first, count, threads):
            work(position)

    if threads == 1:
        of_thread(0)
        return
    parts = [pool_of(most).submit(of_thread, first) for first in range(threads)]
    wait(parts)  # all of them, also where one fails: they write into what the caller has
    for part in parts:
        part.result()


@cache
def pool_of(threads: int) -> ThreadPoolExecutor:
    """Return threads that stay: making new ones for each pass takes as long as a small pass."""
    return ThreadPoolExecutor(threads, thread_name_prefix="augmentation")


# A forked process has none of its parent's threads, and would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool_of.cache_clear)
