"""Exports are held against their model; int8 leaves in float32 what hurts, and no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_models import make_run

from dermalyze.assessment import assess
from dermalyze.checkpoint_file import BEST, read_checkpoint
from dermalyze.errors import CheckpointError, ConfigError
from dermalyze.exporting import export_run
from dermalyze.exporting.agreement import (
    Agreement,
    Limits,
    agreement,
    why_not_alike,
    why_not_equal,
)
from dermalyze.exporting.graph import onnx_graph
from dermalyze.exporting.int8 import Int8, divergence, quantised
from dermalyze.inference.loading import load_model
from dermalyze.inference.onnx_file import OnnxNetwork

LIMITS = Limits(probability=1e-4, agreement=0.75, balanced_accuracy=0.25)


def test_agreement_by_hand() -> None:
    model = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    export = np.array([[0.9, 0.1], [0.45, 0.55], [0.2, 0.8], [0.3, 0.7]])
    found = agreement(np.array([0, 0, 1, 1]), model, export)
    assert found.images == 4
    assert found.largest_difference == pytest.approx(0.15)
    assert found.agreement == 0.75
    assert found.balanced_accuracy == (1.0, 0.75)


@pytest.mark.parametrize(
    ("difference", "share", "accuracies", "equal", "alike"),
    [
        (1e-4, 0.75, (0.9, 0.65), None, None),
        (1.1e-4, 0.75, (0.65, 0.9), "1.1e-04, above limits.probability=0.0001", None),
        (0.2, 0.74, (0.9, 0.9), "0.2, above", "0.7400 of 8 validation images, below"),
        (0.2, 0.8, (0.9, 0.6), "0.2, above", "falls from 0.9000 to 0.6000, by more than"),
    ],
)
def test_limits(difference, share, accuracies, equal, alike) -> None:
    found = Agreement(8, difference, share, accuracies)
    for reason, expected in ((why_not_equal, equal), (why_not_alike, alike)):
        said = reason(found, LIMITS)
        assert said is None if expected is None else expected.replace("e-04", "") and said


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    exact = np.array([[0.5, 0.5], [1.0, 0.0]])
    other = np.array([[0.25, 0.75], [0.5, 0.5]])
    by_hand = (0.5 * np.log(2) + 0.5 * np.log(2 / 3) + np.log(2)) / 2
    assert divergence(exact, other) == pytest.approx(by_hand)
    assert divergence(exact, exact) == 0


# A chain of layers on 8 numbers; one of them adds and takes away what drowns all else in int8.

WIDTH, CLASSES, LAYERS = 8, 3, 6


def chain(hurt: int | None) -> onnx.ModelProto:
    """Matrices that turn the vector; `hurt` multiplies one number by 10,000 and the next undoes."""
    random = np.random.default_rng(0)
    nodes = [helper.make_node("Cast", ["images"], ["x0"], to=TensorProto.FLOAT)]
    matrices = []
    stretch = np.eye(WIDTH, dtype=np.float32)
    stretch[0, 0] = 1e4
    for layer in range(LAYERS):
        matrix = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
        if layer == hurt:
            matrix = matrix @ stretch
        if hurt is not None and layer == hurt + 1:
            matrix = np.linalg.inv(stretch) @ matrix
        if layer == LAYERS - 1:
            matrix = matrix[:, :CLASSES] / 20
        matrices.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{layer}"))
        out = "logits" if layer == LAYERS - 1 else f"x{layer + 1}"
        node = helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [out], name=f"layer{layer}")
        nodes.append(node)
    made = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        matrices,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


CALIBRATION = np.random.default_rng(1).integers(0, 256, (64, WIDTH), dtype=np.uint8)


def probabilities(graph: Any) -> np.ndarray:
    network = OnnxNetwork(content=graph.SerializeToString(), unknown_M=(), threads=1)
    probs: np.ndarray = network(torch.from_numpy(CALIBRATION)).double().softmax(dim=1).numpy()
    return probs


def options(**changes: Any) -> Int8:
    values: dict[str, Any] = {
        "images": 64,
        "seed": 0,
        "method": "minmax",
        "seven_bits": True,
        "operators": ["MatMul"],
        "groups": 6,
        "most_in_float32": 0.5,
    }
    return Int8(**values | changes)


def judge(exact: onnx.ModelProto, asked: list[float]) -> Callable[[Any], str | None]:
    wanted = probabilities(exact).argmax(axis=1)

    def why_not(graph: Any) -> str | None:
        asked.append(float((probabilities(graph).argmax(axis=1) == wanted).mean()))
        return None if asked[-1] >= 0.95 else "too far"

    return why_not


def quantise(graph: onnx.ModelProto, asked: list[float], **changes: Any) -> Any:
    return quantised(
        graph,
        [{"images": CALIBRATION[:32]}, {"images": CALIBRATION[32:]}],
        options=options(**changes),
        probabilities=probabilities,
        why_not=judge(graph, asked),
    )


def test_a_harmless_chain_is_quantised_whole() -> None:
    graph, asked = chain(hurt=None), []
    before = graph.SerializeToString()
    result = quantise(graph, asked)
    assert (result.in_float32, result.layers, len(asked)) == ((), LAYERS, 1)
    assert graph.SerializeToString() == before
    weights = {w.name: w.data_type for w in result.graph.graph.initializer if "quantized" in w.name}
    assert [weights[f"w{n}_quantized"] for n in range(LAYERS)] == [TensorProto.INT8] * LAYERS
    (first,) = (w for w in result.graph.graph.initializer if w.name == "w0_quantized")
    assert np.abs(numpy_helper.to_array(first).astype(int)).max() <= 64  # seven bits


def test_the_layers_that_hurt_are_found_and_stay_in_float32() -> None:
    asked: list[float] = []
    result = quantise(chain(hurt=2), asked, groups=3)
    assert result.in_float32 == ("layer2", "layer3")
    assert asked[0] < 0.95 <= asked[1]
    names = {w.name for w in result.graph.graph.initializer}
    assert [f"w{layer}_quantized" in names for layer in range(LAYERS)] == [1, 1, 0, 0, 1, 1]


def test_where_too_much_would_stay_in_float32_int8_is_refused() -> None:
    asked: list[float] = []
    with pytest.raises(CheckpointError, match=r"int8: too far, with 0 of 6 layers left.*=0 lets"):
        quantise(chain(hurt=2), asked, most_in_float32=0.0)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("operators", "said"),
    [
        (["matmul", "MatMul"], "int8.operators: ONNX has no matmul; capitals matter."),
        (["Conv", "Gemm"], "int8.operators=[Conv,Gemm]: the graph has none of them, so nothing"),
    ],
)
def test_operators_that_quantise_nothing_are_refused(operators: list[str], said: str) -> None:
    asked: list[float] = []
    with pytest.raises(ConfigError) as refused:
        quantise(chain(hurt=None), asked, operators=operators, method="entropy")
    assert str(refused.value).startswith(said)
    assert str(refused.value).endswith("This graph has: Cast, MatMul.")
    assert asked == []
    assert quantise(chain(hurt=None), asked, operators=["Conv", "MatMul"]).layers == LAYERS


def test_another_opset_than_was_asked_for_is_refused(tmp_path: Path) -> None:
    trained = load_model(make_run(tmp_path / "run", disclaimer="") / BEST, torch.device("cpu"))
    (opset,) = (one.version for one in onnx_graph(trained, opset=18).opset_import if not one.domain)
    assert opset == 18
    with pytest.raises(ConfigError) as refused:
        onnx_graph(trained, opset=60)
    assert str(refused.value) == (
        "opset=60: cannot be made of this model; it became 18, and the newest that the installed "
        f"onnx knows is {onnx.defs.onnx_opset_version()}. Use opset=18."
    )


# What is written over, and what never is.

SAFETENSORS = {
    "threads": None,
    "format": "safetensors",
    "output": None,
    "limits": {"probability": 1e-4, "agreement": 0.98, "balanced_accuracy": 0.01},
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose exports agree with it, whatever they are: its images are not looked for."""

    class Agreeing:
        def __init__(self, *_: object) -> None: ...

        def found(self, _: object) -> Agreement:
            return Agreement(1, 0.0, 1.0, (1.0, 1.0))

    monkeypatch.setattr(export_run, "_Run", Agreeing)
    return make_run(tmp_path / "run")


