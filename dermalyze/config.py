"""Where the configuration lives, and what a composed one must satisfy before any work starts.

This module imports neither torch nor mlflow nor pydantic, so that `--help` and `--cfg job` answer
at once; the checks import what they need when they run.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from dermalyze.errors import ConfigError, nearest
from dermalyze.machine import gpu_of, parallel_jobs, threads_of
from dermalyze.quick_yaml import read_yaml_quickly

_PACKAGE = Path(__file__).resolve().parent
# The wheel carries conf/ inside the package; a checkout has it beside the package.
CONF_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())

# Arguments that are only known once data and model exist. They are passed in code and may never
# stand in a yaml, so that no value has two homes.
RUN_TIME_ARGUMENTS = frozenset(
    {
        "class_counts",
        "in_features",
        "input_size",
        "metadata_features",
        "model",
        "num_classes",
        "params",
        "peak_lr",
        "steps_per_epoch",
        "total_epochs",
        "total_steps",
        "unknown_metadata",
    }
)
# Words of hydra.utils.instantiate itself.
_INSTANTIATE_WORDS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})


def run_folder(resume: str | None, fresh: str) -> str:
    """Resolve `hydra.run.dir`: the folder to go on in, or a fresh one.

    Raises:
        ConfigError: `resume` names no folder with a run; never a silent fresh start.
    """
    if resume is None:
        return fresh
    folder = Path(resume)
    if not (folder / "config.yaml").is_file():
        why = "it is a file" if folder.is_file() else "it holds no config.yaml of a run"
        if not folder.exists():
            why = "it does not exist"
        raise ConfigError(
            f"training.resume={resume}: not a run folder, {why}. Give the folder that the run "
            "printed as its own, such as outputs/train/2026-01-31_12-00-00-000000."
        )
    return str(folder)


def sweep_folder(resume: str | None, fresh: str) -> str:
    """Resolve `hydra.sweep.dir`: the folder of the sweep to go on with, or a fresh one."""
    return fresh if resume is None else resume


def register_resolvers() -> None:
    """Make Hydra read `conf/` as it is meant: resolvers, launchers, soon; safe to call again."""
    read_yaml_quickly()
    _prefer_own_launchers()
    OmegaConf.register_new_resolver("dermalyze.run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("dermalyze.sweep_folder", sweep_folder, replace=True)
    OmegaConf.register_new_resolver("dermalyze.parallel_jobs", parallel_jobs, replace=True)
    OmegaConf.register_new_resolver("dermalyze.threads_of", threads_of, replace=True)
    OmegaConf.register_new_resolver("dermalyze.gpu_of", gpu_of, replace=True)
    OmegaConf.register_new_resolver("dermalyze.text", str, replace=True)  # for the environment
    OmegaConf.register_new_resolver(
        "dermalyze.hydra_folder",
        lambda resume: ".hydra" if resume is None else ".hydra_resumed",
        replace=True,
    )


def _prefer_own_launchers() -> None:
    """Let `conf/hydra/launcher` stand for what launchers' packages store under the same names.

    Hydra would take those for schemas of ours, and warn of it at each use.
    """
    Plugins.instance()  # finds the packages, which then store their options
    stored = ConfigStore.instance().repo["hydra"]["launcher"]
    for path in (CONF_DIR / "hydra" / "launcher").glob("*.yaml"):
        stored.pop(path.name, None)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain containers, interpolations resolved.

    Raises:
        ConfigError: an interpolation cannot be resolved, or a mandatory value (`???`) is missing.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        container = OmegaConf.to_container(cfg, resolve=True)
    except Exception as error:  # OmegaConf's errors share no narrower base with the resolvers' own
        raise ConfigError(f"the configuration does not resolve: {error}") from error
    if missing:
        raise ConfigError(
            "missing: " + ", ".join(missing) + f". Give each as {missing[0]}=VALUE on the line."
        )
    return typing.cast(dict[str, Any], container)


def nodes_with_target(node: object, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (dotted path, node) of every dict below `node` that names a `_target_`."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from nodes_with_target(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from nodes_with_target(value, f"{path}[{position}]")


def target_problems(path: str, node: dict[str, Any]) -> list[str]:
    """Return what is wrong with one `_target_` node: unknown, missing or mistyped arguments."""
    from hydra.errors import HydraException
    from hydra.utils import get_object

    name = node["_target_"]
    try:
        target: Callable[..., Any] = get_object(name)
    except (ImportError, AttributeError, HydraException, ValueError) as error:
        return [f"{path}._target_={name}: cannot be imported ({error})"]
    signature = inspect.signature(target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    named = {n: p for n, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
    given = {key: value for key, value in node.items() if key not in _INSTANTIATE_WORDS}

    problems = []
    if _completed_by_the_run(path) and node.get("_partial_") is not True:
        problems.append(
            f"{path}._partial_={str(node.get('_partial_')).lower()}: the run completes this part "
            "itself, so it must stay true"
        )
    for key, value in given.items():
        if key in RUN_TIME_ARGUMENTS and key in named:
            problems.append(f"{path}.{key}={value}: set by the run itself; take it out")
        elif key not in named and not takes_any:
            configurable = [n for n in named if n not in RUN_TIME_ARGUMENTS]
            problems.append(
                f"{path}.{key}: {name} has no such argument.{nearest(key, configurable)}"
            )
    for key, parameter in named.items():
        required = parameter.default is parameter.empty and parameter.kind is not (
            parameter.VAR_POSITIONAL
        )
        if required and key not in given and key not in RUN_TIME_ARGUMENTS:
            problems.append(f"{path}.{key}: missing; {name} needs it")
    hints = _type_hints(target)
    for key, value in given.items():
        if group := group_problem(f"{path}.{key}", value):
            problems.append(group)
        elif key in hints and not (isinstance(value, dict) and "_target_" in value):
            problems.extend(_type_problems(f"{path}.{key}", value, hints[key]))
    return problems


def _completed_by_the_run(path: str) -> bool:
    """Return whether a part of a run, by its dotted path, gets arguments later, from data or model.

    Others get theirs as they are made.
    """
    group = re.sub(r"^stages\.\w+\.", "", path)
    of_model = {"model.head", "model.metadata", "model.metadata.fusion"}
    return group in {"optimizer", "scheduler", "ema", *of_model}


def _type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # a foreign target with annotations that do not evaluate
        return {}


def _type_problems(path: str, value: object, annotation: Any) -> list[str]:
    from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    try:
        checks = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        adapter = TypeAdapter(annotation, config=checks)
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError):
        # A foreign annotation pydantic cannot check, or a type with a config of its own.
        try:
            adapter = TypeAdapter(annotation)
        except (PydanticSchemaGenerationError, PydanticUserError, TypeError):
            return []
    try:
        # JSON's strict mode takes a list for a tuple but never a text for a number.
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        # Of objects that only code can make, pydantic says nothing a user could act on.
        sayable = [detail for detail in error.errors() if detail["type"] != "needs_python_object"]
        reasons = "; ".join(dict.fromkeys(detail["msg"] for detail in sayable))
        reasons = reasons or "a node with a _target_ is needed here"
        return [f"{path}={value!r} ({type(value).__name__}): {reasons}"]
    return []


def options_of(group: str) -> list[str]:
    """Return the names of a group's options, `data/split`'s; none where there is no such group."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def group_problem(path: str, value: object) -> str | None:
    """Return what is wrong with a word where a group's option stands, `data.split=kfold`, if it is.

    Args:
        path: dotted, of the value.
        value: what was found there.
    """
    if not isinstance(value, str):
        return None
    group = path.replace(".", "/")
    options = options_of(group)
    if not options:
        return None
    told = f"{path}={value}: {group} is a group of options"
    if value in options:
        return f"{told}; write {group}={value}"
    return f"{told}, and {value!r} is none of them.{nearest(value, options)} Write {group}=OPTION"


def all_target_problems(container: dict[str, Any]) -> list[str]:
    """Return what is wrong with the `_target_` nodes, each held against what it names."""
    return [
        problem
        for path, node in nodes_with_target(container)
        for problem in target_problems(path, node)
    ]


def check_targets(container: dict[str, Any]) -> None:
    """Hold every `_target_` node against the signature of what it names.

    Raises:
        ConfigError: with all problems at once.
    """
    raise_problems(all_target_problems(container))


def raise_problems(problems: list[str]) -> None:
    """Raise one ConfigError that lists all problems, if there are any."""
    if problems:
        message = "the configuration cannot work:\n  - " + "\n  - ".join(problems)
        raise ConfigError(message, problems)
