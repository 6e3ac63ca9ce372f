"""A search as a person starts it: pruning, MLflow, going on, and two workers of one study."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from omegaconf import OmegaConf

from dermalyze.sweep_folder import read_job
from dermalyze.taxonomy import DISCLAIMER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# One rate learns, one leaps too far; with this seed in this order.
QUICK = (
    "sweep=optuna_quick",
    "optimizer.lr=choice(1e-3,10.0)",
    "hydra.sweeper.seed=1",
    "optimizer.weight_decay=0.01",
    "augmentation=none",
    "loss=cross_entropy",
    "hydra.sweeper.pruner.n_startup_trials=1",
    "hydra.sweeper.pruner.n_warmup_steps=0",
)


def trials_of(study: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((study / "trials.csv").read_text().splitlines()))


def in_mlflow(folder: Path):
    identity = json.loads((folder / "tracking.json").read_text())
    client = MlflowClient(tracking_uri=identity["uri"])
    return client, client.get_run(identity["run_id"])


def test_a_search_prunes_and_its_trials_are_children_in_mlflow(python, tiny, tmp_path):
    first = ("hydra.sweep.dir=multirun/first", "hydra.sweeper.n_trials=2")
    done = python("-m", "dermalyze.train", "-m", *tiny, *QUICK, *first)
    assert DISCLAIMER in done.stdout
    study, sweep = tmp_path / "outputs/studies/optuna_quick", tmp_path / "multirun/first"
    trials = trials_of(study)
    assert [trial["optimizer.lr"] for trial in trials] == ["0.001", "10.0"]
    states = ["done", "pruned"]
    assert [trial["state"] for trial in trials] == states
    assert [read_job(sweep / str(number)).status for number in range(2)] == states

    client, parent = in_mlflow(sweep)
    runs = [in_mlflow(sweep / str(number))[1] for number in range(2)]
    for trial, run in zip(trials, runs, strict=True):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.data.tags["study"], run.data.tags["trial"]) == ("optuna_quick", trial["trial"])
        assert float(run.data.params["optimizer.lr"]) == float(trial["optimizer.lr"])
    assert [run.info.status for run in runs] == ["FINISHED", "KILLED"]
    planned, pruned = (run.data.tags.get("ended_because") for run in runs)
    assert planned is None
    assert pruned.startswith("pruned after epoch 1: val/loss was ")
    assert pruned == trials[1]["reason"]
    values = client.get_metric_history(runs[0].info.run_id, "val/loss")
    assert float(trials[0]["value"]) == pytest.approx(min(point.value for point in values))
    shown = {item.path for item in client.list_artifacts(parent.info.run_id, "study")}
    assert {"study/history.png", "study/trials.csv", "study/optimization_results.yaml"} <= shown

    best = OmegaConf.load(study / "optimization_results.yaml")
    assert (best.best_trial, best.best_params["optimizer.lr"]) == (0, "0.001")
    assert "2 of 2 trials: 1 done, 1 pruned" in done.stdout


@pytest.mark.thorough
def test_a_worker_that_is_killed_loses_nothing_to_the_other(tiny, tmp_path):
    """Two processes of one study; the first is killed in its first trial."""
    words = ("sweep=optuna_quick", "hydra.sweeper.n_trials=6", "training.epochs=3")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def worker(name: str) -> subprocess.Popen:
        with (tmp_path / f"{name}.log").open("w") as log:
            folder = f"hydra.sweep.dir=multirun/{name}"
            return subprocess.Popen(
                [sys.executable, "-m", "dermalyze.train", "-m", *tiny, *words, folder],
                cwd=tmp_path,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    one, other = worker("one"), worker("other")
    begun = tmp_path / "multirun/one/0/checkpoint_latest.safetensors"
    while not begun.exists():
        assert one.poll() is None, (tmp_path / "one.log").read_text()
        time.sleep(0.05)
    one.send_signal(signal.SIGKILL)
    assert one.wait(60) == -signal.SIGKILL
    number = json.loads((begun.parent / "trial.json").read_text())["number"]
    assert other.wait(400) == 0, (tmp_path / "other.log").read_text()

    trials = trials_of(tmp_path / "outputs/studies/optuna_quick")
    assert [int(trial["trial"]) for trial in trials] == list(range(6))
    assert {trial["state"] for trial in trials} <= {"done", "pruned"}
    assert len({Path(trial["folder"]) for trial in trials}) == 6
    assert Path(trials[number]["folder"]).parent.name == "other"  # begun again there
    begun_params = json.loads((begun.parent / "trial.json").read_text())["params"]
    for name, value in begun_params.items():
        assert trials[number][name] == str(value)

    again = worker("again")
    assert again.wait(200) == 0, (tmp_path / "again.log").read_text()
    assert "6 of 6 trials" in (tmp_path / "again.log").read_text()
    assert not (tmp_path / "multirun/again/0").exists()
