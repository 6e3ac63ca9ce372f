"""What a run does about classes that are rare, and that it does so once.

Balanced batches, class weights and losses that adjust for frequencies each make rare classes count
as much as frequent ones; two of them together make rare classes count more.
"""

from __future__ import annotations

from typing import Any

from hydra.utils import get_object

from dermalyze.errors import ConfigError

Node = dict[str, Any]


def frequency_corrections(run: Node) -> list[str]:
    """Return the settings by which a run corrects for the class frequencies, as they stand in it.

    Every sampler and every loss says that of itself (`frequency_correction`), from its options
    alone.

    Args:
        run: the config of a run; checked, plain.

    Raises:
        ConfigError: a sampler or a loss that does not say it.
    """
    found = []
    for group in ("sampler", "loss"):
        name = run[group]["_target_"]
        target = get_object(name)
        if not hasattr(target, "frequency_correction"):
            raise ConfigError(
                f"{group}._target_={name}: has no frequency_correction, so it is not known whether "
                "it corrects for the class frequencies. Give it one, as the options in "
                f"conf/{group} have."
            )
        found.append(target.frequency_correction(run[group]))
    return [setting for setting in found if setting is not None]


def frequency_problems(run: Node) -> list[str]:
    """Return what contradicts itself in how a run corrects for the class frequencies.

    Args:
        run: the config of a run; checked, plain.

    Raises:
        ConfigError: see `frequency_corrections`.
    """
    training, loss = run["training"], run["loss"]
    problems = []
    corrections = frequency_corrections(run)
    if len(corrections) > 1 and not training["allow_double_correction"]:
        alone = "loss.class_weights=none"
        if "class_weights" not in loss:
            alone = f"loss=cross_entropy {alone}"
        problems.append(
            f"{' and '.join(corrections)} correct the class frequencies twice. Choose one: "
            f"{alone}, or sampler=uniform; or say training.allow_double_correction=true"
        )
    reweight_from = loss.get("reweight_from")
    if reweight_from is not None and reweight_from >= training["epochs"]:
        problems.append(
            f"loss.reweight_from={reweight_from}: epochs are counted from 0, so none of "
            f"training.epochs={training['epochs']} would be weighted. Give an earlier one, or null"
        )
    return problems
