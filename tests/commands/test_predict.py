"""`python -m dermalyze.predict`: what evaluation finds, on images that have no label."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermalyze import SkinLesionPredictor, load_ensemble_predictor
from dermalyze.taxonomy import DISCLAIMER, HAM10000_CODES

pytestmark = pytest.mark.slow

COLUMNS = [f"probability_{code}" for code in HAM10000_CODES]
UNSURE = ["predictive_entropy", "mutual_information", "predicted_class_deviation", "margin"]
PREDICT = ("-m", "dermalyze.predict", "device=cpu")
STRUCK = str(Path(__file__).parent / "struck_predict.py")


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run, which evaluation may write into."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("tta", ["off", "medium"])
def test_evaluation_interface_command_and_an_ensemble_of_one_agree(
    run, phantoms, python, tmp_path, tta
):
    python("-m", "dermalyze.evaluate", f"checkpoint={run}", f"tta={tta}", "track=false")
    part = "test" if tta == "off" else "test_tta_medium_mean"
    evaluated = pd.read_csv(run / "evaluation" / part / "predictions.csv")
    expected = evaluated[COLUMNS].to_numpy()
    assert np.abs(np.diff(expected, axis=0)).max() > 1e-3

    path_of = {path.stem: str(path) for path in phantoms.rglob("*.jpg")}
    paths = [path_of[name] for name in evaluated["image_id"]]
    pd.DataFrame({"path": paths}).to_csv(tmp_path / "images.csv", index=False)
    given = (f"checkpoint={run}", "images=images.csv", f"tta={tta}", "part_size=7", "batch_size=16")
    done = python(*PREDICT, *given, "output=p.csv")
    assert f"{len(paths)} images, results in p.csv\n{DISCLAIMER}" in done.stdout
    predicted = pd.read_csv(tmp_path / "p.csv")
    assert predicted["image"].tolist() == paths
    assert predicted["predicted_class"].tolist() == evaluated["predicted"].tolist()
    assert predicted["prediction_set"].tolist() == evaluated["set_lac"].tolist()
    np.testing.assert_allclose(predicted[COLUMNS], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(predicted[UNSURE], evaluated[UNSURE], rtol=0, atol=1e-6)
    # The temperature by hand: probabilities to the power of 1 / T, scaled to sum to 1.
    report = json.loads((run / "evaluation" / part / "evaluation_metrics.json").read_text())
    powers = expected ** (1 / report["calibration"]["temperature"])
    calibrated = powers / powers.sum(axis=1, keepdims=True)
    columns = [f"calibrated_{column}" for column in COLUMNS]
    np.testing.assert_allclose(predicted[columns], calibrated, rtol=0, atol=1e-6)
    limit = report["abstention"]["abstain_below"]
    if limit is None:
        assert predicted["abstain"].isna().all()
    else:
        answered = 1 - predicted["abstain"].mean()
        assert answered == pytest.approx(report["abstention"]["coverage"])

    predictor = SkinLesionPredictor(run, device="cpu")
    ensemble = load_ensemble_predictor([run], device="cpu")
    answers = {
        "batch": [*predictor.predict_batch(paths, batch_size=5, mode=tta)],
        "one": [predictor.predict_with_tta(path, mode=tta) for path in paths],
        "ensemble": [ensemble.predict_with_tta(path, tta_mode=tta) for path in paths],
    }
    if tta == "off":
        answers["plain"] = [predictor.predict(path) for path in paths]
    for name, results in answers.items():
        found = [list(result.probabilities.values()) for result in results]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6, err_msg=name)
        sets = [" ".join(result.prediction_set) for result in results]
        assert sets == evaluated["set_lac"].tolist(), name


def test_a_killed_command_goes_on_to_the_same_bytes(trained, phantoms, python, tmp_path):
    """And predicting loads nothing that it does not need: a real process says what it imported."""
    given = (f"checkpoint={trained}", f"images={phantoms}", "part_size=20", "device=cpu")
    python(*PREDICT, *given, "output=whole.json")
    killed = python(STRUCK, "2", *given, "output=killed.json", cold=True, expect=-signal.SIGKILL)
    assert "imported: torch\n" in killed.stdout
    assert not (tmp_path / "killed.json").exists()
    assert len(list((tmp_path / "killed.json.parts").glob("0*.jsonl"))) == 2
    done = python(*PREDICT, *given, "output=killed.json")
    assert "2 of " in done.stdout
    assert "parts are there already" in done.stdout
    whole = (tmp_path / "whole.json").read_bytes()
    assert (tmp_path / "killed.json").read_bytes() == whole
    assert not (tmp_path / "killed.json.parts").exists()
    images = sorted(path.name for path in phantoms.rglob("*.jpg"))
    assert sorted(Path(record["image"]).name for record in json.loads(whole)) == images


def test_one_bad_file_is_a_row_and_a_truthful_exit_code(trained, phantoms, python, tmp_path):
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    pictures = sorted(phantoms.rglob("*.jpg"))[:3]
    shutil.copy(pictures[0], folder / "=1+1.jpg")
    shutil.copy(pictures[1], folder / "below" / "b.jpg")
    (folder / "a.jpg").write_text("<html>")
    given = (f"checkpoint=[{trained}]", "images=images")
    done = python(*PREDICT, *given, "output=p.csv", expect=2)
    assert "1 of 3 images could not be predicted, the others stand. The first: " in done.stdout
    frame = pd.read_csv(tmp_path / "p.csv")
    assert frame["image"].tolist() == ["'=1+1.jpg", "a.jpg", "below/b.jpg"]
    assert frame["error"].notna().tolist() == [False, True, False]
    assert frame["confidence"].notna().tolist() == [True, False, True]

    refused = python(*PREDICT, *given, "output=p.csv", expect=2)
    assert "p.csv: is there already" in refused.stdout
    refused = python(*PREDICT, *given, "tta=huge", expect=2)
    assert all(name in refused.stdout + refused.stderr for name in ("light", "medium", "full"))
    one = python(*PREDICT, f"checkpoint={trained}", f"images={pictures[2]}")
    assert f"{pictures[2]}: " in one.stdout
    assert "1 images, results on the screen" in one.stdout
