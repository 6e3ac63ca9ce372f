"""Checkpoints given by an address in MLflow."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.utils import requirements_utils
from omegaconf import OmegaConf

from dermalyze.checkpoint_file import BEST, read_checkpoint, write_checkpoint
from dermalyze.errors import CheckpointError
from dermalyze.run_folder import load_config, software
from dermalyze.tracking.logged_model import register, requirements
from dermalyze.tracking.mlflow_tracker import MlflowTracker
from dermalyze.tracking.run_download import local_checkpoints
from dermalyze.tracking.run_identity import read_identity

CONFIG: dict[str, Any] = {
    "data": {
        "root": "${oc.env:DERMALYZE_HAM10000,data/ham10000}",
        "source": {"_target_": "dermalyze.data.table.read_ham10000", "root": "${data.root}"},
    },
    "tracking": {"uri": '${oc.env:MLFLOW_TRACKING_URI,"sqlite:///${paths.outputs}/mlflow.db"}'},
    "paths": {"outputs": "outputs", "cache": "${paths.outputs}/cache"},
}
FILES = {
    "run.json": '{"working_directory": "/somewhere"}',
    "split.json": '{"fingerprint": "0f"}',
    "train_split.csv": "image_id,lesion_id,dx\nI1,L1,nv\n",
    "val_split.csv": "image_id,lesion_id,dx\nI2,L2,nv\n",
    "test_split.csv": "image_id,lesion_id,dx\nI3,L3,nv\n",
}
HEADER: dict[str, Any] = {
    "kind": "best",
    "classes": ["mel", "nv"],
    "metadata": {"columns": ["age", "sex"]},
    "software": software(device="cpu", threads=1, precision="off"),
}
# A model that is nothing but its file: what MLflow keeps and gives back is looked at, not told.
CODE = """
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Silent(PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        raise NotImplementedError

set_model(Silent())
"""


def a_run(
    parent: Path,
    uri: str,
    config: dict[str, Any] = CONFIG,
    log_model: bool = False,
    register_as: str | None = None,
) -> Path:
    """Return the folder of a run that has ended, with its checkpoint logged."""
    folder = parent / "run"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "config_redacted.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (folder / "config.yaml").write_text("secret: kept at home")
    write_checkpoint(folder / BEST, {"weight": torch.arange(6.0)}, HEADER)
    (parent / "code.py").write_text(CODE)
    tracker = MlflowTracker(
        uri=uri, experiment="skin", log_model=log_model, register_as=register_as
    )
    tracker.start(name="run", folder=folder, parameters={}, tags={})
    for name in ("config_redacted.yaml", *FILES):
        tracker.log_artifact(folder / name)
    tracker.log_checkpoint(folder / BEST, code=parent / "code.py")
    tracker.finish("FINISHED")
    return folder


def run_id(folder: Path) -> str:
    identity = read_identity(folder)
    assert identity is not None
    return identity.run_id


def fetched(address: str, uri: str, parent: Path) -> Path:
    found = local_checkpoints(address, uri=uri, outputs=str(parent))
    assert isinstance(found, str)
    return Path(found)


def test_the_runs_own_folder_is_taken_where_it_is(uri: str, tmp_path: Path) -> None:
    folder = a_run(tmp_path, uri)
    assert fetched(f"runs:/{run_id(folder)}", uri, tmp_path) == folder
    assert not (tmp_path / "from_mlflow").exists()


def test_elsewhere_a_run_is_downloaded_once_with_its_split(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    folder = a_run(tmp_path, uri)
    address = f"runs:/{run_id(folder)}"
    shutil.move(folder, tmp_path / "moved")
    home = fetched(address, uri, tmp_path)
    assert home.parent == tmp_path / "from_mlflow"
    assert f"since the run's folder {folder} on" in caplog.text
    assert "data.root=DIR" in caplog.text
    names = {BEST, "config.yaml", "tracking.json", *FILES}
    assert {path.name for path in home.iterdir()} == names
    for name in {*FILES, BEST, "tracking.json"}:
        assert (home / name).read_bytes() == (tmp_path / "moved" / name).read_bytes(), name
    # As shared with others, and still open to the environment of whoever reads it.
    monkeypatch.setenv("DERMALYZE_HAM10000", "/here")
    assert load_config(home).data.source.root == "/here"

    before = {path: path.stat().st_mtime_ns for path in home.iterdir()}
    assert fetched(f"{address}/model", uri, tmp_path) == home
    assert {path: path.stat().st_mtime_ns for path in home.iterdir()} == before
    assert "was downloaded before" in caplog.text


def test_a_folder_that_was_used_again_is_not_taken_for_the_run(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = a_run(tmp_path, uri)
    logged = (folder / BEST).read_bytes()
    write_checkpoint(folder / BEST, {"weight": torch.zeros(6)}, HEADER)
    home = fetched(f"runs:/{run_id(folder)}", uri, tmp_path)
    assert home != folder
    assert (home / BEST).read_bytes() == logged
    assert f"its folder {folder} holds another checkpoint by now" in caplog.text

    # Another run in a folder of the same name: no word about it, it is just not this run's.
    first = run_id(folder)
    shutil.rmtree(folder)
    assert run_id(a_run(tmp_path, uri)) != first
    caplog.clear()
    assert fetched(f"runs:/{first}", uri, tmp_path) == home
    assert caplog.text == ""


def test_addresses_of_a_model_and_lists(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run's model, by its run, its id, its version, or an alias: one and the same folder."""
    folder = a_run(tmp_path, uri, log_model=True, register_as="skin lesions")
    assert caplog.text == ""
    client = MlflowClient(tracking_uri=uri)
    client.set_registered_model_alias("skin lesions", "champion", "1")
    (model,) = client.search_logged_models([client.get_run(run_id(folder)).info.experiment_id])
    addresses = [
        f"runs:/{run_id(folder)}",
        f"models:/{model.model_id}",
        "models:/skin lesions/1",
        "models:/skin lesions@champion",
    ]
    shutil.move(folder, tmp_path / "moved")
    homes = {fetched(address, uri, tmp_path) for address in addresses}
    assert len(homes) == 1
    (home,) = homes
    tensors, header = read_checkpoint(home / BEST)
    assert torch.equal(tensors["weight"], torch.arange(6.0))
    assert header["classes"] == ["mel", "nv"]
    found = local_checkpoints(["some/folder", addresses[0]], uri=uri, outputs=str(tmp_path))
    assert found == ["some/folder", str(home)]

    # Without its run a model is but a checkpoint.
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("DELETE FROM runs")
    database.close()
    assert {path.name for path in fetched(addresses[2], uri, tmp_path).iterdir()} == {BEST}


def test_a_model_holds_one_copy_of_the_checkpoint_and_no_pickle(uri: str, tmp_path: Path) -> None:
    folder = a_run(tmp_path, uri, log_model=True)
    artifacts = tmp_path / "mlartifacts"
    assert len(list(artifacts.rglob(BEST))) == 1
    assert [path for path in artifacts.rglob("*") if path.suffix in (".pkl", ".pt")] == []
    (model,) = artifacts.rglob("MLmodel")
    described = OmegaConf.load(model)
    assert described.flavors.python_function.model_code_path.endswith("/code.py")
    assert (model.parent / "code.py").read_text() == CODE
    assert "python_model" not in described.flavors.python_function
    assert described.run_id == run_id(folder)
    inputs = json.loads(described.signature.inputs)
    assert [(column["name"], column["type"], column["required"]) for column in inputs] == [
        ("image", "binary", True),
        ("age", "double", False),
        ("sex", "string", False),
    ]
    assert [column["name"] for column in json.loads(described.signature.outputs)] == [
        "predicted_class",
        "confidence",
        "probability_mel",
        "probability_nv",
        "predictive_entropy",
        "margin",
        "disclaimer",
    ]
    needed = (model.parent / "requirements.txt").read_text().splitlines()
    assert needed == requirements(HEADER["software"])
    assert f"torch=={metadata.version('torch').partition('+')[0]}" in needed
    for name in ("requirements.txt", "conda.yaml", "python_env.yaml", "MLmodel"):
        assert "http" not in (model.parent / name).read_text(), name


def test_a_model_is_made_without_listing_all_packages(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes longer than all the rest of recording a run."""
    monkeypatch.setattr("importlib_metadata.packages_distributions", pytest.fail)
    monkeypatch.setattr("mlflow.utils.requirements_utils._MODULES_TO_PACKAGES", None)
    folder = a_run(tmp_path, uri, log_model=True)
    assert caplog.text == ""
    assert len(list((tmp_path / "mlartifacts").rglob("MLmodel"))) == 1
    assert requirements_utils._MODULES_TO_PACKAGES is None
    assert fetched(f"runs:/{run_id(folder)}", uri, tmp_path) == folder


def test_the_same_checkpoint_is_logged_and_registered_once(uri: str, tmp_path: Path) -> None:
    folder = a_run(tmp_path, uri, log_model=True, register_as="lesions")
    again = MlflowTracker(uri=uri, experiment="skin", log_model=True, register_as="lesions")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_run(run_id(folder)).info.experiment_id

    def record() -> tuple[int, int]:
        again.start(name="run", folder=folder, parameters={}, tags={})
        again.log_checkpoint(folder / BEST, code=tmp_path / "code.py")
        again.finish("FINISHED")
        versions = client.search_model_versions("name='lesions'")
        return len(client.search_logged_models([experiment])), len(versions)

    assert record() == (1, 1)
    write_checkpoint(folder / BEST, {"weight": torch.zeros(6)}, HEADER)
    assert record() == (2, 2)
    assert fetched(f"runs:/{run_id(folder)}", uri, tmp_path) == folder


def test_a_model_that_cannot_be_made_holds_up_nothing(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = a_run(tmp_path, uri)
    tracker = MlflowTracker(uri=uri, experiment="skin", log_model=True, register_as=None)
    tracker.start(name="run", folder=folder, parameters={}, tags={})
    (tmp_path / "code.py").write_text("this is no Python")
    tracker.log_checkpoint(folder / BEST, code=tmp_path / "code.py")
    tracker.log_metrics({"val/loss": 0.5}, step=1)
    tracker.finish("FINISHED")
    run = MlflowClient(tracking_uri=uri).get_run(run_id(folder))
    assert (run.info.status, run.data.metrics["val/loss"]) == ("FINISHED", 0.5)
    assert "left out: the model cannot be made: Failed to run user code" in caplog.text


@pytest.mark.parametrize(
    "foreign",
    [
        {"_target_": "os.system", "command": "touch ran"},
        {"_target_": "${oc.decode:os.system}"},
        "${oc.create:'{_target_: os.system}'}",
        "${${paths.outputs}:'{_target_: os.system}'}",
    ],
)
def test_a_config_that_names_code_is_refused(foreign: Any, uri: str, tmp_path: Path) -> None:
    folder = a_run(tmp_path, uri, config=CONFIG | {"loss": foreign})
    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"asks to run .*Nothing was run"):
        fetched(f"runs:/{run_id(tmp_path / 'moved')}", uri, tmp_path)
    assert list((tmp_path / "from_mlflow").iterdir()) == []


def test_damage_in_the_store_is_told_and_leaves_nothing(uri: str, tmp_path: Path) -> None:
    folder = a_run(tmp_path, uri)
    address = f"runs:/{run_id(folder)}"
    shutil.move(folder, tmp_path / "moved")
    (kept,) = (tmp_path / "mlartifacts").rglob(BEST)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-3] + bytes(3))
    with pytest.raises(CheckpointError, match="sha256 does not match"):
        fetched(address, uri, tmp_path)
    write_checkpoint(kept, {"weight": torch.zeros(6)}, HEADER)
    with pytest.raises(CheckpointError, match="is not the file that was logged"):
        fetched(address, uri, tmp_path)
    assert list((tmp_path / "from_mlflow").iterdir()) == []
    kept.write_bytes(whole)
    assert fetched(address, uri, tmp_path).is_dir()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("runs:/0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef"),
        ("models:/nobody/1", "nobody"),
        ("models:/nobody@champion", "nobody"),
        ("models:/m-0123456789abcdef0123456789abcdef", "m-0123456789abcdef0123456789abcdef"),
        ("models:/nobody", "no such form of an address. There are runs:/RUN_ID, models:/NAME/"),
        ("runs:/abc/checkpoints/x", "no such form of an address"),
    ],
)
def test_an_address_of_nothing_is_refused(address: str, why: str, uri: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        fetched(address, uri, tmp_path)
    said = str(refused.value)
    assert f"checkpoint={address} in {uri}: " in said
    assert why in said.partition(f"{uri}: ")[2]
    assert "tracking_uri=ADDRESS" in said


def test_what_is_no_model_of_this_project_is_refused(uri: str, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=uri)
    run = client.create_run("0").info.run_id
    with pytest.raises(CheckpointError, match="the run, RUNNING, has logged no checkpoint"):
        fetched(f"runs:/{run}", uri, tmp_path)
    model = client.create_logged_model("0", name="other", source_run_id=run)
    register(client, run, model.model_id, "other")
    for address in (f"models:/{model.model_id}", "models:/other/1"):
        with pytest.raises(CheckpointError, match=f"{model.model_id} is no model of this project"):
            fetched(address, uri, tmp_path)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    nowhere = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(CheckpointError, match="there is no such file"):
        fetched("runs:/abc", nowhere, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match=r"Connection refused|Max retries"):
        fetched("runs:/abc", "http://127.0.0.1:9", tmp_path)


def test_mlflow_is_loaded_for_an_address_alone(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # to import it is an error now
    folders = ["a/b", "multirun/c"]
    store = {"uri": uri, "outputs": str(tmp_path)}
    assert local_checkpoints(folders, **store) == folders
    with pytest.raises(ImportError, match="mlflow"):
        local_checkpoints([*folders, "runs:/abc"], **store)


def test_versions_are_named_as_anyone_can_install_them() -> None:
    known = dict.fromkeys(software(device="cpu", threads=1, precision="off"), "1.0")
    named = requirements(known | {"torch": "2.14.1+cpu", "dermalyze": "not installed"})
    assert named == [
        "torch==2.14.1",
        "torchvision==1.0",
        "timm==1.0",
        "numpy==1.0",
        "pandas==1.0",
        "pillow==1.0",
        "mlflow==1.0",
    ]
