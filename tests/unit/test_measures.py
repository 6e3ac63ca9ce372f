"""Metrics with intervals and subgroups, as an evaluation reports them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dermalyze.errors import ConfigError
from dermalyze.evaluation.intervals import interval, lesion_weights, metric_draws
from dermalyze.evaluation.metrics import summary_metrics
from dermalyze.reporting.measures import (
    Bootstrap,
    age_bands,
    metrics_with_intervals,
    subgroups,
)
from dermalyze.taxonomy import HAM10000_CODES

BOOTSTRAP = Bootstrap(level=0.9, draws=60, seed=3)


def sampled(images: int = 120) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(0)
    labels_N = rng.integers(7, size=images)
    probs_NK = rng.dirichlet(np.ones(7), size=images) * 0.5 + 0.5 * np.eye(7)[labels_N]
    frame = pd.DataFrame(
        {
            "lesion_id": rng.integers(80, size=images).astype(str),
            "age": rng.choice([20.0, 30.0, 44.9, 80.0, np.nan], size=images),
            "sex": ["male"] * 100 + ["unknown"] * (images - 100),
            "localization": "back",
            "dx_type": rng.choice(["histo", "follow_up"], size=images),
        }
    )
    return labels_N, probs_NK, frame


def test_an_estimate_is_the_metric_with_the_interval_of_the_draws() -> None:
    labels_N, probs_NK, frame = sampled()
    ids = frame["lesion_id"].to_numpy()
    found = metrics_with_intervals(
        labels_N,
        probs_NK,
        ids,
        HAM10000_CODES,
        bootstrap=BOOTSTRAP,
        specificities=[0.9],
        few_lesions=30,
    )
    draws = metric_draws(labels_N, probs_NK, lesion_weights(ids, draws=60, seed=3))
    for name, value in summary_metrics(labels_N, probs_NK).items():
        low, high, count = interval(draws[name], level=0.9)
        assert found["overall"][name] == pytest.approx(
            {"value": value, "low": low, "high": high, "draws": count}
        )
    assert list(found["per_class"]) == list(HAM10000_CODES)
    assert found["per_class"]["mel"]["support"] == (labels_N == 4).sum()
    for column, code in enumerate(HAM10000_CODES):
        lesions = len(set(ids[labels_N == column]))
        assert found["per_class"][code]["lesions"] == lesions
        note = f"{lesions} lesions: too few to conclude from (fewer than 30)"
        assert found["per_class"][code]["note"] == (note if lesions < 30 else None)
    recall = (probs_NK.argmax(axis=1) == 4)[labels_N == 4].mean()
    assert found["per_class"]["mel"]["recall"]["value"] == pytest.approx(recall)
    assert "melanoma_sensitivity_at_specificity_0.9" in found["overall"]


def test_what_has_no_value_says_why() -> None:
    labels_N = np.array([5, 5, 2, 2])
    probs_NK = np.full((4, 7), 0.05)
    probs_NK[:, 5] = 0.7
    found = metrics_with_intervals(
        labels_N,
        probs_NK,
        list("abcd"),
        HAM10000_CODES,
        bootstrap=BOOTSTRAP,
        specificities=[0.9],
        few_lesions=30,
    )
    nothing = {"value": None, "low": None, "high": None, "draws": 0}
    no_melanoma = nothing | {"reason": "none of the 4 images is labelled mel"}
    assert found["per_class"]["mel"]["recall"] == no_melanoma
    assert found["overall"]["melanoma_sensitivity_at_specificity_0.9"] == no_melanoma
    assert found["per_class"]["bkl"]["precision"] == nothing | {
        "reason": "no image is predicted to be bkl"
    }
    assert "all are benign" in found["overall"]["malignant_auc"]["reason"]
    assert found["per_class"]["bkl"]["recall"]["value"] == 0


def test_draws_that_lack_a_class_are_counted_and_a_group_of_one_class_says_why() -> None:
    labels_N, ids = np.array([0, 0, 1, 0]), np.array(list("abcd"))
    probs_NK = np.array([[0.7, 0.3]] * 4)
    frame = pd.DataFrame(
        {"lesion_id": ids, "age": np.nan, "sex": ["male"] * 3 + ["female"], "localization": "back"}
    )
    weights_DN = lesion_weights(ids, draws=60, seed=3)
    lacking = sum(
        not {0, 1} <= set(np.repeat(labels_N, times_N.astype(int))) for times_N in weights_DN
    )
    assert 0 < lacking < 60
    found = metrics_with_intervals(
        labels_N,
        probs_NK,
        ids,
        ["nv", "mel"],
        bootstrap=BOOTSTRAP,
        specificities=[0.9],
        few_lesions=2,
    )
    assert found["draws_lacking_a_class"] == lacking
    assert found["per_class"]["nv"]["note"] is None
    assert found["per_class"]["mel"]["note"].startswith("1 lesions: too few")
    sexes = subgroups(
        labels_N, probs_NK, frame, bootstrap=BOOTSTRAP, few_lesions=2, age_edges=[30]
    )["sex"]
    female, male = sexes["female"], sexes["male"]
    assert (female["classes"], female["draws_lacking_a_class"]) == (1, 0)
    assert female["metrics"]["macro_auc"]["reason"] == "all are of one class"
    assert male["classes"] == 2
    assert male["draws_lacking_a_class"] > 0


def test_classes_of_ones_own_have_no_malignancy() -> None:
    labels_N, probs_NK = np.array([0, 1]), np.array([[0.8, 0.2], [0.3, 0.7]])
    found = metrics_with_intervals(
        labels_N,
        probs_NK,
        ["a", "b"],
        ["mole", "nv"],
        bootstrap=BOOTSTRAP,
        specificities=[0.9],
        few_lesions=30,
    )
    reason = found["overall"]["malignant_auc"]["reason"]
    assert reason == "whether mole is malignant is not known"
    assert not [name for name in found["overall"] if name.startswith("melanoma")]


def test_subgroups_are_the_metrics_of_their_images() -> None:
    labels_N, probs_NK, frame = sampled()
    found = subgroups(
        labels_N, probs_NK, frame, bootstrap=BOOTSTRAP, few_lesions=30, age_edges=[30, 45]
    )
    # One localization is no group, and there is no column dataset.
    assert sorted(found) == ["age", "dx_type", "sex"]
    assert list(found["sex"]) == ["male", "unknown"]
    assert list(found["age"]) == ["0 to under 30", "30 to under 45", "45 and over", "unknown"]
    for column in found:
        assert sum(group["images"] for group in found[column].values()) == len(labels_N)
    male = found["sex"]["male"]
    assert male["images"] == 100
    assert male["lesions"] == frame["lesion_id"][:100].nunique()
    assert male["note"] is None
    expected = summary_metrics(labels_N[:100], probs_NK[:100])
    assert {name: e["value"] for name, e in male["metrics"].items()} == pytest.approx(expected)
    few = found["sex"]["unknown"]
    assert few["note"] == (f"{few['lesions']} lesions: too few to conclude from (fewer than 30)")


def test_age_edges_that_do_not_rise_are_refused() -> None:
    for edges in ([60, 30], [0, 30], [30, 30]):
        with pytest.raises(ConfigError, match="age_edges="):
            age_bands(pd.Series([40.0]), edges)


def test_age_bands_hold_their_lower_edge() -> None:
    ages = pd.Series([1.0, 29.9, 30.0, 59.0, 60.0, 120.0, np.nan])
    assert age_bands(ages, [30, 60]).tolist() == [
        "0 to under 30",
        "0 to under 30",
        "30 to under 60",
        "30 to under 60",
        "60 and over",
        "60 and over",
        "unknown",
    ]
