"""Which images a command was given: one, those of a folder, or those of a table; one by one."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from dermalyze.data.metadata_features import COLUMNS
from dermalyze.errors import DataError, nearest
from dermalyze.files import writable
from dermalyze.prediction.pictures import Given

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # of what `decode` reads
TABLES = (".csv", ".tsv")
PATH = "path"  # the column of a table that names the files


def listed_images(images: str) -> Iterator[Given]:
    """Yield the images of a file, a folder or a table, in order, without opening any.

    - A folder: the files with an ending of ENDINGS, those of its folders below, however deep, after
      its own, each by name. Hidden ones are left out, and links to folders are not followed. They
      are called by their path from the folder on.
    - A table, ending in .csv or .tsv: a row an image, its file in the column `path`, relative to
      the table's folder. What is known of it besides stands in age, sex and localization, where
      there are such columns, in any capitals. It is called as the table calls it.

    Raises:
        DataError: there is no such file or folder, one that cannot be read, a table with faults,
            or no image at all.
    """
    place = _at_home(images)
    if place.is_dir():
        found = _in_folder(place)
        none = f"no file that ends in {', '.join(ENDINGS)}, in any folder below it"
    elif not place.is_file():
        raise DataError(f"images={images}: there is no such file or folder.")
    elif place.suffix.lower() in TABLES:
        found, none = _in_table(place), "a header and no rows"
    else:
        found, none = iter([Given(writable(images), str(place), None)]), ""
    empty = True
    for given in found:
        empty = False
        yield given
    if empty:
        raise DataError(f"images={images}: {none}. Give a folder or table that holds images.")


def identity_of(images: str) -> dict[str, str]:
    """Return what tells one list from another: where it lies and, of a table, what it says.

    Raises:
        DataError: the table cannot be read.
    """
    place = _at_home(images).resolve()
    if place.suffix.lower() not in TABLES or not place.is_file():
        return {"given": writable(str(place))}
    try:
        content = place.read_bytes()
    except OSError as error:
        raise DataError(f"{images}: cannot be read: {error.strerror}.") from error
    return {"given": writable(str(place)), "table": hashlib.sha256(content).hexdigest()}


def _at_home(name: str) -> Path:
    """Return a path whose ~USER is that user's home; without such a user it is part of the name."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _in_folder(folder: Path) -> Iterator[Given]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}.") from error

    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(files):
            if name.startswith(".") or not name.lower().endswith(ENDINGS):
                continue
            path = Path(here, name)
            yield Given(writable(path.relative_to(folder).as_posix()), str(path), None)


def _in_table(table: Path) -> Iterator[Given]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = "\t" if first.count("\t") > first.count(",") else ","
            file.seek(0)
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(rows, [])]
            _check_header(table, header)
            known = {name.lower(): name for name in header if name.lower() in COLUMNS}
            for fields in rows:
                place = f"{table}:{rows.line_num}"
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise DataError(
                        f"{place}: {len(fields)} fields where the header has {len(header)}. Quote "
                        "values that hold a delimiter."
                    )
                values = dict(zip(header, fields, strict=True))
                if not values[PATH].strip():
                    raise DataError(f"{place}: names no file in the column {PATH!r}.")
                path = table.parent / _at_home(values[PATH])
                metadata = {column: values[name] for column, name in known.items()}
                yield Given(values[PATH], str(path), metadata or None)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a table in UTF-8: {error}.") from error


def _check_header(table: Path, header: list[str]) -> None:
    if PATH not in header:
        raise DataError(
            f"{table}: no column {PATH!r} that names the files.{nearest(PATH, header)} A folder of "
            "images needs no table: images=FOLDER."
        )
    named = [name.lower() if name.lower() in COLUMNS else name for name in header]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise DataError(f"{table}: columns that stand there twice: {', '.join(twice)}.")
