"""Wires a comparison: evaluated runs in; metrics, paired differences and tests out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermalyze.data.split_files import first, read_rows
from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.intervals import interval, lesion_weights, metric_draws
from dermalyze.evaluation.paired_tests import holm, mcnemar
from dermalyze.evaluation.predictions import (
    METRICS_FILE,
    PREDICTIONS,
    Predictions,
    read_predictions,
)
from dermalyze.files import write_json, write_whole
from dermalyze.taxonomy import DISCLAIMER

Node = dict[str, Any]

ALL = "all"
TRAINED = "of lesions that trained a run"


@dataclass(frozen=True)
class Result:
    """One metric of a run, or the difference of two, with its interval; None where undefined.

    `images` names the images it is over: ALL, or those TRAINED. `minus` is the run subtracted.
    """

    images: str
    run: str
    minus: str | None
    metric: str
    value: float | None
    low: float | None
    high: float | None
    draws: int


@dataclass(frozen=True)
class PairTest:
    """McNemar's test of a pair of runs; `p_holm` is corrected for all pairs on these images."""

    images: str
    run: str
    minus: str
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
    trained_on: dict[str, int]
    """For each run, how many of the images are of lesions that it was trained on."""
    scopes: list[Scope]
    results: list[Result]
    tests: list[PairTest]


def compare(config: Node) -> Compared:
    """Compare runs as `conf/compare.yaml` describes.

    Args:
        config: checked, plain.

    Raises:
        ConfigError, DataError: what the user can mend.
    """
    runs, split = config["runs"], config["split"]
    folders = [Path(run).resolve() for run in runs]
    if len(set(folders)) < len(runs):
        raise ConfigError(f"runs=[{','.join(runs)}]: names a run twice. Name different ones.")
    judged = {run: _read(Path(run), split) for run in runs}
    for run in runs[1:]:
        _refuse_other_images(runs[0], judged[runs[0]], run, judged[run])

    lesions_N = judged[runs[0]].lesion_ids_N
    trained_on = {run: np.isin(lesions_N, _trained_lesions(Path(run))) for run in runs}
    subsets = {ALL: np.ones(len(lesions_N), dtype=np.bool_)}
    of_trained_N = np.any(list(trained_on.values()), axis=0)
    if of_trained_N.any() and not of_trained_N.all():
        subsets[TRAINED] = of_trained_N

    found = Compared(
        split, config["level"], config["draws"], config["seed"],
        {run: int(rows_N.sum()) for run, rows_N in trained_on.items()}, [], [], [],
    )  # fmt: skip
    for name, rows_N in subsets.items():
        found.scopes.append(Scope(name, int(rows_N.sum()), len(set(lesions_N[rows_N]))))
        some = {run: predictions.of(rows_N) for run, predictions in judged.items()}
        found.results.extend(_results(name, some, config))
        found.tests.extend(_tests(name, some))
    return found


def write_comparison(found: Compared, output: str) -> Path:
    """Write comparison.json (everything) and comparison.csv (a row a result); return the folder.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = Path(output)
    results = [asdict(result) for result in found.results]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "comparison.json", asdict(found) | {"disclaimer": DISCLAIMER})
        text = pd.DataFrame(results).assign(disclaimer=DISCLAIMER).to_csv(index=False)
        write_whole(folder / "comparison.csv", text)
    except OSError as error:
        raise DataError(
            f"output={output}: cannot be written ({error}). Name another folder."
        ) from error
    return folder


def _read(run: Path, split: str) -> Predictions:
    folder = run / "evaluation" / split
    missing = [name for name in (PREDICTIONS, METRICS_FILE) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder}: there is no {' and no '.join(missing)}. Evaluate the run first: "
            f"python -m dermalyze.evaluate checkpoint={run} split={split}"
        )
    return read_predictions(folder)


def _trained_lesions(run: Path) -> list[str]:
    problems: list[str] = []
    rows = read_rows(run, problems)
    if problems:
        raise DataError(
            f"{run}: what it was trained on cannot be read, so leakage would go unseen.\n  - "
            + "\n  - ".join(problems)
            + "\nGive the whole folder of a run."
        )
    return sorted({row.lesion_id for row in rows if row.part == "train"})


def _refuse_other_images(one: str, ours: Predictions, other: str, theirs: Predictions) -> None:
    """Refuse two runs that were not judged on the same images of the same lesions and classes."""
    problems = []
    if ours.classes != theirs.classes:
        problems.append(f"classes {', '.join(ours.classes)} and {', '.join(theirs.classes)}")
    ids, other_ids = set(ours.image_ids_N), set(theirs.image_ids_N)
    for name, only in ((one, ids - other_ids), (other, other_ids - ids)):
        if only:
            problems.append(f"{len(only)} images in {name} only: {first(sorted(only))}")
    if not problems:
        shared = zip(
            ours.image_ids_N, ours.labels_N, ours.lesion_ids_N, theirs.labels_N,
            theirs.lesion_ids_N, strict=True,
        )  # fmt: skip
        changed = [image for image, *values in shared if values[:2] != values[2:]]
        if changed:
            problems.append(f"{len(changed)} images have another dx or lesion: {first(changed)}")
    if problems:
        raise DataError(
            f"{one} and {other} cannot be compared:\n  - " + "\n  - ".join(problems) + "\nCompare "
            "runs that were evaluated on the same images: train them on one split "
            "(data/split=from_files), or evaluate them on the same data."
        )


def _results(images: str, judged: dict[str, Predictions], config: Node) -> list[Result]:
    """Return every run's metrics and every pair's differences, all over the same draws."""
    one, *_ = judged.values()
    weights_DN = lesion_weights(one.lesion_ids_N, draws=config["draws"], seed=config["seed"])
    draws = {run: metric_draws(p.labels_N, p.probs_NK, weights_DN) for run, p in judged.items()}

    def result(run: str, minus: str | None, metric: str) -> Result:
        value, values_D = judged[run].metrics[metric], draws[run][metric]
        if minus is not None:
            other = judged[minus].metrics[metric]
            value = None if value is None or other is None else value - other
            values_D = values_D - draws[minus][metric]
        found = interval(values_D, level=config["level"])
        if value is None or found is None:
            return Result(images, run, minus, metric, None, None, None, 0)
        return Result(images, run, minus, metric, value, found.low, found.high, found.draws)

    sides = [(run, None) for run in judged] + [(run, minus) for minus, run in _pairs(judged)]
    return [result(run, minus, metric) for metric in one.metrics for run, minus in sides]


def _tests(images: str, judged: dict[str, Predictions]) -> list[PairTest]:
    pairs = _pairs(judged)
    found = [mcnemar(judged[run].right(), judged[minus].right()) for minus, run in pairs]
    corrected = holm([test.p for test in found]).tolist()
    return [
        PairTest(images, run, minus, test.only_first, test.only_second, test.p, p_holm)
        for (minus, run), test, p_holm in zip(pairs, found, corrected, strict=True)
    ]


def _pairs(judged: dict[str, Predictions]) -> list[tuple[str, str]]:
    """Return each two runs, the earlier first: it is the one that is subtracted."""
    return list(combinations(judged, 2))
