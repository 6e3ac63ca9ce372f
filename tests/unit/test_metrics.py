from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.metrics import (
    METRICS,
    confusion,
    direction,
    expected_calibration_error,
    per_class_metrics,
    summary_metrics,
    undefined_reasons,
)

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

# Four images, three classes; the third image is predicted wrongly (0 instead of 2).
HAND_LABELS = np.array([0, 1, 2, 1])
HAND_PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.2, 0.3], [0.3, 0.6, 0.1]])


def sampled(
    seed: int, size: int = 400, num_classes: int = 7, skill: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of very unequal frequency and probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    frequencies = np.geomspace(1, 30, num_classes)
    labels_N = rng.choice(num_classes, size=size, p=frequencies / frequencies.sum())
    labels_N[:num_classes] = np.arange(num_classes)
    logits_NK = rng.normal(size=(size, num_classes)) + skill * np.eye(num_classes)[labels_N]
    odds_NK = np.exp(logits_NK)
    return labels_N, odds_NK / odds_NK.sum(axis=1, keepdims=True)


class TestDirection:
    @pytest.mark.parametrize(
        ("metric", "expected"),
        [
            ("loss", "min"),
            ("ece", "min"),
            ("accuracy", "max"),
            ("balanced_accuracy", "max"),
            ("macro_f1", "max"),
            ("macro_auc", "max"),
            ("val/loss", "min"),
            ("train/accuracy", "max"),
        ],
    )
    def test_known(self, metric: str, expected: str) -> None:
        assert direction(metric) == expected

    @pytest.mark.parametrize(
        ("metric", "suggestion"),
        [
            ("val/macro_f2", "'val/macro_f1'"),
            ("balanced_acuracy", "'balanced_accuracy'"),
            ("train/los", "'train/loss'"),
            ("val/val/loss", "'val/loss'"),
        ],
    )
    def test_unknown_names_the_nearest(self, metric: str, suggestion: str) -> None:
        with pytest.raises(ConfigError) as raised:
            direction(metric)
        assert repr(metric) in str(raised.value)
        assert f"Did you mean {suggestion}?" in str(raised.value)

    def test_covers_exactly_what_is_measured(self) -> None:
        assert list(summary_metrics(*sampled(0))) == list(METRICS)


class TestSummary:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("num_classes", [2, 3, 7])
    def test_equals_scikit_learn(self, seed: int, num_classes: int) -> None:
        labels_N, probs_NK = sampled(seed, num_classes=num_classes)
        predicted_N = probs_NK.argmax(axis=1)
        auc = (
            sk.roc_auc_score(labels_N, probs_NK[:, 1])
            if num_classes == 2
            else sk.roc_auc_score(labels_N, probs_NK, multi_class="ovr", average="macro")
        )
        assert summary_metrics(labels_N, probs_NK) == pytest.approx(
            {
                "loss": sk.log_loss(labels_N, probs_NK),
                "accuracy": sk.accuracy_score(labels_N, predicted_N),
                "balanced_accuracy": sk.balanced_accuracy_score(labels_N, predicted_N),
                "macro_f1": sk.f1_score(labels_N, predicted_N, average="macro"),
                "macro_auc": auc,
                "ece": expected_calibration_error(labels_N, probs_NK, bins=15),
            },
            rel=1e-12,
        )

    def test_loss_equals_torch(self) -> None:
        labels_N, probs_NK = sampled(1)
        expected = torch.nn.functional.nll_loss(
            torch.from_numpy(probs_NK).log(), torch.from_numpy(labels_N)
        )
        assert summary_metrics(labels_N, probs_NK)["loss"] == pytest.approx(expected.item())

    def test_by_hand(self) -> None:
        found = summary_metrics(HAND_LABELS, HAND_PROBS)
        assert found == pytest.approx(
            {
                "loss": -np.log([0.7, 0.8, 0.3, 0.6]).mean(),
                "accuracy": 3 / 4,
                "balanced_accuracy": (1 + 1 + 0) / 3,
                # F1: class 0 has precision 1/2, recall 1; class 1 is right; class 2 never hit.
                "macro_f1": (2 / 3 + 1 + 0) / 3,
                # Each class's own images rank above all others' in its column.
                "macro_auc": 1.0,
                # Each image has a bin of its own.
                "ece": (0.3 + 0.2 + 0.5 + 0.4) / 4,
            }
        )

    @given(
        st.integers(2, 8).flatmap(
            lambda k: st.tuples(st.just(k), st.lists(st.integers(0, k - 1), min_size=1))
        )
    )
    @settings(max_examples=40)
    def test_perfect_predictions(self, drawn: tuple[int, list[int]]) -> None:
        num_classes, labels = drawn
        labels_N = np.array(labels)
        found = summary_metrics(labels_N, np.eye(num_classes)[labels_N])
        auc = found.pop("macro_auc")
        assert auc == (None if len(set(labels)) == 1 else 1.0)
        assert found.pop("loss") == pytest.approx(0, abs=1e-12)
        assert found == {"accuracy": 1, "balanced_accuracy": 1, "macro_f1": 1, "ece": 0}

    @given(st.integers(0, 2**32), st.integers(1, 60), st.integers(2, 6))
    @settings(max_examples=40)
    def test_order_of_images_is_irrelevant(self, seed: int, size: int, num_classes: int) -> None:
        rng = np.random.default_rng(seed)
        labels_N = rng.integers(num_classes, size=size)
        probs_NK = rng.dirichlet(np.ones(num_classes), size=size)
        order = rng.permutation(size)
        before = summary_metrics(labels_N, probs_NK)
        after = summary_metrics(labels_N[order], probs_NK[order])
        for name, value in before.items():
            close = None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)
            assert after[name] == close, name

    def test_absent_class_is_left_out_of_the_means(self) -> None:
        labels_N, probs_NK = sampled(2)
        kept_N = labels_N != 3
        labels_N, probs_NK = labels_N[kept_N], probs_NK[kept_N]
        predicted_N = probs_NK.argmax(axis=1)
        assert 3 in predicted_N  # scikit-learn's balanced accuracy would warn here
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            balanced_accuracy = sk.balanced_accuracy_score(labels_N, predicted_N)
        found = summary_metrics(labels_N, probs_NK)
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy)
        present = [0, 1, 2, 4, 5, 6]
        auc = [sk.roc_auc_score(labels_N == k, probs_NK[:, k]) for k in present]
        assert found["macro_auc"] == pytest.approx(np.mean(auc))
        # Class 3 is predicted, so it counts in macro F1, with an F1 of 0.
        f1 = [sk.f1_score(labels_N == k, predicted_N == k) for k in present]
        assert found["macro_f1"] == pytest.approx(sum(f1) / 7)

    def test_class_neither_labelled_nor_predicted_is_not_in_macro_f1(self) -> None:
        probs_NK = np.column_stack([HAND_PROBS, np.zeros(4)])
        assert summary_metrics(HAND_LABELS, probs_NK)["macro_f1"] == pytest.approx(5 / 9)

    def test_one_class_only(self) -> None:
        found = summary_metrics(np.array([1, 1, 1, 1]), HAND_PROBS)
        assert found["macro_auc"] is None
        assert found["accuracy"] == found["balanced_accuracy"] == 0.5

    def test_confident_mistake_costs_finitely(self) -> None:
        found = summary_metrics(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))
        assert found["loss"] == pytest.approx(-np.log(np.finfo(np.float64).eps) / 2)

    def test_float32_rounding_is_no_problem(self) -> None:
        labels_N, probs_NK = sampled(3, size=2000)
        probs32_NK = probs_NK.astype(np.float32)
        assert (probs32_NK.sum(axis=1, dtype=np.float64) != 1).any()
        assert summary_metrics(labels_N, probs32_NK) == pytest.approx(
            summary_metrics(labels_N, probs_NK), abs=1e-6
        )

    def test_inputs_stay_as_they_were(self) -> None:
        labels_N, probs_NK = sampled(4)
        labels_before, probs_before = labels_N.copy(), probs_NK.copy()
        labels_N.flags.writeable = probs_NK.flags.writeable = False
        summary_metrics(labels_N, probs_NK)
        np.testing.assert_array_equal(labels_N, labels_before)
        np.testing.assert_array_equal(probs_NK, probs_before)


