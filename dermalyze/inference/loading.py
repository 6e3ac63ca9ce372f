"""From a checkpoint's file back to its model, without running a stranger's code."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from dermalyze.checkpoint_file import BEST, read_checkpoint
from dermalyze.config import CONF_DIR, nodes_with_target
from dermalyze.data.decode import PreprocessSpec
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.errors import CheckpointError, ConfigError, DataError
from dermalyze.inference.onnx_file import ONNX, OnnxNetwork, read_onnx
from dermalyze.models.classifier import Classifier
from dermalyze.multirun_folder import numbered_jobs
from dermalyze.sweep_folder import ENSEMBLE, is_twin

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFacts:
    """What a checkpoint says of its model; `description` is how to build it."""

    description: Any
    classes: tuple[str, ...]
    preprocess: PreprocessSpec
    encoding: MetadataEncoding
    header: dict[str, Any]
    path: Path

    @property
    def seen_lesions(self) -> frozenset[str]:
        """The lesions that chose its weights: those of training and of validation."""
        return frozenset(self.header["train_lesions"]) | frozenset(self.header["val_lesions"])

    @property
    def seen_images(self) -> frozenset[str]:
        """The ids of their images; empty for a checkpoint of a version that did not keep them."""
        header = self.header
        return frozenset(header.get("train_images", ())) | frozenset(header.get("val_images", ()))


@dataclass(frozen=True)
class TrainedModel(ModelFacts):
    """A model ready to predict, and what its checkpoint says of it: a `Classifier`, or a graph."""

    model: nn.Module


def best_checkpoint(run_or_file: str) -> Path:
    """Return the file to predict with, for a run's folder or a file.

    Raises:
        CheckpointError: there is none; says where it was looked for.
    """
    path = Path(run_or_file)
    if path.suffix == ".yaml":
        raise CheckpointError(
            f"checkpoint={run_or_file}: lists several models, and one is needed. Give the folder "
            "of one of its runs."
        )
    file = path / BEST if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"checkpoint={run_or_file}: {file} does not exist. Give a run's folder, such as "
            f"outputs/train/2026-01-31_12-00-00-000000, or a {BEST}; a run has one after its first "
            "epoch."
        )
    return file


def best_checkpoints(checkpoint: str | Sequence[str]) -> list[Path]:
    """Return the files to predict with: of one model, of a list, or of all runs of a multirun.

    A sweep's `ensemble.yaml` is a list as well.

    Raises:
        CheckpointError: as `best_checkpoint`; or a run of a multirun has none, which would be an
            ensemble of others than were asked for.
    """
    if not isinstance(checkpoint, str):
        return [file for one in checkpoint for file in best_checkpoints(one)]
    folder = Path(checkpoint)
    if folder.suffix == ".yaml":
        return [best_checkpoint(str(folder.parent / name)) for name in _listed(folder)]
    jobs = [job for job in numbered_jobs(folder) if not is_twin(job)]
    if not jobs or (folder / BEST).exists():
        return [best_checkpoint(checkpoint)]
    return [best_checkpoint(str(job)) for job in jobs]


def _listed(file: Path) -> list[str]:
    """Return the checkpoints that a sweep's `ensemble.yaml` lists, relative to its folder."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
        listed = content["checkpoints"]  # type: ignore[call-overload, index]
        if not (isinstance(listed, list) and listed and all(isinstance(n, str) for n in listed)):
            raise ValueError("no list of names")
    except (OSError, ValueError, KeyError, TypeError, YAMLError) as error:
        raise CheckpointError(
            f"checkpoint={file}: lists no checkpoints ({error}). Give the {ENSEMBLE} of a sweep, "
            "or the runs themselves: checkpoint=[A,B]."
        ) from error
    return listed


def read_facts(path: Path) -> ModelFacts:
    """Return what a checkpoint says of its model, verified, without building it.

    Raises:
        CheckpointError, DataError: as `load_model`, but for faults of the model itself.
    """
    _, header = read_onnx(path) if path.suffix == ONNX else read_checkpoint(path)
    return _facts(path, header)


