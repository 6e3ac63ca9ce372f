"""Building the image cache beside a plain Pillow loop over the same JPEG files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dermalyze.benchmarks.timing import Bars, Report, in_turns, spread, spread_words
from dermalyze.data.cache import open_images
from dermalyze.data.decode import PreprocessSpec
from dermalyze.data.phantom_drawing import draw_lesion, photograph
from dermalyze.randomness import Purpose, generator
from dermalyze.taxonomy import HAM10000_CODES

HAM10000_IMAGES = 10_015
LOOP, CACHE = "plain Pillow loop", "image cache"


def measure(
    *,
    repeats: int,
    images: int,
    width: int,
    height: int,
    quality: int,
    noise: float,
    image_size: int,
) -> Report:
    """Time whole builds, from the first file's checksum to the array on the disk.

    The loop opens, converts and resizes one file after another and keeps nothing.

    Args:
        repeats: how often each is timed.
        images: how many files.
        width, height, quality, noise: see `write_photographs`.
        image_size: what the files become, pixels.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(
            Path(folder), images=images, width=width, height=height, quality=quality, noise=noise
        )
        sizes = [path.stat().st_size for path in paths]
        directory = Path(folder) / "cache"
        spec = PreprocessSpec(image_size=image_size)

        def plain_loop() -> None:
            for path in paths:
                with Image.open(path) as image:
                    rgb = image.convert("RGB")
                    np.array(rgb.resize((image_size, image_size), Image.Resampling.BILINEAR))

        seconds = in_turns(
            {
                LOOP: plain_loop,
                CACHE: lambda: open_images(
                    [str(path) for path in paths], spec=spec, directory=directory
                ),
            },
            repeats=repeats,
            title="cache",
            between=lambda: shutil.rmtree(directory, ignore_errors=True),
        )
    rows = rates(seconds, images=images, cores={LOOP: 1, CACHE: os.cpu_count() or 1})
    title = (
        f"building the cache at {image_size} pixels out of {images} JPEG files of {width} x "
        f"{height}, {np.mean(sizes) / 1000:.0f} kB on average, {repeats} runs each"
    )
    numbers = {"cache": rows, "images": images, "mean_bytes": float(np.mean(sizes))}
    return Report(title, _table(rows), numbers, Bars("images/s", rows))


def rates(
    seconds: Mapping[str, Sequence[float]], *, images: int, cores: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return a row for each peer: its time, images a second, and the ratio of that to the loop's.

    Args:
        seconds: of each run over all images.
        images: how many.
        cores: how many each peer could use.
    """
    loop = spread(seconds[LOOP])["median"]
    rows = []
    for what, values in seconds.items():
        took = spread(values)
        rate = images / took["median"]
        rows.append(
            {
                "what": what,
                "cores": cores[what],
                **took,
                "images_per_second": rate,
                "images_per_second_and_core": rate / cores[what],
                "ratio": loop / took["median"],
                "seconds_for_ham10000": HAM10000_IMAGES / rate,
            }
        )
    return rows


def _table(rows: list[dict[str, Any]]) -> list[str]:
    table = [
        f"{'':<20}{'cores':>6}{'median':>9}{'spread':>18}{'images/s':>10}{'a core':>8}{'ratio':>7}"
        f"{'10,015 images':>15}"
    ]
    for row in rows:
        table.append(
            f"{row['what']:<20}{row['cores']:>6}{row['median']:>7.2f} s"
            f"{spread_words(row, digits=2):>18}"
            f"{row['images_per_second']:>10.0f}{row['images_per_second_and_core']:>8.0f}"
            f"{row['ratio']:>7.2f}{row['seconds_for_ham10000']:>13.0f} s"
        )
    return table


def write_photographs(
    folder: Path, *, images: int, width: int, height: int, quality: int, noise: float
) -> list[Path]:
    """Write JPEG files that cost a decoder what photographs cost it, and return their paths.

    Phantoms, one of each class, taken anew with a camera's noise for each file: without it a file
    would have a tenth of a photograph's bytes, and most of a decoder's time goes by bytes.

    Args:
        folder: where to.
        images: how many.
        width, height: pixels.
        quality: of the JPEG, full colour resolution.
        noise: standard deviation, grey values in 0..255.
    """
    side = max(width, height)
    drawn = []
    for number, dx in enumerate(HAM10000_CODES):
        lesion = draw_lesion(
            generator(0, Purpose.PHANTOM, number, 1), dx, difficulty=0.5, side=side
        )
        picture = photograph(generator(0, Purpose.PHANTOM, number, 2), lesion, side=side)
        drawn.append(np.asarray(picture.crop((0, 0, width, height)), np.float32))
    paths = []
    for number in range(images):
        clean_HWC = drawn[number % len(drawn)]
        random = generator(0, Purpose.PHANTOM, number, 3)
        grain_HWC = np.float32(noise) * random.standard_normal(clean_HWC.shape, np.float32)
        noisy_HWC = (clean_HWC + grain_HWC).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{number:05}.jpg")
        Image.fromarray(noisy_HWC).save(paths[-1], quality=quality, subsampling="4:4:4")
    return paths
