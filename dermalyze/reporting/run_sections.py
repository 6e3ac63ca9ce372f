"""Parts of a page about runs: what was trained, how training went, how well it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from dermalyze.data.page_tree import element, table
from dermalyze.evaluation.fit_analysis import RULE
from dermalyze.reporting.page_parts import picture

Node = Mapping[str, Any]

# What is shown of the metrics in `metrics.METRICS`, and what it is called.
SHOWN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
    "ece": "ECE (15 bins)",
}
_FIT = {
    "train_accuracy": "training accuracy",
    "val_accuracy": "validation accuracy",
    "accuracy_gap": "accuracy gap",
    "train_balanced_accuracy": "training balanced accuracy",
    "val_balanced_accuracy": "validation balanced accuracy",
    "balanced_accuracy_gap": "balanced accuracy gap",
    "train_loss": "training loss",
    "val_loss": "validation loss",
    "loss_gap": "loss gap",
}


def settings_section(groups: Sequence[Node]) -> list[Element]:
    """Tell what was trained: all settings of one group, or those in which several differ.

    Args:
        groups: each with "label", "runs" (folders), "seeds" and "settings" {word: value}.
    """
    header = ["group", "seeds", "runs"]
    rows = [
        [group["label"], ", ".join(map(str, group["seeds"])), ", ".join(map(str, group["runs"]))]
        for group in groups
    ]
    content = [element("h2", "What was trained"), table(header, rows)]
    words = sorted({word for group in groups for word in group["settings"]})
    if len(groups) == 1:
        settings = groups[0]["settings"]
        content.append(table(["setting", "value"], [[word, settings[word]] for word in words]))
        return content
    differing = [
        word for word in words if len({group["settings"].get(word, "") for group in groups}) > 1
    ]
    if differing:
        values = [
            [group["label"], *(group["settings"].get(word, "") for word in differing)]
            for group in groups
        ]
        caption = "Settings that differ. Empty: as the option beside it has it."
        content.append(table(["group", *differing], values, caption))
    return content


def training_section(runs: Sequence[Node], curves: bytes) -> list[Element]:
    """Show the curves of all runs over each other, their best epochs and how well they fit.

    Args:
        runs: each with "run", "group", "seed", "epochs", "best_epoch", "monitor", "validation"
            (the metrics of the best epoch) and "fit" (see `fit_analysis`).
        curves: PNG of `comparison_plots.histories_figure`.
    """
    best = [
        [*_names(run), f"{run['best_epoch']} of {run['epochs']}", run["monitor"]]
        + [number(run["validation"].get(name)) for name in SHOWN]
        for run in runs
    ]
    fits = [
        [*_names(run), run["fit"]["verdict"] or f"none: {run['fit']['reason']}"]
        + [number(run["fit"][name]) for name in _FIT]
        for run in runs
    ]
    caption = (
        "Training and validation of all groups: means over the seeds, bands from the smallest to "
        "the largest. A training loss is that of the loss trained with, on augmented images; other "
        "losses have other scales."
    )
    return [
        element("h2", "Training"),
        picture(curves, caption),
        table(
            ["group", "seed", "best epoch", "by", *SHOWN.values()],
            best,
            "Validation at the best epoch, whose weights the run keeps.",
        ),
        element("h2", "Fit"),
        table(["group", "seed", "verdict", *_FIT.values()], fits, RULE),
    ]


def number(value: float | None) -> str:
    """Return a number as pages show it."""
    return "none" if value is None else f"{value:.3f}"


def _names(run: Node) -> list[str]:
    return [str(run["group"]), str(run["seed"])]
