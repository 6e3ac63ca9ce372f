"""Training, evaluation and sweeps, as commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from dermalyze.checkpoint_file import BEST, read_checkpoint
from dermalyze.taxonomy import DISCLAIMER, HAM10000_CODES

FIGURES = (
    "calibration_curve",
    "confusion_matrix",
    "errors",
    "per_class_metrics",
    "pr_curves",
    "risk_coverage",
    "roc_curves",
)

pytestmark = pytest.mark.slow


def test_a_run_and_its_evaluation(trained, python):
    run = trained
    header = read_checkpoint(run / BEST)[1]
    history = json.loads((run / "training_history.json").read_text())
    best = min(history, key=lambda record: record["val/loss"])
    assert header["epoch"] == best["epoch"]
    assert {
        f"val/{k}" for k in ("loss", "accuracy", "balanced_accuracy", "macro_f1", "macro_auc")
    } <= (header["validation_metrics"].keys())
    fit = json.loads((run / "fit.json").read_text())
    assert fit["val_loss"] == pytest.approx(np.mean([record["val/loss"] for record in history]))
    assert (run / "training_curves.png").read_bytes().startswith(b"\x89PNG")

    # What training stored is what evaluation finds.
    done = python("-m", "dermalyze.evaluate", f"checkpoint={run}", "split=val")
    assert DISCLAIMER in done.stdout
    found = json.loads((run / "evaluation/val/evaluation_metrics.json").read_text())["metrics"]
    for name, value in header["validation_metrics"].items():
        assert found[name.removeprefix("val/")] == pytest.approx(value, abs=1e-6), name

    # The test split: predictions, confusion matrix, and the model's own MLflow run.
    python("-m", "dermalyze.evaluate", f"checkpoint={run / BEST}")
    report = json.loads((run / "evaluation/test/evaluation_metrics.json").read_text())
    predictions = pd.read_csv(run / "evaluation/test/predictions.csv")
    test_split = pd.read_csv(run / "test_split.csv")
    assert predictions["image_id"].tolist() == test_split["image_id"].tolist()
    probabilities = predictions[[f"probability_{code}" for code in HAM10000_CODES]]
    assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1.0, abs=1e-9)
    assert (predictions["predicted"] == predictions["dx"]).mean() == pytest.approx(
        report["metrics"]["accuracy"]
    )
    counts = pd.crosstab(predictions["dx"], predictions["predicted"])
    counts = counts.reindex(index=HAM10000_CODES, columns=HAM10000_CODES, fill_value=0)
    assert report["confusion_matrix"]["counts"] == counts.to_numpy().tolist()
    for name, value in report["metrics"].items():
        estimate = report["intervals"]["overall"][name]
        assert estimate["value"] == pytest.approx(value), name
        assert estimate["low"] <= estimate["high"], name
        assert estimate["draws"] == report["intervals"]["draws"] == 2000, name
    kept = json.loads((run / "calibration.json").read_text())["fits"][-1]
    assert report["calibration"]["temperature"] == kept["fitted"]["temperature"]
    assert (
        report["calibration"]["validation"]["after"]["nll"]
        <= (report["calibration"]["validation"]["before"]["nll"])
    )
    assert kept["fitted"]["validation"]["before"]["nll"] == pytest.approx(
        header["validation_metrics"]["val/loss"], abs=1e-6
    )
    held = [dx in found.split() for dx, found in predictions[["dx", "set_lac"]].to_numpy()]
    assert report["sets"]["lac"]["coverage"] == pytest.approx(np.mean(held))
    folder = run / "evaluation" / "test"
    assert {path.name for path in folder.iterdir()} == {
        "evaluation_metrics.json",
        "predictions.csv",
        "report.html",
        "submission_isic2018.csv",
        *(f"{name}.png" for name in FIGURES),
    }
    sent = pd.read_csv(folder / "submission_isic2018.csv").set_index("image")
    assert sent.index.tolist() == test_split["image_id"].tolist()
    sent = sent[[code.upper() for code in HAM10000_CODES]]
    np.testing.assert_array_equal(sent.to_numpy(), probabilities.to_numpy())
    score = report["isic2018"]["balanced_accuracy"]
    assert score == pytest.approx(report["metrics"]["balanced_accuracy"])
    assert report["fitted_on_these"] is None
    sexes = report["subgroups"]["sex"].values()
    assert sum(group["images"] for group in sexes) == report["images"] == len(predictions)

    identity = json.loads((run / "tracking.json").read_text())
    client = MlflowClient(tracking_uri=identity["uri"])
    logged = client.get_run(identity["run_id"])
    assert Path(identity["uri"].removeprefix("sqlite:///")) == run.parents[1] / "mlflow.db"
    assert logged.info.status == "FINISHED"
    assert logged.data.params["training.epochs"] == "2"
    assert logged.data.tags["split_fingerprint"] == header["split_fingerprint"]
    assert logged.data.metrics["test/accuracy"] == pytest.approx(report["metrics"]["accuracy"])
    names = {item.path for item in client.list_artifacts(identity["run_id"])}
    evaluated = client.list_artifacts(identity["run_id"], "evaluation/test")
    assert {Path(item.path).name for item in evaluated} == {path.name for path in folder.iterdir()}
    assert {
        "config_redacted.yaml",
        "fit.json",
        "train_split.csv",
        "split.json",
        "plots",
        "evaluation",
    } <= names


@pytest.mark.thorough
def test_training_from_larger_pictures_is_judged_on_decoded_ones(python, tiny, trained, tmp_path):
    python("-m", "dermalyze.train", *tiny, "data.cache_size=48", "hydra.run.dir=larger")
    history = json.loads((tmp_path / "larger" / "training_history.json").read_text())
    before = json.loads((trained / "training_history.json").read_text())
    assert history[0]["train/loss"] != before[0]["train/loss"]
    python("-m", "dermalyze.evaluate", "checkpoint=larger", "split=val")
    report = json.loads((tmp_path / "larger/evaluation/val/evaluation_metrics.json").read_text())
    assert report["fitted_on_these"].startswith("these images chose the epoch, the temperature")
    header = read_checkpoint(tmp_path / "larger" / BEST)[1]
    assert header["preprocess"]["image_size"] == 32
    for name, value in header["validation_metrics"].items():
        assert report["metrics"][name.removeprefix("val/")] == pytest.approx(value, abs=1e-6), name
    sizes = {
        np.load(array, mmap_mode="r").shape[1:]
        for array in (tmp_path / "outputs" / "cache").glob("*/images.npy")
    }
    assert sizes == {(32, 32, 3), (48, 48, 3)}


@pytest.mark.thorough
def test_a_cache_of_the_models_size_changes_nothing(python, tiny, trained, tmp_path):
    python("-m", "dermalyze.train", *tiny, "data.cache_size=32", "hydra.run.dir=same")
    history = json.loads((tmp_path / "same" / "training_history.json").read_text())
    before = json.loads((trained / "training_history.json").read_text())
    for record in (*history, *before):
        del record["images_per_second"]
    assert history == before


def test_lesions_that_were_seen_are_refused(trained, python, phantoms):
    data = ("data=synthetic", f"data.root={phantoms}", "data.source.lesions=84")
    drawn = (*data, "data.source.image_size=32", "data.source.imbalance=0.0", "split=all")
    refused = python("-m", "dermalyze.evaluate", f"checkpoint={trained}", *drawn, expect=2)
    assert "were used to train or select this model" in refused.stdout
    identity = json.loads((trained / "tracking.json").read_text())
    client = MlflowClient(tracking_uri=identity["uri"])
    before = client.get_run(identity["run_id"]).data.metrics
    python(
        "-m",
        "dermalyze.evaluate",
        f"checkpoint={trained}",
        *drawn,
        "allow_seen_lesions=true",
        "output=leaks: 84",
    )
    # What lies elsewhere than in the run's folder takes no name of what lies there.
    after = client.get_run(identity["run_id"]).data.metrics
    assert {name: after[name] for name in before} == before
    added = {name.rpartition("/")[0] for name in after.keys() - before.keys()}
    assert added == {"all/leaks_ 84"}
    (folder,) = client.list_artifacts(identity["run_id"], "evaluation/all")
    assert folder.path == "evaluation/all/leaks_ 84"


@pytest.mark.thorough
def test_the_third_job_of_a_sweep_is_the_same_job_alone(python, tiny, tmp_path):
    sweep, alone = tmp_path / "sweep", tmp_path / "alone"
    common = (*tiny, "training.epochs=1")
    python(
        "-m",
        "dermalyze.train",
        "-m",
        *common,
        "training.seed=7,13,21",
        "model/head=acrnn",
        f"hydra.sweep.dir={sweep}",
    )
    python(
        "-m",
        "dermalyze.train",
        *common,
        "training.seed=21",
        "model/head=acrnn",
        f"hydra.run.dir={alone}",
    )
    jobs = sorted(path.parent.name for path in sweep.glob("*/training_history.json"))
    assert jobs == ["0", "1", "2"]
    job, expected = read_checkpoint(sweep / "2" / BEST), read_checkpoint(alone / BEST)
    assert all(torch.equal(job[0][name], tensor) for name, tensor in expected[0].items())
    assert job[1] == expected[1]
    other = read_checkpoint(sweep / "0" / BEST)[0]
    assert not all(torch.equal(other[name], tensor) for name, tensor in expected[0].items())


def test_without_data_it_says_where_it_looked_and_what_to_do(python, tmp_path):
    for command in ("train", "prepare"):
        failed = python("-m", f"dermalyze.{command}", "data.root=nowhere", expect=2)
        assert str(tmp_path / "nowhere") in failed.stdout
        assert "doi:10.7910/DVN/DBW86T" in failed.stdout
        assert "data=synthetic" in failed.stdout
        assert "Traceback" not in failed.stdout + failed.stderr


def test_prepare_writes_labels_and_a_summary_and_touches_nothing_else(
    python, tiny, phantoms, tmp_path, trained
):
    data = [part for part in tiny if part.startswith("data")]
    before = {path: path.read_bytes() for path in phantoms.rglob("*") if path.is_file()}
    done = python("-m", "dermalyze.prepare", *data, "output=prepared")
    assert f"python -m dermalyze.train data=synthetic data.root={phantoms}" in done.stdout

    labels = pd.read_csv(tmp_path / "prepared/phantoms/labels.csv", dtype=str)
    table = pd.read_csv(phantoms / "HAM10000_metadata.csv", dtype=str).sort_values("image_id")
    assert labels[["image_id", "lesion_id", "dx"]].to_numpy().tolist() == (
        table[["image_id", "lesion_id", "dx"]].to_numpy().tolist()
    )
    summary = json.loads((tmp_path / "prepared/phantoms/summary.json").read_text())
    assert (summary["images"], summary["lesions"]) == (len(table), 84)
    images = {name: counts["images"] for name, counts in summary["classes"].items()}
    assert images == table["dx"].value_counts().to_dict()
    assert summary["disclaimer"] == DISCLAIMER
    audit = json.loads((tmp_path / "prepared/phantoms/audit.json").read_text())
    assert audit["disclaimer"] == DISCLAIMER
    assert DISCLAIMER in (tmp_path / "prepared/phantoms/audit.html").read_text()
    assert before == {path: path.read_bytes() for path in phantoms.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("trained")  # by whom the phantoms were drawn
def test_prepare_names_files_that_cannot_be_read_and_the_next_step_works(
    python, phantoms, tmp_path
):
    """Row 24 of the catalogue, from the command's side: everything is written, the exit code 2."""
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    short, empty, *_ = sorted(data.rglob("*.jpg"))
    short.write_bytes(short.read_bytes()[:400])
    empty.write_bytes(b"")
    words = ("-m", "dermalyze.prepare", f"data.root={data}", "output=prepared")
    failed = python(*words, expect=2)
    assert "images that cannot be read: 2. Get these files anew, or take them out" in failed.stdout
    assert f"  {short}: truncated or damaged" in failed.stdout
    assert f"  {empty}: the file is empty (0 bytes)" in failed.stdout
    made = {path.name for path in (tmp_path / "prepared/ham10000").iterdir()}
    assert made == {"labels.csv", "summary.json", "audit.json", "audit.html"}

    following = f"dermalyze.train data=ham10000 data.root={data} data.on_missing=drop"
    assert f"Next, once they are out: python -m {following}\n" in failed.stdout
    assert "Next:" not in failed.stdout
    short.unlink()
    empty.unlink()
    assert f"Next: python -m {following}" in python(*words).stdout
    small = ("model=resnet10t", "data.image_size=32", "training.epochs=1", "tracking=none")
    python("-m", *following.split(), *small, "training.patience=null")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "training.sed=3",
            "training.sed: there is no such key or group. Did you mean 'training.seed'",
        ),
        ("+training.sed=3", "training.sed: there is no such key. Did you mean 'seed'?"),
        ("model/hed=acrnn", "model/hed: there is no such key or group. Did you mean 'model/head'"),
        ("training.seed=abc", "training.seed='abc' (str): Input should be a valid integer"),
        ("loss=fcal", "loss=fcal: there is no such option. Did you mean 'focal'? Valid: balanced_"),
        ("hydra/launcher=jobli", "Did you mean 'joblib'? Valid: basic, joblib, ray, submitit_"),
        (
            "some/run",
            "some/run: is not key=value, as in checkpoint=RUN or training.epochs=3; --help",
        ),
        ("batch_size=8", "batch_size: there is no such key or group. Did you mean 'training.batch"),
    ],
)
def test_a_mistyped_command_line_is_refused_with_the_mend(python, override, said):
    failed = python("-m", "dermalyze.train", "data.root=nowhere", override, expect=2)
    assert said in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr


