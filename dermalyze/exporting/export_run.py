"""Wires one export: checkpoint and the run's images in, a checked file out."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dermalyze.checkpoint_file import write_checkpoint
from dermalyze.compute import choose_precision, set_threads
from dermalyze.data.batches import ImageStore, open_store
from dermalyze.errors import CheckpointError, ConfigError
from dermalyze.exporting.agreement import (
    Agreement,
    Limits,
    agreement,
    why_not_alike,
    why_not_equal,
)
from dermalyze.exporting.graph import (
    ProgramNetwork,
    classifier_of,
    onnx_graph,
    program_file,
    torch_export,
)
from dermalyze.exporting.int8 import Int8, quantised
from dermalyze.files import in_the_way, write_whole
from dermalyze.inference.forward import predict_probabilities
from dermalyze.inference.loading import (
    TrainedModel,
    best_checkpoint,
    load_model,
    onnx_model,
)
from dermalyze.inference.onnx_file import IMAGES, METADATA, sealed
from dermalyze.judged_images import read_judged_table, shared_part
from dermalyze.randomness import Purpose, generator

logger = logging.getLogger(__name__)

Node = dict[str, Any]

NAMES = {
    "onnx": "model.onnx",
    "onnx_int8": "model_int8.onnx",
    "torch_export": "model.pt2",
    "safetensors": "model.safetensors",
}


@dataclass(frozen=True)
class Exported:
    """The file that was written, and how it agrees with its model; int8: what stayed as it was."""

    path: Path
    found: Agreement
    in_float32: tuple[str, ...] = ()


class _Run:
    """The images of a run, and what a model says of them.

    Args:
        config: checked, plain, of `python -m dermalyze.export`.
        trained: on the CPU.

    Raises:
        DermalyzeError: no run's folder, or data that cannot be read.
    """

    def __init__(self, config: Node, trained: TrainedModel) -> None:
        table = read_judged_table(config, [trained])
        self.store: ImageStore = open_store(
            table,
            trained.preprocess,
            config["paths"]["cache"],
            torch.device("cpu"),
            encoding=trained.encoding,
        )
        self.batch_size = config["batch_size"] or trained.header["evaluation_batch_size"]
        self.val_rows = shared_part("val", table, [trained])
        self.train_rows = shared_part("train", table, [trained])
        self.labels_N = table.labels[self.val_rows]
        self.exact_NK = self.probabilities(trained.model, self.val_rows)

    def probabilities(self, model: nn.Module, rows_N: np.ndarray) -> np.ndarray:
        """Return probs_NK of a model on rows of the table."""
        return predict_probabilities(
            model,
            self.store,
            rows_N,
            batch_size=self.batch_size,
            precision=choose_precision("off", torch.device("cpu")),
        )

    def found(self, model: nn.Module) -> Agreement:
        """Return how a network agrees with the model on validation, in batches and one by one."""
        alone_1K = self.probabilities(model, self.val_rows[:1])
        probs_NK = self.probabilities(model, self.val_rows)
        probs_NK[0] = max(alone_1K[0], probs_NK[0], key=self._distance_to_first)
        return agreement(self.labels_N, self.exact_NK, probs_NK)

    def _distance_to_first(self, probs_K: np.ndarray) -> float:
        return float(np.abs(probs_K - self.exact_NK[0]).max())


def export(config: Node) -> Exported:
    """Write the model of a checkpoint in a format, if it says there what it says as it is.

    Args:
        config: checked, plain, of `python -m dermalyze.export`.

    Raises:
        CheckpointError: no model; or an export that is not its model, of which nothing is written.
        ConfigError, DataError: the run's images are needed and cannot be had; a package is missing;
            or the file to write is there and is not an earlier export's.
    """
    set_threads(config["threads"])
    path = best_checkpoint(config["checkpoint"])
    target = _target(config, path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output={target}: its folder cannot be made ({error}). Name another place."
        ) from error
    trained = load_model(path, torch.device("cpu"))
    classifier_of(trained)
    run, limits = _Run(config, trained), Limits(**config["limits"])
    writers: dict[str, Callable[..., Exported]] = {
        "onnx": _write_onnx,
        "onnx_int8": _write_int8,
        "torch_export": _write_torch_export,
        "safetensors": _write_safetensors,
    }
    return writers[config["format"]](config, trained, run, limits, target)


def _target(config: Node, checkpoint: Path) -> Path:
    """Return the file to write: one that is not there, or the default, which exports write over.

    Raises:
        ConfigError: it would be written over what is not an export of this command's own, below a
            file, or under an ending by which it is not found to be what it is.
    """
    if config["output"] is None:
        target = checkpoint.parent / NAMES[config["format"]]
        if target.exists() and target.samefile(checkpoint):
            raise ConfigError(
                f"format={config['format']}: would be written over checkpoint={checkpoint} itself. "
                "Name another file by output=FILE."
            )
        return target
    target, ending = Path(config["output"]), Path(NAMES[config["format"]]).suffix
    if target.suffix != ending:
        raise ConfigError(
            f"output={target}: format={config['format']} is read again by its ending. Name a file "
            f"that ends in {ending}."
        )
    file = in_the_way(target.parent)
    if file is not None:
        raise ConfigError(f"output={target}: {file} is a file, not a folder. Name another place.")
    if target.exists():
        raise ConfigError(
            f"output={target}: is there already. Name another file, or remove this one."
        )
    return target


def _header(trained: TrainedModel, form: str, found: Agreement, **more: Any) -> Node:
    return {**trained.header, "export": {"format": form, **found.as_dict(), **more}}


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise CheckpointError(f"the export is not the model: {reason}. Nothing was written.")


def _write_onnx(
    config: Node, trained: TrainedModel, run: _Run, limits: Limits, target: Path
) -> Exported:
    graph = onnx_graph(trained, opset=config["opset"])
    found = run.found(_network(graph, trained))
    _refuse(why_not_equal(found, limits))
    write_whole(target, sealed(graph, _header(trained, "onnx", found)))
    return Exported(target, found)


def _write_int8(
    config: Node, trained: TrainedModel, run: _Run, limits: Limits, target: Path
) -> Exported:
    graph = onnx_graph(trained, opset=config["opset"])
    found = run.found(_network(graph, trained))
    _refuse(why_not_equal(found, limits))
    options = Int8(**config["int8"])
    random = generator(options.seed, Purpose.CALIBRATION)
    rows_C = np.sort(random.permutation(run.train_rows)[: options.images])

    def why_not(graph: Any) -> str | None:
        return why_not_alike(run.found(_network(graph, trained)), limits)

    result = quantised(
        graph,
        [
            dict(zip((IMAGES, METADATA), _on_host(run.store, rows_B), strict=False))
            for rows_B in np.array_split(rows_C, -(-len(rows_C) // run.batch_size))
        ],
        options=options,
        probabilities=lambda graph: run.probabilities(_network(graph, trained), rows_C),
        why_not=why_not,
    )
    found = run.found(_network(result.graph, trained))
    header = _header(
        trained, "onnx_int8", found, in_float32=list(result.in_float32), layers=result.layers
    )
    write_whole(target, sealed(result.graph, header))
    return Exported(target, found, result.in_float32)


def _write_torch_export(
    config: Node, trained: TrainedModel, run: _Run, limits: Limits, target: Path
) -> Exported:
    program = torch_export(trained)
    found = run.found(ProgramNetwork(program_file(program, trained.header)))
    _refuse(why_not_equal(found, limits))
    write_whole(target, program_file(program, _header(trained, "torch_export", found)))
    return Exported(target, found)


def _write_safetensors(
    config: Node, trained: TrainedModel, run: _Run, limits: Limits, target: Path
) -> Exported:
    tensors = trained.model.state_dict()
    # In a folder of its own: beside others, `write_checkpoint` would keep what it writes over.
    with tempfile.TemporaryDirectory(prefix=".export", dir=target.parent) as folder:
        tried, checked = Path(folder) / "tried.safetensors", Path(folder) / target.name
        write_checkpoint(tried, tensors, trained.header)
        found = run.found(load_model(tried, torch.device("cpu")).model)
        _refuse(why_not_equal(found, limits))
        write_checkpoint(checked, tensors, _header(trained, "safetensors", found))
        checked.replace(target)
    return Exported(target, found)


def _network(graph: Any, trained: TrainedModel) -> nn.Module:
    return onnx_model(graph.SerializeToString(), trained).model


def _on_host(store: ImageStore, rows_B: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(values.numpy()) for values in store.inputs(rows_B)]
