"""The models that predict together: read and held against each other, then run one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dermalyze.compute import choose_precision
from dermalyze.data.batches import open_store
from dermalyze.data.table import LesionTable
from dermalyze.evaluation.logit_adjustment import adjusted_probabilities
from dermalyze.inference.answer import Answer, answer_together, over_views
from dermalyze.inference.ensemble import Candidates, Ensemble
from dermalyze.inference.features import Features
from dermalyze.inference.folding import fold_batch_norm
from dermalyze.inference.forward import predict_views
from dermalyze.inference.loading import (
    ModelFacts,
    best_checkpoints,
    check_members,
    load_model,
    read_facts,
)
from dermalyze.inference.views import Views

Node = dict[str, Any]


def read_members(checkpoint: str | Sequence[str]) -> list[ModelFacts]:
    """Return what the checkpoints of an ensemble, or of one model, say of their models.

    Raises:
        CheckpointError, DataError: a checkpoint that cannot be used; see also `check_members`.
    """
    members = [read_facts(path) for path in best_checkpoints(checkpoint)]
    check_members(members)
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

    def answer(
        self,
        rows_N: np.ndarray,
        method: Ensemble,
        *,
        val_rows: np.ndarray | None = None,
        weights_M: np.ndarray | None = None,
    ) -> Answer:
        """Return what the models say of rows of the table.

        Args:
            method: how several models become one.
            val_rows: of the validation split, for a method that chooses weights on it; else None.
            weights_M: found before; None: the method finds them.
        """
        split_at = len(rows_N)
        rows = rows_N if val_rows is None else np.concatenate([rows_N, val_rows])
        looked = [self._look(member, rows) for member in self.facts]
        probs_MVNK = np.stack([probs_VNK for probs_VNK, _ in looked])
        probs_MNK = over_views(probs_MVNK, self.views.aggregation)
        if weights_M is None:
            candidates = Candidates(
                [str(member.path) for member in self.facts],
                [member.header.get("validation_metrics", {}) for member in self.facts],
                None if val_rows is None else self.table.labels[val_rows],
                None if val_rows is None else probs_MNK[:, split_at:],
            )
            weights_M = method.weights(candidates)
        return answer_together(
            probs_MNK[:, :split_at],
            probs_MVNK[:, :, :split_at],
            aggregation=method.aggregation,
            weights_M=weights_M,
            features_MNF=[None if found is None else found[:split_at] for _, found in looked],
        )

    def _look(self, member: ModelFacts, rows_N: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return probs_VNK and features_NF of one model, loaded for this and then let go."""
        trained, config = load_model(member.path, self.device), self.config
        precision = choose_precision(config["amp"], self.device)
        image_size = trained.preprocess.image_size
        fold_batch_norm(trained.model, image_size=image_size, precision=precision)
        store = open_store(
            self.table,
            trained.preprocess,
            config["paths"]["cache"],
            self.device,
            encoding=trained.encoding,
        )
        features = Features(views=len(self.views))
        with features.gathered_from(trained.model):
            probs_VNK = predict_views(
                trained.model,
                store,
                rows_N,
                views=self.views,
                batch_size=config["batch_size"] or trained.header["evaluation_batch_size"],
                precision=precision,
            )
        if self.adjustment is not None:
            counts_K, tau = list(self.adjustment["class_counts"].values()), self.adjustment["tau"]
            probs_VNK = np.stack(
                [adjusted_probabilities(probs_NK, counts_K, tau=tau) for probs_NK in probs_VNK]
            )
        return probs_VNK, features.array()
