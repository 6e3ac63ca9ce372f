"""ONNX files say what their checkpoint said, are verified, and are called as a model is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dermalyze.errors import CheckpointError, ConfigError
from dermalyze.exporting.graph import onnx_graph
from dermalyze.inference import onnx_file
from dermalyze.inference.loading import load_model, read_facts, refuse_number_format
from dermalyze.inference.onnx_file import OnnxNetwork, read_onnx, sealed

SIZE = 4
HEADER: dict[str, Any] = {
    "kind": "best",
    "model": None,
    "classes": ["mel", "nv"],
    "preprocess": {"decode_version": 1, "image_size": SIZE},
    "metadata": {"columns": ["age"], "age": [50.0, 10.0], "categories": {}},
    "train_lesions": ["HAM_1"],
    "val_lesions": ["HAM_2"],
    "disclaimer": "never for diagnosis",
}
WEIGHTS_CK = np.array([[1.0, -1.0], [0.5, 0.0], [0.0, 0.25]], dtype=np.float32)
WEIGHTS_MK = np.array([[3.0, 0.0], [0.0, 7.0]], dtype=np.float32)


def graph() -> onnx.ModelProto:
    """Logits are the mean colour and the metadata, each through a matrix."""
    pixels = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 3, SIZE, SIZE])
    known = helper.make_tensor_value_info("metadata", TensorProto.FLOAT, ["n", 2])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    made = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], ["colour"], keepdims=0),
            helper.make_node("MatMul", ["colour", "of_colour"], ["first"]),
            helper.make_node("MatMul", ["metadata", "of_metadata"], ["second"]),
            helper.make_node("Add", ["first", "second"], ["logits"]),
        ],
        "small",
        [pixels, known],
        [logits],
        [
            axes,
            numpy_helper.from_array(WEIGHTS_CK, "of_colour"),
            numpy_helper.from_array(WEIGHTS_MK, "of_metadata"),
        ],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(sealed(graph(), HEADER))
    return path


def test_a_file_says_what_its_checkpoint_said(file: Path) -> None:
    facts = read_facts(file)
    assert facts.header == {"format_version": 1, **HEADER}
    assert facts.classes == ("mel", "nv")
    assert facts.preprocess.image_size == SIZE
    assert facts.seen_lesions == {"HAM_1", "HAM_2"}
    entries = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert entries["disclaimer"] == "never for diagnosis"


def test_a_graph_is_called_as_a_model_is(file: Path) -> None:
    model = load_model(file, torch.device("cpu")).model
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.randint(0, 256, (5, 3, SIZE, SIZE), generator=generator).to(torch.uint8)
    metadata_BM = torch.rand(5, 2, generator=generator)
    colour_BC = images_BCHW.double().mean(dim=(2, 3)).numpy()
    expected = colour_BC @ WEIGHTS_CK + metadata_BM.double().numpy() @ WEIGHTS_MK
    for last in (images_BCHW, images_BCHW.to(memory_format=torch.channels_last)):
        np.testing.assert_allclose(model(last, metadata_BM), expected, rtol=1e-5)
    # Where nothing is known: age 0 and a flag.
    np.testing.assert_allclose(model(images_BCHW), colour_BC @ WEIGHTS_CK + [0, 7], rtol=1e-5)


def test_an_export_is_not_exported_again(file: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{file}: is an export already"):
        onnx_graph(load_model(file, torch.device("cpu")), opset=18)


def test_fractions_of_grey_values_are_rounded(file: Path) -> None:
    model = load_model(file, torch.device("cpu")).model
    between = torch.tensor([-0.4, 0.6, 254.6, 255.3]).expand(1, 3, 4, 4)
    whole = torch.tensor([0, 1, 255, 255], dtype=torch.uint8).expand(1, 3, 4, 4)
    assert torch.equal(model(between), model(whole))


@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_one_changed_bit_anywhere_is_found(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file}: .*(damaged|not one of this project)"):
        read_onnx(file)


def test_changed_weights_with_the_old_sum_are_refused(file: Path) -> None:
    changed = onnx.load(file)
    changed.graph.initializer[1].raw_data = (2 * WEIGHTS_CK).tobytes()
    file.write_bytes(changed.SerializeToString())
    with pytest.raises(CheckpointError, match="its sha256 does not match"):
        read_onnx(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "damaged or not an ONNX file"),
        (graph().SerializeToString(), "without the entry 'dermalyze'"),
        (sealed(graph(), HEADER | {"format_version": 99}), "in format 99 by a newer version"),
    ],
    ids=["no graph", "another's", "newer"],
)
def test_what_is_not_such_a_file_is_refused(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_onnx(file)


def test_a_graph_that_cannot_run_is_refused() -> None:
    broken = graph()
    broken.graph.node[0].op_type = "Cost"
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot run this graph"):
        OnnxNetwork(content=broken.SerializeToString(), unknown_M=[0.0, 1.0], threads=1)


def test_a_missing_package_is_named_with_its_mend() -> None:
    with pytest.raises(ConfigError, match=r"^nowhere is not installed.*dermalyze\[export\]"):
        onnx_file.needed("nowhere")


def test_exports_are_told_from_their_model(file: Path) -> None:
    from dermalyze.inference.identity import export_formats, trained_as

    facts = read_facts(file)
    known = dict.fromkeys(("epoch", "validation_metrics", "seed", "split_fingerprint"), 1)
    model = replace(facts, header=known)
    export = replace(facts, header=known | {"export": {"format": "onnx_int8"}})
    assert trained_as([model, export]) == [known, known | {"export": "onnx_int8"}]
    assert export_formats([model]) == []
    assert export_formats([export, model, export]) == ["onnx_int8"]


def test_a_number_format_that_has_no_effect_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(sealed(graph(), HEADER))
    facts = read_facts(path)
    for amp in ("auto", "off"):
        refuse_number_format(amp, [facts])
    with pytest.raises(ConfigError) as refused:
        refuse_number_format("bf16", [facts])
    assert str(refused.value) == (
        f"amp=bf16: has no effect on {path}, which computes as it was exported. Leave it out, or "
        "use the checkpoint that it was made of."
    )
    refuse_number_format("bf16", [replace(facts, path=tmp_path / "best.safetensors")])
