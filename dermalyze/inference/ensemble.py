"""How several models become one: what each has to say, and how it is merged."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from dermalyze.config import raise_problems
from dermalyze.errors import CheckpointError, ConfigError, nearest
from dermalyze.evaluation.metrics import direction, summary_metrics
from dermalyze.inference.aggregate import Aggregation, aggregated

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Candidates:
    """M models by name, and what is known of them on validation.

    Attributes:
        names: of the models, for messages.
        metrics: of each on its own validation split, as in its checkpoint: "val/loss" and so on.
        labels_N: classes of a validation split that all share; None where no method looks at it.
        probs_MNK: what the models say of it; None likewise.
    """

    names: Sequence[str]
    metrics: Sequence[dict[str, float | None]]
    labels_N: np.ndarray | None = None
    probs_MNK: np.ndarray | None = None


class Ensemble(Protocol):
    """Gives each of M models a weight, and says how they are merged.

    `chosen_by` holds the options by which weights are chosen on validation: other ones make it
    another way of predicting, even where the weights come out alike.
    """

    name: ClassVar[str]
    aggregation: ClassVar[Aggregation]

    @property
    def chosen_by(self) -> Mapping[str, Any]:
        """Return the options, empty where validation chooses nothing."""
        ...

    def weights(self, candidates: Candidates) -> np.ndarray:
        """Return weights_M, >= 0, summing to 1."""
        ...


class Mean:
    """Each model says as much as any other; probabilities are averaged."""

    name: ClassVar[str] = "mean"
    aggregation: ClassVar[Aggregation] = "mean"
    chosen_by: ClassVar[Mapping[str, Any]] = {}

    def weights(self, candidates: Candidates) -> np.ndarray:
        """Return 1 / M for each."""
        return np.full(len(candidates.names), 1 / len(candidates.names))


class GeometricMean:
    """Each says as much as any other; logarithms of probabilities are averaged."""

    name: ClassVar[str] = "geometric_mean"
    aggregation: ClassVar[Aggregation] = "geometric_mean"
    chosen_by: ClassVar[Mapping[str, Any]] = {}

    def weights(self, candidates: Candidates) -> np.ndarray:
        """Return 1 / M for each."""
        return np.full(len(candidates.names), 1 / len(candidates.names))


class WeightedMean:
    """Weights are in proportion to a metric of each model on its validation split, or given.

    Args:
        metric: in the checkpoints' headers, such as val/balanced_accuracy; more must be better.
        weights: one a model in their order, in any unit; None: by the metric.

    Raises:
        ConfigError: no such metric of validation, or one of which less is better; weights that are
            negative, not finite or all 0.
    """

    name: ClassVar[str] = "weighted_mean"
    aggregation: ClassVar[Aggregation] = "mean"
    chosen_by: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, *, metric: str, weights: Sequence[float] | None) -> None:
        metric = _on_validation(metric)
        if direction(metric) == "min":
            raise ConfigError(
                f"ensemble.metric={metric}: less of it is better, so it is no weight. Use a metric "
                "such as val/balanced_accuracy."
            )
        if weights is not None:
            place = f"ensemble.weights={list(weights)}"
            problems = [
                f"{place}: {weight} is no finite number of at least 0"
                for weight in weights
                if not 0 <= weight < math.inf
            ]
            if not problems and sum(weights) == 0:
                problems = [f"{place}: their sum is 0, so no model says anything"]
            raise_problems(problems)
        self.metric, self.given = metric, weights

    def weights(self, candidates: Candidates) -> np.ndarray:
        """Return the given weights, or the metrics, scaled to sum to 1.

        Raises:
            ConfigError: not one weight a model.
            CheckpointError: a checkpoint does not say the metric, or all of them say 0.
        """
        names = candidates.names
        if self.given is not None:
            if len(self.given) != len(names):
                raise ConfigError(
                    f"ensemble.weights={list(self.given)}: {len(self.given)} weights for "
                    f"{len(names)} models ({', '.join(names)}). Give one for each, in their order."
                )
            return _scaled(self.given)
        if len(names) == 1:  # whatever its metric is, it speaks alone
            return np.ones(1)
        values = []
        for name, metrics in zip(names, candidates.metrics, strict=True):
            value = metrics.get(self.metric)
            if value is None:
                raise CheckpointError(
                    f"ensemble.metric={self.metric}: {name} does not say it of its validation."
                    f"{nearest(self.metric, metrics)} Use another metric, or ensemble=mean."
                )
            values.append(value)
        if sum(values) == 0:
            raise CheckpointError(
                f"ensemble.metric={self.metric}: is 0 of all models ({', '.join(names)}), so none "
                "would say anything. Use another metric, or ensemble=mean."
            )
        return _scaled(values)


class Greedy:
    """Forward selection with replacement on validation: the best mean of `rounds` choices.

    Caruana et al. 2004, "Ensemble selection from libraries of models", section 2.1: each round
    adds the model with which the mean of all choices so far does best, the first of equals. The
    weights are those of the round that did best, the first of equals.

    Args:
        metric: of the validation split, such as val/balanced_accuracy.
        rounds: choices, >= 1.

    Raises:
        ConfigError: no such metric of validation, or no round.
    """

    name: ClassVar[str] = "greedy"
    aggregation: ClassVar[Aggregation] = "mean"

    def __init__(self, *, metric: str, rounds: int) -> None:
        metric = _on_validation(metric)
        self.sign = 1.0 if direction(metric) == "max" else -1.0
        if rounds < 1:
            raise ConfigError(f"ensemble.rounds={rounds}: at least 1 is needed.")
        self.metric, self.rounds = metric, rounds
        self.chosen_by: Mapping[str, Any] = {"metric": metric, "rounds": rounds}

    def weights(self, candidates: Candidates) -> np.ndarray:
        """Return how often each model was chosen, as shares.

        Raises:
            ConfigError: the validation split leaves the metric undefined.
        """
        count = len(candidates.names)
        if count == 1:
            return np.ones(1)
        if candidates.labels_N is None or candidates.probs_MNK is None:
            raise TypeError("greedy selection looks at validation, and none was handed in")
        chosen_M = np.zeros(count)
        best_score, best_M = -math.inf, chosen_M
        for _ in range(self.rounds):
            scores = [
                self._score(candidates.labels_N, candidates.probs_MNK, chosen_M + one_M)
                for one_M in np.eye(count)
            ]
            chosen_M = chosen_M + np.eye(count)[int(np.argmax(scores))]
            if max(scores) > best_score:
                best_score, best_M = max(scores), chosen_M
        logger.info("greedy: %s on validation is %.4f", self.metric, self.sign * best_score)
        return _scaled(best_M)

    def _score(self, labels_N: np.ndarray, probs_MNK: np.ndarray, counts_M: np.ndarray) -> float:
        probs_NK = aggregated(probs_MNK, aggregation=self.aggregation, weights_V=_scaled(counts_M))
        value = summary_metrics(labels_N, probs_NK)[self.metric.removeprefix("val/")]
        if value is None:
            raise ConfigError(
                f"ensemble.metric={self.metric}: the validation split leaves it undefined. Use "
                "another one."
            )
        return self.sign * value


def _on_validation(metric: str) -> str:
    """Return the metric under validation's name, which it may be given without.

    Raises:
        ConfigError: it is that of another part, or there is none of its name.
    """
    direction(metric)
    part, _, name = metric.rpartition("/")
    if part not in ("", "val"):
        raise ConfigError(
            f"ensemble.metric={metric}: weights are found on validation alone. Use val/{name}."
        )
    return f"val/{name}"


def _scaled(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values_M = np.asarray(values, dtype=np.float64)
    scaled_M: np.ndarray = values_M / values_M.sum()
    return scaled_M
