"""Wires `python -m dermalyze.predict`: models and a list of images in, a file or lines out."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

import dermalyze
from dermalyze.engine.interruption import Interruption
from dermalyze.errors import ConfigError
from dermalyze.files import joined_codes
from dermalyze.inference.identity import way_of
from dermalyze.prediction.listing import identity_of, listed_images
from dermalyze.prediction.panel import Panel, Result, panel_and_way
from dermalyze.prediction.parts import Parts
from dermalyze.prediction.pictures import Given
from dermalyze.prediction.results import Prediction
from dermalyze.prediction.tables import check_ending, write_table
from dermalyze.prediction.ways import Way
from dermalyze.tracking.run_lock import run_lock

logger = logging.getLogger(__name__)

Node = dict[str, Any]


@dataclass
class Tally:
    """How many images there were, how many failed, and why the first did."""

    images: int = 0
    failures: int = 0
    first_error: str | None = None

    def count(self, error: str | None) -> None:
        """Count an image that has this error, or none."""
        self.images += 1
        if error is not None:
            self.failures += 1
            self.first_error = self.first_error or error


def predict_many(config: Node) -> Tally:
    """Predict what `conf/predict.yaml` describes; say it on the screen or write it.

    Args:
        config: checked, plain.

    Raises:
        CheckpointError, DataError, ConfigError: what the user can mend, images that failed apart.
        Interrupted: a signal asked to stop; the parts that were done are kept.
    """
    output = None if config["output"] is None else check_ending(config["output"])
    if output is not None:
        _refuse_existing(output)
    panel, way = panel_and_way(config)
    batch_size = config["batch_size"] or panel.batch_size
    listing = listed_images(config["images"])
    if output is None:
        return _said(panel, way, listing, batch_size)
    tally, parts = Tally(), Parts(output, config["part_size"])
    try:
        parts.folder.mkdir(parents=True, exist_ok=True)
        with run_lock(parts.folder):
            parts.begin(_about(panel, way, config, batch_size), listing)
            _fill(parts, panel, way, batch_size)
            _refuse_existing(output)
            write_table(output, _counted(parts.records(), tally), panel.classes)
        parts.remove()
    except OSError as error:
        raise ConfigError(
            f"output={output}: cannot be written ({error}). Make room, or name another place. What "
            f"is done lies in {parts.folder}; the same command goes on from there."
        ) from error
    return tally


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise ConfigError(
            f"output={output}: is there already. Name another file, or remove this one."
        )


def _about(panel: Panel, way: Way, config: Node, batch_size: int) -> Node:
    """Return what decides the results, to the last bit on one machine."""
    return {
        **identity_of(config["images"]),
        "models": [_sha256(model.path) for model in panel.models],
        "way": way_of(way.views, way.method, way.weights_M),
        "fit": hashlib.sha256(json.dumps(way.fit, sort_keys=True).encode()).hexdigest(),
        "set_method": panel.set_method,
        "batch_size": batch_size,
        "device": str(panel.device),
        "precision": str(panel.precision),
        "dermalyze": dermalyze.__version__,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fill(parts: Parts, panel: Panel, way: Way, batch_size: int) -> None:
    """Predict the parts that are not there. Batches end where parts do: each is predicted alike."""
    done = len(parts.done())
    if done:
        logger.info("%d of %d parts are there already", done, len(parts))
    sizes: deque[tuple[int, int]] = deque()  # number and batches of the parts that are under way

    def batches() -> Iterator[Sequence[Given]]:
        for number, images in parts.missing():
            cut = [images[at : at + batch_size] for at in range(0, len(images), batch_size)]
            sizes.append((number, len(cut)))
            yield from cut

    results = panel.results(batches(), way, batch_size)
    begun_with = min(done * parts.size, parts.images)
    with (
        Interruption() as interruption,
        tqdm(
            total=parts.images,
            initial=begun_with,
            desc="predict",
            unit="image",
            disable=None,
            delay=2,
        ) as progress,
    ):
        for batch in results:
            interruption.stop_if_requested()
            number, count = sizes.popleft()
            records = [result.as_dict() for result in batch]
            progress.update(len(batch))
            for more in islice(results, count - 1):
                interruption.stop_if_requested()
                records += [result.as_dict() for result in more]
                progress.update(len(more))
            parts.keep(number, records)


def _counted(parts: Iterable[list[Node]], tally: Tally) -> Iterator[list[Node]]:
    for records in parts:
        for record in records:
            tally.count(record.get("error"))
        yield records


def _said(panel: Panel, way: Way, listing: Iterator[Given], batch_size: int) -> Tally:
    """Print a line for each image as it comes."""
    tally = Tally()
    batches = iter(lambda: list(islice(listing, batch_size)), [])
    for batch in panel.results(batches, way, batch_size):
        for result in batch:
            tally.count(None if isinstance(result, Prediction) else result.error)
            try:
                print(_line(result), flush=True)
            except BrokenPipeError:  # who reads the lines, such as `head`, has enough of them
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return tally
    return tally


def _line(result: Result) -> str:
    if not isinstance(result, Prediction):
        return f"{result.image}: no prediction: {result.error}"
    first, *others = sorted(result.probabilities.items(), key=lambda item: -item[1])
    name = result.predicted_class_description
    line = f"{result.image}: {first[0]} {first[1]:.4f}"
    if name != first[0]:
        line += f" ({name})"
    line += "; " + ", ".join(f"{code} {probability:.4f}" for code, probability in others)
    if result.prediction_set is not None:
        codes = joined_codes(result.prediction_set, result.probabilities)
        line += f"; one of {codes} ({result.prediction_set_note})"
    if result.abstain:
        line += f"; not sure enough to answer ({result.calibration_note})"
    return line
