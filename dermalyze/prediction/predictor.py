"""The Python interface: `from dermalyze import SkinLesionPredictor, load_ensemble_predictor`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dermalyze.errors import ConfigError, DataError
from dermalyze.prediction.panel import Panel, Result, panel_of
from dermalyze.prediction.pictures import Given, Metadata, Picture, name_of
from dermalyze.prediction.results import Prediction
from dermalyze.prediction.ways import Way, defaults, method_of, views_of

Checkpoint = str | Path
_END = object()
AS_IT_IS = "off"  # the name of the view that training validates with


class SkinLesionPredictor:
    """A trained model that says what it makes of images. For education and research only.

    An image is a path, a binary stream, a Pillow image, a uint8 array (H, W) or (H, W, C), or a
    uint8 tensor of these shapes or (C, H, W); see `dermalyze.prediction.pictures.pixels_of`.
    What is known of it besides may be given as `metadata`, with `age` (years), `sex` and
    `localization`, to a model that was trained with it; `result.model.metadata` says what the
    model was told.

    Args:
        checkpoint: a run's folder, or its checkpoint_best.safetensors; or an address in MLflow
            (of MLFLOW_TRACKING_URI): runs:/RUN_ID, models:/NAME/VERSION, models:/NAME@ALIAS.
        device: auto, cuda, mps or cpu; None: as in conf/predict.yaml, and so for the others.
        amp: number format: auto, bf16, fp16 or off.
        set_method: lac, aps, raps or class_conditional, for `result.prediction_set`.

    Raises:
        CheckpointError, ConfigError: what cannot be used; several models, too.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | None = None,
        amp: str | None = None,
        set_method: str | None = None,
    ) -> None:
        self._panel = _panel(str(checkpoint), device, amp, set_method)
        if len(self._panel.models) > 1:
            raise ConfigError(
                f"checkpoint={checkpoint}: {len(self._panel.models)} models. Use "
                "load_ensemble_predictor for several, or name one of them."
            )
        self._ways: dict[tuple[str, str | None], Way] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The codes of the classes, in the order of `result.probabilities`."""
        return self._panel.classes

    def predict(self, image: Picture, *, metadata: Metadata | None = None) -> Prediction:
        """Return what the model says of an image as it is.

        Raises:
            DataError: the image cannot be used, or its probabilities are not finite.
        """
        return _one(self._panel, image, metadata, self._way(AS_IT_IS, None))

    def predict_with_tta(
        self,
        image: Picture,
        mode: str,
        aggregation: str | None = None,
        *,
        metadata: Metadata | None = None,
    ) -> Prediction:
        """Return what the model says of an image that it sees in several views.

        Args:
            mode: off, light, medium or full.
            aggregation: mean, geometric_mean or max; None: as in conf/tta.

        Raises:
            ConfigError: there is no such mode or aggregation.
            DataError: as `predict`.
        """
        return _one(self._panel, image, metadata, self._way(mode, aggregation))

    def predict_batch(
        self,
        images: Iterable[Picture],
        batch_size: int | None = None,
        *,
        mode: str = AS_IT_IS,
        aggregation: str | None = None,
        metadata: Iterable[Metadata | None] | None = None,
    ) -> Iterator[Result]:
        """Yield what the model says of each image, in order, as it goes along.

        An image that cannot be used gets a `Failure` in its place, and the others stand. Files are
        decoded in threads ahead of the model; no more than a few batches are held in memory.

        Args:
            batch_size: pictures at a time, all views of an image counted; None: as in the
                validation of the model.
            mode, aggregation: as in `predict_with_tta`.
            metadata: of each image, in their order.

        Raises:
            ConfigError: an argument that cannot be used; or, where one of the two ends first, not
                one metadata for each image.
        """
        way = self._way(mode, aggregation)
        return _stream(self._panel, images, metadata, way, batch_size)

    def _way(self, mode: str, aggregation: str | None) -> Way:
        key = (mode, aggregation)
        if key not in self._ways:
            self._ways[key] = self._panel.way(views_of(mode, aggregation), method_of(None, None))
        return self._ways[key]


class EnsemblePredictor:
    """Several trained models that answer as one; made by `load_ensemble_predictor`."""

    def __init__(self, panel: Panel, weights: Sequence[float] | None) -> None:
        self._panel, self._weights = panel, weights
        self._ways: dict[tuple[str, str | None, str | None], Way] = {}
        if weights is not None:
            self._way(AS_IT_IS, None, WEIGHTED)  # refuses weights that are none, at once

    @property
    def classes(self) -> tuple[str, ...]:
        """The codes of the classes, in the order of `result.probabilities`."""
        return self._panel.classes

    def predict(
        self, image: Picture, aggregation: str | None = None, *, metadata: Metadata | None = None
    ) -> Prediction:
        """Return what the models say of an image as it is.

        Args:
            aggregation: mean, weighted_mean, geometric_mean or greedy; None: as in
                conf/predict.yaml.

        Raises:
            ConfigError: there is no such aggregation, or an evaluation must choose weights first.
            DataError: the image cannot be used, or its probabilities are not finite.
        """
        return _one(self._panel, image, metadata, self._way(AS_IT_IS, None, aggregation))

    def predict_with_tta(
        self,
        image: Picture,
        tta_mode: str,
        tta_aggregation: str | None = None,
        ensemble_aggregation: str | None = None,
        *,
        metadata: Metadata | None = None,
    ) -> Prediction:
        """Return what the models say of an image that each of them sees in several views.

        Args:
            tta_mode, tta_aggregation: as of `SkinLesionPredictor.predict_with_tta`.
            ensemble_aggregation: as of `predict`.

        Raises:
            ConfigError, DataError: as of these.
        """
        way = self._way(tta_mode, tta_aggregation, ensemble_aggregation)
        return _one(self._panel, image, metadata, way)

    def predict_batch(
        self,
        images: Iterable[Picture],
        batch_size: int | None = None,
        *,
        tta_mode: str = AS_IT_IS,
        tta_aggregation: str | None = None,
        ensemble_aggregation: str | None = None,
        metadata: Iterable[Metadata | None] | None = None,
    ) -> Iterator[Result]:
        """Yield what the models say of each image; see `SkinLesionPredictor.predict_batch`."""
        way = self._way(tta_mode, tta_aggregation, ensemble_aggregation)
        return _stream(self._panel, images, metadata, way, batch_size)

    def _way(self, mode: str, tta_aggregation: str | None, aggregation: str | None) -> Way:
        key = (mode, tta_aggregation, aggregation)
        if key not in self._ways:
            weighted = aggregation in (None, WEIGHTED)
            method = method_of(aggregation, self._weights if weighted else None)
            self._ways[key] = self._panel.way(views_of(mode, tta_aggregation), method)
        return self._ways[key]


WEIGHTED = "weighted_mean"


def load_ensemble_predictor(
    checkpoints: Checkpoint | Sequence[Checkpoint],
    *,
    weights: Sequence[float] | None = None,
    device: str | None = None,
    amp: str | None = None,
    set_method: str | None = None,
) -> EnsemblePredictor:
    """Return several trained models as one predictor, all of them in memory.

    Args:
        checkpoints: runs' folders, their checkpoints or addresses in MLflow; or the folder of a
            multirun.
        weights: of weighted_mean, one a model in their order; None: by each model's validation.
        device, amp, set_method: as of `SkinLesionPredictor`.

    Raises:
        CheckpointError, DataError, ConfigError: models or weights that cannot be used.
    """
    named = (
        str(checkpoints)
        if isinstance(checkpoints, str | Path)
        else [str(checkpoint) for checkpoint in checkpoints]
    )
    return EnsemblePredictor(_panel(named, device, amp, set_method), weights)


def _panel(
    checkpoint: str | Sequence[str],
    device: str | None,
    amp: str | None,
    set_method: str | None,
) -> Panel:
    asked = {"device": device, "amp": amp, "set_method": set_method}
    given = {name: value for name, value in asked.items() if value}
    return panel_of({**defaults(), **given, "checkpoint": checkpoint})


def _one(panel: Panel, image: Picture, metadata: Metadata | None, way: Way) -> Prediction:
    given = Given(name_of(image, 0), image, metadata)
    ((result,),) = panel.results([[given]], way, panel.batch_size)
    if isinstance(result, Prediction):
        return result
    raise DataError(result.error)


def _stream(
    panel: Panel,
    images: Iterable[Picture],
    metadata: Iterable[Metadata | None] | None,
    way: Way,
    batch_size: int | None,
) -> Iterator[Result]:
    size = panel.batch_size if batch_size is None else batch_size
    if size < 1:
        raise ConfigError(f"batch_size={size}: at least 1 is needed.")
    if isinstance(images, str | Path):
        raise ConfigError(f"images={images}: one path, where several images are asked for: [PATH].")
    if isinstance(metadata, Mapping):
        raise ConfigError("metadata: that of one image. Give a list, with one for each image.")
    given = (
        Given(name_of(image, position), image, known)
        for position, (image, known) in enumerate(_pairs(images, metadata))
    )
    chunks = iter(lambda: list(itertools.islice(given, size)), [])
    return itertools.chain.from_iterable(panel.results(chunks, way, size))


def _pairs(
    images: Iterable[Picture], metadata: Iterable[Metadata | None] | None
) -> Iterator[tuple[Picture, Metadata | None]]:
    """Yield each image with what is known of it, or with nothing."""
    if metadata is None:
        yield from ((image, None) for image in images)
        return
    pairs: Iterable[tuple[Any, Any]] = itertools.zip_longest(images, metadata, fillvalue=_END)
    for number, pair in enumerate(pairs):
        for name, value in zip(("images", "metadata"), pair, strict=True):
            if value is _END:
                raise ConfigError(f"{name}: ends after {number}. Give a metadata for each image.")
        yield pair
