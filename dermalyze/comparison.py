"""Wires a comparison: evaluated runs in; metrics, paired differences and tests out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dermalyze.compared_runs.groups import Group, grouped
from dermalyze.compared_runs.judged import read_judged, trained_lesions
from dermalyze.compared_runs.results import PairTest, Result, results_of, tests_of
from dermalyze.compared_runs.trained import Trained, read_trained
from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.comparison_plots import (
    Judged,
    Row,
    histories_figure,
    intervals_figure,
    trust_figure,
)
from dermalyze.evaluation.plots import save_figure
from dermalyze.evaluation.predictions import Predictions
from dermalyze.files import spreadsheet_cell, write_json, write_whole
from dermalyze.reporting.comparison_page import COMPARED_FIGURES, CURVES, write_comparison_page
from dermalyze.reporting.run_sections import SHOWN
from dermalyze.taxonomy import DISCLAIMER

logger = logging.getLogger(__name__)

Node = dict[str, Any]

ALL = "all"
TRAINED = "of lesions that trained a run"


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
    judged: Mapping[Path, Predictions]
    trained: Mapping[Path, Trained]
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
    if len(runs) < 2:
        raise ConfigError(f"runs: {runs[0]} alone. Give another run to hold it against.")
    if len(groups) == 1:
        logger.info(
            "the runs differ in nothing but their seed, so they are one group with none to hold it "
            "against; group_seeds=false holds each run against each"
        )
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
        judged=judged,
        trained={run: read_trained(run) for run in runs},
        trained_on={str(run): int(rows_N.sum()) for run, rows_N in trained_on.items()},
    )
    for name, rows_N in subsets.items():
        found.scopes.append(Scope(name, int(rows_N.sum()), len(set(lesions_N[rows_N]))))
        some = {run: predictions.of(rows_N) for run, predictions in judged.items()}
        drawn = {"number_of_draws": config["draws"], "seed": config["seed"]}
        results = results_of(name, some, groups, baseline, level=config["level"], **drawn)
        found.results.extend(results)
        found.tests.extend(tests_of(name, some, groups, baseline))
    return found


def write_comparison(found: Compared, output: str) -> Path:
    """Write all that was found as JSON, CSV, figures and a page; return their folder.

    It takes the place of an earlier comparison there, and says so.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = Path(output)
    report, replaces = _as_node(found), (folder / "comparison.json").exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "comparison.json", report)
        table = pd.DataFrame(report["results"]).assign(disclaimer=DISCLAIMER)
        table = table.map(lambda cell: spreadsheet_cell(cell) if isinstance(cell, str) else cell)
        write_whole(folder / "comparison.csv", table.to_csv(index=False))
        for name in COMPARED_FIGURES:  # of an earlier comparison, which may have had more
            (folder / f"{name}.png").unlink(missing_ok=True)
        for name, figure in _figures(found).items():
            save_figure(figure, folder / f"{name}.png")
        write_comparison_page(folder, report)
    except OSError as error:
        raise DataError(
            f"output={output}: cannot be written ({error}). Name another folder."
        ) from error
    if replaces:
        logger.info("replaced the comparison that %s held; output=FOLDER keeps both", folder)
    return folder


def _as_node(found: Compared) -> Node:
    """Return what comparison.json holds, plain."""
    return {
        "split": found.split,
        "level": found.level,
        "draws": found.draws,
        "seed": found.seed,
        "baseline": found.baseline,
        "groups": [group.as_node() for group in found.groups],
        "runs": [
            {**run.as_node(group), "metrics": found.judged[run.folder].metrics}
            for group, run in _runs(found)
        ],
        "trained_on": found.trained_on,
        **{
            name: [asdict(entry) for entry in getattr(found, name)]
            for name in ("scopes", "results", "tests")
        },
        "disclaimer": DISCLAIMER,
    }


def _runs(found: Compared) -> list[tuple[Group, Trained]]:
    return [(group, found.trained[run]) for group in found.groups for run in group.runs]


def _figures(found: Compared) -> dict[str, Figure]:
    """Return the figures by the names of their files."""
    panels: dict[bool, dict[str, list[Row]]] = {False: {}, True: {}}
    runs = {group.label: group.runs for group in found.groups}
    for result in found.results:
        title = SHOWN.get(result.metric)
        if result.images != ALL or title is None or result.value is None:
            continue
        label, is_difference, seeds = result.group, result.minus is not None, []
        if is_difference:
            label += f" - {result.minus}"
        else:
            seeds = [found.judged[run].metrics[result.metric] for run in runs[result.group]]
        row = Row(label, result.value, result.low, result.high, seeds)
        panels[is_difference].setdefault(title, []).append(row)
    figures = {
        name: intervals_figure(panels[is_difference], differences=is_difference)
        for name, is_difference in (("metrics", False), ("differences", True))
        if panels[is_difference]
    }
    judged = {
        label: [Judged(found.judged[run].labels_N, found.judged[run].probs_NK) for run in some]
        for label, some in runs.items()
    }
    figures["roc_and_calibration"] = trust_figure(judged)
    histories = {
        label: [found.trained[run].history for run in some] for label, some in runs.items()
    }
    figures[CURVES] = histories_figure(histories)
    return figures
