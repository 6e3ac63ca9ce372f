"""Each image as the models see it that were not trained on its fold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dermalyze.evaluation.predictions import read_predictions
from dermalyze.files import write_whole
from dermalyze.sweeps.findings import FOLD, Finding, by_recipe
from dermalyze.taxonomy import DISCLAIMER

OUT_OF_FOLD = "out_of_fold.csv"


def write_out_of_fold(sweep: Path, found: Sequence[Finding]) -> Path | None:
    """Write an image a row, with the mean probabilities of the runs that tested it.

    Args:
        sweep: its folder.
        found: the jobs that are done; those are taken that have a fold and were evaluated.

    Returns:
        The file; None where no job has a fold.
    """
    tables = []
    for recipe, group in by_recipe(found).items():
        folds = [
            _predicted(finding) for finding in group if FOLD in finding.chance and finding.test
        ]
        if not folds:
            continue
        rows = pd.concat(folds, ignore_index=True)
        probabilities = [name for name in rows.columns if name.startswith("probability_")]
        same = ["image_id", "lesion_id", "dx", "fold"]
        table = rows.groupby(same, sort=True)[probabilities].mean()
        table.insert(0, "runs", rows.groupby(same, sort=True).size())
        predicted = table[probabilities].to_numpy().argmax(axis=1)
        table.insert(0, "predicted", [_code(probabilities[k]) for k in predicted])
        table = table.reset_index()
        table.insert(0, "recipe", ", ".join(recipe))
        tables.append(table)
    if not tables:
        return None
    path = sweep / OUT_OF_FOLD
    whole = pd.concat(tables, ignore_index=True).assign(disclaimer=DISCLAIMER)
    write_whole(path, whole.to_csv(index=False))
    return path


def _code(column: str) -> str:
    return column.removeprefix("probability_")


def _predicted(finding: Finding) -> pd.DataFrame:
    predictions = read_predictions(finding.folder / "evaluation" / "test")
    columns = {
        f"probability_{name}": predictions.probs_NK[:, k]
        for k, name in enumerate(predictions.classes)
    }
    return pd.DataFrame(
        {
            "image_id": predictions.image_ids_N,
            "lesion_id": predictions.lesion_ids_N,
            "dx": [predictions.classes[k] for k in predictions.labels_N],
            "fold": finding.chance[FOLD],
            **columns,
        }
    )
