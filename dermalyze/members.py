"""The models that predict together: read and held against each other, then run one by one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermalyze.compute import choose_precision
from dermalyze.data.batches import open_store
from dermalyze.data.table import LesionTable
from dermalyze.errors import DataError
from dermalyze.evaluation.logit_adjustment import adjusted_probabilities
from dermalyze.inference.aggregate import aggregated
from dermalyze.inference.ensemble import Candidates, Ensemble
from dermalyze.inference.forward import predict_views
from dermalyze.inference.loading import ModelFacts, best_checkpoints, load_model, read_facts
from dermalyze.inference.uncertainty import Uncertainty, uncertainty
from dermalyze.inference.views import Views

logger = logging.getLogger(__name__)

Node = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Answer:
    """What models say together: probs_NK, how sure they are, and the weight of each model."""

    probs_NK: np.ndarray
    uncertainty: Uncertainty
    weights_M: np.ndarray


def read_members(checkpoint: str | Sequence[str]) -> list[ModelFacts]:
    """Return what the checkpoints of an ensemble, or of one model, say of their models.

    A model that is there twice is warned of: it has two votes.

    Raises:
        CheckpointError, DataError: a checkpoint that cannot be used, or classes that differ, also
            in their order.
    """
    members = [read_facts(path) for path in best_checkpoints(checkpoint)]
    one, paths = members[0], dict[str, Path]()
    for member in members:
        if member.classes != one.classes:
            raise DataError(
                "models of an ensemble need the same classes in the same order.\n"
                f"  {one.path}: {', '.join(one.classes)}\n"
                f"  {member.path}: {', '.join(member.classes)}"
            )
        if len(members) == 1:
            break
        with member.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        if content in paths:
            logger.warning(
                "ensemble: %s and %s are the same model, which has two votes",
                paths[content],
                member.path,
            )
        paths.setdefault(content, member.path)
        logger.info("ensemble: %s, %s", member.path, member.preprocess.as_dict())
    return members


class Members:
    """Models, the data they predict on, and what their probabilities are corrected by.

    Args:
        config: checked, plain, of `python -m dermalyze.evaluate`.
        facts: of the models.
        table: of the images; each model decodes them in its own way.
        views: that each model sees of an image.
        adjustment: tau and class_counts of the logit adjustment, None without one.
    """

    def __init__(
        self,
        *,
        config: Node,
        facts: Sequence[ModelFacts],
        table: LesionTable,
        views: Views,
        adjustment: Node | None,
        device: torch.device,
    ) -> None:
        self.config, self.facts, self.table = config, facts, table
        self.views, self.adjustment, self.device = views, adjustment, device

    def answer(self, rows_N: np.ndarray, val_rows: np.ndarray | None, method: Ensemble) -> Answer:
        """Return what the models say of rows of the table.

        Args:
            val_rows: of the validation split, for a method that needs it; else None.
            method: how several models become one.
        """
        split_at = len(rows_N)
        rows = rows_N if val_rows is None else np.concatenate([rows_N, val_rows])
        probs_MVNK = np.stack([self._probabilities(member, rows) for member in self.facts])
        probs_MNK = np.stack(
            [aggregated(views, aggregation=self.views.aggregation) for views in probs_MVNK]
        )
        candidates = Candidates(
            [str(member.path) for member in self.facts],
            [member.header.get("validation_metrics", {}) for member in self.facts],
            None if val_rows is None else self.table.labels[val_rows],
            None if val_rows is None else probs_MNK[:, split_at:],
        )
        weights_M = method.weights(candidates)
        probs_NK = aggregated(
            probs_MNK[:, :split_at], aggregation=method.aggregation, weights_V=weights_M
        )
        unsure = uncertainty(probs_NK, probs_MVNK[:, :, :split_at], weights_M)
        return Answer(probs_NK, unsure, weights_M)

    def _probabilities(self, member: ModelFacts, rows_N: np.ndarray) -> np.ndarray:
        """Return probs_VNK of one model, which is loaded for this and then let go."""
        trained, config = load_model(member.path, self.device), self.config
        store = open_store(
            self.table,
            trained.preprocess,
            config["paths"]["cache"],
            self.device,
            encoding=trained.encoding,
        )
        probs_VNK = predict_views(
            trained.model,
            store,
            rows_N,
            views=self.views,
            batch_size=config["batch_size"] or trained.header["evaluation_batch_size"],
            precision=choose_precision(config["amp"], self.device),
        )
        if self.adjustment is None:
            return probs_VNK
        counts_K, tau = list(self.adjustment["class_counts"].values()), self.adjustment["tau"]
        return np.stack(
            [adjusted_probabilities(probs_NK, counts_K, tau=tau) for probs_NK in probs_VNK]
        )
