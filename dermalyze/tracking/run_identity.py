"""Which run in MLflow a run's folder belongs to: `tracking.json` in the folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dermalyze.files import write_json

IDENTITY = "tracking.json"


@dataclass(frozen=True)
class RunIdentity:
    """The run's store (an absolute address), its id there, and its experiment's name."""

    uri: str
    run_id: str
    experiment: str


def read_identity(folder: Path) -> RunIdentity | None:
    """Return which run the folder belongs to; None where it is no run's, or not in MLflow."""
    path = folder / IDENTITY
    return RunIdentity(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def write_identity(folder: Path, identity: RunIdentity) -> None:
    """Say which run the folder belongs to."""
    write_json(folder / IDENTITY, asdict(identity))
