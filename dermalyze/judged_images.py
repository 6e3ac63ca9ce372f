"""Which images models may be judged on: their data, their split, and no lesion they have seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermalyze.config import plain
from dermalyze.data.split import FromFiles
from dermalyze.data.split_files import first
from dermalyze.data.table import LesionTable
from dermalyze.dataset import read_table
from dermalyze.errors import ConfigError, DataError
from dermalyze.inference.identity import run_of
from dermalyze.inference.loading import ModelFacts
from dermalyze.run_folder import CONFIG, load_config, working_directory

logger = logging.getLogger(__name__)

Node = dict[str, Any]


def read_judged_table(config: Node, members: Sequence[ModelFacts]) -> LesionTable:
    """Read the data that were named, or those of the first model's run.

    Raises:
        ConfigError: the data are not known.
        DataError: faults of the table, or other classes than the models'.
    """
    table = _read_table(config, members[0])
    for member in members:
        if table.classes != member.classes:
            raise DataError(
                f"the classes differ. {member.path}: {', '.join(member.classes)}; {table.name}: "
                f"{', '.join(table.classes)}. Evaluate on data with the model's classes."
            )
    return table


def _read_table(config: Node, member: ModelFacts) -> LesionTable:
    run, data, cache = run_of(member), config["data"], config["paths"]["cache"]
    merge = data["merge_duplicates"]
    if data.get("source") is not None:
        return read_table({**data, "merge_duplicates": merge or False}, cache=cache)
    if merge is not None:
        raise ConfigError(
            f"data.merge_duplicates={merge}: is for other data, which are named by data=OPTION. "
            "The run's own are read as the run read them, or its split would not fit. Leave it out."
        )
    if run is None:
        raise ConfigError(
            f"{member.path} lies in no run's folder, so its data are not known. Name them: "
            "data=ham10000 data.root=DIR split=all."
        )
    own = plain(load_config(run)).get("data")
    if own is None:
        raise ConfigError(
            f"{run / CONFIG}: says nothing of the run's data. Name them: data=ham10000 "
            "data.root=DIR split=all."
        )
    # What is relative was meant from where the run was started, not from here.
    root = str(data["root"] or working_directory(run) / own["root"])
    source = {**own["source"], "root": root}
    for name in ("table", "metadata", "ground_truth"):
        if source.get(name) and not (Path(root) / source[name]).is_file():
            source[name] = str(working_directory(run) / Path(source[name]).expanduser())
    return read_table(
        {
            "merge_duplicates": False,  # what runs did before there was such an option
            **own,
            "root": root,
            "source": source,
        },
        cache=cache,
    )


def judged_rows(config: Node, table: LesionTable, members: Sequence[ModelFacts]) -> np.ndarray:
    """Return the rows to evaluate, none of them of a lesion that one of the models has seen.

    Raises:
        ConfigError: a model's split is not known.
        DataError: lesions that were seen, or another split of one model than of another.
    """
    split = config["split"]
    rows = np.arange(len(table)) if split == "all" else shared_part(split, table, members)
    if split in ("test", "all") and not config["allow_seen_lesions"]:
        seen = sorted(set(_seen_lesions(table, rows, members)))
        if seen:
            whom = "this model" if len(members) == 1 else "one of these models"
            raise DataError(
                f"{len(seen)} lesions to be evaluated were used to train or select {whom} "
                f"(first: {', '.join(seen[:5])}), so its numbers would be inflated. Use "
                "split=test of its own run or other images; or ask for it by name with "
                "allow_seen_lesions=true."
            )
    return rows


def shared_part(part: str, table: LesionTable, members: Sequence[ModelFacts]) -> np.ndarray:
    """Return the rows of train, val or test as all the models' runs were split.

    Raises:
        ConfigError: a model lies in no run's folder.
        DataError: two models have other images there, or the table is not that of a run.
    """
    rows_of = _parts(part, table, members)
    for member, rows in zip(members[1:], rows_of[1:], strict=True):
        other = np.setxor1d(rows, rows_of[0])
        if len(other):
            names = first(sorted(table.frame["image_id"].iloc[other]))
            raise DataError(
                f"split={part}: {len(other)} images are in that part of only one of "
                f"{members[0].path} and {member.path} ({names}). Use models of one split "
                "(data/split=from_files trains on an earlier run's), or split=all on other data."
            )
    return rows_of[0]


def validation_rows(table: LesionTable, members: Sequence[ModelFacts]) -> np.ndarray | None:
    """Return the rows of the validation part, None where two models have other images there.

    Raises:
        ConfigError, DataError: as `shared_part`, but for that.
    """
    one, *others = _parts("val", table, members)
    return None if any(len(np.setxor1d(one, other)) for other in others) else one


def _parts(part: str, table: LesionTable, members: Sequence[ModelFacts]) -> list[np.ndarray]:
    """Return for each model the rows of a part of its run's split."""
    rows_of = []
    for member in members:
        run = run_of(member)
        if run is None:
            raise ConfigError(
                f"split={part}: {member.path} lies in no run's folder, so its split is not known. "
                "Give the run's folder as checkpoint, or split=all."
            )
        try:
            split = FromFiles(directory=str(run))(table.frame, table.classes)
        except DataError as error:
            raise DataError(
                f"split={part}: {run} was trained on other data than {table.name}, on which "
                "models are judged here. Models that are judged together need the same data; "
                f"judge each alone, or all on other data with split=all.\n{error}"
            ) from error
        rows_of.append(split.part(part))
    return rows_of


