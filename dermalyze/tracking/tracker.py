"""What the rest of the project knows of a tracker, and the one that tracks nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from dermalyze.errors import Interrupted, Pruned

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Records one run somewhere; never stops the training it records."""

    def start(
        self,
        *,
        name: str,
        folder: Path,
        parameters: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        """Begin a run, or go on with the one that `folder` belongs to."""

    def log_metrics(self, metrics: Mapping[str, float | int | None], *, step: int) -> None:
        """Record one epoch's metrics; those without a value are left out."""

    def log_artifact(self, path: Path, *, folder: str | None = None) -> None:
        """Record a file, below `folder` in the run's artifacts."""

    def log_checkpoint(self, path: Path, *, code: Path) -> None:
        """Record the checkpoint to predict with, and the file of Python that predicts with it."""

    def adopt(self, folders: Sequence[Path]) -> None:
        """Make runs of folders children of this one."""

    def finish(self, status: Status, *, why: str | None = None) -> None:
        """End the run with a true status, and say why where it is not the planned end."""

    def how_to_look(self) -> str:
        """Return the line that tells a person where to look."""


class NoTracker:
    """Tracks nothing; the history in the run's folder is all there is."""

    def start(
        self,
        *,
        name: str,
        folder: Path,
        parameters: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float | int | None], *, step: int) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, *, folder: str | None = None) -> None:
        """Do nothing."""

    def log_checkpoint(self, path: Path, *, code: Path) -> None:
        """Do nothing."""

    def adopt(self, folders: Sequence[Path]) -> None:
        """Do nothing."""

    def finish(self, status: Status, *, why: str | None = None) -> None:
        """Do nothing."""

    def how_to_look(self) -> str:
        """Return that nothing was tracked."""
        return "tracking=none: nothing was logged beside the run's folder"


@contextmanager
def tracked(
    tracker: Tracker,
    *,
    name: str,
    folder: Path,
    parameters: Mapping[str, str],
    tags: Mapping[str, str],
    history: Sequence[Mapping[str, float | int | None]],
) -> Iterator[None]:
    """Track a run within this context, and end it with a true status whatever happens.

    Args:
        tracker: where to.
        name, folder, parameters, tags: of the run.
        history: epochs that a resumed run has behind it, in case they were not recorded.
    """
    tracker.start(name=name, folder=folder, parameters=parameters, tags=tags)
    try:
        for record in history:
            tracker.log_metrics(record, step=int(record["epoch"] or 0))
        yield
    except (KeyboardInterrupt, Interrupted, Pruned) as stop:
        tracker.finish("KILLED", why=str(stop) or type(stop).__name__)
        raise
    except BaseException as error:
        tracker.finish("FAILED", why=f"{type(error).__name__}: {error}")
        raise
    tracker.finish("FINISHED")
