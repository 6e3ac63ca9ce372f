"""The bootstrap by lesion: its metrics are the metrics, its intervals hold what they promise."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.intervals import Interval, interval, lesion_weights, metric_draws
from dermalyze.evaluation.metrics import METRICS, summary_metrics


def sampled(seed: int, images: int = 300, num_classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Labels of uneven classes and probabilities that know something, rounded so that some tie."""
    rng = np.random.default_rng(seed)
    labels_N = rng.choice(num_classes, images, p=rng.dirichlet(np.full(num_classes, 2.0)))
    scores_NK = rng.normal(size=(images, num_classes)) + 1.5 * np.eye(num_classes)[labels_N]
    probs_NK = (np.exp(scores_NK) / np.exp(scores_NK).sum(axis=1, keepdims=True)).round(2) + 0.01
    return labels_N, probs_NK / probs_NK.sum(axis=1, keepdims=True)


def lesions(seed: int, images: int = 300) -> np.ndarray:
    """A lesion id for each image; most lesions have one, some many."""
    numbers = np.random.default_rng(seed).integers(images * 2 // 3, size=images)
    return np.array([f"HAM_{number:04d}" for number in numbers])


# Weights


def test_a_draw_takes_as_many_lesions_as_there_are_each_with_all_its_images() -> None:
    ids = lesions(0)
    weights_DN = lesion_weights(ids, draws=50, seed=3)
    assert weights_DN.shape == (50, 300)
    _, first, images_of = np.unique(ids, return_index=True, return_counts=True)
    for weights_N in weights_DN:
        for lesion in np.unique(ids):
            assert len(set(weights_N[ids == lesion])) == 1
        assert weights_N[first].sum() == len(first)
        assert weights_N.sum() == (weights_N[first] * images_of).sum()


def test_draws_are_a_function_of_the_seed_and_the_lesions_not_of_their_order() -> None:
    ids = lesions(0)
    order = np.random.default_rng(1).permutation(len(ids))
    weights_DN = lesion_weights(ids, draws=20, seed=3)
    np.testing.assert_array_equal(
        lesion_weights(ids[order], draws=20, seed=3), weights_DN[:, order]
    )
    assert (lesion_weights(ids, draws=20, seed=4) != weights_DN).any()
    # Fewer draws are the first of more.
    np.testing.assert_array_equal(lesion_weights(ids, draws=5, seed=3), weights_DN[:5])


def test_each_lesion_is_drawn_once_on_average_as_often_as_chance_has_it() -> None:
    # 10 lesions, 10 of them drawn: each 0, 1, 2, ... times as the binomial has it. 20,000 draws
    # know each share to 0.0035 (standard error).
    weights_DN = lesion_weights(np.arange(10).astype(str), draws=20_000, seed=0)
    for times in range(4):
        expected = stats.binom.pmf(times, 10, 0.1)
        np.testing.assert_allclose((weights_DN == times).mean(axis=0), expected, atol=0.017)


# Metrics of the draws


@pytest.mark.parametrize("seed", range(5))
def test_each_draw_has_the_metrics_of_its_images_repeated(seed: int) -> None:
    labels_N, probs_NK = sampled(seed)
    weights_DN = lesion_weights(lesions(seed), draws=20, seed=seed)
    found = metric_draws(labels_N, probs_NK, weights_DN)
    assert list(found) == list(METRICS)
    for draw, weights_N in enumerate(weights_DN):
        rows = np.repeat(np.arange(len(labels_N)), weights_N.astype(int))
        expected = summary_metrics(labels_N[rows], probs_NK[rows])
        for name, value in expected.items():
            assert found[name][draw] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("seed", range(5))
def test_weights_are_those_of_scikit_learn(seed: int) -> None:
    labels_N, probs_NK = sampled(seed)
    predicted_N = probs_NK.argmax(axis=1)
    weights_DN = np.random.default_rng(seed).gamma(0.5, size=(6, len(labels_N)))
    found = metric_draws(labels_N, probs_NK, weights_DN)
    for draw, w in enumerate(weights_DN):
        present = np.unique(labels_N)
        auc = [sk.roc_auc_score(labels_N == k, probs_NK[:, k], sample_weight=w) for k in present]
        expected = {
            "loss": sk.log_loss(labels_N, probs_NK, labels=range(7), sample_weight=w),
            "accuracy": sk.accuracy_score(labels_N, predicted_N, sample_weight=w),
            "balanced_accuracy": sk.recall_score(
                labels_N, predicted_N, labels=present, average="macro", sample_weight=w
            ),
            "macro_f1": sk.f1_score(labels_N, predicted_N, average="macro", sample_weight=w),
            "macro_auc": np.mean(auc),
        }
        for name, value in expected.items():
            assert found[name][draw] == pytest.approx(value, abs=1e-12), name


@given(st.integers(0, 2**32), st.integers(1, 25), st.integers(2, 5))
@settings(max_examples=60)
def test_small_sets_with_absent_classes_are_what_the_metrics_say(
    seed: int, images: int, num_classes: int
) -> None:
    labels_N, probs_NK = sampled(seed, images, num_classes)
    weights_DN = lesion_weights(np.arange(images).astype(str), draws=4, seed=0)
    found = metric_draws(labels_N, probs_NK, weights_DN)
    for draw, weights_N in enumerate(weights_DN):
        rows = np.repeat(np.arange(images), weights_N.astype(int))
        for name, value in summary_metrics(labels_N[rows], probs_NK[rows]).items():
            expected = pytest.approx(np.nan if value is None else value, abs=1e-12, nan_ok=True)
            assert found[name][draw] == expected, name


def test_the_draws_do_not_depend_on_how_many_are_measured_at_once() -> None:
    labels_N, probs_NK = sampled(0)
    weights_DN = lesion_weights(lesions(0), draws=600, seed=0)
    together = metric_draws(labels_N, probs_NK, weights_DN)
    apart = [metric_draws(labels_N, probs_NK, weights_DN[d : d + 1]) for d in (0, 255, 256, 599)]
    for name, values_D in together.items():
        alone = [float(one[name][0]) for one in apart]
        np.testing.assert_allclose(values_D[[0, 255, 256, 599]], alone, rtol=0, atol=1e-12)


def test_1500_images_and_2000_draws_take_seconds() -> None:
    labels_N, probs_NK = sampled(0, images=1500)
    start = time.process_time()  # of this process alone: others may be busy meanwhile
    metric_draws(labels_N, probs_NK, lesion_weights(lesions(0, 1500), draws=2000, seed=0))
    assert time.process_time() - start < 10


# Intervals


def test_an_interval_holds_the_middle_of_the_draws() -> None:
    values_D = np.random.default_rng(0).permutation(np.arange(1001.0))
    assert interval(values_D, level=0.95) == pytest.approx((25, 975, 1001))
    assert interval(values_D, level=0.5) == pytest.approx((250, 750, 1001))


def test_undefined_draws_are_left_out_and_counted() -> None:
    values_D = np.array([np.nan, 1.0, 1.0, np.nan])
    assert interval(values_D, level=0.95) == Interval(1.0, 1.0, draws=2)
    assert interval(np.full(3, np.nan), level=0.95) is None


def test_of_independent_images_accuracy_has_the_binomial_interval() -> None:
    # 900 images, 720 of them right: the number right in a draw is binomial(900, 0.8).
    labels_N = np.zeros(900, dtype=int)
    probs_NK = np.where(np.arange(900)[:, None] < 720, [0.9, 0.1], [0.1, 0.9])
    weights_DN = lesion_weights(np.arange(900).astype(str), draws=5000, seed=0)
    found = interval(metric_draws(labels_N, probs_NK, weights_DN)["accuracy"], level=0.95)
    low, high = stats.binom.ppf([0.025, 0.975], 900, 0.8) / 900
    assert found == pytest.approx((low, high, 5000), abs=1.5 / 900)


def test_lesions_of_four_equal_images_double_the_width() -> None:
    # 4 copies of an image say what one says: 225 lesions instead of 900 images, half the root.
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(225) < 0.8, 4)
    labels_N, probs_NK = np.zeros(900, int), np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    widths = []
    for ids in (np.arange(900) // 4, np.arange(900)):
        weights_DN = lesion_weights(ids.astype(str), draws=4000, seed=0)
        found = interval(metric_draws(labels_N, probs_NK, weights_DN)["accuracy"], level=0.95)
        assert found is not None
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.1)  # in steps of 1/225


