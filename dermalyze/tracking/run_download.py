"""Checkpoints that are given by an address in MLflow, brought here as folders of their runs.

MLflow is loaded where there is such an address, not before.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from dermalyze.checkpoint_file import BEST, read_checkpoint, read_seal
from dermalyze.config import CONF_DIR, nodes_with_target
from dermalyze.data.split_files import ABOUT, PARTS, UNUSED, table_name
from dermalyze.errors import CheckpointError
from dermalyze.run_folder import CONFIG, ORIGIN, SHARED_CONFIG
from dermalyze.tracking.addresses import Logged, is_address, logged_at
from dermalyze.tracking.mlflow_store import (
    FOLDER_TAG,
    HOST_TAG,
    absolute,
    connect,
    reason,
    relative,
)
from dermalyze.tracking.run_identity import RunIdentity, read_identity, write_identity

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

_SQLITE = "sqlite:///"


def local_checkpoints(
    checkpoint: str | Sequence[str], *, uri: str, outputs: str
) -> str | list[str]:
    """Return `checkpoint` with each address in MLflow replaced by a folder on this machine.

    That is the run's own folder where it is still here and holds that very checkpoint; else one
    below `outputs`, downloaded once, with what MLflow keeps of the run: its config and its split.

    Args:
        checkpoint: files, folders and addresses.
        uri: MLflow's tracking address, as `tracking.uri`.
        outputs: folder of all that is made; `from_mlflow` in it is for what is downloaded.

    Raises:
        CheckpointError: no such store, run or model; no checkpoint of this project there; a
            damaged one, or a config that would run foreign code.
    """
    folder = Path(outputs) / "from_mlflow"
    if isinstance(checkpoint, str):
        return _local(checkpoint, uri, folder) if is_address(checkpoint) else checkpoint
    return [_local(one, uri, folder) if is_address(one) else one for one in checkpoint]


def _local(address: str, uri: str, folder: Path) -> str:
    from mlflow.exceptions import MlflowException

    store = absolute(uri)
    try:
        if store.startswith(_SQLITE) and not Path(store.removeprefix(_SQLITE)).is_file():
            raise CheckpointError("there is no such file")  # connecting would make it
        client = connect(store)
        logged = logged_at(client, address)
        home = _own_folder(logged, address) or _downloaded(logged, address, client, store, folder)
    except (CheckpointError, MlflowException, OSError) as error:
        raise CheckpointError(
            f"checkpoint={address} in {relative(store)}: {reason(error)}. Another store is named "
            "by tracking_uri=ADDRESS or by MLFLOW_TRACKING_URI."
        ) from error
    return str(home)


def _own_folder(logged: Logged, address: str) -> Path | None:
    """Return the folder that the run worked in, if it is here and holds this checkpoint."""
    if logged.run is None:
        return None
    folder = Path(logged.run.data.tags[FOLDER_TAG])
    identity = read_identity(folder)
    if identity is None or identity.run_id != logged.run.info.run_id:
        return None
    best = folder / BEST
    if not best.is_file() or read_seal(best).sha256 != logged.sha256:
        logger.warning(
            "%s: its folder %s holds another checkpoint by now, so the one in MLflow is taken",
            address,
            folder,
        )
        return None
    logger.info("%s: its run's folder is here, %s", address, folder)
    return folder


def _downloaded(
    logged: Logged, address: str, client: MlflowClient, store: str, folder: Path
) -> Path:
    run_id = "no_run" if logged.run is None else logged.run.info.run_id
    home = folder / f"{run_id}_{logged.sha256[:12]}"
    if home.is_dir():
        logger.info("%s: was downloaded before, to %s", address, home)
        return home
    unfinished = folder / f".{home.name}.{os.getpid()}.tmp"
    unfinished.mkdir(parents=True)
    try:
        _fetch(logged.artifact, unfinished, store)
        read_checkpoint(unfinished / BEST)
        if read_seal(unfinished / BEST).sha256 != logged.sha256:
            raise CheckpointError(f"{logged.artifact} is not the file that was logged")
        if logged.run is not None:
            _fetch_run(logged.run, client, store, unfinished)
        try:
            unfinished.rename(home)
        except OSError:
            if not home.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _say(logged, address, home)
    return home


def _fetch(artifact: str, folder: Path, store: str) -> None:
    from mlflow.artifacts import download_artifacts

    download_artifacts(artifact_uri=artifact, dst_path=str(folder), tracking_uri=store)


def _fetch_run(run: Run, client: MlflowClient, store: str, folder: Path) -> None:
    """Make a folder of the run out of what it logged: its config, its origin and its split."""
    wanted = {SHARED_CONFIG, ORIGIN, ABOUT, *(table_name(part) for part in (*PARTS, UNUSED))}
    for file in client.list_artifacts(run.info.run_id):
        if file.path in wanted:
            _fetch(f"{run.info.artifact_uri}/{file.path}", folder, store)
    _refuse_foreign_code(folder / SHARED_CONFIG, run)
    (folder / SHARED_CONFIG).rename(folder / CONFIG)
    experiment = client.get_experiment(run.info.experiment_id).name
    write_identity(folder, RunIdentity(uri=store, run_id=run.info.run_id, experiment=experiment))


def _refuse_foreign_code(config: Path, run: Run) -> None:
    """What lies in a store is data from strangers: it may choose among `conf/`, never name code."""
    text = config.read_text(encoding="utf-8")
    # Interpolations may name other values, and the environment; no resolver makes nodes of text.
    plain = re.sub(r"\$\{[\w.]+\}", "", text)
    plain = re.sub(r"\$\{oc\.env:[^${}]*\}", "", plain)
    known = {
        node["_target_"]
        for path in CONF_DIR.rglob("*.yaml")
        for _, node in nodes_with_target(OmegaConf.to_container(OmegaConf.load(path)))
    }
    named = [
        f"{place}._target_={node['_target_']}"
        for place, node in nodes_with_target(OmegaConf.to_container(OmegaConf.load(config)))
        if str(node["_target_"]) not in known
    ]
    if named or "${" in plain:
        raise CheckpointError(
            f"{config.name} of run {run.info.run_id} asks to run "
            f"{', '.join(named) or 'resolvers'}, which is no option of this version. Nothing was "
            "run"
        )


def _say(logged: Logged, address: str, home: Path) -> None:
    if logged.run is None:
        logger.warning(
            "%s: downloaded to %s. Its run is gone from MLflow, and the split with it, so it can "
            "only be judged on data that are named, with split=all",
            address,
            home,
        )
        return
    tags = logged.run.data.tags
    logger.info(
        "%s: downloaded to %s with its run's config and split, since the run's folder %s on %s is "
        "not here. Where the data lie elsewhere too, name them with data.root=DIR",
        address,
        home,
        tags[FOLDER_TAG],
        tags[HOST_TAG],
    )
