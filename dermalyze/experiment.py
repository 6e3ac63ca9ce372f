"""The only place that wires a run together: from a composed config to a trained model."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dermalyze.allocation import keep_freed_memory
from dermalyze.checkpoint_file import BEST, remove_leftovers
from dermalyze.compute import (
    choose_device,
    choose_precision,
    multiplies_bf16,
    numerics,
    set_threads,
)
from dermalyze.config import raise_problems
from dermalyze.data.split import save_split
from dermalyze.data.split_files import ABOUT
from dermalyze.distributed import Ranks, joined, rank_problems
from dermalyze.engine.checkpoints import NoCheckpoints, RunCheckpoints
from dermalyze.engine.interruption import Interruption
from dermalyze.engine.loop import fit
from dermalyze.engine.profile import traced
from dermalyze.engine.state import Record, TrainState
from dermalyze.errors import CheckpointError
from dermalyze.evaluation.fit_analysis import FIT, fit_analysis
from dermalyze.evaluation.metrics import summary_metrics
from dermalyze.evaluation.plots import save_figure, training_curves_figure
from dermalyze.files import write_json
from dermalyze.frequency_correction import frequency_corrections
from dermalyze.inference.forward import predict_probabilities
from dermalyze.launch import launch_of
from dermalyze.recipe import build
from dermalyze.redaction import redacted
from dermalyze.run_data import load_data
from dermalyze.run_folder import (
    ORIGIN,
    SHARED_CONFIG,
    flat_parameters,
    git_commit,
    origin,
    refuse_second_run,
    save_config,
    software,
    values_of_all_machines,
)
from dermalyze.schema import checked_run
from dermalyze.sweep_folder import run_name
from dermalyze.taxonomy import DISCLAIMER
from dermalyze.tracking.history import HISTORY, write_history
from dermalyze.tracking.run_lock import run_lock
from dermalyze.tracking.sweep_tags import parent_tags
from dermalyze.tracking.tracker import NoTracker, Tracker, tracked

if TYPE_CHECKING:  # it brings Optuna along, which only a search needs
    from dermalyze.search.trial import SearchTrial

logger = logging.getLogger(__name__)

Node = dict[str, Any]

# Run by MLflow, never imported here: it needs mlflow to be loaded.
SERVED_MODEL = Path(__file__).with_name("served_model.py")


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves behind."""

    folder: Path
    best: Record
    best_value: float
    how_to_look: str


def run_training(
    cfg: DictConfig, folder: Path, *, resume: bool, trial: SearchTrial | None = None
) -> Outcome:
    """Train one run in `folder`, from the start or from its latest checkpoint.

    Where several processes were started together, all of them call this and one of them writes.

    Args:
        cfg: the composed config, checked here before any data is read.
        folder: exists; everything the run makes goes there.
        resume: go on with the run that the folder holds.
        trial: what the run is in a search, which may stop it.

    Raises:
        Pruned: the search has stopped the run, whose state is saved.
        DermalyzeError: what the user can mend: config, data, checkpoints.
        Interrupted: SIGINT or SIGTERM arrived and the state was saved.
    """
    config = checked_run(cfg)
    training: Node = config["training"]
    launch, device = launch_of(os.environ), choose_device(training["device"], key="training.device")
    options = {name: training[name] for name in ("batch_size", "sync_batch_norm")}
    raise_problems(rank_problems(launch, device, **options))
    with (
        joined(launch, device, folder=folder, timeout=training["rank_timeout"]) as ranks,
        run_lock(folder) if ranks.is_writer else nullcontext(),
        Interruption() as interruption,
    ):
        if ranks.is_writer:
            remove_leftovers(folder)
            if not resume:
                refuse_second_run(folder)
            if not (resume and (folder / ORIGIN).is_file()):
                write_json(folder / ORIGIN, origin())
            if not resume:
                save_config(cfg, folder)  # last: where it lies, there is a run
        with numerics(deterministic=training["deterministic"], fast=training["fast_mode"]):
            return _train(cfg, config, folder, interruption, device, ranks, trial)


