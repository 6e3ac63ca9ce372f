from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dermalyze.data.metadata_features import (
    COLUMNS,
    REFUSED,
    MetadataEncoding,
    column_problems,
    fit_encoding,
)
from dermalyze.errors import ConfigError, DataError

ALL = ("age", "sex", "localization")
TABLE = pd.DataFrame(
    {
        "image_id": ["a", "b", "c", "d", "e"],
        "dx_type": ["histo", "follow_up", "histo", "histo", "confocal"],
        "age": [40.0, 60.0, np.nan, 85.0, 50.0],
        "sex": ["male", "unknown", "female", "female", "male"],
        "localization": ["back", "face", "back", "unknown", "ear"],
    }
)


def encoding(columns: tuple[str, ...] = ALL) -> MetadataEncoding:
    """Fitted on the first three rows: ages 40 and 60, back and face."""
    return fit_encoding(TABLE.iloc[:3], columns)


def test_numbers_by_hand() -> None:
    """age, its flag; female, male, flag; back, face, flag. Mean 50, standard deviation 10."""
    expected = [
        [-1.0, 0, 0, 1, 0, 1, 0, 0],
        [1.0, 0, 0, 0, 1, 0, 1, 0],  # sex unknown
        [0.0, 1, 1, 0, 0, 1, 0, 0],  # age unknown
        [3.5, 0, 1, 0, 0, 0, 0, 1],  # localization unknown
        [0.0, 0, 0, 1, 0, 0, 0, 1],  # 50 years are known; no training image was of an ear
    ]
    numbers_NM = encoding().numbers(TABLE)
    assert numbers_NM.dtype == np.float32
    assert numbers_NM.tolist() == expected


def test_only_training_rows_are_looked_at() -> None:
    fitted = encoding()
    assert fitted.age == (50.0, 10.0)
    assert fitted.categories == {"sex": ("female", "male"), "localization": ("back", "face")}
    other = TABLE.copy()
    other.loc[3:, ["age", "sex", "localization"]] = [119.0, "diverse", "foot"]
    assert fit_encoding(other.iloc[:3], ALL) == fitted
    assert fit_encoding(other, ALL) != fitted


def test_what_is_unknown_of_every_column() -> None:
    assert encoding().unknown == {
        "age": [0.0, 1.0],
        "sex": [0.0, 0.0, 1.0],
        "localization": [0.0, 0.0, 1.0],
    }
    nothing = pd.DataFrame(
        {"age": [np.nan] * 2, "sex": ["unknown"] * 2, "localization": ["unknown", "ear"]}
    )
    expected = [number for numbers in encoding().unknown.values() for number in numbers]
    assert encoding().numbers(nothing).tolist() == [expected, expected]
    assert encoding().numbers(nothing[[]]).tolist() == [expected, expected]  # no such columns


def test_columns_stand_in_the_order_in_which_they_were_asked_for() -> None:
    one, other = encoding(("sex", "age")), encoding(("age", "sex"))
    assert list(one.unknown) == ["sex", "age"]
    assert one.numbers(TABLE).tolist() == other.numbers(TABLE)[:, [2, 3, 4, 0, 1]].tolist()


def test_known_values_are_counted() -> None:
    assert encoding().known(TABLE) == {"age": 4, "sex": 4, "localization": 3}
    assert encoding().known(TABLE[["age"]]) == {"age": 4, "sex": 0, "localization": 0}
    assert encoding(("sex",)).known(TABLE.iloc[:0]) == {"sex": 0}


def test_a_row_does_not_depend_on_the_others() -> None:
    together = encoding().numbers(TABLE)
    for row in range(len(TABLE)):
        alone = encoding().numbers(TABLE.iloc[[row]])
        assert np.array_equal(alone, together[[row]])


def test_a_model_of_pixels_alone() -> None:
    fitted = encoding(())
    assert fitted.unknown == {}
    assert fitted.numbers(TABLE).shape == (5, 0)
    assert fitted.known(TABLE) == {}


# What is refused


@pytest.mark.parametrize("column", sorted(REFUSED))
def test_what_gives_the_class_away_is_refused_with_the_reason(column: str) -> None:
    (problem,) = column_problems(["age", column])
    assert problem == (
        f"model.metadata.columns=['age', '{column}']: {column} is refused: {REFUSED[column]}. "
        "Take it out; valid: age, sex, localization"
    )
    frame = TABLE.assign(**{column: "x"})
    with pytest.raises(ConfigError, match=f"{column} is refused: "):
        fit_encoding(frame, ["age", column])


def test_other_columns_are_refused_with_the_nearest() -> None:
    assert column_problems(COLUMNS) == []
    assert column_problems(["localisation", "age"]) == [
        "model.metadata.columns=['localisation', 'age']: no column 'localisation'. Did you mean "
        "'localization'?"
    ]
    assert column_problems(["age", "age"]) == [
        "model.metadata.columns=['age', 'age']: name each column once"
    ]


@pytest.mark.parametrize(
    ("change", "silent"),
    [
        ({"age": np.nan}, "age"),
        ({"age": 45.0}, "age"),
        ({"sex": "unknown"}, "sex"),
        ({"sex": "unknown", "localization": "unknown", "age": 45.0}, "sex, localization, age"),
    ],
)
def test_a_column_that_tells_nothing_is_refused(change: dict[str, Any], silent: str) -> None:
    with pytest.raises(DataError, match=f": {silent} of the training images is not known"):
        fit_encoding(TABLE.assign(**change), ALL)


# In a checkpoint's header


@pytest.mark.parametrize("columns", [(), ("sex",), ALL])
def test_through_json_and_back(columns: tuple[str, ...]) -> None:
    fitted = fit_encoding(TABLE.assign(age=[40.1, 60.7, np.nan, 85.3, 1 / 3]), columns)
    back = MetadataEncoding.from_dict(json.loads(json.dumps(fitted.as_dict())))
    assert back == fitted
    assert np.array_equal(back.numbers(TABLE), fitted.numbers(TABLE))


def _changed(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(encoding().as_dict()) | changes


@pytest.mark.parametrize(
    "values",
    [
        {},
        None,
        [],
        _changed(columns=["age", "sex", "dx_type"]),
        _changed(columns=["age", "age", "sex", "localization"]),
        _changed(columns=["age", "sex"]),
        _changed(columns=None),
        _changed(categories={"sex": ["female"]}),
        _changed(categories={"sex": 7, "localization": []}),
        _changed(categories=[]),
        _changed(age=[50.0]),
        _changed(age=[50.0, 0.0]),
        _changed(age=[float("nan"), 10.0]),
        _changed(age=["young", 10.0]),
    ],
)
def test_values_that_no_encoding_has_are_refused(values: Any) -> None:
    with pytest.raises(DataError, match="metadata encoding"):
        MetadataEncoding.from_dict(values)
