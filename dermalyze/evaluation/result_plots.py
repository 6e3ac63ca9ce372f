"""Figures of an evaluation: curves of each class, calibration, abstention, and mistakes.

Shapes: N images, K classes; labels and probabilities as `metrics.checked_predictions` returns them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn import metrics as sk

from dermalyze.errors import DataError
from dermalyze.evaluation.abstention import area, risk_coverage
from dermalyze.evaluation.figure_style import (
    BLUE,
    CLASS_COLOURS,
    CLASS_DASHES,
    GREEN,
    GREY,
    ORANGE,
    PALE_GREY,
    VERMILION,
    add_footer,
    layout,
)

_Corner = Literal["lower left", "lower right", "upper left"]

_COLUMNS = 4  # pictures in a row
_SHOWN = {"precision": BLUE, "recall": VERMILION, "f1": GREEN}


def roc_curves_figure(labels_N: np.ndarray, probs_NK: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw the ROC curve of each class against the rest; a class that has none is left out."""
    figure, axes = _square("ROC, one class against the rest")
    axes.plot([0, 1], [0, 1], color=PALE_GREY, label="chance")
    for k in _ranked(labels_N, probs_NK):
        false, true, _ = sk.roc_curve(labels_N == k, probs_NK[:, k])
        _line(axes, k, false, true, f"{classes[k]} (AUC {sk.auc(false, true):.3f})")
    _named(axes, "1 - specificity", "sensitivity", "lower right")
    return figure


def pr_curves_figure(labels_N: np.ndarray, probs_NK: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw precision over recall of each class; a class that has none is left out."""
    figure, axes = _square("Precision and recall, one class against the rest")
    for k in _ranked(labels_N, probs_NK):
        of_class_N, scores_N = labels_N == k, probs_NK[:, k]
        average = sk.average_precision_score(of_class_N, scores_N)
        precision, recall, _ = sk.precision_recall_curve(of_class_N, scores_N)
        # scikit-learn ends at recall 0 with a precision of 1 that no image has.
        precision, recall = precision[-2::-1], recall[-2::-1]
        label = f"{classes[k]} (AP {average:.3f})"
        _line(axes, k, np.r_[0, recall], np.r_[precision[0], precision], label)
    _named(axes, "recall", "precision", "lower left")
    return figure


def per_class_figure(per_class: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw precision, recall and F1 of each class with their intervals; what has none is absent.

    Args:
        per_class: of `measures.metrics_with_intervals`: for each class its support and estimates.
    """
    figure = Figure(figsize=(1.6 + 1.2 * len(per_class), 4.8), layout=layout())
    axes = figure.add_subplot()
    width = 0.8 / len(_SHOWN)
    for position, (name, colour) in enumerate(_SHOWN.items()):
        found = [(k, e[name]) for k, e in enumerate(per_class.values())]
        known = [(k, e) for k, e in found if e["value"] is not None and e["low"] is not None]
        height = np.array([e["value"] for _, e in known])
        ends = np.array([[e["low"], e["high"]] for _, e in known]).reshape(-1, 2).T
        # A percentile interval of few lesions may miss the value itself.
        reach = np.maximum([height - ends[0], ends[1] - height], 0)
        place = np.array([k for k, _ in known]) + (position - 1) * width
        axes.bar(place, height, width, color=colour, label=name)
        axes.errorbar(place, height, reach, fmt="none", ecolor="black", capsize=3, linewidth=1)
    names = [f"{code}\n({entry['support']:,})" for code, entry in per_class.items()]
    axes.set_xticks(range(len(names)), names, parse_math=False)
    axes.set_title("Each class, with intervals", fontsize=12)
    axes.set_ylim(0, 1)
    _named(axes, "true class (images)", "", "upper left")
    add_footer(figure)
    return figure


def calibration_figure(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]] | None
) -> Figure:
    """Draw accuracy over confidence, and below it how many images each bin holds.

    Args:
        before: rows of `calibration.reliability_table`.
        after: those after the temperature; None without one.
    """
    figure = Figure(figsize=(6, 6.6), layout=layout())
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
    tables = [("as predicted", before, ORANGE, "--", "s")]
    if after is not None:
        tables.append(("after temperature", after, BLUE, "-", "o"))
    for label, table, colour, dashes, marker in tables:
        rows = [row for row in table if row["images"]]
        upper.plot(
            [row["confidence"] for row in rows],
            [row["accuracy"] for row in rows],
            color=colour,
            linestyle=dashes,
            marker=marker,
            label=label,
        )
        edges = [table[0]["low"], *(row["high"] for row in table)]
        lower.stairs([row["images"] for row in table], edges, color=colour, linestyle=dashes)
    upper.set_title("Calibration", fontsize=12)
    upper.set(xlim=(0, 1), ylim=(0, 1))
    _named(upper, "", "accuracy", "upper left")
    _grid(lower)
    lower.set(xlabel="confidence", ylabel="images")
    add_footer(figure)
    return figure


