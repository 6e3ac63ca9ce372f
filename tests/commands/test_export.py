"""A run's model as a file for other programs: what it says there is what it says here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy.special import softmax

from dermalyze.checkpoint_file import BEST
from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.data.decode import PreprocessSpec, decode
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.exporting.graph import (
    HEADER,
    ProgramNetwork,
    onnx_graph,
    program_file,
    torch_export,
)
from dermalyze.inference.loading import TrainedModel, load_model, onnx_model, read_facts
from dermalyze.taxonomy import HAM10000_CODES

pytestmark = pytest.mark.slow

PIXELS_ALONE = MetadataEncoding(columns=(), age=(0.0, 1.0), categories={})
TOLD = MetadataEncoding(
    columns=("age", "sex", "localization"),
    age=(50.0, 10.0),
    categories={"sex": ("female", "male"), "localization": ("back", "face")},
)
GROUPS = ("model/head", "model/metadata")
COLUMNS = [f"probability_{code}" for code in HAM10000_CODES]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run whose results are its own: what others wrote into it is left out."""
    return shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))


def evaluated(python, file: Path, *changes: str) -> pd.DataFrame:
    """Return the predictions of the test images, which lie in a folder of the file's own."""
    before = {*file.parent.glob("evaluation/*")}
    shown = ("track=false", "device=cpu", "intervals.draws=10")
    python("-m", "dermalyze.evaluate", f"checkpoint={file}", *shown, *changes)
    (folder,) = {*file.parent.glob("evaluation/*")} - before
    return pd.read_csv(folder / "predictions.csv")


def test_onnx_says_what_the_checkpoint_says(run, python, phantoms):
    done = python("-m", "dermalyze.export", f"checkpoint={run}", "threads=1")
    assert f"made {run / 'model.onnx'}" in done.stdout
    assert "never for diagnosis" in done.stdout
    file, model = read_facts(run / "model.onnx"), read_facts(run / BEST)
    assert file.header["export"]["format"] == "onnx"
    assert file.header["export"]["largest_difference"] < 1e-4
    assert {**file.header, "export": None} == {**model.header, "export": None}

    one, other = (evaluated(python, run / name, "tta=medium") for name in (BEST, "model.onnx"))
    np.testing.assert_allclose(one[COLUMNS], other[COLUMNS], rtol=0, atol=1e-5)
    assert not one[COLUMNS].equals(other[COLUMNS])  # computed twice, in two ways

    # Without torch or anything of this project but decoded pixels.
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["dermalyze"])
    spec = PreprocessSpec(image_size=told["preprocess"]["image_size"])
    found = {path.stem: path for path in phantoms.rglob("*.jpg")}
    plain = evaluated(python, run / BEST, "tta=off")
    for count in (1, 3):
        pixels_NHWC = np.stack([decode(found[name], spec) for name in plain["image_id"][:count]])
        (logits_NK,) = session.run(["logits"], {"images": pixels_NHWC.transpose(0, 3, 1, 2)})
        np.testing.assert_allclose(softmax(logits_NK, axis=1), plain[COLUMNS][:count], atol=1e-5)


def test_an_export_that_says_something_else_is_refused_and_not_written(run, python):
    """Sums in another order differ in the last digits: with this limit that is too much."""
    changes = ("limits.probability=1e-12", "format=torch_export", "threads=1")
    refused = python("-m", "dermalyze.export", f"checkpoint={run}", *changes, expect=2)
    assert "above limits.probability=1e-12. Nothing was written" in refused.stdout
    assert not (run / "model.pt2").exists()


@pytest.mark.thorough
def test_every_format_is_written_and_read_back(run, python):
    small = ("format=onnx_int8", "threads=1", "int8.images=20", "limits.agreement=0.5")
    made = python("-m", "dermalyze.export", f"checkpoint={run}", *small, "int8.method=minmax")
    assert "layers left in float32" in made.stdout
    assert read_facts(run / "model_int8.onnx").header["export"]["format"] == "onnx_int8"
    assert (run / "model_int8.onnx").stat().st_size < (run / BEST).stat().st_size
    plain = evaluated(python, run / BEST)
    int8 = evaluated(python, run / "model_int8.onnx")
    assert 0 < np.abs(plain[COLUMNS] - int8[COLUMNS]).to_numpy().max() < 0.5

    for form, name in (("safetensors", "model.safetensors"), ("torch_export", "model.pt2")):
        python("-m", "dermalyze.export", f"checkpoint={run}", f"format={form}", "threads=1")
        assert (run / name).is_file()
    again = evaluated(python, run / "model.safetensors")
    np.testing.assert_allclose(plain[COLUMNS], again[COLUMNS], rtol=0, atol=1e-12)
    more = {HEADER: ""}
    program = torch.export.load(run / "model.pt2", extra_files=more).module()
    assert json.loads(more[HEADER])["classes"] == list(HAM10000_CODES)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    model = load_model(run / BEST, torch.device("cpu")).model
    torch.testing.assert_close(program(images), model(images), rtol=0, atol=1e-5)


def options() -> list[list[str]]:
    """Every head, every fusion, and a network of each kind."""
    of = {group: sorted(p.stem for p in (CONF_DIR / group).glob("*.yaml")) for group in GROUPS}
    return [
        *(
            [f"{group}={name}", "model.backbone=test_resnet"]
            for group in GROUPS
            for name in of[group]
        ),
        *(
            [f"model.backbone={name}"]
            for name in ("test_vit", "test_efficientnet", "test_convnext")
        ),
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("chosen", options(), ids=" ".join)
def test_every_part_of_a_model_can_be_exported(chosen: list[str]) -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", ["model=timm", "model.pretrained=false", *chosen])
    fused = cfg.model.metadata.columns
    encoding = TOLD if fused else PIXELS_ALONE
    width = sum(len(numbers) for numbers in encoding.unknown.values())
    torch.manual_seed(0)
    model = instantiate(
        cfg.model,
        num_classes=7,
        input_size=160,
        unknown_metadata=encoding.unknown,
        _convert_="all",
    ).eval()
    spec = PreprocessSpec(image_size=160)
    header = {"disclaimer": ""}
    trained = TrainedModel(None, HAM10000_CODES, spec, encoding, header, Path("none"), model)
    graph = onnx_model(onnx_graph(trained, opset=18).SerializeToString(), trained).model
    program = ProgramNetwork(program_file(torch_export(trained), header))
    for count in (1, 3):
        images = torch.randint(0, 256, (count, 3, 160, 160), dtype=torch.uint8)
        inputs = (images, torch.rand(count, width)) if fused else (images,)
        with torch.inference_mode():
            expected = model(*inputs)
            torch.testing.assert_close(graph(*inputs), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(program(*inputs), expected, rtol=1e-4, atol=1e-5)
            if fused:
                torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5)
