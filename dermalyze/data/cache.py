"""Decoded images as one memory-mapped uint8 array, made once and shared by all runs.

A cache is keyed by what the files hold and how they are decoded, not by where they lie. A changed
file, another image size or another Pillow therefore makes a new one, and a copy of the data set
finds the old one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

import numpy as np
import PIL
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm import tqdm

from dermalyze.data.decode import PreprocessSpec, decode
from dermalyze.errors import DataError

logger = logging.getLogger(__name__)

ARRAY = "images.npy"
INDEX = "index.json"
SHOWN = 10
# Only a folder of this name is ever taken for the remains of a killed build.
_BUILDING = ".building"
_REMAINS = re.compile(rf"[0-9a-f]{{32}}{re.escape(_BUILDING)}")

Item = TypeVar("Item")
Result = TypeVar("Result")


def open_images(
    paths: Sequence[str], *, spec: PreprocessSpec, directory: str | Path
) -> NDArray[np.uint8]:
    """Return the decoded images as a memory map, shape (N, image_size, image_size, 3), uint8.

    Row i equals `decode(paths[i], spec)`. Every file is read and hashed at each call; decoding is
    done at the first. Writing to the array changes this process's copy and never the file.

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
    checksums = list(_in_threads(_checksum, paths, "checking images"))
    # Pillow releases may differ in the last bit of a pixel; the cache must equal decode().
    index = {"pillow": PIL.__version__, **spec.as_dict(), "sha256": checksums}
    key = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(directory) / key

    with suppress(FileNotFoundError, DataError):  # looked at again under the lock
        return _open(folder, index)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent):
            try:
                return _open(folder, index)  # another process has built it meanwhile
            except FileNotFoundError:
                pass
            except DataError as damage:
                logger.warning("%s Building it anew.", damage)
            _build(folder, paths, spec, index)
            return _open(folder, index)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise DataError(
            f"paths.cache={directory}: the image cache cannot be written ({error}). Make room or "
            "choose another folder with paths.cache=DIR."
        ) from error


def _checksum(path: str) -> str | None:
    """Return the file's sha256; None for a file that cannot be read, of which decode will tell."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


def _in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], title: str
) -> Iterator[Result]:
    # Threads, because hashing and Pillow's decoding run outside the GIL: 600 x 450 JPEGs to 224 on
    # two cores make 230 images/s one after another, 530 in threads, 440 in two forked processes.
    pool = ThreadPoolExecutor()
    try:
        results = pool.map(function, items)
        yield from tqdm(results, total=len(items), desc=title, unit="image", disable=None)
    finally:
        pool.shutdown(cancel_futures=True)


def _locked(directory: Path) -> AbstractContextManager[object]:
    lock = FileLock(directory / "building.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        logger.info("waiting for another process that builds an image cache in %s", directory)
        return lock.acquire()


def _open(folder: Path, index: dict[str, Any]) -> NDArray[np.uint8]:
    """Return the array of a whole cache; FileNotFoundError: no cache; DataError: a damaged one."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    shape = _shape(index)
    try:
        about = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if {name: about[name] for name in index} != index:
            raise ValueError(f"{INDEX} is of other images")
        size = (folder / ARRAY).stat().st_size
        if size != about["bytes"]:
            raise ValueError(f"{ARRAY} has {size} bytes, expected {about['bytes']}")
        images: NDArray[np.uint8] = np.load(folder / ARRAY, mmap_mode="c", allow_pickle=False)
        if images.dtype != np.uint8 or images.shape != shape:
            raise ValueError(f"{ARRAY} holds {images.dtype} {images.shape}, expected uint8 {shape}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: a damaged image cache ({error}).") from error
    return images


def _shape(index: dict[str, Any]) -> tuple[int, int, int, int]:
    return len(index["sha256"]), index["image_size"], index["image_size"], 3


def _build(folder: Path, paths: list[str], spec: PreprocessSpec, index: dict[str, Any]) -> None:
    """Decode into a folder of another name and rename it when all is on the disk."""
    for remains in folder.parent.iterdir():
        if _REMAINS.fullmatch(remains.name):
            shutil.rmtree(remains)
    if folder.exists():
        shutil.rmtree(folder)  # damaged
    _check_room(folder.parent, math.prod(_shape(index)))

    building = folder.with_name(folder.name + _BUILDING)
    building.mkdir()
    try:
        start = time.perf_counter()
        with (building / ARRAY).open("wb") as array:
            np.lib.format.write_array_header_1_0(
                array, {"descr": "|u1", "fortran_order": False, "shape": _shape(index)}
            )
            _decode_to(array, paths, spec, index["sha256"])
            _to_disk(array)
            size = array.tell()
        seconds = time.perf_counter() - start
        with (building / INDEX).open("w", encoding="utf-8") as text:
            json.dump({**index, "bytes": size}, text)
            _to_disk(text)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    rate = len(paths) / seconds
    logger.info(
        "decoded %d images in %.1f s (%.0f images/s) to %s", len(paths), seconds, rate, folder
    )


def _decode_to(
    array: BinaryIO, paths: list[str], spec: PreprocessSpec, checksums: list[str | None]
) -> None:
    """Write all images in order.

    Through write() and not through a writable memory map: on a full disk or an exhausted quota the
    former raises OSError, the latter kills the process with SIGBUS.
    """

    def pixels_or_problem(position: int) -> NDArray[np.uint8] | DataError:
        try:
            image = decode(paths[position], spec)
        except DataError as error:
            return error
        if checksums[position] is None:
            return DataError(
                f"{paths[position]}: came into being during this very start. Start again."
            )
        return image

    problems: list[str] = []
    for image in _in_threads(pixels_or_problem, range(len(paths)), "decoding images"):
        if isinstance(image, DataError):
            problems.append(str(image))
        elif not problems:
            array.write(image.tobytes())
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError(
            f"{len(problems)} of {len(paths)} images cannot be used:\n  - "
            + "\n  - ".join(problems[:SHOWN] + more)
        )


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DataError(
            f"paths.cache={directory}: the image cache needs {needed} bytes ({needed / 1e9:.2f} "
            f"GB), {free} bytes are free. Make room, choose another folder with paths.cache=DIR, "
            "or a smaller data.image_size."
        )


def _to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
