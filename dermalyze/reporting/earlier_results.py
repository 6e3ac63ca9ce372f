"""A folder of results holds those of one question; another one's are not written over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dermalyze.errors import DataError
from dermalyze.evaluation.predictions import METRICS_FILE

Node = Mapping[str, Any]

_ASKED = ("data", "table_fingerprint", "split", "tta", "ensemble")
_MODEL = ("checkpoint", "epoch", "seed", "split_fingerprint")


def refuse_other_results(folder: Path, about: Node) -> None:
    """Refuse a folder that holds results of other data, views or weights than these.

    Results of the same question are written over: a model that was trained on, intervals of another
    level. Names of folders do not tell every question apart, such as two data sets with split=all.

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
            f"{name} {_said(earlier[name])}, now {_said(about[name])}"
            for name in _ASKED
            if earlier[name] != about[name]
        ]
        before, now = ([one["weight"] for one in node["members"]] for node in (earlier, about))
        if _models(earlier) == _models(about) and before != now:
            differing.append(f"weights {_said(before)}, now {_said(now)}")
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


def _models(report: Node) -> list[list[Any]]:
    return [[member[name] for name in _MODEL] for member in report["members"]]


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
