"""Whole epochs from JPEG files: a DataLoader in the usual style, timm's loader, and ours."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_loader
from torch.utils.data import DataLoader

from dermalyze.benchmarks.apart import Peers, apart, memory_note
from dermalyze.benchmarks.input import cached_store
from dermalyze.benchmarks.photographs import photographs
from dermalyze.benchmarks.rates import rate_rows, rate_table
from dermalyze.benchmarks.timing import Bars, Report, in_turns
from dermalyze.benchmarks.training import (
    Node,
    Step,
    config_of,
    labels_of,
    our_epoch,
    plain_step,
)
from dermalyze.benchmarks.usual import UsualFiles, pillow_files, read_by_pillow
from dermalyze.data.batches import ImageStore
from dermalyze.errors import ConfigError

TRAINING_IMAGES = 7010  # 70 % of HAM10000's
OURS, FIRST = "ours", "ours, the first epoch of a machine"


def measure(
    *,
    repeats: int,
    root: str | None,
    images: int | None,
    workers: Sequence[int],
    options: Sequence[str],
) -> Report:
    """Time the training of an epoch, loading included, validation not.

    The usual style is a `DataLoader` over torchvision's transforms, those of the medium
    augmentation, with each of some numbers of workers, and the plain step of `step`; timm's loader
    augments in its own way (flips, colour jitter, random crops) and feeds the same plain step. The
    first epoch of a machine builds the image cache as well. All train whole batches alone, since
    timm's loader drops a last, smaller one.

    Args:
        repeats: how often each is timed.
        root: a folder of JPEG files, whose classes do not matter here; None: photographs are drawn.
        images: of an epoch, as far as they make whole batches; of the files below `root` the first
            so many, None: all.
        workers: numbers of workers; 0 loads in the training process.
        options: words of `python -m dermalyze.train`. They say what ours trains, and the others get
            its backbone under a linear classifier, its image size and its batches.

    Raises:
        ConfigError: words that `train` refuses; too few files, or no number of those to draw.
    """
    config = config_of(options)
    batch_size = config["training"]["batch_size"]
    with tempfile.TemporaryDirectory() as folder:
        paths = given_files(root, images) if root else drawn_files(Path(folder), images)
        paths = in_whole_batches(paths, batch_size)
        shared: dict[str, Any] = {"paths": paths, "options": [*options]}
        with (
            apart(others, keep_memory=False, workers=[*workers], **shared) as theirs,
            apart(our_own, keep_memory=True, folder=Path(folder), **shared) as ours,
        ):
            peers, note = theirs.peers | ours.peers, memory_note(theirs, ours)
            seconds = in_turns(peers, repeats=repeats, title="epoch", between=lambda: None)
    usuals = [name for name in seconds if name.startswith("DataLoader")]
    best = min(usuals, key=lambda name: float(np.median(seconds[name])))
    rows = rate_rows(seconds, images=len(paths), yardstick=best)
    backbone, image_size = config["model"]["backbone"], config["data"]["image_size"]
    model = f"{backbone} at {image_size} pixels, batches of {batch_size}"
    title = (
        f"an epoch of {len(paths):,} {'real' if root else 'drawn'} images, {model}, "
        f"{torch.get_num_threads()} threads, {repeats} runs each; ratios to {best}"
    )
    table = [*rate_table(rows), note]
    rate = next(row["images_per_second"] for row in rows if row["what"] == OURS)
    estimate = TRAINING_IMAGES / rate
    table += [
        f"an epoch of python -m dermalyze.train {' '.join(options)}",
        f"  ({model}) would take {estimate:.0f} s for the {TRAINING_IMAGES:,} training images of "
        "HAM10000,",
        "  loading included; validation, checkpoints and tracking left out",
    ]
    about = {"root": root, "images": len(paths), "options": [*options], "model": model}
    about["memory"] = note
    numbers = {"epoch": rows, **about, "seconds_for_ham10000": estimate}
    return Report(title, table, numbers, Bars("images/s", rows))


def others(*, paths: list[Path], options: Sequence[str], workers: Sequence[int]) -> Peers:
    """Return epochs over a DataLoader in the usual style, and over timm's loader."""
    config = config_of(options)
    backbone, image_size = config["model"]["backbone"], config["data"]["image_size"]
    batch_size = config["training"]["batch_size"]
    labels = labels_of(len(paths)).tolist()

    def usual(number: int) -> Callable[[], None]:
        files = pillow_files(paths, labels, size=image_size)
        loader = DataLoader(files, batch_size=batch_size, shuffle=True, num_workers=number)
        return partial(run_through, loader, plain_step(backbone))

    def of_timm(number: int) -> Callable[[], None]:
        files = TimmFiles(paths, labels, read=read_by_pillow, change=torch.as_tensor)
        loader = create_loader(
            files,
            input_size=(3, image_size, image_size),
            batch_size=batch_size,
            is_training=True,
            hflip=0.5,
            vflip=0.3,
            color_jitter=0.2,
            num_workers=number,
            use_prefetcher=False,
            persistent_workers=False,
        )
        return partial(run_through, loader, plain_step(backbone))

    peers = {f"DataLoader, {number} workers": usual(number) for number in workers}
    return peers | {f"timm's loader, {number} workers": of_timm(number) for number in workers}


