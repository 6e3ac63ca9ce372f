"""What evaluations left in a run's folder, as far as a report of many runs shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermalyze.errors import DataError
from dermalyze.evaluation.predictions import METRICS_FILE


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of a run.

    Attributes:
        folder: of the evaluation.
        images: how many it was over.
        estimates: for each metric value, low and high; None where undefined.
        no_test: in words why it is none, which images the models have seen or were chosen by.
    """

    folder: Path
    images: int
    estimates: Mapping[str, Mapping[str, Any]]
    no_test: tuple[str, ...]

    def as_node(self) -> dict[str, Any]:
        """Return what a report says of it, plain."""
        return {
            "part": self.folder.name,
            "images": self.images,
            "estimates": dict(self.estimates),
            "no_test": list(self.no_test),
        }


def read_evaluations(run: Path) -> list[Evaluated]:
    """Return the evaluations of a run, by their names; none where it was not evaluated.

    Raises:
        DataError: one cannot be read.
    """
    found = []
    for path in sorted((run / "evaluation").glob(f"*/{METRICS_FILE}")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            estimates = dict(report["intervals"]["overall"])
            why = (report["leakage"], report["fitted_on_these"])
            no_test = tuple(words for words in why if words is not None)
            found.append(Evaluated(path.parent, int(report["images"]), estimates, no_test))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path}: not the metrics of an evaluation by this version "
                f"({type(error).__name__}: {error}). Evaluate the run again."
            ) from error
    return found
