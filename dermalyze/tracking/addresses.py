"""What an address of a model in MLflow stands for: the run and the file of a checkpoint.

`runs:/RUN_ID` is the run's best checkpoint, `models:/NAME/VERSION` and `models:/NAME@ALIAS` are
registered ones, `models:/m-ID` is any logged model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dermalyze.checkpoint_file import BEST
from dermalyze.errors import CheckpointError
from dermalyze.tracking.logged_model import NAME, PLACE_TAG, SHA256_TAG
from dermalyze.tracking.mlflow_store import FOLDER_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

_SCHEMES = ("runs:/", "models:/")
_RUN = re.compile(rf"runs:/(?P<run>\w+)(/{NAME})?")
_MODEL_ID = re.compile(r"\bm-[0-9a-f]{32}\b")
_MODEL = re.compile(rf"models:/(?P<id>{_MODEL_ID.pattern})")
_VERSION = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>\d+)")
_ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")


@dataclass(frozen=True)
class Logged:
    """A checkpoint in MLflow.

    artifact: MLflow's own address of its file.
    sha256: as the file says of itself.
    run: that trained it; None where it is gone.
    """

    artifact: str
    sha256: str
    run: Run | None


def is_address(checkpoint: str) -> bool:
    """Return whether this names something in MLflow, not a file or folder."""
    return checkpoint.startswith(_SCHEMES)


def logged_at(client: MlflowClient, address: str) -> Logged:
    """Return the checkpoint that an address stands for.

    Raises:
        CheckpointError: not an address, or no checkpoint of this project is there.
        MlflowException: there is no such run or model, or the store does not answer.
    """
    if match := _RUN.fullmatch(address):
        return _of_run(client, client.get_run(match["run"]))
    if match := _MODEL.fullmatch(address):
        return _of_model(client, client.get_logged_model(match["id"]))
    if match := _VERSION.fullmatch(address):
        version = client.get_model_version(match["name"], match["version"])
    elif match := _ALIAS.fullmatch(address):
        version = client.get_model_version_by_alias(match["name"], match["alias"])
    else:
        raise CheckpointError(
            "no such form of an address. There are runs:/RUN_ID, models:/NAME/VERSION, "
            "models:/NAME@ALIAS and models:/m-ID"
        )
    # A version of an SQL store names its model by the place of its files alone.
    model = _MODEL_ID.search(version.source or "")
    if model is None:
        raise CheckpointError(f"version {version.version} is no model of this project")
    return _of_model(client, client.get_logged_model(model[0]))


def _of_run(client: MlflowClient, run: Run) -> Logged:
    place = run.data.tags.get(PLACE_TAG)
    if place is None:
        raise CheckpointError(
            f"the run, {run.info.status}, has logged no checkpoint, which a run of this project "
            f"does at its end. Resume it, or give its folder ({run.data.tags.get(FOLDER_TAG)})"
        )
    if place.startswith("m-"):
        return _of_model(client, client.get_logged_model(place))
    return Logged(f"{run.info.artifact_uri}/{place}", run.data.tags[SHA256_TAG], run)


def _of_model(client: MlflowClient, model: LoggedModel) -> Logged:
    from mlflow.exceptions import MlflowException

    if SHA256_TAG not in model.tags:
        raise CheckpointError(f"{model.model_id} is no model of this project")
    run = None
    try:
        run = client.get_run(model.source_run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return Logged(f"{model.artifact_location}/artifacts/{BEST}", model.tags[SHA256_TAG], run)
