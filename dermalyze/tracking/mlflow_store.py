"""Where MLflow keeps runs: a local SQLite file or a server, and how it is opened."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from dermalyze.redaction import redacted
from dermalyze.run_folder import as_typed

# Read by mlflow at import and at each call. A user who set them keeps what was set.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# With the server down, training must not wait for retries; what is queued is tried again anyway.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# Its bars of progress are for a terminal.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", str(sys.stderr.isatty()).lower())

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER_TAG = "dermalyze.folder"
HOST_TAG = "dermalyze.host"
# What MLflow answers where asking again cannot help.
REFUSED = frozenset({"BAD_REQUEST", "INVALID_PARAMETER_VALUE"})
_SQLITE = "sqlite:///"


def connect(uri: str) -> MlflowClient:
    """Return a client for an address that `absolute` returned; a SQLite file is made if need be."""
    from mlflow import MlflowClient

    if not uri.startswith(_SQLITE):
        return MlflowClient(tracking_uri=uri)
    # Processes that open a fresh store at once crash in its migration, so only one makes it.
    database = Path(uri.removeprefix(_SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Return the id of the experiment called `name`; it is made if it is not there."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if uri.startswith(_SQLITE):
        location = (Path(uri.removeprefix(_SQLITE)).parent / "mlartifacts" / name).as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:  # another process made it in between
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def absolute(uri: str) -> str:
    """Return an address that means the same from any folder."""
    if not uri.startswith(_SQLITE):
        return uri
    return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).resolve()}"


def relative(uri: str) -> str:
    """Return the address as a person would type it here, without secrets."""
    if not uri.startswith(_SQLITE):
        return str(redacted(uri))
    return f"{_SQLITE}{as_typed(Path(uri.removeprefix(_SQLITE)))}"


def reason(error: Exception) -> str:
    """Return why MLflow, its database or its server fails: one line without secrets."""
    lines = str(redacted(str(error))).splitlines()
    return lines[0][:300] if lines else type(error).__name__
