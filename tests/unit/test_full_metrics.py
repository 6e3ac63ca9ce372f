"""All metrics of an evaluation, against scikit-learn, torchmetrics and counts by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import (
    binary_sensitivity_at_specificity,
    multiclass_average_precision,
    multiclass_cohen_kappa,
    multiclass_matthews_corrcoef,
    multiclass_specificity,
)

from dermalyze.evaluation.full_metrics import FullMetrics, full_metrics
from dermalyze.evaluation.intervals import lesion_weights
from dermalyze.evaluation.metrics import METRICS, summary_metrics
from dermalyze.evaluation.ranking import Ranking

MALIGNANT = (True, True, False, False, True, False, False)
MELANOMA = 4
SPECIFICITIES = (0.8, 0.95)


def sampled(seed: int, images: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Labels of uneven classes and probabilities that know something, rounded so that some tie."""
    rng = np.random.default_rng(seed)
    labels_N = rng.choice(7, images, p=np.geomspace(1, 20, 7) / np.geomspace(1, 20, 7).sum())
    labels_N[:7] = np.arange(7)
    scores_NK = rng.normal(size=(images, 7)) + 1.5 * np.eye(7)[labels_N]
    probs_NK = (np.exp(scores_NK) / np.exp(scores_NK).sum(axis=1, keepdims=True)).round(2) + 0.01
    return labels_N, probs_NK / probs_NK.sum(axis=1, keepdims=True)


def measured(labels_N: np.ndarray, probs_NK: np.ndarray, weights_DN: np.ndarray) -> FullMetrics:
    return full_metrics(
        labels_N,
        probs_NK,
        weights_DN,
        malignant_K=MALIGNANT,
        melanoma=MELANOMA,
        specificities=SPECIFICITIES,
    )


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_those_of_scikit_learn(seed: int) -> None:
    labels_N, probs_NK = sampled(seed)
    predicted_N = probs_NK.argmax(axis=1)
    weights_DN = np.random.default_rng(seed).gamma(0.5, size=(3, len(labels_N)))
    found = measured(labels_N, probs_NK, weights_DN)
    malignant_N = np.asarray(MALIGNANT)[labels_N]
    malignant_scores_N = probs_NK[:, list(MALIGNANT)].sum(axis=1)
    for draw, w in enumerate(weights_DN):
        expected = {
            "kappa": sk.cohen_kappa_score(labels_N, predicted_N, sample_weight=w),
            "mcc": sk.matthews_corrcoef(labels_N, predicted_N, sample_weight=w),
            "malignant_auc": sk.roc_auc_score(malignant_N, malignant_scores_N, sample_weight=w),
            "macro_average_precision": sk.average_precision_score(
                np.eye(7)[labels_N], probs_NK, average="macro", sample_weight=w
            ),
        }
        for mean in ("macro", "weighted"):
            precision, recall, f1, _ = sk.precision_recall_fscore_support(
                labels_N, predicted_N, average=mean, sample_weight=w, zero_division=np.nan
            )
            expected |= {
                f"{mean}_precision": precision,
                f"{mean}_recall": recall,
                f"{mean}_f1": f1,
            }
        for name, value in expected.items():
            assert found.overall[name][draw] == pytest.approx(value, abs=1e-9), name
        for k in range(7):
            own_N = labels_N == k
            of_class = {
                "auc": sk.roc_auc_score(own_N, probs_NK[:, k], sample_weight=w),
                "average_precision": sk.average_precision_score(
                    own_N, probs_NK[:, k], sample_weight=w
                ),
                "precision": sk.precision_score(
                    own_N, predicted_N == k, sample_weight=w, zero_division=np.nan
                ),
                "recall": sk.recall_score(own_N, predicted_N == k, sample_weight=w),
                "specificity": sk.recall_score(~own_N, predicted_N != k, sample_weight=w),
                "f1": sk.f1_score(own_N, predicted_N == k, sample_weight=w),
            }
            for name, value in of_class.items():
                found_here = found.per_class[name][draw, k]
                assert found_here == pytest.approx(value, abs=1e-9, nan_ok=True), (name, k)


