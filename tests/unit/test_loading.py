from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from small_training import make_state

from dermalyze.checkpoint_file import BEST, LATEST, read_checkpoint, write_checkpoint
from dermalyze.compute import Precision
from dermalyze.config import CONF_DIR
from dermalyze.data.batches import ImageStore
from dermalyze.data.decode import PreprocessSpec
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.engine.checkpoints import RunCheckpoints
from dermalyze.errors import CheckpointError, DataError
from dermalyze.inference.forward import predict_probabilities
from dermalyze.inference.loading import best_checkpoint, load_model
from dermalyze.models.classifier import Classifier
from dermalyze.models.colour_constancy import shades_of_grey
from dermalyze.multirun_folder import numbered_jobs

CPU = torch.device("cpu")
SIZE = 64
CLASSES = ["bcc", "mel", "nv"]
HEADS = sorted((CONF_DIR / "model" / "head").glob("*.yaml"))
NO_METADATA = CONF_DIR / "model" / "metadata" / "none.yaml"
PIXELS_ALONE = MetadataEncoding(columns=(), age=(0.0, 1.0), categories={})
TOLD = MetadataEncoding(
    columns=("age", "sex", "localization"),
    age=(50.0, 10.0),
    categories={"sex": ("female", "male"), "localization": ("back", "face")},
)
FUSIONS = sorted({*NO_METADATA.parent.glob("*.yaml")} - {NO_METADATA})


def description(head: Path = HEADS[0], metadata: Path = NO_METADATA) -> dict[str, Any]:
    """Return the model part of a header, as a run with these options writes it."""
    return {
        "_target_": "dermalyze.models.classifier.build_classifier",
        "backbone": "test_resnet",
        "pretrained": False,
        "weights_file": None,
        "colour_constancy": "none",
        "metadata": OmegaConf.to_container(OmegaConf.load(metadata)),
        "head": OmegaConf.to_container(OmegaConf.load(head)),
    }


def header(model: object = None, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "best",
        "model": description() if model is None else model,
        "classes": CLASSES,
        "preprocess": PreprocessSpec(image_size=SIZE).as_dict(),
        "metadata": PIXELS_ALONE.as_dict(),
        "train_lesions": ["HAM_1", "HAM_2"],
        "val_lesions": ["HAM_3"],
        **changes,
    }


def trained(model: dict[str, Any], encoding: MetadataEncoding = PIXELS_ALONE) -> Classifier:
    """Build a model with weights and statistics of its own."""
    torch.manual_seed(4)
    network: Classifier = instantiate(
        model,
        num_classes=len(CLASSES),
        input_size=SIZE,
        unknown_metadata=encoding.unknown,
        _convert_="all",
    )
    for tensor in network.state_dict().values():
        if tensor.dtype.is_floating_point:
            tensor.add_((torch.rand_like(tensor) - 0.5) / 10)
    return network


IMAGES = torch.randint(
    0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.mark.parametrize("head", HEADS, ids=lambda path: path.stem)
def test_a_saved_best_model_gives_equal_logits(tmp_path, head):
    network = trained(description(head))
    state = make_state(model=network)
    state.best_record = {"epoch": 3, "val/loss": 0.5, "train/loss": 0.1}
    about = {key: value for key, value in header(description(head)).items() if key != "kind"}
    RunCheckpoints(folder=tmp_path, about=about).save_best(state, network, "raw")

    torch.manual_seed(5)
    loaded = load_model(best_checkpoint(str(tmp_path)), CPU)
    with torch.inference_mode():
        expected = network.eval()(IMAGES)
        assert torch.equal(loaded.model(IMAGES), expected)
    assert expected.std(dim=0).min() > 0
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.classes == tuple(CLASSES)
    assert loaded.preprocess == PreprocessSpec(image_size=SIZE)
    assert loaded.seen_lesions == {"HAM_1", "HAM_2", "HAM_3"}
    assert loaded.header["validation_metrics"] == {"val/loss": 0.5}
    assert loaded.path == tmp_path / BEST


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda path: path.stem)
def test_a_saved_model_with_metadata_gives_equal_probabilities(path, fusion):
    """On images of which all, some and nothing is known, through the one forward path."""
    network = trained(description(metadata=fusion), TOLD).eval()
    model = description(metadata=fusion)
    write_checkpoint(path, network.state_dict(), header(model, metadata=TOLD.as_dict()))
    loaded = load_model(path, CPU)
    assert loaded.encoding == TOLD
    frame = pd.DataFrame(
        {
            "age": [40.0, np.nan, 75.0, np.nan],
            "sex": ["male", "female", "unknown", "unknown"],
            "localization": ["back", "ear", "face", "unknown"],
        }
    )

    def probabilities(model: torch.nn.Module, metadata_NM: np.ndarray | None) -> np.ndarray:
        store = ImageStore(
            images_NHWC=IMAGES.permute(0, 2, 3, 1).contiguous().numpy(),
            image_ids=list("abcd"),
            device=CPU,
            metadata_NM=metadata_NM,
        )
        rows = np.array([2, 0, 3, 1])
        precision = Precision(CPU, None)
        return predict_probabilities(model, store, rows, batch_size=3, precision=precision)

    told = probabilities(loaded.model, loaded.encoding.numbers(frame))
    assert np.array_equal(told, probabilities(network, TOLD.numbers(frame)))
    without = probabilities(loaded.model, None)
    nothing = frame.assign(age=np.nan, sex="unknown", localization="unknown")
    assert np.array_equal(without, probabilities(loaded.model, TOLD.numbers(nothing)))
    assert np.array_equal(told[2], without[2])  # of this image nothing is known anyhow
    assert np.abs(told - without).max(axis=1)[[0, 1, 3]].min() > 1e-4


