"""Files that are whole or not there: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # how one begins


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content`, so that `path` holds what it held before or all of it, whatever happens."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write, so that `path` holds what it held before until all of it is there."""
    writer = f"{os.getpid()}-{threading.get_ident()}"  # two threads may write one path at once
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def in_the_way(folder: Path) -> Path | None:
    """Return the file that stands where a folder, or one above it, is to be, None without one."""
    return next(
        (one for one in (folder, *folder.parents) if one.exists() and not one.is_dir()), None
    )


def write_json(path: Path, value: object) -> None:
    """Write plain containers as JSON; a NaN is refused, since JSON has none."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def spreadsheet_cell(text: str) -> str:
    """Return text for a CSV file that no spreadsheet program takes for a formula and runs.

    Names of files come from strangers: one that begins like a formula gets a ' before it
    (OWASP, "CSV Injection"), and so does one that looks as if it had got one.
    """
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def joined_codes(codes: Iterable[str], classes: Iterable[str]) -> str:
    """Return codes of some classes in one cell: a space between, or "; " where a class has one."""
    spaced = any(len(code.split()) > 1 for code in classes)
    return ("; " if spaced else " ").join(codes)


def writable(name: str) -> str:
    """Return a file's name as text that can be written; bytes that are no UTF-8 come as \\xNN."""
    return re.sub("[\ud800-\udfff]", lambda byte: f"\\x{ord(byte[0]) & 0xFF:02x}", name)


def text_of_cell(cell: str) -> str:
    """Return the text that `spreadsheet_cell` made a cell of."""
    return cell[1:] if cell[:1] == "'" and cell.lstrip("'").startswith(_FORMULA) else cell
