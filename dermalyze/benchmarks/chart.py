"""A part's peers as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dermalyze.benchmarks.timing import Bars
from dermalyze.evaluation.figure_style import BLUE, GREY, add_footer, layout
from dermalyze.evaluation.plots import save_figure


def write_chart(path: Path, bars: Bars, title: str) -> None:
    """Write a picture: a bar a peer, its median, with the spread over the runs."""
    save_figure(chart(bars, title), path)


def chart(bars: Bars, title: str) -> Figure:
    """Return the figure; each bar says its ratio."""
    names: Sequence[str] = [row["what"] for row in bars.rows]
    rates = [row["images_per_second"] for row in bars.rows]
    # A run of twice the median's time has half its rate.
    lower = [row["images_per_second"] * (1 - row["median"] / row["slowest"]) for row in bars.rows]
    upper = [row["images_per_second"] * (row["median"] / row["fastest"] - 1) for row in bars.rows]
    figure = Figure(figsize=(8, 1.5 + 0.4 * len(names)), layout=layout())
    axes = figure.add_subplot()
    axes.barh(names, rates, color=BLUE, xerr=[lower, upper], error_kw={"ecolor": GREY})
    for position, row in enumerate(bars.rows):
        axes.annotate(
            f" {row['ratio']:.2f}",
            (rates[position] + upper[position], position),
            va="center",
            color=GREY,
        )
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(bars.unit)
    axes.set_title(title, fontsize=9, wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    add_footer(figure)
    return figure