def test_an_encoding_of_other_columns_than_the_models_is_refused(path):
    model, weights = description(metadata=FUSIONS[0]), trained(description())
    for metadata in (PIXELS_ALONE, replace(TOLD, columns=("sex", "age", "localization"))):
        write_checkpoint(path, weights.state_dict(), header(model, metadata=metadata.as_dict()))
        with pytest.raises(CheckpointError, match=r"columns=\['age', 'sex', 'localization'\]: "):
            load_model(path, CPU)
    write_checkpoint(path, weights.state_dict(), header(metadata=TOLD.as_dict()))
    with pytest.raises(CheckpointError, match="this model takes no metadata"):
        load_model(path, CPU)


def test_an_encoding_that_leaks_the_label_is_refused(path):
    leaky = TOLD.as_dict() | {"columns": ["age", "sex", "dx_type"]}
    write_checkpoint(path, trained(description()).state_dict(), header(metadata=leaky))
    with pytest.raises(DataError, match=r"metadata encoding .*dx_type"):
        load_model(path, CPU)


def test_colour_constancy_cannot_be_forgotten(path: Path) -> None:
    """The header alone decides; the weights are the same."""
    weights, reddish = trained(description()).eval(), IMAGES.clone()
    reddish[:, 2] //= 2
    features = {}
    with torch.inference_mode():
        for method in ("none", "shades_of_grey"):
            model = description() | {"colour_constancy": method}
            write_checkpoint(path, weights.state_dict(), header(model))
            features[method] = load_model(path, CPU).model.feature_map(reddish)
        balanced = weights.feature_map(shades_of_grey(reddish.float()))
        assert torch.equal(features["none"], weights.feature_map(reddish))
        torch.testing.assert_close(features["shades_of_grey"], balanced)
    assert (features["none"] - balanced).abs().max() > 0.1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / BEST


def refused(path: Path, changed: dict[str, Any]) -> str:
    """Write the weights of a good model under a changed header; return why it is refused."""
    write_checkpoint(path, trained(description()).state_dict(), changed)
    read_checkpoint(path)  # the file itself is in order
    with pytest.raises(CheckpointError) as caught:
        load_model(path, CPU)
    assert str(path) in str(caught.value)
    return str(caught.value)


def harmful(target: object, file: Path) -> list[dict[str, Any]]:
    """Return descriptions that ask to run `target` on `file`, at every place there is."""
    call = {"_target_": target, "_args_": [f"touch {file}"]}
    top = {**description(), **call}
    metadata = {**description(), "metadata": call}
    fusion = description(metadata=FUSIONS[0])
    fusion["metadata"]["fusion"] = {**call, "_partial_": True}
    head = {**description(), "head": call}
    partial_head = {**description(), "head": {**call, "_partial_": True}}
    below_head, in_list, as_name = description(), description(), description()
    below_head["head"]["dropout"] = call
    in_list["head"]["hidden"] = [16, [call]]
    as_name["backbone"] = {"name": call}
    return [top, metadata, fusion, head, partial_head, below_head, in_list, as_name]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "builtins.exec",
        "pathlib.Path.touch",
        "torch.load",
        "torch.hub.load",
        "hydra.utils.instantiate",
        "dermalyze.models.backbone.Backbone",
        "dermalyze.models.heads.simple.nn.Linear",
        ["os.system"],
        {"_target_": "os.system"},
        7,
        None,
    ],
)
def test_code_that_is_no_model_option_is_never_run(path, tmp_path, monkeypatch, target):
    ran: list[object] = []
    monkeypatch.setattr("os.system", lambda *args: ran.append(args))
    monkeypatch.setattr("subprocess.run", lambda *args, **options: ran.append(args))
    file = tmp_path / "ran"
    for model in harmful(target, file):
        why = refused(path, header(model))
        assert "Nothing was run" in why
        assert "_target_" in why
    assert ran == []
    assert not file.exists()


def test_the_refusal_names_the_place_and_the_options(path):
    model = description()
    model["head"]["hidden"] = [{"_target_": "os.system"}]
    why = refused(path, header(model))
    assert "model.head.hidden[0]._target_=os.system" in why
    assert "dermalyze.models.heads.acrnn.AcrnnHead" in why
    assert "dermalyze.models.metadata.film.Film" in why


