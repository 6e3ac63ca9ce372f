from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from dermalyze.errors import Interrupted, Pruned
from dermalyze.files import write_json
from dermalyze.redaction import redacted
from dermalyze.run_folder import flat_parameters
from dermalyze.tracking import mlflow_tracker
from dermalyze.tracking.history import HISTORY, write_history
from dermalyze.tracking.mlflow_tracker import MlflowTracker, tracker_of
from dermalyze.tracking.run_lock import RunInUseError, is_abandoned, run_lock
from dermalyze.tracking.sweep_tags import PARENT_TAG
from dermalyze.tracking.tracker import NoTracker, tracked

PARAMETERS = {"training.seed": "7", "model.head.hidden": "[512, 256]", "empty": ""}
TAGS = {"git_commit": "abc", "split_fingerprint": "0f"}
OPTIONS: dict[str, Any] = {"experiment": "skin", "log_model": False, "register_as": None}
EPOCHS = [
    {"epoch": 1, "val/loss": 1.25, "val/macro_auc": None, "lr": 3e-4},
    {"epoch": 2, "val/loss": 0.75, "val/macro_auc": 0.875, "lr": 2e-4},
    {"epoch": 3, "val/loss": 0.5, "val/macro_auc": 0.9375, "lr": 1e-5},
]


def a_folder(parent: Path, name: str = "run") -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


def started(uri: str, folder: Path, **change: object) -> MlflowTracker:
    tracker = MlflowTracker(uri=uri, **OPTIONS)
    begin: dict[str, object] = {"name": folder.name, "parameters": PARAMETERS, "tags": TAGS}
    tracker.start(folder=folder, **(begin | change))  # type: ignore[arg-type]
    return tracker


def run_of(uri: str, folder: Path) -> Run:
    identity = json.loads((folder / "tracking.json").read_text())
    return MlflowClient(tracking_uri=uri).get_run(identity["run_id"])


