"""Chance as a pure function of (seed, purpose, time).

Nothing in the project keeps a random state between steps. Whoever needs chance names what it is
for and when, and always gets the same numbers for the same answer. A resumed run therefore draws
what the uninterrupted one would have drawn, and no consumer can shift the numbers of another.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What the numbers are for. Values are part of every saved run: add, never renumber."""

    SPLIT = 1
    ORDER = 2
    AUGMENTATION = 3
    MIXING = 4
    NETWORK = 5  # dropout and its like, inside the model
    INITIALISATION = 6
    PHANTOM = 7
    BOOTSTRAP = 8
    SEARCH = 9
    CALIBRATION = 10
    STATISTICS = 11  # dropout, while BatchNorm's statistics of averaged weights are taken


def generator(seed: int, purpose: Purpose, *time: int) -> np.random.Generator:
    """Return a fresh generator for one purpose at one point of time.

    Args:
        seed: the run's seed, >= 0.
        purpose: what the numbers are for.
        time: where in the run, coarse to fine, such as (epoch, step); each >= 0.
    """
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, *time)))


def torch_seed(seed: int, purpose: Purpose, *time: int) -> int:
    """Return a seed in [0, 2**63) for torch's own generators, from the same hash."""
    words = _sequence(seed, purpose, *time).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def _sequence(seed: int, purpose: Purpose, *time: int) -> np.random.SeedSequence:
    # Not all in one list of entropy: such a list is padded with zeros, so that (epoch 3) would be
    # (epoch 3, step 0), and a seed of more than 32 bits would spill into the purpose.
    return np.random.SeedSequence(seed, spawn_key=(purpose, *time))
