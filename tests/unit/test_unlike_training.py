"""Images unlike those that a model was made for: distances by hand, and what is told apart."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from dermalyze.errors import DataError
from dermalyze.evaluation.unlikeness import Seen, distances_of_unseen
from dermalyze.inference.features import Features
from dermalyze.inference.views import Views
from dermalyze.models.classifier import Classifier
from dermalyze.reporting.measures import Bootstrap
from dermalyze.reporting.resampled import Resampled
from dermalyze.reporting.unlike_training import (
    fit_unlikeness,
    unlikeness,
    unlikeness_columns,
    unlikeness_report,
)

OPTIONS = {"share": 0.05, "directions": 3, "folds": 5}
ALONE = np.ones(1)


def drawn(seed: int, images: int = 400) -> np.ndarray:
    """Features of which two directions vary most, on scales that differ by a hundred."""
    rng = np.random.default_rng(seed)
    hidden_N2 = rng.normal(size=(images, 2)) * [5, 3]
    mixing_28 = np.random.default_rng(99).normal(size=(2, 8))
    features_NF = hidden_N2 @ mixing_28 + rng.normal(size=(images, 8))
    return (features_NF * np.geomspace(0.1, 10, 8) + 7).astype(np.float32)


def lesions(images: int) -> np.ndarray:
    return np.array([f"L{row // 2}" for row in range(images)])


def test_with_all_directions_it_is_the_mahalanobis_distance() -> None:
    features_NF, other_NF = drawn(0), drawn(1, 9)
    centred_NF = other_NF.astype(np.float64) - features_NF.astype(np.float64).mean(axis=0)
    inverse_FF = np.linalg.inv(np.cov(features_NF.astype(np.float64), rowvar=False, bias=True))
    expected_N = np.sqrt(np.einsum("nf,fg,ng->n", centred_NF, inverse_FF, centred_NF) / 8)
    np.testing.assert_allclose(Seen.of(features_NF, 7).distance(other_NF), expected_N, rtol=1e-4)


@pytest.mark.parametrize("directions", [1, 3, 7, 100])
def test_its_own_images_are_1_away_in_the_mean_square(directions: int) -> None:
    seen = Seen.of(drawn(0), directions)
    assert (seen.distance(drawn(0)) ** 2).mean() == pytest.approx(1, rel=1e-4)
    assert len(seen.variances_R) == min(directions, 7)


def test_units_have_no_say_and_features_that_never_vary_are_noticed_when_they_do() -> None:
    scale_F = np.geomspace(1e2, 1e-2, 8).astype(np.float32)
    near, far = (Seen.of(drawn(0) * s, 3).distance(drawn(1, 9) * s) for s in (1, scale_F))
    np.testing.assert_allclose(near, far, rtol=1e-3)
    still_NF = np.concatenate([drawn(0), np.zeros((400, 1), np.float32)], axis=1)
    seen = Seen.of(still_NF, 3)
    assert np.isfinite(seen.distance(still_NF)).all()
    # As far as a deviation of a hundredth of the median one makes it, and no further.
    moved_NF = still_NF + np.eye(9, dtype=np.float32)[8]
    steps = 1 / (0.01 * np.median(still_NF[:, :8].astype(np.float64).std(axis=0)))
    expected_N = np.sqrt(seen.distance(still_NF) ** 2 + steps**2 / seen.other_variance / 9)
    np.testing.assert_allclose(seen.distance(moved_NF), expected_N, rtol=1e-4)
    with pytest.raises(DataError, match="no feature varies among 9 images"):
        Seen.of(np.full((9, 4), 0.1, np.float32), 3)


def resampled(images: int) -> Resampled:
    """Each image is of a lesion of its own."""
    return Resampled(Bootstrap(level=0.9, draws=400, seed=0), range(images))


def test_an_image_is_held_against_other_lesions_alone() -> None:
    features_NF = drawn(0, 40)
    features_NF[1] = features_NF[0] = 1e4  # two images of one lesion that is like no other
    found_N = distances_of_unseen(features_NF, lesions(40), directions=3, folds=20)
    expected = Seen.of(features_NF[2:], 3).distance(features_NF[:2])
    np.testing.assert_allclose(found_N[:2], expected)
    assert found_N[0] > 10 * Seen.of(features_NF, 3).distance(features_NF[:1])[0]


def test_the_threshold_calls_its_share_of_fresh_images_so_and_all_that_is_something_else() -> None:
    fitted = {"unlike_training": fit_unlikeness([drawn(0)], lesions(400), ALONE, **OPTIONS)}
    assert json.loads(json.dumps(fitted, allow_nan=False)) == fitted
    fresh_N = unlikeness(fitted, [drawn(1, 4000)], ALONE)
    assert fresh_N is not None
    report = unlikeness_report(fresh_N, fitted, resampled=resampled(4000), why_not=None)
    # 20 of 400 validation images decide, so a share of 0.05 +- 0.011 (one standard deviation).
    assert report["flagged"] == pytest.approx(0.05, abs=0.033)
    assert report["flag_above"] == fitted["unlike_training"]["flag_above"]
    flagged = report["intervals"]["flagged"]
    assert flagged["value"] == report["flagged"]
    # Single images are drawn: the interval is about 2 x 1.64 standard errors wide.
    error = np.sqrt(flagged["value"] * (1 - flagged["value"]) / 4000)
    assert flagged["high"] - flagged["low"] == pytest.approx(3.29 * error, rel=0.2)
    columns = unlikeness_columns(fresh_N, fitted)
    assert np.mean(columns["unlike_training_flag"]) == report["flagged"]
    assert columns["unlike_training"] == fresh_N.tolist()
    # The same features in another order: each is common, and they are never seen together so.
    strange_N = unlikeness(fitted, [drawn(1)[:, ::-1]], ALONE)
    assert (
        unlikeness_report(strange_N, fitted, resampled=resampled(400), why_not=None)["flagged"] == 1
    )


def test_members_are_weighted() -> None:
    both, weights_M = [drawn(0), drawn(2)[:, :5]], np.array([0.25, 0.75])
    fitted = {"unlike_training": fit_unlikeness(both, lesions(400), weights_M, **OPTIONS)}
    found_N = unlikeness(fitted, [drawn(3, 9), drawn(4, 9)[:, :5]], weights_M)
    one, two = Seen.of(both[0], 3), Seen.of(both[1], 3)
    expected_N = 0.25 * one.distance(drawn(3, 9)) + 0.75 * two.distance(drawn(4, 9)[:, :5])
    np.testing.assert_allclose(found_N, expected_N, rtol=1e-12)


def test_without_features_or_with_too_few_images_it_says_why() -> None:
    for found, ids, why in (
        ([drawn(0), None], lesions(400), "no features"),
        ([drawn(0, 2)], ["a", "a"], "validation: 1 lesions"),
        ([drawn(0, 3)], ["a", "b", "b"], "validation: 1 images: at least 3 are needed"),
    ):
        fit = fit_unlikeness(found, ids, np.ones(len(found)) / len(found), **OPTIONS)
        fitted = {"unlike_training": fit}
        assert unlikeness(fitted, found, ALONE) is None
        report = unlikeness_report(None, fitted, resampled=resampled(9), why_not=None)
        assert (report["flag_above"], report["flagged"]) == (None, None)
        assert why in report["reason"]
        assert unlikeness_columns(None, fitted) == {}
    report = unlikeness_report(None, None, resampled=resampled(9), why_not="elsewhere")
    assert report["reason"] == "elsewhere"
    with pytest.raises(DataError, match="2 images: at least 3"):
        Seen.of(drawn(0, 2), 3)


class Backbone(nn.Module):
    """Maps of the picture's brightness in two channels."""

    mean, std = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.cat([images_BCHW[:, :1], images_BCHW[:, 1:2] * 2], dim=1)


class Unfused(nn.Module):
    def forward(self, features_BCHW: torch.Tensor, metadata_BM: None) -> torch.Tensor:
        return features_BCHW


def test_features_are_the_pooled_map_of_each_images_first_view() -> None:
    model = Classifier(
        backbone=Backbone(), metadata=Unfused(), head=nn.Flatten(), colour_constancy="none"
    )
    views = Views(
        name="two", symmetries=["identity"], rotations=[], zooms=[1.5], aggregation="mean"
    )
    images_BCHW = torch.randint(0, 256, (5, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    features = Features(views=len(views))
    with features.gathered_from(model), torch.inference_mode():
        for batch in (images_BCHW[:3], images_BCHW[3:]):
            model(views.of(batch.to(torch.uint8)))
    model(images_BCHW)  # no longer looked at
    expected_B2 = images_BCHW[:, :2].double().mean(dim=(2, 3)) * torch.tensor([1, 2])
    np.testing.assert_allclose(features.array(), expected_B2.numpy(), rtol=1e-6)


def test_what_is_no_classifier_has_none() -> None:
    features, model = Features(views=1), nn.Flatten()
    with features.gathered_from(model):
        model(torch.zeros(2, 3, 4, 4))
    assert features.array() is None
