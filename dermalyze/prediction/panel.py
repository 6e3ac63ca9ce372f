"""Models in memory that look at the same images: file to result, many at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray

from dermalyze.compute import choose_device, choose_precision
from dermalyze.data.decode import PreprocessSpec
from dermalyze.data.threads import chunks_in_threads
from dermalyze.errors import DataError
from dermalyze.inference.answer import Answer, answer_together, over_views
from dermalyze.inference.ensemble import Ensemble
from dermalyze.inference.folding import fold_batch_norm
from dermalyze.inference.forward import images_at_once, refuse_not_finite, view_probabilities
from dermalyze.inference.identity import home_of
from dermalyze.inference.loading import (
    TrainedModel,
    best_checkpoints,
    check_members,
    load_model,
    refuse_number_format,
)
from dermalyze.inference.views import Views
from dermalyze.prediction.fitted_answers import FittedAnswer, fitted_answers
from dermalyze.prediction.pictures import Given, frame_of, known_of, pixels_of
from dermalyze.prediction.results import Failure, ImageUncertainty, PredictedBy, Prediction
from dermalyze.prediction.ways import Way, check_set_method, find_way
from dermalyze.taxonomy import description
from dermalyze.tracking.run_download import local_checkpoints

logger = logging.getLogger(__name__)

Result = Prediction | Failure


@dataclass(frozen=True, eq=False)
class _Seen:
    """An image as the models take it.

    Attributes:
        pixels: for each way to decode among the models.
        known: what is known of it besides.
        told: the columns of that which some model has learnt to make something of.
    """

    name: str
    pixels: dict[PreprocessSpec, NDArray[np.uint8]]
    known: dict[str, Any]
    told: tuple[str, ...]


class Panel:
    """Models that predict together, or one, all of them in memory.

    Args:
        checkpoint: as `best_checkpoints` takes it.
        device: auto, cuda, mps or cpu.
        amp: auto, bf16, fp16 or off.
        set_method: which of `conformal.METHODS` makes prediction sets.
        outputs: folder below which `evaluate` keeps what it fitted for ensembles.

    Raises:
        CheckpointError, DataError, ConfigError: what cannot be used.
    """

    def __init__(
        self,
        checkpoint: str | Sequence[str],
        *,
        device: str,
        amp: str,
        set_method: str,
        outputs: str,
    ) -> None:
        self.set_method = check_set_method(set_method)
        self.device = choose_device(device)
        self.precision = choose_precision(amp, self.device)
        self.models: list[TrainedModel] = [
            load_model(path, self.device) for path in best_checkpoints(checkpoint)
        ]
        check_members(self.models)
        refuse_number_format(amp, self.models)
        for trained in self.models:
            image_size = trained.preprocess.image_size
            fold_batch_norm(trained.model, image_size=image_size, precision=self.precision)
        self.home: Path = home_of(checkpoint, self.models, outputs)
        self.classes = self.models[0].classes
        self.specs = list(dict.fromkeys(model.preprocess for model in self.models))
        self.columns = list(
            dict.fromkeys(column for model in self.models for column in model.encoding.columns)
        )
        if self.columns:
            logger.info(
                "metadata: trained with %s; an image of which they are not given is predicted "
                "without",
                ", ".join(self.columns),
            )

    @property
    def batch_size(self) -> int:
        """How many pictures a batch of the first model's validation had."""
        size: int = self.models[0].header["evaluation_batch_size"]
        return size

    def way(self, views: Views, method: Ensemble) -> Way:
        """Return a way of predicting with these models; see `find_way`."""
        precision = str(self.precision)
        return find_way(views, method, self.models, home=self.home, precision=precision)

    def results(
        self, chunks: Iterable[Sequence[Given]], way: Way, batch_size: int
    ) -> Iterator[list[Result]]:
        """Yield the results of each chunk of images, in order; threads decode ahead of the models.

        Args:
            batch_size: pictures in a batch, all views of an image counted.
        """
        for looked in chunks_in_threads(self._look, chunks):
            seen = [one for one in looked if isinstance(one, _Seen)]
            judged = iter(self._judged(seen, way, batch_size))
            yield [next(judged) if isinstance(one, _Seen) else one for one in looked]

    def _look(self, given: Given) -> _Seen | Failure:
        try:
            known = known_of(given.metadata, self.columns, given.name)
            pixels = {spec: pixels_of(given.picture, spec, given.name) for spec in self.specs}
        except DataError as error:
            return Failure(given.name, str(error))
        return _Seen(given.name, pixels, known, self._told(known))

    def _told(self, known: dict[str, Any]) -> tuple[str, ...]:
        """Return the columns of what is known that some model has learnt to make something of."""
        if not known:
            return ()
        counts = [model.encoding.known(frame_of([known])) for model in self.models]
        return tuple(c for c in self.columns if any(count.get(c) for count in counts))

    def _judged(self, seen: Sequence[_Seen], way: Way, batch_size: int) -> list[Result]:
        if not seen:
            return []
        probs_MVNK = np.stack(
            [self._probabilities(model, seen, way.views, batch_size) for model in self.models]
        )
        try:
            return [*self._predictions(seen, probs_MVNK, way)]
        except DataError as error:  # of one of them, perhaps: the others stand
            if len(seen) == 1:
                return [_failure(seen[0], error)]
        results: list[Result] = []
        for position, one in enumerate(seen):
            try:
                results += self._predictions([one], probs_MVNK[:, :, [position]], way)
            except DataError as error:
                results.append(_failure(one, error))
        return results

    def _probabilities(
        self, model: TrainedModel, seen: Sequence[_Seen], views: Views, batch_size: int
    ) -> np.ndarray:
        """Return probs_VNK of one model, finite or not."""
        step = images_at_once(batch_size, views)
        batches = []
        for start in range(0, len(seen), step):
            part = seen[start : start + step]
            images_BHWC = np.stack([one.pixels[model.preprocess] for one in part])
            batch = [torch.from_numpy(images_BHWC).to(self.device).permute(0, 3, 1, 2)]
            if model.encoding.columns:
                metadata_BM = model.encoding.numbers(frame_of([one.known for one in part]))
                batch.append(torch.from_numpy(metadata_BM).to(self.device))
            batches.append(batch)
        return view_probabilities(model.model, batches, views=views, precision=self.precision)

    def _predictions(
        self, seen: Sequence[_Seen], probs_MVNK: np.ndarray, way: Way
    ) -> list[Prediction]:
        refuse_not_finite(probs_MVNK, [one.name for one in seen])
        answer = answer_together(
            over_views(probs_MVNK, way.views.aggregation),
            probs_MVNK,
            aggregation=way.method.aggregation,
            weights_M=way.weights_M,
        )
        fitted = fitted_answers(way, answer.probs_NK, self.classes, self.set_method)
        return [
            self._prediction(one, answer, position, fitted[position], way)
            for position, one in enumerate(seen)
        ]

    def _prediction(
        self,
        one: _Seen,
        answer: Answer,
        position: int,
        fitted: FittedAnswer,
        way: Way,
    ) -> Prediction:
        probs_K = answer.probs_NK[position]
        best = int(probs_K.argmax())
        unsure = answer.uncertainty.columns()
        return Prediction(
            image=one.name,
            predicted_class=self.classes[best],
            predicted_class_description=description(self.classes[best]),
            confidence=float(probs_K[best]),
            probabilities=dict(zip(self.classes, probs_K.tolist(), strict=True)),
            uncertainty=ImageUncertainty(
                **{name: float(values_N[position]) for name, values_N in unsure.items()}
            ),
            **fitted._asdict(),
            model=PredictedBy(
                checkpoints=tuple(str(model.path) for model in self.models),
                weights=tuple(way.weights_M.tolist()),
                tta=way.views.name,
                tta_aggregation=way.views.aggregation,
                ensemble=way.method.name if len(self.models) > 1 else None,
                metadata=one.told,
            ),
        )


def _failure(one: _Seen, error: DataError) -> Failure:
    return Failure(one.name, f"{one.name}: {error}")


def panel_of(config: dict[str, Any]) -> Panel:
    """Return the models that a config names, those in MLflow fetched first.

    Args:
        config: with checkpoint, device, amp, set_method, tracking_uri and paths, as
            `conf/predict.yaml` has them; plain.

    Raises:
        CheckpointError, DataError, ConfigError: what cannot be used.
    """
    outputs = config["paths"]["outputs"]
    return Panel(
        local_checkpoints(config["checkpoint"], uri=config["tracking_uri"], outputs=outputs),
        device=config["device"],
        amp=config["amp"],
        set_method=config["set_method"],
        outputs=outputs,
    )


def panel_and_way(config: dict[str, Any]) -> tuple[Panel, Way]:
    """Return the models of `panel_of`, and the way of predicting by the config's tta and ensemble.

    Says why where nothing was fitted for that way.
    """
    panel = panel_of(config)
    way = panel.way(
        instantiate(config["tta"], _convert_="all"),
        instantiate(config["ensemble"], _convert_="all"),
    )
    if way.fit is None:
        logger.info("no prediction sets and no calibration: %s", way.why_no_fit)
    return panel, way
