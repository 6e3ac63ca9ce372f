from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dermalyze.data.samplers import (
    BalancedPowerSampler,
    Sampler,
    UniformSampler,
    WeightedSampler,
)
from dermalyze.errors import ConfigError
from dermalyze.randomness import Purpose, generator

YAMLS = sorted((Path(__file__).parents[2] / "conf" / "sampler").glob("*.yaml"))
HAM10000 = np.repeat(np.arange(7), [327, 514, 1099, 115, 1113, 6705, 142])
seeds = st.integers(0, 2**32)
epochs = st.integers(0, 1000)
label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=100)
powers = st.floats(0, 1)
bounds = st.none() | st.floats(1, 50)


def from_yaml(path: Path) -> Sampler:
    return instantiate(OmegaConf.load(path))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_order_is_a_function_of_seed_and_epoch_alone(path):
    sampler = from_yaml(path)
    labels = np.arange(200) % 7
    order = sampler.order(labels, seed=3, epoch=5)
    sampler.order(labels, seed=3, epoch=6)
    np.random.default_rng(0)
    assert np.array_equal(sampler.order(labels, seed=3, epoch=5), order)
    assert np.array_equal(from_yaml(path).order(labels, seed=3, epoch=5), order)
    assert order.dtype == np.int64
    for seed, epoch in ((3, 6), (4, 5), (5, 3)):
        assert not np.array_equal(sampler.order(labels, seed=seed, epoch=epoch), order)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
@given(labels=label_lists, seed=seeds, epoch=epochs)
def test_an_epoch_has_as_many_positions_as_images(path, labels, seed, epoch):
    order = from_yaml(path).order(np.array(labels), seed=seed, epoch=epoch)
    assert order.shape == (len(labels),)
    assert order.min() >= 0
    assert order.max() < len(labels)


@given(images=st.integers(1, 300), seed=seeds, epoch=epochs)
def test_uniform_order_is_a_permutation(images, seed, epoch):
    order = UniformSampler().order(np.zeros(images, dtype=np.int64), seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(order), np.arange(images))


def test_uniform_order_puts_every_image_everywhere():
    """Each of 5 images stands at each of 5 positions equally often, within 4 standard errors."""
    draws = 4000
    orders = np.stack(
        [UniformSampler().order(np.zeros(5), seed=0, epoch=epoch) for epoch in range(draws)]
    )
    frequency = (orders[:, :, None] == np.arange(5)).mean(axis=0)
    assert np.abs(frequency - 0.2).max() < 4 * np.sqrt(0.2 * 0.8 / draws)


def drawn(sampler: Sampler, labels: np.ndarray, epochs: int) -> np.ndarray:
    return np.concatenate([sampler.order(labels, seed=1, epoch=epoch) for epoch in range(epochs)])


def test_weighted_order_draws_every_class_equally():
    """HAM10000's counts; also where a class has no image, the others share equally."""
    counts = {0: 327, 1: 514, 2: 1099, 3: 115, 4: 1113, 6: 142}
    labels = np.repeat(list(counts), list(counts.values()))
    draws = labels[drawn(WeightedSampler(), labels, epochs=30)]
    share = 1 / len(counts)
    error = np.sqrt(share * (1 - share) / len(draws))
    for label in counts:
        assert abs((draws == label).mean() - share) < 4 * error


def test_weighted_order_draws_an_image_by_one_over_classes_times_count():
    """Hand case: classes of 1 and 4 images, so p = 1/2 for the one, 1/8 for each other."""
    labels = np.array([1, 0, 1, 1, 1])
    draws = drawn(WeightedSampler(), labels, epochs=10_000)
    for image, expected in enumerate([1 / 8, 1 / 2, 1 / 8, 1 / 8, 1 / 8]):
        error = np.sqrt(expected * (1 - expected) / len(draws))
        assert abs((draws == image).mean() - expected) < 4 * error


def test_square_root_sampling_by_hand():
    """Classes of 1 and 9 images: p(class) = 1/4 and 3/4, so 2.5 and 7.5 of 10 draws."""
    sampler = BalancedPowerSampler(power=0.5, max_repeat=None)
    np.testing.assert_allclose(sampler.expected_repeats(np.array([1, 9])), [2.5, 7.5 / 9])


