"""Wires one evaluation: checkpoint, data and split in; metrics, predictions and pictures out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate

from dermalyze.allocation import keep_freed_memory
from dermalyze.compute import choose_device, choose_precision
from dermalyze.errors import CheckpointError, ConfigError
from dermalyze.files import in_the_way
from dermalyze.inference.answer import Answer
from dermalyze.inference.ensemble import Ensemble
from dermalyze.inference.identity import export_formats, home_of, run_of, trained_as, way_of
from dermalyze.inference.loading import ModelFacts, refuse_number_format
from dermalyze.inference.views import Views
from dermalyze.judged_images import (
    fitted_on_these,
    judged_rows,
    known_metadata,
    leakage,
    read_judged_table,
    shared_part,
    validation_rows,
)
from dermalyze.members import Members, read_members
from dermalyze.reporting.earlier_results import refuse_other_results
from dermalyze.reporting.fitted import chosen_weights
from dermalyze.reporting.results import results
from dermalyze.reporting.unlike_training import unlikeness
from dermalyze.reporting.written import write_evaluation
from dermalyze.tracking.mlflow_tracker import tracker_of
from dermalyze.tracking.run_download import local_checkpoints
from dermalyze.validation_fit import Validated, validation_fit

Node = dict[str, Any]

_NOT_IN_NAMES = r"[^\w.\- ]"  # of metrics in MLflow


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
    _refuse_file(config["output"])
    here = local_checkpoints(
        config["checkpoint"], uri=config["tracking_uri"], outputs=config["paths"]["outputs"]
    )
    config = {**config, "checkpoint": here}
    device = choose_device(config["device"])
    keep_freed_memory()
    views: Views = instantiate(config["tta"], _convert_="all")
    method: Ensemble = instantiate(config["ensemble"], _convert_="all")
    facts = read_members(config["checkpoint"])
    refuse_number_format(config["amp"], facts)
    adjustment = _logit_adjustment(config, facts)
    table = read_judged_table(config, facts)
    rows = judged_rows(config, table, facts)
    known = known_metadata(table, rows, facts)
    home = home_of(config["checkpoint"], facts, config["paths"]["outputs"])

    def prediction(weights_M: np.ndarray) -> Node:
        return {
            **way_of(views, method, weights_M),
            "logit_adjustment": config["logit_adjustment"],
            "precision": str(choose_precision(config["amp"], device)),
        }

    val_rows = weights_M = None
    if method.chosen_by and len(facts) > 1:
        if config["split"] == "all" and config["data"].get("source") is not None:
            asked = prediction(np.zeros(len(facts)))
            weights_M = chosen_weights(home, trained_as(facts), asked)
        else:
            val_rows = shared_part("val", table, facts)
    members = Members(
        config=config,
        facts=facts,
        table=table,
        views=views,
        adjustment=adjustment,
        device=device,
    )
    answer = members.answer(rows, method, val_rows=val_rows, weights_M=weights_M)
    way = way_of(views, method, answer.weights_M)
    part = _part(config["split"], facts, views, method, adjustment)
    own_folder = home / "evaluation" / part
    folder = Path(config["output"] or own_folder)
    about = {
        "split": config["split"],
        "tta": way["tta"],
        "ensemble": way["ensemble"],
        "members": _described(facts, answer),
        "logit_adjustment": adjustment,
        "metadata_known": known,
        "leakage": leakage(config["split"], table, rows, facts),
        "fitted_on_these": fitted_on_these(config["split"]),
        "data": table.name,
        "table_fingerprint": table.fingerprint,
    }
    refuse_other_results(folder, about)

    def on_validation() -> Validated | None:
        rows_V = validation_rows(table, facts)
        if rows_V is None:
            return None
        lesion_ids_V = table.frame["lesion_id"].iloc[rows_V].to_numpy()
        said = members.answer(rows_V, method, weights_M=answer.weights_M)
        return Validated(table.labels[rows_V], lesion_ids_V, said)

    fitted, why_not = validation_fit(
        config,
        facts,
        home=home,
        prediction=prediction(answer.weights_M),
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
        unlike_N=unlikeness(fitted, answer.features_MNF, answer.weights_M),
        probs_MNK=answer.probs_MNK,
    )
    metrics = write_evaluation(
        folder,
        table.labels[rows],
        answer.probs_NK,
        table.frame.iloc[rows],
        table.classes,
        unsure=answer.uncertainty.columns(),
        found=found,
        about=about,
    )
    run = run_of(facts[0]) if len(facts) == 1 else None
    # Under the name of its part alone stands what lies in the run's folder, and nothing else.
    elsewhere = folder.resolve() != own_folder.resolve()
    name = f"{part}/{re.sub(_NOT_IN_NAMES, '_', folder.resolve().name)}" if elsewhere else part
    return Assessment(metrics, folder, len(rows), _track(config, run, folder, name, metrics))


def _refuse_file(output: str | None) -> None:
    """Refuse a file where the folder of the results is to be, before anything is computed."""
    file = None if output is None else in_the_way(Path(output))
    if file is not None:
        raise ConfigError(f"output={output}: {file} is a file, not a folder. Name another place.")


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
    words += export_formats(facts)
    return "_".join(words)


def _described(facts: Sequence[ModelFacts], answer: Answer) -> list[Node]:
    """Return what the report says of each model."""
    return [
        {
            "checkpoint": str(member.path),
            "weight": float(weight),
            **trained,
            "preprocess": member.preprocess.as_dict(),
        }
        for member, trained, weight in zip(facts, trained_as(facts), answer.weights_M, strict=True)
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


def _track(
    config: Node, run: Path | None, folder: Path, name: str, metrics: dict[str, float | None]
) -> str | None:
    """Add the results to the model's own MLflow run under a name; return where to look."""
    tracker = tracker_of(run) if run is not None and config["track"] else None
    if tracker is None or run is None:
        return None
    tracker.reopen(run)
    tracker.log_summary({f"{name}/{metric}": value for metric, value in metrics.items()})
    for path in sorted(folder.iterdir()):
        tracker.log_artifact(path, folder=f"evaluation/{name}")
    return tracker.how_to_look()
