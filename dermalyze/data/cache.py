"""Decoded images as one memory-mapped uint8 array, made once and shared by all runs.

A cache is keyed by what the files hold and how they are decoded, not by where they lie. A changed
file, another image size or another Pillow therefore makes a new one, and a copy of the data set
finds the old one. A new one decodes only the files that no earlier one holds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np
import PIL
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from dermalyze.data.cache_build import build
from dermalyze.data.cache_folder import name_of, read_folder
from dermalyze.data.checksums import checksums
from dermalyze.data.decode import PreprocessSpec
from dermalyze.errors import DataError

logger = logging.getLogger(__name__)


def open_images(
    paths: Sequence[str], *, spec: PreprocessSpec, directory: str | Path
) -> NDArray[np.uint8]:
    """Return the decoded images as a memory map, shape (N, image_size, image_size, 3), uint8.

    Row i equals `decode(paths[i], spec)`. A file is read and hashed when it is first seen and after
    each change (see `data/checksums.py`), and decoded when no cache in `directory` holds it. The
    array cannot be written to.

    Args:
        paths: the image files.
        spec: what to make of them.
        directory: holds all caches; made if absent.

    Raises:
        DataError: no path; images that cannot be used, all in one message; too little room on the
            disk (found before the build), or a folder that cannot be written.
    """
    paths = [str(path) for path in paths]
    if not paths:
        raise DataError("no images to open: the table is empty. Check data.root.")
    # Pillow releases may differ in the last bit of a pixel; the cache must equal decode().
    index = {
        "pillow": PIL.__version__,
        **spec.as_dict(),
        "sha256": checksums(paths, directory=Path(directory)),
    }
    folder = Path(directory) / name_of(index)

    with suppress(FileNotFoundError, DataError):  # looked at again under the lock
        return read_folder(folder)[1]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent):
            try:
                return read_folder(folder)[1]  # another process has built it meanwhile
            except FileNotFoundError:
                pass
            except DataError as damage:
                logger.warning("%s Building it anew.", damage)
            build(folder, paths, spec, index)
            return read_folder(folder)[1]
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise DataError(
            f"paths.cache={directory}: the image cache cannot be written ({error}). Make room or "
            "choose another folder with paths.cache=DIR."
        ) from error


def _locked(directory: Path) -> AbstractContextManager[object]:
    lock = FileLock(directory / "building.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        logger.info("waiting for another process that builds an image cache in %s", directory)
        return lock.acquire()
