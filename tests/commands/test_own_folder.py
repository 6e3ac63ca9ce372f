"""Own images and classes through prepare, train and evaluate; joined duplicates; marked leaks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient

from dermalyze.checkpoint_file import BEST, read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CLASSES = ["malignant", "benign"]  # not alphabetical: the list's order is the model's
MALIGNANT = ("akiec", "bcc", "mel")


@pytest.fixture(scope="module")
def own(phantoms: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures under file names, two classes and patients; every eighth has a copy."""
    assert trained.is_dir()  # and so the phantoms are drawn
    table = pd.read_csv(phantoms / "HAM10000_metadata.csv", dtype=str).drop_duplicates("lesion_id")
    root = tmp_path_factory.mktemp("own") / "clinic"
    root.mkdir()
    rows = []
    for position, row in enumerate(table.itertuples()):
        (picture,) = phantoms.rglob(f"{row.image_id}.jpg")
        diagnosis = "malignant" if row.dx in MALIGNANT else "benign"
        copies = 2 if position % 8 == 0 else 1
        for copy in range(copies):
            name = f"{row.image_id}_{copy}.jpg"
            shutil.copy(picture, root / name)
            rows.append((name, diagnosis, f"{row.lesion_id}_{copy}"))
    shutil.copy(picture, root / "without_row.jpg")
    frame = pd.DataFrame(rows, columns=["file", "diagnosis", "patient"])
    frame.to_csv(root / "table.csv", index=False)
    return root


def data_of(root: Path) -> tuple[str, ...]:
    return (
        "data=folder",
        f"data.root={root}",
        f"data.source.classes=[{','.join(CLASSES)}]",
        "data.source.image_column=file",
        "data.source.class_column=diagnosis",
        "data.source.lesion_column=patient",
    )


SMALL = (
    "data.image_size=32",
    "model=timm",
    "model.backbone=test_resnet",
    "model.pretrained=false",
    "training.epochs=1",
    "training.batch_size=16",
    "training.threads=1",
)


