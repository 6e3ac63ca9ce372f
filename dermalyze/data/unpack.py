"""Zip archives of images, unpacked flat into one folder that nothing can leave.

An archive from elsewhere may name members `../../file`, pack a terabyte into a megabyte, or be cut
off. Everything that its directory can tell is checked before the first byte is written; the rest
(checksums of members) while writing into a hidden folder, which takes its real name at the end.
"""

from __future__ import annotations

import filecmp
import hashlib
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path, PureWindowsPath

from tqdm import tqdm

from dermalyze.data.metadata_file import listed
from dermalyze.errors import DataError

IMAGE_KINDS = frozenset({".jpg", ".jpeg", ".png"})
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED = 0x1  # of a member's flags
_CHUNK = 1 << 20  # bytes


def unpack(
    archive: Path,
    folder: Path,
    *,
    kinds: Collection[str],
    max_files: int,
    max_bytes: int,
    max_ratio: float,
) -> dict[str, str]:
    """Unpack the members of some kinds into a folder and return {file's name: its sha256, in hex}.

    Folders inside the archive are left out: `a/b/ISIC_1.jpg` becomes `ISIC_1.jpg`. Members of
    other kinds, hidden ones and `__MACOSX` are not written. The folder appears whole or not at
    all. If it is there already, missing files are added and none is ever changed, so that a
    second run is harmless. One process at a time.

    Args:
        archive: the zip file.
        folder: where the files go; its parent must exist.
        kinds: endings of the files to write, in lower case with the dot.
        max_files: members of all kinds that an archive may have.
        max_bytes: that all members together may unpack to.
        max_ratio: of a member's bytes to its bytes in the archive.

    Raises:
        DataError: the archive is truncated, damaged or encrypted; it is over a limit; a member
            would leave the folder; two members would be one file; a file in the folder differs
            from the archive's; too little room on the disk. Nothing has been added then.
    """
    staging = folder.with_name(f".{folder.name}.unpacking")
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            _check(archive, members, max_files, max_bytes, max_ratio)
            wanted = _wanted(archive, members, kinds)
            _check_room(archive, folder, sum(member.file_size for member in wanted.values()))
            if staging.exists():  # left by a process that was killed
                shutil.rmtree(staging)
            staging.mkdir()
            sums = {
                name: _write(opened, member, staging / name)
                for name, member in tqdm(wanted.items(), archive.name, unit="file", disable=None)
            }
        _settle(staging, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{archive}: not a whole zip archive ({error}). It is truncated or damaged: remove it "
            "and download it again."
        ) from error
    except OSError as error:
        raise DataError(
            f"{archive} cannot be unpacked into {folder} ({error}). Make room, or see to the "
            "rights of both."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return sums


def _check(
    archive: Path,
    members: Sequence[zipfile.ZipInfo],
    max_files: int,
    max_bytes: int,
    max_ratio: float,
) -> None:
    """Refuse what no archive of images has. Sizes here are binding: zipfile reads no byte more."""
    unsafe = [f"{m.orig_filename!r}: {why}" for m in members if (why := _unsafe(m))]
    problems = listed("members that could harm", "Do not use this archive", unsafe)
    if len(members) > max_files:
        problems.append(f"{len(members)} members, over the limit of {max_files} (max_files)")
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        problems.append(f"unpacks to {total} bytes, over the limit of {max_bytes} (max_bytes)")
    dense = [
        f"{member.filename!r}: {member.compress_size} bytes become {member.file_size}"
        for member in members
        if member.file_size > max_ratio * max(member.compress_size, 1)
    ]
    problems += listed(
        f"members packed denser than {max_ratio:g} to 1, as no image is (max_ratio)",
        "Do not use this archive",
        dense,
    )
    # Members that share their bytes are how a small archive passes the limits above many times.
    if sum(member.compress_size for member in members) > archive.stat().st_size:
        problems.append("its members take more room than the archive has: they overlap")
    if problems:
        raise DataError("\n".join([f"{archive}: refused, nothing was unpacked.", *problems]))


def _unsafe(member: zipfile.ZipInfo) -> str | None:
    """Return why a member is refused, or None. Names are read as Unix and as Windows do."""
    name = member.orig_filename  # zipfile cuts `filename` at a NUL
    path = PureWindowsPath(name)  # parts at both kinds of slash
    kind = stat.S_IFMT(member.external_attr >> 16)
    if "\0" in name:
        return "a NUL in its name"
    if path.drive or path.root:
        return "an absolute path"
    if ".." in path.parts:
        return "a path that leads out of the folder"
    if ":" in name:
        return "a colon in its name"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or a device"
    if member.flag_bits & _ENCRYPTED:
        return "encrypted"
    if member.compress_type not in _METHODS:
        return f"compression method {member.compress_type}"
    return None


def _wanted(
    archive: Path, members: Sequence[zipfile.ZipInfo], kinds: Collection[str]
) -> dict[str, zipfile.ZipInfo]:
    """Return {name in the folder: member} of the members to write."""
    wanted: list[tuple[str, zipfile.ZipInfo]] = []
    for member in members:
        *folders, name = PureWindowsPath(member.filename).parts or ("",)
        hidden = name.startswith(".") or "__MACOSX" in folders
        if not (member.is_dir() or hidden) and Path(name).suffix.lower() in kinds:
            wanted.append((name, member))
    if not wanted:
        raise DataError(
            f"{archive}: none of its {len(members)} members is a file of the kinds "
            f"{', '.join(sorted(kinds))}. Is it the right archive?"
        )
    # Without regard to case, as disks of Windows and macOS have it.
    seen = Counter(name.casefold() for name, _ in wanted)
    twice = [repr(m.filename) for name, m in wanted if seen[name.casefold()] > 1]
    if problems := listed("members that would be one file", "Do not use this archive", twice):
        raise DataError("\n".join([f"{archive}: refused, nothing was unpacked.", *problems]))
    return dict(wanted)


def _check_room(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise DataError(
            f"{folder}: unpacking {archive.name} needs {needed / 1e9:.2f} GB and the disk has "
            f"{free / 1e9:.2f} GB free. Make room, or choose another folder."
        )


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> str:
    """Write one member, whose CRC zipfile checks at its end, and return its sha256."""
    digest = hashlib.sha256()
    with archive.open(member) as source, path.open("xb") as target:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def _settle(staging: Path, folder: Path) -> None:
    """Give the unpacked files their place; those that are there already must be the same."""
    if not folder.exists():
        staging.rename(folder)
        return
    there = [path.name for path in staging.iterdir() if (folder / path.name).exists()]
    _, differing, unreadable = filecmp.cmpfiles(staging, folder, there, shallow=False)
    if problems := listed(
        "files that are there already and differ from the archive's",
        "Nothing was changed. Move them away and run this again",
        sorted(differing + unreadable),
    ):
        raise DataError("\n".join([f"{folder}: not filled.", *problems]))
    for name in {path.name for path in staging.iterdir()}.difference(there):
        (staging / name).rename(folder / name)
