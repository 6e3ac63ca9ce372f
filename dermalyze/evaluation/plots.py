"""Figures of a run: where the classes are confused, and how training went.

Figures are made without pyplot, so there is no global state, no window and no backend to choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from numbers import Real
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dermalyze.errors import DataError
from dermalyze.evaluation.figure_style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE_GREY,
    PURPLE,
    VERMILION,
    add_footer,
    layout,
)
from dermalyze.files import write_whole

DPI = 150

# ColorBrewer's Blues, resampled so that lightness L* falls evenly with the share: the eye reads
# equal steps as equal, in every kind of colour vision and on grey paper.
_SHARE_COLOURS = LinearSegmentedColormap.from_list(
    "share", ["#f7fbff", "#b3d3e8", "#68acd5", "#3181bd", "#0c56a0", "#08306b"]
)
_WHITE_TEXT_FROM = 0.635  # the share from which white has more contrast on it than black

# Panel title -> its curves: (history key, label, colour, line style).
_PANELS: dict[str, list[tuple[str, str, str, str]]] = {
    "Loss": [
        ("train/loss", "train", ORANGE, "--"),
        ("val/loss", "validation", BLUE, "-"),
    ],
    "Accuracy": [
        ("train/accuracy", "train, accuracy", ORANGE, "--"),
        ("val/accuracy", "validation, accuracy", BLUE, "-"),
        ("train/balanced_accuracy", "train, balanced accuracy", PURPLE, "--"),
        ("val/balanced_accuracy", "validation, balanced accuracy", VERMILION, "-"),
    ],
    "Learning rate": [("lr", "learning rate", GREEN, "-")],
}


def confusion_matrix_figure(counts_KK: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix: in each cell the count and its share of the row.

    Colour is the share, so that rare classes are as readable as common ones. The row of a class
    without images stays empty of colour and its shares are dashes.

    Args:
        counts_KK: counts >= 0; rows are true classes, columns predicted ones.
        classes: the K names, in the order of rows and columns.
        title: stands above the matrix.

    Raises:
        DataError: `counts_KK` is not K x K for these classes, or holds a negative count.
    """
    size = len(classes)
    counts_KK = np.asarray(counts_KK)
    if size == 0 or counts_KK.shape != (size, size) or (counts_KK < 0).any():
        raise DataError(
            f"confusion matrix of shape {counts_KK.shape} for {size} classes: needed {size} x "
            f"{size} counts >= 0, rows the true classes and columns the predicted ones."
        )
    support_K1 = counts_KK.sum(axis=1, keepdims=True)
    share_KK = np.full((size, size), np.nan)
    np.divide(counts_KK, support_K1, out=share_KK, where=support_K1 > 0)

    height = max(4.8, 1.8 + 0.85 * size)
    figure = Figure(figsize=(height + 1.2, height), layout=layout())
    axes = figure.add_subplot()
    image = axes.imshow(share_KK, cmap=_SHARE_COLOURS, vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(share_KK):
        shown = "–" if np.isnan(share) else f"{share:.1%}"
        axes.text(
            column,
            row,
            f"{counts_KK[row, column]:,}\n{shown}",
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold" if row == column else "normal",
            color="white" if share >= _WHITE_TEXT_FROM else "black",
        )
    # Names come from users: a dollar sign is a dollar sign, not a formula.
    axes.set_title(title, fontsize=13, pad=12, parse_math=False)
    axes.set_xlabel("predicted class", labelpad=8)
    axes.set_ylabel("true class (images)", labelpad=8)
    axes.set_xticks(range(size), classes, parse_math=False)
    axes.set_yticks(
        range(size),
        [f"{name} ({n:,})" for name, n in zip(classes, support_K1[:, 0], strict=True)],
        parse_math=False,
    )
    axes.tick_params(length=0)
    axes.spines[:].set_color(PALE_GREY)
    # Lines between the cells.
    axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=PALE_GREY, linewidth=1)
    axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.92, format=PercentFormatter(xmax=1))
    bar.set_label("share of the true class")
    bar.outline.set_edgecolor(PALE_GREY)
    add_footer(figure)
    return figure


def training_curves_figure(
    history: Sequence[Mapping[str, object]], *, best_epoch: int | None = None
) -> Figure:
    """Draw losses, accuracies and learning rate over the epochs.

    Args:
        history: one record an epoch, with "epoch" and any of "train/loss", "val/loss",
            "train/accuracy", "val/accuracy", "train/balanced_accuracy", "val/balanced_accuracy"
            (shares in [0, 1]) and "lr"; other keys are not drawn. A value that is None or absent
            is a gap in its curve; a curve without any value is left out.
        best_epoch: the epoch whose weights were kept, marked in every panel; None marks none.

    Raises:
        DataError: no records; an epoch or value that is no number; `best_epoch` is not in the
            history.
    """
    if not history:
        raise DataError("no training history to draw: not one epoch has been recorded.")
    epochs = [_number(record, "epoch") for record in history]
    if best_epoch is not None and best_epoch not in epochs:
        raise DataError(
            f"best_epoch={best_epoch} is not among the epochs of the history, "
            f"{min(epochs):g} to {max(epochs):g}."
        )
    figure = Figure(figsize=(15, 4.6), layout=layout())
    for axes, (title, curves) in zip(figure.subplots(1, 3), _PANELS.items(), strict=True):
        axes.set_title(title, fontsize=12)
        if best_epoch is not None:
            label = f"best epoch: {best_epoch}"
            axes.axvline(best_epoch, color=GREY, linewidth=1.2, linestyle=":", label=label)
        for key, label, colour, style in curves:
            values = [_number(record, key) for record in history]
            if not np.isnan(values).all():
                # Markers show a value even where both its neighbours are gaps.
                axes.plot(epochs, values, style, color=colour, label=label, marker="o", ms=3)
        _tidy(axes)
    figure.axes[1].set_ylim(0, 1)
    figure.axes[1].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    figure.axes[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    add_footer(figure)
    return figure


def schedule_figure(rates: Mapping[str, Sequence[float]], steps_per_epoch: int) -> Figure:
    """Draw learning rates over the epochs, a colour a stage.

    Args:
        rates: the learning rate of every step of each stage, in order.
        steps_per_epoch: optimiser steps.
    """
    figure = Figure(figsize=(8, 4.2), layout=layout())
    axes = figure.add_subplot()
    first = 0
    for colour, (stage, values) in zip((GREEN, VERMILION, BLUE), rates.items(), strict=False):
        epochs = (np.arange(len(values)) + first) / steps_per_epoch
        axes.plot(epochs, values, color=colour, label=f"stage {stage}")
        first += len(values)
    axes.set_title("Learning rate", fontsize=12)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _tidy(axes)
    add_footer(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG at 150 dots an inch; whoever reads `path` never sees half of it."""
    write_whole(path, png_of(figure))


def png_of(figure: Figure) -> bytes:
    """Return a figure as PNG at 150 dots an inch, a fifth larger than it could be made slowly."""
    picture = BytesIO()
    # Of photographs, zlib's level 6 takes longer than all the drawing.
    figure.savefig(picture, format="png", dpi=DPI, pil_kwargs={"compress_level": 1})
    return picture.getvalue()


def _number(record: Mapping[str, object], key: str) -> float:
    value = record.get(key)
    if value is None and key != "epoch":
        return float("nan")
    if not isinstance(value, Real):
        raise DataError(
            f"training history, epoch {record.get('epoch')!r}: {key}={value!r} "
            f"({type(value).__name__}) is no number."
        )
    return float(value)


def _tidy(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color=PALE_GREY, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
