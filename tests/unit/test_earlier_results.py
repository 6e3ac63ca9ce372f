"""Results of something else are not written over, and those of the same question are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dermalyze.errors import DataError
from dermalyze.reporting.earlier_results import refuse_other_results

VIEWS = {"name": "full", "views": ["identity", "rotation 15"], "aggregation": "mean"}
MEMBERS = [
    {
        "checkpoint": name,
        "epoch": 3,
        "seed": 7,
        "split_fingerprint": "f",
        "validation_metrics": {"val/loss": loss},
        "weight": 0.5,
    }
    for name, loss in (("one", 0.25), ("two", 0.5))
]
ABOUT: dict[str, Any] = {
    "data": "isic2018_test",
    "table_fingerprint": "a1",
    "split": "all",
    "tta": VIEWS,
    "ensemble": "weighted_mean",
    "members": MEMBERS,
    "logit_adjustment": {"tau": 1.0, "class_counts": {"mel": 5}},
}


def kept(folder: Path, about: dict[str, Any]) -> None:
    (folder / "evaluation_metrics.json").write_text(json.dumps({**about, "images": 9}))


def weighted(*weights: float) -> list[dict[str, Any]]:
    return [{**one, "weight": weight} for one, weight in zip(MEMBERS, weights, strict=True)]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"data": "folder"}, "data isic2018_test, now folder"),
        ({"table_fingerprint": "b2"}, "table_fingerprint a1, now b2"),
        (
            {"tta": {**VIEWS, "views": ["identity", "rotation 30"]}},
            r'now {"name": "full", "views": \["identity", "rotation 30"\]',
        ),
        ({"logit_adjustment": None}, "logit_adjustment 1.0, now null"),
        ({"logit_adjustment": {"tau": 0.5}}, "logit_adjustment 1.0, now 0.5"),
        (
            {"members": [MEMBERS[0], {**MEMBERS[0], "checkpoint": "three"}]},
            r'checkpoint \["one", "two"\], now \["one", "three"\]',
        ),
        ({"members": MEMBERS[:1]}, r'checkpoint \["one", "two"\], now \["one"\]'),
        ({"members": weighted(0.2, 0.8)}, r"weights \[0.5, 0.5\], now \[0.2, 0.8\]"),
    ],
)
def test_something_else_is_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    kept(tmp_path, ABOUT)
    with pytest.raises(DataError, match=why) as refused:
        refuse_other_results(tmp_path, ABOUT | change)
    assert str(refused.value).endswith("another folder with output=FOLDER, or remove this one.")


def test_the_same_question_is_answered_again(tmp_path: Path) -> None:
    refuse_other_results(tmp_path / "new", ABOUT)
    kept(tmp_path, ABOUT)
    refuse_other_results(tmp_path, ABOUT)
    trained_on = [{**one, "epoch": 4} for one in weighted(0.2, 0.8)]
    refuse_other_results(tmp_path, ABOUT | {"members": trained_on})
    other_counts = {"tau": 1.0, "class_counts": {"mel": 6}}
    refuse_other_results(tmp_path, ABOUT | {"logit_adjustment": other_counts})
    moved = [{**one, "checkpoint": f"moved/{one['checkpoint']}"} for one in MEMBERS]
    refuse_other_results(tmp_path, ABOUT | {"members": moved})
    for one in (older := [dict(one) for one in MEMBERS]):
        del one["validation_metrics"]
    kept(tmp_path, ABOUT | {"members": older})
    refuse_other_results(tmp_path, ABOUT)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evaluation_metrics.json").write_text("[]")
    with pytest.raises(DataError, match=r"Remove the folder, or name another one: output=FOLDER"):
        refuse_other_results(tmp_path, ABOUT)