def steps_and_values(uri: str, folder: Path, metric: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=uri)
    history = client.get_metric_history(run_of(uri, folder).info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def our_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


class Breakable:
    """A client whose store can be taken away: every call then fails as MLflow's own do."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client
        self.up = True

    def __getattr__(self, name: str) -> object:
        if not self.up:
            raise MlflowException(f"{name}: the server is down")
        return getattr(self.client, name)


@contextmanager
def child(script: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Run a script that says `ready` and then waits; it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from dermalyze.tracking.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(120)
"""


# What is recorded


def test_what_was_logged_is_read_back(uri: str, tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    tracker = started(uri, folder)
    for record in EPOCHS:
        tracker.log_metrics(record, step=int(record["epoch"] or 0))
    (folder / "split.csv").write_text("image_id\nISIC_1\n")
    (folder / "curves.png").write_bytes(b"\x89PNG\r\n")
    tracker.log_artifact(folder / "split.csv")
    tracker.log_artifact(folder / "curves.png", folder="plots")
    tracker.finish("FINISHED")

    run = run_of(uri, folder)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params == PARAMETERS
    assert {key: run.data.tags[key] for key in TAGS} == TAGS
    assert run.data.tags["dermalyze.folder"] == str(folder)
    assert steps_and_values(uri, folder, "val/loss") == [(1, 1.25), (2, 0.75), (3, 0.5)]
    assert steps_and_values(uri, folder, "val/macro_auc") == [(2, 0.875), (3, 0.9375)]
    assert steps_and_values(uri, folder, "lr") == [(1, 3e-4), (2, 2e-4), (3, 1e-5)]
    assert set(run.data.metrics) == {"epoch", "val/loss", "val/macro_auc", "lr"}
    client = MlflowClient(tracking_uri=uri)
    assert client.get_experiment(run.info.experiment_id).name == "skin"
    table = client.download_artifacts(run.info.run_id, "split.csv")
    assert Path(table).read_text() == "image_id\nISIC_1\n"
    picture = client.download_artifacts(run.info.run_id, "plots/curves.png")
    assert Path(picture).read_bytes() == b"\x89PNG\r\n"


def test_artifacts_lie_beside_the_database(uri: str, tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    (folder / "run.json").write_text("{}")
    started(uri, folder).log_artifact(folder / "run.json")
    assert [path.name for path in (tmp_path / "mlartifacts" / "skin").rglob("*.json")] == [
        "run.json"
    ]


def test_more_parameters_than_a_request_may_hold(uri: str, tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    many = {f"parameter_{number}": str(number) for number in range(150)}
    started(uri, folder, parameters={**many, "long": "x" * 600})
    assert run_of(uri, folder).data.params == {**many, "long": "x" * 500}


def test_lists_of_nodes_become_names_that_mlflow_takes(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = a_folder(tmp_path)
    started(uri, folder, parameters=flat_parameters({"views": [{"flip": True}, {"turn": 90}]}))
    assert run_of(uri, folder).data.params == {"views.0.flip": "True", "views.1.turn": "90"}
    assert our_warnings(caplog) == []


def test_secrets_reach_neither_the_store_nor_the_log(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {
        "tracking": {"uri": "https://me:hunter2@mlflow.example.org/x", "password": "hunter2"},
        "training": {"seed": 7},
    }
    folder = a_folder(tmp_path)
    started(uri, folder, parameters=flat_parameters(redacted(config)))
    assert run_of(uri, folder).data.params == {
        "tracking.uri": "https://(redacted)@mlflow.example.org/x",
        "tracking.password": "(redacted)",
        "training.seed": "7",
    }

    nobody = started("http://me:hunter2@127.0.0.1:9", a_folder(tmp_path, "other"))
    nobody.finish("FINISHED")
    assert len(our_warnings(caplog)) == 2
    assert "hunter2" not in caplog.text
    assert nobody.how_to_look() == "see http://(redacted)@127.0.0.1:9"


def test_an_evaluation_is_added_to_its_run(uri: str, tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    tracker = started(uri, folder)
    tracker.log_metrics(EPOCHS[0], step=1)
    tracker.finish("FINISHED")
    ended = run_of(uri, folder).info.end_time

    later = tracker_of(folder)
    assert later is not None
    later.reopen(folder)
    later.log_summary({"test/accuracy": 0.75, "test/macro_auc": None})
    (tmp_path / "predictions.csv").write_text("p")
    later.log_artifact(tmp_path / "predictions.csv", folder="evaluation/test")

    run = run_of(uri, folder)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == ended
    assert run.data.metrics["test/accuracy"] == 0.75
    assert "test/macro_auc" not in run.data.metrics
    client = MlflowClient(tracking_uri=uri)
    assert [f.path for f in client.list_artifacts(run.info.run_id, "evaluation/test")] == [
        "evaluation/test/predictions.csv"
    ]
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_a_folder_without_tracking_has_no_tracker(tmp_path: Path) -> None:
    assert tracker_of(tmp_path) is None


def test_how_to_look_is_a_command_or_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = MlflowTracker(uri="sqlite:///outputs/mlflow.db", **OPTIONS)
    assert inside.uri == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    assert inside.how_to_look() == "mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db"
    outside = MlflowTracker(uri="sqlite:////elsewhere/mlflow.db", **OPTIONS)
    assert outside.how_to_look() == "mlflow ui --backend-store-uri sqlite:////elsewhere/mlflow.db"
    server = MlflowTracker(uri="http://mlflow.example.org:5000", **OPTIONS)
    assert server.how_to_look() == "see http://mlflow.example.org:5000"


# How a run ends


def nothing() -> None:
    pass


def mistake() -> None:
    raise ValueError("a bug")


def stop_by_hand() -> None:
    raise KeyboardInterrupt


def stop_by_signal() -> None:
    raise Interrupted(signal.SIGTERM)


def stop_by_search() -> None:
    raise Pruned(3, "val/loss", 1.25)


@pytest.mark.parametrize(
    ("work", "raised", "status", "why"),
    [
        (nothing, None, "FINISHED", None),
        (mistake, ValueError, "FAILED", "ValueError: a bug"),
        (stop_by_hand, KeyboardInterrupt, "KILLED", "KeyboardInterrupt"),
        (stop_by_signal, Interrupted, "KILLED", "stopped by SIGTERM"),
        (stop_by_search, Pruned, "KILLED", "pruned after epoch 3: val/loss was 1.25 at best"),
    ],
)
def test_a_run_ends_with_a_true_status(
    work: Callable[[], None],
    raised: type[BaseException] | None,
    status: str,
    why: str | None,
    uri: str,
    tmp_path: Path,
) -> None:
    folder = a_folder(tmp_path)
    tracker = MlflowTracker(uri=uri, **OPTIONS)

    def run() -> None:
        with tracked(
            tracker, name="run", folder=folder, parameters=PARAMETERS, tags=TAGS, history=[]
        ):
            assert run_of(uri, folder).info.status == "RUNNING"
            work()

    if raised is None:
        run()
    else:
        with pytest.raises(raised):
            run()
    ended = run_of(uri, folder)
    assert ended.info.status == status
    assert ended.info.end_time >= ended.info.start_time
    assert ended.data.tags.get("ended_because") == why
    started(uri, folder).finish("FINISHED")  # gone on with, to its end
    assert "ended_because" not in run_of(uri, folder).data.tags


def test_no_tracker_leaves_nothing_and_hides_no_error(tmp_path: Path) -> None:
    tracker = NoTracker()

    def run() -> None:
        with tracked(tracker, name="r", folder=tmp_path, parameters={}, tags={}, history=EPOCHS):
            tracker.log_artifact(tmp_path / "nowhere.png")
            mistake()

    with pytest.raises(ValueError, match="a bug"):
        run()
    assert list(tmp_path.iterdir()) == []
    assert tracker.how_to_look().startswith("tracking=none")


# Going on with a run


def test_a_resumed_run_goes_on_and_logs_no_epoch_twice(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = a_folder(tmp_path)
    first = started(uri, folder)
    first.log_metrics(EPOCHS[0], step=1)
    first.finish("KILLED")
    before = run_of(uri, folder).info.run_id

    # Epoch 2 is in the history but was never sent; resuming itself changes a parameter.
    changed = {**PARAMETERS, "training.resume": "run", "training.seed": "other"}
    again = MlflowTracker(uri=uri, **OPTIONS)
    with tracked(
        again, name="run", folder=folder, parameters=changed, tags=TAGS, history=EPOCHS[:2]
    ):
        assert run_of(uri, folder).info.status == "RUNNING"
        again.log_metrics(EPOCHS[2], step=3)
        again.log_metrics(EPOCHS[2], step=3)

    run = run_of(uri, folder)
    assert run.info.run_id == before
    assert run.info.status == "FINISHED"
    assert run.data.params == {**PARAMETERS, "training.resume": "run"}
    for metric in ("val/loss", "epoch", "lr"):
        assert steps_and_values(uri, folder, metric) == [(e["epoch"], e[metric]) for e in EPOCHS]
    client = MlflowClient(tracking_uri=uri)
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert our_warnings(caplog) == []


def test_a_run_deleted_from_the_store_is_recorded_anew(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = a_folder(tmp_path)
    started(uri, folder).log_metrics(EPOCHS[0], step=1)
    deleted = run_of(uri, folder).info.run_id
    MlflowClient(tracking_uri=uri).delete_run(deleted)

    with tracked(
        MlflowTracker(uri=uri, **OPTIONS),
        name="run",
        folder=folder,
        parameters=PARAMETERS,
        tags=TAGS,
        history=EPOCHS,
    ):
        pass
    run = run_of(uri, folder)
    assert run.info.run_id != deleted
    assert run.info.status == "FINISHED"
    assert steps_and_values(uri, folder, "val/loss") == [(1, 1.25), (2, 0.75), (3, 0.5)]
    assert our_warnings(caplog) == [f"tracking: run {deleted} was deleted; another is begun"]


def test_another_store_gets_a_run_of_its_own(
    uri: str, tmp_path: Path, fresh_database: Path
) -> None:
    folder = a_folder(tmp_path)
    started(uri, folder).finish("KILLED")
    first = run_of(uri, folder).info.run_id
    shutil.copy(fresh_database, tmp_path / "second.db")
    second_uri = f"sqlite:///{tmp_path / 'second.db'}"
    with tracked(
        MlflowTracker(uri=second_uri, **OPTIONS),
        name="run",
        folder=folder,
        parameters=PARAMETERS,
        tags=TAGS,
        history=EPOCHS[:2],
    ):
        pass
    assert run_of(second_uri, folder).info.run_id != first
    assert steps_and_values(second_uri, folder, "val/loss") == [(1, 1.25), (2, 0.75)]


# Runs whose process is gone


def test_runs_of_dead_processes_are_closed_and_those_of_living_ones_left(
    uri: str, tmp_path: Path
) -> None:
    alive, mine = a_folder(tmp_path, "alive"), a_folder(tmp_path, "mine")
    gone, elsewhere = a_folder(tmp_path, "gone"), a_folder(tmp_path, "elsewhere")
    for folder in (gone, elsewhere):
        started(uri, folder)
    client = MlflowClient(tracking_uri=uri)
    client.set_tag(run_of(uri, elsewhere).info.run_id, "dermalyze.host", "another-machine")
    with child(HOLD_THE_LOCK, alive) as process:
        started(uri, alive)
        with run_lock(mine):
            started(uri, mine)
            assert run_of(uri, mine).info.status == "RUNNING"
            assert run_of(uri, alive).info.status == "RUNNING"
            assert run_of(uri, gone).info.status == "KILLED"
            assert run_of(uri, elsewhere).info.status == "RUNNING"

            process.send_signal(signal.SIGKILL)
            process.wait()
            started(uri, a_folder(tmp_path, "next"))
            assert run_of(uri, alive).info.status == "KILLED"
            assert run_of(uri, mine).info.status == "RUNNING"


def test_a_run_whose_folder_was_removed_is_closed(uri: str, tmp_path: Path) -> None:
    removed = a_folder(tmp_path, "removed")
    started(uri, removed)
    run_id = run_of(uri, removed).info.run_id
    shutil.rmtree(removed)
    started(uri, a_folder(tmp_path, "next"))
    assert MlflowClient(tracking_uri=uri).get_run(run_id).info.status == "KILLED"


def test_a_run_that_ends_while_it_is_looked_at_keeps_its_status(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_folder(tmp_path)
    tracker = started(uri, folder)

    def ends_just_now(looked_at: Path) -> bool:
        assert looked_at == folder
        tracker.finish("FINISHED")
        return True

    monkeypatch.setattr(mlflow_tracker, "is_abandoned", ends_just_now)
    started(uri, a_folder(tmp_path, "next"))
    assert run_of(uri, folder).info.status == "FINISHED"


TRACK_AND_WAIT = """
import sys, time
from pathlib import Path
from dermalyze.tracking.mlflow_tracker import MlflowTracker
from dermalyze.tracking.run_lock import run_lock
from dermalyze.tracking.tracker import tracked
uri, folder = sys.argv[1], Path(sys.argv[2])
tracker = MlflowTracker(uri=uri, experiment="skin", log_model=False, register_as=None)
with run_lock(folder), tracked(
    tracker, name="run", folder=folder, parameters={"a": "1"}, tags={}, history=[]
):
    tracker.log_metrics({"epoch": 1, "val/loss": 0.5}, step=1)
    print("ready", flush=True)
    time.sleep(120)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_that_can_be_gone_on_with(uri: str, tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    with child(TRACK_AND_WAIT, uri, folder) as process:
        started(uri, a_folder(tmp_path, "beside"))
        assert run_of(uri, folder).info.status == "RUNNING"
        process.send_signal(signal.SIGKILL)
        process.wait()
    started(uri, a_folder(tmp_path, "after"))
    assert run_of(uri, folder).info.status == "KILLED"
    assert steps_and_values(uri, folder, "val/loss") == [(1, 0.5)]

    with run_lock(folder):
        resumed = started(uri, folder)
        assert run_of(uri, folder).info.status == "RUNNING"
        resumed.log_metrics({"epoch": 1, "val/loss": 0.5}, step=1)
        resumed.log_metrics({"epoch": 2, "val/loss": 0.25}, step=2)
        resumed.finish("FINISHED")
    assert steps_and_values(uri, folder, "val/loss") == [(1, 0.5), (2, 0.25)]


# A store that cannot be reached


def test_a_server_that_is_down_costs_one_warning_and_no_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = a_folder(tmp_path)
    begun = time.monotonic()
    tracker = MlflowTracker(uri="http://127.0.0.1:9", **OPTIONS)
    with tracked(tracker, name="run", folder=folder, parameters=PARAMETERS, tags=TAGS, history=[]):
        for record in EPOCHS:
            tracker.log_metrics(record, step=int(record["epoch"] or 0))
        assert [text.partition(" (")[0] for text in our_warnings(caplog)] == [
            "tracking: http://127.0.0.1:9 cannot be used now"
        ]
        assert "Connection refused" in caplog.text or "Max retries" in caplog.text
    assert time.monotonic() - begun < 10
    # What is lost is said once more at the end: parameters, three epochs and the status.
    assert our_warnings(caplog)[1:] == [
        "5 records could not be sent to http://127.0.0.1:9. What they say lies in the run's "
        "folder; training.resume=RUN sends what is of training once the store answers."
    ]
    assert not (folder / "tracking.json").exists()


def test_a_store_that_comes_back_gets_all_of_it_in_order(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect, refusals = mlflow_tracker.connect, [OSError(), MlflowException("still down")]

    def connect_at_the_third_time(uri: str) -> MlflowClient:
        if refusals:
            raise refusals.pop(0)
        return connect(uri)

    monkeypatch.setattr(mlflow_tracker, "connect", connect_at_the_third_time)
    folder = a_folder(tmp_path)
    tracker = started(uri, folder)
    tracker.log_metrics(EPOCHS[0], step=1)
    assert not (folder / "tracking.json").exists()
    tracker.log_metrics(EPOCHS[1], step=2)
    assert steps_and_values(uri, folder, "val/loss") == [(1, 1.25), (2, 0.75)]
    assert run_of(uri, folder).data.params == PARAMETERS
    tracker.finish("FINISHED")
    assert run_of(uri, folder).info.status == "FINISHED"
    assert our_warnings(caplog) == [
        f"tracking: {uri} cannot be used now (OSError). Training goes on; what is not sent is "
        "kept and tried again after each epoch."
    ]


def test_a_store_that_goes_away_in_between_misses_nothing(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = Breakable(MlflowClient(tracking_uri=uri))
    monkeypatch.setattr(mlflow_tracker, "connect", lambda uri: client)
    folder = a_folder(tmp_path)
    (folder / "curves.png").write_bytes(b"png")
    tracker = started(uri, folder)
    tracker.log_metrics(EPOCHS[0], step=1)
    client.up = False
    tracker.log_metrics(EPOCHS[1], step=2)
    tracker.log_metrics(EPOCHS[2], step=3)
    tracker.log_artifact(folder / "curves.png", folder="plots")
    assert steps_and_values(uri, folder, "val/loss") == [(1, 1.25)]
    client.up = True
    tracker.finish("FINISHED")

    run = run_of(uri, folder)
    assert run.info.status == "FINISHED"
    assert steps_and_values(uri, folder, "val/loss") == [(1, 1.25), (2, 0.75), (3, 0.5)]
    files = MlflowClient(tracking_uri=uri).list_artifacts(run.info.run_id, "plots")
    assert [file.path for file in files] == ["plots/curves.png"]
    assert len(our_warnings(caplog)) == 1


def test_a_store_that_never_comes_back_is_told_at_the_end(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = Breakable(MlflowClient(tracking_uri=uri))
    monkeypatch.setattr(mlflow_tracker, "connect", lambda uri: client)
    tracker = started(uri, a_folder(tmp_path))
    client.up = False
    tracker.log_metrics(EPOCHS[0], step=1)
    tracker.finish("FINISHED")
    assert len(our_warnings(caplog)) == 2
    assert our_warnings(caplog)[1].startswith(f"2 records could not be sent to {uri}.")


def test_a_refused_record_does_not_hold_up_those_behind_it(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = a_folder(tmp_path)
    tracker = started(uri, folder, parameters={"no[brackets]": "1"})
    tracker.log_metrics(EPOCHS[0], step=1)
    tracker.finish("FINISHED")
    assert run_of(uri, folder).info.status == "FINISHED"
    assert steps_and_values(uri, folder, "val/loss") == [(1, 1.25)]
    (warning,) = our_warnings(caplog)
    assert warning.startswith("tracking: a record is refused, left out: ")
    assert "no[brackets]" in warning
    assert TAGS.items() <= run_of(uri, folder).data.tags.items()


def test_a_job_that_was_recorded_before_its_sweep_becomes_its_child(
    uri: str, tmp_path: Path
) -> None:
    sweep = a_folder(tmp_path, "sweep")
    jobs = [a_folder(sweep, "0"), a_folder(sweep, "1")]
    for job in jobs:
        started(uri, job).finish("FINISHED")
    NoTracker().adopt(jobs)  # the sweep is not recorded itself, as yet
    assert PARENT_TAG not in run_of(uri, jobs[0]).data.tags
    started(uri, sweep).adopt([*jobs, a_folder(sweep, "2")])  # the last of them is nowhere recorded
    for job in jobs:
        assert run_of(uri, job).data.tags[PARENT_TAG] == run_of(uri, sweep).info.run_id
        assert run_of(uri, job).info.status == "FINISHED"


def test_the_folder_of_another_user_does_not_stop_tracking(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, mine = a_folder(tmp_path, "theirs"), a_folder(tmp_path, "mine")
    started(uri, theirs)

    def denied(lock: FileLock, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", denied)
        assert not is_abandoned(theirs)
    monkeypatch.setattr(mlflow_tracker, "is_abandoned", lambda folder: folder == mine)
    started(uri, mine)
    assert run_of(uri, theirs).info.status == "RUNNING"
    assert our_warnings(caplog) == []


def test_one_who_looks_whether_a_run_lives_is_not_in_its_way(tmp_path: Path) -> None:
    looking = FileLock(tmp_path / ".run.lock", thread_local=False)
    looking.acquire()
    timer = threading.Timer(0.2, looking.release)
    timer.start()
    with run_lock(tmp_path):
        assert not looking.is_locked
    timer.join()


def test_a_file_that_is_gone_does_not_hold_up_what_comes_after_it(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = a_folder(tmp_path)
    tracker = started(uri, folder)
    tracker.log_artifact(folder / "run.json")
    tracker.finish("FINISHED")
    assert run_of(uri, folder).info.status == "FINISHED"
    assert our_warnings(caplog) == [
        f"tracking: there is no {folder / 'run.json'}, so it is left out"
    ]


def test_a_store_that_does_not_answer_is_not_asked_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asked = [0.0], []

    def connect_in_vain(uri: str) -> MlflowClient:
        asked.append(now[0])
        now[0] += 20
        raise MlflowException("timed out")

    monkeypatch.setattr(mlflow_tracker, "connect", connect_in_vain)
    monkeypatch.setattr(mlflow_tracker.time, "monotonic", lambda: now[0])
    tracker = started("http://127.0.0.1:9", a_folder(tmp_path))
    for step in range(1, 50):
        now[0] += 10
        tracker.log_metrics(EPOCHS[0], step=step)
    tracker.finish("FINISHED")
    assert asked == [0, 200, 400, now[0] - 20]


def test_a_damaged_database_does_not_stop_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database " * 100)
    tracker = started(f"sqlite:///{tmp_path / 'mlflow.db'}", a_folder(tmp_path))
    tracker.log_metrics(EPOCHS[0], step=1)
    (warning,) = our_warnings(caplog)
    assert "file is not a database" in warning


AT_ONCE = """
import os, sys, traceback
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store  # once, so that all open the store at one moment
from dermalyze.tracking.mlflow_tracker import MlflowTracker
from dermalyze.tracking.run_lock import run_lock
from dermalyze.tracking.tracker import tracked

uri, folders = sys.argv[1], [Path(folder) for folder in sys.argv[2:]]
wait, go = os.pipe()
children = []
for folder in folders:
    children.append(os.fork())
    if children[-1] == 0:
        os.close(go)
        os.read(wait, 1)  # until the last of them is there
        try:
            tracker = MlflowTracker(uri=uri, experiment="skin", log_model=False, register_as=None)
            with run_lock(folder), tracked(
                tracker,
                name=folder.name,
                folder=folder,
                parameters={f"p{number}": folder.name for number in range(30)},
                tags={},
                history=[],
            ):
                for epoch in range(1, 11):
                    values = {f"val/{number}": number / epoch for number in range(5)}
                    tracker.log_metrics({"epoch": epoch, **values}, step=epoch)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stderr.flush()
        os._exit(0)
os.close(go)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def runs_at_once(uri: str, parent: Path, count: int) -> None:
    """Start runs in as many processes at one moment; hold that each is recorded whole."""
    folders = [a_folder(parent, f"run{number}") for number in range(count)]
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, uri, *map(str, folders)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "tracking:" not in done.stderr  # no warning: nothing had to be kept for later
    for folder in folders:
        run = run_of(uri, folder)
        assert run.info.status == "FINISHED"
        assert run.data.params == {f"p{number}": folder.name for number in range(30)}
        for number in range(5):
            expected = [(epoch, number / epoch) for epoch in range(1, 11)]
            assert steps_and_values(uri, folder, f"val/{number}") == expected
    experiments = MlflowClient(tracking_uri=uri).search_experiments()
    assert sorted(experiment.name for experiment in experiments) == ["Default", "skin"]


@pytest.mark.slow
def test_eight_processes_open_one_fresh_store_at_once(tmp_path: Path) -> None:
    runs_at_once(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}", tmp_path, 8)


# The run's folder belongs to one process


def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path: Path) -> None:
    with child(HOLD_THE_LOCK, tmp_path) as process:
        with pytest.raises(RunInUseError) as refused, run_lock(tmp_path):
            pass
        assert f"{tmp_path}: process {process.pid} is working in this folder" in str(refused.value)
        assert f"kill {process.pid}" in str(refused.value)
        assert not is_abandoned(tmp_path)

        process.send_signal(signal.SIGKILL)
        process.wait()
        assert is_abandoned(tmp_path)
        with run_lock(tmp_path):
            assert not is_abandoned(tmp_path)
        assert is_abandoned(tmp_path)


def test_the_lock_is_freed_by_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a bug"), run_lock(tmp_path):
        raise ValueError("a bug")
    with run_lock(tmp_path):
        assert (tmp_path / ".run.pid").read_text() == str(os.getpid())
    assert not (tmp_path / ".run.pid").exists()


# MLflow's own habits


@pytest.mark.parametrize("chosen", [None, "false"])
def test_mlflow_calls_home_only_where_the_user_says_so(chosen: str | None) -> None:
    names = (
        "MLFLOW_DISABLE_TELEMETRY",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
        "MLFLOW_HTTP_REQUEST_TIMEOUT",
    )
    environment = {name: value for name, value in os.environ.items() if name not in names}
    if chosen is not None:
        environment["MLFLOW_DISABLE_TELEMETRY"] = chosen
    script = f"""
import os, sys
import dermalyze.tracking.mlflow_store
print(*[os.environ[name] for name in {names}], "mlflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [chosen or "true", "0", "20", "False"]


# The history in the run's folder


def test_the_history_is_whole_after_every_epoch(tmp_path: Path) -> None:
    for count in range(1, len(EPOCHS) + 1):
        write_history(tmp_path, EPOCHS[:count])
        assert json.loads((tmp_path / HISTORY).read_text()) == EPOCHS[:count]
    assert [path.name for path in tmp_path.iterdir()] == ["training_history.json"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_history(tmp_path, EPOCHS[:1])
    with pytest.raises(ValueError, match=re.escape("Out of range float values")):
        write_history(tmp_path, [*EPOCHS[:1], {"epoch": 2, "val/loss": float("nan")}])
    assert json.loads((tmp_path / HISTORY).read_text()) == EPOCHS[:1]

    def power_cut(descriptor: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(OSError, match="power cut"):
        write_json(tmp_path / HISTORY, EPOCHS)
    assert json.loads((tmp_path / HISTORY).read_text()) == EPOCHS[:1]
