"""From `data` in a config to a table that was checked, for every command in the same way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from dermalyze.data.checksums import checksums
from dermalyze.data.duplicates import duplicate_pairs, join_lesions, parted_pairs
from dermalyze.data.manifest import refuse_changed
from dermalyze.data.metadata_file import Finding, listed
from dermalyze.data.split import Split
from dermalyze.data.table import LesionTable
from dermalyze.errors import DataError

logger = logging.getLogger(__name__)

Node = dict[str, Any]


def read_table(data: Node, *, cache: str) -> LesionTable:
    """Read the table that `data.source` names, say its findings, and join duplicates if asked.

    Args:
        data: checked, plain: root, source, merge_duplicates and duplicates.
        cache: folder of caches, where checksums and duplicates are remembered.

    Raises:
        DataError: faults of the table; images that are not those that were downloaded; duplicates
            of two dx.
    """
    table: LesionTable = instantiate(data["source"], _convert_="all")
    for finding in table.findings:
        _say(finding)
    refuse_changed(
        Path(data["root"]),
        table.frame["path"].tolist(),
        lambda paths: checksums(paths, directory=Path(cache)),
    )
    if not data["merge_duplicates"]:
        return table
    joined = join_lesions(table, duplicate_pairs(table, **data["duplicates"], directory=cache))
    _say(joined.findings[-1])
    return joined


def check_parts(table: LesionTable, split: Split, data: Node, *, cache: str) -> None:
    """Look for duplicates in two parts of a split, as `data.duplicates_across_splits` asks.

    Raises:
        DataError: there are some, and the option is strict.
    """
    mode = data["duplicates_across_splits"]
    if mode == "ignore":  # and so no image is opened before training needs it
        return
    pairs = duplicate_pairs(table, **data["duplicates"], directory=cache)
    message = "\n".join(
        listed(
            "pairs of images that show the same and are in two parts of the split, so that the "
            "model is judged on what it has learned from",
            "data.merge_duplicates=true joins their lesions before splitting",
            parted_pairs(table.frame, split, pairs),
        )
    )
    if message and mode == "strict":
        raise DataError(f"data.duplicates_across_splits=strict: {message}")
    if message:
        logger.warning("data: %s", message)
    else:
        logger.info("data: no image has a duplicate in another part of the split")


def _say(finding: Finding) -> None:
    level = logging.WARNING if finding.level == "warning" else logging.INFO
    logger.log(level, "data: %s", finding.message)
