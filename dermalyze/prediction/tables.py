"""Records of predictions as one file: CSV, JSON or Parquet, written part by part."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dermalyze.errors import ConfigError
from dermalyze.files import joined_codes, spreadsheet_cell, whole_file
from dermalyze.prediction.results import ImageUncertainty
from dermalyze.taxonomy import DISCLAIMER

Node = dict[str, Any]
Records = Iterable[Sequence[Node]]  # parts, each of `Prediction.as_dict()` and `Failure.as_dict()`

_WORDS = ("image", "predicted_class", "predicted_class_description")
_LAST = ("metadata", "error", "disclaimer")
_SET, _ABSTAIN = "prediction_set", "abstain"


def check_ending(output: str) -> Path:
    """Return the file to write.

    Raises:
        ConfigError: no format is known by its ending.
    """
    path = Path(output)
    if path.suffix.lower() not in _WRITERS:
        raise ConfigError(
            f"output={output}: the ending says the format, and there are {', '.join(_WRITERS)}."
        )
    return path


def write_table(path: Path, parts: Records, classes: Sequence[str]) -> None:
    """Write the records in their order, in the format that the file's ending says, whole.

    - .csv: a row an image; empty where nothing was fitted for a column. Names that a spreadsheet
      would take for formulas begin with '.
    - .parquet: the same columns, `prediction_set` a list; a row group a part.
    - .json: a list of the records as they are.
    """
    with whole_file(path) as file:
        _WRITERS[path.suffix.lower()](file, parts, classes)


def _row(record: Node, classes: Sequence[str]) -> Node:
    """Return a record as the values of a table's columns, None where there is none."""
    probabilities = record.get("probabilities", {})
    calibrated = record.get("calibrated_probabilities") or {}
    unsure = record.get("uncertainty", {})
    model = record.get("model", {})
    return {
        **{name: record.get(name) for name in _WORDS},
        "confidence": record.get("confidence"),
        **{f"probability_{code}": probabilities.get(code) for code in classes},
        **{name: unsure.get(name) for name in ImageUncertainty.names()},
        _SET: record.get(_SET),
        **{f"calibrated_probability_{code}": calibrated.get(code) for code in classes},
        _ABSTAIN: record.get(_ABSTAIN),
        "metadata": " ".join(model["metadata"]) if model else None,
        "error": record.get("error"),
        "disclaimer": DISCLAIMER,
    }


def _write_csv(file: BinaryIO, parts: Records, classes: Sequence[str]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    rows = csv.DictWriter(text, list(_row({}, classes)), lineterminator="\n")
    rows.writeheader()
    for part in parts:
        for record in part:
            row = _row(record, classes)
            row[_SET] = joined_codes(row[_SET] or (), classes)
            rows.writerow(
                {k: spreadsheet_cell(v) if isinstance(v, str) else v for k, v in row.items()}
            )
    text.detach()  # flushes, and leaves the file to who opened it


def _write_json(file: BinaryIO, parts: Records, classes: Sequence[str]) -> None:
    between = b"[\n"
    for part in parts:
        for record in part:
            file.write(between + json.dumps(record, allow_nan=False).encode())
            between = b",\n"
    file.write(b"\n]\n")


def _write_parquet(file: BinaryIO, parts: Records, classes: Sequence[str]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = dict.fromkeys(_row({}, classes), pyarrow.float64())
    types |= dict.fromkeys((*_WORDS, *_LAST), pyarrow.string())
    types[_ABSTAIN] = pyarrow.bool_()
    types[_SET] = pyarrow.list_(pyarrow.string())
    schema = pyarrow.schema(list(types.items()))
    with parquet.ParquetWriter(file, schema) as writer:
        for part in parts:
            rows = [_row(record, classes) for record in part]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


_WRITERS: dict[str, Callable[[BinaryIO, Records, Sequence[str]], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".parquet": _write_parquet,
}
