"""What Hydra and OmegaConf say of words that make no config, with the nearest that would."""

from __future__ import annotations

import re
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dermalyze.config import CONF_DIR, options_of
from dermalyze.errors import meant, nearest
from dermalyze.run_folder import flat_parameters


def better_said(error: Exception) -> str | None:
    """Return a message with its mend where Hydra's own has none."""
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return (
            f"{error.override}: is not key=value, as in checkpoint=RUN or training.epochs=3; "
            "--help shows all keys."
        )
    return _unknown_name(error) or _unknown_option(error)


def _unknown_name(error: Exception) -> str | None:
    """Return a better message where Hydra knows no such key or group and proposes to add it."""
    unknown = re.search(r"Could not override '([^'@]+)'", str(error))
    if unknown is None or not isinstance(error.__cause__, OmegaConfBaseException):
        return None
    # The cause knows the whole config that was composed until then.
    composed: Any = error.__cause__.parent_node._get_root()
    keys = flat_parameters(OmegaConf.to_container(composed))
    groups = {str(path.parent.relative_to(CONF_DIR)) for path in CONF_DIR.rglob("*/*.yaml")}
    name = unknown[1]
    of_hydra = name.startswith("hydra.")
    names = {key for key in keys if key.startswith("hydra.") == of_hydra} | groups
    leaf = name.rpartition(".")[2]
    below = sorted(key for key in names if key.endswith(f".{leaf}"))
    if below and (leaf == name or len(below) <= 3):  # a key without its place, or in another's
        return f"{name}: there is no such key or group. Did you mean {' or '.join(below[:3])}?"
    return f"{name}: there is no such key or group.{nearest(name, names)}"


def _unknown_option(error: Exception) -> str | None:
    """Return a better message where Hydra knows no such option of a group."""
    unknown = re.search(r"Could not find '([^']+)/([^'/]+)'", str(error))
    if unknown is None:
        return None
    group, name = unknown[1], unknown[2]
    options = options_of(group)
    if not options:
        return None
    if group == "hydra/launcher":
        options.insert(0, "basic")  # Hydra's own
    listed = ", ".join(options)
    return f"{group}={name}: there is no such option.{meant(name, options)} Valid: {listed}."
