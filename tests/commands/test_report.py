"""The page over runs, as a person asks for it."""

from __future__ import annotations

import json

from mlflow import MlflowClient


def test_the_report_of_a_run_is_added_to_its_mlflow_run(trained, python, tmp_path):
    done = python("-m", "dermalyze.report", f"runs={trained}", "output=about.html")
    assert "made about.html over 1 run, logged to MLflow for 1 of them. Next: " in done.stdout
    page = (tmp_path / "about.html").read_text(encoding="utf-8")
    fit = json.loads((trained / "fit.json").read_text())
    assert fit["rule"] in page
    assert f"<td>{fit['verdict']}</td>" in page
    history = json.loads((trained / "training_history.json").read_text())
    best = min(history, key=lambda record: record["val/loss"])
    assert f"<td>{best['epoch']} of {len(history)}</td>" in page
    assert f"<td>{best['val/balanced_accuracy']:.3f}</td>" in page

    identity = json.loads((trained / "tracking.json").read_text())
    client = MlflowClient(tracking_uri=identity["uri"])
    pictures = {item.path for item in client.list_artifacts(identity["run_id"], "plots")}
    assert pictures == {"plots/training_curves.png", "plots/about.html"}


def test_a_folder_that_is_no_run_is_named(python):
    failed = python("-m", "dermalyze.report", "runs=[nowhere]", expect=2)
    assert "nowhere is no run's folder (it has no config.yaml)" in failed.stdout
