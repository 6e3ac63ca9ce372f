"""What a run's folder says about the run: its config, its origin, and what resuming may change."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from dermalyze.errors import CheckpointError, ConfigError
from dermalyze.files import write_whole
from dermalyze.redaction import redacted, shown
from dermalyze.taxonomy import DISCLAIMER

CONFIG = "config.yaml"
SHARED_CONFIG = "config_redacted.yaml"
ORIGIN = "run.json"

# What does not change a run's result, or is held against the fingerprints of the data anyway.
FREE_ON_RESUME = (
    "data.root",
    "paths",
    "sweep.evaluate",
    "sweep.resume",
    "tracking",
    "training.check_every_steps",
    "training.checkpoint_every_steps",
    "training.device",
    "training.evaluation_batch_size",
    "training.profile",
    "training.rank_timeout",
    "training.resume",
    "training.threads",
)

_PACKAGES = (
    "dermalyze",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pandas",
    "scikit-learn",
    "pillow",
    "hydra-core",
    "omegaconf",
    "mlflow",
)


def refuse_second_run(folder: Path) -> None:
    """See that a folder holds no run.

    Raises:
        ConfigError: it holds one.
    """
    if (folder / CONFIG).exists():
        raise ConfigError(
            f"{folder}: holds a run already. Go on with it by training.resume={folder}, or name "
            "another folder with hydra.run.dir=FOLDER."
        )


def save_config(cfg: DictConfig, folder: Path) -> None:
    """Write the composed config, interpolations unresolved, so that secrets stay where they are.

    A second copy, without secrets that were typed in, is for showing to others. It is there
    before the first, which is there whole or not at all.
    """
    shown = OmegaConf.create(redacted(OmegaConf.to_container(cfg)))
    write_whole(folder / SHARED_CONFIG, OmegaConf.to_yaml(shown))
    write_whole(folder / CONFIG, OmegaConf.to_yaml(cfg))


def load_config(folder: Path) -> DictConfig:
    """Return the config that a run was started with.

    Raises:
        CheckpointError: the folder holds no run, or its config cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file, so {folder} is no run's folder")
    try:
        loaded = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}). Put back the file that the run's training wrote."
        ) from error
    if not isinstance(loaded, DictConfig):
        raise CheckpointError(f"{path}: not the config of a run")
    return loaded


def as_typed(folder: Path) -> Path:
    """Return a folder as one would type it: relative where it lies below the working directory."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def working_directory(folder: Path) -> Path:
    """Return the folder that a run was started from, which its relative paths are relative to.

    Raises:
        CheckpointError: the run's folder does not say it.
    """
    path = folder / ORIGIN
    try:
        return Path(json.loads(path.read_text(encoding="utf-8"))["working_directory"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: does not say where the run was started, so its data are not found "
            f"({type(error).__name__}: {error}). Name their folder: data.root=DIR."
        ) from error


def resumed_config(composed: DictConfig, folder: Path, overrides: list[str]) -> DictConfig:
    """Return the config to go on with: the run's own, with what may be changed changed.

    With only `training.resume` and free keys on the command line, the run's own config is taken.
    With other overrides, the composed config must equal the run's own but for the free keys.

    Args:
        composed: what the command line composes to.
        folder: the run's folder.
        overrides: the command line's overrides, such as `loss=focal`.

    Raises:
        ConfigError: shows every difference that may not be.
    """
    stored = load_config(folder)
    names = [override.lstrip("+~").partition("=")[0] for override in overrides]
    if not all(is_free_on_resume(name) for name in names):
        before, now = _flat(stored), _flat(composed)
        differences = [
            f"{name}: {before.get(name, '(absent)')} -> {now.get(name, '(absent)')}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and not is_free_on_resume(name)
        ]
        if differences:
            raise ConfigError(
                f"training.resume={folder}: a resumed run is the same run, but this command "
                "changes it:\n  - " + "\n  - ".join(differences) + "\nLeave these as they were "
                "(training.resume=RUN alone takes the run's own config), or start a new run. "
                f"What may change: {', '.join(FREE_ON_RESUME)}."
            )
    config = stored.copy()
    for name in names:
        if name in FREE_ON_RESUME or is_free_on_resume(name):
            # A group such as `tracking=none` replaces its node; a value replaces a value.
            OmegaConf.update(config, name, OmegaConf.select(composed, name), merge=False)
    return config


def is_free_on_resume(name: str) -> bool:
    """Return whether a key, such as `paths.outputs`, stands in or below FREE_ON_RESUME."""
    return _is_below(name, FREE_ON_RESUME)


def _is_below(name: str, keys: tuple[str, ...]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in keys)


def _flat(cfg: DictConfig) -> dict[str, str]:
    return flat_parameters(OmegaConf.to_container(cfg, resolve=False))


def flat_parameters(node: Any, path: str = "") -> dict[str, str]:
    """Return nested containers as {dotted.path: text}."""
    if isinstance(node, dict):
        items = [(f"{path}.{key}" if path else str(key), value) for key, value in node.items()]
    elif isinstance(node, list) and any(isinstance(value, (dict, list)) for value in node):
        # Dots, since MLflow takes no brackets in the name of a parameter.
        items = [(f"{path}.{position}", value) for position, value in enumerate(node)]
    else:
        return {path: str(node)}
    flat: dict[str, str] = {}
    for name, value in items:
        flat |= flat_parameters(value, name)
    return flat


def values_of_all_machines(cfg: DictConfig) -> dict[str, str]:
    """Return what every process of a run must be given alike; folders may lie elsewhere."""
    return _values_but(cfg, ("data.root", "paths", "tracking"))


def values_of_the_run(cfg: DictConfig) -> dict[str, str]:
    """Return what makes a run what it is: all values but those that resuming may change."""
    return _values_but(cfg, FREE_ON_RESUME)


def _values_but(cfg: DictConfig, left_out: tuple[str, ...]) -> dict[str, str]:
    """Return values by dotted names, without some, and as if values that name those were empty."""

    def emptied(node: Any, path: str = "") -> Any:
        if isinstance(node, dict):
            below = f"{path}." if path else ""
            return {key: emptied(value, f"{below}{key}") for key, value in node.items()}
        return "" if _is_below(path, left_out) else node

    same = OmegaConf.create(emptied(OmegaConf.to_container(cfg, resolve=False)))
    values = flat_parameters(OmegaConf.to_container(same, resolve=True))
    return {name: value for name, value in values.items() if not _is_below(name, left_out)}


def software(*, device: str, threads: int, precision: str) -> dict[str, Any]:
    """Return versions and machine facts that a result depends on."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "device": device,
        "threads": threads,
        "precision": precision,
    }


def _version(package: str) -> str:
    from importlib import metadata  # late: commands that only answer have no use for it

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a source tree without installation
        return "not installed"


def git_commit() -> str | None:
    """Return the commit of this code, with `-dirty` where files are changed; None without git."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],
            cwd=here,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # An installed copy may lie inside somebody else's checkout, whose commit says nothing of it.
    return done.stdout.strip() if done.returncode == 0 and tracked.returncode == 0 else None


def origin() -> dict[str, Any]:
    """Return where a run comes from: command, folder and code."""
    return {
        "command": " ".join(shown(argument) for argument in sys.orig_argv[1:]),
        "working_directory": os.getcwd(),  # noqa: PTH109 - plain text for JSON
        "git_commit": git_commit(),
        "disclaimer": DISCLAIMER,
    }
