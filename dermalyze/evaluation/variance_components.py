"""How much of a metric's spread is the data's and how much is chance in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Components:
    """Variances of a metric, each that of one source alone; they add up to that of one run.

    Attributes:
        mean: over all runs.
        data: between folds: other lesions to train on and to be tested on.
        seed: between seeds: what a seed does in every fold alike.
        rest: what a seed does in one fold and not in another.
    """

    mean: float
    data: float
    seed: float
    rest: float


def variance_components(values_FS: npt.NDArray[np.float64]) -> Components:
    """Tell a metric's variance from the data from that by seeds.

    A two-way random-effects model without replication: value_fs = mean + data_f + seed_s + rest_fs.
    With F folds and S seeds, means m_f over seeds, m_s over folds and m over all, the mean squares
    are

        MS_data = S sum_f (m_f - m)^2 / (F - 1)
        MS_seed = F sum_s (m_s - m)^2 / (S - 1)
        MS_rest = sum_fs (value_fs - m_f - m_s + m)^2 / ((F - 1)(S - 1))

    and their expectations give the variances (Searle, Casella & McCulloch, Variance Components,
    1992, section 4.3): rest = MS_rest, data = (MS_data - MS_rest) / S and
    seed = (MS_seed - MS_rest) / F, which are 0 where chance makes them negative.

    Args:
        values_FS: a metric of the run of each fold with each seed; two or more of either.

    Raises:
        ValueError: fewer.
    """
    folds, seeds = values_FS.shape
    if folds < 2 or seeds < 2:
        raise ValueError(f"{folds} folds and {seeds} seeds: both need two or more")
    mean = values_FS.mean()
    of_fold_F, of_seed_S = values_FS.mean(axis=1), values_FS.mean(axis=0)
    rest_FS = values_FS - of_fold_F[:, None] - of_seed_S + mean
    ms_data = seeds * np.square(of_fold_F - mean).sum() / (folds - 1)
    ms_seed = folds * np.square(of_seed_S - mean).sum() / (seeds - 1)
    ms_rest = np.square(rest_FS).sum() / ((folds - 1) * (seeds - 1))
    return Components(
        mean=float(mean),
        data=float(max(0.0, (ms_data - ms_rest) / seeds)),
        seed=float(max(0.0, (ms_seed - ms_rest) / folds)),
        rest=float(ms_rest),
    )
