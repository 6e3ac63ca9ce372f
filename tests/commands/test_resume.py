"""A stopped and resumed run is the uninterrupted run, to the last bit."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from same_run import assert_same_run

from dermalyze.checkpoint_file import LATEST, read_checkpoint
from dermalyze.compute import multiplies_bf16

STOPPED = str(Path(__file__).with_name("stopped_train.py"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_killed_five_times_equals_uninterrupted(python, tiny, tmp_path):
    overrides = (
        *tiny,
        "training.epochs=3",
        "training.checkpoint_every_steps=3",
        "sampler=weighted",
        "loss=ldam",
        "loss.reweight_from=1",  # a loss that changes between epochs
        "training.allow_double_correction=true",
        "augmentation=medium",
        "tracking=none",
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    python("-m", "dermalyze.train", *overrides, f"hydra.run.dir={whole}")

    steps = len(read_checkpoint(whole / LATEST)[0]["epoch/step_losses"]) * 3
    strikes = sorted(random.Random(20).sample(range(1, steps), 5))
    folder = [f"hydra.run.dir={stopped}"]
    for strike in strikes:
        python(STOPPED, str(strike), "SIGKILL", *overrides, *folder, expect=-signal.SIGKILL)
        # A run struck before its first checkpoint has nothing to resume but its config.
        folder = [f"training.resume={stopped}"]
    python("-m", "dermalyze.train", f"training.resume={stopped}")
    assert_same_run(stopped, whole)


def test_sigterm_saves_ends_truthfully_and_resumes_in_the_same_mlflow_run(python, tiny, tmp_path):
    run = tmp_path / "run"
    stopped = python(STOPPED, "4", "SIGTERM", *tiny, f"hydra.run.dir={run}", expect=143)
    assert "state is saved" in stopped.stdout
    of_bf16 = "this CPU multiplies in bf16 too: training.amp=bf16"
    assert (of_bf16 in stopped.stdout) == multiplies_bf16(torch.device("cpu"))
    header = read_checkpoint(run / LATEST)[1]
    assert (header["state"]["epoch"], header["state"]["step"]) == (0, 5)

    identity = json.loads((run / "tracking.json").read_text())
    client = MlflowClient(tracking_uri=identity["uri"])
    assert client.get_run(identity["run_id"]).info.status == "KILLED"

    (run / "run.json").unlink()  # as of a run that was killed before it had one
    resumed = python("-m", "dermalyze.train", f"training.resume={run}")
    assert (run / "run.json").is_file()
    assert of_bf16 not in resumed.stdout  # its number format is settled
    assert client.get_run(identity["run_id"]).info.status == "FINISHED"
    assert json.loads((run / "tracking.json").read_text()) == identity
    epochs = [m.step for m in client.get_metric_history(identity["run_id"], "val/loss")]
    assert epochs == [1, 2]

    # Again: nothing to train, and what the store lacks is recorded.
    client.set_terminated(identity["run_id"], "FAILED")
    (run / ".checkpoint_latest.safetensors.1.tmp").write_text("left by a killed write")
    done = python("-m", "dermalyze.train", f"training.resume={run}")
    assert "this run is done" in done.stdout
    assert client.get_run(identity["run_id"]).info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(identity["run_id"], "val/loss")] == [1, 2]
    assert not list(run.glob(".*.tmp"))


def test_what_cannot_be_resumed_is_refused(python, tiny, tmp_path):
    run = tmp_path / "run"
    python("-m", "dermalyze.train", *tiny, "tracking=none", f"hydra.run.dir={run}")

    again = python("-m", "dermalyze.train", *tiny, f"hydra.run.dir={run}", expect=2)
    assert f"training.resume={run}" in again.stdout

    missing = python("-m", "dermalyze.train", "training.resume=nowhere", expect=2)
    assert "nowhere: not a run folder, it does not exist" in missing.stderr
    assert not (tmp_path / "nowhere").exists()

    other = (f"training.resume={run}", "loss=focal")
    changed = python("-m", "dermalyze.train", *other, expect=2)
    assert "loss._target_: dermalyze.losses.cross_entropy.CrossEntropy -> " in changed.stdout
