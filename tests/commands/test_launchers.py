"""Several jobs at once on this machine: killed ones, stopped ones, and a sweep that goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from omegaconf import OmegaConf
from same_run import assert_same_run

from dermalyze.sweep_folder import jobs_of

LONG = ("training.epochs=25", "training.patience=null", "training.checkpoint_every_steps=2")

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not what():
        assert time.monotonic() < deadline, "this took too long"
        time.sleep(0.05)


def in_mlflow(folder: Path):
    identity = json.loads((folder / "tracking.json").read_text())
    return MlflowClient(tracking_uri=identity["uri"]).get_run(identity["run_id"])


def test_ray_makes_the_same_runs_on_a_cluster_of_this_machine(python, tiny, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="dermalyze[ray]")
    words = (*tiny, "tracking=none", "sweep.evaluate=false")
    sweep = tmp_path / "sweep"
    started = subprocess.run(
        [
            *(sys.executable, "-m", "dermalyze.train", "-m", *words, "hydra/launcher=ray"),
            *("training.monitor=val/loss,val/los,val/accuracy", f"hydra.sweep.dir={sweep}"),
        ],
        cwd=tmp_path,
        # Ray's processes are nice, so that on a busy machine they would never end.
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 2, started.stdout + started.stderr
    assert "3 jobs: 2 done, 1 failed" in started.stdout
    for number, monitor in ((0, "val/loss"), (2, "val/accuracy")):
        alone = (f"training.monitor={monitor}", f"hydra.run.dir=alone_{number}")
        python("-m", "dermalyze.train", *words, *alone)
        assert_same_run(sweep / str(number), tmp_path / f"alone_{number}")


def test_joblib_killed_and_stopped_goes_on_under_another_launcher(python, tiny, tmp_path):
    """A job that the system kills, then Ctrl-C in the terminal of the sweep: all its processes."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="dermalyze[joblib]")
    words = (*tiny, *LONG)
    sweep, log = tmp_path / "sweep", tmp_path / "log"
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    command = ("dermalyze.train", "-m", *words, *launcher, "training.seed=7,13,21,34")
    with (
        log.open("w") as said,
        subprocess.Popen(
            [sys.executable, "-m", *command, f"hydra.sweep.dir={sweep}"],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as started,
    ):
        try:
            wait_for((sweep / "0" / "training_history.json").exists)
            os.kill(int((sweep / "0" / ".run.pid").read_text()), signal.SIGKILL)
            wait_for((sweep / "2" / "training_history.json").exists)  # in its place
            os.killpg(started.pid, signal.SIGINT)
            assert started.wait(timeout=300) == 130, log.read_text()
        finally:
            started.kill()
    ended = [job.status for job in jobs_of(sweep)]
    assert (ended[0], ended[2]) == ("failed", "stopped")
    assert ended[3] == "waiting" or (ended[1], ended[3]) == ("done", "stopped")  # had begun
    assert "jobs that run save and stop" in log.read_text()
    assert "Traceback" not in log.read_text()

    python("-m", "dermalyze.train", f"sweep.resume={sweep}", "hydra/launcher=basic")
    assert [job.status for job in jobs_of(sweep)] == ["done"] * 4
    for number, seed in ((0, 7), (2, 21)):
        alone = (f"training.seed={seed}", f"hydra.run.dir={seed}", "tracking=none")
        python("-m", "dermalyze.train", *words, *alone)
        assert_same_run(sweep / str(number), tmp_path / str(seed))
    assert OmegaConf.load(sweep / "ensemble.yaml").checkpoints == ["0", "1", "2", "3"]
    assert (sweep / "evaluation/test_weighted_mean/evaluation_metrics.json").is_file()
    parent = in_mlflow(sweep)
    children = [in_mlflow(sweep / n) for n in ("0", "1", "2", "3", "evaluation/test_weighted_mean")]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    names = [run.info.run_name for run in children]
    assert names == [
        *(f"{n}: training.seed={s}" for n, s in enumerate((7, 13, 21, 34))),
        "ensemble",
    ]


def test_submitit_makes_the_same_runs_on_this_machine(python, tiny, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="dermalyze[slurm]")
    words = (*tiny, "tracking=none", "sweep.evaluate=false")
    sweep = tmp_path / "sweep"
    launched = ("hydra/launcher=submitit_local", "training.seed=7,13", f"hydra.sweep.dir={sweep}")
    done = python("-m", "dermalyze.train", "-m", *words, *launched, cold=True)
    assert "2 jobs: 2 done" in done.stdout
    assert [job.status for job in jobs_of(sweep)] == ["done", "done"]
    for number, seed in enumerate((7, 13)):
        python("-m", "dermalyze.train", *words, f"training.seed={seed}", f"hydra.run.dir={seed}")
        assert_same_run(sweep / str(number), tmp_path / str(seed))
