"""A training step beside torch's plainest one and timm's, and what each part of ours takes."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from dermalyze.benchmarks.apart import Peers, apart, memory_note
from dermalyze.benchmarks.rates import rate_rows, rate_table
from dermalyze.benchmarks.timing import Bars, Report, in_turns
from dermalyze.benchmarks.training import (
    Step,
    labels_of,
    our_training,
    plain_step,
    random_store,
    timm_step,
)
from dermalyze.compute import multiplies_bf16
from dermalyze.engine.profile import PARTS, spare_the_screen
from dermalyze.engine.state import TrainState
from dermalyze.engine.step import TrainingStep

PLAIN, BARE = "eager, contiguous", "ours, as much as eager"
TIMM, AVERAGED = "timm's, with average", "ours, as much as timm's"
WHOLE = "ours, with augmentation and average"
HALF = "ours, the same in bf16"
SHARES = "shares"
STEPS = 3
NOTES = (
    "timm's: create_optimizer_v2, ModelEmaV3 and dispatch_clip_grad, composed as its train script "
    "does with --opt adamw --channels-last --model-ema --clip-grad 1",
    "torchvision's reference script is not in its package, so it is no peer here",
)


def measure(*, repeats: int, backbone: str, image_size: int, batch_size: int) -> Report:
    """Time three steps of each on images that lie in memory.

    All train one network with a linear classifier, in float32. "As much" leaves out what the other
    does not do: augmentation, and for the plain step the moving average too. Where the CPU has
    units for it, ours is timed in bf16 as well. The shares are those of whole steps in float32, by
    torch's profiler.
    """
    options = {"backbone": backbone, "image_size": image_size, "batch_size": batch_size}
    with (
        apart(others, keep_memory=False, **options) as theirs,
        apart(our_own, keep_memory=True, **options) as ours,
    ):
        each, note = theirs.peers | ours.peers, memory_note(theirs, ours)
        order = (PLAIN, BARE, TIMM, AVERAGED, WHOLE, HALF)
        peers = {name: each[name] for name in order if name in each}
        seconds = in_turns(peers, repeats=repeats, title="step", between=lambda: None)
        parts: dict[str, float] = ours.peers[SHARES]()
    rows = rate_rows(seconds, images=STEPS * batch_size, yardstick=PLAIN)
    title = (
        f"a training step of {backbone} at {image_size} pixels, batches of {batch_size}, "
        f"{torch.get_num_threads()} threads, {repeats} runs each"
    )
    table = [*rate_table(rows), note, *NOTES]
    table.append(f"shares of a step, {WHOLE}:")
    table += [f"  {part:<12}{share:>8.1%}" for part, share in parts.items()]
    return Report(
        title, table, {"step": rows, "memory": note, "shares": parts}, Bars("images/s", rows)
    )


def others(*, backbone: str, image_size: int, batch_size: int) -> Peers:
    """Return the plainest step of torch, and timm's."""
    store = random_store(batch_size, image_size=image_size)
    images_BCHW = store.batch(np.arange(batch_size)).float().contiguous() / 255
    labels_B = torch.from_numpy(labels_of(batch_size))

    def by(step: Step) -> None:
        for _ in range(STEPS):
            step(images_BCHW, labels_B)

    return {PLAIN: partial(by, plain_step(backbone)), TIMM: partial(by, timm_step(backbone))}


def our_own(*, backbone: str, image_size: int, batch_size: int) -> Peers:
    """Return our step, doing more and more, and what finds the shares of all that it does."""
    store, rows_B = random_store(batch_size, image_size=image_size), np.arange(batch_size)
    made = {
        BARE: ["augmentation=none", "ema=off"],
        AVERAGED: ["augmentation=none", "ema=on"],
        WHOLE: ["augmentation=medium", "ema=on"],
    }
    if multiplies_bf16(torch.device("cpu")):
        made[HALF] = [*made[WHOLE], "training.amp=bf16"]
    ours = {
        name: our_training(
            store,
            backbone=backbone,
            image_size=image_size,
            options=["model/head=linear", *options],
        )
        for name, options in made.items()
    }
    steps = {name: partial(take_steps, *training, rows_B) for name, training in ours.items()}
    return {**steps, SHARES: partial(shares, *ours[WHOLE], rows_B)}


def take_steps(state: TrainState, step: TrainingStep, rows_B: np.ndarray) -> None:
    """Take some steps, all of them as the first of an epoch."""
    state.train_mode()
    for _ in range(STEPS):
        step(state, [rows_B], 0)


def shares(state: TrainState, step: TrainingStep, rows_B: np.ndarray) -> dict[str, float]:
    """Return what each part takes of a step on the CPU; `rest` is what lies between them."""
    spare_the_screen()
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("whole"):
        take_steps(state, step, rows_B)
    took = {event.key: event.cpu_time_total for event in profiler.key_averages()}
    parts = {part: took[part] / took["whole"] for part in PARTS}
    return {**parts, "rest": 1 - sum(parts.values())}
