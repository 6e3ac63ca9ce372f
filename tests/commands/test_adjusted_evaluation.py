"""Post-hoc logit adjustment, from what a checkpoint says of the images that trained it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from dermalyze.checkpoint_file import BEST, read_checkpoint
from dermalyze.evaluation.metrics import summary_metrics
from dermalyze.taxonomy import HAM10000_CODES

pytestmark = pytest.mark.slow


def test_probabilities_are_divided_by_the_shares_that_the_checkpoint_names(
    trained, python, tmp_path
):
    evaluate = ("-m", "dermalyze.evaluate", f"checkpoint={trained}", "split=val", "track=false")
    adjusted = (*evaluate, "logit_adjustment=0.5", "output=adjusted")
    refused = python(*adjusted, expect=2)
    assert "corrected for the class frequencies already (loss.class_weights=balanced)" in (
        refused.stdout
    )
    assert not (tmp_path / "adjusted").exists()
    said = python(*adjusted, "allow_double_correction=true").stdout
    assert "probabilities / (class shares in training)^0.5" in said
    python(*evaluate, "output=plain")

    header = read_checkpoint(trained / BEST)[1]
    train_split = pd.read_csv(trained / "train_split.csv")
    counts = train_split["dx"].value_counts().reindex(HAM10000_CODES).astype(int)
    assert header["class_counts"] == counts.tolist()
    report = json.loads((tmp_path / "adjusted/evaluation_metrics.json").read_text())
    assert report["logit_adjustment"] == {
        "tau": 0.5,
        "class_counts": counts.to_dict(),
        "corrected_in_training_by": ["loss.class_weights=balanced"],
    }
    plain_report = json.loads((tmp_path / "plain/evaluation_metrics.json").read_text())
    assert plain_report["logit_adjustment"] is None

    plain, changed = (
        pd.read_csv(tmp_path / name / "predictions.csv") for name in ("plain", "adjusted")
    )
    columns = [f"probability_{code}" for code in HAM10000_CODES]
    weights = plain[columns].to_numpy() / np.sqrt(counts.to_numpy() / counts.sum())
    expected = weights / weights.sum(axis=1, keepdims=True)
    assert np.abs(expected - plain[columns].to_numpy()).max() > 1e-3
    np.testing.assert_allclose(changed[columns], expected, rtol=1e-9)
    labels = plain["dx"].map(HAM10000_CODES.index).to_numpy()
    assert report["metrics"] == pytest.approx(summary_metrics(labels, expected))


@pytest.mark.thorough
def test_a_model_that_corrected_nothing_is_adjusted_into_a_folder_of_its_own(
    python, tiny, tmp_path
):
    run = tmp_path / "run"
    plain_loss = ("loss.class_weights=none", "training.epochs=1", "tracking=none")
    python("-m", "dermalyze.train", *tiny, *plain_loss, f"hydra.run.dir={run}")
    assert read_checkpoint(run / BEST)[1]["frequency_corrections"] == []
    python("-m", "dermalyze.evaluate", f"checkpoint={run}", "logit_adjustment=1")
    assert [path.name for path in (run / "evaluation").iterdir()] == ["test_tau1"]
    report = json.loads((run / "evaluation/test_tau1/evaluation_metrics.json").read_text())
    assert report["logit_adjustment"]["corrected_in_training_by"] == []
