"""The duplicates of a table: found once, remembered, and joined into one lesion before splitting.

Finding them means decoding every image, so what was found is kept in a file. Its name is made of
the images' checksums and of what counts as a duplicate: other images or limits have another file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import PIL

from dermalyze.data.audit import Audit, audit
from dermalyze.data.checksums import checksums
from dermalyze.data.decode import PreprocessSpec
from dermalyze.data.near_duplicates import GREY_SIZE, merge_duplicates
from dermalyze.data.split import Split
from dermalyze.data.split_files import PARTS
from dermalyze.data.table import Finding, LesionTable
from dermalyze.errors import DataError
from dermalyze.files import write_json

logger = logging.getLogger(__name__)

FOLDER = "duplicates"  # below the folder of caches
METHOD = 1  # raise it with every change to what is found

Pairs = list[tuple[str, str]]


def duplicate_pairs(
    table: LesionTable, *, max_distance: int, min_similarity: float, directory: str | Path
) -> Pairs:
    """Return the image ids of equal files and of near-duplicates, as `audit` confirms them.

    Args:
        table: its images are decoded, unless these very ones have been before.
        max_distance: as in `audit`.
        min_similarity: as in `audit`.
        directory: holds all caches; made if absent.

    Raises:
        ConfigError: `max_distance` is out of range.
        DataError: too many pairs to look at all, or the folder cannot be written.
    """
    path = _memory(table, max_distance, min_similarity, Path(directory))
    pairs = _remembered(path)
    if pairs is not None:
        return pairs
    logger.info("looking for duplicates among %d images; it is done once", len(table))
    found = audit(table, max_distance=max_distance, min_similarity=min_similarity, pictured_pairs=0)
    return remember_pairs(found, table, directory)


def remember_pairs(found: Audit, table: LesionTable, directory: str | Path) -> Pairs:
    """Keep the pairs of a table's audit for `duplicate_pairs`, and return them.

    Raises:
        DataError: as in `duplicate_pairs`.
    """
    pairs = found.confirmed(min_similarity=found.min_similarity)
    path = _memory(table, found.max_distance, found.min_similarity, Path(directory))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"pairs": pairs})
    except OSError as error:
        raise DataError(
            f"paths.cache={directory}: the duplicates cannot be kept ({error}). Make room or "
            "choose another folder with paths.cache=DIR."
        ) from error
    return pairs


def _memory(table: LesionTable, max_distance: int, min_similarity: float, directory: Path) -> Path:
    paths = table.frame["path"].tolist()
    images = zip(table.frame["image_id"], checksums(paths, directory=directory), strict=True)
    about = {
        "method": METHOD,
        "pillow": PIL.__version__,
        **PreprocessSpec(image_size=GREY_SIZE).as_dict(),
        "max_distance": max_distance,
        "min_similarity": min_similarity,
        "images": list(images),
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    return directory / FOLDER / f"{key}.json"


def _remembered(path: Path) -> Pairs | None:
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"))["pairs"]
        return [(str(first), str(second)) for first, second in pairs]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: cannot be read (%s); duplicates are looked for anew", path, error)
        return None


def join_lesions(table: LesionTable, pairs: Sequence[tuple[str, str]]) -> LesionTable:
    """Return the table with the lesions of each pair joined, so that no split can part them.

    The ids as they were read stand in the column original_lesion_id.

    Raises:
        DataError: a pair has two dx, or an image that the table does not have.
    """
    frame = merge_duplicates(table.frame, pairs)
    frame["original_lesion_id"] = table.frame["lesion_id"]
    moved = frame[frame["lesion_id"] != frame["original_lesion_id"]]
    joined = moved.drop_duplicates("original_lesion_id")
    items = tuple(
        f"{original} into {lesion}"
        for original, lesion in zip(joined["original_lesion_id"], joined["lesion_id"], strict=True)
    )
    what = "lesions joined with another one, because images of both show the same"
    found = Finding("note", "joined_lesions", f"{what}: {len(items)}", items)
    return replace(table, frame=frame, findings=(*table.findings, found))


def parted_pairs(frame: pd.DataFrame, split: Split, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return the pairs that a split of `frame` puts into two parts, as `a (train) and b (test)`.

    An image that is in no part is parted from none.
    """
    part_of = {
        image_id: part for part in PARTS for image_id in frame["image_id"].iloc[split.part(part)]
    }
    placed = [pair for pair in pairs if part_of.keys() >= set(pair)]
    return [
        f"{first} ({part_of[first]}) and {second} ({part_of[second]})"
        for first, second in placed
        if part_of[first] != part_of[second]
    ]
