"""A folder of results holds those of one question; another one's are not written over them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dermalyze.errors import DataError
from dermalyze.evaluation.predictions import METRICS_FILE, TRAINED_AS

Node = Mapping[str, Any]

_ASKED = ("data", "table_fingerprint", "split", "tta", "ensemble")


def refuse_other_results(folder: Path, about: Node) -> None:
    """Refuse a folder that holds results of other data, models, views or weights than these.

    Results of the same question are written over: a model that was trained anew in its place, or
    that lies in another one now; intervals of another level. Names of folders do not tell every
    question apart, such as two data sets with split=all.

    Args:
        folder: to be written into.
        about: of `written.write_evaluation`.

    Raises:
        DataError: it does; or what it holds cannot be read.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        differing = [
            f"{name} {_said(before)}, now {_said(now)}"
            for name, before, now in _asked(earlier, about)
            if before != now
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: not the metrics of an evaluation by this version ({type(error).__name__}: "
            f"{error}). Remove the folder, or name another one: output=FOLDER."
        ) from error
    if differing:
        raise DataError(
            f"{folder} holds results of something else, which are not written over:\n  - "
            + "\n  - ".join(differing)
            + "\nName another folder with output=FOLDER, or remove this one."
        )


def _asked(earlier: Node, about: Node) -> Iterator[tuple[str, Any, Any]]:
    """Yield what two questions are told apart by: a name, and its value in each of them."""
    for name in _ASKED:
        yield name, earlier[name], about[name]
    yield "logit_adjustment", _tau(earlier), _tau(about)
    before, now = _of_members(earlier, "checkpoint"), _of_members(about, "checkpoint")
    same_models = all(
        name not in earlier["members"][0]  # by a version that did not say it
        or _of_members(earlier, name) == _of_members(about, name)
        for name in TRAINED_AS
    )
    if not same_models:
        yield "checkpoint", before, now
    else:
        yield "weights", _of_members(earlier, "weight"), _of_members(about, "weight")


def _tau(report: Node) -> float | None:
    adjustment = report["logit_adjustment"]
    return None if adjustment is None else adjustment["tau"]


def _of_members(report: Node, name: str) -> list[Any]:
    return [member[name] for member in report["members"]]


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