class TestCalibrationError:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("bins", [1, 10, 15])
    def test_equals_torchmetrics(self, seed: int, bins: int) -> None:
        labels_N, probs_NK = sampled(seed, size=1000)
        expected = multiclass_calibration_error(
            torch.from_numpy(probs_NK),
            torch.from_numpy(labels_N),
            num_classes=7,
            n_bins=bins,
            norm="l1",
        )
        found = expected_calibration_error(labels_N, probs_NK, bins=bins)
        assert found == pytest.approx(expected.item(), abs=1e-6)
        assert found > 0.01

    def test_bins_include_their_upper_edge(self) -> None:
        # 0.5 belongs to (0.25, 0.5], so it shares a bin with 0.4 but not with 0.6: the first two
        # cancel within theirs, (1 - 0.5) + (0 - 0.4) = 0.1, and the third stands alone.
        probs_NK = np.array([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.6, 0.2, 0.2]])
        found = expected_calibration_error(np.array([0, 1, 1]), probs_NK, bins=4)
        assert found == pytest.approx((0.1 + 0.6) / 3)

    def test_certainty_falls_into_the_last_bin(self) -> None:
        # 1.0 and 0.95 share (0.9, 1]: their gaps, 0 - 1 and 1 - 0.95, are added before |.|.
        probs_NK = np.array([[1.0, 0.0], [0.95, 0.05]])
        found = expected_calibration_error(np.array([1, 0]), probs_NK, bins=10)
        assert found == pytest.approx(0.95 / 2)

    @pytest.mark.parametrize("bins", [0, -1])
    def test_needs_a_bin(self, bins: int) -> None:
        with pytest.raises(ConfigError, match=f"bins={bins}"):
            expected_calibration_error(HAND_LABELS, HAND_PROBS, bins=bins)


