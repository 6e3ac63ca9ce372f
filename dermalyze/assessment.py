"""Wires one evaluation: checkpoint, data and split in; metrics, predictions and pictures out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.utils import instantiate

from dermalyze.compute import choose_device
from dermalyze.data.table import LesionTable
from dermalyze.errors import CheckpointError, ConfigError
from dermalyze.evaluation.metrics import (
    confusion,
    per_class_metrics,
    summary_metrics,
    undefined_reasons,
)
from dermalyze.evaluation.plots import confusion_matrix_figure, save_figure
from dermalyze.files import write_json
from dermalyze.inference.answer import Answer
from dermalyze.inference.ensemble import Ensemble
from dermalyze.inference.identity import home_of, run_of, way_of
from dermalyze.inference.loading import ModelFacts
from dermalyze.inference.views import Views
from dermalyze.judged_images import (
    judged_rows,
    read_judged_table,
    seen_lesions,
    shared_part,
)
from dermalyze.members import Members, read_members
from dermalyze.reporting.figures import write_figures
from dermalyze.reporting.page import write_page
from dermalyze.reporting.results import Results, results
from dermalyze.taxonomy import DISCLAIMER
from dermalyze.tracking.mlflow_tracker import tracker_of
from dermalyze.validation_fit import validation_fit

logger = logging.getLogger(__name__)

Node = dict[str, Any]


@dataclass(frozen=True)
class Assessment:
    """What an evaluation found, and where it lies."""

    metrics: dict[str, float | None]
    folder: Path
    images: int
    how_to_look: str | None


def assess(config: Node) -> Assessment:
    """Evaluate one checkpoint, or an ensemble of several, as `conf/evaluate.yaml` describes.

    Args:
        config: checked, plain.

    Raises:
        CheckpointError, DataError, ConfigError: what the user can mend.
    """
    device = choose_device(config["device"])
    views: Views = instantiate(config["tta"], _convert_="all")
    method: Ensemble = instantiate(config["ensemble"], _convert_="all")
    facts = read_members(config["checkpoint"])
    adjustment = _logit_adjustment(config, facts)
    table = read_judged_table(config, facts)
    rows = judged_rows(config, table, facts)
    known = _known_metadata(table, rows, facts)
    val_rows = None
    if method.needs_validation and len(facts) > 1:
        val_rows = shared_part("val", table, facts)
    members = Members(
        config=config,
        facts=facts,
        table=table,
        views=views,
        adjustment=adjustment,
        device=device,
    )
    answer = members.answer(rows, val_rows, method)
    way = way_of(views, method, answer.weights_M)

    def on_validation() -> tuple[np.ndarray, np.ndarray]:
        rows_V = shared_part("val", table, facts)
        return table.labels[rows_V], members.answer(rows_V, val_rows, method).probs_NK

    home = home_of(config["checkpoint"], facts, config["paths"]["outputs"])
    fitted, why_not = validation_fit(
        config,
        facts,
        home=home,
        prediction={**way, "logit_adjustment": config["logit_adjustment"], "amp": config["amp"]},
        on_validation=on_validation,
    )
    found = results(
        table.labels[rows],
        answer.probs_NK,
        table.frame.iloc[rows],
        table.classes,
        config=config,
        fitted=fitted,
        why_not_fitted=why_not,
    )
    about = {
        "tta": way["tta"],
        "ensemble": way["ensemble"],
        "members": _described(facts, answer),
        "logit_adjustment": adjustment,
        "metadata_known": known,
    }
    part = _part(config["split"], facts, views, method, adjustment)
    folder = Path(config["output"] or home / "evaluation" / part)
    about["leakage"] = _leakage(table, rows, facts, config["split"])
    metrics = _write(folder, table, rows, answer, found, config["split"], about)
    run = run_of(facts[0]) if len(facts) == 1 else None
    return Assessment(metrics, folder, len(rows), _track(config, run, folder, part, metrics))


def _part(
    split: str, facts: Sequence[ModelFacts], views: Views, method: Ensemble, adjustment: Node | None
) -> str:
    """Return what results are called by: beside those that were made in another way."""
    words = [split]
    if len(facts) > 1:
        words.append(method.name)
    if not views.is_off:
        words.append(f"tta_{views.name}_{views.aggregation}")
    if adjustment is not None:
        words.append(f"tau{adjustment['tau']:g}")
    return "_".join(words)


def _described(facts: Sequence[ModelFacts], answer: Answer) -> list[Node]:
    """Return what the report says of each model."""
    return [
        {
            "checkpoint": str(member.path),
            "weight": float(weight),
            "epoch": member.header["epoch"],
            "seed": member.header["seed"],
            "split_fingerprint": member.header["split_fingerprint"],
            "preprocess": member.preprocess.as_dict(),
        }
        for member, weight in zip(facts, answer.weights_M, strict=True)
    ]


def _logit_adjustment(config: Node, facts: Sequence[ModelFacts]) -> Node | None:
    """Return what the report says of the logit adjustment that was asked for, None without one."""
    tau = config["logit_adjustment"]
    if tau is None:
        return None
    one, *others = [_class_shares(config, member) for member in facts]
    if any(other["class_counts"] != one["class_counts"] for other in others):
        raise ConfigError(
            f"logit_adjustment={tau}: the models were trained on other numbers of images of a "
            "class, so there is no one correction. Leave it out, or evaluate them one by one."
        )
    return {"tau": tau, **one}


def _class_shares(config: Node, member: ModelFacts) -> Node:
    tau = config["logit_adjustment"]
    counts_K = member.header.get("class_counts")
    corrections = member.header.get("frequency_corrections")
    if counts_K is None or corrections is None:
        raise CheckpointError(
            f"logit_adjustment={tau}: {member.path} does not say how many images of each class "
            "trained it, or what was done about rare ones. Leave it out, or train again."
        )
    if corrections and not config["allow_double_correction"]:
        raise ConfigError(
            f"logit_adjustment={tau}: training has corrected for the class frequencies already "
            f"({' and '.join(corrections)}), and this would do so twice. Leave it out; or ask for "
            "it by name with allow_double_correction=true."
        )
    return {
        "class_counts": dict(zip(member.classes, counts_K, strict=True)),
        "corrected_in_training_by": corrections,
    }


def _known_metadata(
    table: LesionTable, rows: np.ndarray, facts: Sequence[ModelFacts]
) -> dict[str, int]:
    """Return and log of how many images each metadata column that a model takes is known."""
    known: dict[str, int] = {}
    for member in facts:
        known |= member.encoding.known(table.frame.iloc[rows])
    if not known:
        return known
    counts = ", ".join(f"{column} of {count}" for column, count in known.items())
    logger.info("metadata: the model is told, of %d images, %s", len(rows), counts)
    silent = [column for column, count in known.items() if count == 0]
    if silent:
        logger.warning(
            "metadata: %s of no image is known here; the model, trained with it, predicts without",
            ", ".join(silent),
        )
    return known


def _leakage(
    table: LesionTable, rows: np.ndarray, facts: Sequence[ModelFacts], split: str
) -> str | None:
    """Return and log in words that a test is none, None where it is one."""
    seen = len(seen_lesions(table, rows, facts))
    if split not in ("test", "all") or not seen:
        return None
    words = (
        f"{seen} of {len(rows)} images are of lesions that trained or selected the model, so these "
        "numbers are too good"
    )
    logger.warning("leakage: %s", words)
    return words


def _write(
    folder: Path,
    table: LesionTable,
    rows: np.ndarray,
    answer: Answer,
    found: Results,
    split: str,
    about: Node,
) -> dict[str, float | None]:
    folder.mkdir(parents=True, exist_ok=True)
    classes, probs_NK, unsure = table.classes, answer.probs_NK, answer.uncertainty
    labels, frame = table.labels[rows], table.frame.iloc[rows]
    metrics = summary_metrics(labels, probs_NK)
    per_class = per_class_metrics(labels, probs_NK, classes)
    report = {
        "metrics": metrics,
        "undefined": undefined_reasons(labels, len(classes), classes),
        "per_class": {
            name: {k: None if pd.isna(v) else float(v) for k, v in values.items()}
            for name, values in per_class.to_dict(orient="index").items()
        },
        **found.report,
        "split": split,
        "images": len(rows),
        **about,
        "data": table.name,
        "table_fingerprint": table.fingerprint,
        "disclaimer": DISCLAIMER,
    }
    write_json(folder / "evaluation_metrics.json", report)
    predictions = pd.DataFrame(
        {
            "image_id": frame["image_id"].to_numpy(),
            "lesion_id": frame["lesion_id"].to_numpy(),
            "dx": frame["dx"].to_numpy(),
            "predicted": [classes[k] for k in probs_NK.argmax(axis=1)],
            **{f"probability_{name}": probs_NK[:, k] for k, name in enumerate(classes)},
            "predictive_entropy": unsure.entropy_N,
            "mutual_information": unsure.mutual_information_N,
            "predicted_class_deviation": unsure.deviation_N,
            "margin": unsure.margin_N,
            **found.set_columns,
            "disclaimer": DISCLAIMER,
        }
    )
    predictions.to_csv(folder / "predictions.csv", index=False)
    title = f"{table.name}, split {split}, {len(rows)} images"
    if about["logit_adjustment"] is not None:
        title += f", logit adjustment {about['logit_adjustment']['tau']:g}"
    counts_KK = confusion(labels, probs_NK)
    save_figure(confusion_matrix_figure(counts_KK, classes, title), folder / "confusion_matrix.png")
    write_figures(folder, labels, probs_NK, frame, classes, found.report)
    write_page(folder, report)
    return metrics


def _track(
    config: Node, run: Path | None, folder: Path, part: str, metrics: dict[str, float | None]
) -> str | None:
    """Add the results to the model's own MLflow run; return where to look."""
    tracker = tracker_of(run) if run is not None and config["track"] else None
    if tracker is None or run is None:
        return None
    tracker.reopen(run)
    tracker.log_summary({f"{part}/{name}": value for name, value in metrics.items()})
    for path in sorted(folder.iterdir()):
        tracker.log_artifact(path, folder=f"evaluation/{part}")
    return tracker.how_to_look()
