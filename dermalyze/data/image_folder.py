"""The folder of a dataset: one walk over it finds the tables and one file for each image id."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PureWindowsPath
from typing import Literal

import pandas as pd

from dermalyze.data.metadata_file import Report, at
from dermalyze.errors import DataError

EXTENSIONS = frozenset({"jpg", "jpeg", "png"})
OnMissing = Literal["error", "drop"]
DEPTH = 2  # folders below the root: Kaggle's copy holds part_1/part_1


@dataclass(frozen=True)
class Match:
    """What was found for a number of image ids."""

    paths: dict[str, str]  # image id -> absolute path
    unsafe: tuple[str, ...]  # ids that are paths rather than names; not looked up
    missing: tuple[str, ...]  # ids without a file
    copies: tuple[str, ...]  # ids with several files of equal bytes; the first one is taken
    clashes: tuple[str, ...]  # why an id cannot be told to one file, ready to print


@dataclass
class ImageFolder:
    """An index of the files below `root`. Nothing but folders has been opened to build it."""

    root: Path
    searched: dict[str, None] = field(default_factory=dict)  # folders with images, in order
    images: dict[str, list[str]] = field(default_factory=dict)  # id without case -> paths
    other_files: list[Path] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # links out, unreadable folders; with reason

    def holds(self, path: Path) -> bool:
        """Return whether the path, with all links followed, lies below the root."""
        try:
            return path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):  # links that lead in a circle
            return False

    def match(self, image_ids: Iterable[str]) -> Match:
        """Look image ids up without regard to case. Only files that share an id are read."""
        paths: dict[str, str] = {}
        unsafe: list[str] = []
        missing: list[str] = []
        copies: list[str] = []
        clashes: list[str] = []
        for image_id in image_ids:
            if any(part in image_id for part in ("/", "\\", "..")) or (
                PureWindowsPath(image_id).drive
            ):
                unsafe.append(image_id)
                continue
            candidates = self.images.get(image_id.casefold(), [])
            if not candidates:
                missing.append(image_id)
                continue
            paths[image_id] = candidates[0]
            if len(candidates) == 1:
                continue
            if reason := _difference(candidates):
                clashes.append(f"{image_id}: {reason}: {', '.join(candidates)}")
            else:
                copies.append(image_id)
        return Match(paths, tuple(unsafe), tuple(missing), tuple(copies), tuple(clashes))

    def without(self, image_ids: Iterable[str]) -> tuple[str, ...]:
        """Return the ids of the images that are none of the given ones, sorted."""
        known = {image_id.casefold() for image_id in image_ids}
        return tuple(sorted(Path(p[0]).stem for key, p in self.images.items() if key not in known))


def open_folder(
    root: str, *, holds_images: Callable[[tuple[str, ...]], bool], how_to_get: str
) -> ImageFolder:
    """Walk a folder and those below it, two deep, and index what lies there.

    Hidden files and links that leave the root are not followed.

    Args:
        root: the folder; `~` is expanded.
        holds_images: whether images are looked for in a folder, given the names of the folders
            from the root (which is the empty tuple) down to it, in lower case.
        how_to_get: said when the folder is not there.
    """
    folder = Path(root).expanduser().resolve()
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder}: {state} (data.root={root}). {how_to_get}")
    index = ImageFolder(folder)
    _visit(index, folder, (), holds_images)
    return index


def find_table(
    index: ImageFolder,
    given: str | None,
    *,
    names: Sequence[str],
    option: str,
    how_to_get: str,
) -> Path:
    """Return the given table, or the only one below the root of one of the names.

    Args:
        index: the dataset's folder.
        given: a path, absolute or relative to the root or to the working folder; None: search.
        names: its possible names, with `*` for anything, without regard to case.
        option: the option by which the user names the table, for messages.
        how_to_get: said when there is none.
    """
    if given is not None:
        places = list(
            dict.fromkeys(start / Path(given).expanduser() for start in (index.root, Path.cwd()))
        )
        found = list(dict.fromkeys(place.resolve() for place in places if place.is_file()))
        looked = f"no file at {' or '.join(map(str, places))}"
    else:
        found = find_files(index, names)
        looked = (
            f"no file {' or '.join(names)} in {index.root} or its folders. A table elsewhere is "
            f"named by {option}=FILE"
        )
        looked = "; ".join([looked, *index.refused])
    if not found:
        raise DataError(f"{index.root}: {looked}. {how_to_get}")
    if len(found) > 1:
        raise DataError(
            f"{index.root}: which table? {', '.join(map(str, found))}. Name one by {option}=FILE."
        )
    return found[0]


def find_files(index: ImageFolder, names: Sequence[str]) -> list[Path]:
    """Return the files below the root whose names fit, of those with equal bytes the first."""
    found: list[Path] = []
    for path in index.other_files:
        if not any(fnmatchcase(path.name.casefold(), name.casefold()) for name in names):
            continue
        if not index.holds(path):
            raise DataError(f"{path}: a link out of {index.root}. Copy the file there.")
        if path.is_file() and not any(filecmp.cmp(path, other, shallow=False) for other in found):
            found.append(path)
    return found


def join_images(
    rows: pd.DataFrame, folder: ImageFolder, report: Report, on_missing: OnMissing
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Add `path`; return the rows that have an image and the ids of those that have none."""
    match = folder.match(rows["image_id"][rows["image_id"] != ""])
    report.problem(
        "values of image_id that could lead out of the folder",
        "An image_id is a file's name without its ending",
        at(rows[rows["image_id"].isin(match.unsafe)], "image_id"),
    )
    report.problem(
        "folders and links that cannot be followed", "Put the files there themselves, readable",
        folder.refused,
    )  # fmt: skip
    report.problem("images with several files", "Keep one of each", match.clashes)
    report.tell("note", "copies", "images in several equal files, one is used", match.copies)
    rowless = folder.without(rows["image_id"])
    report.tell("warning", "images_without_row", "images without a row, not used", rowless)
    searched = ", ".join(folder.searched)
    if on_missing == "drop":
        what = f"rows without an image in {searched}, left out"
        report.tell("warning", "missing_images", what, match.missing)
    else:
        report.problem(
            f"rows without an image in {searched}",
            "Add the images, or leave the rows out by data.on_missing=drop",
            at(rows[rows["image_id"].isin(match.missing)], "image_id"),
        )
    rows = rows.assign(path=rows["image_id"].map(match.paths))
    return rows[rows["path"].notna()], match.missing


