"""Wires a comparison: evaluated runs in; metrics, paired differences and tests out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from dermalyze.compared_runs.groups import Group, grouped
from dermalyze.compared_runs.judged import read_judged, trained_lesions
from dermalyze.errors import DataError
from dermalyze.evaluation.intervals import interval, lesion_weights, metric_draws
from dermalyze.evaluation.paired_tests import holm, mcnemar
from dermalyze.evaluation.predictions import Predictions
from dermalyze.evaluation.seed_spread import error_of_difference, spread
from dermalyze.files import write_json, write_whole
from dermalyze.taxonomy import DISCLAIMER

Node = dict[str, Any]

ALL = "all"
TRAINED = "of lesions that trained a run"


@dataclass(frozen=True)
class Result:
    """One metric of a group, or the difference of two; None where undefined.

    Attributes:
        images: which images it is over: ALL, or those TRAINED.
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


@dataclass(frozen=True)
class Scope:
    """Images that results are over: what they are called, how many, of how many lesions."""

    name: str
    images: int
    lesions: int


@dataclass(frozen=True)
class Compared:
    """All that a comparison found."""

    split: str
    level: float
    draws: int
    seed: int
    baseline: str | None
    """The label of the group that every other one is held against; None: each against each."""
    groups: list[Group]
    trained_on: dict[str, int]
    """For each run, how many of the images are of lesions that it was trained on."""
    scopes: list[Scope] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    tests: list[PairTest] = field(default_factory=list)


def compare(config: Node) -> Compared:
    """Compare runs as `conf/compare.yaml` describes.

    Args:
        config: checked, plain.

    Raises:
        ConfigError, DataError: what the user can mend.
    """
    groups, baseline = grouped(
        config["runs"], group_seeds=config["group_seeds"], baseline=config["baseline"]
    )
    runs = [run for group in groups for run in group.runs]
    judged = read_judged(runs, config["split"])
    lesions_N = judged[runs[0]].lesion_ids_N
    trained_on = {run: np.isin(lesions_N, trained_lesions(run)) for run in runs}
    subsets = {ALL: np.ones(len(lesions_N), dtype=np.bool_)}
    of_trained_N = np.any(list(trained_on.values()), axis=0)
    if of_trained_N.any() and not of_trained_N.all():
        subsets[TRAINED] = of_trained_N

    found = Compared(
        split=config["split"],
        level=config["level"],
        draws=config["draws"],
        seed=config["seed"],
        baseline=None if baseline is None else baseline.label,
        groups=groups,
        trained_on={str(run): int(rows_N.sum()) for run, rows_N in trained_on.items()},
    )
    for name, rows_N in subsets.items():
        found.scopes.append(Scope(name, int(rows_N.sum()), len(set(lesions_N[rows_N]))))
        some = {run: predictions.of(rows_N) for run, predictions in judged.items()}
        found.results.extend(_results(name, some, groups, baseline, config))
        found.tests.extend(_tests(name, some, groups, baseline))
    return found


def write_comparison(found: Compared, output: str) -> Path:
    """Write comparison.json (everything) and comparison.csv (a row a result); return the folder.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = Path(output)
    results = [asdict(result) for result in found.results]
    report = asdict(found) | {"disclaimer": DISCLAIMER}
    for group in report["groups"]:
        group["runs"] = [str(run) for run in group["runs"]]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "comparison.json", report)
        text = pd.DataFrame(results).assign(disclaimer=DISCLAIMER).to_csv(index=False)
        write_whole(folder / "comparison.csv", text)
    except OSError as error:
        raise DataError(
            f"output={output}: cannot be written ({error}). Name another folder."
        ) from error
    return folder


def _results(
    images: str,
    judged: Mapping[Path, Predictions],
    groups: Sequence[Group],
    baseline: Group | None,
    config: Node,
) -> list[Result]:
    """Return every group's metrics and the differences of pairs, all over the same draws."""
    one, *_ = judged.values()
    weights_DN = lesion_weights(one.lesion_ids_N, draws=config["draws"], seed=config["seed"])
    draws: dict[Path, dict[str, npt.NDArray[np.float64]]] = {}
    shown = tqdm(judged.items(), "drawing lesions", unit="run", leave=False, disable=None, delay=2)
    for run, predictions in shown:
        draws[run] = metric_draws(predictions.labels_N, predictions.probs_NK, weights_DN)

    def result(group: Group, minus: Group | None, metric: str) -> Result:
        sides = [group] if minus is None else [group, minus]
        values = [[judged[run].metrics[metric] for run in side.runs] for side in sides]
        known = [[value for value in side if value is not None] for side in values]
        means_D = [np.mean([draws[run][metric] for run in side.runs], axis=0) for side in sides]
        found = interval(means_D[0] - sum(means_D[1:]), level=config["level"])
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


def _tests(
    images: str,
    judged: Mapping[Path, Predictions],
    groups: Sequence[Group],
    baseline: Group | None,
) -> list[PairTest]:
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