def test_intervals_by_lesion_cover_the_truth_and_those_by_image_do_not() -> None:
    # 80 lesions of 1 to 6 images; all images of a lesion are right, or none (chance 0.7). Of 300
    # such sets a 95 % interval should hold 0.7 in 285 +- 3.8 (standard error); the percentile
    # bootstrap falls a little short. Drawing images, as if independent, covers far less.
    rng = np.random.default_rng(0)
    covered = {"lesions": 0, "images": 0}
    for _ in range(300):
        lesion_N = np.repeat(np.arange(80), rng.integers(1, 7, 80))
        right_N = (rng.random(80) < 0.7)[lesion_N]
        for units, ids in (("lesions", lesion_N), ("images", np.arange(len(lesion_N)))):
            weights_DN = lesion_weights(ids.astype(str), draws=300, seed=0)
            accuracy_D = weights_DN @ right_N / weights_DN.sum(axis=1)
            found = interval(accuracy_D, level=0.95)
            assert found is not None
            covered[units] += found.low <= 0.7 <= found.high
    assert 0.91 <= covered["lesions"] / 300 <= 0.97
    assert covered["images"] / 300 < 0.80


def test_paired_differences_are_narrower_than_unpaired_ones() -> None:
    # Two models that differ on 20 of 600 images. Paired, the difference of accuracies varies with
    # those 20 only; with draws of their own, with all images.
    labels_N, probs_NK = sampled(2, images=600)
    other_NK = probs_NK.copy()
    other_NK[:20] = np.roll(other_NK[:20], 1, axis=1)
    ids = np.arange(600).astype(str)
    weights_DN, others_DN = (lesion_weights(ids, draws=2000, seed=seed) for seed in (0, 1))
    first = metric_draws(labels_N, probs_NK, weights_DN)["accuracy"]
    paired, unpaired = (
        interval(metric_draws(labels_N, other_NK, w)["accuracy"] - first, level=0.95)
        for w in (weights_DN, others_DN)
    )
    assert paired is not None
    assert unpaired is not None
    assert (paired.high - paired.low) < 0.4 * (unpaired.high - unpaired.low)


