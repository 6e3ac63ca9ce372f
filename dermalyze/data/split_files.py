"""The files of a saved split: written whole, read back with all that is wrong with them.

train_split.csv, val_split.csv and test_split.csv hold image_id, lesion_id and dx; unused_split.csv,
where it is, lists the images in no part. split.json says how the split was made, and its
fingerprint. A reader gets problems as lines of text, to be raised together.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PARTS = ("train", "val", "test")
UNUSED = "unused"  # images that a split leaves out on purpose; most splits have none
COLUMNS = ("image_id", "lesion_id", "dx")
ABOUT = "split.json"
SHOWN = 5
# Methods that do on purpose what is a fault in the split of any other.
BY_IMAGE = "random_by_image_leaky"
SIBLINGS_INJECTED = "siblings_injected_leaky"
LEAKY = frozenset({BY_IMAGE, SIBLINGS_INJECTED})  # lesions are in more than one part
BY_SOURCE = "leave_one_source_out"  # test is one source and may lack classes


class SavedRow(NamedTuple):
    """One image of a saved split."""

    part: str
    image_id: str
    lesion_id: str
    dx: str


def first(items: Iterable[object]) -> str:
    """Return the first five of `items`, and how many there are beyond."""
    names = [str(item) for item in items]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def table_name(part: str) -> str:
    """Return the name of the file that lists a part's images."""
    return f"{part}_split.csv"


def read_rows(directory: Path, problems: list[str]) -> list[SavedRow]:
    """Return all images with their parts; what cannot be read goes to `problems`."""
    listed = (*PARTS, UNUSED) if (directory / table_name(UNUSED)).exists() else PARTS
    return [
        SavedRow(part, *row)
        for part in listed
        for row in _read_table(directory / table_name(part), problems)
    ]


def _read_table(path: Path, problems: list[str]) -> list[tuple[str, str, str]]:
    try:
        # utf-8-sig: a spreadsheet that saved the file may have put a byte order mark before it.
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"{path.name}: cannot be read: {_reason(error)}")
        return []
    if header != list(COLUMNS):
        problems.append(f"{path.name}:1: header {','.join(header)!r}, expected {','.join(COLUMNS)}")
        return []
    wrong = [f"{path.name}:{line}" for line, row in enumerate(rows, 2) if len(row) != len(COLUMNS)]
    if wrong:
        problems.append(f"rows that have not {len(COLUMNS)} fields: {first(wrong)}")
        return []
    return [(image_id, lesion_id, dx) for image_id, lesion_id, dx in rows]


def read_about(directory: Path, problems: list[str]) -> dict[str, Any]:
    """Return what split.json says: method, seed, fingerprint and more."""
    kinds = {"method": str, "seed": int | None, "fingerprint": str}
    try:
        about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
        wrong = [key for key, kind in kinds.items() if not isinstance(about[key], kind)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        problems.append(f"{ABOUT}: cannot be read: {_reason(error)}")
        return {}
    problems += [f"{ABOUT}: {key}={about[key]!r} is not of its kind" for key in wrong]
    return dict(about)


def differences(saved: Sequence[SavedRow], table: dict[str, tuple[str, str]]) -> list[str]:
    """Return in what the saved images and a table differ, the first five ids each way.

    Args:
        saved: the images of all parts, and those in none.
        table: image_id to (lesion_id, dx).
    """
    in_files = {row.image_id: (row.lesion_id, row.dx) for row in saved}
    foreign = sorted(in_files.keys() - table.keys())
    left_out = sorted(table.keys() - in_files.keys())
    problems = []
    if foreign:
        problems.append(
            f"{len(foreign)} images of the split are not in the table: {first(foreign)}"
        )
    if left_out:
        problems.append(f"{len(left_out)} images of the table are in no part: {first(left_out)}")
    for at, column in enumerate(COLUMNS[1:]):
        other = [
            f"{image_id} ({in_files[image_id][at]}, in the table {table[image_id][at]})"
            for image_id in sorted(in_files.keys() & table.keys())
            if in_files[image_id][at] != table[image_id][at]
        ]
        if other:
            problems.append(f"{len(other)} images have another {column}: {first(other)}")
    return problems


def faults(saved: Sequence[SavedRow], classes: Sequence[str], method: str) -> list[str]:
    """Return what is wrong with the parts themselves: overlaps, absent classes.

    Lesions in more than one part are allowed to the methods LEAKY only, a test part without a class
    to BY_SOURCE only.
    """
    times = Counter(row.image_id for row in saved)
    in_a_part = {(row.part, row.lesion_id) for row in saved if row.part in PARTS}
    parts_of = Counter(lesion for _, lesion in in_a_part)
    twice = sorted(image_id for image_id, count in times.items() if count > 1)
    torn = sorted(lesion_id for lesion_id, count in parts_of.items() if count > 1)
    problems = []
    if twice:
        problems.append(f"{len(twice)} images are listed more than once: {first(twice)}")
    if torn and method not in LEAKY:
        problems.append(f"{len(torn)} lesions are in more than one part: {first(torn)}")
    for part in PARTS if method != BY_SOURCE else PARTS[:-1]:
        absent = sorted(set(classes) - {row.dx for row in saved if row.part == part})
        problems += [f"{part} has no image of {code}" for code in absent]
    return problems


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