class TestPerClass:
    def test_by_hand(self) -> None:
        table = per_class_metrics(HAND_LABELS, HAND_PROBS, ["mel", "nv", "bkl"])
        assert list(table.index) == ["mel", "nv", "bkl"]
        expected = {
            "support": [1, 2, 1],
            "precision": [1 / 2, 1, np.nan],  # bkl is never predicted
            "recall": [1, 1, 0],
            "specificity": [2 / 3, 1, 1],
            "f1": [2 / 3, 1, 0],
            "auc": [1, 1, 1],
        }
        assert list(table.columns) == list(expected)
        for column, values in expected.items():
            np.testing.assert_allclose(table[column], values, err_msg=column)
        assert table["support"].dtype == np.int64

    def test_equals_one_vs_rest_scikit_learn(self) -> None:
        labels_N, probs_NK = sampled(6)
        predicted_N = probs_NK.argmax(axis=1)
        table = per_class_metrics(labels_N, probs_NK, CLASSES)
        for column, code in enumerate(CLASSES):
            true_N, found_N = labels_N == column, predicted_N == column
            assert table.loc[code].to_dict() == pytest.approx(
                {
                    "support": true_N.sum(),
                    "precision": sk.precision_score(true_N, found_N),
                    "recall": sk.recall_score(true_N, found_N),
                    "specificity": (~true_N & ~found_N).sum() / (~true_N).sum(),
                    "f1": sk.f1_score(true_N, found_N),
                    "auc": sk.roc_auc_score(true_N, probs_NK[:, column]),
                }
            )

    @given(st.integers(0, 2**32), st.integers(1, 30))
    @settings(max_examples=30)
    def test_means_are_the_summary(self, seed: int, size: int) -> None:
        rng = np.random.default_rng(seed)
        labels_N = rng.integers(4, size=size)
        probs_NK = rng.dirichlet(np.ones(4), size=size)
        table = per_class_metrics(labels_N, probs_NK, list("abcd"))
        found = summary_metrics(labels_N, probs_NK)
        assert table["recall"].mean() == pytest.approx(found["balanced_accuracy"])
        assert table["f1"].mean() == pytest.approx(found["macro_f1"])
        undefined = undefined_reasons(labels_N, 4, list("abcd"))
        assert set(table.index[table["auc"].isna()]) == set(undefined)
        if found["macro_auc"] is None:
            assert table["auc"].isna().all()
        else:
            assert table["auc"].mean() == pytest.approx(found["macro_auc"])

    def test_undefined_is_nan_never_zero(self) -> None:
        labels_N = np.array([0, 0, 0])
        probs_NK = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.7, 0.3, 0]])
        table = per_class_metrics(labels_N, probs_NK, ["a", "b", "c"])
        nan = np.nan
        np.testing.assert_allclose(table.loc["a"], [3, 1, 2 / 3, nan, 0.8, nan])
        np.testing.assert_allclose(table.loc["b"], [0, 0, nan, 2 / 3, 0, nan])
        np.testing.assert_allclose(table.loc["c"], [0, nan, nan, 1, nan, nan])

    @pytest.mark.parametrize("classes", [["a", "b"], ["a", "b", "b"]])
    def test_classes_must_name_the_columns(self, classes: list[str]) -> None:
        with pytest.raises(DataError, match="needed 3 different names"):
            per_class_metrics(HAND_LABELS, HAND_PROBS, classes)


class TestUndefinedReasons:
    def test_absent_class(self) -> None:
        assert undefined_reasons(np.array([0, 2, 2]), 3, ["mel", "df", "nv"]) == {
            "df": "none of the 3 images is labelled df"
        }

    def test_single_class(self) -> None:
        assert undefined_reasons(np.array([1, 1]), 2, ["mel", "nv"]) == {
            "mel": "none of the 2 images is labelled mel",
            "nv": "all 2 images are labelled nv: nothing to rank it against",
        }

    def test_nothing_undefined(self) -> None:
        assert undefined_reasons(np.array([1, 0]), 2, ["mel", "nv"]) == {}


