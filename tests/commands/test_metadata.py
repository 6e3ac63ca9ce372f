"""A model that is told age, sex and site: trained, evaluated with them and without."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from dermalyze.checkpoint_file import BEST, read_checkpoint

pytestmark = pytest.mark.slow


@pytest.mark.thorough
def test_a_run_with_metadata_and_its_evaluation_with_and_without(python, tiny, phantoms, tmp_path):
    run = tmp_path / "run"
    told = ("model/metadata=film", "optimizer.lr=0.01", f"hydra.run.dir={run}")
    python("-m", "dermalyze.train", *tiny, *told)
    header = read_checkpoint(run / BEST)[1]

    # The encoding is that of the training part alone.
    table = pd.read_csv(phantoms / "HAM10000_metadata.csv").set_index("image_id")
    training = table.loc[pd.read_csv(run / "train_split.csv")["image_id"]]
    ages = training["age"][training["age"] > 0]
    assert header["metadata"]["columns"] == ["age", "sex", "localization"]
    assert header["metadata"]["age"] == pytest.approx([ages.mean(), ages.std(ddof=0)])
    assert header["metadata"]["categories"] == {
        column: sorted(set(training[column]) - {"unknown"}) for column in ("sex", "localization")
    }

    # What training stored is what evaluation finds, with the same metadata.
    python("-m", "dermalyze.evaluate", f"checkpoint={run}", "split=val")
    report = json.loads((run / "evaluation/val/evaluation_metrics.json").read_text())
    for name, value in header["validation_metrics"].items():
        assert report["metrics"][name.removeprefix("val/")] == pytest.approx(value, abs=1e-6), name
    done = python("-m", "dermalyze.evaluate", f"checkpoint={run}")
    report = json.loads((run / "evaluation/test/evaluation_metrics.json").read_text())
    test = table.loc[pd.read_csv(run / "test_split.csv")["image_id"]]
    known = report["metadata_known"]
    assert known["age"] == (test["age"] > 0).sum()
    assert known["sex"] == (test["sex"] != "unknown").sum()
    assert f"the model is told, of {len(test)} images, age of {known['age']}, " in done.stdout
    assert "predicts without" not in done.stdout

    # The same images, of which the other table tells nothing besides their class.
    folder = tmp_path / "isic"
    (folder / "images").mkdir(parents=True)
    columns = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    truth = pd.DataFrame({name: (test["dx"] == name.lower()).astype(int) for name in columns})
    truth.rename_axis("image").to_csv(folder / "ISIC2018_Task3_Test_GroundTruth.csv")
    for name in test.index:
        (picture,) = phantoms.rglob(f"{name}.jpg")
        shutil.copy(picture, folder / "images")
    other = ("data=isic2018_test", f"data.root={folder}", "split=all", "output=without")
    done = python("-m", "dermalyze.evaluate", f"checkpoint={run}", *other, "track=false")
    assert (
        "metadata: age, sex, localization of no image is known here; the model, trained with it, "
        "predicts without" in done.stdout
    )
    report = json.loads((tmp_path / "without/evaluation_metrics.json").read_text())
    assert report["metadata_known"] == {"age": 0, "sex": 0, "localization": 0}

    def probabilities(path):
        frame = pd.read_csv(path).set_index("image_id").loc[test.index]
        return frame.filter(like="probability_").to_numpy()

    with_them = probabilities(run / "evaluation/test/predictions.csv")
    without = probabilities(tmp_path / "without/predictions.csv")
    assert with_them.shape == without.shape == (len(test), 7)
    assert np.isfinite(without).all()
    assert np.abs(with_them - without).max() > 1e-3  # the metadata was looked at


def test_what_gives_the_class_away_is_refused_before_any_data_is_read(python):
    columns = "model.metadata.columns=[age,dx_type]"
    failed = python(
        "-m", "dermalyze.train", "data.root=nowhere", "model/metadata=film", columns, expect=2
    )
    assert "dx_type is refused: how a diagnosis was confirmed tells the diagnosis" in failed.stdout
