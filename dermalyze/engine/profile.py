"""Where the time of training steps goes, as a trace of torch's profiler."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from dermalyze.engine.step import TrainingStep, nothing

logger = logging.getLogger(__name__)

TRACE = "trace.json.gz"
SKIPPED, WARM, TRACED = 1, 1, 5
PARTS = ("input", "forward", "backward", "optimizer", "average")
"""What a step does, as it calls it in a trace."""


def spare_the_screen() -> None:
    """Keep torch's profiler from reporting, as an error, that there is no GPU; once is enough."""
    if not torch.cuda.is_available():
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # above its errors, which are 4


@contextmanager
def traced(step: TrainingStep, folder: Path) -> Iterator[None]:
    """Within this context, the first steps are traced, after some to warm up.

    The trace is written to the folder as soon as it is whole, or with fewer steps where the run
    ends before; chrome://tracing and https://ui.perfetto.dev show it.
    """

    def write(done: profile) -> None:
        done.export_chrome_trace(str(folder / TRACE))
        logger.info("traced steps of training to %s", folder / TRACE)

    spare_the_screen()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(skip_first=SKIPPED, wait=0, warmup=WARM, active=TRACED, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        step.after_step = profiler.step
        try:
            yield
        finally:
            step.after_step = nothing
