"""Several processes (ranks) that train one run: who does what, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from dermalyze.errors import ConfigError, DermalyzeError, Interrupted
from dermalyze.launch import Launch

_FOLDER, _DONE = "folder", "done"  # keys of the meeting place


class RankLostError(DermalyzeError):
    """Another process of the run has ended or does not answer."""


@dataclass(frozen=True)
class Share:
    """What one rank does of a batch.

    Attributes:
        positions_B: of its images in the batch, rising.
        images: how many of them count, B or 0. Over all ranks they add up to the batch.
    """

    positions_B: np.ndarray
    images: int


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one run; a single one exchanges nothing.

    Every method that exchanges something waits for all ranks, so all of them must call it.
    """

    rank: int
    size: int

    @property
    def is_writer(self) -> bool:
        """Whether this rank writes the run's folder and its tracking; exactly one does."""
        return self.rank == 0

    def share(self, batch: int) -> Share:
        """Return this rank's share of a batch of so many images, at least 2.

        Shares are dealt out in pairs, since neighbours may be mixed with each other; the last image
        of an odd batch goes with the pair before it, since BatchNorm cannot learn from one image. A
        rank for which nothing is left does the first pair without counting it: it has to take part
        in the exchange of gradients.
        """
        positions_B = np.arange(batch)
        pair_of_B = np.minimum(positions_B // 2, batch // 2 - 1)
        own_B = positions_B[pair_of_B % self.size == self.rank]
        return Share(own_B, len(own_B)) if len(own_B) else Share(positions_B[:2], 0)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return the model such that backward passes through it average gradients over the ranks.

        Only what is trainable now takes part, so a model is wrapped anew when that changes.
        """
        if self.size == 1:
            return model
        # Looking for unused parameters finds none, but keeps gradients in the same buckets from the
        # first step on. Otherwise torch sorts them anew after it, and sums of three ranks or more
        # would come out in another order in a run that was resumed there.
        return DistributedDataParallel(model, find_unused_parameters=self.size > 2)

    def accumulating(self, wrapped: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Return the context of one of several passes whose gradients add up; `last` exchanges."""
        if last or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return wrapped.no_sync()

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Let each tensor (float, on the device) become its sum over the ranks, in place."""
        if self.size == 1:
            return
        sums = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(sums)
        pieces = sums.split([tensor.numel() for tensor in tensors])
        pairs = zip(pieces, tensors, strict=True)
        torch._foreach_copy_(list(tensors), [piece.view_as(tensor) for piece, tensor in pairs])

    def gathered(self, value: Any) -> list[Any]:
        """Return what each rank gave, by rank; on the host, for small things."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def refuse_differences(self, facts: Mapping[str, object]) -> None:
        """Hold this rank's facts against those of the others.

        Raises:
            ConfigError: on all ranks, with every difference.
        """
        first, *others = self.gathered(dict(facts))
        problems = [
            f"{name}: {first.get(name)} on rank 0, {other.get(name)} on rank {rank}"
            for rank, other in enumerate(others, start=1)
            for name in sorted(first.keys() | other.keys())
            if first.get(name) != other.get(name)
        ]
        if problems:
            raise ConfigError(
                "the processes of a run must be started by the same command, see the same images "
                "and share the run's folder, but:\n  - " + "\n  - ".join(problems)
            )

    def predicted(
        self, predict: Callable[[np.ndarray], np.ndarray], rows_N: np.ndarray, *, batch_size: int
    ) -> np.ndarray:
        """Return `predict(rows_N)`, done by all ranks together: a batch each, in turn.

        Batches are those that one rank would make, so a result does not depend on how many share
        them; nothing is padded and none is done twice.

        Args:
            predict: rows -> a result for each of them; cuts its rows into batches itself.
            rows_N: at least one.
            batch_size: that of `predict`.
        """
        if self.size == 1:
            return predict(rows_N)
        turn_N = np.arange(len(rows_N)) // batch_size % self.size
        own = predict(rows_N[turn_N == self.rank]) if (turn_N == self.rank).any() else None
        results = self.gathered(own)
        whole = np.empty((len(rows_N), *results[0].shape[1:]), results[0].dtype)
        for rank, result in enumerate(results):
            if result is not None:
                whole[turn_N == rank] = result
        return whole


ALONE = Ranks(rank=0, size=1)


def rank_problems(
    launch: Launch, device: torch.device, *, batch_size: int, sync_batch_norm: bool
) -> list[str]:
    """Return what several processes cannot do, each as a line that names the mend."""
    if launch.size == 1:
        return []
    problems = []
    if batch_size < 2 * launch.size:
        problems.append(
            f"training.batch_size={batch_size} for {launch.size} processes: it is that of all of "
            f"them together, and each needs two images. Use {2 * launch.size} or more, or fewer "
            "processes"
        )
    if device.type == "mps":
        problems.append(
            "training.device=mps: it cannot exchange gradients. Use training.device=cpu, or one "
            "process"
        )
    if device.type == "cuda" and launch.local_rank >= torch.cuda.device_count():
        problems.append(
            f"process {launch.local_rank} of this machine (counted from 0) has no GPU: there are "
            f"{torch.cuda.device_count()}. Start torchrun with --nproc-per-node "
            f"{torch.cuda.device_count()}, or use training.device=cpu"
        )
    if sync_batch_norm and device.type == "cpu":
        problems.append(
            "training.sync_batch_norm=true: torch's synchronised BatchNorm needs GPUs. Set it to "
            "false for processes that compute on the CPU"
        )
    return problems


@contextmanager
def joined(
    launch: Launch, device: torch.device, *, folder: Path, timeout: float
) -> Iterator[Ranks]:
    """Within this context, the processes of a launch can talk to each other.

    The others leave it after the writer has, so that no launcher ends the writer at its work. After
    an error nobody waits for anybody.

    Args:
        launch: which process this is.
        device: of the run; each process gets its own GPU.
        folder: of the run; the first process tells the others, see `told_folder`.
        timeout: seconds to wait for the others at any one time.

    Raises:
        RankLostError: one of the others has ended, or does not answer in time.
    """
    if launch.size == 1:
        yield ALONE
        return
    if launch.rank == 0:
        tell_folder(str(folder))
    if device.type == "cuda":
        torch.cuda.set_device(launch.local_rank)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=meeting_place(),
        rank=launch.rank,
        world_size=launch.size,
        timeout=timedelta(seconds=timeout),
    )
    stopped: Interrupted | None = None
    try:
        yield Ranks(launch.rank, launch.size)
    except Interrupted as stop:
        stopped = stop
    except RuntimeError as error:  # torch has no narrower type for what gloo raises
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise RankLostError(
            "another process of the run has ended, or has not answered for "
            f"training.rank_timeout={timeout:g} seconds. Its own message says why, on its machine. "
            f"Mend that and resume. ({str(error).splitlines()[0]})"
        ) from error
    if launch.rank == 0:
        meeting_place().set(_DONE, "")
    else:
        meeting_place().wait([_DONE], timedelta(seconds=timeout))
    dist.destroy_process_group()
    if stopped is not None:
        raise stopped


@cache
def meeting_place() -> Any:
    """Return torch's store of names and values that all processes of a launch see: always one."""
    store, _, _ = next(rendezvous("env://"))
    return store


def tell_folder(folder: str) -> None:
    """Let the other processes know the run's folder; empty: there is no run to join."""
    meeting_place().set(_FOLDER, folder)


def told_folder() -> str:
    """Return the folder that `tell_folder` was called with in another process; wait for it."""
    folder: bytes = meeting_place().get(_FOLDER)
    return folder.decode()
