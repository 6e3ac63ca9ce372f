"""Whole epochs from JPEG files: a DataLoader in the usual style, timm's loader, and ours."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_loader
from torch.utils.data import DataLoader

from dermalyze.benchmarks.input import cached_store
from dermalyze.benchmarks.photographs import photographs
from dermalyze.benchmarks.rates import rate_rows, rate_table
from dermalyze.benchmarks.timing import Bars, Report, in_turns
from dermalyze.benchmarks.training import labels_of, our_training, plain_step
from dermalyze.benchmarks.usual import UsualFiles, pillow_files, read_by_pillow
from dermalyze.engine.loop import epoch_windows

TRAINING_IMAGES = 7010  # 70 % of HAM10000's
OURS, FIRST = "ours", "ours, the first epoch of a machine"


def measure(
    *,
    repeats: int,
    backbone: str,
    image_size: int,
    batch_size: int,
    images: int,
    workers: Sequence[int],
    options: Sequence[str],
) -> Report:
    """Time the training of an epoch, loading included, validation not.

    The usual style is a `DataLoader` over torchvision's transforms with each of some numbers of
    workers, and the plain step of `step`; timm's loader augments in its own way (flips, colour
    jitter, random crops) and feeds the same plain step. The first epoch of a machine builds the
    image cache as well.

    Args:
        repeats: how often each is timed.
        backbone: timm's name.
        image_size: pixels.
        batch_size: images.
        images: of an epoch.
        workers: numbers of workers; 0 loads in the training process.
        options: of `python -m dermalyze.train`, for ours.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths, labels = photographs(Path(folder), images=images), labels_of(images).tolist()
        built = 0

        def fresh() -> Path:
            nonlocal built
            built += 1
            return Path(folder) / f"cache{built}"

        def usual(count: int) -> Callable[[], None]:
            step = plain_step(backbone)
            files = pillow_files(paths, labels, size=image_size)
            loader = DataLoader(
                files, batch_size=batch_size, shuffle=True, num_workers=count, drop_last=True
            )
            return lambda: run_through(loader, step)

        def of_timm(count: int) -> Callable[[], None]:
            step = plain_step(backbone)
            files = TimmFiles(paths, labels, read=read_by_pillow, change=torch.as_tensor)
            loader = create_loader(
                files,
                input_size=(3, image_size, image_size),
                batch_size=batch_size,
                is_training=True,
                hflip=0.5,
                vflip=0.3,
                color_jitter=0.2,
                num_workers=count,
                use_prefetcher=False,
                persistent_workers=False,
            )
            return lambda: run_through(loader, step)

        ours = our_epoch(paths, fresh(), backbone, image_size, batch_size, options)
        peers = {f"DataLoader, {count} workers": usual(count) for count in workers}
        peers |= {f"timm's loader, {count} workers": of_timm(count) for count in workers}
        peers[OURS] = ours
        peers[FIRST] = lambda: our_epoch(
            paths, fresh(), backbone, image_size, batch_size, options
        )()
        seconds = in_turns(peers, repeats=repeats, title="epoch", between=lambda: None)
    usuals = [name for name in seconds if name.startswith("DataLoader")]
    best = min(usuals, key=lambda name: float(np.median(seconds[name])))
    rows = rate_rows(seconds, images=images, yardstick=best)
    title = (
        f"an epoch of {images} images, {backbone} at {image_size} pixels, batches of {batch_size}, "
        f"{torch.get_num_threads()} threads, {repeats} runs each; ratios to {best}"
    )
    table = rate_table(rows)
    rate = next(row["images_per_second"] for row in rows if row["what"] == OURS)
    estimate = TRAINING_IMAGES / rate
    table.append(
        f"ours would take {estimate:.0f} s for the {TRAINING_IMAGES:,} of HAM10000's split"
    )
    numbers = {"epoch": rows, "seconds_for_ham10000": estimate}
    return Report(title, table, numbers, Bars("images/s", rows))


class TimmFiles(UsualFiles):
    """The files as timm's loader takes them, which sets `transform` to its own."""

    transform: Callable[[Any], torch.Tensor] | None = None

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        change = self.transform or self.change
        return change(self.read(self.paths[position])), self.labels[position]


def run_through(loader: Iterable[Any], step: Callable[[torch.Tensor, torch.Tensor], float]) -> None:
    """Take a plain step on each batch."""
    for images_BCHW, labels_B in loader:
        step(images_BCHW, labels_B)


def our_epoch(
    paths: list[Path],
    cache: Path,
    backbone: str,
    image_size: int,
    batch_size: int,
    options: Sequence[str],
) -> Callable[[], None]:
    """Return what trains an epoch; the cache is built here, where it is not there."""
    store = cached_store(paths, cache, image_size=image_size)
    state, step = our_training(
        store,
        backbone=backbone,
        image_size=image_size,
        options=[*options, f"training.batch_size={batch_size}"],
    )

    def epoch() -> None:
        order = np.random.default_rng(0).permutation(len(store))
        state.train_mode()
        windows = epoch_windows(order, batch_size=batch_size, accumulate=1)
        for number, window in enumerate(windows):
            state.step = number
            step(state, window, number)
        state.step = 0

    return epoch
