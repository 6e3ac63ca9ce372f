"""An evaluation as one page that needs no other file, for people who read and do not compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from dermalyze.data.page_tree import element, table, whole_page
from dermalyze.files import write_whole
from dermalyze.reporting.page_parts import STYLE, opening, picture, told, warning
from dermalyze.reporting.trust_section import trust_section
from dermalyze.taxonomy import in_words

PAGE = "report.html"

Node = dict[str, Any]

# What the page shows: the metric, and what it is called there.
_OVERALL = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy (mean sensitivity)",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
    "macro_average_precision": "macro average precision",
    "malignant_auc": "AUC, malignant against benign",
    "kappa": "Cohen's kappa",
    "mcc": "Matthews correlation",
}
_PER_CLASS = ("precision", "recall", "specificity", "f1", "auc", "average_precision")
_IN_SUBGROUPS = ("accuracy", "balanced_accuracy", "macro_auc")
FIGURES = {
    "confusion_matrix": "Rows are the true classes, columns what the model called them.",
    "per_class_metrics": "Precision, recall and F1 of each class.",
    "roc_curves": "How sensitivity is bought with false alarms.",
    "pr_curves": "How many of those called a class are of it.",
    "calibration_curve": "Whether a confidence of 80 % is right in 80 % of the cases.",
    "risk_coverage": "How errors fall when the model keeps silent about what it is least sure of.",
    "errors": "The mistakes that the model was surest of.",
}


def write_page(folder: Path, report: Node) -> None:
    """Write report.html into an evaluation's folder, from its numbers and its figures.

    Args:
        folder: holds the PNG files of the figures.
        report: what evaluation_metrics.json holds.
    """
    title = f"{report['data']}, {report['split']} split"
    level, lesions = report["intervals"]["level"], report["intervals"]["lesions"]
    content = opening(
        title,
        f"{report['images']:,} images of {lesions:,} lesions; {_models(report)}. In brackets: "
        f"{level:.0%} intervals by a bootstrap over lesions.",
    )
    if report["leakage"] is not None:
        content.append(warning(report["leakage"]))
    if report["fitted_on_these"] is not None:
        content.append(warning(f"No test: {report['fitted_on_these']}."))
    content += [*_metrics(report), *trust_section(report), *_subgroups(report), *_figures(folder)]
    write_whole(folder / PAGE, whole_page(title, STYLE, content))


def _models(report: Node) -> str:
    """Return in words which models predicted, and in how many views."""
    members = [
        f"epoch {member['epoch']} of seed {member['seed']}"
        + (f" with weight {member['weight']:.3g}" if len(report["members"]) > 1 else "")
        for member in report["members"]
    ]
    how = "" if report["ensemble"] is None else f"ensemble by {report['ensemble']}: "
    views = len(report["tta"]["views"])
    seen = "" if views == 1 else f"; each image in {views} views, {report['tta']['aggregation']}"
    return f"{how}{', '.join(members)}{seen}"


def _metrics(report: Node) -> list[Element]:
    overall, per_class = report["intervals"]["overall"], report["intervals"]["per_class"]
    names = dict(_OVERALL)
    for key in overall:
        if key.startswith("melanoma"):
            names[key] = f"sensitivity to melanoma at specificity {key.rpartition('_')[2]}"
    rows = [[name, told(overall[key])] for key, name in names.items() if key in overall]
    classes = [
        [
            code,
            in_words(code),
            entry["support"],
            entry["lesions"],
            *(told(entry[key]) for key in _PER_CLASS),
            "too few" if entry["note"] else "",
        ]
        for code, entry in per_class.items()
    ]
    header = ["class", "name", "images", "lesions"]
    header += [*(key.replace("_", " ") for key in _PER_CLASS), ""]
    lacking, draws = report["intervals"]["draws_lacking_a_class"], report["intervals"]["draws"]
    caption = f"{lacking:,} of {draws:,} draws lack a class: their means are over the others."
    return [
        element("h2", "Metrics"),
        table(["metric", "value"], rows, caption),
        table(header, classes),
    ]


def _subgroups(report: Node) -> list[Element]:
    content = [element("h2", "Subgroups")] if report["subgroups"] else []
    header = ["value", "images", "lesions", "classes", "draws lacking one"]
    header += [*(key.replace("_", " ") for key in _IN_SUBGROUPS), ""]
    for column, groups in report["subgroups"].items():
        rows = [
            [
                name,
                group["images"],
                group["lesions"],
                group["classes"],
                group["draws_lacking_a_class"],
                *(told(group["metrics"][key]) for key in _IN_SUBGROUPS),
                "too few" if group["note"] else "",
            ]
            for name, group in groups.items()
        ]
        content.append(table(header, rows, column))
    return content


def _figures(folder: Path) -> list[Element]:
    content = [element("h2", "Figures")]
    for name, caption in FIGURES.items():
        content.append(picture((folder / f"{name}.png").read_bytes(), caption))
    return content
