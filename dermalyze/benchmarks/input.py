"""From files to augmented batches, on one core: the usual pipelines beside ours."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from dermalyze.benchmarks.photographs import photographs
from dermalyze.benchmarks.rates import rate_rows, rate_table
from dermalyze.benchmarks.timing import Bars, Report, in_turns
from dermalyze.benchmarks.usual import UsualFiles, medium, pillow_files, tensor_files
from dermalyze.data.batches import ImageStore
from dermalyze.data.cache import open_images
from dermalyze.data.decode import PreprocessSpec
from dermalyze.randomness import Purpose, generator

PILLOW, TENSORS = "Pillow, torchvision v1", "torchvision v2 on uint8 tensors"
GATHER, OURS = "ours, gathered alone", "ours, augmented"


def measure(*, repeats: int, images: int, image_size: int, batch_size: int) -> Report:
    """Time one pass over the files, each image augmented as `augmentation=medium` says.

    Ours come from a cache that was built before, as in every epoch but a machine's first.

    Args:
        repeats: how often each is timed.
        images: how many.
        image_size: pixels.
        batch_size: of ours; the others work an image at a time, whatever their batch is.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = photographs(Path(folder), images=images)
            store = cached_store(paths, Path(folder) / "cache", image_size=image_size)
            ours, batches = medium(), np.array_split(np.arange(images), -(-images // batch_size))

            def gather() -> None:
                for rows_B in batches:
                    store.batch(rows_B)

            def augment() -> None:
                for number, rows_B in enumerate(batches):
                    random = generator(0, Purpose.AUGMENTATION, 0, number)
                    ours(store.batch(rows_B), random, size=image_size)

            labels = [0] * images
            seconds = in_turns(
                {
                    PILLOW: lambda: read_all(pillow_files(paths, labels, size=image_size)),
                    TENSORS: lambda: read_all(tensor_files(paths, labels, size=image_size)),
                    OURS: augment,
                    GATHER: gather,
                },
                repeats=repeats,
                title="input",
                between=lambda: None,
            )
    finally:
        torch.set_num_threads(before)
    rows = rate_rows(seconds, images=images, yardstick=PILLOW)
    title = (
        f"input at {image_size} pixels with the medium augmentation on one core, {images} images, "
        f"{repeats} runs each"
    )
    drawn = [row for row in rows if row["what"] != GATHER]  # some fifty times as fast as the next
    return Report(title, rate_table(rows), {"input": rows}, Bars("images/s on one core", drawn))


def read_all(files: UsualFiles) -> None:
    """Read and change all files once."""
    for position in range(len(files)):
        files[position]


def cached_store(paths: list[Path], directory: Path, *, image_size: int) -> ImageStore:
    """Return the files' images from a cache that is built here."""
    spec = PreprocessSpec(image_size=image_size)
    images_NHWC = open_images([str(path) for path in paths], spec=spec, directory=directory)
    return ImageStore(
        images_NHWC=images_NHWC,
        image_ids=[path.stem for path in paths],
        device=torch.device("cpu"),
    )
