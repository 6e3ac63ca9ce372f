"""A graph in eight-bit integers, calibrated on training images; what hurts stays in float32."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermalyze.errors import CheckpointError, ConfigError
from dermalyze.exporting.quiet import quiet
from dermalyze.inference.onnx_file import needed

logger = logging.getLogger(__name__)

Probabilities = Callable[[Any], np.ndarray]
"""An `onnx.ModelProto` -> probs_NK of the calibration images."""


@dataclass(frozen=True)
class Int8:
    """How a graph is quantised.

    Attributes:
        images: of training, to calibrate with.
        seed: which ones.
        method: how the range of a tensor is chosen: minmax, entropy or percentile.
        seven_bits: weights in seven bits, whose products no CPU's 16-bit sums can overflow.
        operators: of ONNX, that are quantised.
        groups: neighbours among these that the search tries in float32 together: this many at once.
        most_in_float32: share of them that may stay so; more is refused.
    """

    images: int
    seed: int
    method: str
    seven_bits: bool
    operators: Sequence[str]
    groups: int
    most_in_float32: float


@dataclass(frozen=True)
class Quantised:
    """A graph, an `onnx.ModelProto`, and the names of its layers that stayed in float32."""

    graph: Any
    in_float32: tuple[str, ...]
    layers: int


def quantised(
    graph: Any,
    inputs: Sequence[dict[str, np.ndarray]],
    *,
    options: Int8,
    probabilities: Probabilities,
    why_not: Callable[[Any], str | None],
) -> Quantised:
    """Return the graph in integers, with as few layers in float32 as the search finds to be enough.

    It starts with all of them in integers. As long as the result is not good enough, the layers in
    integers are cut into groups of neighbours, each group is tried in float32, and the one after
    which the calibration images' probabilities are nearest to those of the graph in float32 (in the
    mean Kullback-Leibler divergence) stays there. So validation only says yes or no.

    Args:
        graph: an `onnx.ModelProto`; not changed.
        inputs: batches of calibration images, named as the graph's inputs.
        options: see there.
        probabilities: of the calibration images.
        why_not: what is wrong with a graph, None where it is good enough.

    Raises:
        ConfigError: operators that there are not, or none that the graph has.
        CheckpointError: too many layers would have to stay in float32; says why.
    """
    exact_NK = probabilities(graph)
    with tempfile.TemporaryDirectory() as folder:
        quantise = _Quantiser(graph, inputs, options, Path(folder))
        left: list[str] = []
        while True:
            result = quantise(left)
            reason = why_not(result)
            if reason is None:
                return Quantised(result, tuple(left), len(quantise.layers))
            still = [name for name in quantise.layers if name not in left]
            logger.info("int8 with %d layers in float32: %s", len(left), reason)
            tried = [
                list(names) for names in np.array_split(still, min(options.groups, len(still)))
            ]
            tried = [
                names
                for names in tried
                if len(left) + len(names) <= options.most_in_float32 * len(quantise.layers)
            ]
            if not tried:
                raise CheckpointError(
                    f"int8: {reason}, with {len(left)} of {len(quantise.layers)} layers left in "
                    f"float32, and int8.most_in_float32={options.most_in_float32:g} lets no more "
                    "stay so. Nothing was written. Use format=onnx; or more int8.images, another "
                    "int8.method or fewer int8.operators."
                )
            left += min(
                tried,
                key=lambda names: divergence(exact_NK, probabilities(quantise([*left, *names]))),
            )


def divergence(exact_NK: np.ndarray, other_NK: np.ndarray) -> float:
    """Return the mean Kullback-Leibler divergence of other probabilities from the exact ones."""
    smallest = np.finfo(np.float64).tiny
    logs_NK = np.log(exact_NK.clip(min=smallest)) - np.log(other_NK.clip(min=smallest))
    return float((exact_NK * logs_NK).sum(axis=1).mean())


class _Quantiser:
    """Names of layers to leave in float32 -> the quantised graph; ranges are measured once."""

    def __init__(
        self, graph: Any, inputs: Sequence[dict[str, np.ndarray]], options: Int8, folder: Path
    ) -> None:
        self.onnx, self.tools = needed("onnx"), needed("onnxruntime.quantization")
        self.inputs, self.options, self.folder = inputs, options, folder
        self.source = folder / "prepared.onnx"
        self.onnx.save_model(graph, folder / "graph.onnx")
        with quiet():
            needed("onnxruntime.quantization.shape_inference").quant_pre_process(
                folder / "graph.onnx", self.source
            )
        nodes = self.onnx.load_model(self.source).graph.node
        self._refuse_unknown({node.op_type for node in nodes})
        self.layers = [node.name for node in nodes if node.op_type in options.operators]

    def _refuse_unknown(self, present: set[str]) -> None:
        """Refuse operators under which nothing, or less than was meant, would become int8."""
        known = present | {schema.name for schema in self.onnx.defs.get_all_schemas()}
        unknown = [name for name in self.options.operators if name not in known]
        of_graph = f"This graph has: {', '.join(sorted(present))}."
        if unknown:
            raise ConfigError(
                f"int8.operators: ONNX has no {', '.join(unknown)}; capitals matter. {of_graph}"
            )
        if not present & set(self.options.operators):
            raise ConfigError(
                f"int8.operators=[{','.join(self.options.operators)}]: the graph has none of them, "
                f"so nothing would be in int8. {of_graph}"
            )

    def __call__(self, in_float32: Sequence[str]) -> Any:
        target, options = self.folder / "quantised.onnx", self.options
        methods = self.tools.CalibrationMethod
        with quiet():
            self.tools.quantize_static(
                self.source,
                target,
                _reader(self.tools.CalibrationDataReader, iter(self.inputs)),
                quant_format=self.tools.QuantFormat.QDQ,
                op_types_to_quantize=list(options.operators),
                nodes_to_exclude=list(in_float32),
                per_channel=True,
                reduce_range=options.seven_bits,
                activation_type=self.tools.QuantType.QUInt8,
                weight_type=self.tools.QuantType.QInt8,
                calibrate_method={
                    "minmax": methods.MinMax,
                    "entropy": methods.Entropy,
                    "percentile": methods.Percentile,
                }[options.method],
                calibration_cache_path=self.folder / "ranges.json",
            )
        return self.onnx.load_model(target)


def _reader(base: Any, batches: Iterator[dict[str, np.ndarray]]) -> Any:
    """Return the batches as ONNX Runtime's calibration asks for them."""

    class Reader(base):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

    return Reader()
