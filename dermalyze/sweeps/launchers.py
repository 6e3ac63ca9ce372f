"""Which package a launcher needs, and the extra that installs it."""

from __future__ import annotations

from importlib.util import find_spec

from dermalyze.errors import ConfigError

_EXTRAS = {
    "hydra_plugins.hydra_joblib_launcher": "joblib",
    "hydra_plugins.hydra_submitit_launcher": "slurm",
    "hydra_plugins.hydra_ray_launcher": "ray",
}


def check_launcher(target: str) -> None:
    """Refuse a launcher that is not installed.

    Args:
        target: `hydra.launcher._target_`.

    Raises:
        ConfigError: says what to install.
    """
    package = ".".join(target.split(".")[:2])
    if package in _EXTRAS and find_spec(package) is None:
        raise ConfigError(
            f"hydra/launcher: {target.rpartition('.')[2]} is not installed. "
            f"pip install 'dermalyze[{_EXTRAS[package]}]', or leave hydra/launcher out: then runs "
            "are made one after the other."
        )
