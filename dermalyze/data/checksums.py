"""Checksums of image files, remembered, so that an unchanged folder opens without being read.

A checksum is taken over from an earlier start if the file's size, times of modification and of
change, and inode are what they were then; a file of which one differs is hashed again. Git's index
makes the same bargain for the same reason: hashing HAM10000 means reading 2.8 GB at every start.
What it gives up: bytes that change while none of the four does, as on a decaying disk, pass unseen.
Deleting `checksums.json` has all files hashed anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from dermalyze.data.threads import in_threads
from dermalyze.files import write_whole

logger = logging.getLogger(__name__)

MEMORY = "checksums.json"
# A file written twice within a tick of its file system's clock keeps its times at the second
# writing. FAT's tick, 2 seconds, is the longest in use: what was written so shortly before it was
# hashed is not remembered.
TICK_NS = 2_000_000_000

# Size in bytes, times of modification and of change in nanoseconds, inode. Programs can set the
# first time back, as `cp -p` does, but not the second.
Stamp = list[int]


def checksums(paths: Sequence[str], *, directory: Path) -> list[str | None]:
    """Return the sha256 of each file; None for one that cannot be read, of which decode will tell.

    Args:
        paths: the files.
        directory: checksums are remembered in its `checksums.json`; made if absent. Where it
            cannot be written, that is said, and the next start hashes again.
    """
    places = [str(Path(path).absolute()) for path in paths]
    remembered = _remembered(directory / MEMORY)
    known = {place: _known(place, *remembered[place]) for place in places if place in remembered}
    unknown = [place for place in dict.fromkeys(places) if known.get(place) is None]
    if not unknown:
        return [known[place] for place in places]

    hashed = dict(zip(unknown, in_threads(_hashed, unknown, "checking images"), strict=True))
    lasting = {place: [stamp, found] for place, (stamp, found) in hashed.items() if stamp}
    if lasting:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_whole(directory / MEMORY, json.dumps(remembered | lasting))
        except OSError as error:
            logger.info("%s: checksums are not remembered (%s)", directory / MEMORY, error)
    known |= {place: found for place, (_, found) in hashed.items()}
    return [known[place] for place in places]


def _remembered(memory: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        files: dict[str, tuple[Stamp, str]] = json.loads(memory.read_text(encoding="utf-8"))
        return {place: (list(stamp), str(known)) for place, (stamp, known) in files.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("%s: cannot be read (%s); all images are hashed anew", memory, error)
        return {}


def _known(place: str, stamp: Stamp, checksum: str) -> str | None:
    try:
        return checksum if _stamp(Path(place).stat()) == stamp else None
    except OSError:
        return None


def _hashed(place: str) -> tuple[Stamp | None, str | None]:
    """Return a file's stamp, if it is sure to change with the file, and its sha256, if readable."""
    try:
        with Path(place).open("rb") as file:
            # Looked at before the bytes are read: what is written meanwhile differs from it.
            stamp = _stamp(os.fstat(file.fileno()))
            settled = max(stamp[1:3]) < time.time_ns() - TICK_NS
            return stamp if settled else None, hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None, None


def _stamp(about: os.stat_result) -> Stamp:
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
