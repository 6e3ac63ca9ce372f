"""What a run's folder says of the trial that the run is: `trial.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dermalyze.files import write_json

TRIAL = "trial.json"


def write_trial(folder: Path, *, study: str, number: int, params: Mapping[str, object]) -> None:
    """Say in a run's folder which trial of which study it is, and what it tries."""
    write_json(folder / TRIAL, {"study": study, "number": number, "params": dict(params)})


def trial_number(folder: Path) -> int | None:
    """Return the number of the trial whose run this folder is; None where it is no search's."""
    path = folder / TRIAL
    if not path.is_file():
        return None
    return int(json.loads(path.read_text(encoding="utf-8"))["number"])