def our_own(*, paths: list[Path], options: Sequence[str], folder: Path) -> Peers:
    """Return an epoch from a cache, and one that builds its cache first, in a folder."""
    config, caches = config_of(options), (folder / f"cache{number}" for number in count())

    def from_cache() -> Callable[[], None]:
        return our_epoch(config, stored(paths, next(caches), config["data"]))

    return {OURS: from_cache(), FIRST: lambda: from_cache()()}


def given_files(root: str, images: int | None) -> list[Path]:
    """Return the JPEG files below a folder by their names, the first so many; None: all.

    Raises:
        ConfigError: fewer than an epoch's two, or than were asked for.
    """
    found = sorted(Path(root).expanduser().rglob("*"))
    paths = [path for path in found if path.suffix.lower() in (".jpg", ".jpeg")]
    if len(paths) < (images or 2):
        raise ConfigError(
            f"epoch.root={root}: {len(paths)} JPEG files, fewer than {images or 2}. Name another "
            "folder, or a smaller epoch.images."
        )
    return paths[:images]


def drawn_files(folder: Path, images: int | None) -> list[Path]:
    """Draw so many photographs.

    Raises:
        ConfigError: it is not said how many.
    """
    if images is None:
        raise ConfigError("epoch.images=null: all files of a folder. Name it by epoch.root=DIR.")
    return photographs(folder, images=images)


def in_whole_batches(paths: list[Path], batch_size: int) -> list[Path]:
    """Return the files but those of a last, smaller batch.

    Raises:
        ConfigError: they make no batch.
    """
    images = len(paths) // batch_size * batch_size
    if not images:
        raise ConfigError(
            f"epoch: {len(paths)} images make no batch of {batch_size}. Ask for more by "
            "epoch.images, from a larger epoch.root, or add training.batch_size=N to epoch.options."
        )
    return paths[:images]


class TimmFiles(UsualFiles):
    """The files as timm's loader takes them, which sets `transform` to its own."""

    transform: Callable[[Any], torch.Tensor] | None = None

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        change = self.transform or self.change
        return change(self.read(self.paths[position])), self.labels[position]


def run_through(loader: Iterable[Any], step: Step) -> None:
    """Take a plain step on each batch."""
    for images_BCHW, labels_B in loader:
        step(images_BCHW, labels_B)


def stored(paths: list[Path], cache: Path, data: Node) -> ImageStore:
    """Return the images from a cache, which is built here where there is none."""
    return cached_store(paths, cache, image_size=data["cache_size"] or data["image_size"])
