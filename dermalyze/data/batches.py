"""How an order of images is cut into batches, and how a batch reaches the device."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from dermalyze.data.cache import open_images
from dermalyze.data.decode import PreprocessSpec
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.data.read_ahead import ReadAhead
from dermalyze.data.table import LesionTable
from dermalyze.errors import DataError

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 256  # a piece of the array on its way to the device: 39 MB at 224 pixels


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
    """All images of a table as uint8, gathered by row into batches on the device, with metadata.

    The pictures lie as (row, height, width, channel), so a batch comes out in torch's
    channels-last format without being copied twice.

    Args:
        images_NHWC: uint8, usually a memory map of the cache; it may be larger than the memory.
        metadata_NM: what is known of the images besides (float32); None for a model that sees
            pixels alone.
        image_ids: N names, for messages.
        device: where batches are wanted. The whole array is moved there once if that is a CUDA
            device and it takes at most half of the free memory; otherwise batches are gathered
            here and copied over one by one.
    """

    def __init__(
        self,
        *,
        images_NHWC: np.ndarray,
        image_ids: list[str],
        device: torch.device,
        metadata_NM: np.ndarray | None = None,
    ) -> None:
        self.image_ids = image_ids
        self.device = device
        self._metadata_NM = None if metadata_NM is None else torch.tensor(metadata_NM).to(device)
        self._images_NHWC = np.asarray(images_NHWC)  # np.memmap costs more at each access
        self._on_device_NHWC: torch.Tensor | None = None
        self._ahead: ReadAhead[torch.Tensor] | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if images_NHWC.nbytes <= free // 2:
                self._on_device_NHWC = moved(self._images_NHWC, device)
            else:
                logger.info(
                    "the images (%.1f GiB) do not fit beside the model in the device's free "
                    "%.1f GiB; batches are copied one by one",
                    images_NHWC.nbytes / 2**30,
                    free / 2**30,
                )

    def __len__(self) -> int:
        return len(self._images_NHWC)

    def batch(self, rows_B: np.ndarray) -> torch.Tensor:
        """Return images_BCHW uint8 on the device for rows of the table."""
        if self._on_device_NHWC is not None:
            rows = torch.from_numpy(rows_B).to(self.device, non_blocking=True)
            images_BHWC = self._on_device_NHWC[rows]
        else:
            gather = self._gathered if self._ahead is None else self._ahead.gathered
            # Only CUDA has read host memory by the time its buffer may be used again.
            images_BHWC = gather(rows_B).to(self.device, non_blocking=self.device.type == "cuda")
        return images_BHWC.permute(0, 3, 1, 2)

    def inputs(self, rows_B: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Return what a model is called with: images_BCHW, and metadata_BM where there is any."""
        return self.batch(rows_B), *self.metadata(rows_B)

    def metadata(self, rows_B: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Return (metadata_BM,), or nothing for a model that sees pixels alone."""
        if self._metadata_NM is None:
            return ()
        return (self._metadata_NM[torch.from_numpy(rows_B).to(self.device)],)

    def _gathered(self, rows_B: np.ndarray) -> torch.Tensor:
        # NumPy's gathering of whole rows takes a tenth of the time that torch's takes: 0.5 ms
        # instead of 6 ms for 32 images of 224 x 224 pixels on two cores.
        images_BHWC = torch.from_numpy(self._images_NHWC[rows_B])
        return images_BHWC.pin_memory() if self.device.type == "cuda" else images_BHWC

    @contextmanager
    def reading_ahead(self, batches: Sequence[np.ndarray]) -> Iterator[None]:
        """Within this context, gather batches before `batch` asks for them, where that helps.

        What `batch` returns does not depend on it. It helps where the device computes while the
        host gathers, or where images come from the disk in every epoch. From memory to the CPU it
        does not (docs/benchmarks.md has the numbers): there a batch is gathered on the spot.

        Args:
            batches: the rows of each batch, in the order in which they will be asked for.
        """
        from_memory = self._images_NHWC.nbytes <= machine_memory() // 2
        if self._on_device_NHWC is not None or (from_memory and self.device.type == "cpu"):
            yield
            return
        with ReadAhead(self._gathered, batches) as self._ahead:
            try:
                yield
            finally:
                self._ahead = None


def machine_memory() -> int:
    """Return the bytes of memory that this machine has; 0 where Python cannot tell (Windows)."""
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def moved(images_NHWC: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return the images on a device, copied in pieces: at no time do all lie in host memory."""
    on_device_NHWC = torch.empty(images_NHWC.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images_NHWC), ROWS_AT_ONCE):
        piece = slice(start, start + ROWS_AT_ONCE)
        on_device_NHWC[piece] = torch.from_numpy(np.array(images_NHWC[piece]))
    return on_device_NHWC


def open_store(
    table: LesionTable,
    preprocess: PreprocessSpec,
    cache: str,
    device: torch.device,
    *,
    encoding: MetadataEncoding,
) -> ImageStore:
    """Return the decoded images of a table, row for row, from the cache folder.

    Beside them lies the metadata that the encoding tells a model, if it tells any.
    """
    return ImageStore(
        images_NHWC=open_images(table.frame["path"].tolist(), spec=preprocess, directory=cache),
        image_ids=table.frame["image_id"].tolist(),
        device=device,
        metadata_NM=encoding.numbers(table.frame) if encoding.columns else None,
    )
