"""Whether a GPU waits: training from the image cache beside training on what lies in its memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from dermalyze.benchmarks.rates import rate_rows, rate_table
from dermalyze.benchmarks.timing import Bars, Report, in_turns
from dermalyze.benchmarks.training import (
    Node,
    Step,
    config_of,
    labels_of,
    noise,
    our_epoch,
    peer_network,
    plain_step,
    random_store,
    timm_step,
)
from dermalyze.compute import Precision, choose_device, choose_precision, numerics
from dermalyze.data.batches import ImageStore

PLAIN, TIMM = "eager, contiguous", "timm's, channels last, average"
HELD, CACHED = "ours, one batch again and again", "ours, from the image cache"
NOTES = (
    "timm's: create_optimizer_v2, ModelEmaV3 and dispatch_clip_grad, composed as its train script "
    "does with --opt adamw --channels-last --model-ema --clip-grad 1 --amp --torchcompile",
    "torchvision's reference script is not in its package, so it is no peer here",
)


def measure(
    *, repeats: int, device: str, images: int, matrix: int, options: Sequence[str]
) -> Report:
    """Time epochs on a device, all of one network in one number format.

    The others, and ours once, see the same batch in the device's memory again and again; ours
    without augmentation. From the cache, ours reads what `train` reads, and does all that the
    options say. So the last ratio is what reading and augmenting leave of the step's rate. Shares
    are of the rate of a large matrix product in the same format: operations of the network's
    products and convolutions, forward and backward, as torch counts them.

    Args:
        repeats: how often each is timed.
        device: cuda, mps or cpu.
        images: of an epoch, as far as they make whole batches; noise, as a memory map of a file.
        matrix: rows and columns of that product.
        options: words of `python -m dermalyze.train`.

    Raises:
        ConfigError: there is no such device; or words that `train` refuses.
    """
    config = config_of(options)
    precision = choose_precision(config["training"]["amp"], choose_device(device, key="gpu.device"))
    backbone, size = config["model"]["backbone"], config["data"]["image_size"]
    batch_size = config["training"]["batch_size"]
    steps = max(1, images // batch_size)
    with tempfile.TemporaryDirectory() as folder:
        peers = made(config, precision, steps, Path(folder) / "images.npy")
        waited = {name: waiting(peer, precision.device) for name, peer in peers.items()}
        seconds = in_turns(waited, repeats=repeats, title="gpu", between=lambda: None)
    rows = rate_rows(seconds, images=steps * batch_size, yardstick=PLAIN)
    operations = operations_an_image(backbone, size)
    rate = matrix_rate(precision, rows=matrix, repeats=repeats)
    for row in rows:
        row["share_of_matrix_rate"] = row["images_per_second"] * operations / rate
    of_step = rows[-1]["images_per_second"] / rows[-2]["images_per_second"]
    title = (
        f"training of {backbone} at {size} pixels, batches of {batch_size}, {precision} on "
        f"{name_of(precision.device)}, {steps} steps, {repeats} runs each"
    )
    table = [
        *rate_table(rows),
        "shares of the matrix rate: "
        + "; ".join(f"{row['what']} {row['share_of_matrix_rate']:.1%}" for row in rows),
        f"a product of {matrix:,} rows and columns: {rate / 1e12:.1f} TFLOP/s; an image in "
        f"training: {operations / 1e9:.1f} GFLOP",
        f"from the image cache: {of_step:.1%} of the rate on one batch in the device's memory",
        f"ours: python -m dermalyze.train {' '.join(options)}",
        *NOTES,
    ]
    numbers = {
        "gpu": rows, "device": name_of(precision.device), "precision": str(precision),
        "flops_of_a_second": rate, "flops_of_an_image": operations, "of_step_rate": of_step,
        "options": [*options],
    }  # fmt: skip
    return Report(title, table, numbers, Bars("images/s", rows))


def made(
    config: Node, precision: Precision, steps: int, file: Path
) -> dict[str, Callable[[], object]]:
    """Return epochs of so many steps; the file is made, with the images of ours."""
    backbone, size = config["model"]["backbone"], config["data"]["image_size"]
    batch_size, compiled = config["training"]["batch_size"], config["training"]["compile"]
    device = precision.device
    images = steps * batch_size
    stored = config["data"]["cache_size"] or size
    store = random_store(images, image_size=stored, file=file, device=device)
    held = HeldBatch(rows=images, batch_size=batch_size, image_size=size, device=device)
    images_BCHW = held.batch(np.arange(batch_size)).float().contiguous() / 255
    labels_B = torch.from_numpy(labels_of(batch_size)).to(device)

    def by(step: Step, *, fast: bool) -> Callable[[], None]:
        def epoch() -> None:
            with numerics(deterministic=False, fast=fast):
                for _ in range(steps):
                    step(images_BCHW, labels_B)

        return epoch

    still = {"augmentation": config_of(["augmentation=none"])["augmentation"]}
    still["mix"] = config_of(["mix=none"])["mix"]
    return {
        PLAIN: by(plain_step(backbone, precision), fast=False),
        TIMM: by(timm_step(backbone, precision, compiled=compiled), fast=True),
        HELD: our_epoch({**config, **still}, held),
        CACHED: our_epoch(config, store),
    }


class HeldBatch(ImageStore):
    """A store that gives one batch, in the device's memory, whichever rows are asked for.

    Args:
        rows: that it is said to have.
        batch_size: images that it has.
        image_size: pixels.
        device: where they lie.
    """

    def __init__(
        self, *, rows: int, batch_size: int, image_size: int, device: torch.device
    ) -> None:
        ids = [str(number) for number in range(batch_size)]
        images_NHWC = noise(batch_size, image_size)
        super().__init__(images_NHWC=images_NHWC, image_ids=ids, device=device)
        self._rows = rows
        self._held_BCHW = super().batch(np.arange(batch_size))

    def __len__(self) -> int:
        return self._rows

    def batch(self, rows_B: np.ndarray) -> torch.Tensor:
        """Return images_BCHW, as many as rows."""
        return self._held_BCHW[: len(rows_B)]

    @contextmanager
    def reading_ahead(self, batches: Sequence[np.ndarray]) -> Iterator[None]:
        """Do nothing: all is there."""
        yield


def waiting(work: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """Return what does the work and waits until the device has done it too."""

    def waited() -> None:
        work()
        wait_for(device)

    return waited


def wait_for(device: torch.device) -> None:
    """Wait until all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def operations_an_image(backbone: str, image_size: int) -> float:
    """Return the floating-point operations of products in training on one image.

    Multiplications and additions each count, forward and backward; the images have no gradient.
    """
    network = peer_network(backbone).train()
    images_BCHW = torch.rand(2, 3, image_size, image_size)  # BatchNorm needs two values
    with FlopCounterMode(display=False) as counter:
        network(images_BCHW).sum().backward()
    return float(counter.get_total_flops()) / len(images_BCHW)


def matrix_rate(precision: Precision, *, rows: int, repeats: int) -> float:
    """Return the operations a second of a product of square matrices, the median of the runs."""
    dtype = precision.dtype or torch.float32
    left, right = (torch.rand(rows, rows, device=precision.device, dtype=dtype) for _ in range(2))
    product = waiting(lambda: left @ right, precision.device)
    times = in_turns({"": product}, repeats=repeats, title="product", between=lambda: None)
    return 2 * rows**3 / float(np.median(times[""]))


def name_of(device: torch.device) -> str:
    """Return what a device is called."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return {"cpu": f"the CPU, {torch.get_num_threads()} threads"}.get(device.type, device.type)
