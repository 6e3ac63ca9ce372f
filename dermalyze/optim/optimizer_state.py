"""What an optimiser keeps between steps, as tensors and as values that JSON keeps exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from dermalyze.errors import CheckpointError, ConfigError

Named = dict[str, torch.Tensor]

_OF_WEIGHTS, _OF_GROUPS = "optimizer/", "optimizer_groups/"
_SET_BY_THE_RUN = ("params", "lr")


def saved_tensors(optimizer: torch.optim.Optimizer) -> Named:
    """Return its tensors, named by the index of their weight, or of their group."""
    kept = optimizer.state_dict()
    return {
        f"{place}{index}/{key}": value
        for place, entries in (
            (_OF_WEIGHTS, kept["state"].items()),
            (_OF_GROUPS, enumerate(kept["param_groups"])),
        )
        for index, values in entries
        for key, value in values.items()
        if isinstance(value, torch.Tensor) and key not in _SET_BY_THE_RUN
    }


def saved_numbers(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the rest of what it keeps: counters, flags, what is None; of weights and of groups.

    Some count steps in a weight's state, as torch's do, in tensors or not; others in the group
    (timm's Lamb and Adan).
    """
    kept = optimizer.state_dict()
    weights = {str(index): _numbers(values) for index, values in kept["state"].items()}
    return {
        "weights": {index: numbers for index, numbers in weights.items() if numbers},
        "groups": [_numbers(group) for group in kept["param_groups"]],
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], numbers: dict[str, Any]
) -> None:
    """Fill a fresh optimiser, each tensor like a weight in the weight's memory format.

    Fused kernels walk a parameter and its moments side by side, so a moment that came back
    contiguous beside a channels-last weight would be applied to the wrong places.

    Args:
        optimizer: made as the saved one was.
        tensors: what `saved_tensors` returned, among others.
        numbers: what `saved_numbers` returned; empty where tensors alone were saved.

    Raises:
        CheckpointError: moments of more weights than are trained here.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in numbers.get("weights", {}).items()
    }
    for index, key, value in _below(tensors, _OF_WEIGHTS):
        state.setdefault(index, {})[key] = value
    last = max(state, default=-1)
    if last >= len(parameters):
        raise CheckpointError(
            f"the checkpoint holds an optimiser of at least {last + 1} weights, but here "
            f"{len(parameters)} are trained. Resume with the version that began this run, or "
            "train anew."
        )
    for index, values in state.items():
        parameter = parameters[index]
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    groups = optimizer.state_dict()["param_groups"]
    for group, values in zip(groups, numbers.get("groups", []), strict=False):
        group.update(values)
    for index, key, value in _below(tensors, _OF_GROUPS):
        groups[index][key] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def check_optimizer(*, make_optimizer: Callable[..., torch.optim.Optimizer], name: str) -> None:
    """Let an optimiser do two steps with a few numbers, to hear what it refuses.

    Args:
        make_optimizer: called with parameter groups.
        name: its own, for messages.

    Raises:
        ConfigError: it refuses its values, or cannot step, or keeps what no checkpoint can hold.
    """
    weights = [
        nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).reshape(shape))
        for shape in ((2,), (3, 2), (3, 2, 3, 3))
    ]
    try:
        optimizer = make_optimizer([{"params": weights}])
        before = [dict(group) for group in optimizer.param_groups]
        for _ in range(2):
            for weight in weights:
                weight.grad = torch.full_like(weight, 0.1)
            optimizer.step()
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"optimizer: {name} refuses its values ({' '.join(str(error).split())})"
        ) from error
    kept = optimizer.state_dict()
    lost = {
        str(key)
        for values in kept["state"].values()
        for key, value in (values.items() if isinstance(values, dict) else [("state", values)])
        if not _can_be_saved(value)
    }
    lost |= {
        str(key)
        for group, old in zip(optimizer.param_groups, before, strict=True)
        for key, value in group.items()
        if key not in _SET_BY_THE_RUN and not _can_be_saved(value) and old.get(key) != value
    }
    lost |= {str(index) for index in kept["state"] if not isinstance(index, int)}
    if lost:
        raise ConfigError(
            f"optimizer: {name} keeps what a checkpoint cannot hold ({', '.join(sorted(lost))}), "
            "so no run with it could be resumed. Choose another one"
        )


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in values.items()
        if not isinstance(value, torch.Tensor)
        and _can_be_saved(value)
        and key not in _SET_BY_THE_RUN
    }


def _can_be_saved(value: object) -> bool:
    """Return whether a value comes back from a checkpoint as it was."""
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, torch.Tensor | int | str)


def _below(tensors: Mapping[str, torch.Tensor], place: str) -> list[tuple[int, str, torch.Tensor]]:
    """Return (index, key, tensor) of each tensor that is named by a place of the optimiser."""
    found = []
    for name, value in tensors.items():
        if name.startswith(place):
            index, _, key = name.removeprefix(place).partition("/")
            found.append((int(index), key, value))
    return found
