"""Ways of predicting: views, how models become one, with which weights, and what was fitted for it.

Names are those of `conf/tta` and `conf/ensemble`, and every default is that of `conf/predict.yaml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dermalyze.config import CONF_DIR, check_targets
from dermalyze.errors import ConfigError, DermalyzeError
from dermalyze.evaluation.conformal import METHODS
from dermalyze.inference.ensemble import Candidates, Ensemble
from dermalyze.inference.identity import run_of, trained_as, way_of
from dermalyze.inference.loading import ModelFacts
from dermalyze.inference.views import Views
from dermalyze.reporting.fitted import all_kept, as_json, chosen_weights

Node = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Way:
    """How models predict.

    Attributes:
        views: that each model sees.
        method: how the models become one.
        weights_M: of each model, summing to 1.
        fit: what was fitted for predicting in this way ("about" and "fitted"), None where nothing
            was; `why_no_fit` says why.
    """

    views: Views
    method: Ensemble
    weights_M: np.ndarray
    fit: Node | None
    why_no_fit: str | None


def defaults() -> Node:
    """Return `conf/predict.yaml`, composed; what must be given is absent."""
    return _composed("predict")


def views_of(mode: str | None, aggregation: str | None) -> Views:
    """Return the views of that name, merged in that way; None: as `conf/` says.

    Raises:
        ConfigError: unknown names; says the valid ones.
    """
    changes = {} if aggregation is None else {"aggregation": aggregation}
    views: Views = _option("tta", mode, changes)
    return views


def method_of(name: str | None, weights: Sequence[float] | None) -> Ensemble:
    """Return the way of that name in which models become one; None: as `conf/` says.

    Args:
        weights: one a model, for weighted_mean; None: as the method finds them.

    Raises:
        ConfigError: an unknown name; says the valid ones. Weights that are none.
    """
    changes = {} if weights is None else {"weights": [float(weight) for weight in weights]}
    method: Ensemble = _option("ensemble", name, changes)
    return method


def find_way(
    views: Views, method: Ensemble, members: Sequence[ModelFacts], *, home: Path, precision: str
) -> Way:
    """Return the way, with the models' weights and what `evaluate` fitted for it.

    Args:
        members: the models.
        home: the folder that keeps what was fitted for them.
        precision: number format that they compute in, as `str(Precision)` says it. What was fitted
            for another is not for this one.

    Raises:
        ConfigError, CheckpointError: a method that does not fit the models, or whose weights an
            evaluation must find first.
        DataError: what was fitted cannot be read.
    """
    loose = next((member.path.name for member in members if run_of(member) is None), None)
    if method.chosen_by and len(members) > 1:
        asked = _asked(views, method, np.zeros(len(members)), precision)
        weights_M = chosen_weights(home, trained_as(members), asked)
    else:
        names = [str(member.path) for member in members]
        metrics = [member.header.get("validation_metrics", {}) for member in members]
        weights_M = method.weights(Candidates(names, metrics))
    if loose is not None:
        return Way(views, method, weights_M, None, f"{loose} lies in no run's folder")
    asked = _asked(views, method, weights_M, precision)
    sought = as_json({"models": trained_as(members), "prediction": asked})
    for fit in all_kept(home):
        if {name: fit["about"][name] for name in sought} == sought:
            return Way(views, method, weights_M, fit, None)
    unfitted = (
        "not fitted for this way of predicting: python -m dermalyze.evaluate fits it, called with "
        "the same checkpoint, tta, ensemble and amp"
    )
    return Way(views, method, weights_M, None, unfitted)


def _asked(views: Views, method: Ensemble, weights_M: np.ndarray, precision: str) -> Node:
    return {**way_of(views, method, weights_M), "logit_adjustment": None, "precision": precision}


def check_set_method(name: str) -> str:
    """Return a method of prediction sets that there is.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in METHODS:
        raise ConfigError(f"set_method={name}: there is none. Valid: {', '.join(METHODS)}.")
    return name


def _option(group: str, name: str | None, changes: Node) -> Any:
    """Return the object that an option of a group describes, some values changed."""
    if name is None:
        node = defaults()[group]
    else:
        valid = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
        if name not in valid:
            raise ConfigError(f"{group}={name}: there is none. Valid: {', '.join(valid)}.")
        node = _composed(f"{group}/{name}")[group]
    node = {**node, **changes}
    check_targets({group: node})
    try:
        return instantiate(node, _convert_="all")
    except HydraException as error:  # Hydra's words around what the user can mend
        raise (error.__cause__ if isinstance(error.__cause__, DermalyzeError) else error) from None


def _composed(config_name: str) -> Node:
    container: Node = OmegaConf.to_container(_read(config_name), resolve=True)  # type: ignore[assignment]
    return container


@cache
def _read(config_name: str) -> DictConfig:
    """Return a config whose interpolations are not resolved: the environment may change."""
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg: DictConfig = hydra.compose(config_name)
    return cfg
