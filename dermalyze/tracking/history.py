"""The run's own record, beside its checkpoints: whole after every epoch, whatever happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dermalyze.files import write_json

HISTORY = "training_history.json"


def write_history(folder: Path, history: Sequence[Mapping[str, object]]) -> None:
    """Write all epochs' records to the run's folder.

    The file is rewritten whole at each epoch rather than appended to, so that it is valid JSON
    at any moment and a resumed run never repeats an epoch in it.
    """
    write_json(folder / HISTORY, list(history))
