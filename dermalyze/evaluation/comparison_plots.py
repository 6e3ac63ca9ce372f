"""Figures of many runs: metrics with intervals, and curves over each other.

A group of runs that differ in their seed has one colour. More groups than there are colours are
drawn in rows of panels, so that no two in a row look alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from dermalyze.evaluation.calibration import reliability_table
from dermalyze.evaluation.figure_style import (
    BLUE,
    CLASS_COLOURS,
    CLASS_DASHES,
    GREY,
    ORANGE,
    PALE_GREY,
    add_footer,
    layout,
)

History = Sequence[Mapping[str, Any]]

_FALSE_POSITIVES = np.linspace(0, 1, 201)  # at which ROC curves are averaged
_HISTORIES = {
    "Loss": ("train/loss", "val/loss"),
    "Accuracy": ("train/accuracy", "val/accuracy"),
    "Balanced accuracy": ("train/balanced_accuracy", "val/balanced_accuracy"),
}
_BINS = ("confidence", "accuracy")
_MOST_NAMES = 60  # letters of a group's label in a figure


class Row(NamedTuple):
    """A line of a figure of intervals: a value with its interval, and the values of its seeds.

    What is None is not drawn.
    """

    label: str
    value: float
    low: float | None
    high: float | None
    seeds: Sequence[float | None]


class Judged(NamedTuple):
    """What a run predicted: labels_N in [0, K), and probs_NK, rows of which sum to 1."""

    labels_N: np.ndarray
    probs_NK: np.ndarray


def intervals_figure(panels: Mapping[str, Sequence[Row]], *, differences: bool) -> Figure:
    """Draw values as dots with their intervals, one panel a metric and one line a group.

    Args:
        panels: for each metric its rows; the same labels in all.
        differences: mark 0, where nothing differs.
    """
    labels = list(dict.fromkeys(row.label for rows in panels.values() for row in rows))
    height = 1.6 + 0.32 * len(labels)
    figure = Figure(figsize=(3.2 + 2.6 * len(panels), max(2.6, height)), layout=layout())
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(all_axes, panels.items(), strict=True):
        for row in rows:
            line = labels.index(row.label)
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [line, line], color=BLUE, linewidth=2)
            seeds = [value for value in row.seeds if value is not None]
            axes.plot(seeds, [line] * len(seeds), "|", color=ORANGE, markersize=9)
            axes.plot(row.value, line, "o", color=BLUE, markersize=5)
        if differences:
            axes.axvline(0, color=GREY, linewidth=1.2, linestyle=":")
        axes.set_title(title, fontsize=11)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        _grid(axes)
    all_axes[0].set_yticks(range(len(labels)), map(_short, labels), parse_math=False)
    all_axes[0].set_ylim(len(labels) - 0.5, -0.5)
    add_footer(figure)
    return figure


def histories_figure(groups: Mapping[str, Sequence[History]]) -> Figure:
    """Draw training (dashed) and validation (solid) of all groups over each other.

    A line is the mean over the seeds that reached the epoch, the band about it their range.

    Args:
        groups: for each label the histories of its runs; what no record has is not drawn.
    """
    shown = {
        title: keys
        for title, keys in _HISTORIES.items()
        if any(
            _known(record, key) for runs in groups.values() for record in _all(runs) for key in keys
        )
    }
    figure, rows = _rows(list(groups), len(shown), width=5)
    for labels, panels in rows:
        for axes, (title, keys) in zip(panels, shown.items(), strict=True):
            for position, label in enumerate(labels):
                for key, dashes in zip(keys, ("--", "-"), strict=True):
                    is_named = dashes == "-"
                    _history(axes, groups[label], key, dashes, position, label if is_named else "")
            axes.set_title(f"{title}: training dashed, validation solid", fontsize=11)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            _grid(axes)
        _legend(panels[-1])
    return figure


def trust_figure(groups: Mapping[str, Sequence[Judged]]) -> Figure:
    """Draw each group's mean ROC curve, and its accuracy over confidence.

    The ROC curve is that of one class against the rest, sensitivities averaged over the classes
    that have one and over the seeds. Confidence and accuracy are those of all seeds' predictions
    together, in 15 bins.
    """
    figure, rows = _rows(list(groups), 2, width=5.4)
    for labels, (left, right) in rows:
        for axes in (left, right):
            axes.plot([0, 1], [0, 1], color=PALE_GREY)
        for position, label in enumerate(labels):
            style = _style(position)
            left.plot(_FALSE_POSITIVES, mean_roc(groups[label]), **style)
            table = reliability_table(
                np.concatenate([run.labels_N for run in groups[label]]),
                np.concatenate([run.probs_NK for run in groups[label]]),
            )
            columns = [np.array([row[name] for row in table], dtype=np.float64) for name in _BINS]
            filled_B = np.isfinite(columns[0])
            confidence, accuracy = (column_B[filled_B] for column_B in columns)
            right.plot(confidence, accuracy, label=_short(label), marker="o", markersize=3, **style)
        left.set_title("ROC, mean over classes", fontsize=11)
        left.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.005))
        right.set_title("Calibration", fontsize=11)
        right.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        for axes in (left, right):
            _grid(axes)
        _legend(right)
    return figure


def mean_roc(runs: Sequence[Judged]) -> np.ndarray:
    """Return sensitivity_F at 201 false positive rates, averaged over classes and runs.

    Between the points of a curve it is interpolated; a class without images, or alone, has none.
    """
    curves = []
    for labels_N, probs_NK in runs:
        for k in np.unique(labels_N):
            if not (labels_N == k).all():
                false, true, _ = roc_curve(labels_N == k, probs_NK[:, k])
                curves.append(np.interp(_FALSE_POSITIVES, false, true))
    return np.mean(curves, axis=0) if curves else np.full(len(_FALSE_POSITIVES), np.nan)


def _rows(
    labels: Sequence[str], columns: int, *, width: float
) -> tuple[Figure, list[tuple[Sequence[str], list[Axes]]]]:
    """Return a figure with a row of panels for every seven labels, and these labels and panels."""
    size = len(CLASS_COLOURS)
    chunks = [labels[start : start + size] for start in range(0, len(labels), size)]
    figure = Figure(figsize=(width * columns + 2, 0.6 + 3.8 * len(chunks)), layout=layout())
    panels = figure.subplots(len(chunks), columns, squeeze=False)
    add_footer(figure)
    return figure, [(chunk, list(row)) for chunk, row in zip(chunks, panels, strict=True)]


def _history(
    axes: Axes, runs: Sequence[History], key: str, dashes: str, position: int, label: str
) -> None:
    epochs = sorted({record["epoch"] for record in _all(runs) if _known(record, key)})
    values = [
        [record[key] for record in _all(runs) if record["epoch"] == epoch and _known(record, key)]
        for epoch in epochs
    ]
    if not epochs:
        return
    colour = CLASS_COLOURS[position]
    mean = [float(np.mean(some)) for some in values]
    # Markers show a value even where there is one epoch alone.
    axes.plot(epochs, mean, dashes, color=colour, label=_short(label), marker="o", markersize=2.5)
    if dashes == "-":
        ends = np.array([[min(some), max(some)] for some in values]).T
        axes.fill_between(epochs, *ends, color=colour, alpha=0.15, linewidth=0)


def _all(runs: Sequence[History]) -> list[Mapping[str, Any]]:
    return [record for history in runs for record in history]


def _known(record: Mapping[str, Any], key: str) -> bool:
    return record.get(key) is not None


def _style(position: int) -> dict[str, Any]:
    return {
        "color": CLASS_COLOURS[position],
        "linestyle": CLASS_DASHES[position],
    }


def _short(label: str) -> str:
    return label if len(label) <= _MOST_NAMES else f"{label[: _MOST_NAMES - 3]}..."


def _legend(axes: Axes) -> None:
    """Name the groups beside the last panel of a row, where they cover nothing."""
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))


def _grid(axes: Axes) -> None:
    axes.grid(color=PALE_GREY, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
