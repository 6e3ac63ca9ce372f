"""What a sweep's folder holds: one record of the sweep, and one of each of its jobs.

Every process of a sweep, wherever a launcher starts it, knows the others by these files alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dermalyze.errors import ConfigError
from dermalyze.files import write_json
from dermalyze.redaction import shown

SWEEP = "sweep.json"
SHARED_SWEEP = "sweep_redacted.json"
NUMBER_OF_JOBS = "number_of_jobs"  # in SWEEP; null: a search, whose trials are not counted ahead
ENSEMBLE = "ensemble.yaml"
JOB = "job.json"
_STOP = ".stop"
_CLAIMS = ".claims"

# twin: the same as another job, run alone; pruned: a search stopped it; waiting: not begun.
Status = Literal["done", "twin", "pruned", "failed", "stopped", "running", "waiting"]
HAS_RUN: tuple[Status, ...] = ("done", "pruned")
ENDED_WELL: tuple[Status, ...] = (*HAS_RUN, "twin")


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: counted from 0; also the name of its folder.
        name: the overrides that set it apart from other jobs, such as "training.seed=7".
        overrides: all of them.
        status: what became of it.
        reason: why it did not end well.
        exit_code: as of a command of its own.
        same_as: the job that a twin is the same as.
        value: the best of `training.monitor`.
    """

    number: int
    name: str
    overrides: list[str]
    status: Status
    reason: str | None = None
    exit_code: int | None = None
    same_as: int | None = None
    value: float | None = None


def write_job(folder: Path, job: Job) -> None:
    """Write a job's record into its folder."""
    write_json(folder / JOB, asdict(job))


def read_job(folder: Path) -> Job | None:
    """Return the record of the job whose folder this is; None where it is no job's."""
    if not (folder / JOB).is_file():
        return None
    return Job(**json.loads((folder / JOB).read_text(encoding="utf-8")))


def is_twin(folder: Path) -> bool:
    """Return whether the folder is of a job that another is run for, and so holds no run."""
    job = read_job(folder)
    return job is not None and job.status == "twin"


def jobs_of(sweep: Path) -> list[Job]:
    """Return the records of the jobs that were begun or stood in line, by their numbers."""
    found = [read_job(path.parent) for path in sweep.glob(f"*/{JOB}")]
    return sorted((job for job in found if job is not None), key=lambda job: job.number)


def all_jobs_of(sweep: Path) -> list[Job]:
    """Return the jobs that a sweep was begun to run, also those that no launcher came to.

    Of a search it is not known how many there will be: its jobs are those that left a record.

    Raises:
        ConfigError: the folder is none of a sweep.
    """
    left = jobs_of(sweep)
    never = set(range(read_sweep(sweep).get(NUMBER_OF_JOBS) or 0)) - {job.number for job in left}
    missing = [Job(number, "never begun", [], "waiting", "never begun") for number in never]
    return sorted([*left, *missing], key=lambda job: job.number)


def run_name(folder: Path) -> str:
    """Return what a run is called: a sweep's job by what sets it apart, others by their folder."""
    job = read_job(folder)
    return folder.name if job is None else f"{job.number}: {job.name}"


def read_sweep(folder: Path) -> dict[str, Any]:
    """Return the record of a sweep.

    Raises:
        ConfigError: the folder is none of a sweep.
    """
    if not (folder / SWEEP).is_file():
        why = f"it holds no {SWEEP}" if folder.is_dir() else "there is no such folder"
        raise ConfigError(
            f"sweep.resume={folder}: not a sweep's folder, {why}. Give the folder that the sweep "
            "named as its own, such as multirun/2026-01-31_12-00-00-000000."
        )
    record: dict[str, Any] = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
    return record


def write_sweep(folder: Path, record: Mapping[str, object]) -> None:
    """Write the record of a sweep, and a copy without secrets that were typed in."""
    write_json(folder / SWEEP, dict(record))
    write_json(folder / SHARED_SWEEP, _without_secrets(dict(record)))


def forget_requests(sweep: Path) -> None:
    """Take back what an earlier beginning of the sweep asked for: to stop, and who runs what.

    What a job has run to its end stays its own, so that no twin runs it again.
    """
    (sweep / _STOP).unlink(missing_ok=True)
    for claimed in (sweep / _CLAIMS).glob("*"):
        owner = read_job(sweep / str(claimed.readlink()))
        if owner is None or owner.status not in HAS_RUN:
            claimed.unlink()


def claim(sweep: Path, content: str, number: int) -> int:
    """Return which job runs what has this content: the one that has, else the first that asks.

    Args:
        content: a digest of all that a job is, the same each time that the sweep is begun.
        number: of the job that asks.
    """
    path = sweep / _CLAIMS / content
    path.parent.mkdir(exist_ok=True)
    try:
        path.symlink_to(str(number))  # made and written at once, unlike a file
    except FileExistsError:
        return int(str(path.readlink()))
    return number


def ask_to_stop(sweep: Path, signal_number: int) -> None:
    """Ask all processes of the sweep to save and stop."""
    (sweep / _STOP).write_text(str(signal_number), encoding="utf-8")


def stop_asked(sweep: Path) -> bool:
    """Return whether the sweep was asked to stop."""
    return (sweep / _STOP).exists()


def _without_secrets(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_secrets(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_secrets(value) for value in node]
    return shown(node) if isinstance(node, str) else node


def override_key(override: str) -> str:
    """Return what an override changes: of "training.seed=7" that is "training.seed"."""
    return override.partition("=")[0]


def set_apart(overrides: Sequence[str], fixed: Sequence[str]) -> list[str]:
    """Return the overrides of a job that set it apart from the sweep's others.

    Args:
        overrides: all of them.
        fixed: the keys that have one value in the whole sweep.
    """
    return [override for override in overrides if override_key(override) not in fixed]
