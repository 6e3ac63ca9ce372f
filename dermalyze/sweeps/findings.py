"""What the jobs of a sweep found, each by itself and together with those that differ by chance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dermalyze.checkpoint_file import BEST
from dermalyze.evaluation.predictions import METRICS_FILE
from dermalyze.evaluation.variance_components import variance_components
from dermalyze.inference.loading import ModelFacts, read_facts
from dermalyze.sweep_folder import Job, override_key, set_apart

SEED = "training.seed"
FOLD = "data.split.fold"
# Runs that differ in nothing else are one recipe: their spread is chance, and none is chosen.
CHANCE = (SEED, FOLD, "data.split.seed")

Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class Finding:
    """A job that is done.

    Attributes:
        job: what it was.
        folder: of its run.
        recipe: the overrides that set it apart by more than chance.
        chance: what chance it had: values of keys in CHANCE.
        facts: what its checkpoint says.
        validation: metrics of its best epoch.
        test: metrics on the test split; empty where it was not evaluated.
    """

    job: Job
    folder: Path
    recipe: tuple[str, ...]
    chance: dict[str, str]
    facts: ModelFacts
    validation: Metrics
    test: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of a metric over runs; None for one run."""

    mean: float
    deviation: float | None
    runs: int


def findings(sweep: Path, jobs: Iterable[Job], fixed: Sequence[str]) -> list[Finding]:
    """Read what the jobs that are done have found.

    Args:
        sweep: its folder.
        jobs: all of them.
        fixed: the keys that have one value in the whole sweep.
    """
    found = []
    for job in jobs:
        if job.status != "done":
            continue
        folder = sweep / str(job.number)
        apart = set_apart(job.overrides, fixed)
        facts = read_facts(folder / BEST)
        found.append(
            Finding(
                job,
                folder,
                tuple(one for one in apart if override_key(one) not in CHANCE),
                dict(one.split("=", 1) for one in apart if override_key(one) in CHANCE),
                facts,
                {
                    name.removeprefix("val/"): value
                    for name, value in facts.header["validation_metrics"].items()
                    if name.startswith("val/")
                },
                tested(folder / "evaluation" / "test"),
            )
        )
    return found


def tested(evaluation: Path) -> dict[str, float | None]:
    """Return the metrics that an evaluation left; empty where there was none."""
    path = evaluation / METRICS_FILE
    if not path.is_file():
        return {}
    metrics: dict[str, float | None] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return metrics


def by_recipe(found: Sequence[Finding]) -> dict[tuple[str, ...], list[Finding]]:
    """Return the findings of each recipe, in the order of their jobs."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in found:
        groups.setdefault(finding.recipe, []).append(finding)
    return groups


def spread(values: Sequence[Metrics], metric: str) -> Spread | None:
    """Return mean and deviation of a metric over runs; None where a run has none."""
    numbers = [one.get(metric) for one in values]
    known = np.array([number for number in numbers if number is not None])
    if not len(known) or len(known) < len(numbers):
        return None
    deviation = float(known.std(ddof=1)) if len(known) > 1 else None
    return Spread(float(known.mean()), deviation, len(known))


def components(group: Sequence[Finding], metric: str) -> dict[str, float] | None:
    """Return the variances of a test metric from folds and seeds, of a recipe with all of both.

    None where the runs are not each fold with each seed, or one of them has no such metric.
    """
    cells = {(one.chance.get(FOLD), one.chance.get(SEED)): one.test.get(metric) for one in group}
    folds = list(dict.fromkeys(fold for fold, _ in cells))
    seeds = list(dict.fromkeys(seed for _, seed in cells))
    values = [[cells.get((fold, seed)) for seed in seeds] for fold in folds]
    if len(cells) < len(group) or any(value is None for row in values for value in row):
        return None
    if len(folds) < 2 or len(seeds) < 2:
        return None
    return vars(variance_components(np.array(values, dtype=np.float64)))


def as_record(finding: Finding) -> dict[str, Any]:
    """Return what sweep.json says of a job that is done."""
    return {
        "epoch": finding.facts.header["epoch"],
        "seed": finding.facts.header["seed"],
        "validation": dict(finding.validation),
        "test": finding.test or None,
    }