class TestConfusion:
    def test_rows_are_true(self) -> None:
        counts_KK = confusion(HAND_LABELS, HAND_PROBS)
        np.testing.assert_array_equal(counts_KK, [[1, 0, 0], [0, 2, 0], [1, 0, 0]])
        assert counts_KK.dtype == np.int64

    def test_classes_that_never_occur_keep_their_place(self) -> None:
        counts_KK = confusion(np.array([2, 2]), np.array([[0, 0, 1, 0], [0.4, 0, 0.3, 0.3]]))
        expected = np.zeros((4, 4))
        expected[2, 2] = expected[2, 0] = 1
        np.testing.assert_array_equal(counts_KK, expected)


MEASURES = {
    "summary": summary_metrics,
    "per_class": lambda y, p: per_class_metrics(y, p, ["a", "b", "c"]),
    "ece": lambda y, p: expected_calibration_error(y, p, bins=15),
    "confusion": confusion,
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
class TestRefusals:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_non_finite_names_rows(self, measure, bad: float) -> None:
        probs_NK = HAND_PROBS.copy()
        probs_NK[1, 2] = probs_NK[3, 0] = bad
        with pytest.raises(DataError, match=r"rows 1, 3 \(2 of 4\): not finite"):
            measure(HAND_LABELS, probs_NK)

    def test_opposite_infinities(self, measure) -> None:
        probs_NK = HAND_PROBS.copy()
        probs_NK[2] = [np.inf, -np.inf, 0]
        with pytest.raises(DataError, match=r"rows 2 \(1 of 4\): not finite"):
            measure(HAND_LABELS, probs_NK)

    @pytest.mark.parametrize("row", [[1.2, -0.2, 0.0], [-0.001, 0.501, 0.5], [2, 3, 5]])
    def test_outside_the_unit_interval(self, measure, row: list[float]) -> None:
        probs_NK = HAND_PROBS.copy()
        probs_NK[0] = row
        with pytest.raises(DataError, match=r"rows 0 \(1 of 4\): outside \[0, 1\]"):
            measure(HAND_LABELS, probs_NK)

    def test_sum_tolerance(self, measure) -> None:
        probs_NK = HAND_PROBS.copy()
        probs_NK[3, 0] += 0.9e-4
        measure(HAND_LABELS, probs_NK)
        probs_NK[3, 0] += 0.2e-4
        with pytest.raises(DataError, match=r"rows 3 \(1 of 4\): not summing to 1"):
            measure(HAND_LABELS, probs_NK)

    def test_all_problems_at_once_and_only_the_first_rows(self, measure) -> None:
        probs_NK = np.tile(HAND_PROBS, (10, 1))
        probs_NK[10:] *= 0.5
        probs_NK[4] = np.nan
        probs_NK[5] = [-1, 1, 1]
        with pytest.raises(DataError) as raised:
            measure(np.tile(HAND_LABELS, 10), probs_NK)
        message = str(raised.value)
        assert "rows 4 (1 of 40)" in message
        assert "rows 5 (1 of 40)" in message
        assert "rows 10, 11, 12, 13, 14, ... (30 of 40)" in message

    @pytest.mark.parametrize(("label", "row"), [(3, 0), (-1, 2)])
    def test_label_out_of_range(self, measure, label: int, row: int) -> None:
        labels_N = HAND_LABELS.copy()
        labels_N[row] = label
        with pytest.raises(DataError, match=rf"rows {row} \(1 of 4\): outside \[0, 3\)"):
            measure(labels_N, HAND_PROBS)

    def test_empty(self, measure) -> None:
        with pytest.raises(DataError, match="no images"):
            measure(np.zeros(0, dtype=np.int64), np.zeros((0, 3)))

    @pytest.mark.parametrize(
        ("labels_N", "probs_NK", "why"),
        [
            (HAND_LABELS[:3], HAND_PROBS, "3 labels for 4 rows"),
            (HAND_LABELS.astype(float), HAND_PROBS, "float64, needed integers"),
            (np.eye(3, dtype=int)[HAND_LABELS], HAND_PROBS, r"shape \(4, 3\), needed \(N,\)"),
            (HAND_LABELS, HAND_PROBS[:, 0], r"shape \(4,\), needed \(N, K\)"),
            (HAND_LABELS * 0, np.ones((4, 1)), "K >= 2"),
        ],
    )
    def test_shapes_and_types(
        self, measure, labels_N: np.ndarray, probs_NK: np.ndarray, why: str
    ) -> None:
        with pytest.raises(DataError, match=why):
            measure(labels_N, probs_NK)


def test_evaluation_imports_no_torch() -> None:
    code = (
        "import sys, dermalyze.evaluation.metrics, dermalyze.evaluation.plots;"
        "print(*({'torch', 'mlflow', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
