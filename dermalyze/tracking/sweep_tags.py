"""What makes a run in MLflow the child of its sweep."""

from __future__ import annotations

from pathlib import Path

from dermalyze.tracking.run_identity import read_identity

PARENT_TAG = "mlflow.parentRunId"  # MLflow's own name: its page shows children below their parent


def parent_tags(sweep: Path) -> dict[str, str]:
    """Return the tag for children of the sweep whose folder this is; none where it is no sweep's.

    It is read from the folder, so that a job finds it in any process on any machine.
    """
    identity = read_identity(sweep)
    return {} if identity is None else {PARENT_TAG: identity.run_id}
