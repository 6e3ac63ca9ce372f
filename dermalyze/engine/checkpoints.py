"""The two checkpoints of a run: the best model, and the latest state to resume from."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from dermalyze.checkpoint_file import (
    BEST,
    LATEST,
    previous_of,
    read_checkpoint,
    write_checkpoint,
)
from dermalyze.engine.state import TrainState
from dermalyze.errors import CheckpointError

logger = logging.getLogger(__name__)

_ARITHMETIC = (
    *("threads", "device", "precision", "ranks", "evaluation_batch_size"),
    *("torch", "timm", "pillow"),
)


class NoCheckpoints:
    """Keeps nothing: for the ranks beside the one that writes."""

    def save_latest(self, state: TrainState) -> None:
        """Do nothing."""

    def save_best(self, state: TrainState, model: nn.Module, weights: str) -> None:
        """Do nothing."""


class RunCheckpoints:
    """Writes and reads the checkpoints in a run's folder.

    Args:
        folder: the run's folder.
        about: what every checkpoint of this run says of itself: model config, classes,
            preprocessing, lesions seen, split fingerprint, software versions.
    """

    def __init__(self, *, folder: Path, about: dict[str, Any]) -> None:
        self.best = folder / BEST
        self.latest = folder / LATEST
        self.about = about

    @property
    def exist(self) -> bool:
        """Whether there is a state to resume from, good or not."""
        return self.latest.exists() or previous_of(self.latest).exists()

    def check_room(self, state: TrainState) -> None:
        """Find out before training whether the disk holds what training will save.

        Raises:
            CheckpointError: needed against free.
        """
        weights = sum(value.nbytes for value in state.model.state_dict().values())
        tensors = state.tensors()
        now = sum(value.nbytes for value in tensors.values())
        # Two moments will come to it, if they have not yet. The latest state, the one before it and
        # one being written; and the best model twice, for the same reason.
        has_moments = any(name.startswith("optimizer/") for name in tensors)
        latest = now if has_moments else now + 2 * weights
        kept = [self.latest, previous_of(self.latest), self.best, previous_of(self.best)]
        there = sum(path.stat().st_size for path in kept if path.exists())
        needed = 3 * latest + 2 * weights - there
        free = shutil.disk_usage(self.latest.parent).free
        if free < needed:
            mend = (
                "Make room, then resume"
                if self.exist
                else "Make room, or name a folder on another disk with hydra.run.dir=FOLDER"
            )
            raise CheckpointError(
                f"{self.latest.parent}: this run's checkpoints need about {needed / 2**20:.0f} MiB "
                f"and {free / 2**20:.0f} are free. {mend}."
            )

    def save_best(self, state: TrainState, model: nn.Module, weights: str) -> None:
        """Keep the weights to predict with, and what they reached on validation.

        Args:
            state: its `best_record` is that of the weights.
            model: has the weights.
            weights: what they are: raw, or which average.
        """
        record = state.best_record or {}
        metrics = {name: value for name, value in record.items() if name.startswith("val/")}
        write_checkpoint(
            self.best,
            model.state_dict(),
            {
                **self.about,
                "kind": "best",
                "weights": weights,
                "epoch": record["epoch"],
                "monitor": state.stopping.monitor,
                "validation_metrics": metrics,
            },
        )

    def save_latest(self, state: TrainState) -> None:
        """Keep everything that resuming needs; the one before stays beside it."""
        header = {**self.about, "kind": "latest", "state": state.numbers()}
        write_checkpoint(self.latest, state.tensors(), header)

    def load_latest(self, state: TrainState) -> bool:
        """Restore the latest good state; return False where nothing was saved yet.

        A damaged latest checkpoint falls back to the one before it, and says so: the steps in
        between are done again, with the same result.

        Raises:
            CheckpointError: files are there, and none of them is good; or they are of another
                run than this config and these data make.
        """
        paths = [path for path in (self.latest, previous_of(self.latest)) if path.exists()]
        problems: list[str] = []
        for path in paths:
            try:
                tensors, header = read_checkpoint(path)
            except CheckpointError as error:
                problems.append(str(error))
                logger.warning("%s; falling back to the checkpoint before it", error)
                continue
            self._refuse_other_run(path, header)
            state.restore(tensors, header["state"])
            logger.info(
                "resuming from %s: epoch %d, step %d", path.name, state.epoch + 1, state.step
            )
            return True
        if problems:
            raise CheckpointError(
                "no checkpoint can be resumed from:\n  - " + "\n  - ".join(problems)
            )
        return False

    def _refuse_other_run(self, path: Path, header: dict[str, Any]) -> None:
        for key in ("classes", "model", "preprocess", "metadata", "split_fingerprint"):
            if header.get(key) != self.about[key]:
                raise CheckpointError(
                    f"{path}: made with another {key}.\n  checkpoint: {header.get(key)}\n"
                    f"  this run:   {self.about[key]}"
                )
        images = header.get("images_fingerprint", self.about["images_fingerprint"])
        if images != self.about["images_fingerprint"]:
            raise CheckpointError(
                f"{path}: was trained on other files: images have changed since, though the table "
                "is the same. Put back those that were there, or begin a new run."
            )
        before, now = _arithmetic(header), _arithmetic(self.about)
        for key in sorted(before.keys() & now.keys()):
            if before[key] != now[key]:
                logger.warning(
                    "the run so far used %s=%s, now %s: the result will be as good, but not equal "
                    "to the last bit",
                    key,
                    before[key],
                    now[key],
                )


def _arithmetic(header: dict[str, Any]) -> dict[str, Any]:
    """Return what results depend on in their last digits, as far as a header tells."""
    told = {**header, **header["software"]}
    return {key: told[key] for key in _ARITHMETIC if key in told}
