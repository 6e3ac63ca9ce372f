"""The metrics of groups of runs, their differences and their tests, all on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dermalyze.compared_runs.groups import Group
from dermalyze.evaluation.intervals import interval, lesion_weights, metric_draws
from dermalyze.evaluation.paired_tests import holm, mcnemar
from dermalyze.evaluation.predictions import Predictions
from dermalyze.evaluation.seed_spread import error_of_difference, spread


@dataclass(frozen=True)
class Result:
    """One metric of a group, or the difference of two; None where undefined.

    Attributes:
        images: which images it is over.
        group: its label.
        minus: the group that is subtracted; None: none is.
        metric: see `metrics.METRICS`.
        value: the mean over the group's seeds, or the difference of two such means.
        low, high: its interval over lesions, with the models as they were trained.
        draws: in how many it had a value.
        sd, smallest, largest: over the group's seeds; None for one seed and for a difference.
        seed_error: the standard error of `value` by the choice of seeds; None where a group has
            one. It is not in the interval.
    """

    images: str
    group: str
    minus: str | None
    metric: str
    value: float | None
    low: float | None
    high: float | None
    draws: int
    sd: float | None
    smallest: float | None
    largest: float | None
    seed_error: float | None


@dataclass(frozen=True)
class PairTest:
    """McNemar's test of two runs; `p_holm` is corrected for all tests on these images.

    The runs of two groups are paired in the order of their seeds.
    """

    images: str
    group: str
    minus: str
    run: str
    minus_run: str
    only_run_right: int
    only_minus_right: int
    p: float
    p_holm: float


def results_of(
    images: str,
    judged: Mapping[Path, Predictions],
    groups: Sequence[Group],
    baseline: Group | None,
    *,
    level: float,
    number_of_draws: int,
    seed: int,
) -> list[Result]:
    """Return every group's metrics and the differences of pairs, all over the same draws.

    Args:
        images: what these images are called.
        judged: each run's predictions for them, in one order.
        groups: of these runs.
        baseline: the group to subtract from every other; None: of each two, the earlier.
        level: of the intervals, in (0, 1).
        number_of_draws: of the lesions.
        seed: of the draws.
    """
    one, *_ = judged.values()
    weights_DN = lesion_weights(one.lesion_ids_N, draws=number_of_draws, seed=seed)
    draws: dict[Path, dict[str, npt.NDArray[np.float64]]] = {}
    shown = tqdm(judged.items(), "drawing lesions", unit="run", leave=False, disable=None, delay=2)
    for run, predictions in shown:
        draws[run] = metric_draws(predictions.labels_N, predictions.probs_NK, weights_DN)

    def result(group: Group, minus: Group | None, metric: str) -> Result:
        sides = [group] if minus is None else [group, minus]
        values = [[judged[run].metrics[metric] for run in side.runs] for side in sides]
        known = [[value for value in side if value is not None] for side in values]
        means_D = [np.mean([draws[run][metric] for run in side.runs], axis=0) for side in sides]
        found = interval(means_D[0] - sum(means_D[1:]), level=level)
        name = None if minus is None else minus.label
        if found is None or known != values:
            nothing = (None, None, None, 0, None, None, None, None)
            return Result(images, group.label, name, metric, *nothing)
        own, *others = [spread(side) for side in known]
        if not others:
            return Result(images, group.label, name, metric, own.mean, *found, *own[1:])
        error = error_of_difference(own, others[0])
        value = own.mean - others[0].mean
        return Result(images, group.label, name, metric, value, *found, None, None, None, error)

    sides = [(group, None) for group in groups] + _pairs(groups, baseline)
    return [result(group, minus, metric) for metric in one.metrics for group, minus in sides]


def tests_of(
    images: str,
    judged: Mapping[Path, Predictions],
    groups: Sequence[Group],
    baseline: Group | None,
) -> list[PairTest]:
    """Return McNemar's tests of the runs of all pairs of groups; see `results_of`."""
    pairs = [
        (group, minus, run, other)
        for group, minus in _pairs(groups, baseline)
        for run, other in zip(group.runs, minus.runs, strict=False)
    ]
    found = [mcnemar(judged[run].right(), judged[other].right()) for *_, run, other in pairs]
    corrected = holm([test.p for test in found]).tolist()
    return [
        PairTest(
            images, group.label, minus.label, str(run), str(other),
            test.only_first, test.only_second, test.p, p_holm,
        )
        for (group, minus, run, other), test, p_holm in zip(pairs, found, corrected, strict=True)
    ]  # fmt: skip


def _pairs(groups: Sequence[Group], baseline: Group | None) -> list[tuple[Group, Group]]:
    """Return pairs of groups, the second to be subtracted: the baseline, or else the earlier."""
    if baseline is None:
        return [(group, minus) for minus, group in combinations(groups, 2)]
    return [(group, baseline) for group in groups if group is not baseline]