def _visit(
    index: ImageFolder,
    folder: Path,
    below: tuple[str, ...],
    holds_images: Callable[[tuple[str, ...]], bool],
) -> None:
    searched = holds_images(below)
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if searched:
            index.refused.append(f"{folder}: cannot be read: {error.strerror}")
        return
    if searched:
        index.searched[str(folder)] = None
    for entry in ordered:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        image_id, _, extension = entry.name.rpartition(".")
        is_image = extension.lower() in EXTENSIONS and image_id != ""
        inner = (*below, entry.name.casefold())
        path = Path(entry.path)
        is_folder = _is_folder(entry)
        if entry.is_symlink():
            if index.holds(path):
                path = path.resolve()  # so that a file met twice is one candidate
            elif (searched and is_image) or (is_folder and holds_images(inner)):
                index.refused.append(f"{path}: a link out of {index.root}")
                continue
            elif is_folder:
                continue
        if is_folder:
            if len(below) < DEPTH:
                _visit(index, path, inner, holds_images)
        elif not is_image:
            index.other_files.append(Path(entry.path))
        elif searched and entry.is_file():
            candidates = index.images.setdefault(image_id.casefold(), [])
            if str(path) not in candidates:
                candidates.append(str(path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle, or to a locked place
        return False


def _difference(candidates: list[str]) -> str:
    """Return why files of one image id are not copies of one file, or the empty text."""
    paths = [Path(candidate) for candidate in candidates]
    if len({path.suffix.lower() for path in paths}) > 1:
        return "several extensions"
    if len({path.parent for path in paths}) < len(paths):
        return "several spellings in one folder"
    if not all(filecmp.cmp(paths[0], path, shallow=False) for path in paths[1:]):
        return "files differ"
    return ""
