"""One process per run folder, and a way to know whether a run's process still lives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dermalyze.errors import DermalyzeError

LOCK = ".run.lock"
_OWNER = ".run.pid"


class RunInUseError(DermalyzeError):
    """Another process is working in the run's folder."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process; the system lets go of it when the process dies.

    Raises:
        RunInUseError: another process holds it; names its process id.
    """
    from filelock import FileLock, Timeout  # late: most commands lock nothing

    lock = FileLock(folder / LOCK)
    owner = folder / _OWNER
    try:
        lock.acquire(timeout=1)  # whoever only looks (`is_abandoned`) holds it for a moment
    except Timeout as error:
        process = owner.read_text() if owner.exists() else "unknown"
        raise RunInUseError(
            f"{folder}: process {process} is working in this folder. Wait for it, or stop it with "
            f"`kill {process}`; then resume."
        ) from error
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def is_abandoned(folder: Path) -> bool:
    """Return whether no living process on this machine works in the folder, as far as we may see.

    Of another user's folder it cannot be told, so that counts as one in use.
    """
    if not folder.is_dir():
        return True
    from filelock import FileLock

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except OSError:  # held, or not ours to open
        return False
    lock.release()
    return True
