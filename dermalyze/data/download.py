"""HAM10000 by its DOI: downloaded from the Dataverse, checked against its record, unpacked.

The two archives of images have 1.37 and 1.40 GB: 4 minutes at 100 Mbit/s, half an hour at the
1.6 MB/s that the Dataverse often gives. Checking and unpacking take less than a minute more.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from dermalyze.data.fetch import Client, Patience
from dermalyze.data.manifest import (
    Checksum,
    File,
    Manifest,
    disagreement,
    faults,
    read_manifest,
    write_manifest,
)
from dermalyze.data.unpack import IMAGE_KINDS, unpack
from dermalyze.errors import DataError, nearest
from dermalyze.files import write_whole

logger = logging.getLogger(__name__)

DOI = "doi:10.7910/DVN/DBW86T"
PAGE = "https://doi.org/10.7910/DVN/DBW86T"
LICENCE = f"""\
HAM10000 is licensed under the Creative Commons Attribution-NonCommercial 4.0 International licence
(CC BY-NC 4.0): https://creativecommons.org/licenses/by-nc/4.0/legalcode
It may be used and shared with its citation, changes marked, and not for commercial purposes.
Its terms stand at {PAGE}
"""
CITATION = f"""\
Tschandl, P., Rosendahl, C. & Kittler, H. The HAM10000 dataset, a large collection of multi-source
dermatoscopic images of common pigmented skin lesions. Sci. Data 5, 180161 (2018),
doi:10.1038/sdata.2018.161. Data: {PAGE}
"""
NOTICES = {"LICENSE-HAM10000.txt": LICENCE, "CITATION-HAM10000.txt": CITATION}
USUAL_SPEEDS = (1.6e6, 12.5e6)  # bytes a second: the Dataverse at its slower, and 100 Mbit/s


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)


class _DataFile(_Part):
    """A file. Where the Dataverse has converted a table, `filename` and `filesize` are those of
    the conversion, and the checksum is nevertheless that of the upload.
    """

    id: int
    filename: str
    filesize: int | None = None
    checksum: dict[str, str] | None = None
    restricted: bool = False
    tabular_data: bool = False
    original_file_name: str | None = None
    original_file_format: str | None = None
    original_file_size: int | None = None

    def answers_to(self, name: str) -> bool:
        """Return whether a name means this file; one of the two may lack its ending."""
        names = {self.filename, self.original_file_name or self.filename}
        stems = {PurePosixPath(n).stem for n in names}
        return name in names | stems or PurePosixPath(name).stem in names


class _Entry(_Part):
    restricted: bool = False
    data_file: _DataFile


class _Version(_Part):
    version_number: int
    version_minor_number: int
    files: list[_Entry]


class _Dataset(_Part):
    latest_version: _Version


class _Record(_Part):
    """The Dataverse's answer to `/api/datasets/:persistentId/`, as far as it is used."""

    data: _Dataset


def download_files(
    *,
    root: str,
    server: str,
    files: Sequence[str],
    attempts: int,
    backoff: float,
    longest_wait: float,
    timeout: float,
    keep_archives: bool,
    max_files: int,
    max_bytes: int,
    max_ratio: float,
) -> Manifest:
    """Download files of HAM10000's record, check them, unpack archives; go on after a break.

    `A.zip` is unpacked into the folder `A`. A table is taken as it was uploaded, for the
    checksum in the record is of the upload and not of the Dataverse's conversion to tabs. Beside
    the data stand the manifest, the licence and the citation. Files that are whole are not
    downloaded again, and when all are, the server is not asked at all. A second process waits.

    Args:
        root: the folder to download into, made if absent.
        server: the Dataverse, such as `https://dataverse.harvard.edu`.
        files: names in the record; the ending of a table may be left out.
        attempts: for each file, the first one included.
        backoff: seconds before a second attempt, doubled before each further one.
        longest_wait: seconds between two attempts.
        timeout: seconds without a byte after which an attempt is over.
        keep_archives: whether to keep what was downloaded here and then unpacked.
        max_files: members that an archive may have.
        max_bytes: that an archive may unpack to.
        max_ratio: of a member's bytes to its bytes in the archive.

    Raises:
        DataError: the server cannot be reached or refuses; the record lacks a file or its
            checksum; a file has another checksum; an archive is damaged or unsafe; files that
            are there already differ; too little room on the disk (found before the download).
    """
    folder = Path(root).expanduser()
    unpack_images = partial(
        unpack, kinds=IMAGE_KINDS, max_files=max_files, max_bytes=max_bytes, max_ratio=max_ratio
    )
    try:
        whole = _whole_files(folder)
        if _answered(files, whole):  # before the lock, which a read-only folder does not allow
            logger.info("%s: everything is there and as it was downloaded", folder)
            return Manifest(doi=DOI, files=whole)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            _locked(folder),
            closing(Client(Patience(attempts, backoff, longest_wait, timeout))) as client,
        ):
            whole = _whole_files(folder)  # another process may have brought them meanwhile
            if _answered(files, whole):
                return Manifest(doi=DOI, files=whole)
            record = _read_record(client, server.rstrip("/"), files)
            there = {(file.name, file.checksum) for file in whole}
            missing = [file for file in record if (file.name, file.checksum) not in there]
            _check_room(folder, missing)
            logger.info("%s%s", LICENCE, CITATION)
            for name, text in NOTICES.items():
                write_whole(folder / name, text)
            brought = {file.name for file in missing if (folder / file.name).exists()}
            for file in missing:
                got = _get(client, folder, file, unpack_images)
                whole = (*(other for other in whole if other.name != file.name), got)
                write_manifest(folder, Manifest(doi=DOI, files=whole))
                if got.unpacked and not keep_archives and got.name not in brought:
                    (folder / got.name).unlink()
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise DataError(
            f"{folder}: cannot be written ({error}). Make room, or choose another data.root."
        ) from error
    return Manifest(doi=DOI, files=whole)


