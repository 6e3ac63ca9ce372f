"""Runs in MLflow: a local SQLite store by default, or any tracking server."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dermalyze.checkpoint_file import read_seal
from dermalyze.redaction import redacted
from dermalyze.tracking.logged_model import PLACE_TAG, SHA256_TAG, log_model, register
from dermalyze.tracking.mlflow_store import (
    FOLDER_TAG,
    HOST_TAG,
    REFUSED,
    absolute,
    connect,
    experiment_id,
    reason,
    relative,
)
from dermalyze.tracking.run_identity import RunIdentity, read_identity, write_identity
from dermalyze.tracking.run_lock import is_abandoned
from dermalyze.tracking.sweep_tags import PARENT_TAG
from dermalyze.tracking.tracker import Status

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_WHY_TAG = "ended_because"
_LONGEST_PARAMETER = 500
_LONGEST_WHY = 2000
_LONG_WAIT = 5.0  # seconds: of a store that does not answer

Call = Callable[["MlflowClient", str], object]


class MlflowTracker:
    """Records a run in MLflow, and keeps going when the store cannot be reached.

    Every call is queued and sent in order. What cannot be sent stays queued, is said once, and is
    tried again at a later call: the next one, or where the store does not even answer, so that a
    tenth of the time is spent in waiting. Training never stops for it. The run's folder keeps the
    whole history in any case.

    Args:
        uri: MLflow's tracking address: `sqlite:///file.db` or `http://host:port`.
        experiment: MLflow's experiment to put the run in; made if it is not there.
        log_model: whether the checkpoint to predict with is recorded as a model that MLflow serves
            and registers, or as a mere file.
        register_as: name of a registered model to make it the newest version of; None for none.
    """

    def __init__(
        self, *, uri: str, experiment: str, log_model: bool, register_as: str | None
    ) -> None:
        self.uri = absolute(uri)
        self.experiment = experiment
        self.log_model, self.register_as = log_model, register_as
        self._client: MlflowClient | None = None
        self._run_id: str | None = None
        self._queue: list[Call] = []
        self._begin: Callable[[], str] | None = None
        self._logged_steps: set[int] = set()
        self._said_offline = False
        self._not_before = 0.0  # of time.monotonic

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
        all_tags = {**tags, FOLDER_TAG: str(where), HOST_TAG: socket.gethostname()}
        self._begin = lambda: self._begin_run(name, where)
        all_parameters = [
            Param(key, value[:_LONGEST_PARAMETER]) for key, value in parameters.items()
        ]

        def describe(client: MlflowClient, run: str) -> None:
            # MLflow refuses to change a parameter, so a resumed run keeps those it began with.
            known = client.get_run(run).data.params
            new = [parameter for parameter in all_parameters if parameter.key not in known]
            # Tags by themselves: by them a killed run is known, also where a parameter is refused.
            client.log_batch(run, tags=[RunTag(key, value) for key, value in all_tags.items()])
            client.log_batch(run, params=new)

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
        """Record a file, below `folder` in the run's artifacts; one that is gone is left out."""

        def send(client: MlflowClient, run: str) -> None:
            if path.is_file():
                client.log_artifact(run, str(path), folder)
            else:
                logger.warning("tracking: there is no %s, so it is left out", path)

        self._send(send)

    def log_checkpoint(self, path: Path, *, code: Path) -> None:
        """Record the checkpoint to predict with; its run then says where it is, and its sha256."""
        from mlflow.entities import RunTag

        def send(client: MlflowClient, run: str) -> None:
            if self.log_model:
                place = log_model(client, run, path, code)
                if self.register_as is not None:
                    register(client, run, place, self.register_as)
            else:
                place = f"checkpoints/{path.name}"
                client.log_artifact(run, str(path), "checkpoints")
            tags = {PLACE_TAG: place, SHA256_TAG: read_seal(path).sha256}
            client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])

        self._send(send)

    def adopt(self, folders: Sequence[Path]) -> None:
        """Make runs of folders children of this one, also where they were begun before it."""
        identities = [read_identity(folder) for folder in folders]
        children = [one.run_id for one in identities if one is not None and one.uri == self.uri]

        def send(client: MlflowClient, run: str) -> None:
            for child in children:
                client.set_tag(child, PARENT_TAG, run)

        self._send(send)

    def reopen(self, folder: Path) -> None:
        """Add to the run that was begun for `folder`; its status stays what it is."""
        known = read_identity(folder)
        if known is None:
            raise FileNotFoundError(f"{folder}: no run in MLflow belongs to it")
        run_id = known.run_id
        self._begin = lambda: run_id

    def log_summary(self, metrics: Mapping[str, float | None]) -> None:
        """Record single values of the whole run."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(key, value, now, 0) for key, value in metrics.items() if value is not None]
        self._send(lambda client, run: client.log_batch(run, metrics=batch))

    def finish(self, status: Status, *, why: str | None = None) -> None:
        """End the run with a true status; say so if something could not be sent."""
        if why is not None:
            text = str(redacted(why))[:_LONGEST_WHY]
            self._send(lambda client, run: client.set_tag(run, _WHY_TAG, text))
        self._not_before = 0.0
        self._send(lambda client, run: client.set_terminated(run, status))
        if self._queue:
            logger.warning(
                "%d records could not be sent to %s. What they say lies in the run's folder; "
                "training.resume=RUN sends what is of training once the store answers.",
                len(self._queue),
                redacted(self.uri),
            )

    def how_to_look(self) -> str:
        """Return the command, or the address, that shows the run."""
        if self.uri.startswith("http"):
            return f"see {redacted(self.uri)}"
        return f"mlflow ui --backend-store-uri {relative(self.uri)}"

    def _send(self, call: Call | None = None) -> None:
        """Send what is queued, oldest first, as far as the store answers."""
        from mlflow.exceptions import MlflowException

        if call is not None:
            self._queue.append(call)
        began = time.monotonic()
        if began < self._not_before:
            return
        try:
            if self._client is None:
                self._client = connect(self.uri)
            if self._run_id is None and self._begin is not None:
                self._run_id = self._begin()
            while self._queue and self._run_id is not None:
                try:
                    self._queue[0](self._client, self._run_id)
                except MlflowException as error:
                    if error.error_code not in REFUSED:
                        raise
                    logger.warning("tracking: a record is refused, left out: %s", reason(error))
                self._queue.pop(0)
        except Exception as error:  # of MLflow, its database, its server: training goes on
            if not self._said_offline:
                logger.warning(
                    "tracking: %s cannot be used now (%s). Training goes on; what is not sent is "
                    "kept and tried again after each epoch.",
                    redacted(self.uri),
                    reason(error),
                )
            self._said_offline = True
            waited = time.monotonic() - began
            if waited > _LONG_WAIT:
                self._not_before = began + 10 * waited

    def _begin_run(self, name: str, folder: Path) -> str:
        from mlflow.exceptions import MlflowException

        client = self._client
        if client is None:  # pragma: no cover - _send connects first
            raise RuntimeError("not connected")
        experiment = experiment_id(client, self.experiment, self.uri)
        _close_abandoned(client, experiment)
        known = read_identity(folder)
        if known is not None and known.uri == self.uri:
            run_id = known.run_id
            try:
                client.update_run(run_id, status="RUNNING")
            except MlflowException as error:
                if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", *REFUSED}:
                    raise
                logger.warning("tracking: run %s was deleted; another is begun", run_id)
            else:
                if _WHY_TAG in client.get_run(run_id).data.tags:
                    client.delete_tag(run_id, _WHY_TAG)  # it has not ended after all
                history = client.get_metric_history(run_id, "epoch")
                self._logged_steps = {metric.step for metric in history}
                return run_id
        run = client.create_run(experiment, run_name=name)
        run_id = str(run.info.run_id)
        write_identity(folder, RunIdentity(self.uri, run_id, self.experiment))
        return run_id


def tracker_of(folder: Path) -> MlflowTracker | None:
    """Return a tracker for the store that holds the run of `folder`; None where none does."""
    known = read_identity(folder)
    if known is None:
        return None
    return MlflowTracker(
        uri=known.uri, experiment=known.experiment, log_model=False, register_as=None
    )


def _close_abandoned(client: MlflowClient, experiment: str) -> None:
    here = socket.gethostname()
    running = client.search_runs(
        [experiment], f"attributes.status = 'RUNNING' and tags.`{HOST_TAG}` = '{here}'"
    )
    for run in running:
        folder = Path(run.data.tags[FOLDER_TAG])
        # Asked again once its folder is free: it may have ended by itself since the search.
        if is_abandoned(folder) and client.get_run(run.info.run_id).info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")
            logger.info("tracking: the run of %s was killed; its status now says so", folder)