@pytest.mark.parametrize(
    "more",
    [
        {"pretrained": True},
        {"pretrained": "yes"},
        {"weights_file": "/etc/passwd"},
        {"weights_file": ""},
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_header_cannot_ask_for_other_files(path, monkeypatch, more, nested):
    model = {**description(), **more}
    if nested:
        model = {**description(), "head": model}
    write_checkpoint(path, trained(description()).state_dict(), header(model))
    monkeypatch.setattr("timm.create_model", lambda *args, **options: pytest.fail("was built"))
    with pytest.raises(CheckpointError, match=r"asks to load other files.*Nothing was loaded"):
        load_model(path, CPU)


@pytest.mark.parametrize("place", ["backbone", "dropout", "key"])
def test_a_header_cannot_read_the_environment(path, place):
    model = description(CONF_DIR / "model" / "head" / "simple.yaml")
    if place == "backbone":
        model["backbone"] = "${oc.env:HOME}"
    elif place == "dropout":
        model["head"]["dropout"] = "${oc.env:HOME}"
    else:
        model["head"]["${oc.env:HOME}"] = 1
    assert "holds interpolations. Nothing was resolved" in refused(path, header(model))


@pytest.mark.parametrize("model", [[], "text", 7, {}, {"backbone": "test_resnet"}])
def test_a_header_without_a_model_is_refused(path, model):
    assert "describes no model" in refused(path, header(model))


@pytest.mark.parametrize("missing", ["model", "classes", "preprocess", "metadata"])
def test_an_incomplete_header_is_refused(path, missing):
    changed = header()
    del changed[missing]
    assert f"header is incomplete (KeyError('{missing}'))" in refused(path, changed)
    if missing == "metadata":
        with pytest.raises(DataError, match="metadata encoding None"):
            refused(path, header(metadata=None))
    elif missing != "model":
        assert "header is incomplete (TypeError" in refused(path, header(**{missing: None}))


def _without(key: str) -> dict[str, Any]:
    model = description()
    del model[key]
    return model


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (_without("backbone"), "backbone"),
        (_without("head"), "head"),
        ({**description(), "colour": 3}, "colour"),
        ({**description(), "backbone": "test_resnot"}, "Did you mean 'test_resnet'"),
        ({**description(), "backbone": "hf-hub:someone/something"}, "has no such model"),
        ({**description(), "backbone": "local-dir:/tmp"}, "has no such model"),
        ({**description(), "head": {"no": "target"}}, "not callable"),
        ({**description(), "head": None}, "not callable"),
        (description()["head"] | {"_partial_": False}, "AcrnnHead"),
        (description()["head"], "describes no classifier"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(path, model, problem):
    assert problem in refused(path, header(copy.deepcopy(model)))


def test_weights_of_another_description_are_refused(path):
    other = description()
    other["head"]["channels"] = 5
    assert "weights and model description differ" in refused(path, header(other))
    assert "weights and model description differ" in refused(path, header(classes=["a", "b"]))


def test_missing_weights_are_refused(path):
    tensors = trained(description()).state_dict()
    del tensors["head.classifier.bias"]
    write_checkpoint(path, tensors, header())
    with pytest.raises(CheckpointError, match=r"Missing key.*head\.classifier\.bias"):
        load_model(path, CPU)


def test_pixels_of_another_version_are_refused(path):
    spec = PreprocessSpec(image_size=SIZE).as_dict()
    changed = header(preprocess=spec | {"decode_version": spec["decode_version"] + 1})
    write_checkpoint(path, trained(description()).state_dict(), changed)
    with pytest.raises(DataError, match="decode_version"):
        load_model(path, CPU)


@pytest.mark.parametrize("kind", ["latest", None, 3])
def test_a_training_state_is_no_model_to_predict_with(path, kind):
    why = refused(path, header(kind=kind))
    assert "holds a training state" in why
    assert BEST in why


def test_damage_is_told(path):
    write_checkpoint(path, trained(description()).state_dict(), header())
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256 does not match"):
        load_model(path, CPU)


def test_a_multirun_numbers_its_jobs_in_decimals(tmp_path):
    for name in ("10", "2", "²", "x"):
        (tmp_path / name).mkdir()
    assert [job.name for job in numbered_jobs(tmp_path)] == ["2", "10"]


def test_where_the_best_checkpoint_is_looked_for(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for given, looked_for in ((tmp_path / "nowhere", tmp_path / "nowhere"), (run, run / BEST)):
        with pytest.raises(CheckpointError) as caught:
            best_checkpoint(str(given))
        assert f"checkpoint={given}: {looked_for} does not exist" in str(caught.value)
        assert "outputs/train/" in str(caught.value)
    (run / LATEST).write_bytes(b"")
    with pytest.raises(CheckpointError, match="does not exist"):
        best_checkpoint(str(run))
    (run / BEST).write_bytes(b"")
    assert best_checkpoint(str(run)) == run / BEST
    assert best_checkpoint(str(run / LATEST)) == run / LATEST
    with pytest.raises(CheckpointError, match="lists several models, and one is needed"):
        best_checkpoint(str(tmp_path / "ensemble.yaml"))
