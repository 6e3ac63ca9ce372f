"""In which order an epoch sees its images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from dermalyze.errors import ConfigError
from dermalyze.randomness import Purpose, generator


class Sampler(Protocol):
    """A pure function of (seed, epoch) to the order in which an epoch sees its images."""

    def order(self, labels_N: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """Return N positions into `labels_N` (int64)."""

    @staticmethod
    def frequency_correction(options: Mapping[str, Any]) -> str | None:
        """Return the setting that corrects for the class frequencies, None where nothing does.

        Known from the config alone, so that two corrections are refused before any data is read.

        Args:
            options: the sampler's node of the config: its constructor's arguments by name.
        """


class UniformSampler:
    """Every image once an epoch, in an order of its own for each epoch."""

    def order(self, labels_N: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """Return a permutation of range(N)."""
        return generator(seed, Purpose.ORDER, epoch).permutation(len(labels_N))

    @staticmethod
    def frequency_correction(options: Mapping[str, Any]) -> str | None:
        """Return None: frequent classes stay frequent."""
        return None


class WeightedSampler:
    """Every class equally likely: N draws with replacement, p(image) = 1 / (K * count of class).

    K counts the classes that have an image.
    """

    def order(self, labels_N: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """Return N positions; those of a rare class stand in it many times."""
        _, inverse, counts = np.unique(labels_N, return_inverse=True, return_counts=True)
        return _drawn(1.0 / (len(counts) * counts[inverse]), seed, epoch)

    @staticmethod
    def frequency_correction(options: Mapping[str, Any]) -> str | None:
        """Return its name: it always balances."""
        return "sampler=weighted"


class BalancedPowerSampler:
    """Between uniform and weighted: N draws with replacement, p(class) proportional to count^power.

    So p(image) is in proportion to count^(power - 1). Power 1 makes all images equally likely,
    power 0 all classes that have one; 0.5 is square-root sampling (Mahajan et al. 2018, "Exploring
    the limits of weakly supervised pretraining", section 2.2).

    `max_repeat` bounds how often an image is expected within an epoch, N * p(image): a class of few
    images would otherwise be learnt by heart. What the bound takes from a class goes to the images
    of the classes below it, in the proportion that they had.

    Args:
        power: in [0, 1].
        max_repeat: expected draws of one image an epoch, >= 1 (at 1 all images are equally likely);
            None: no bound.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(self, *, power: float, max_repeat: float | None) -> None:
        if not 0 <= power <= 1:
            raise ConfigError(
                f"sampler.power={power}: a number in [0, 1] is needed; 0 makes all classes equally "
                "likely, 1 all images."
            )
        if max_repeat is not None and not 1 <= max_repeat < math.inf:
            raise ConfigError(
                f"sampler.max_repeat={max_repeat}: a finite number >= 1 is needed, for an image is "
                "drawn once an epoch on average; null sets no bound."
            )
        self.power = power
        self.max_repeat = max_repeat

    def order(self, labels_N: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """Return N positions; images of rare classes stand in it more often than others."""
        _, inverse, counts_K = np.unique(labels_N, return_inverse=True, return_counts=True)
        repeats_K = self.expected_repeats(counts_K)
        return _drawn(repeats_K[inverse] / len(labels_N), seed, epoch)

    def expected_repeats(self, counts_K: np.ndarray) -> np.ndarray:
        """Return how often an image of each class is expected in an epoch, a mean of 1 an image.

        Args:
            counts_K: images of each class, each at least 1.
        """
        weights_K = counts_K.astype(np.float64) ** (self.power - 1)
        bound = float(counts_K.sum()) if self.max_repeat is None else self.max_repeat
        bounded_K = np.zeros(len(counts_K), dtype=bool)
        while True:
            left = counts_K.sum() - bound * counts_K[bounded_K].sum()
            scale = left / (weights_K * counts_K)[~bounded_K].sum()
            repeats_K = np.where(bounded_K, bound, scale * weights_K)
            # The others' mean is at most the bound, so the least of them never passes it, except
            # by rounding.
            above_K = ~bounded_K & (repeats_K > bound * (1 + 1e-9))
            if not above_K.any():
                return repeats_K
            bounded_K |= above_K

    @staticmethod
    def frequency_correction(options: Mapping[str, Any]) -> str | None:
        """Return the power, unless all images are equally likely."""
        if options["power"] == 1 or options["max_repeat"] == 1:
            return None
        return f"sampler.power={options['power']}"


def _drawn(probabilities_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return N positions, drawn with replacement."""
    images = len(probabilities_N)
    return generator(seed, Purpose.ORDER, epoch).choice(images, size=images, p=probabilities_N)
