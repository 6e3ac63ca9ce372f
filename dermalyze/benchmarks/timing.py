"""How peers are timed, and what a part of the benchmark reports."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm


@dataclass(frozen=True)
class Bars:
    """Peers to draw.

    Attributes:
        unit: of what is drawn.
        rows: with their name, `what`, as they stand in the JSON file.
        of: the number that a bar shows: a rate, a `median` of seconds, or what was found once.
    """

    unit: str
    rows: Sequence[Mapping[str, Any]]
    of: str = "images_per_second"


@dataclass(frozen=True)
class Report:
    """What one part found.

    Attributes:
        title: what was compared, on one line.
        table: lines for the screen.
        numbers: for the part's JSON file.
        bars: for its picture; None: it has none.
    """

    title: str
    table: Sequence[str]
    numbers: Mapping[str, Any]
    bars: Bars | None = None


def in_turns(
    peers: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    title: str,
    between: Callable[[], object],
) -> dict[str, list[float]]:
    """Return each peer's seconds, `repeats` of them, in order.

    The peers take turns, so that a drift of the machine meets all alike. A first turn is not
    counted: it fills the file system's caches.

    Args:
        peers: what to time, by name.
        repeats: how often each is timed.
        title: of the progress bar.
        between: called before each peer, untimed, to clear what the one before left.
    """
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for turn in tqdm(range(repeats + 1), desc=title, leave=False, disable=None):
        for name, peer in peers.items():
            between()
            started = time.perf_counter()
            peer()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the extremes; of a single run, which has no spread, itself alone."""
    median = {"median": statistics.median(seconds)}
    if len(seconds) == 1:
        return median
    return {**median, "fastest": min(seconds), "slowest": max(seconds)}


def spread_words(row: Mapping[str, Any], *, digits: int) -> str:
    """Return a row's extremes for the screen, "" for a single run."""
    if "fastest" not in row:
        return ""
    return f"{row['fastest']:.{digits}f} to {row['slowest']:.{digits}f} s"
