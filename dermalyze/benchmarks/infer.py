"""Inference in batches of several sizes: torch as it comes, ours, and our exports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from omegaconf import OmegaConf
from torch import nn

from dermalyze.benchmarks.apart import Peers, apart, memory_note
from dermalyze.benchmarks.rates import rate_rows, rate_table
from dermalyze.benchmarks.timing import Bars, Report, in_turns
from dermalyze.benchmarks.training import CLASSES, our_training, random_store
from dermalyze.compute import Precision
from dermalyze.config import CONF_DIR
from dermalyze.data.batches import ImageStore
from dermalyze.data.decode import PreprocessSpec
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.errors import CheckpointError
from dermalyze.exporting.graph import onnx_graph
from dermalyze.exporting.int8 import Int8, quantised
from dermalyze.inference.folding import fold_batch_norm
from dermalyze.inference.forward import predict_probabilities
from dermalyze.inference.loading import TrainedModel, best_checkpoint, load_model, onnx_model
from dermalyze.inference.onnx_file import IMAGES, needed
from dermalyze.models.classifier import Classifier
from dermalyze.taxonomy import DISCLAIMER, HAM10000_CODES

EAGER, OURS, FLOAT, INT8 = "eager, contiguous", "ours", "our ONNX, float32", "our ONNX, int8"
FACTS = "facts"
EXPORTS = {FLOAT: ("onnx", "model.onnx"), INT8: ("onnx_int8", "model_int8.onnx")}
UNCHECKED = (
    "int8: every layer, calibrated on noise, and no accuracy check was made; export may leave "
    "layers in float32, or refuse. infer.checkpoint=RUN times a run's own exports"
)
MOST_BATCHES = 8


def measure(
    *,
    repeats: int,
    checkpoint: str | None,
    backbone: str,
    image_size: int,
    batch_sizes: Sequence[int],
    calibration_images: int,
) -> Report:
    """Time the forward passes from uint8 images to probabilities, for each batch size.

    Of a run, the files are timed that `export` has checked and written into its folder. Without
    one, weights are random and every layer of int8's operators is quantised: whether such a file
    would agree is not asked.

    Args:
        repeats: how often each is timed.
        checkpoint: a run's folder; None: a network of random weights.
        backbone: timm's name; of a run, its own is taken.
        image_size: pixels; of a run, its own are taken.
        batch_sizes: images shown at once.
        calibration_images: of noise; not of a run.
    """
    needed("onnxruntime")  # here, where what is missing can be told from what is wrong
    if checkpoint is None:
        needed("onnxscript")
    largest = max(*batch_sizes, calibration_images, CLASSES)
    rows: list[dict[str, Any]] = []
    with apart(
        our_own,
        keep_memory=True,
        checkpoint=checkpoint,
        backbone=backbone,
        image_size=image_size,
        images=largest,
        calibration_images=calibration_images,
    ) as ours:
        backbone, image_size, notes = ours.peers[FACTS]()
        about = {"backbone": backbone, "image_size": image_size, "images": largest}
        with apart(others, keep_memory=False, **about) as theirs:
            networks, note = theirs.peers | ours.peers, memory_note(theirs, ours)
            del networks[FACTS]
            for size in batch_sizes:
                images = size * math.ceil(min(MOST_BATCHES, largest / size))
                peers: Peers = {
                    f"batch {size}, {name}": partial(network, images, batch_size=size)
                    for name, network in networks.items()
                }
                title = f"batch {size}"
                seconds = in_turns(peers, repeats=repeats, title=title, between=lambda: None)
                rows += rate_rows(seconds, images=images, yardstick=f"batch {size}, {EAGER}")
    title = (
        f"inference of {backbone} at {image_size} pixels, {torch.get_num_threads()} threads, "
        f"{repeats} runs each; ratios to eager at the same batch size"
    )
    notes = [note, *notes]
    numbers = {"infer": rows, "checkpoint": checkpoint, "notes": notes}
    return Report(title, [*rate_table(rows), *notes], numbers, Bars("images/s", rows))


def others(*, backbone: str, image_size: int, images: int) -> Peers:
    """Return the predictions of timm's network."""
    store = random_store(images, image_size=image_size)
    return {EAGER: partial(predict, Eager(backbone).eval(), store)}


def our_own(
    *,
    checkpoint: str | None,
    backbone: str,
    image_size: int,
    images: int,
    calibration_images: int,
) -> Peers:
    """Return the predictions of our networks, and what is known of them: name, pixels, notes."""
    if checkpoint is None:
        notes = [UNCHECKED]
        store = random_store(images, image_size=image_size)
        networks = models(
            store, backbone, image_size=image_size, calibration_images=calibration_images
        )
    else:
        trained, networks, notes = exported_models(checkpoint)
        backbone, image_size = trained.description["backbone"], trained.preprocess.image_size
        store = random_store(images, image_size=image_size)
    predicting = {name: partial(predict, network, store) for name, network in networks.items()}
    return {**predicting, FACTS: lambda: (backbone, image_size, notes)}


