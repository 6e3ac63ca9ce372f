"""Runs in MLflow: a local SQLite store by default, or any tracking server."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from dermalyze.files import write_json
from dermalyze.run_folder import redacted
from dermalyze.tracking.run_lock import is_abandoned
from dermalyze.tracking.tracker import Status

# Read by mlflow at import and at each call. A user who set them keeps what was set.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# With the server down, training must not wait for retries; what is queued is tried again anyway.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_IDENTITY = "tracking.json"
_FOLDER_TAG = "dermalyze.folder"
_HOST_TAG = "dermalyze.host"
_SQLITE = "sqlite:///"
_LONGEST_PARAMETER = 500
# What MLflow answers where asking again cannot help.
_REFUSED = frozenset({"BAD_REQUEST", "INVALID_PARAMETER_VALUE"})

Call = Callable[["MlflowClient", str], object]


class MlflowTracker:
    """Records a run in MLflow, and keeps going when the store cannot be reached.

    Every call is queued and sent in order. What cannot be sent stays queued, is said once, and is
    tried again at the next call; training never stops for it. The run's folder keeps the whole
    history in any case.

    Args:
        uri: MLflow's tracking address: `sqlite:///file.db` or `http://host:port`.
        experiment: MLflow's experiment to put the run in; made if it is not there.
    """

    def __init__(self, *, uri: str, experiment: str) -> None:
        self.uri = _absolute(uri)
        self.experiment = experiment
        self._client: MlflowClient | None = None
        self._run_id: str | None = None
        self._queue: list[Call] = []
        self._begin: Callable[[], str] | None = None
        self._logged_steps: set[int] = set()
        self._said_offline = False

    def start(
        self,
        *,
        name: str,
        folder: Path,
        parameters: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        """Begin a run, or go on with the one that was begun for `folder`.

        Runs on this machine that still count as running although their process is gone are
        closed as KILLED first: nobody else can.
        """
        from mlflow.entities import Param, RunTag

        self._queue, self._run_id, self._logged_steps = [], None, set()
        where = folder.resolve()
        all_tags = {**tags, _FOLDER_TAG: str(where), _HOST_TAG: socket.gethostname()}
        self._begin = lambda: self._begin_run(name, where)
        all_parameters = [
            Param(key, value[:_LONGEST_PARAMETER]) for key, value in parameters.items()
        ]

        def describe(client: MlflowClient, run: str) -> None:
            # MLflow refuses to change a parameter, so a resumed run keeps those it began with.
            known = client.get_run(run).data.params
            client.log_batch(
                run,
                params=[parameter for parameter in all_parameters if parameter.key not in known],
                tags=[RunTag(key, value) for key, value in all_tags.items()],
            )

        self._send(describe)

    def log_metrics(self, metrics: Mapping[str, float | int | None], *, step: int) -> None:
        """Record one epoch's metrics in one call; an epoch that is there already is left alone."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [
            Metric(name, float(value), now, step)
            for name, value in metrics.items()
            if value is not None
        ]

        def send(client: MlflowClient, run: str) -> None:
            if step not in self._logged_steps:
                client.log_batch(run, metrics=batch)
                self._logged_steps.add(step)

        self._send(send)

    def log_artifact(self, path: Path, *, folder: str | None = None) -> None:
        """Record a file, below `folder` in the run's artifacts."""
        self._send(lambda client, run: client.log_artifact(run, str(path), folder))

    def reopen(self, folder: Path) -> None:
        """Add to the run that was begun for `folder`; its status stays what it is."""
        run_id = str(_identity(folder)["run_id"])
        self._begin = lambda: run_id

    def log_summary(self, metrics: Mapping[str, float | None]) -> None:
        """Record single values of the whole run."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(key, value, now, 0) for key, value in metrics.items() if value is not None]
        self._send(lambda client, run: client.log_batch(run, metrics=batch))

    def finish(self, status: Status) -> None:
        """End the run with a true status; say so if something could not be sent."""
        self._send(lambda client, run: client.set_terminated(run, status))
        if self._queue:
            logger.warning(
                "%d records could not be sent to %s. The run's folder holds all of them in "
                "training_history.json.",
                len(self._queue),
                redacted(self.uri),
            )

    def how_to_look(self) -> str:
        """Return the command, or the address, that shows the run."""
        if self.uri.startswith("http"):
            return f"see {redacted(self.uri)}"
        return f"mlflow ui --backend-store-uri {_relative(self.uri)}"

    def _send(self, call: Call | None = None) -> None:
        """Send what is queued, oldest first, as far as the store answers."""
        from mlflow.exceptions import MlflowException

        if call is not None:
            self._queue.append(call)
        try:
            if self._client is None:
                self._client = _connect(self.uri)
            if self._run_id is None and self._begin is not None:
                self._run_id = self._begin()
            while self._queue and self._run_id is not None:
                try:
                    self._queue[0](self._client, self._run_id)
                except MlflowException as error:
                    if error.error_code not in _REFUSED:
                        raise
                    logger.warning("tracking: a record is refused, left out: %s", _reason(error))
                self._queue.pop(0)
        except Exception as error:  # of MLflow, its database, its server: training goes on
            if not self._said_offline:
                logger.warning(
                    "tracking: %s cannot be used now (%s). Training goes on; what is not sent is "
                    "kept and tried again after each epoch.",
                    redacted(self.uri),
                    _reason(error),
                )
            self._said_offline = True

    def _begin_run(self, name: str, folder: Path) -> str:
        from mlflow.exceptions import MlflowException

        client = self._client
        if client is None:  # pragma: no cover - _send connects first
            raise RuntimeError("not connected")
        experiment = _experiment(client, self.experiment, self.uri)
        _close_abandoned(client, experiment)
        if (folder / _IDENTITY).is_file() and _identity(folder)["uri"] == self.uri:
            run_id = str(_identity(folder)["run_id"])
            try:
                client.update_run(run_id, status="RUNNING")
            except MlflowException as error:
                if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", *_REFUSED}:
                    raise
                logger.warning("tracking: run %s was deleted; another is begun", run_id)
            else:
                history = client.get_metric_history(run_id, "epoch")
                self._logged_steps = {metric.step for metric in history}
                return run_id
        run = client.create_run(experiment, run_name=name)
        run_id = str(run.info.run_id)
        write_json(
            folder / _IDENTITY,
            {"uri": self.uri, "run_id": run_id, "experiment": self.experiment},
        )
        return run_id


def _identity(folder: Path) -> dict[str, str]:
    identity: dict[str, str] = json.loads((folder / _IDENTITY).read_text())
    return identity


def tracker_of(folder: Path) -> MlflowTracker | None:
    """Return a tracker for the store that holds the run of `folder`; None where none does."""
    if not (folder / _IDENTITY).is_file():
        return None
    identity = _identity(folder)
    return MlflowTracker(uri=identity["uri"], experiment=identity["experiment"])


def _reason(error: Exception) -> str:
    lines = str(redacted(str(error))).splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _connect(uri: str) -> MlflowClient:
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


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
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


def _close_abandoned(client: MlflowClient, experiment: str) -> None:
    here = socket.gethostname()
    running = client.search_runs(
        [experiment], f"attributes.status = 'RUNNING' and tags.`{_HOST_TAG}` = '{here}'"
    )
    for run in running:
        folder = Path(run.data.tags[_FOLDER_TAG])
        # Asked again once its folder is free: it may have ended by itself since the search.
        if is_abandoned(folder) and client.get_run(run.info.run_id).info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")
            logger.info("tracking: the run of %s was killed; its status now says so", folder)


def _absolute(uri: str) -> str:
    if not uri.startswith(_SQLITE):
        return uri
    return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).resolve()}"


def _relative(uri: str) -> str:
    path = Path(uri.removeprefix(_SQLITE))
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{_SQLITE}{path}"
