"""What Hydra and OmegaConf say of words that make no config, with the nearest that would."""

from __future__ import annotations

import re
from difflib import get_close_matches
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
    start = f"{name}: there is no such key or group."
    of_hydra = name.startswith("hydra.")
    names = {key for key in keys if key.startswith("hydra.") == of_hydra} | groups
    parent, leaf = name.rpartition(".")[0], _leaf(name)
    elsewhere = sorted(key for key in names if _leaf(key) == leaf)
    elsewhere.sort(key=lambda key: key.count("."))  # what lies deepest is rarely meant
    beside = [
        key
        for key in names
        if key.rpartition(".")[0] == parent and get_close_matches(leaf, [_leaf(key)], cutoff=0.5)
    ]
    near = get_close_matches(name, [*beside, *elsewhere], n=1, cutoff=0.75)
    if near and near[0] in elsewhere:  # its place is misspelt alone
        return f"{start}{nearest(name, near)}"
    if having := _having(parent.replace(".", "/"), leaf):
        return f"{start} {' and '.join(having)} {'has' if len(having) == 1 else 'have'} it."
    if elsewhere and (not parent or len(elsewhere) <= 3):
        meant_one = " or ".join(repr(key) for key in [*near, *elsewhere[:3]])
        return f"{start} Did you mean {meant_one}?"
    return f"{start}{nearest(name, names)}"


def _leaf(name: str) -> str:
    return re.split("[./]", name)[-1]


def _having(group: str, key: str) -> list[str]:
    """Return the options of a group that set a key, as they are chosen: `loss=focal`."""
    sets_it = re.compile(rf"^{re.escape(key)}:", re.MULTILINE)
    files = sorted((CONF_DIR / group).glob("*.yaml")) if group else ()
    return [
        f"{group}={path.stem}" for path in files if sets_it.search(path.read_text(encoding="utf-8"))
    ]


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
