"""A part's peers as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dermalyze.benchmarks.timing import Bars
from dermalyze.evaluation.figure_style import BLUE, GREY, add_footer, layout
from dermalyze.evaluation.plots import save_figure


def write_chart(path: Path, bars: Bars, title: str) -> None:
    """Write a picture: a bar a peer, its median, with the spread over the runs if any."""
    save_figure(chart(bars, title), path)


def chart(bars: Bars, title: str) -> Figure:
    """Return the figure; each bar says its ratio, or itself where it is none of anything."""
    names: Sequence[str] = [row["what"] for row in bars.rows]
    shown = [row[bars.of] for row in bars.rows]
    ends = [_ends(row, bars.of) for row in bars.rows]
    lower = [value - low for value, (low, _) in zip(shown, ends, strict=True)]
    upper = [high - value for value, (_, high) in zip(shown, ends, strict=True)]
    figure = Figure(figsize=(8, 1.5 + 0.4 * len(names)), layout=layout())
    axes = figure.add_subplot()
    axes.barh(names, shown, color=BLUE, xerr=[lower, upper], error_kw={"ecolor": GREY})
    for position, row in enumerate(bars.rows):
        said = (
            f" {row['ratio']:.2f}" if "ratio" in row else f" {float(f'{shown[position]:.3g}'):,g}"
        )
        axes.annotate(said, (ends[position][1], position), va="center", color=GREY)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(bars.unit)
    axes.set_title(title, fontsize=9, wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    add_footer(figure)
    return figure


def _ends(row: Mapping[str, Any], of: str) -> tuple[float, float]:
    """Return the lowest and the highest of a row's runs; of a single run, itself."""
    if "fastest" not in row:
        return row[of], row[of]
    if of == "median":
        return row["fastest"], row["slowest"]
    work = row[of] * row["median"]  # a run of twice the median's time has half its rate
    return work / row["slowest"], work / row["fastest"]
