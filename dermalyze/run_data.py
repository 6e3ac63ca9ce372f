"""The images of a run: their table, who is in which part, and what a model is told of them."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate

from dermalyze.data.batches import ImageStore, open_store
from dermalyze.data.checksums import checksums
from dermalyze.data.decode import PreprocessSpec
from dermalyze.data.metadata_features import MetadataEncoding, fit_encoding
from dermalyze.data.split import Split
from dermalyze.data.table import LesionTable
from dermalyze.dataset import check_parts, read_table

logger = logging.getLogger(__name__)

Node = dict[str, Any]


@dataclass(frozen=True)
class RunData:
    """The images of a run, their table, who is in which part, and what a model is told.

    `encoding` is fitted on the training part. `images_fingerprint` is a sha256 over those of all
    image files, in the order of the table. `training_store` holds the same rows as `store`, as
    training sees them: at `data.cache_size`.
    """

    table: LesionTable
    split: Split
    store: ImageStore
    training_store: ImageStore
    preprocess: PreprocessSpec
    encoding: MetadataEncoding
    images_fingerprint: str

    def class_counts(self) -> list[int]:
        """Return how many training images each class has, in the order of the classes."""
        labels = self.table.labels[self.split.train]
        counts: list[int] = np.bincount(labels, minlength=len(self.table.classes)).tolist()
        return counts

    def lesions(self, part: str) -> list[str]:
        """Return the lesion ids of a part of the split, sorted, as they stand in the source.

        Of lesions that were joined as duplicates all ids, so that none of them is taken for unseen
        where the data are read without joining.
        """
        rows = self.split.part(part)
        return sorted(set(self.table.original_lesions.iloc[rows]))

    def images(self, part: str) -> list[str]:
        """Return the image ids of a part of the split, sorted."""
        return sorted(self.table.frame["image_id"].iloc[self.split.part(part)])

    def leaks(self) -> str:
        """Return whether lesions are in several parts, in words for whoever compares runs."""
        torn = len(self.split.torn_lesions(self.table.frame))
        return f"yes: {torn} lesions are in several parts" if torn else "no"


def load_data(config: Node, device: torch.device) -> RunData:
    """Read the table, split it, and open its images."""
    data, cache = config["data"], config["paths"]["cache"]
    draw_split = instantiate(data["split"], _convert_="all")  # its sizes are checked before reading
    table = read_table(data, cache=cache)
    split: Split = draw_split(table.frame, table.classes)
    check_parts(table, split, data, cache=cache)
    preprocess = PreprocessSpec(image_size=config["data"]["image_size"])
    columns = config["model"]["metadata"]["columns"]
    encoding = fit_encoding(table.frame.iloc[split.train], columns)
    store = training_store = open_store(table, preprocess, cache, device, encoding=encoding)
    if data["cache_size"] not in (None, preprocess.image_size):
        stored = PreprocessSpec(image_size=data["cache_size"])
        training_store = open_store(table, stored, cache, device, encoding=encoding)
    logger.info(
        "data: %s, %d images: %d train, %d val, %d test, %d in no part (split %s)",
        table.name,
        len(table),
        len(split.train),
        len(split.val),
        len(split.test),
        len(split.unused),
        split.fingerprint[:12],
    )
    known = checksums(table.frame["path"].tolist(), directory=Path(cache))  # as the cache has them
    fingerprint = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    return RunData(table, split, store, training_store, preprocess, encoding, fingerprint)