@pytest.fixture(scope="module")
def joined(own: Path, python_in, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the data were prepared and a run, `run`, has joined the copies."""
    start = tmp_path_factory.mktemp("joined")
    python = python_in(start)
    prepared = python("-m", "dermalyze.prepare", *data_of(own)).stdout
    merged = (*data_of(own), "data.merge_duplicates=true", "hydra.run.dir=run")
    trained = python("-m", "dermalyze.train", *merged, *SMALL).stdout
    (start / "said.json").write_text(json.dumps({"prepare": prepared, "train": trained}))
    return start


def pairs_of(joined: Path) -> list[dict[str, Any]]:
    audit = json.loads((joined / "outputs/prepared/clinic/audit.json").read_text())
    return [pair for pair in audit["pairs"] if pair["exact"]]


def seen_by(run: Path) -> set[str]:
    header = read_checkpoint(run / BEST)[1]
    return {*header["train_lesions"], *header["val_lesions"]}


def test_prepare_tells_all_and_how_to_go_on(own, joined):
    said = json.loads((joined / "said.json").read_text())["prepare"]
    following = said.partition("Next: python -m dermalyze.train ")[2]
    assert following.startswith(f"data=folder data.root={own} ")
    assert "'data.source.classes=[malignant,benign]'" in following
    summary = json.loads((joined / "outputs/prepared/clinic/summary.json").read_text())
    table = pd.read_csv(own / "table.csv")
    counts = {name: counts["images"] for name, counts in summary["classes"].items()}
    assert counts == table["diagnosis"].value_counts().to_dict()
    (rowless,) = [f for f in summary["findings"] if f["kind"] == "images_without_row"]
    assert rowless["items"] == ["without_row"]
    assert len(pairs_of(joined)) == table["file"].str.contains("_1.jpg").sum() == 11
    assert f"{len(pairs_of(joined))} pairs of images show the same under two lesion ids" in said


def test_own_classes_are_trained_and_evaluated(own, joined, python):
    run = joined / "run"
    assert read_checkpoint(run / BEST)[1]["classes"] == CLASSES
    python("-m", "dermalyze.evaluate", f"checkpoint={run}")
    report = json.loads((run / "evaluation/test/evaluation_metrics.json").read_text())
    assert report["confusion_matrix"]["classes"] == CLASSES
    assert report["leakage"] is None
    predictions = pd.read_csv(run / "evaluation/test/predictions.csv").set_index("image_id")
    table = pd.read_csv(own / "table.csv")
    truth = table.set_index(table["file"].str.removesuffix(".jpg"))["diagnosis"]
    assert predictions["dx"].to_dict() == truth[predictions.index].to_dict()
    columns = [f"probability_{name}" for name in CLASSES]
    assert predictions[columns].sum(axis=1).to_numpy() == pytest.approx(1.0, abs=1e-9)
    largest = predictions[columns].idxmax(axis=1).str.removeprefix("probability_")
    assert (predictions["predicted"] == largest).all()
    accuracy = (predictions["predicted"] == predictions["dx"]).mean()
    assert report["metrics"]["accuracy"] == pytest.approx(accuracy)


def test_joined_copies_are_known_under_their_own_ids(own, joined, python, tmp_path):
    # What prepare has found, training does not look for again.
    assert "looking for duplicates" not in json.loads((joined / "said.json").read_text())["train"]
    run, pairs = joined / "run", pairs_of(joined)
    sides = [len(set(pair["lesion_ids"]) & seen_by(run)) for pair in pairs]
    assert set(sides) == {0, 2}  # each pair as a whole in or out

    # A copy of what was learned is refused where duplicates are read apart, too.
    copied = pairs[sides.index(2)]
    lesion = max(copied["lesion_ids"])  # the one that was joined into the other
    table = pd.read_csv(own / "table.csv")
    row = table[table["patient"] == lesion]
    row.to_csv(tmp_path / "table.csv", index=False)
    shutil.copy(own / row["file"].iloc[0], tmp_path)
    other = (*data_of(tmp_path), "split=all", "track=false", "output=result")
    refused = python("-m", "dermalyze.evaluate", f"checkpoint={run}", *other, expect=2)
    said = "1 lesions to be evaluated were used to train or select this model"
    assert f"{said} (first: {lesion})" in refused.stdout

    own_data = ("data.merge_duplicates=true", "track=false")
    failed = python("-m", "dermalyze.evaluate", f"checkpoint={run}", *own_data, expect=2)
    assert "data.merge_duplicates=True: is for other data" in failed.stdout


def test_a_model_trained_apart_is_not_tested_on_joined_copies(trained, phantoms, python, tmp_path):
    """Read with joining, a lesion is seen as soon as one of those joined in it was."""
    seen = min(seen_by(trained))
    table = pd.read_csv(phantoms / "HAM10000_metadata.csv", dtype=str)
    row = table[table["lesion_id"] == seen].head(1)
    copies = pd.concat([row, row.assign(image_id="copy", lesion_id="A_NEW_NAME")])
    copies.to_csv(tmp_path / "HAM10000_metadata.csv", index=False)
    for name in copies["image_id"]:
        shutil.copy(
            next(phantoms.rglob(f"{row['image_id'].iloc[0]}.jpg")), tmp_path / f"{name}.jpg"
        )
    data = ("data=ham10000", f"data.root={tmp_path}", "split=all", "track=false")
    evaluation = ("-m", "dermalyze.evaluate", f"checkpoint={trained}", *data)
    for more, images in (("data.merge_duplicates=false", 1), ("data.merge_duplicates=true", 2)):
        done = python(*evaluation, more, "allow_seen_lesions=true", f"output=result_{images}")
        said = f"{images} of 2 images are of lesions that trained or selected the model"
        assert f"leakage: {said}" in done.stdout
        report = json.loads((tmp_path / f"result_{images}/evaluation_metrics.json").read_text())
        assert report["leakage"].startswith(said)


def test_a_split_that_leaks_marks_the_run_and_its_evaluation(own, python, tmp_path):
    table = pd.read_csv(own / "table.csv")
    nth = table.groupby("diagnosis").cumcount()
    table["patient"] = table["diagnosis"] + (nth // 4).astype(str)  # four images a lesion
    root = tmp_path / "grouped"
    shutil.copytree(own, root)
    table.to_csv(root / "table.csv", index=False)
    run = tmp_path / "run"
    words = (*data_of(root), *SMALL, f"hydra.run.dir={run}")
    python("-m", "dermalyze.train", *words, "data/split=random")
    torn = set()
    parts = {name: pd.read_csv(run / f"{name}_split.csv") for name in ("train", "val", "test")}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        torn |= set(parts[one]["lesion_id"]) & set(parts[other]["lesion_id"])
    assert torn
    identity = json.loads((run / "tracking.json").read_text())
    tags = MlflowClient(tracking_uri=identity["uri"]).get_run(identity["run_id"]).data.tags
    assert tags["split_leaks"] == f"yes: {len(torn)} lesions are in several parts"
    assert tags["split_method"] == "random_by_image_leaky"

    evaluation = ("-m", "dermalyze.evaluate", f"checkpoint={run}")
    assert "used to train or select" in python(*evaluation, expect=2).stdout
    python(*evaluation, "allow_seen_lesions=true")
    report = json.loads((run / "evaluation/test/evaluation_metrics.json").read_text())
    seen = set(parts["train"]["lesion_id"]) | set(parts["val"]["lesion_id"])
    images = parts["test"]["lesion_id"].isin(seen).sum()
    assert report["leakage"].startswith(f"{images} of {len(parts['test'])} images are of lesions")
