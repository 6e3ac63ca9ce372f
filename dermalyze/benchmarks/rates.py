"""Images a second of several peers, and how many times that of the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dermalyze.benchmarks.timing import spread, spread_words


def rate_rows(
    seconds: Mapping[str, Sequence[float]], *, images: int, yardstick: str
) -> list[dict[str, Any]]:
    """Return a row for each peer: its time, images a second, and the ratio to the yardstick's.

    Args:
        seconds: of each run.
        images: in each run.
        yardstick: the peer whose ratio is 1.
    """
    base = spread(seconds[yardstick])["median"]
    return [
        {
            "what": what,
            **spread(values),
            "images_per_second": images / spread(values)["median"],
            "ratio": base / spread(values)["median"],
        }
        for what, values in seconds.items()
    ]


def rate_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines for the screen."""
    wide = max(len(row["what"]) for row in rows) + 2
    table = [f"{'':<{wide}}{'median':>10}{'spread':>22}{'images/s':>11}{'ratio':>8}"]
    for row in rows:
        table.append(
            f"{row['what']:<{wide}}{row['median']:>8.3f} s{spread_words(row, digits=3):>22}"
            f"{row['images_per_second']:>11.1f}{row['ratio']:>8.2f}"
        )
    return table
