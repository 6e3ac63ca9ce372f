"""What validation decides: kept, found again, and reported on other images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dermalyze.errors import DataError
from dermalyze.evaluation.calibration import calibration_errors, with_temperature
from dermalyze.reporting.fitted import (
    CALIBRATION,
    abstention_report,
    all_kept,
    calibration_report,
    fit_on_validation,
    keep,
    kept,
    sets_of,
    sets_report,
)

SETS = {"level": 0.8, "penalty": 0.01, "free_ranks": 1}
CLASSES = ["a", "b", "c"]


def sampled(seed: int, images: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(3, size=images)
    odds_NK = np.exp(3 * (rng.normal(size=(images, 3)) + np.eye(3)[labels_N]))
    return labels_N, odds_NK / odds_NK.sum(axis=1, keepdims=True)


def fitted() -> dict:
    return fit_on_validation(*sampled(0), sets=SETS, abstention={"error": 0.1})


def test_it_is_found_again_for_the_same_model_asked_in_the_same_way(tmp_path) -> None:
    about = {"models": [{"epoch": 3}], "prediction": {"views": ("identity",)}, "sets": SETS}
    assert kept(tmp_path, about) is None
    keep(tmp_path, about, fitted())
    assert kept(tmp_path, about) == fitted()
    assert kept(tmp_path, about | {"models": [{"epoch": 4}]}) is None
    assert kept(tmp_path, about | {"sets": {**SETS, "level": 0.9}}) is None


def test_each_way_of_predicting_keeps_its_own_until_the_models_are_others(tmp_path) -> None:
    one = {"models": [{"epoch": 3}], "prediction": {"tta": "off"}, "sets": SETS}
    two = one | {"prediction": {"tta": "medium"}}
    other = fit_on_validation(*sampled(1), sets=SETS, abstention={"error": 0.1})
    keep(tmp_path, one, fitted())
    keep(tmp_path, two, other)
    assert (kept(tmp_path, one), kept(tmp_path, two)) == (fitted(), other)
    asked_otherwise = one | {"sets": {**SETS, "level": 0.9}}
    keep(tmp_path, asked_otherwise, other)
    assert kept(tmp_path, one) is None
    assert (kept(tmp_path, asked_otherwise), kept(tmp_path, two)) == (other, other)
    keep(tmp_path, one | {"models": [{"epoch": 4}]}, fitted())
    assert [fit["about"]["models"] for fit in all_kept(tmp_path)] == [[{"epoch": 4}]]


@pytest.mark.parametrize(
    "content", ["{", '{"fits": [{}]}', '{"fits": 3}', '{"about": {}, "fitted": {}}', "[]"]
)
def test_a_file_that_is_none_of_these_is_refused(tmp_path, content) -> None:
    (tmp_path / CALIBRATION).write_text(content)
    with pytest.raises(DataError, match="Remove it and evaluate again"):
        kept(tmp_path, {"models": [], "prediction": {}})


def test_a_class_too_rare_for_the_level_is_in_every_set() -> None:
    labels_N, probs_NK = sampled(0)
    rare_N = np.where(labels_N == 2, 0, labels_N)
    found = fit_on_validation(rare_N, probs_NK, sets=SETS, abstention={"error": 0.1})
    assert found["thresholds"]["class_conditional"][2] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert sets_of(found, probs_NK, SETS)["class_conditional"][:, 2].all()


def test_reports_on_other_images() -> None:
    labels_N, probs_NK = sampled(1)
    found = fitted()
    cooled_NK = with_temperature(probs_NK, found["temperature"])
    report = calibration_report(labels_N, probs_NK, found, why_not=None)
    assert report["before"] == calibration_errors(labels_N, probs_NK)
    assert report["after"] == calibration_errors(labels_N, cooled_NK)
    assert report["after"]["nll"] < report["before"]["nll"]

    sets = sets_of(found, probs_NK, SETS)
    report = sets_report(labels_N, sets, CLASSES, 0.8)
    lac = report["lac"]
    assert lac["coverage"] == pytest.approx(0.8, abs=0.08)  # 300 and 300 images: 3 x 0.033
    weights = np.bincount(labels_N) / 300
    assert np.dot(list(lac["coverage_per_class"].values()), weights) == pytest.approx(
        lac["coverage"]
    )
    assert np.dot(lac["sizes"], [1, 2, 3]) / 300 == pytest.approx(lac["mean_size"])

    report = abstention_report(labels_N, probs_NK, found)
    kept_N = cooled_NK.max(axis=1) >= found["abstain_below"]
    wrong_N = probs_NK.argmax(axis=1) != labels_N
    assert (report["coverage"], report["error"]) == pytest.approx(
        (kept_N.mean(), wrong_N[kept_N].mean())
    )
    assert report["error"] < wrong_N.mean()


def test_without_validation_it_says_why() -> None:
    labels_N, probs_NK = sampled(1)
    report = calibration_report(labels_N, probs_NK, None, why_not="no validation part")
    assert (report["temperature"], report["after"]) == (None, None)
    assert report["reason"] == "no validation part"
    assert sets_report(labels_N, {}, CLASSES, 0.8) == {"level": 0.8}
    assert abstention_report(labels_N, probs_NK, None)["coverage"] is None
