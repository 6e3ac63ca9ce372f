"""What each of several runs at once gets of this machine: cores and a GPU."""

from __future__ import annotations

import os
from pathlib import Path


def visible_gpus() -> list[str]:
    """Return the CUDA devices of this machine that this process may use, without asking torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name]
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    return [str(number) for number in range(len(devices))]


def parallel_jobs(without_gpu: int) -> int:
    """Return how many runs this machine makes at once: one a GPU; or so many, but one a core."""
    return len(visible_gpus()) or min(without_gpu, _cores())


def threads_of(jobs: int) -> str:
    """Return, as text for the environment, how many threads each of so many jobs at once gets."""
    return str(max(1, _cores() // jobs))


def gpu_of(job: int) -> str:
    """Return a job's GPU, in turn, as CUDA_VISIBLE_DEVICES takes it; "" where there is none."""
    gpus = visible_gpus()
    return gpus[job % len(gpus)] if gpus else ""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
