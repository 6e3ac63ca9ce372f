"""Models as ONNX files: what such a file says of its model, and its graph as a network to call.

The header of a checkpoint travels in the file's `metadata_props`, as JSON under `dermalyze`, with a
sha256 over the whole file under `sha256`, taken while this entry's digits were zeros.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dermalyze.checkpoint_file import FORMAT_VERSION
from dermalyze.errors import CheckpointError, ConfigError

ONNX = ".onnx"
IMAGES, METADATA, LOGITS = "images", "metadata", "logits"

_ENTRY, _SUM = "dermalyze", "sha256"
_UNSUMMED = b"sha256:" + b"0" * 64
_SUMMED = re.compile(rb"sha256:[0-9a-f]{64}")


def needed(module: str) -> Any:
    """Return a module that only models as ONNX need.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed, which models as ONNX files need. "
            "pip install 'dermalyze[export]' brings it."
        ) from error


def sealed(graph: Any, header: dict[str, Any]) -> bytes:
    """Return the file of an `onnx.ModelProto`, with a header and a sha256 over all of it.

    Args:
        graph: its own metadata are replaced.
        header: of a checkpoint, plain containers.
    """
    del graph.metadata_props[:]
    text = json.dumps({"format_version": FORMAT_VERSION, **header}, sort_keys=True, allow_nan=False)
    entries = {_ENTRY: text, "disclaimer": header["disclaimer"], _SUM: _UNSUMMED.decode()}
    for key, value in entries.items():
        graph.metadata_props.add(key=key, value=value)
    content: bytes = graph.SerializeToString()
    return content.replace(_UNSUMMED, _sum(content))


def read_onnx(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the content and the header of a verified ONNX file.

    Raises:
        CheckpointError: missing, damaged, changed, not written by this project, or by a newer
            version of it.
        ConfigError: the package onnx is not installed.
    """
    onnx, message = needed("onnx"), needed("google.protobuf.message")
    try:
        content = path.read_bytes()
        graph = onnx.load_model_from_string(content)
    except (OSError, message.DecodeError) as error:
        raise CheckpointError(f"{path}: damaged or not an ONNX file ({error})") from error
    entries = {entry.key: entry.value for entry in graph.metadata_props}
    try:
        header: dict[str, Any] = json.loads(entries[_ENTRY])
        told, newer = entries[_SUM].encode(), header["format_version"] > FORMAT_VERSION
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: an ONNX file without the entry {_ENTRY!r}, so not one of this project. Make "
            "one with python -m dermalyze.export checkpoint=RUN format=onnx."
        ) from error
    if _SUMMED.fullmatch(told) is None or _sum(content.replace(told, _UNSUMMED)) != told:
        raise CheckpointError(f"{path}: its sha256 does not match; the file was changed or damaged")
    if newer:
        raise CheckpointError(
            f"{path}: written in format {header['format_version']} by a newer version; this one "
            f"reads up to {FORMAT_VERSION}. Install the newer version."
        )
    return content, header


def _sum(unsummed: bytes) -> bytes:
    return b"sha256:" + hashlib.sha256(unsummed).hexdigest().encode()


class OnnxNetwork(nn.Module):
    """A graph that ONNX Runtime computes on the CPU, called as `Classifier` is.

    The graph takes whole grey values. Views that interpolate give fractions of them, which are
    rounded here; the largest change is half a grey value.

    Args:
        content: of the file.
        unknown_M: the numbers of the metadata where nothing is known; empty for a graph that sees
            pixels alone.
        threads: of ONNX Runtime.

    Raises:
        CheckpointError: no graph that ONNX Runtime can run.
        ConfigError: the package onnxruntime is not installed.
    """

    def __init__(self, *, content: bytes, unknown_M: Sequence[float], threads: int) -> None:
        super().__init__()
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        failures = needed("onnxruntime.capi.onnxruntime_pybind11_state")
        try:
            self.session = runtime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except (failures.Fail, failures.InvalidGraph, failures.NotImplemented) as error:
            raise CheckpointError(f"ONNX Runtime cannot run this graph: {error}") from error
        self.unknown_M = np.array(unknown_M, dtype=np.float32)

    def forward(self, images_BCHW: Tensor, metadata_BM: Tensor | None = None) -> Tensor:
        """Return logits_BK, on the device of the images."""
        if images_BCHW.is_floating_point():
            images_BCHW = images_BCHW.round().clamp(0, 255).to(torch.uint8)
        given = {IMAGES: np.ascontiguousarray(images_BCHW.cpu().numpy())}
        if len(self.unknown_M):
            if metadata_BM is None:
                given[METADATA] = np.tile(self.unknown_M, (len(images_BCHW), 1))
            else:
                given[METADATA] = metadata_BM.cpu().numpy()
        (logits_BK,) = self.session.run([LOGITS], given)
        return torch.from_numpy(logits_BK).to(images_BCHW.device)
