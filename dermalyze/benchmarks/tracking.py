"""What recording a run in MLflow costs, beside the seconds that the run trains."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from dermalyze.benchmarks.timing import Bars, Report

# What a run does with its tracker, in the size of a run on HAM10000, in a process that has imported
# what training needs, as a run's process has by then.
_ONE_RUN = """
import json, sys, time
from pathlib import Path

import torch

from dermalyze.checkpoint_file import BEST, write_checkpoint
from dermalyze.evaluation.metrics import METRICS
from dermalyze.experiment import SERVED_MODEL
from dermalyze.run_folder import software
from dermalyze.taxonomy import HAM10000_CODES
from dermalyze.tracking.mlflow_tracker import MlflowTracker

folder, uri, log_model, epochs, megabytes = json.loads(sys.argv[1])
folder = Path(folder)
folder.mkdir()
header = {
    "kind": "best",
    "classes": list(HAM10000_CODES),
    "metadata": {"columns": []},
    "software": software(device="cpu", threads=1, precision="off"),
}
write_checkpoint(folder / BEST, {"weights": torch.rand(int(megabytes * 250_000))}, header)
files = [folder / f"{number}.csv" for number in range(9)]
for file in files:
    file.write_text("ISIC_0000000,HAM_0000000,nv\\n" * 4000)

seconds = {}
begun, computed = time.perf_counter(), time.process_time()

def lap(name):
    global begun
    now = time.perf_counter()
    seconds[name], begun = now - begun, now

tracker = MlflowTracker(uri=uri, experiment="runs", log_model=log_model, register_as=None)
parameters = {f"part.option_{number}": "value" for number in range(150)}
tracker.start(name="run", folder=folder, parameters=parameters, tags=dict.fromkeys("abcdefgh", "t"))
lap("begin")
for epoch in range(1, epochs + 1):
    record = {f"val/{name}": 0.5 for name in METRICS}
    record |= {"epoch": epoch, "train/loss": 1.0, "train/accuracy": 0.5, "lr": 1e-3}
    tracker.log_metrics(record, step=epoch)
lap("epochs")
for file in files:
    tracker.log_artifact(file)
tracker.log_checkpoint(folder / BEST, code=SERVED_MODEL)
tracker.finish("FINISHED")
lap("end")
seconds["cpu"] = time.process_time() - computed
print(json.dumps(seconds))
"""
_FILE, _MODEL = "a mere file", "a served model"


def measure(
    *, repeats: int, epochs: int, seconds_per_epoch: float, checkpoint_megabytes: float
) -> Report:
    """Time the tracker of a run: importing MLflow and beginning, the epochs' metrics, the end.

    The store is a local SQLite file; the first run, which makes it, is not counted.

    Args:
        repeats: runs of each kind, in turns.
        epochs: of a run.
        seconds_per_epoch: that training takes; what the cost is compared with.
        checkpoint_megabytes: of random weights, 10^6 bytes.
    """
    found: dict[str, list[dict[str, float]]] = {_FILE: [], _MODEL: []}
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        for turn in tqdm(range(repeats + 1), desc="tracking", leave=False, disable=None):
            for kind, laps in found.items():
                run = f"{folder}/{turn}_{kind}"
                words = json.dumps([run, uri, kind == _MODEL, epochs, checkpoint_megabytes])
                done = subprocess.run(
                    [sys.executable, "-c", _ONE_RUN, words],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                if turn > 0:
                    laps.append(json.loads(done.stdout))
    training = epochs * seconds_per_epoch
    rows = shares(found, epochs=epochs, training=training)
    title = (
        f"tracking of a run of {epochs} epochs of {seconds_per_epoch:g} s, with a checkpoint of "
        f"{checkpoint_megabytes:g} MB, {repeats} runs each"
    )
    numbers = {"tracking": rows, "training_seconds": training}
    return Report(title, _table(rows), numbers, Bars("seconds a run", rows, of="total"))


def shares(
    laps: Mapping[str, Sequence[Mapping[str, float]]], *, epochs: int, training: float
) -> list[dict[str, Any]]:
    """Return a row for each kind of run: medians in seconds, and shares of the training.

    Args:
        laps: of each run the seconds of `begin`, `epochs` and `end`, and those that its processor
            computed, `cpu`, which are the same on a busy machine.
        epochs: of a run.
        training: seconds that a run trains.
    """
    rows = []
    for kind, runs in laps.items():
        parts = ("begin", "epochs", "end")
        begin, each, end = (statistics.median(run[part] for run in runs) for part in parts)
        total = statistics.median(sum(run[part] for part in parts) for run in runs)
        cpu = statistics.median(run["cpu"] for run in runs)
        rows.append(
            {
                "what": kind,
                "begin": begin,
                "epoch": each / epochs,
                "end": end,
                "total": total,
                "share": total / training,
                "cpu": cpu,
                "cpu_share": cpu / training,
            }
        )
    return rows


def _table(rows: list[dict[str, Any]]) -> list[str]:
    table = [
        f"{'the checkpoint as':<18}{'begin':>8}{'an epoch':>11}{'end':>8}{'all':>9}{'share':>8}"
        f"{'computed':>11}{'share':>8}"
    ]
    for row in rows:
        table.append(
            f"{row['what']:<18}{row['begin']:>6.2f} s{1000 * row['epoch']:>8.0f} ms"
            f"{row['end']:>6.2f} s{row['total']:>7.2f} s{row['share']:>8.2%}"
            f"{row['cpu']:>9.2f} s{row['cpu_share']:>8.2%}"
        )
    return table
