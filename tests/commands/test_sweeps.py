"""A sweep's jobs are ordinary runs; together they are an ensemble, and none stops the others."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from omegaconf import OmegaConf
from same_run import assert_same_run

from dermalyze.evaluation.predictions import read_predictions
from dermalyze.sweep_folder import read_job
from dermalyze.taxonomy import HAM10000_CODES

STRUCK = str(Path(__file__).with_name("struck_sweep.py"))
SAVING = "training.checkpoint_every_steps=3"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def record_of(sweep: Path) -> dict:
    return json.loads((sweep / "sweep.json").read_text())


def in_mlflow(folder: Path):
    identity = json.loads((folder / "tracking.json").read_text())
    return MlflowClient(tracking_uri=identity["uri"]).get_run(identity["run_id"])


def metrics_of(evaluation: Path) -> dict:
    return json.loads((evaluation / "evaluation_metrics.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def whole(python_in, tiny, tmp_path_factory):
    """What a sweep of two seeds, one of them twice, said; and its folder."""
    start = tmp_path_factory.mktemp("sweeps")
    seeds = ("training.seed=7,13,7", SAVING, "hydra.sweep.dir=multirun/whole")
    said = python_in(start)("-m", "dermalyze.train", "-m", *tiny, *seeds)
    return said, start / "multirun" / "whole"


def test_seeds_are_compared_and_become_an_ensemble(whole, python, tmp_path):
    said, sweep = whole
    record = record_of(sweep)
    assert record["status"] == "done"
    assert [job["status"] for job in record["jobs"]] == ["done", "done", "twin"]
    assert [job["name"] for job in record["jobs"]] == [f"training.seed={s}" for s in (7, 13, 7)]
    assert record["jobs"][2]["same_as"] == 0
    assert not (sweep / "2" / "config.yaml").exists()

    (recipe,) = record["recipes"]
    assert recipe["jobs"] == [0, 1]
    tests = [metrics_of(sweep / str(number) / "evaluation" / "test") for number in (0, 1)]
    accuracies = [metrics["accuracy"] for metrics in tests]
    spread = recipe["test"]["accuracy"]
    assert (spread["mean"], spread["runs"]) == (pytest.approx(np.mean(accuracies)), 2)
    assert spread["deviation"] == pytest.approx(np.std(accuracies, ddof=1))
    aucs = [record["jobs"][number]["validation"]["macro_auc"] for number in (0, 1)]
    spread = recipe["validation"]["macro_auc"]
    assert spread["mean"] == pytest.approx(np.mean(aucs))
    shown = f"{np.mean(accuracies):.4f} ± {np.std(accuracies, ddof=1):.4f}"
    (line,) = [line for line in said.stdout.splitlines() if shown in line]
    assert line.startswith("  mean ± sd, 2 runs")

    # Anyone gets the ensemble's numbers again by its file.
    python("-m", "dermalyze.evaluate", f"checkpoint={sweep / 'ensemble.yaml'}", "output=again")
    again = metrics_of(tmp_path / "again")
    assert again == record["ensemble"]["test"]
    assert again == metrics_of(sweep / "evaluation" / "test_weighted_mean")
    members = [read_predictions(sweep / n / "evaluation" / "test").probs_NK for n in ("0", "1")]
    weights = [record["jobs"][n]["validation"]["balanced_accuracy"] for n in (0, 1)]
    np.testing.assert_allclose(
        read_predictions(tmp_path / "again").probs_NK,
        np.average(members, axis=0, weights=weights),
        rtol=1e-9,
    )


def test_a_sweep_is_one_run_in_mlflow_with_a_child_a_job(whole):
    _, sweep = whole
    parent = in_mlflow(sweep)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["training.seed"] == "7,13,7"
    accuracy = record_of(sweep)["recipes"][0]["test"]["accuracy"]
    assert parent.data.metrics["mean_test/accuracy"] == accuracy["mean"]
    children = [sweep / name for name in ("0", "1", "evaluation/test_weighted_mean")]
    runs = [in_mlflow(folder) for folder in children]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = [run.info.run_name for run in runs]
    assert names == ["0: training.seed=7", "1: training.seed=13", "ensemble"]
    assert (
        runs[-1].data.metrics["test/accuracy"] == record_of(sweep)["ensemble"]["test"]["accuracy"]
    )


def test_going_on_with_a_sweep_that_is_done_changes_nothing(whole, python_in):
    """Also not the twin, whose place nobody takes, nor who it is the same as."""
    _, sweep = whole
    before, claims = record_of(sweep), sorted((sweep / ".claims").iterdir())
    assert len(claims) == 2
    resumed = python_in(sweep.parents[1])(
        *("-m", "dermalyze.train", "sweep.resume=multirun/whole", "training.check_every_steps=7")
    )
    assert "3 jobs: 2 done, 1 the same as another" in resumed.stdout
    after = record_of(sweep)
    assert after.pop("fixed")[-2:] == ["sweep.resume", "training.check_every_steps"]
    assert after == {name: value for name, value in before.items() if name != "fixed"}
    assert sorted((sweep / ".claims").iterdir()) == claims
    assert not (sweep / "2" / "config.yaml").exists()


def test_the_ensembles_file_predicts_what_the_sweep_evaluated(whole, phantoms, python, tmp_path):
    _, sweep = whole
    evaluated = pd.read_csv(sweep / "evaluation" / "test_weighted_mean" / "predictions.csv")[:3]
    path_of = {path.stem: str(path) for path in phantoms.rglob("*.jpg")}
    rows = [path_of[name] for name in evaluated["image_id"]]
    pd.DataFrame({"path": rows}).to_csv(tmp_path / "images.csv", index=False)
    given = (f"checkpoint={sweep / 'ensemble.yaml'}", "images=images.csv", "output=p.csv")
    python("-m", "dermalyze.predict", *given, "device=cpu")
    predicted = pd.read_csv(tmp_path / "p.csv")
    assert predicted["image"].tolist() == rows
    columns = [f"probability_{code}" for code in HAM10000_CODES]
    np.testing.assert_allclose(predicted[columns], evaluated[columns], rtol=0, atol=1e-6)
    alone = read_predictions(sweep / "0" / "evaluation" / "test")
    assert np.abs(predicted[columns].to_numpy() - alone.probs_NK[:3]).max() > 1e-3


def test_a_sweep_survives_its_jobs_a_stop_and_its_own_death(whole, python, tiny, tmp_path):
    """Begun, stopped, resumed, killed, resumed: it equals the one that nothing happened to."""
    sweep = tmp_path / "sweep"
    misspelt = "training.monitor=val/los,val/loss"
    words = (misspelt, "training.seed=7,13", SAVING, f"hydra.sweep.dir={sweep}")
    strikes = json.dumps({"7": [4, "sweep SIGINT"]})
    struck = python(STRUCK, strikes, "-m", *tiny, *words, expect=130)
    assert "4 jobs: 2 failed, 1 stopped, 1 waiting" in struck.stdout
    failed = "job 1 (training.monitor=val/los, training.seed=13) failed: the configuration cannot"
    assert failed in struck.stdout
    assert f"Next: python -m dermalyze.train -m sweep.resume={sweep}" in struck.stdout
    record = record_of(sweep)
    assert record["status"] == "stopped"
    assert [job["status"] for job in record["jobs"]] == ["failed", "failed", "stopped", "waiting"]
    assert [job["exit_code"] for job in record["jobs"]] == [2, 2, 130, None]
    assert [in_mlflow(sweep / name).info.status for name in "2."] == ["KILLED", "KILLED"]

    strikes = json.dumps({"7": [7, "SIGKILL"], "13": [7, "sweep SIGKILL"]})
    python(STRUCK, strikes, "-m", f"sweep.resume={sweep}", expect=-signal.SIGKILL)
    assert record_of(sweep)["status"] == "stopped"  # of the beginning that could still say so
    killed = [read_job(sweep / name) for name in "23"]
    assert [(job.status, job.exit_code) for job in killed] == [("failed", 137), ("running", None)]
    assert "SIGKILL, as the system does where memory is short" in killed[0].reason

    last = python("-m", "dermalyze.train", f"sweep.resume={sweep}", expect=2)
    assert "4 jobs: 2 done, 2 failed" in last.stdout
    record = record_of(sweep)
    assert [job["status"] for job in record["jobs"]] == ["failed", "failed", "done", "done"]
    assert [in_mlflow(sweep / n).info.status for n in "23."] == ["FINISHED", "FINISHED", "FAILED"]
    for number, same in (("2", "0"), ("3", "1")):
        assert_same_run(sweep / number, whole[1] / same)
    # Whichever beginning ended a job, it is called and grouped by what the sweep is over.
    assert record["jobs"][2]["name"] == "training.monitor=val/loss, training.seed=7"
    (recipe,) = record["recipes"]
    assert (recipe["overrides"], recipe["jobs"]) == (["training.monitor=val/loss"], [2, 3])
    # An ensemble of those that are done, but no look at the test split before all are.
    assert record["ensemble"] == {"file": "ensemble.yaml", "problem": None, "test": None}
    ensemble = OmegaConf.load(sweep / "ensemble.yaml")
    assert (ensemble.checkpoints, list(ensemble.left_out)) == (["2", "3"], [0, 1])


def test_what_makes_no_sweep_is_refused_before_its_first_job(whole, python, tiny, tmp_path):
    _, sweep = whole
    train = ("-m", "dermalyze.train", "-m")
    taken = python(*train, *tiny, "training.seed=1,2", f"hydra.sweep.dir={sweep}", expect=2)
    assert f"Go on with it by sweep.resume={sweep}" in taken.stderr
    missing = python(*train, "sweep.resume=nowhere", expect=2)
    assert "sweep.resume=nowhere: not a sweep's folder, there is no such folder" in missing.stderr
    other = python(*train, f"sweep.resume={sweep}", "training.epochs=3", expect=2)
    assert "training.epochs=3 would make another" in other.stderr
    for words, said in (
        ("training.sed=1,2", "training.sed: there is no such key or group. Did you mean"),
        ("training.seed=1,-2", "training.seed=-2 (int): Input should be greater than or equal"),
        (
            "model/head=simple,acrn",
            "model/head=acrn: there is no such option. Did you mean 'acrnn'?",
        ),
    ):
        refused = python(*train, *tiny, words, "hydra.sweep.dir=new", expect=2)
        assert said in refused.stderr
        assert refused.stdout == ""
    assert not any(tmp_path.iterdir())
