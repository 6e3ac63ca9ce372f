"""The challenge's file and scores, held against the challenge's own package."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest

from dermalyze.evaluation.isic2018 import (
    CATEGORIES,
    are_its_classes,
    challenge_scores,
    submission,
)
from dermalyze.evaluation.metrics import summary_metrics
from dermalyze.taxonomy import HAM10000_CODES


def sampled(seed: int, images: int = 300) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels of uneven classes, probabilities of which some tie, and ids out of order."""
    rng = np.random.default_rng(seed)
    labels_N = rng.choice(7, images, p=np.geomspace(1, 20, 7) / np.geomspace(1, 20, 7).sum())
    labels_N[:7] = np.arange(7)
    odds_NK = np.exp(1.5 * (rng.normal(size=(images, 7)) + np.eye(7)[labels_N])).round(1) + 0.1
    ids = [f"ISIC_{number:07d}" for number in rng.permutation(images)]
    return labels_N, odds_NK / odds_NK.sum(axis=1, keepdims=True), ids


def scored_by_the_challenge(
    labels_N: np.ndarray, text: str, ids: list[str], monkeypatch: pytest.MonkeyPatch
):
    scoring = pytest.importorskip(
        "isic_challenge_scoring.classification",
        reason="isic-challenge-scoring is not installed: pip install 'dermalyze[reference]'",
    )
    # The package is of the time when pandas called it so.
    monkeypatch.setattr(pd.DataFrame, "applymap", pd.DataFrame.map, raising=False)
    columns = [code.upper() for code in HAM10000_CODES]
    truth = pd.DataFrame(np.eye(7)[labels_N], columns=columns)[list(CATEGORIES)]
    truth.insert(0, "image", ids)
    return scoring.ClassificationScore.from_stream(
        io.StringIO(truth.to_csv(index=False)),
        io.StringIO(text),
        scoring.ClassificationMetric.BALANCED_ACCURACY,
    )


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # of pandas and scikit-learn, at the package
@pytest.mark.parametrize("seed", range(3))
def test_the_file_scores_there_what_is_reported_here(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels_N, probs_NK, ids = sampled(seed)
    probs_NK[0] = np.full(7, 0.1)
    probs_NK[0, [0, 1]] = 0.25  # of two most probable classes: undecided there
    text = submission(ids, probs_NK, HAM10000_CODES)
    assert text.splitlines()[0] == "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"
    theirs = scored_by_the_challenge(labels_N, text, ids, monkeypatch)
    ours = challenge_scores(labels_N, probs_NK, HAM10000_CODES)
    assert ours["balanced_accuracy"] == pytest.approx(theirs.overall, abs=1e-12)
    for category in CATEGORIES:
        expected = theirs.per_category.loc[category].to_dict()
        assert ours["per_category"][category] == pytest.approx(expected, abs=1e-12), category
    assert ours["macro_average"] == pytest.approx(theirs.macro_average.to_dict(), abs=1e-12)


def test_without_ties_it_is_balanced_accuracy_and_a_class_without_images_is_left_out() -> None:
    labels_N, probs_NK, _ = sampled(5)
    probs_NK = probs_NK + np.random.default_rng(0).random(probs_NK.shape) * 1e-7
    probs_NK /= probs_NK.sum(axis=1, keepdims=True)
    labels_N = np.where(labels_N == HAM10000_CODES.index("df"), 5, labels_N)
    found = challenge_scores(labels_N, probs_NK, HAM10000_CODES)
    expected = summary_metrics(labels_N, probs_NK)
    assert found["balanced_accuracy"] == pytest.approx(expected["balanced_accuracy"])
    assert found["macro_average"]["auc"] == pytest.approx(expected["macro_auc"])
    assert found["undefined"] == {"DF": "none of the 300 images is labelled df"}
    df = found["per_category"]["DF"]
    assert (df["sensitivity"], df["auc"], df["auc_sens_80"], df["ap"]) == (1, None, None, None)


def test_the_area_from_a_sensitivity_of_eighty_percent_by_hand() -> None:
    # Melanomas at 0.9, 0.7, 0.6, 0.5, 0.3 and others at 0.8 and 0.4: the curve reaches 0.8 at a
    # false rate of 0.5 and 1 at 1. It passes 0.8 up and then runs from 0.5 to 1 along 0.8.
    column = HAM10000_CODES.index("mel")
    scores_N = np.array([0.9, 0.7, 0.6, 0.5, 0.3, 0.8, 0.4])
    probs_NK = np.repeat((1 - scores_N)[:, None] / 6, 7, axis=1)
    probs_NK[:, column] = scores_N
    labels_N = np.array([column] * 5 + [0, 1])
    melanoma = challenge_scores(labels_N, probs_NK, HAM10000_CODES)["per_category"]["MEL"]
    assert melanoma["auc_sens_80"] == pytest.approx(0.5 * 0.8)
    assert melanoma["auc"] == pytest.approx(0.5 * 0.2 + 0.5 * 0.8)
    assert melanoma["accuracy"] == pytest.approx(4 / 7)  # 0.5 itself is not above 0.5
    assert math.isclose(melanoma["ppv"], 3 / 4)


def test_only_of_its_seven_classes() -> None:
    assert are_its_classes(HAM10000_CODES[::-1])
    assert not are_its_classes(HAM10000_CODES[:-1])
    assert not are_its_classes([*HAM10000_CODES[:-1], "scc"])
