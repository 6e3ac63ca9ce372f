"""Which of the processes of a run this one is, as torchrun tells each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dermalyze.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """One process among those that were started together.

    Attributes:
        rank: counted from 0 over all machines.
        size: how many processes there are.
        local_rank: counted from 0 on this machine: the CUDA device that is this process's own.
    """

    rank: int
    size: int
    local_rank: int


def launch_of(environment: Mapping[str, str]) -> Launch:
    """Read RANK, WORLD_SIZE and LOCAL_RANK; a process that was not told of others is alone.

    Args:
        environment: such as `os.environ`.

    Raises:
        ConfigError: there are others, but which of them this one is stands nowhere.
    """
    try:
        size = int(environment.get("WORLD_SIZE", "1"))
        if size == 1:
            return Launch(rank=0, size=1, local_rank=0)
        return Launch(int(environment["RANK"]), size, int(environment["LOCAL_RANK"]))
    except (KeyError, ValueError) as error:
        shown = ", ".join(
            f"{name}={environment.get(name, '(absent)')}"
            for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")
        )
        raise ConfigError(
            f"{shown}: these variables are torchrun's, and each must be a number. Start several "
            "processes with torchrun --nproc-per-node N -m dermalyze.train, or a single one with "
            "WORLD_SIZE unset."
        ) from error
