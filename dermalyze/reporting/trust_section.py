"""The part of an evaluation's page about what was fitted on validation."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

from dermalyze.data.page_tree import element, table
from dermalyze.reporting.page_parts import ECE_LIES_HIGH, share_told, told, warning

Node = dict[str, Any]


def trust_section(report: Node) -> list[Element]:
    """Show calibration, sets, abstention and unlikeness, as far as validation has fitted them.

    Args:
        report: what evaluation_metrics.json holds.
    """
    calibration = report["calibration"]
    content = [element("h2", "How far to trust a probability")]
    if calibration["temperature"] is None:
        return [*content, element("p", f"Not calibrated: {calibration['reason']}.")]
    content.append(_calibration(calibration))
    if calibration["temperature_note"] is not None:
        content.append(warning(f"The {calibration['temperature_note']}."))
    content += _alone(calibration["members"], report["members"])
    content += [*_sets(report["sets"])]
    return [*content, _abstention(report["abstention"]), *_unlike(report["unlike_training"])]


def _calibration(calibration: Node) -> Element:
    rows = []
    for name in calibration["before"]:
        row = [name.replace("_", " ")]
        for when in ("before", "after"):
            without_interval = {"value": calibration[when][name], "low": None}
            estimate = calibration["intervals"][when].get(name, without_interval)
            row.append(told(estimate, digits=4))
        rows.append(row)
    return table(
        ["error", "as predicted", f"temperature {calibration['temperature']:.3f}"],
        rows,
        f"Calibration; the temperature was fitted on validation. {ECE_LIES_HIGH}",
    )


def _alone(found: list[Node], members: list[Node]) -> list[Element]:
    """Return what a temperature of its own does for each of several models, by itself."""
    if not found:
        return []
    rows, notes = [], []
    for member, one in zip(members, found, strict=True):
        errors = [one[when][name] for name in ("nll", "ece") for when in ("before", "after")]
        shown = [f"{error:.4f}" for error in errors]
        name = f"epoch {member['epoch']} of seed {member['seed']}"
        rows.append([name, f"{one['temperature']:.3f}", *shown])
        if one["temperature_note"] is not None:
            notes.append(warning(f"Of {name} the {one['temperature_note']}."))
    heads = ["model alone", "temperature", "NLL", "after it", "ECE", "after it"]
    return [table(heads, rows, "Each model by itself, with a temperature of its own."), *notes]


def _sets(sets: Node) -> list[Element]:
    """Return coverage and size of each kind of set, and coverage of each class."""
    found = {name: node["intervals"] for name, node in sets.items() if name != "level"}
    if not found:
        return []
    rows = [
        ["coverage", *(told(node["coverage"]) for node in found.values())],
        ["mean size", *(told(node["mean_size"], digits=2) for node in found.values())],
    ]
    classes = next(iter(found.values()))["coverage_per_class"]
    rows += [
        [
            f"coverage of {code}",
            *(told(node["coverage_per_class"][code]) for node in found.values()),
        ]
        for code in classes
    ]
    caption = (
        f"Sets that were to hold the true class in {sets['level']:.0%} of the images, by how they "
        "are made."
    )
    return [table(["", *(name.replace("_", " ") for name in found)], rows, caption)]


def _abstention(abstention: Node) -> Element:
    if abstention["abstain_below"] is None:
        return element("p", f"Silent about nothing: {abstention['reason']}.")
    confidence = f"a confidence of {abstention['abstain_below']:.3f}, chosen on validation"
    if abstention["coverage"] == 0:
        return element("p", f"Silent about every image: none reaches {confidence}.")
    estimates = abstention["intervals"]
    return element(
        "p",
        f"Silent below {confidence}, "
        f"the model answers {share_told(estimates['coverage'])} of the images and errs in "
        f"{share_told(estimates['error'])} of those.",
    )


def _unlike(unlike: Node) -> list[Element]:
    if unlike["flagged"] is None:
        return []
    return [
        element(
            "p",
            f"{share_told(unlike['intervals']['flagged'])} of the images are flagged as unlike "
            "those of validation: their features are further away than "
            f"{unlike['flag_above']:.2f}, where 1 is usual. What a model says of such images, of "
            "other things perhaps, means nothing.",
        )
    ]
