"""A traced run is the same run, and its trace holds what the steps did."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from small_training import BATCH, TRAIN, make_state, make_step

from dermalyze.engine.loop import epoch_windows
from dermalyze.engine.profile import PARTS, SKIPPED, TRACE, TRACED, WARM, traced
from dermalyze.engine.state import TrainState
from dermalyze.engine.step import TrainingStep, nothing


def epochs(state: TrainState, step: TrainingStep, count: int) -> torch.Tensor:
    """Do so many epochs and return all weights."""
    windows = epoch_windows(TRAIN, batch_size=BATCH, accumulate=1)
    for epoch in range(count):
        state.epoch = epoch
        state.train_mode()
        for number, window in enumerate(windows):
            state.step = number
            step(state, window, number)
    return torch.cat([parameter.detach().flatten() for parameter in state.model.parameters()])


def parts_in(folder: Path) -> dict[str, int]:
    """Return how often each part of a step is in the trace."""
    with gzip.open(folder / TRACE) as file:
        events = json.load(file)["traceEvents"]
    named = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    return {part: named[part] for part in PARTS}


def test_a_traced_run_is_the_same_and_its_steps_are_in_the_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = epochs(make_state(ema=0.9), make_step(), 3)
    step = make_step()
    with traced(step, tmp_path):
        assert torch.equal(epochs(make_state(ema=0.9), step, 3), plain)
    assert step.after_step is nothing
    assert parts_in(tmp_path) == dict.fromkeys(PARTS, TRACED)
    if not torch.cuda.is_available():
        assert capfd.readouterr().err == ""  # torch reports there that there is no GPU


def test_a_run_that_ends_early_traces_what_it_did(tmp_path: Path) -> None:
    step = make_step()
    with traced(step, tmp_path):
        epochs(make_state(), step, 1)  # five steps
    assert parts_in(tmp_path)["forward"] == 5 - SKIPPED - WARM
    assert parts_in(tmp_path)["average"] == 0