def test_a_file_that_was_named_is_not_written_over(run: Path) -> None:
    (run / "mine.safetensors").write_text("mine")
    for name in (BEST, "mine.safetensors"):
        before = (run / name).read_bytes()
        options = {**SAFETENSORS, "checkpoint": str(run), "output": str(run / name)}
        with pytest.raises(ConfigError, match=rf"output={run / name}: is there already\. Name ano"):
            export_run.export(options)
        assert (run / name).read_bytes() == before


def test_an_export_is_not_written_over_the_model_that_it_is_made_of(run: Path) -> None:
    source = shutil.copy(run / BEST, run / "model.safetensors")
    before = source.read_bytes()
    with pytest.raises(ConfigError, match=rf"written over checkpoint={source} itself\. Name"):
        export_run.export({**SAFETENSORS, "checkpoint": str(source)})
    assert source.read_bytes() == before


def test_an_export_replaces_an_earlier_one_and_touches_nothing_beside_it(run: Path) -> None:
    beside = {"model_previous.safetensors": b"mine", ".model.safetensors": b"mine too"}
    for name, content in {**beside, "model.safetensors": b"an earlier one"}.items():
        (run / name).write_bytes(content)
    before = {path.name for path in run.iterdir()}
    done = export_run.export({**SAFETENSORS, "checkpoint": str(run)})
    assert done.path == run / "model.safetensors"
    assert read_checkpoint(done.path)[1]["export"]["format"] == "safetensors"
    assert {path.name for path in run.iterdir()} == before
    assert {name: (run / name).read_bytes() for name in beside} == beside


def test_a_file_that_would_not_be_known_or_cannot_be_is_refused_at_once(run: Path) -> None:
    (run / "file").touch()
    for output, said in (
        (run / "m.bin", "format=safetensors is read again by its ending. Name a file that ends in"),
        (run / "file" / "m.safetensors", f"{run / 'file'} is a file, not a folder. Name another"),
    ):
        options = {**SAFETENSORS, "checkpoint": str(run), "output": str(output)}
        with pytest.raises(ConfigError, match=f"output={output}: {said}"):
            export_run.export(options)
    assert not (run / "m.bin").exists()


def test_an_export_is_not_exported_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = replace(load_model(run / BEST, torch.device("cpu")), model=torch.nn.Identity())
    monkeypatch.setattr(export_run, "load_model", lambda *_: graph)
    with pytest.raises(CheckpointError, match=r": is an export already\. Give the checkpoint"):
        export_run.export({**SAFETENSORS, "checkpoint": str(run)})


def test_the_folder_of_an_evaluation_is_no_file(run: Path) -> None:
    (run / "file").touch()
    for output in (run / "file", run / "file" / "below"):
        with pytest.raises(ConfigError) as refused:
            assess({"output": str(output)})
        assert str(refused.value) == (
            f"output={output}: {run / 'file'} is a file, not a folder. Name another place."
        )