def load_model(path: Path, device: torch.device) -> TrainedModel:
    """Return the model of a checkpoint, in eval mode on the device.

    An ONNX file that `export` wrote is one too; its graph runs on the CPU, wherever images lie.

    Raises:
        CheckpointError: damaged, not a model to predict with, or naming code that is not among
            this version's model options.
        DataError: made for images that another version decoded, or for metadata that this one
            cannot tell.
    """
    if path.suffix == ONNX:
        content, header = read_onnx(path)
        return onnx_model(content, _facts(path, header))
    tensors, header = read_checkpoint(path)
    facts = _facts(path, header)
    _refuse_foreign_code(path, facts.description)
    try:
        model = instantiate(
            facts.description,
            num_classes=len(facts.classes),
            input_size=facts.preprocess.image_size,
            unknown_metadata=facts.encoding.unknown,
            _convert_="all",
        )
    except (HydraException, OmegaConfBaseException) as error:
        raise CheckpointError(
            f"{path}: this version cannot build the model that its header describes: {error}"
        ) from error
    if not isinstance(model, Classifier):
        raise CheckpointError(f"{path}: its header describes no classifier")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: weights and model description differ: {error}") from error
    return TrainedModel(**vars(facts), model=model.eval().to(device))


def onnx_model(content: bytes, facts: ModelFacts) -> TrainedModel:
    """Return the graph of an ONNX file as a model of these facts.

    Raises:
        CheckpointError, ConfigError: see `OnnxNetwork`.
    """
    unknown_M = [number for numbers in facts.encoding.unknown.values() for number in numbers]
    network = OnnxNetwork(content=content, unknown_M=unknown_M, threads=torch.get_num_threads())
    own = {field.name: getattr(facts, field.name) for field in fields(ModelFacts)}
    return TrainedModel(**own, model=network.eval())


def check_members(members: Sequence[ModelFacts]) -> None:
    """Say what the models of an ensemble are, and hold them against each other; one is no ensemble.

    A model that is there twice is warned of: it has two votes.

    Raises:
        DataError: their classes differ, or the order of these.
    """
    if len(members) == 1:
        return
    one, paths = members[0], dict[str, Path]()
    for member in members:
        if member.classes != one.classes:
            raise DataError(
                "models of an ensemble need the same classes in the same order.\n"
                f"  {one.path}: {', '.join(one.classes)}\n"
                f"  {member.path}: {', '.join(member.classes)}"
            )
        with member.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        if content in paths:
            logger.warning(
                "ensemble: %s and %s are the same model, which has two votes",
                paths[content],
                member.path,
            )
        paths.setdefault(content, member.path)
        logger.info("ensemble: %s, %d pixels", member.path, member.preprocess.image_size)


def refuse_number_format(amp: str, members: Sequence[ModelFacts]) -> None:
    """Refuse a number format for graphs, which compute in the one that they were exported in.

    Args:
        amp: as it was asked for: auto, off, bf16 or fp16.

    Raises:
        ConfigError: one of them is a graph, and bf16 or fp16 was asked for.
    """
    graphs = [str(member.path) for member in members if member.path.suffix == ONNX]
    if graphs and amp in ("bf16", "fp16"):
        raise ConfigError(
            f"amp={amp}: has no effect on {graphs[0]}, which computes as it was exported. Leave it "
            "out, or use the checkpoint that it was made of."
        )


def _facts(path: Path, header: dict[str, Any]) -> ModelFacts:
    if header.get("kind") != "best":
        raise CheckpointError(
            f"{path}: holds a training state, not a model to predict with. Use {BEST} beside it."
        )
    try:
        return ModelFacts(
            description=header["model"],
            classes=tuple(header["classes"]),
            preprocess=PreprocessSpec.from_dict(header["preprocess"]),
            encoding=MetadataEncoding.from_dict(header["metadata"]),
            header=header,
            path=path,
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its header is incomplete ({error!r})") from error


def _refuse_foreign_code(path: Path, description: object) -> None:
    """A header is data from strangers: it may choose among `conf/model`, never name code."""
    for place, node in nodes_with_target(description, "model"):
        name = node["_target_"]
        if str(name) not in _model_targets():
            raise CheckpointError(
                f"{path}: its header asks to run {place}._target_={name}, which is no model option "
                f"of this version ({', '.join(sorted(_model_targets()))}). Nothing was run."
            )
        if node.get("weights_file") is not None or node.get("pretrained"):
            raise CheckpointError(
                f"{path}: its header asks to load other files ({place}). Nothing was loaded."
            )
    if not isinstance(description, dict) or "_target_" not in description:
        raise CheckpointError(f"{path}: its header describes no model")
    if "${" in str(description):
        raise CheckpointError(f"{path}: its header holds interpolations. Nothing was resolved.")


@cache
def _model_targets() -> frozenset[str]:
    nodes = (OmegaConf.to_container(OmegaConf.load(p)) for p in CONF_DIR.glob("model/**/*.yaml"))
    return frozenset(node["_target_"] for tree in nodes for _, node in nodes_with_target(tree))
