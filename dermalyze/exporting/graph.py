"""A classifier as a graph that needs no Python of this project: ONNX, or torch's own export."""

from __future__ import annotations

import io
import json
from typing import Any

import torch
from torch import nn

from dermalyze.errors import CheckpointError, ConfigError
from dermalyze.exporting.quiet import quiet
from dermalyze.inference.loading import TrainedModel
from dermalyze.inference.onnx_file import IMAGES, LOGITS, METADATA, needed
from dermalyze.models.classifier import Classifier

HEADER = "dermalyze.json"
"""The extra file inside torch's export that holds the header."""


def onnx_graph(trained: TrainedModel, *, opset: int) -> Any:
    """Return an `onnx.ModelProto`: uint8 images_BCHW in, logits_BK out, any number of images.

    Normalisation is in it, as it is in the model. A model that is told metadata has a second
    input, metadata_BM (float32).

    Args:
        trained: a `Classifier`, on the CPU; its weights are laid out contiguously here.
        opset: version of ONNX's operators.

    Raises:
        CheckpointError: the model is an export itself.
        ConfigError: no graph of that version can be made.
    """
    needed("onnxscript")
    inputs = _examples(trained)
    names = [IMAGES, METADATA][: len(inputs)]
    with quiet():
        program = torch.onnx.export(
            trained.model,
            inputs,
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=[LOGITS],
            dynamic_shapes=_any_number(inputs),
            opset_version=opset,
        )
    if program is None:
        raise TypeError("torch.onnx.export returned no program")
    graph = program.model_proto
    made = next(one.version for one in graph.opset_import if one.domain in ("", "ai.onnx"))
    if made != opset:  # torch logs that it could not convert its graph, and leaves it as it is
        newest = needed("onnx").defs.onnx_opset_version()
        raise ConfigError(
            f"opset={opset}: cannot be made of this model; it became {made}, and the newest that "
            f"the installed onnx knows is {newest}. Use opset={made}."
        )
    graph.doc_string = (
        f"{IMAGES}: uint8 RGB in [0, 255], resized to {trained.preprocess.image_size} pixels a "
        f"side. {LOGITS}: of {', '.join(trained.classes)}; their softmax are probabilities. "
        f"{trained.header['disclaimer']}"
    )
    return graph


def torch_export(trained: TrainedModel) -> torch.export.ExportedProgram:
    """Return torch's own export, with inputs and outputs as of `onnx_graph`."""
    inputs = _examples(trained)
    with quiet():
        return torch.export.export(trained.model, inputs, dynamic_shapes=_any_number(inputs))


def program_file(program: torch.export.ExportedProgram, header: dict[str, Any]) -> bytes:
    """Return the file that `torch.export.load` reads, with a header as an extra file in it."""
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={HEADER: json.dumps(header)})
    return file.getvalue()


class ProgramNetwork(nn.Module):
    """A file of `torch.export.save`, called as `Classifier` is."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        with quiet():
            program = torch.export.load(io.BytesIO(content))
        # In a list, so that it is no part of this module: it refuses to be put into eval mode.
        self.program: list[nn.Module] = [program.module()]

    def forward(self, *inputs_B: torch.Tensor) -> torch.Tensor:
        """Return logits_BK."""
        logits_BK: torch.Tensor = self.program[0](*inputs_B)
        return logits_BK


def classifier_of(trained: TrainedModel) -> Classifier:
    """Return the model that layers can be read from.

    Raises:
        CheckpointError: it is a graph, an export itself.
    """
    if not isinstance(trained.model, Classifier):
        raise CheckpointError(
            f"{trained.path}: is an export already. Give the checkpoint that it was made of."
        )
    return trained.model


def _examples(trained: TrainedModel) -> tuple[torch.Tensor, ...]:
    """Return inputs of two images: of a single one, torch would take the number for a constant."""
    classifier_of(trained).lay_out(torch.contiguous_format)
    size = trained.preprocess.image_size
    images_BCHW = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    unknown_M = [value for values in trained.encoding.unknown.values() for value in values]
    return (images_BCHW, torch.tensor([unknown_M] * 2)) if unknown_M else (images_BCHW,)


def _any_number(inputs: tuple[torch.Tensor, ...]) -> tuple[dict[int, Any], ...]:
    number = torch.export.Dim("images")
    return tuple({0: number} for _ in inputs)