def risk_coverage_figure(
    confidence_N: np.ndarray, right_N: np.ndarray, threshold_coverage: float | None
) -> Figure:
    """Draw the error rate among the most confident images over their share.

    Args:
        confidence_N, right_N: see `abstention.risk_coverage`.
        threshold_coverage: the share that the threshold of validation keeps, marked; None: none.
    """
    figure, axes = _square("Errors left when the least sure are left out")
    coverage_N, risk_N = risk_coverage(confidence_N, right_N)
    axes.plot(coverage_N, risk_N, color=BLUE, label=f"area {area(risk_N):.4f}")
    if threshold_coverage is not None:
        label = f"threshold of validation: {threshold_coverage:.1%} kept"
        axes.axvline(threshold_coverage, color=VERMILION, linestyle="--", label=label)
    axes.set_ylim(0, max(0.05, float(risk_N.max()) * 1.05))
    _named(axes, "coverage (share of images)", "error rate", "upper left")
    return figure


def errors_figure(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> Figure:
    """Draw pictures with a caption above each.

    Args:
        pictures: uint8 of shape (H, W, 3).
        captions: as many.

    Raises:
        DataError: not one caption a picture.
    """
    if len(pictures) != len(captions):
        raise DataError(f"{len(captions)} captions for {len(pictures)} pictures: give one each.")
    rows = max(1, -(-len(pictures) // _COLUMNS))
    figure = Figure(figsize=(2.6 * _COLUMNS, 0.8 + 2.9 * rows), layout=layout())
    figure.suptitle("The most confident mistakes" if pictures else "No mistakes", fontsize=12)
    for position, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        axes = figure.add_subplot(rows, _COLUMNS, position + 1)
        axes.imshow(picture)
        axes.set_title(caption, fontsize=8, parse_math=False)
        axes.set(xticks=[], yticks=[])  # matplotlib would also measure ticks that are not drawn
        axes.axis("off")
    add_footer(figure)
    return figure


def _ranked(labels_N: np.ndarray, probs_NK: np.ndarray) -> list[int]:
    """Return the classes that have images and are not alone."""
    counts_K = np.bincount(labels_N, minlength=probs_NK.shape[1])
    return [k for k, count in enumerate(counts_K) if 0 < count < len(labels_N)]


def _square(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 6), layout=layout())
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=12)
    axes.set(xlim=(0, 1), ylim=(0, 1.005))
    add_footer(figure)
    return figure, axes


def _line(axes: Axes, k: int, x: np.ndarray, y: np.ndarray, label: str) -> None:
    colour, dashes = CLASS_COLOURS[k % len(CLASS_COLOURS)], CLASS_DASHES[k % len(CLASS_DASHES)]
    axes.plot(x, y, color=colour, linestyle=dashes, label=label)


def _grid(axes: Axes) -> None:
    axes.grid(color=PALE_GREY, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _named(axes: Axes, x: str, y: str, legend: _Corner) -> None:
    _grid(axes)
    axes.set(xlabel=x, ylabel=y)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc=legend)