@pytest.mark.parametrize("seed", range(4))
def test_without_weights_equals_torchmetrics(seed: int) -> None:
    labels_N, probs_NK = sampled(seed)
    labels, probs = torch.from_numpy(labels_N), torch.from_numpy(probs_NK)
    found = measured(labels_N, probs_NK, np.ones((1, len(labels_N))))
    assert found.overall["kappa"][0] == pytest.approx(
        multiclass_cohen_kappa(probs, labels, num_classes=7).item(), abs=1e-6
    )
    assert found.overall["mcc"][0] == pytest.approx(
        multiclass_matthews_corrcoef(probs, labels, num_classes=7).item(), abs=1e-6
    )
    for name, reference in (
        ("average_precision", multiclass_average_precision),
        ("specificity", multiclass_specificity),
    ):
        expected = reference(probs, labels, num_classes=7, average=None).numpy()
        np.testing.assert_allclose(found.per_class[name][0], expected, atol=1e-6)
    for specificity in SPECIFICITIES:
        expected, _ = binary_sensitivity_at_specificity(
            probs[:, MELANOMA], (labels == MELANOMA).long(), min_specificity=specificity
        )
        name = f"melanoma_sensitivity_at_specificity_{specificity:g}"
        assert found.overall[name][0] == pytest.approx(expected.item(), abs=1e-6)


def test_the_summary_is_among_them() -> None:
    labels_N, probs_NK = sampled(9)
    found = measured(labels_N, probs_NK, np.ones((1, len(labels_N)))).overall
    assert {name: found[name][0] for name in METRICS} == pytest.approx(
        summary_metrics(labels_N, probs_NK)
    )
    assert found["macro_recall"] == pytest.approx(found["balanced_accuracy"])
    assert found["weighted_recall"] == pytest.approx(found["accuracy"])


def test_sensitivity_at_a_specificity_by_hand() -> None:
    # Falling: 0.9 melanoma, 0.8 other, 0.7 melanoma, 0.6 other, 0.6 melanoma, then three others.
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.3, 0.2, 0.1])
    melanoma = np.array([1, 0, 1, 0, 1, 0, 0, 0], dtype=bool)
    ranking = Ranking(scores, melanoma, np.ones((1, 8)))
    # 5 others: one of them wrongly called leaves 0.8, two leave 0.6.
    for specificity, sensitivity in ((1, 1 / 3), (0.9, 1 / 3), (0.8, 2 / 3), (0.6, 1), (0, 1)):
        assert ranking.sensitivity(specificity) == pytest.approx([sensitivity]), specificity
    first_other = Ranking(-scores, melanoma, np.ones((1, 8)))
    assert first_other.sensitivity(1) == pytest.approx([0])


def test_what_the_labels_leave_undefined_is_nan() -> None:
    labels_N = np.array([0, 0, 2])
    probs_NK = np.full((3, 7), 0.05)
    probs_NK[:, 0] = 0.7
    found = measured(labels_N, probs_NK, np.ones((1, 3)))
    of_melanoma = {name: values_DK[0, MELANOMA] for name, values_DK in found.per_class.items()}
    assert of_melanoma == pytest.approx(
        {
            "precision": np.nan,
            "recall": np.nan,
            "specificity": 1,
            "f1": np.nan,
            "auc": np.nan,
            "average_precision": np.nan,
        },
        nan_ok=True,
    )
    assert found.overall["macro_precision"] == pytest.approx([2 / 3])
    assert np.isnan(found.overall["mcc"][0])  # one class only is predicted
    assert np.isnan(found.overall["melanoma_sensitivity_at_specificity_0.8"][0])
    one_kind = full_metrics(
        labels_N, probs_NK, np.ones((1, 3)), malignant_K=None, melanoma=None, specificities=[0.9]
    )
    assert found.overall.keys() - one_kind.overall.keys() == {
        "malignant_auc",
        *(f"melanoma_sensitivity_at_specificity_{s:g}" for s in SPECIFICITIES),
    }


def test_draws_are_the_metrics_of_the_images_repeated() -> None:
    labels_N, probs_NK = sampled(5, images=60)
    ids = np.random.default_rng(0).integers(40, size=60).astype(str)
    weights_DN = lesion_weights(ids, draws=300, seed=1)
    found = measured(labels_N, probs_NK, weights_DN)
    for draw in (0, 255, 256, 299):
        rows = np.repeat(np.arange(60), weights_DN[draw].astype(int))
        alone = measured(labels_N[rows], probs_NK[rows], np.ones((1, len(rows))))
        for name, values_D in found.overall.items():
            expected = pytest.approx(alone.overall[name][0], abs=1e-9, nan_ok=True)
            assert values_D[draw] == expected, name


def test_1500_images_and_2000_draws_take_seconds() -> None:
    labels_N, probs_NK = sampled(0, images=1500)
    ids = np.random.default_rng(0).integers(1000, size=1500).astype(str)
    start = time.process_time()  # of this process alone: others may be busy meanwhile
    measured(labels_N, probs_NK, lesion_weights(ids, draws=2000, seed=0))
    assert time.process_time() - start < 10
