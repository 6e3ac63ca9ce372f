"""How an order of images is cut into batches, and how a batch reaches the device."""

from __future__ import annotations

import logging

import numpy as np
import torch

from dermalyze.data.cache import open_images
from dermalyze.data.decode import PreprocessSpec
from dermalyze.data.samplers import Sampler as Sampler
from dermalyze.data.samplers import UniformSampler as UniformSampler
from dermalyze.data.table import LesionTable
from dermalyze.errors import DataError

logger = logging.getLogger(__name__)


def micro_batches(order_N: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut an order into batches; a last batch of one image joins the batch before it.

    BatchNorm cannot be trained on one value a channel, and dropping the image would leave it out
    of the epoch; so such an epoch's last batch has `batch_size + 1` images.

    Raises:
        DataError: one image in all, or a batch size of one: there is nothing to join.
    """
    if len(order_N) < 2 or batch_size < 2:
        raise DataError(
            f"{len(order_N)} training images in batches of {batch_size}: BatchNorm needs at least "
            "two images a batch. Use more images, or training.batch_size=2 or more (with "
            "training.accumulate for larger windows)."
        )
    cuts = list(range(batch_size, len(order_N), batch_size))
    if cuts and len(order_N) - cuts[-1] == 1:
        cuts.pop()
    return np.split(order_N, cuts)


class ImageStore:
    """All images of a table as uint8, gathered by row into batches on the device.

    The pictures lie as (row, height, width, channel), so a batch comes out in torch's
    channels-last format without being copied twice.

    Args:
        images_NHWC: uint8, usually a memory map of the cache.
        image_ids: N names, for messages.
        device: where batches are wanted. The whole array is moved there once if it takes at most
            half of the free memory; otherwise batches are copied over one by one.
    """

    def __init__(
        self, *, images_NHWC: np.ndarray, image_ids: list[str], device: torch.device
    ) -> None:
        self.image_ids = image_ids
        self.device = device
        images = torch.from_numpy(images_NHWC)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if images.nbytes <= free // 2:
                images = images.to(device)
            else:
                logger.info(
                    "the images (%.1f GiB) do not fit beside the model in the device's free "
                    "%.1f GiB; batches are copied one by one",
                    images.nbytes / 2**30,
                    free / 2**30,
                )
        self._images_NHWC = images

    def __len__(self) -> int:
        return len(self._images_NHWC)

    def batch(self, rows_B: np.ndarray) -> torch.Tensor:
        """Return images_BCHW uint8 on the device for rows of the table."""
        rows = torch.from_numpy(rows_B)
        if self._images_NHWC.device.type != "cpu":
            rows = rows.to(self.device, non_blocking=True)
        images = self._images_NHWC[rows]
        if images.device != self.device:
            if self.device.type == "cuda":
                images = images.pin_memory()
            images = images.to(self.device, non_blocking=True)
        return images.permute(0, 3, 1, 2)


def open_store(
    table: LesionTable, preprocess: PreprocessSpec, cache: str, device: torch.device
) -> ImageStore:
    """Return the decoded images of a table, row for row, from the cache folder."""
    images_NHWC = open_images(table.frame["path"].tolist(), spec=preprocess, directory=cache)
    return ImageStore(
        images_NHWC=images_NHWC, image_ids=table.frame["image_id"].tolist(), device=device
    )