def leakage(
    split: str, table: LesionTable, rows: np.ndarray, members: Sequence[ModelFacts]
) -> str | None:
    """Return and log in words that a test is none, None where it is one."""
    seen = len(_seen_lesions(table, rows, members))
    if split not in ("test", "all") or not seen:
        return None
    words = (
        f"{seen} of {len(rows)} images are of lesions that trained or selected the model, so these "
        "numbers are too good"
    )
    logger.warning("leakage: %s", words)
    return words


def fitted_on_these(split: str) -> str | None:
    """Return in words that these images decided what they are now said to measure, else None."""
    if split == "val":
        return (
            "these images chose the epoch, the temperature, the sets and the confidence below "
            "which to keep silent, so what is said of all of them is too good: see the test part"
        )
    if split == "train":
        return "these images trained the model, so all numbers are too good: see the test part"
    return None


def known_metadata(
    table: LesionTable, rows: np.ndarray, members: Sequence[ModelFacts]
) -> dict[str, int]:
    """Return and log of how many images each metadata column that a model takes is known."""
    known: dict[str, int] = {}
    for member in members:
        known |= member.encoding.known(table.frame.iloc[rows])
    if not known:
        return known
    counts = ", ".join(f"{column} of {count}" for column, count in known.items())
    logger.info("metadata: the model is told, of %d images, %s", len(rows), counts)
    silent = [column for column, count in known.items() if count == 0]
    if silent:
        logger.warning(
            "metadata: %s of no image is known here; the model, trained with it, predicts without",
            ", ".join(silent),
        )
    return known


def _seen_lesions(
    table: LesionTable, rows: np.ndarray, members: Sequence[ModelFacts]
) -> pd.Series[str]:
    """Return the lesion of each of the rows that shows a lesion which a model has seen.

    A seen image makes its whole lesion a seen one: other tables may know the same image under
    another lesion, and duplicates may have been joined here. Capitals do not matter.
    """
    seen_lesions = {name.casefold() for member in members for name in member.seen_lesions}
    seen_images = {name.casefold() for member in members for name in member.seen_images}
    lesions = table.frame["lesion_id"]
    shown = table.original_lesions.str.casefold().isin(seen_lesions)
    shown |= table.frame["image_id"].str.casefold().isin(seen_images)
    seen = lesions.isin(lesions[shown]).iloc[rows]
    return lesions.iloc[rows][seen]
