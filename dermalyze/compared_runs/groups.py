"""Runs that differ in nothing but their seed are one group, called by what sets it apart."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from dermalyze.compared_runs.words import SEED, Flat, decisive, in_words, labels
from dermalyze.errors import ConfigError
from dermalyze.multirun_folder import numbered_jobs
from dermalyze.run_folder import CONFIG, load_config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """Runs of one config, in the order of their seeds.

    Attributes:
        label: the words in which its config differs from those of other groups.
        runs: their folders.
        seeds: `training.seed` of each.
        settings: the config without seed, folders and device, see `words.in_words`.
    """

    label: str
    runs: tuple[Path, ...]
    seeds: tuple[int, ...]
    settings: Flat

    def as_node(self) -> dict[str, Any]:
        """Return all of it, plain."""
        return {
            "label": self.label,
            "runs": [str(run) for run in self.runs],
            "seeds": list(self.seeds),
            "settings": self.settings,
        }


@dataclass(frozen=True)
class _Run:
    folder: Path
    seed: int
    settings: Flat


def found_runs(given: str | Sequence[str]) -> list[Path]:
    """Return the folders of runs: as given, and of a multirun each of its jobs that was begun.

    Raises:
        ConfigError: a folder is neither; or a run is there twice.
    """
    runs: list[Path] = []
    for name in [given] if isinstance(given, str) else given:
        jobs = [job for job in numbered_jobs(Path(name)) if (job / CONFIG).is_file()]
        if not jobs and not (Path(name) / CONFIG).is_file():
            raise ConfigError(
                f"runs: {name} is no run's folder (it has no {CONFIG}) and no multirun's (no "
                "numbered folder in it is a run's). Give some, such as runs=[outputs/A,multirun/B]."
            )
        runs += [Path(name)] if (Path(name) / CONFIG).is_file() else jobs
    for place, times in Counter(run.resolve() for run in runs).items():
        if times > 1:
            raise ConfigError(f"runs: names {place} more than once. Name different ones.")
    return runs


def grouped(
    given: str | Sequence[str], *, group_seeds: bool, baseline: str | None
) -> tuple[list[Group], Group | None]:
    """Return the groups in the order of their first runs, and which of them is the baseline.

    A run that repeats another's config and seed is warned of and left out: it is no other chance.

    Args:
        given: folders of runs and multiruns.
        group_seeds: false: each run is a group of its own, with its folder as label.
        baseline: a run's or a multirun's folder, whose runs are added to those given; or a
            group's label; None: there is none.

    Raises:
        ConfigError: see `found_runs`; or the baseline is none of the groups, or several.
    """
    folders = found_runs(given)
    of_baseline = found_runs(baseline) if baseline is not None and Path(baseline).is_dir() else []
    known = {folder.resolve() for folder in folders}
    folders += [folder for folder in of_baseline if folder.resolve() not in known]

    def key(run: _Run) -> object:
        return tuple(sorted(run.settings.items())) if group_seeds else run.folder.resolve()

    together: dict[object, list[_Run]] = {}
    for run in map(
        _read, tqdm(folders, "reading configs", unit="run", leave=False, disable=None, delay=2)
    ):
        together.setdefault(key(run), []).append(run)
    runs = [_without_repeats(some) for some in together.values()]
    chosen = None
    if baseline is not None:
        own = {list(together).index(key(_read(folder))) for folder in of_baseline}
        chosen = _only(baseline, own, _labels(runs, group_seeds, None))
    groups = [
        Group(
            label,
            tuple(run.folder for run in some),
            tuple(run.seed for run in some),
            in_words(some[0].settings),
        )
        for label, some in zip(_labels(runs, group_seeds, chosen), runs, strict=True)
    ]
    return groups, None if chosen is None else groups[chosen]


def _read(folder: Path) -> _Run:
    config = load_config(folder)
    seed = OmegaConf.select(config, SEED)
    if not isinstance(seed, int):
        raise ConfigError(f"{folder / CONFIG}: {SEED}={seed!r} is no whole number.")
    return _Run(folder, seed, decisive(config))


def _without_repeats(runs: Sequence[_Run]) -> list[_Run]:
    kept: dict[int, _Run] = {}
    for run in runs:
        first = kept.setdefault(run.seed, run)
        if first is not run:
            logger.warning(
                "%s has the config and the seed %d of %s: it is the same run, and left out",
                run.folder, run.seed, first.folder,
            )  # fmt: skip
    return sorted(kept.values(), key=lambda run: run.seed)


def _labels(runs: Sequence[Sequence[_Run]], group_seeds: bool, baseline: int | None) -> list[str]:
    if not group_seeds or len(runs) == 1:
        return [str(some[0].folder if len(some) == 1 else some[0].folder.parent) for some in runs]
    named = labels([some[0].settings for some in runs], baseline=baseline)
    times = Counter(named)  # values that hold ", " or "=" may read alike
    return [
        label if times[label] == 1 else f"{label} ({some[0].folder})"
        for label, some in zip(named, runs, strict=True)
    ]


def _only(baseline: str, own: set[int], names: Sequence[str]) -> int:
    """Return the position of the baseline: of the group whose runs are its own, or of its label."""
    if not own and baseline in names:
        return list(names).index(baseline)
    if len(own) == 1:
        return own.pop()
    if own:
        several = "; ".join(names[at] for at in sorted(own))
        raise ConfigError(
            f"baseline={baseline}: holds runs of {len(own)} groups ({several}). Name a run of one."
        )
    raise ConfigError(
        f"baseline={baseline}: neither a folder nor one of the groups: {'; '.join(names)}. Words "
        "with an equals sign want quotes: 'baseline=\"loss=focal\"'."
    )