def test_evaluate_without_a_checkpoint_says_so(python):
    failed = python("-m", "dermalyze.evaluate", "checkpoint=nowhere", expect=2)
    assert "checkpoint=nowhere" in failed.stdout
    missing = python("-m", "dermalyze.evaluate", expect=2)
    assert "missing: checkpoint" in missing.stdout


def test_what_names_no_downloads_is_not_downloaded(python):
    other = ("data=synthetic", "data.download=true")
    failed = python("-m", "dermalyze.prepare", *other, expect=2)
    assert "data.download=true: data=synthetic names nothing to download" in failed.stdout


def test_another_data_set_with_one_hot_ground_truth(trained, python, phantoms, tmp_path):
    """As ISIC 2018 Task 3 comes: pictures in a folder, columns not in alphabetical order."""
    table = pd.read_csv(phantoms / "HAM10000_metadata.csv").head(20)
    columns = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    truth = pd.DataFrame(
        {name: (table["dx"] == name.lower()).astype(float) for name in columns}
    ).assign(image=table["image_id"])
    folder = tmp_path / "isic"
    (folder / "ISIC2018_Task3_Test_Input").mkdir(parents=True)
    truth[["image", *columns]].to_csv(folder / "ISIC2018_Task3_Test_GroundTruth.csv", index=False)
    for name in table["image_id"]:
        (picture,) = phantoms.rglob(f"{name}.jpg")
        shutil.copy(picture, folder / "ISIC2018_Task3_Test_Input")

    other = ("data=isic2018_test", f"data.root={folder}", "split=all", "output=result")
    evaluation = ("-m", "dermalyze.evaluate", f"checkpoint={trained}", *other, "track=false")
    # They are images that trained the model, under lesion ids of their own.
    refused = python(*evaluation, expect=2)
    assert "were used to train or select this model" in refused.stdout
    python(*evaluation, "allow_seen_lesions=true")
    predictions = pd.read_csv(tmp_path / "result/predictions.csv").set_index("image_id")
    assert predictions["dx"].to_dict() == table.set_index("image_id")["dx"].to_dict()
