"""A run's model in MLflow: a checkpoint that the registry keeps and `mlflow models serve` answers.

It is a pyfunc from code: beside the checkpoint lies a file of Python that says how to predict, and
nothing is pickled.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from dermalyze.checkpoint_file import Header, read_seal
from dermalyze.data.phantom_drawing import draw_lesion, photograph
from dermalyze.randomness import Purpose, generator

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

NAME = "model"  # as in runs:/RUN_ID/model
ARTIFACT = "checkpoint"  # what the code finds its checkpoint by
SHA256_TAG = "dermalyze.checkpoint_sha256"  # of a run and of a model, as in the checkpoint itself
PLACE_TAG = "dermalyze.checkpoint"  # of a run: below its artifacts, or the id of its model

# What goes in and comes out; a probability for each class comes beside.
IMAGE = "image"
PROBABILITY = "probability_"
UNCERTAINTY = ("predictive_entropy", "margin")

# What a prediction depends on, of the packages whose versions a checkpoint names.
_PACKAGES = ("dermalyze", "torch", "torchvision", "timm", "numpy", "pandas", "pillow", "mlflow")


def log_model(client: MlflowClient, run_id: str, checkpoint: Path, code: Path) -> str:
    """Record a checkpoint as a model of the run; return its id, as in `models:/ID`.

    The model that holds this checkpoint already is taken as it is, or finished, so that a call that
    broke off can be repeated.

    Args:
        checkpoint: to predict with.
        code: the file of Python that MLflow runs to predict.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.exceptions import MlflowException

    seal = read_seal(checkpoint)
    model = _begun(client, run_id, seal.sha256)
    if model is None:
        model = client.create_logged_model(
            client.get_run(run_id).info.experiment_id,
            name=NAME,
            source_run_id=run_id,
            tags={SHA256_TAG: seal.sha256},
        )
        client.log_outputs(run_id, models=[LoggedModelOutput(model.model_id, step=0)])
    if model.status != LoggedModelStatus.READY:
        with TemporaryDirectory() as folder:
            made = Path(folder) / NAME
            try:
                _save(made, model, run_id, checkpoint, code, seal.header)
            except Exception as error:  # not of the store, so that asking again cannot help
                raise MlflowException.invalid_parameter_value(
                    f"the model cannot be made: {error}"
                ) from error
            client.log_model_artifacts(model.model_id, str(made))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def register(client: MlflowClient, run_id: str, model_id: str, name: str) -> None:
    """Make the model the newest version of a registered one, unless it is a version already."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = client.get_logged_model(model_id).artifact_location
    versions = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    if source not in [version.source for version in versions]:
        client.create_model_version(name, source, run_id, model_id=model_id)


def signature(classes: Sequence[str], columns: Sequence[str]) -> ModelSignature:
    """Return what a model takes and gives.

    MLflow takes the bytes of a binary column in base64 where they come as JSON.

    Args:
        classes: in the model's order.
        columns: metadata that the model can be told, each of which may be left out.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    told = [ColSpec("double" if name == "age" else "string", name, False) for name in columns]
    numbers = ["confidence", *(PROBABILITY + name for name in classes), *UNCERTAINTY]
    return ModelSignature(
        inputs=Schema([ColSpec("binary", IMAGE), *told]),
        outputs=Schema(
            [
                ColSpec("string", "predicted_class"),
                *(ColSpec("double", name) for name in numbers),
                ColSpec("string", "disclaimer"),
            ]
        ),
    )


def example() -> pd.DataFrame:
    """Return an input: the JPEG of a drawn lesion, which shows no patient."""
    drawn = draw_lesion(generator(0, Purpose.PHANTOM, 0, 1), "nv", difficulty=0.0, side=96)
    picture = photograph(generator(0, Purpose.PHANTOM, 0, 2), drawn, side=96)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return pd.DataFrame({IMAGE: [file.getvalue()]})


def requirements(software: dict[str, Any]) -> list[str]:
    """Return the versions to predict with, those that trained, as pip takes them.

    A suffix such as +cpu is left out: it names a build that is only found at its own index.
    """
    versions = {name: str(software[name]).partition("+")[0] for name in _PACKAGES}
    return [f"{name}=={v}" for name, v in versions.items() if v != "not installed"]


def _begun(client: MlflowClient, run_id: str, sha256: str) -> LoggedModel | None:
    outputs = client.get_run(run_id).outputs
    for output in outputs.model_outputs if outputs else []:
        model = client.get_logged_model(output.model_id)
        if model.tags.get(SHA256_TAG) == sha256:
            return model
    return None


def _save(
    folder: Path, model: LoggedModel, run_id: str, checkpoint: Path, code: Path, header: Header
) -> None:
    with warnings.catch_warnings(), _packages_not_listed():
        warnings.simplefilter("ignore")  # of MLflow's own types and tables
        import mlflow.pyfunc  # in full: `from mlflow import pyfunc` loads it at its first use
        from mlflow.models import Model

        logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # its steps are no news
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(code),
            artifacts={ARTIFACT: str(checkpoint)},
            signature=signature(header["classes"], header["metadata"]["columns"]),
            input_example=example(),
            pip_requirements=requirements(header["software"]),
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                run_id=run_id,
                model_id=model.model_id,
                model_uuid=model.model_id,
            ),
        )


@contextmanager
def _packages_not_listed() -> Iterator[None]:
    """Spare seconds in which MLflow lists the files of every package that is installed.

    It would look up what each of the requirements is called when it is imported, to warn of
    versions that are not installed; the requirements name those that are.
    """
    from mlflow.utils import requirements_utils

    kept = requirements_utils._MODULES_TO_PACKAGES
    requirements_utils._MODULES_TO_PACKAGES = {}
    try:
        yield
    finally:
        requirements_utils._MODULES_TO_PACKAGES = kept