def predict(model: nn.Module, store: ImageStore, images: int, *, batch_size: int) -> None:
    """Predict so many images; where there are fewer, they are taken again."""
    rows_N = np.arange(images) % len(store)
    precision = Precision(torch.device("cpu"), None)
    predict_probabilities(model, store, rows_N, batch_size=batch_size, precision=precision)


def ready(model: nn.Module, *, image_size: int) -> nn.Module:
    """Return the model itself, made ready as `evaluate` and `predict` do it on the CPU."""
    precision = Precision(torch.device("cpu"), None)
    fold_batch_norm(model, image_size=image_size, precision=precision)
    return model


class Eager(nn.Module):
    """timm's own network with its classifier in torch's own memory format, normalised before."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.network: Any = timm.create_model(backbone, num_classes=CLASSES)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits_BK for uint8 images."""
        scaled_BCHW = images_BCHW.float().contiguous() / 255
        logits_BK: torch.Tensor = self.network((scaled_BCHW - 0.5) / 0.25)
        return logits_BK


def exported_models(checkpoint: str) -> tuple[TrainedModel, dict[str, nn.Module], list[str]]:
    """Return a run's model, the networks to compare, and how its exports agreed with it.

    Raises:
        CheckpointError: no model, no export of it in its folder, or one of another model.
    """
    trained = load_model(best_checkpoint(checkpoint), torch.device("cpu"))
    if not isinstance(trained.model, Classifier):
        raise CheckpointError(f"infer.checkpoint={checkpoint}: is an export itself. Give its run.")
    ready(trained.model, image_size=trained.preprocess.image_size)
    networks: dict[str, nn.Module] = {OURS: trained.model}
    notes = []
    for name, (form, file) in EXPORTS.items():
        path = trained.path.parent / file
        if not path.exists():
            how = f"python -m dermalyze.export checkpoint={checkpoint} format={form}"
            notes.append(f"{name}: not timed, since {path} is not there. {how} makes it.")
            continue
        export = load_model(path, torch.device("cpu"))
        if {**export.header, "export": None} != {**trained.header, "export": None}:
            raise CheckpointError(f"{path}: was made of another model. Export this one again.")
        networks[name] = export.model
        found = export.header["export"]
        before, after = found["balanced_accuracy"]
        said = f"{name}: on {found['images']} validation images the same class for "
        said += f"{found['agreement']:.4f}, balanced accuracy {before:.4f} -> {after:.4f}"
        if name == INT8:
            said += f", {len(found['in_float32'])} of {found['layers']} layers in float32"
        notes.append(said)
    if len(networks) == 1:
        raise CheckpointError(
            f"infer.checkpoint={checkpoint}: no export to time.\n" + "\n".join(notes)
        )
    return trained, networks, notes


def models(
    store: ImageStore, backbone: str, *, image_size: int, calibration_images: int
) -> dict[str, nn.Module]:
    """Return the networks to compare, in eval mode."""
    options = ["augmentation=none"]
    state, _ = our_training(store, backbone=backbone, image_size=image_size, options=options)
    again, _ = our_training(store, backbone=backbone, image_size=image_size, options=options)
    trained = TrainedModel(
        description=None,
        classes=HAM10000_CODES,
        preprocess=PreprocessSpec(image_size=image_size),
        encoding=MetadataEncoding(columns=(), age=(0.0, 1.0), categories={}),
        header={"disclaimer": DISCLAIMER},
        path=Path(backbone),
        model=again.model.eval(),
    )
    config: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "export.yaml"))
    graph = onnx_graph(trained, opset=config["opset"])

    def network(graph: Any) -> nn.Module:
        return onnx_model(graph.SerializeToString(), trained).model

    def probabilities(graph: Any) -> np.ndarray:
        rows_N, precision = np.arange(1), Precision(torch.device("cpu"), None)
        return predict_probabilities(
            network(graph), store, rows_N, batch_size=1, precision=precision
        )

    int8 = quantised(
        graph,
        [
            {IMAGES: np.ascontiguousarray(store.batch(np.array([row])).numpy())}
            for row in range(calibration_images)
        ],
        options=replace(Int8(**config["int8"]), method="minmax"),
        probabilities=probabilities,
        why_not=lambda graph: None,
    )
    return {
        OURS: ready(state.model.eval(), image_size=image_size),
        FLOAT: network(graph),
        INT8: network(int8.graph),
    }