# Refusals


@pytest.mark.parametrize(
    ("weights_DN", "why"),
    [
        (np.ones((2, 3)), r"shape \(2, 3\), needed \(draws, 4\)"),
        (np.ones(4), r"shape \(4,\), needed \(draws, 4\)"),
        ([[1, 1, 1, -1]], "negative or not finite"),
        ([[1, 1, 1, np.nan]], "negative or not finite"),
        ([[1, 1, 1, 1], [0, 0, 0, 0]], "a draw with no image"),
    ],
)
def test_weights_that_cannot_be(weights_DN, why: str) -> None:
    labels_N, probs_NK = sampled(0, images=4)
    with pytest.raises(DataError, match=why):
        metric_draws(labels_N, probs_NK, weights_DN)


def test_other_values_that_cannot_be() -> None:
    for draws, seed in ((0, 0), (1, -1)):
        with pytest.raises(ConfigError, match=f"draws={draws}, seed={seed}"):
            lesion_weights(["a"], draws=draws, seed=seed)
    with pytest.raises(DataError, match="there are no images"):
        lesion_weights([], draws=1, seed=0)
    for level in (0, 1, 95):
        with pytest.raises(ConfigError, match=f"level={level}"):
            interval(np.ones(3), level=level)


def test_it_needs_no_torch() -> None:
    code = (
        "import sys, dermalyze.evaluation.intervals, dermalyze.evaluation.paired_tests;"
        "print(*({'torch', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
