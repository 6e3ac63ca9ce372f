"""What is known of an image besides its pixels, as numbers for a model.

The numbers are a pure function of the table and of a `MetadataEncoding`, which is fitted on the
training part alone and travels in the checkpoint's header, so that a model is told the same thing
by the same numbers wherever it predicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermalyze.data.tidying import UNKNOWN
from dermalyze.errors import ConfigError, DataError, nearest

CATEGORICAL = ("sex", "localization")
COLUMNS = ("age", *CATEGORICAL)
# What a table has besides, and why no model may be told it.
REFUSED = {
    "dx": "it is what the model is to find",
    "label": "it is what the model is to find",
    "dx_type": "how a diagnosis was confirmed tells the diagnosis: what looks harmless is followed "
    "up, what looks malignant is excised, and before the diagnosis it is not known at all",
    "lesion_id": "it names the lesion, and what is learnt of a name holds for no other lesion",
    "original_lesion_id": "it names the lesion, and what is learnt of a name holds for no other",
    "image_id": "it names the image, and what is learnt of a name holds for no other image",
    "path": "it names the image, and what is learnt of a name holds for no other image",
    "dataset": "it names the clinic or collection, each of which has a mix of classes of its own",
}


def column_problems(columns: Sequence[str]) -> list[str]:
    """Return a line for each of `model.metadata.columns` that no model may be told, and why."""
    place = f"model.metadata.columns={list(columns)}"
    problems = [
        f"{place}: {column} is refused: {REFUSED[column]}. Take it out; valid: {', '.join(COLUMNS)}"
        if column in REFUSED
        else f"{place}: no column {column!r}.{nearest(column, COLUMNS)}"
        for column in columns
        if column not in COLUMNS
    ]
    if len(set(columns)) < len(columns):
        problems.append(f"{place}: name each column once")
    return problems


@dataclass(frozen=True)
class MetadataEncoding:
    """How the columns of a table become M numbers an image.

    age becomes (age - mean) / std and a flag; sex and localization become one number a known
    category, of which at most one is 1, and a flag. A flag is 1 where the value is not known, and
    the column's other numbers are 0 there. A category that the training part did not have counts
    as not known: the model has learnt nothing of it.

    Attributes:
        columns: in the order of their numbers; empty for a model that sees pixels alone.
        age: mean and standard deviation in years over the training images of known age; (0, 1)
            where age is not among the columns.
        categories: the known categories of each categorical column, sorted.
    """

    columns: tuple[str, ...]
    age: tuple[float, float]
    categories: Mapping[str, tuple[str, ...]]

    @property
    def unknown(self) -> dict[str, list[float]]:
        """The numbers of each column where its value is not known, in the columns' order."""
        widths = {column: len(self.categories.get(column, ("years",))) for column in self.columns}
        return {column: [*([0.0] * width), 1.0] for column, width in widths.items()}

    def numbers(self, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Return metadata_NM of a table's rows; a column that the table lacks is not known."""
        parts = [np.zeros((len(frame), 0), dtype=np.float32)]
        for column, unknown_V in self.unknown.items():
            part_NV = np.tile(np.array(unknown_V, dtype=np.float32), (len(frame), 1))
            known_N = self._is_known(frame, column)
            if known_N.any():
                part_NV[known_N, :-1] = self._values(column, frame[column][known_N])
                part_NV[known_N, -1] = 0.0
            parts.append(part_NV)
        return np.concatenate(parts, axis=1)

    def known(self, frame: pd.DataFrame) -> dict[str, int]:
        """Return for each column how many rows have a value that the model knows."""
        return {column: int(self._is_known(frame, column).sum()) for column in self.columns}

    def _is_known(self, frame: pd.DataFrame, column: str) -> npt.NDArray[np.bool_]:
        if column not in frame:
            return np.zeros(len(frame), dtype=bool)
        values = frame[column]
        known = values.isin(self.categories[column]) if column in CATEGORICAL else values.notna()
        return known.to_numpy(dtype=bool)

    def _values(self, column: str, known: pd.Series[Any]) -> npt.NDArray[np.float64]:
        """Return the numbers of a column's known values, without their flag."""
        if column in CATEGORICAL:
            names = known.to_numpy(dtype=object)
            categories = np.array(self.categories[column], dtype=object)
            is_it_NC: npt.NDArray[np.bool_] = names[:, None] == categories
            return is_it_NC.astype(np.float64)
        mean, std = self.age
        return (known.to_numpy(dtype=np.float64)[:, None] - mean) / std

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint's header."""
        return {
            "columns": list(self.columns),
            "age": list(self.age),
            "categories": {column: list(names) for column, names in self.categories.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MetadataEncoding:
        """Return the encoding that `as_dict` described.

        Raises:
            DataError: values that no encoding has.
        """
        try:
            encoding = cls(
                columns=tuple(values["columns"]),
                age=(float(values["age"][0]), float(values["age"][1])),
                categories={
                    str(column): tuple(str(name) for name in names)
                    for column, names in values["categories"].items()
                },
            )
            categorical = {column for column in encoding.columns if column in CATEGORICAL}
            sound = (
                not column_problems(encoding.columns)
                and categorical == encoding.categories.keys()
                and all(map(math.isfinite, encoding.age))
                and encoding.age[1] > 0
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(f"metadata encoding {values!r}: incomplete ({error!r}).") from error
        if not sound:
            raise DataError(
                f"metadata encoding {values!r}: not one that MetadataEncoding.as_dict writes."
            )
        return encoding


def fit_encoding(training: pd.DataFrame, columns: Sequence[str]) -> MetadataEncoding:
    """Return the encoding of the columns, fitted on the rows of the training part.

    Args:
        training: those rows alone, so that nothing of the other parts reaches the model.
        columns: among age, sex and localization; none for a model that sees pixels alone.

    Raises:
        ConfigError: other columns, each with the reason.
        DataError: a column that tells nothing in these rows.
    """
    problems = column_problems(columns)
    if problems:
        raise ConfigError("\n".join(problems))
    categories = {
        column: tuple(sorted(set(training[column]) - {UNKNOWN}))
        for column in columns
        if column in CATEGORICAL
    }
    age = (0.0, 1.0)
    if "age" in columns:
        years = training["age"].dropna().to_numpy(dtype=np.float64)
        age = (float(years.mean()), float(years.std())) if len(years) else (0.0, 0.0)
    silent = [column for column, names in categories.items() if not names]
    silent += ["age"] if age[1] == 0 else []
    if silent:
        raise DataError(
            f"model.metadata.columns={list(columns)}: {', '.join(silent)} of the training images "
            "is not known or always the same, so there is nothing to learn from it. Take it out, "
            "or choose model/metadata=none."
        )
    return MetadataEncoding(tuple(columns), age, categories)
