"""Calibration, sets and abstention, against hand-computed cases and what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pandas import DataFrame, cut
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.abstention import abstention_threshold, area, risk_coverage
from dermalyze.evaluation.calibration import (
    calibration_errors,
    fit_temperature,
    reliability_table,
    with_temperature,
)
from dermalyze.evaluation.conformal import (
    APS,
    LAC,
    METHODS,
    PER_CLASS,
    RAPS,
    prediction_sets,
    scores,
    thresholds,
)

OPTIONS = {"penalty": 0.1, "free_ranks": 1}


def drawn(seed: int, images: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits), and softmax(logits * temperature): too sure above 1."""
    rng = np.random.default_rng(seed)
    logits_NK = 2 * rng.normal(size=(images, 5))
    truth_NK = softmax(logits_NK, axis=1)
    labels_N = (rng.random((images, 1)) > truth_NK.cumsum(axis=1)).sum(axis=1)
    return np.minimum(labels_N, 4), softmax(logits_NK * temperature, axis=1)


class TestTemperature:
    @pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
    def test_finds_the_one_that_the_labels_were_drawn_with(self, true: float) -> None:
        labels_N, probs_NK = drawn(0, 20_000, true)
        assert fit_temperature(labels_N, probs_NK) == pytest.approx(true, rel=0.03)

    def test_divides_the_logits(self) -> None:
        logits_NK = np.random.default_rng(0).normal(size=(9, 4))
        found = with_temperature(softmax(logits_NK, axis=1), 2.5)
        np.testing.assert_allclose(found, softmax(logits_NK / 2.5, axis=1), atol=1e-14)

    def test_mends_what_was_too_sure(self) -> None:
        labels_N, probs_NK = drawn(1, 5_000, 2.0)
        cooled_NK = with_temperature(probs_NK, fit_temperature(labels_N, probs_NK))
        before, after = (calibration_errors(labels_N, p) for p in (probs_NK, cooled_NK))
        for name in ("nll", "ece", "ece_equal_mass", "classwise_ece", "adaptive_ece", "brier"):
            assert after[name] < before[name], name


class TestErrors:
    def test_equal_the_references(self) -> None:
        labels_N, probs_NK = drawn(2, 900, 1.5)
        found = calibration_errors(labels_N, probs_NK)
        expected = multiclass_calibration_error(
            torch.from_numpy(probs_NK), torch.from_numpy(labels_N), num_classes=5, n_bins=15
        )
        assert found["ece"] == pytest.approx(expected.item(), abs=1e-6)
        each = [(labels_N == k, probs_NK[:, k].copy()) for k in range(5)]
        classwise = [
            binary_calibration_error(torch.from_numpy(p), torch.from_numpy(own), n_bins=15).item()
            for own, p in each
        ]
        assert found["classwise_ece"] == pytest.approx(np.mean(classwise), abs=1e-6)
        assert found["nll"] == pytest.approx(log_loss(labels_N, probs_NK))
        assert found["brier"] == pytest.approx(sum(brier_score_loss(*one) for one in each))

    def test_of_equal_mass_equal_scikit_learns_quantiles(self) -> None:
        # 900 images without ties: 60 in each of 15 bins, so that every bin weighs the same.
        labels_N, probs_NK = drawn(2, 900, 1.5)
        found = calibration_errors(labels_N, probs_NK)

        def error(own: np.ndarray, p: np.ndarray) -> float:
            rate, mean = calibration_curve(own, p, n_bins=15, strategy="quantile")
            assert len(rate) == 15
            return float(np.abs(rate - mean).mean())

        right_N = probs_NK.argmax(axis=1) == labels_N
        assert found["ece_equal_mass"] == pytest.approx(error(right_N, probs_NK.max(axis=1)))
        adaptive = [error(labels_N == k, probs_NK[:, k]) for k in range(5)]
        assert found["adaptive_ece"] == pytest.approx(np.mean(adaptive))

    def test_the_parts_of_brier_by_groups_of_a_table(self) -> None:
        labels_N, probs_NK = drawn(2, 900, 1.5)
        found = calibration_errors(labels_N, probs_NK)
        reliability = resolution = uncertainty = within = 0.0
        for k in range(5):
            frame = DataFrame({"p": probs_NK[:, k], "own": (labels_N == k).astype(float)})
            bins = frame.groupby(cut(frame["p"], np.linspace(0, 1, 16)), observed=True)
            rate, shares = frame["own"].mean(), bins.size() / len(frame)
            means = bins.mean()
            reliability += (shares * (means["p"] - means["own"]) ** 2).sum()
            resolution += (shares * (means["own"] - rate) ** 2).sum()
            uncertainty += rate * (1 - rate)
            # Stephenson et al. 2008: the variance of p within the bins, less twice its covariance
            # with what came true.
            spread = bins["p"].var(ddof=0) - 2 * bins.apply(lambda b: b["p"].cov(b["own"], ddof=0))
            within += (shares * spread).sum()
        parts = {
            "brier_reliability": reliability,
            "brier_resolution": resolution,
            "brier_uncertainty": uncertainty,
            "brier_within_bins": within,
        }
        assert {name: found[name] for name in parts} == pytest.approx(parts)

    def test_by_hand(self) -> None:
        # Two images, so two of the bins of equal mass hold one image each.
        found = calibration_errors(np.array([0, 1]), np.array([[0.8, 0.2], [0.7, 0.3]]))
        assert found["ece"] == pytest.approx((0.2 + 0.7) / 2)
        assert found["ece_equal_mass"] == pytest.approx((0.2 + 0.7) / 2)
        assert found["classwise_ece"] == pytest.approx((0.2 + 0.7) / 2)
        assert found["brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.7**2) / 2)
        # Each in a bin of its own: reliability is the score, resolution takes all uncertainty.
        assert found["brier_reliability"] == pytest.approx(found["brier"])
        assert found["brier_resolution"] == pytest.approx(0.5)
        assert found["brier_uncertainty"] == pytest.approx(0.5)
        assert found["brier_within_bins"] == pytest.approx(0)

    def test_equal_probabilities_within_bins_leave_nothing_over(self) -> None:
        rng = np.random.default_rng(0)
        probs_NK = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])[rng.integers(3, size=300)]
        found = calibration_errors(rng.integers(2, size=300), probs_NK)
        assert found["brier_within_bins"] == pytest.approx(0, abs=1e-12)
        assert found["brier_reliability"] > 0.01

    def test_the_table_adds_up_to_the_error(self) -> None:
        labels_N, probs_NK = drawn(3, 500, 1.5)
        table = [row for row in reliability_table(labels_N, probs_NK) if row["images"]]
        assert sum(row["images"] for row in table) == 500
        gap = sum(row["images"] * abs(row["accuracy"] - row["confidence"]) for row in table) / 500
        assert gap == pytest.approx(calibration_errors(labels_N, probs_NK)["ece"])
        assert all(row["low"] < row["confidence"] <= row["high"] for row in table)


