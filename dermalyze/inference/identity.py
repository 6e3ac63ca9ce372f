"""Which models predict, and in which way, as plain values: what results are kept under."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermalyze.evaluation.predictions import TRAINED_AS
from dermalyze.inference.ensemble import Ensemble
from dermalyze.inference.loading import ModelFacts
from dermalyze.inference.views import Views
from dermalyze.run_folder import CONFIG

Node = dict[str, Any]


def run_of(member: ModelFacts) -> Path | None:
    """Return the folder of the run that made a checkpoint, None where it lies elsewhere."""
    folder = member.path.parent
    return folder if (folder / CONFIG).is_file() else None


def home_of(checkpoint: str | Sequence[str], facts: Sequence[ModelFacts], outputs: str) -> Path:
    """Return the folder of the run or multirun, or one below `outputs` for these models alone."""
    if len(facts) == 1:
        return facts[0].path.parent
    if isinstance(checkpoint, str):
        listed = Path(checkpoint).is_file()  # a sweep's list of its runs lies in its folder
        return Path(checkpoint).parent if listed else Path(checkpoint)
    paths = "\n".join(str(member.path.resolve()) for member in facts)
    name = hashlib.sha256(paths.encode()).hexdigest()[:12]
    return Path(outputs) / "ensembles" / name


def trained_as(facts: Sequence[ModelFacts]) -> list[Node]:
    """Return what tells each model from another training of the same run's folder, or an export."""
    return [
        {name: member.header[name] for name in TRAINED_AS}
        | ({"export": member.header["export"]["format"]} if "export" in member.header else {})
        for member in facts
    ]


def export_formats(facts: Sequence[ModelFacts]) -> list[str]:
    """Return the formats, such as onnx_int8, of those models that are exports of a checkpoint."""
    return sorted({one.header["export"]["format"] for one in facts if "export" in one.header})


def way_of(views: Views, method: Ensemble, weights_M: np.ndarray) -> Node:
    """Return how models predict: views, and how several become one with which weights.

    "chosen_by" is there only where validation chooses weights: by which options it does.
    """
    several = len(weights_M) > 1
    return {
        "tta": {"name": views.name, "views": list(views.names), "aggregation": views.aggregation},
        "ensemble": method.name if several else None,
        "weights": weights_M.tolist(),
        **({"chosen_by": dict(method.chosen_by)} if several and method.chosen_by else {}),
    }
