"""Wires one evaluation: checkpoint, data and split in; metrics, predictions and pictures out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermalyze.compute import choose_device, choose_precision
from dermalyze.config import plain
from dermalyze.data.batches import open_store
from dermalyze.data.split import FromFiles
from dermalyze.data.table import LesionTable
from dermalyze.dataset import read_table
from dermalyze.errors import CheckpointError, ConfigError, DataError
from dermalyze.evaluation.logit_adjustment import adjusted_probabilities
from dermalyze.evaluation.metrics import (
    confusion,
    per_class_metrics,
    summary_metrics,
    undefined_reasons,
)
from dermalyze.evaluation.plots import confusion_matrix_figure, save_figure
from dermalyze.files import write_json
from dermalyze.inference.forward import predict_probabilities
from dermalyze.inference.loading import TrainedModel, best_checkpoint, load_model
from dermalyze.run_folder import CONFIG, load_config, working_directory
from dermalyze.taxonomy import DISCLAIMER
from dermalyze.tracking.mlflow_tracker import tracker_of

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
    """Evaluate one checkpoint as `conf/evaluate.yaml` describes.

    Args:
        config: checked, plain.

    Raises:
        CheckpointError, DataError, ConfigError: what the user can mend.
    """
    path = best_checkpoint(config["checkpoint"])
    device = choose_device(config["device"])
    trained = load_model(path, device)
    adjustment = _logit_adjustment(config, trained)
    run = path.parent if (path.parent / CONFIG).is_file() else None
    table = _read_table(config, run, path)
    if table.classes != trained.classes:
        raise DataError(
            f"the classes differ. {path}: {', '.join(trained.classes)}; {table.name}: "
            f"{', '.join(table.classes)}. Evaluate on data with the model's classes."
        )
    rows = _rows(config, run, table, trained)
    _say_what_is_known(table, rows, trained)

    cache = config["paths"]["cache"]
    store = open_store(table, trained.preprocess, cache, device, encoding=trained.encoding)
    probs_NK = predict_probabilities(
        trained.model,
        store,
        rows,
        batch_size=config["batch_size"] or trained.header["evaluation_batch_size"],
        precision=choose_precision(config["amp"], device),
    )
    part = config["split"]
    if adjustment is not None:
        counts_K, tau = list(adjustment["class_counts"].values()), adjustment["tau"]
        probs_NK = adjusted_probabilities(probs_NK, counts_K, tau=tau)
        part = f"{part}_tau{tau:g}"  # beside the results without it
    folder = Path(config["output"] or path.parent / "evaluation" / part)
    metrics = _write(folder, table, rows, probs_NK, trained, config["split"], adjustment)
    return Assessment(metrics, folder, len(rows), _track(config, run, folder, part, metrics))


def _logit_adjustment(config: Node, trained: TrainedModel) -> Node | None:
    """Return what the report says of the logit adjustment that was asked for, None without one."""
    tau = config["logit_adjustment"]
    if tau is None:
        return None
    counts_K = trained.header.get("class_counts")
    corrections = trained.header.get("frequency_corrections")
    if counts_K is None or corrections is None:
        raise CheckpointError(
            f"logit_adjustment={tau}: {trained.path} does not say how many images of each class "
            "trained it, or what was done about rare ones. Leave it out, or train again."
        )
    if corrections and not config["allow_double_correction"]:
        raise ConfigError(
            f"logit_adjustment={tau}: training has corrected for the class frequencies already "
            f"({' and '.join(corrections)}), and this would do so twice. Leave it out; or ask for "
            "it by name with allow_double_correction=true."
        )
    return {
        "tau": tau,
        "class_counts": dict(zip(trained.classes, counts_K, strict=True)),
        "corrected_in_training_by": corrections,
    }


def _read_table(config: Node, run: Path | None, path: Path) -> LesionTable:
    """Read the data that were named, or those of the run."""
    data, cache = config["data"], config["paths"]["cache"]
    merge = data["merge_duplicates"]
    if data.get("source") is not None:
        return read_table({**data, "merge_duplicates": merge or False}, cache=cache)
    if merge is not None:
        raise ConfigError(
            f"data.merge_duplicates={merge}: is for other data, which are named by data=OPTION. "
            "The run's own are read as the run read them, or its split would not fit. Leave it out."
        )
    if run is None:
        raise ConfigError(
            f"{path} lies in no run's folder, so its data are not known. Name them: "
            "data=ham10000 data.root=DIR split=all."
        )
    own = plain(load_config(run))["data"]
    # A relative folder was meant from where the run was started, not from here.
    root = str(data["root"] or working_directory(run) / own["root"])
    return read_table(
        {
            "merge_duplicates": False,  # what runs did before there was such an option
            **own,
            "root": root,
            "source": {**own["source"], "root": root},
        },
        cache=cache,
    )


def _seen(table: LesionTable, rows: np.ndarray, trained: TrainedModel) -> pd.Series[str]:
    """Return the lesion of each of the rows that shows a lesion which the model has seen.

    Where duplicates were joined here, one seen image makes the whole joined lesion a seen one.
    """
    lesions = table.frame["lesion_id"]
    seen = lesions.isin(lesions[table.original_lesions.isin(trained.seen_lesions)]).iloc[rows]
    return lesions.iloc[rows][seen]


def _rows(config: Node, run: Path | None, table: LesionTable, trained: TrainedModel) -> np.ndarray:
    """Return the rows to evaluate, none of them of a lesion that the model has seen."""
    split = config["split"]
    if split == "all":
        rows = np.arange(len(table))
    elif run is None:
        raise ConfigError(
            f"split={split}: {trained.path} lies in no run's folder, so its split is not known. "
            "Give the run's folder as checkpoint, or split=all."
        )
    else:
        rows = FromFiles(directory=str(run))(table.frame, table.classes).part(split)
    if split in ("test", "all") and not config["allow_seen_lesions"]:
        seen = sorted(set(_seen(table, rows, trained)))
        if seen:
            raise DataError(
                f"{len(seen)} lesions to be evaluated were used to train or select this model "
                f"(first: {', '.join(seen[:5])}), so its numbers would be inflated. Use "
                "split=test of its own run or other images; or ask for it by name with "
                "allow_seen_lesions=true."
            )
    return rows


def _say_what_is_known(table: LesionTable, rows: np.ndarray, trained: TrainedModel) -> None:
    """Log how much of the metadata that the model takes is known of the images."""
    known = trained.encoding.known(table.frame.iloc[rows])
    if not known:
        return
    counts = ", ".join(f"{column} of {count}" for column, count in known.items())
    logger.info("metadata: the model is told, of %d images, %s", len(rows), counts)
    silent = [column for column, count in known.items() if count == 0]
    if silent:
        logger.warning(
            "metadata: %s of no image is known here; the model, trained with it, predicts without",
            ", ".join(silent),
        )


def _leakage(table: LesionTable, rows: np.ndarray, trained: TrainedModel, split: str) -> str | None:
    """Return and log in words that a test is none, None where it is one."""
    seen = len(_seen(table, rows, trained))
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
    probs_NK: np.ndarray,
    trained: TrainedModel,
    split: str,
    adjustment: Node | None,
) -> dict[str, float | None]:
    folder.mkdir(parents=True, exist_ok=True)
    classes = trained.classes
    labels = table.labels[rows]
    metrics = summary_metrics(labels, probs_NK)
    per_class = per_class_metrics(labels, probs_NK, classes)
    counts_KK = confusion(labels, probs_NK)
    write_json(
        folder / "evaluation_metrics.json",
        {
            "metrics": metrics,
            "undefined": undefined_reasons(labels, len(classes), classes),
            "per_class": {
                name: {k: None if pd.isna(v) else float(v) for k, v in values.items()}
                for name, values in per_class.to_dict(orient="index").items()
            },
            "confusion_matrix": {"classes": list(classes), "counts": counts_KK.tolist()},
            "split": split,
            "images": len(rows),
            "leakage": _leakage(table, rows, trained, split),
            "logit_adjustment": adjustment,
            "metadata_known": trained.encoding.known(table.frame.iloc[rows]),
            "checkpoint": str(trained.path),
            "epoch": trained.header["epoch"],
            "seed": trained.header["seed"],
            "data": table.name,
            "table_fingerprint": table.fingerprint,
            "split_fingerprint": trained.header["split_fingerprint"],
            "disclaimer": DISCLAIMER,
        },
    )
    frame = table.frame.iloc[rows]
    predictions = pd.DataFrame(
        {
            "image_id": frame["image_id"].to_numpy(),
            "lesion_id": frame["lesion_id"].to_numpy(),
            "dx": frame["dx"].to_numpy(),
            "predicted": [classes[k] for k in probs_NK.argmax(axis=1)],
            **{f"probability_{name}": probs_NK[:, k] for k, name in enumerate(classes)},
            "disclaimer": DISCLAIMER,
        }
    )
    predictions.to_csv(folder / "predictions.csv", index=False)
    title = f"{table.name}, split {split}, {len(rows)} images"
    if adjustment is not None:
        title += f", logit adjustment {adjustment['tau']:g}"
    save_figure(confusion_matrix_figure(counts_KK, classes, title), folder / "confusion_matrix.png")
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
