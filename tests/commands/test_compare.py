"""Leakage, shown: two runs that differ in nothing but the siblings of test images in training."""

from __future__ import annotations

import json

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

SMALL = ("data.source.lesions=500", "training.epochs=40", "training.threads=1", "tracking=none")


@pytest.mark.thorough
def test_siblings_in_training_raise_the_score_on_their_test_images_and_on_no_other(
    python, tmp_path
):
    for name in ("leak_none", "leak_injected"):
        data = f"data.root={tmp_path}/phantoms"
        run = ("experiment=" + name, *SMALL, data, f"hydra.run.dir={name}")
        done = python("-m", "dermalyze.train", *run)
        leaks = "split siblings_injected_leaky: " in done.stdout
        assert leaks == (name == "leak_injected")

    # The two differ in the siblings alone.
    none, injected = (
        {
            part: pd.read_csv(tmp_path / name / f"{part}_split.csv", dtype=str)
            for part in ("train", "val", "test")
        }
        for name in ("leak_none", "leak_injected")
    )
    for part in ("val", "test"):
        pd.testing.assert_frame_equal(none[part], injected[part])
    counts = [splits["train"]["dx"].value_counts().to_dict() for splits in (none, injected)]
    assert counts[0] == counts[1]

    evaluate = ("-m", "dermalyze.evaluate")
    refused = python(*evaluate, "checkpoint=leak_injected", expect=2)
    assert "were used to train or select this model" in refused.stdout
    python(*evaluate, "checkpoint=leak_none")
    python(*evaluate, "checkpoint=leak_injected", "allow_seen_lesions=true")

    done = python("-m", "dermalyze.compare", "runs=[leak_none,leak_injected]")
    siblings = injected["test"]["lesion_id"].isin(injected["train"]["lesion_id"])
    assert siblings.sum() > 60
    said = f"leak_injected was trained on lesions of {siblings.sum()} of these images"
    assert said in done.stdout
    report = json.loads((tmp_path / "outputs/comparison/comparison.json").read_text())
    differences = {
        row["images"]: row
        for row in report["results"]
        if row["metric"] == "accuracy" and row["minus"] == "data.split.inject=False"
    }
    assert differences["of lesions that trained a run"]["low"] > 0
    assert differences["all"]["low"] > 0

    # Where no sibling was seen, nothing is gained: the leak is not a better model.
    right = {}
    for name in ("leak_none", "leak_injected"):
        predictions = pd.read_csv(tmp_path / name / "evaluation/test/predictions.csv")
        right[name] = (predictions["predicted"] == predictions["dx"]).astype(int)
    gain = right["leak_injected"] - right["leak_none"]
    assert gain[siblings].mean() > 0.2
    assert gain[~siblings].mean() < 0.1