def _whole_files(folder: Path) -> tuple[File, ...]:
    """Return the files of the folder's manifest of which nothing is missing.

    Raises:
        DataError: some have changed. That is somebody's work, or damage: it is not written over.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return ()
    missing, changed = faults(folder, manifest.files)
    if changed:
        raise DataError(disagreement(folder, missing, changed))
    gone = set(missing)
    return tuple(f for f in manifest.files if gone.isdisjoint(f.unpacked or [f.name]))


def _answered(names: Sequence[str], files: Sequence[File]) -> bool:
    return all(any(file.answers_to(name) for file in files) for name in names)


def _locked(folder: Path) -> AbstractContextManager[object]:
    lock = FileLock(folder / ".download.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        logger.info("waiting for another process that downloads into %s", folder)
        return lock.acquire()


def _read_record(client: Client, server: str, names: Sequence[str]) -> list[File]:
    """Return what the Dataverse knows of the files, in the order of the names."""
    url = f"{server}/api/datasets/:persistentId/?persistentId={DOI}"
    try:
        latest = _Record.model_validate_json(client.get(url)).data.latest_version
    except ValidationError as error:
        raise DataError(
            f"{url}: no record of a dataset came ({error}). Is {server} a Dataverse?"
        ) from error
    version = f"{latest.version_number}.{latest.version_minor_number}"
    files: list[File] = []
    problems: list[str] = []
    for name in names:
        found = [entry for entry in latest.files if entry.data_file.answers_to(name)]
        known = [entry.data_file.filename for entry in latest.files]
        if len(found) != 1:
            problems.append(f"{name}: {len(found)} files of this name.{nearest(name, known)}")
        elif found[0].restricted or found[0].data_file.restricted:
            problems.append(f"{name}: restricted; ask for it at {PAGE}")
        else:
            try:
                files.append(_described(found[0].data_file, name, version, server))
            except ValidationError:
                checksum = found[0].data_file.checksum
                problems.append(f"{name}: checksum {checksum}, so it could not be verified")
    if problems:
        raise DataError("\n".join([f"{url}, version {version}, cannot be used:", *problems]))
    return files


def _described(file: _DataFile, name: str, version: str, server: str) -> File:
    url = f"{server}/api/access/datafile/{file.id}"
    ending, size = PurePosixPath(file.filename).suffix, file.filesize
    if file.tabular_data or file.original_file_format:
        url += "?format=original"
        size = file.original_file_size
        ending = PurePosixPath(file.original_file_name or "").suffix
        if not ending[1:].isalnum():
            ending = ".csv" if file.original_file_format == "text/csv" else ""
    return File(
        name=name if name.endswith(ending) else name + ending,
        record_name=file.filename,
        version=version,
        url=url,
        size=size,
        checksum=Checksum.model_validate(file.checksum),
    )


def _check_room(folder: Path, files: Sequence[File]) -> None:
    """Refuse a download that the disk cannot hold, with its images, and say how long it takes."""
    archives = sum(file.size or 0 for file in files if file.name.endswith(".zip"))
    remaining = sum(max((file.size or 0) - _arrived(folder, file), 0) for file in files)
    needed, free = remaining + archives, shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: the download and its images need {needed / 1e9:.2f} GB and the disk has "
            f"{free / 1e9:.2f} GB free. Make room, or choose another data.root."
        )
    slow, fast = (remaining / speed / 60 for speed in USUAL_SPEEDS)
    logger.info(
        "%d files, %.2f GB to download into %s: %.0f min at 100 Mbit/s, %.0f min when the "
        "Dataverse is slow. If it breaks off, run it again: it goes on there",
        *(len(files), remaining / 1e9, folder, fast, slow),
    )


def _arrived(folder: Path, file: File) -> int:
    paths = (folder / file.name, folder / f"{file.name}.part")
    return sum(path.stat().st_size for path in paths if path.exists())


def _get(
    client: Client,
    folder: Path,
    file: File,
    unpack_images: Callable[[Path, Path], dict[str, str]],
) -> File:
    """Download a file, unless it is there, and unpack it, if it is an archive."""
    path = folder / file.name
    if not path.exists():
        client.fetch(file.url, path, size=file.size, checksum=file.checksum)
    elif (found := file.checksum.of(path)) != file.checksum.value.lower():
        raise DataError(
            f"{path}: is there already and not the file of the record: {file.checksum.type} "
            f"{found}, expected {file.checksum.value}. It was cut off or changed: move it away "
            "and run this again."
        )
    if path.suffix != ".zip":
        return file
    images = path.with_suffix("")
    sums = unpack_images(path, images)
    unpacked = {f"{images.name}/{name}": sums[name] for name in sorted(sums)}
    return file.model_copy(update={"unpacked": unpacked})
