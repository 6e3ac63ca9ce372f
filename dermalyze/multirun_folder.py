"""The folder of a multirun: Hydra numbers its jobs, and each job's folder is a run's."""

from __future__ import annotations

from pathlib import Path


def numbered_jobs(folder: Path) -> list[Path]:
    """Return the folders of a multirun's jobs by their numbers; none where it is no multirun."""
    jobs = [job for job in folder.glob("*") if job.name.isdecimal() and job.is_dir()]
    return sorted(jobs, key=lambda job: int(job.name))
