"""What is said of an image: typed, frozen, and read like a dict as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from dermalyze.taxonomy import DISCLAIMER


class ReadsLikeADict(Mapping[str, Any]):
    """For dataclasses: `result["name"]` is `result.name`, and `dict(result)` is all of it."""

    def __getitem__(self, key: str) -> Any:
        if key not in self.names():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the keys, in order."""
        return tuple(field.name for field in fields(cls))  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        """Return plain containers, ready for JSON."""
        return {name: _plain(value) for name, value in self.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, eq=False)
class ImageUncertainty(ReadsLikeADict):
    """How sure a prediction is; see `dermalyze.inference.uncertainty` for what each is."""

    predictive_entropy: float
    mutual_information: float
    predicted_class_deviation: float
    margin: float


@dataclass(frozen=True, eq=False)
class PredictedBy(ReadsLikeADict):
    """What predicted: models, in which way, and told what.

    Attributes:
        checkpoints: the files of the models.
        weights: of each model, summing to 1.
        tta: name of the views that they saw, "off" for the image as it is.
        tta_aggregation: how the views of a model became one.
        ensemble: how the models became one; None for one model.
        metadata: the columns besides the pixels that a model was told of this image.
    """

    checkpoints: tuple[str, ...]
    weights: tuple[float, ...]
    tta: str
    tta_aggregation: str
    ensemble: str | None
    metadata: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Prediction(ReadsLikeADict):
    """What models say of one image.

    Attributes:
        image: the path as it was given, or what an image without a path is called.
        predicted_class: the code of the most probable class, the first of equals.
        predicted_class_description: its name in words.
        confidence: its probability.
        probabilities: of each class by its code, in the models' order, summing to 1; as the models
            give them.
        uncertainty: how sure the probabilities are.
        prediction_set: codes of the classes, made to hold the true one as often as
            `prediction_set_note` says; None where nothing was fitted for it.
        prediction_set_note: how the set was made, or why there is none.
        calibrated_probabilities: `probabilities` after the temperature that validation chose, in
            the same order; None where none was fitted.
        abstain: whether the largest of these is below the confidence from which on the model
            should answer; None where none was found.
        calibration_note: with which temperature and confidence, or why there are none.
        model: what predicted.
        disclaimer: what a prediction may not be used for.
    """

    image: str
    predicted_class: str
    predicted_class_description: str
    confidence: float
    probabilities: Mapping[str, float]
    uncertainty: ImageUncertainty
    prediction_set: tuple[str, ...] | None
    prediction_set_note: str
    calibrated_probabilities: Mapping[str, float] | None
    abstain: bool | None
    calibration_note: str
    model: PredictedBy
    disclaimer: str = DISCLAIMER


@dataclass(frozen=True, eq=False)
class Failure(ReadsLikeADict):
    """An image of which nothing can be said, and why: `"error" in result` tells it apart.

    Attributes:
        image: as in `Prediction`.
        error: the reason, which begins with the file, or with what an image without one is called.
        disclaimer: as in `Prediction`.
    """

    image: str
    error: str
    disclaimer: str = DISCLAIMER
