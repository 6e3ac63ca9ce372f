"""Which weights decay, and how fast each layer learns."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn

LR_SCALE = "lr_scale"  # of a group: its rate is the schedule's times this


def parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float | None
) -> list[dict[str, Any]]:
    """Return groups of the model's trainable parameters for a torch optimiser.

    Decay pulls weights towards zero. Biases, normalisation and what else has one dimension have no
    reason to be there, nor has what the backbone names itself (timm's `no_weight_decay`: position
    embeddings and class tokens).

    With a layer decay d, the layer that is n layers below the head learns at d^n times the rate
    (Clark et al. 2020, "ELECTRA", section 3.1 and appendix; Bao et al. 2022, "BEiT", table 9).
    Layers are those of timm's `group_matcher`.

    Args:
        model: with a timm network at `backbone.network` where `layer_decay` is given.
        weight_decay: >= 0.
        layer_decay: in (0, 1]; None: all layers alike.
    """
    network = getattr(getattr(model, "backbone", None), "network", None)
    undecayed = {f"backbone.network.{name}" for name in getattr(network, "no_weight_decay", set)()}
    layer_of = {} if layer_decay is None else _layers(network)
    layers = max(layer_of.values(), default=-1) + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in undecayed
        depth = layers - layer_of.get(name, layers)  # the head is 0 below itself
        group = groups.setdefault(
            (depth, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                LR_SCALE: 1.0 if layer_decay is None else layer_decay**depth,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _layers(network: Any) -> dict[str, int]:
    """Return the number of the layer of each of the backbone's parameters, the stem's 0."""
    numbers: dict[str, int] = group_parameters(network, network.group_matcher(), reverse=True)
    return {f"backbone.network.{name}": number for name, number in numbers.items()}
