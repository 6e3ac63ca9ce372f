"""Builds the folder of a cache: decodes what no earlier cache holds and copies the rest."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dermalyze.data.cache_folder import ARRAY, INDEX, NAME, Index, read_folder, shape_of
from dermalyze.data.checksums import checksums
from dermalyze.data.decode import PreprocessSpec, decode
from dermalyze.data.threads import in_threads
from dermalyze.errors import DataError

logger = logging.getLogger(__name__)

SHOWN = 10
# Only a folder of this name is ever taken for the remains of a killed build.
_BUILDING = ".building"
_REMAINS = re.compile(NAME.pattern + re.escape(_BUILDING))


def build(folder: Path, paths: list[str], spec: PreprocessSpec, index: Index) -> None:
    """Fill a folder of another name and rename it when all is on the disk.

    A row is copied where a whole cache beside this one holds a file of the same checksum, decoded
    in the same way.

    Args:
        folder: the cache to build, named by its index; one that is there is damaged and removed.
        paths: the image files.
        spec: what to make of them.
        index: how they are decoded, and their checksums in order.

    Raises:
        DataError: images that cannot be used, all in one message; too little room on the disk.
        OSError: the folder cannot be written.
    """
    for remains in folder.parent.iterdir():
        if _REMAINS.fullmatch(remains.name):
            shutil.rmtree(remains)
    if folder.exists():
        shutil.rmtree(folder)
    _check_room(folder.parent, math.prod(shape_of(index)))

    building = folder.with_name(folder.name + _BUILDING)
    building.mkdir()
    try:
        start = time.perf_counter()
        known = _known_rows(folder.parent, index)
        with (building / ARRAY).open("wb") as array:
            np.lib.format.write_array_header_1_0(
                array, {"descr": "|u1", "fortran_order": False, "shape": shape_of(index)}
            )
            decoded = _write_rows(array, paths, spec, index["sha256"], known)
            _refuse_changed(paths, index["sha256"], folder.parent)
            _to_disk(array)
            size = array.tell()
        seconds = time.perf_counter() - start
        with (building / INDEX).open("w", encoding="utf-8") as text:
            json.dump({**index, "bytes": size}, text)
            _to_disk(text)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    logger.info(
        "decoded %d images in %.1f s (%.0f images/s) to %s; %d were copied from earlier caches",
        decoded,
        seconds,
        decoded / seconds,
        folder,
        len(paths) - decoded,
    )


def _known_rows(directory: Path, index: Index) -> dict[str | None, NDArray[np.uint8]]:
    """Return rows of earlier caches by their files' checksums, those that this index asks for."""
    wanted = set(index["sha256"])
    known: dict[str | None, NDArray[np.uint8]] = {}
    for folder in directory.iterdir():
        if not NAME.fullmatch(folder.name):
            continue
        try:
            earlier, images = read_folder(folder)
        except DataError:  # of use to nobody; told when it is opened itself
            continue
        if {**earlier, "sha256": None} == {**index, "sha256": None}:
            rows = zip(earlier["sha256"], images, strict=True)
            known |= {checksum: row for checksum, row in rows if checksum in wanted}
    return known


def _write_rows(
    array: BinaryIO,
    paths: list[str],
    spec: PreprocessSpec,
    checksums: list[str | None],
    known: Mapping[str | None, NDArray[np.uint8]],
) -> int:
    """Write all images in order and return how many of them were decoded.

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

    news = [position for position, checksum in enumerate(checksums) if checksum not in known]
    problems: list[str] = []
    with closing(in_threads(pixels_or_problem, news, "decoding images")) as decoded:
        for checksum in checksums:
            image = known[checksum] if checksum in known else next(decoded)
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
    return len(news)


def _refuse_changed(paths: list[str], before: list[str | None], directory: Path) -> None:
    """See that files which were hashed and then decoded held the same both times."""
    after = checksums(paths, directory=directory)
    changed = [path for path, *both in zip(paths, before, after, strict=True) if len({*both}) > 1]
    if changed:
        raise DataError(
            f"{len(changed)} images changed while they were read, such as {changed[0]}. Start "
            "again once nothing writes into their folder."
        )


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DataError(
            f"paths.cache={directory}: the image cache needs {needed} bytes ({needed / 1e9:.2f} "
            f"GB), {free} bytes are free. Make room, choose another folder with paths.cache=DIR, "
            "or a smaller data.image_size or data.cache_size."
        )


def _to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
