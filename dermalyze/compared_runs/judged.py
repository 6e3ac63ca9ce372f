"""Runs that were evaluated on the same images: read back, and held against each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dermalyze.checkpoint_file import BEST, read_seal
from dermalyze.data.split_files import first, read_rows
from dermalyze.errors import DataError
from dermalyze.evaluation.predictions import (
    METRICS_FILE,
    PREDICTIONS,
    TRAINED_AS,
    Predictions,
    read_predictions,
)


def read_judged(runs: Sequence[Path], split: str) -> dict[Path, Predictions]:
    """Return what an evaluation on `split` left in each run's folder.

    Raises:
        DataError: a run was not evaluated, or as another model than it has now, or not on the same
            images as the first one.
    """
    unjudged = [run for run in runs if not _is_judged(run, split)]
    if unjudged:
        raise DataError(
            f"not evaluated on split={split}, so there are no {PREDICTIONS} and {METRICS_FILE} in "
            f"evaluation/{split}: {first(unjudged)}. Evaluate first: {_evaluate(unjudged, split)}"
        )
    stale = [run for run in runs if not _is_of_its_model(run, split)]
    if stale:
        raise DataError(
            f"what evaluation/{split} holds is of another model than the run's {BEST} is now: "
            f"{first(stale)}. Evaluate again: {_evaluate(stale, split)}"
        )
    judged = {}
    for run in tqdm(runs, "reading predictions", unit="run", leave=False, disable=None, delay=2):
        judged[run] = read_predictions(run / "evaluation" / split)
        _refuse_other_images(runs[0], judged[runs[0]], run, judged[run])
    return judged


def _is_judged(run: Path, split: str) -> bool:
    folder = run / "evaluation" / split
    return all((folder / name).is_file() for name in (PREDICTIONS, METRICS_FILE))


def _evaluate(runs: Sequence[Path], split: str) -> str:
    """Return the command that evaluates runs."""
    several = "-m " if len(runs) > 1 else ""
    return (
        f"python -m dermalyze.evaluate {several}checkpoint={','.join(map(str, runs))} split={split}"
    )


def _is_of_its_model(run: Path, split: str) -> bool:
    """Return whether an evaluation is of the checkpoint that lies there now, as far as is told."""
    try:
        report = json.loads((run / "evaluation" / split / METRICS_FILE).read_text(encoding="utf-8"))
        (member,) = report["members"]
    except (OSError, ValueError, TypeError, KeyError):  # `read_predictions` says what is wrong
        return True
    if not (run / BEST).is_file():
        return True
    header = read_seal(run / BEST).header
    return all(member[name] == header.get(name) for name in TRAINED_AS if name in member)


def trained_lesions(run: Path) -> list[str]:
    """Return the lesions that a run was trained on, sorted.

    Raises:
        DataError: its split cannot be read.
    """
    problems: list[str] = []
    rows = read_rows(run, problems)
    if problems:
        raise DataError(
            f"{run}: what it was trained on cannot be read, so leakage would go unseen.\n  - "
            + "\n  - ".join(problems)
            + "\nGive the whole folder of a run."
        )
    return sorted({row.lesion_id for row in rows if row.part == "train"})


def _refuse_other_images(one: Path, ours: Predictions, other: Path, theirs: Predictions) -> None:
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
