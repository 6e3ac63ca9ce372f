"""One job of a sweep: skipped, gone on with or run, and never a reason for others to stop."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dermalyze.errors import Pruned
from dermalyze.run_folder import is_free_on_resume, values_of_the_run
from dermalyze.sweep_folder import (
    ENDED_WELL,
    HAS_RUN,
    Job,
    Status,
    claim,
    override_key,
    read_job,
    read_sweep,
    set_apart,
    stop_asked,
    write_job,
)
from dermalyze.sweeps.own_process import Ended, in_own_process
from dermalyze.tracking.run_identity import read_identity

logger = logging.getLogger("dermalyze")

Task = Callable[[DictConfig], Any]

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def run_job(task: Task, cfg: DictConfig) -> float | None:
    """Run a job in a process of its own, wherever a launcher has called this.

    A job that is done already is not run again; one that was begun goes on, which is the task's
    own doing. What became of it stands in its folder.

    Args:
        task: what a job does; says errors itself, and exits as a command of its own would.
        cfg: of the job.

    Returns:
        What the task returned; None where it did not come to that, which a search counts as failed.
    """
    hydra_config = HydraConfig.get()
    folder, number = Path(hydra_config.runtime.output_dir), int(hydra_config.job.num)
    sweep, overrides = folder.parent, list(hydra_config.overrides.task)
    before, apart = read_job(folder), set_apart(overrides, read_sweep(sweep)["fixed"])
    first = claim(sweep, _content(cfg, apart), number)
    if before is not None and before.status in HAS_RUN and not _is_unrecorded(before, folder, cfg):
        logger.info("job %d is %s already", number, before.status)
        return before.value

    job = Job(number, job_name(apart), overrides, "waiting")
    if first != number:
        logger.info("job %d is the same as job %d, which alone is run", number, first)
        if before is None or before.same_as != first:
            write_job(folder, replace(job, status="twin", same_as=first))
        twin = read_job(sweep / str(first))
        return None if twin is None else twin.value
    if stop_asked(sweep):
        if before is None:
            write_job(folder, job)
        return None
    write_job(folder, replace(job, status="running"))
    ended = in_own_process(partial(_work, task, cfg), stop_asked=partial(stop_asked, sweep))
    job = _after(job, ended)
    write_job(folder, job)
    if job.status not in ENDED_WELL:
        logger.warning("job %d (%s) %s: %s", number, job.name, job.status, job.reason)
    _hand_on(ended)
    return job.value


def _is_unrecorded(job: Job, folder: Path, cfg: DictConfig) -> bool:
    """Whether a run that is done never reached its store: run once more, it only sends."""
    return job.status == "done" and "uri" in cfg.tracking and read_identity(folder) is None


def job_name(apart: list[str]) -> str:
    """Return what a job is called, by the overrides that set it apart from the sweep's others."""
    return ", ".join(apart) or "as it stands"


def _content(cfg: DictConfig, apart: list[str]) -> str:
    """Return a digest of what a job is, whatever a resumed sweep may change for all of them."""
    own = sorted(override for override in apart if is_free_on_resume(override_key(override)))
    text = json.dumps([values_of_the_run(cfg), own], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _work(task: Task, cfg: DictConfig) -> tuple[int, dict[str, Any]]:
    """Do the task in the process that is its own; return its exit code and what came of it."""
    try:
        return 0, {"value": task(cfg)}
    except SystemExit as ended:  # said already
        said: dict[str, Any] = {"reason": str(ended.__cause__)}
        if isinstance(ended.__cause__, Pruned):
            said |= {"value": ended.__cause__.value}
        return int(str(ended.code)), said
    except Exception as error:  # a bug: said already, with its trace
        return 1, {"reason": f"{type(error).__name__}: {error}"}


def _after(job: Job, ended: Ended) -> Job:
    said = ended.said or {}
    if ended.exit_code == 0:
        value, reason = said["value"], said.get("reason")
        ended_as: Status = "done" if reason is None else "pruned"
        return replace(job, status=ended_as, reason=reason, exit_code=0, value=value)
    status: Status = "stopped" if ended.signal in _STOPPING else "failed"
    reason = said.get("reason")
    if reason is None:
        reason = f"its process ended with exit code {ended.exit_code}"
        if ended.signal:
            reason = f"its process was ended by {signal.Signals(ended.signal).name}"
        if ended.signal == signal.SIGKILL:
            reason += ", as the system does where memory is short"
    return replace(job, status=status, exit_code=ended.exit_code, reason=reason)


def _hand_on(ended: Ended) -> None:
    """Let a scheduler's launcher, which heard the same signal, do its part now that all is saved.

    Submitit puts a job that was warned back in line. One that Slurm itself takes away is put back
    by Slurm, and must leave no result behind, which would count as its end.
    """
    if ended.signal in (signal.SIGUSR1, signal.SIGUSR2):
        if callable(signal.getsignal(ended.signal)):
            signal.raise_signal(ended.signal)
    elif ended.signal == signal.SIGTERM and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        raise SystemExit(ended.exit_code)