def _train(
    cfg: DictConfig,
    config: Node,
    folder: Path,
    interruption: Interruption,
    device: torch.device,
    ranks: Ranks,
    trial: SearchTrial | None,
) -> Outcome:
    training: Node = config["training"]
    threads = set_threads(training["threads"])
    keep_freed_memory()
    precision = choose_precision(training["amp"], device)
    versions = {
        **software(device=str(device), threads=threads, precision=str(precision)),
        "ranks": ranks.size,
    }

    data = load_data(config, device)
    checkpoints = RunCheckpoints(
        folder=folder,
        about={
            "model": _rebuildable(config["model"]),
            "classes": list(data.table.classes),
            "preprocess": data.preprocess.as_dict(),
            "metadata": data.encoding.as_dict(),
            "table_fingerprint": data.table.fingerprint,
            "split_fingerprint": data.split.fingerprint,
            "class_counts": data.class_counts(),
            "frequency_corrections": frequency_corrections(config),
            "train_lesions": data.lesions("train"),
            "val_lesions": data.lesions("val"),
            "train_images": data.images("train"),
            "val_images": data.images("val"),
            "images_fingerprint": data.images_fingerprint,
            "seed": training["seed"],
            "evaluation_batch_size": training["evaluation_batch_size"],
            "software": versions,
            "disclaimer": DISCLAIMER,
        },
    )
    ranks.refuse_differences(
        {
            **values_of_all_machines(cfg),
            "fingerprint of the table": data.table.fingerprint,
            "fingerprint of the split": data.split.fingerprint,
            "a checkpoint to resume from": checkpoints.exist,
        }
    )
    if checkpoints.exist:  # the weights come from there; nothing is to be fetched again
        config = {**config, "model": _rebuildable(config["model"])}
    state, step = build(
        config,
        store=data.training_store,
        labels_N=data.table.labels,
        train_rows_M=data.split.train,
        num_classes=len(data.table.classes),
        encoding=data.encoding,
        precision=precision,
        ranks=ranks,
    )
    if not checkpoints.exist and training["amp"] == "auto" and multiplies_bf16(device):
        logger.info(
            "computing in fp32; this CPU multiplies in bf16 too: training.amp=bf16 trains large "
            "convolutions some 1.5 times as fast, and depthwise ones slower"
        )
    checkpoints.load_latest(state)
    ranks.refuse_differences({"epoch": state.epoch, "step": state.step})
    tracker: Tracker = NoTracker()
    if ranks.is_writer:
        if not state.finished:
            checkpoints.check_room(state)
        save_split(data.split, data.table.frame, folder)
        tracker = instantiate(config["tracking"], _convert_="all")
    if state.finished:  # still, what a stopped server or process left unrecorded is recorded now
        logger.info("%s: this run is done; nothing is left to train", folder)

    def validate(model: nn.Module) -> Record:
        rows, batch_size = data.split.val, training["evaluation_batch_size"]

        def predict(rows_N: np.ndarray) -> np.ndarray:
            return predict_probabilities(
                model, data.store, rows_N, batch_size=batch_size, precision=precision
            )

        probs_NK = ranks.predicted(predict, rows, batch_size=batch_size)
        metrics = summary_metrics(data.table.labels[rows], probs_NK)
        return {f"val/{name}": value for name, value in metrics.items()}

    with (
        tracked(
            tracker,
            name=run_name(folder),
            folder=folder,
            parameters=flat_parameters(redacted(OmegaConf.to_container(cfg))),
            tags={
                **{f"software.{name}": str(value) for name, value in versions.items()},
                "git_commit": str(git_commit()),
                "table_fingerprint": data.table.fingerprint,
                "split_fingerprint": data.split.fingerprint,
                "split_method": data.split.method,
                "split_leaks": data.leaks(),
                **parent_tags(folder.parent),
                **(trial.tags if trial else {}),
                "disclaimer": DISCLAIMER,
            },
            history=state.history,
        ),
        traced(step, folder) if training["profile"] and ranks.is_writer else nullcontext(),
    ):
        fit(
            state,
            training_step=step,
            train_rows_N=data.split.train,
            sampler=instantiate(config["sampler"]),
            validate=validate,
            checkpoints=checkpoints if ranks.is_writer else NoCheckpoints(),
            sinks=[
                lambda record: write_history(folder, state.history),
                lambda record: tracker.log_metrics(record, step=int(record["epoch"] or 0)),
                *([lambda record: interruption.stop_with(trial.verdict(record))] if trial else []),
            ]
            if ranks.is_writer
            else [],
            interruption=interruption,
            epochs=training["epochs"],
            batch_size=training["batch_size"],
            accumulate=training["accumulate"],
            seed=training["seed"],
            check_every_steps=training["check_every_steps"],
            checkpoint_every_steps=training["checkpoint_every_steps"],
        )
        if ranks.is_writer:
            _log_results(tracker, folder, state)
    return _outcome(folder, state, tracker)


def _rebuildable(model: Node) -> Node:
    """Return the model's config as a checkpoint needs it: its weights are in the file itself."""
    return {**model, "pretrained": False, "weights_file": None}


def _log_results(tracker: Tracker, folder: Path, state: TrainState) -> None:
    curves = folder / "training_curves.png"
    save_figure(training_curves_figure(state.history, best_epoch=state.stopping.best_epoch), curves)
    write_json(folder / FIT, fit_analysis(state.history))
    splits = sorted(folder.glob("*_split.csv"))
    about = (SHARED_CONFIG, ORIGIN, HISTORY, FIT, ABOUT)
    for path in (*(folder / name for name in about), *splits):
        tracker.log_artifact(path)
    tracker.log_artifact(curves, folder="plots")
    tracker.log_checkpoint(folder / BEST, code=SERVED_MODEL)


def _outcome(folder: Path, state: TrainState, tracker: Tracker) -> Outcome:
    best, best_value = state.best_record, state.stopping.best_value
    if best is None or best_value is None:
        raise CheckpointError(f"{folder}: the run ended before its first epoch was validated")
    return Outcome(folder, best, best_value, tracker.how_to_look())