class TestSets:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("level", [0.8, 0.95])
    def test_hold_the_true_class_as_often_as_asked(self, method: str, level: float) -> None:
        # 4,000 to calibrate: coverage is level +- 0.0063 (standard deviation), and the same
        # again for finite test images. The deterministic APS and RAPS may be above.
        labels_N, probs_NK = drawn(4, 8_000, 1.7)
        score_NK = scores(method, probs_NK, **OPTIONS)
        found = thresholds(method, score_NK[:4000], labels_N[:4000], level=level)
        sets_NK = prediction_sets(score_NK[4000:], found, probs_NK[4000:])
        held_N = sets_NK[np.arange(4000), labels_N[4000:]]
        assert held_N.mean() > level - 0.025
        if method in (LAC, PER_CLASS) and level > 0.9:
            assert held_N.mean() < level + 0.025
        if method == PER_CLASS:
            for k in range(5):
                assert held_N[labels_N[4000:] == k].mean() > level - 0.05, k

    def test_scores_by_hand(self) -> None:
        probs_NK = np.array([[0.2, 0.5, 0.3]])
        np.testing.assert_allclose(scores(LAC, probs_NK, **OPTIONS), [[0.8, 0.5, 0.7]])
        np.testing.assert_allclose(scores(APS, probs_NK, **OPTIONS), [[1.0, 0.5, 0.8]])
        np.testing.assert_allclose(scores(RAPS, probs_NK, **OPTIONS), [[1.2, 0.5, 0.9]])

    def test_the_quantile_counts_the_image_to_come(self) -> None:
        score_NK = np.arange(1, 20)[:, None] / 20 * np.ones((19, 2))
        labels_N = np.zeros(19, dtype=int)
        # 19 images: the 18th of 20 places for 0.9, the last for 0.95, and none beyond.
        for level, expected in ((0.9, 0.9), (0.95, 0.95), (0.96, np.inf)):
            found = thresholds(LAC, score_NK, labels_N, level=level)
            np.testing.assert_allclose(found, [expected, expected])
        # Of the second class there is no image: it is in every set.
        np.testing.assert_allclose(
            thresholds(PER_CLASS, score_NK, labels_N, level=0.9), [0.9, np.inf]
        )

    def test_no_set_is_empty(self) -> None:
        probs_NK = np.array([[0.4, 0.35, 0.25]])
        sets_NK = prediction_sets(scores(LAC, probs_NK, **OPTIONS), np.zeros(3), probs_NK)
        assert sets_NK.tolist() == [[True, False, False]]

    def test_refusals(self) -> None:
        with pytest.raises(ConfigError, match="lac, aps, raps, class_conditional"):
            scores("lax", np.ones((1, 2)) / 2, **OPTIONS)
        with pytest.raises(ConfigError, match="level=1"):
            thresholds(LAC, np.ones((1, 2)), np.zeros(1, dtype=int), level=1)


class TestAbstention:
    def test_curve_and_area_by_hand(self) -> None:
        coverage, risk = risk_coverage(
            np.array([0.9, 0.5, 0.8, 0.6]), np.array([True, False, False, True])
        )
        np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 2])
        assert area(risk) == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 4)

    def test_equals_have_no_order(self) -> None:
        right_N = np.array([True, False])
        for rights_N in (right_N, right_N[::-1]):
            np.testing.assert_allclose(risk_coverage(np.full(2, 0.7), rights_N)[1], [0.5, 0.5])

    def test_the_threshold_keeps_all_equals_or_none(self) -> None:
        confidence_N = np.array([0.9, 0.8, 0.8, 0.7])
        right_N = np.array([True, True, False, False])
        # From 0.9: no error of 1; from 0.8: 1 of 3; from 0.7: 2 of 4.
        for error, threshold in ((0, 0.9), (0.3, 0.9), (0.34, 0.8), (0.5, 0.7)):
            assert abstention_threshold(confidence_N, right_N, error=error) == threshold, error
        assert abstention_threshold(np.array([0.9]), np.array([False]), error=0.5) is None

    def test_needs_images(self) -> None:
        with pytest.raises(DataError, match="no images"):
            risk_coverage(np.zeros(0), np.zeros(0, dtype=bool))
