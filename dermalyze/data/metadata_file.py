"""A comma- or tab-separated text file, read whole and checked before anything is made of it.

Values stay text: an id `NA` or `0012` means what it says. Each row keeps its line number, so that
whoever finds a fault in it later can say where it stands.
"""

from __future__ import annotations

import codecs
import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import pandas as pd

from dermalyze.errors import DataError

SHOWN = 10  # items of one problem that a message spells out; the rest is counted

# What people save or download in place of a text table, by its first bytes.
FOREIGN = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save it as CSV (UTF-8)",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"<": "a web page or XML; download the file itself again",
}
# UTF-32 stands first: its little-endian mark begins with UTF-16's.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True)
class MetadataFile:
    """The well-formed rows of a table, all values as text, and what is wrong with the others."""

    path: Path
    delimiter: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # each with as many fields as the header
    lines: tuple[int, ...]  # of each row, counted from 1
    problems: tuple[str, ...]  # malformed rows; the reader raises them together with its own

    def frame(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return the named columns as text, and `place`, the `file:line` of each row."""
        rows = pd.DataFrame(list(self.rows), columns=list(self.header), dtype=str)
        return rows[list(columns)].assign(place=[f"{self.path}:{line}" for line in self.lines])


@dataclass(frozen=True)
class Finding:
    """Something about a table that its user should know and that does not stop the run."""

    level: Literal["note", "warning"]
    kind: str
    message: str
    items: tuple[str, ...]  # all of them: `file:line, value`, or image ids


class Report:
    """What a reader has to say about a table: findings to keep, problems to raise together."""

    def __init__(self, file: MetadataFile) -> None:
        self.file = file
        self.findings: list[Finding] = []
        self.problems: list[str] = list(file.problems)
        if file.delimiter == "\t":
            message = f"{file.path} is separated by tabs and read as such"
            self.findings.append(Finding("note", "tab_separated", message, ()))

    def tell(
        self, level: Literal["note", "warning"], kind: str, what: str, items: Iterable[str]
    ) -> None:
        """Keep a finding about these items, unless there are none."""
        items = tuple(items)
        if items:
            self.findings.append(Finding(level, kind, f"{what}: {len(items)}", items))

    def note_layout(self, layout: str) -> None:
        """Keep a finding that says as what the table and its folder were recognised."""
        self.findings.append(Finding("note", "layout", f"layout: {layout}", ()))

    def problem(self, what: str, mend: str, items: Iterable[str]) -> None:
        """Remember that these items, unless there are none, forbid to use the table."""
        self.problems += listed(what, mend, list(items))

    def raise_problems(self) -> None:
        """Raise all problems in one DataError, if there are any."""
        if self.problems:
            raise DataError("\n".join([f"{self.file.path} cannot be used:", *self.problems]))


def at(rows: pd.DataFrame, column: str) -> list[str]:
    """Return `file:line, column 'value'` of each row of a frame that has `place`."""
    pairs = zip(rows["place"], rows[column], strict=True)
    return [f"{place}, {column} {value!r}" for place, value in pairs]


def listed(what: str, mend: str, items: Sequence[str]) -> list[str]:
    """Return a message that counts the items and shows the first of them; none for no items."""
    if not items:
        return []
    shown = [f"{what}: {len(items)}. {mend}.", *(f"  {item}" for item in items[:SHOWN])]
    if len(items) > SHOWN:
        shown.append(f"  ... and {len(items) - SHOWN} more")
    return ["\n".join(shown)]


def read_metadata_file(
    path: Path, *, needed: Sequence[str], or_needed: Sequence[str] = (), mend: str = ""
) -> MetadataFile:
    """Read a UTF-8 table (with or without byte order mark) that has the needed columns.

    The delimiter is the commoner of comma and tab in the header. Blank lines are skipped. A quoted
    value may not run over the end of its line: in such tables that is a forgotten quote.

    Args:
        path: the file.
        needed: columns that it must have.
        or_needed: those of another form, which rule where the header has more of them.
        mend: what else to do about a missing column, for messages.

    Raises:
        DataError: the file cannot be read or decoded, is empty, holds no well-formed row, or its
            header lacks a needed column or names one twice.
    """
    lines = _text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip(" ")]
    if not numbered:
        raise DataError(f"{path}: the file is empty. Expected columns: {', '.join(needed)}.")
    header_number, header_line = numbered[0]
    delimiter = "\t" if header_line.count("\t") > header_line.count(",") else ","

    well_formed: dict[int, tuple[str, ...]] = {}
    with_nul: list[str] = []
    ill_quoted: list[str] = []
    for number, line in numbered:
        if "\0" in line:
            with_nul.append(f"{path}:{number}, at character {line.index(chr(0)) + 1}")
            continue
        try:
            well_formed[number] = tuple(next(csv.reader([line], delimiter=delimiter, strict=True)))
        except csv.Error as error:
            ill_quoted.append(f"{path}:{number}, {line[:60]!r}: {error}")
    problems = listed("lines with a NUL byte", "The file is damaged: take it anew", with_nul)
    problems += listed(
        "quotes not closed on their line, or text behind a closing quote", "Mend them", ill_quoted
    )

    faults: list[str] = []
    header = tuple(name.strip() for name in well_formed.pop(header_number, ()))
    if header:
        needed = max((needed, or_needed), key=lambda form: len(set(form).intersection(header)))
        faults = _header_faults(f"{path}:{header_number}", header, needed, mend)
        rows = {n: fields for n, fields in well_formed.items() if len(fields) == len(header)}
        problems += listed(
            f"rows with another number of fields than the {len(header)} of the header",
            "Their values would slip into wrong columns: add or remove fields, and quote values "
            "that hold a delimiter",
            [f"{path}:{n}, {len(f)} fields" for n, f in well_formed.items() if n not in rows],
        )
        if not rows and not problems:
            faults.append(f"{path}: a header and no rows. Expected: {', '.join(needed)}.")
    if faults or not header or not rows:
        raise DataError("\n".join([f"{path} cannot be read as a table:", *faults, *problems]))
    return MetadataFile(path, delimiter, header, tuple(rows.values()), tuple(rows), tuple(problems))


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check its rights.") from error
    for first_bytes, what in FOREIGN.items():
        if raw.startswith(first_bytes):
            raise DataError(f"{path}: not a table but {what}.")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if raw.startswith(mark)), None)
    if encoding is None and len(raw) >= 4:  # unmarked UTF-16: every other byte of ASCII text is 0
        if not any(raw[1:64:2]):
            encoding = "UTF-16LE"
        elif not any(raw[0:64:2]):
            encoding = "UTF-16BE"
    if encoding is not None:
        raise DataError(f"{path}: encoded in {encoding}, not in UTF-8. {_reencode(path, encoding)}")
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}, byte 0x{error.object[error.start]:02x}: not UTF-8, most likely "
            f"Latin-1 or Windows-1252. {_reencode(path, 'LATIN1')}"
        ) from error


def _reencode(path: Path, encoding: str) -> str:
    return f"Mend: `iconv -f {encoding} -t UTF-8 '{path}' > NEW.csv`, or save it anew as UTF-8."


def _header_faults(
    place: str, header: Sequence[str], needed: Sequence[str], mend: str
) -> list[str]:
    faults = [
        f"{place}, column {name!r} stands {count} times; remove or rename all but one."
        for name, count in Counter(header).items()
        if count > 1
    ]
    missing = [name for name in needed if name not in header]
    if missing:
        as_written = {name.lower(): name for name in header}
        near = [
            f"{name!r} for {as_written[close[0]]!r}"
            for name in missing
            if (close := get_close_matches(name.lower(), as_written, n=1, cutoff=0.6))
        ]
        faults.append(
            f"{place}, missing columns: {', '.join(missing)}. Found: {', '.join(header)}. "
            f"Needed: {', '.join(needed)}."
            + (f" Rename? {', '.join(near)}." if near else "")
            + (" Separate columns by comma or tab, not ';'." if ";" in header[0] else "")
            + (f" {mend}" if mend else "")
        )
    return faults
