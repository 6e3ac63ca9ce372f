"""What an image costs as batches, pictures, tables and processes get larger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermalyze.benchmarks.rates import rate_rows, rate_table
from dermalyze.benchmarks.timing import Bars, Report, in_turns
from dermalyze.benchmarks.training import labels_of, our_training, random_store
from dermalyze.data.samplers import UniformSampler
from dermalyze.engine.loop import epoch_windows

STEPS, BATCHES = 3, 20
REAL_IMAGES = 2000


def measure(
    *,
    repeats: int,
    backbone: str,
    image_size: int,
    batch_size: int,
    batch_sizes: Sequence[int],
    image_sizes: Sequence[int],
    data_sizes: Sequence[int],
    processes: Sequence[int],
) -> Report:
    """Time training steps, the way of images into them, and whole runs of several processes.

    Images of a table are gathered from the memory map of a file. Of more than 2,000 it shows 2,000
    again and again: what a million rows cost is measured, what reading a million images from a disk
    costs is not.

    Args:
        repeats: how often each is timed; runs of several processes are made once.
        backbone: timm's name; its weights are random.
        image_size, batch_size: where they are not what is varied.
        batch_sizes, image_sizes: of training steps, with the medium augmentation.
        data_sizes: rows of the table; the yardstick is the first.
        processes: that train a run together by gloo on a thread each; the yardstick is the first.
    """
    rows: list[dict[str, Any]] = []

    def add(peers: Mapping[str, Callable[[], object]], images: Sequence[int]) -> None:
        seconds = in_turns(peers, repeats=repeats, title="scale", between=lambda: None)
        base = None
        for (name, values), count in zip(seconds.items(), images, strict=True):
            (row,) = rate_rows({name: values}, images=count, yardstick=name)
            base = base or row["images_per_second"]
            rows.append({**row, "ratio": row["images_per_second"] / base})

    of_batches = {
        f"batches of {size}": training(backbone, image_size, size) for size in batch_sizes
    }
    add(of_batches, [STEPS * size for size in batch_sizes])
    of_pictures = {f"{size} pixels": training(backbone, size, batch_size) for size in image_sizes}
    add(of_pictures, [STEPS * batch_size] * len(image_sizes))
    orders = {f"order of {size:,} rows": order(size, batch_size) for size in data_sizes}
    add(orders, data_sizes)
    with tempfile.TemporaryDirectory() as folder:
        inputs = {
            f"batches from {size:,} rows": batches(
                size, image_size, batch_size, file=Path(folder) / f"{size}.npy"
            )
            for size in data_sizes
        }
        add(inputs, [BATCHES * batch_size] * len(data_sizes))
    rows += runs(processes, backbone=backbone, image_size=image_size, batch_size=batch_size)
    title = (
        f"scale: {backbone} at {image_size} pixels, batches of {batch_size}, "
        f"{torch.get_num_threads()} threads, {repeats} runs each; ratios to the first of its kind"
    )
    drawn = [row for row in rows if row["what"] not in orders]  # a thousand times as fast
    note = (
        f"rows beyond {REAL_IMAGES:,} show the memory map of as many images again; no disk is read"
    )
    return Report(title, [*rate_table(rows), note], {"scale": rows}, Bars("images/s", drawn))


def training(backbone: str, image_size: int, batch_size: int) -> Callable[[], None]:
    """Return what takes some training steps on images in memory."""
    store = random_store(batch_size, image_size=image_size)
    state, step = our_training(store, backbone=backbone, image_size=image_size, options=[])
    rows_B = np.arange(batch_size)

    def steps() -> None:
        state.train_mode()
        for _ in range(STEPS):
            step(state, [rows_B], 0)

    return steps


def order(rows: int, batch_size: int) -> Callable[[], object]:
    """Return what draws the order of an epoch of so many rows and cuts it into batches."""
    labels_N, sampler = labels_of(rows), UniformSampler()

    def drawn() -> object:
        order_N = sampler.order(labels_N, seed=0, epoch=0)
        return epoch_windows(order_N, batch_size=batch_size, accumulate=1)

    return drawn


def batches(rows: int, image_size: int, batch_size: int, *, file: Path) -> Callable[[], None]:
    """Return what gathers and augments batches of a table of so many rows, mapped from a file."""
    store = random_store(min(rows, REAL_IMAGES), image_size=image_size, file=file)
    _, step = our_training(store, backbone="test_resnet", image_size=image_size, options=[])
    order_N = UniformSampler().order(labels_of(rows), seed=0, epoch=0) % len(store)
    windows = epoch_windows(order_N[: BATCHES * batch_size], batch_size=batch_size, accumulate=1)

    def made() -> None:
        for _ in step.inputs(0, windows):
            pass

    return made


def runs(
    processes: Sequence[int], *, backbone: str, image_size: int, batch_size: int
) -> list[dict[str, Any]]:
    """Train by each number of processes, and return the images a second of the second epoch."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in processes:
            run = Path(folder) / str(count)
            words = [
                "data=synthetic",
                f"data.root={folder}/phantoms",
                f"data.image_size={image_size}",
                "model=timm",
                f"model.backbone={backbone}",
                "model.pretrained=false",
                f"training.batch_size={batch_size}",
                "training.epochs=2",
                "tracking=none",
                f"paths.outputs={folder}",
                f"hydra.run.dir={run}",
            ]
            many = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"]
            subprocess.run(
                [sys.executable, "-m", *many, "dermalyze.train", *words],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                check=True,
                capture_output=True,
            )
            history = json.loads((run / "training_history.json").read_text())
            images = len((run / "train_split.csv").read_text().splitlines()) - 1
            rate = float(history[-1]["images_per_second"])
            row = {"what": f"{count} processes", "median": images / rate, "images_per_second": rate}
            rows.append(row)
            row["ratio"] = rate / rows[0]["images_per_second"]
    return rows