def test_what_the_bound_takes_goes_to_the_others_in_proportion():
    """1, 4 and 16 images at power 0: 7, 7/4 and 7/16 unbounded.

    Bounded by 2, the first class keeps 2 of 21 draws and the others share 19 equally: 9.5 for 4
    images is above the bound, too. So these get 2 * 4, and 11 are left for the last 16.
    """
    sampler = BalancedPowerSampler(power=0.0, max_repeat=None)
    np.testing.assert_allclose(sampler.expected_repeats(np.array([1, 4, 16])), [7, 7 / 4, 7 / 16])
    sampler = BalancedPowerSampler(power=0.0, max_repeat=3.0)
    np.testing.assert_allclose(sampler.expected_repeats(np.array([1, 4, 16])), [3, 9 / 4, 9 / 16])
    sampler = BalancedPowerSampler(power=0.0, max_repeat=2.0)
    np.testing.assert_allclose(sampler.expected_repeats(np.array([1, 4, 16])), [2, 2, 11 / 16])


@given(labels=label_lists, power=powers, bound=bounds)
def test_repeats_keep_their_mean_their_bound_and_their_order(labels, power, bound):
    counts = np.unique(labels, return_counts=True)[1]
    repeats = BalancedPowerSampler(power=power, max_repeat=bound).expected_repeats(counts)
    assert (repeats * counts).sum() == pytest.approx(len(labels), rel=1e-9)
    assert repeats.max() <= (bound or math.inf) * (1 + 1e-9)
    by_count = repeats[np.argsort(counts, kind="stable")]
    assert (np.diff(by_count) <= 1e-9).all()  # an image of a rarer class is never drawn less
    free = repeats < (bound or math.inf) * (1 - 1e-9)
    ratio = repeats[free] * counts[free] ** (1 - power)
    np.testing.assert_allclose(ratio, ratio.mean() if free.any() else 0, rtol=1e-7)


@given(labels=label_lists, seed=seeds, epoch=epochs)
def test_power_0_is_weighted_and_power_1_draws_all_images_alike(labels, seed, epoch):
    labels = np.array(labels)
    weighted = BalancedPowerSampler(power=0.0, max_repeat=None)
    counts = np.unique(labels, return_counts=True)[1]
    share = len(labels) / (len(counts) * counts)
    np.testing.assert_allclose(weighted.expected_repeats(counts), share, rtol=1e-12)
    for flat in (
        BalancedPowerSampler(power=1.0, max_repeat=None),
        BalancedPowerSampler(power=0.0, max_repeat=1.0),
    ):
        np.testing.assert_allclose(flat.expected_repeats(counts), 1.0, rtol=1e-12)
        expected = generator(seed, Purpose.ORDER, epoch).choice(
            len(labels), size=len(labels), p=np.full(len(labels), 1 / len(labels))
        )
        assert np.array_equal(flat.order(labels, seed=seed, epoch=epoch), expected)


def test_bounded_square_root_sampling_draws_as_it_expects():
    """HAM10000's counts; an image of df is expected 4.41 times unbounded, here 4."""
    sampler = BalancedPowerSampler(power=0.5, max_repeat=4.0)
    counts = np.bincount(HAM10000)
    shares = sampler.expected_repeats(counts) * counts / len(HAM10000)
    assert shares[3] == pytest.approx(4 * 115 / 10015)
    draws = HAM10000[drawn(sampler, HAM10000, epochs=30)]
    error = np.sqrt(shares * (1 - shares) / len(draws))
    assert (np.abs(np.bincount(draws) / len(draws) - shares) < 4 * error).all()


@pytest.mark.parametrize(
    ("power", "bound", "said"),
    [
        (-0.1, None, "sampler.power=-0.1"),
        (1.1, None, "sampler.power=1.1"),
        (math.nan, None, "sampler.power=nan"),
        (0.5, 0.9, "sampler.max_repeat=0.9"),
        (0.5, math.inf, "sampler.max_repeat=inf"),
    ],
)
def test_values_out_of_range_are_refused(power, bound, said):
    with pytest.raises(ConfigError, match=said):
        BalancedPowerSampler(power=power, max_repeat=bound)


@pytest.mark.parametrize(
    ("sampler", "options", "said"),
    [
        (UniformSampler, {}, None),
        (WeightedSampler, {}, "sampler=weighted"),
        (BalancedPowerSampler, {"power": 0.5, "max_repeat": None}, "sampler.power=0.5"),
        (BalancedPowerSampler, {"power": 0.0, "max_repeat": 2.0}, "sampler.power=0.0"),
        (BalancedPowerSampler, {"power": 1.0, "max_repeat": None}, None),
        (BalancedPowerSampler, {"power": 0.5, "max_repeat": 1.0}, None),
    ],
)
def test_what_corrects_for_frequencies_says_so(sampler, options, said):
    assert sampler.frequency_correction(options) == said
