"""What was downloaded, from where, with which checksums: `manifest.json` beside the data.

The chain is: the Dataverse's record vouches for an archive, the archive for its images; the
manifest keeps both links, so that the images can be checked when the archive is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from dermalyze.data.metadata_file import listed
from dermalyze.errors import DataError
from dermalyze.files import write_whole

MANIFEST = "manifest.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Checksum(_Part):
    """A checksum by the name that the Dataverse gives to its kind."""

    type: Literal["MD5", "SHA-1", "SHA-256", "SHA-512"]
    value: str

    def of(self, path: Path) -> str:
        """Return the same kind of checksum of a file, in hex."""
        kind = self.type.replace("-", "").lower()
        with path.open("rb") as file:
            # Against damage, not against attackers: some systems forbid MD5 for the latter.
            digest = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False))
        return digest.hexdigest()

    def fits(self, path: Path) -> bool:
        """Return whether a file has this checksum."""
        return self.of(path) == self.value.lower()


class File(_Part):
    """A file of the record.

    Attributes:
        name: of the file in the data's folder.
        record_name: the record's name for it. The two differ for a table that the Dataverse has
            converted: its upload is taken, since only of that the record tells the checksum.
        version: of the dataset's record, such as "4.0".
        url: gives the bytes that the checksum is of.
        size: of these bytes; None where the record does not tell.
        checksum: from the record.
        unpacked: {path below the data's folder: sha256, in hex}; empty for what is no archive.
    """

    name: str
    record_name: str
    version: str
    url: str
    size: int | None
    checksum: Checksum
    unpacked: dict[str, str] = {}

    def answers_to(self, name: str) -> bool:
        """Return whether this is the file that is asked for by a name, with its ending or not."""
        return name in (self.name, Path(self.name).stem)


class Manifest(_Part):
    """The files that were downloaded, verified and unpacked.

    Attributes:
        doi: of the dataset.
        files: in the order of their download.
    """

    doi: str
    files: tuple[File, ...]


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a data folder, None if it has none.

    Raises:
        DataError: there is one and it cannot be read.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path}: cannot be read as a manifest ({error}). Remove it and download again: files "
            "that are there and whole are kept."
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a data folder, whole or not at all."""
    write_whole(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def verify(*, root: str) -> int:
    """Check every file of a downloaded data set and return how many there are.

    A picture that decodes may still be another one than was downloaded. All 10,015 images are
    read: seconds from a fast disk, a minute or two from a slow one.

    Args:
        root: the folder that was downloaded into.

    Raises:
        DataError: no manifest; files that are missing or differ from it, all in one message.
    """
    folder = Path(root).expanduser()
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(
            f"{folder / MANIFEST}: there is none, so nothing is known of how the files should be. "
            "data.download=true writes it."
        )
    missing, changed = faults(folder, manifest.files)
    if missing or changed:
        raise DataError(disagreement(folder, missing, changed))
    return sum(len(file.unpacked) or 1 for file in manifest.files)


def refuse_changed(
    folder: Path, paths: Sequence[str], sha256_of: Callable[[Sequence[str]], Sequence[str | None]]
) -> None:
    """Refuse images that can be read and are not those that were downloaded.

    A folder without a manifest was filled by hand: of its images nothing is known. Images that the
    manifest does not name are not looked at, nor are tables, in which a dx may have been corrected.

    Args:
        folder: of the data.
        paths: absolute, of its images.
        sha256_of: gives the checksum of each of some paths, in hex; None for what it cannot read.

    Raises:
        DataError: names them all, and how to get them back.
    """
    manifest = read_manifest(folder.expanduser())
    if manifest is None:
        return
    root = folder.expanduser().resolve()
    expected = {
        str(root / name): sha256
        for file in manifest.files
        for name, sha256 in file.unpacked.items()
    }
    known = [path for path in paths if path in expected]
    changed = [
        path
        for path, sha256 in zip(known, sha256_of(known), strict=True)
        if sha256 not in (None, expected[path])
    ]
    if changed:
        raise DataError(disagreement(folder, [], changed))


def faults(folder: Path, files: Sequence[File]) -> tuple[list[str], list[str]]:
    """Return the paths below the folder that are missing, and those that have changed."""
    expected = dict(_expected(files))
    missing = [name for name in expected if not (folder / name).is_file()]
    there = [name for name in expected if name not in set(missing)]
    with ThreadPoolExecutor() as pool:  # hashing runs outside the GIL
        fits = pool.map(lambda name: expected[name].fits(folder / name), there)
        shown = tqdm(fits, "checking", total=len(there), unit="file", disable=None)
        return missing, [name for name, good in zip(there, shown, strict=True) if not good]


def disagreement(folder: Path, missing: Sequence[str], changed: Sequence[str]) -> str:
    """Return the message about files of a folder that are not as its manifest says."""
    problems = listed(
        "files that are missing", "data.download=true brings them back", sorted(missing)
    )
    problems += listed(
        "files that differ from their checksum",
        "Move them away and download again: data.download=true brings back what was downloaded. "
        "Pictures that were changed on purpose belong in another folder",
        sorted(changed),
    )
    return "\n".join([f"{folder}: not as {MANIFEST} says.", *problems])


def _expected(files: Sequence[File]) -> Iterator[tuple[str, Checksum]]:
    """Yield (path below the folder, checksum) of all that is used; archives are not."""
    for file in files:
        if not file.unpacked:
            yield file.name, file.checksum
        for path, sha256 in file.unpacked.items():
            yield path, Checksum(type="SHA-256", value=sha256)
