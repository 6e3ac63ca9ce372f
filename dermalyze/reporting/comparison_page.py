"""A comparison of runs as one page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from dermalyze.data.page_tree import Cell, element, table, whole_page
from dermalyze.files import write_whole
from dermalyze.reporting.page_parts import STYLE, opening, picture, warning
from dermalyze.reporting.run_sections import SHOWN, number, settings_section, training_section

PAGE = "compare.html"

Node = Mapping[str, Any]

CURVES = "training_curves_of_all"
_CAPTIONS = {
    "metrics": "Means over the seeds with their intervals over lesions; the strokes are the seeds.",
    "differences": "Differences with their intervals; one that holds 0 does not tell two apart.",
    "roc_and_calibration": "ROC curves, the mean over classes and seeds; accuracy over confidence.",
}
COMPARED_FIGURES = (*_CAPTIONS, CURVES)


def write_comparison_page(folder: Path, report: Node) -> None:
    """Write compare.html beside the figures of a comparison.

    Args:
        folder: holds the PNG files of the figures, those of differences where there are any.
        report: what comparison.json holds.
    """
    title = f"{len(report['groups'])} groups of runs on the {report['split']} split"
    images = report["scopes"][0]
    content = opening(
        title,
        f"{images['images']:,} images of {images['lesions']:,} lesions; {len(report['runs'])} "
        "runs, those that differ in their seed alone as one group. In brackets: intervals of "
        f"{report['level']:.0%} from {report['draws']:,} draws of the lesions, the same for all "
        "runs. They hold the chance of which lesions were photographed, with the models as they "
        "were trained. The chance of the seed is not in them: it is the standard deviation over "
        "the seeds after +-, and of a difference its standard error. The calibration error (ECE) "
        "of a draw comes out too large, so its interval lies high.",
    )
    for run, seen in report["trained_on"].items():
        if seen:
            words = f"{run} was trained on lesions of {seen} of these images: a leak."
            content.append(warning(words))
    content += settings_section(report["groups"])
    for scope in report["scopes"]:
        content += _metrics(report, scope)
    content += [element("h2", "Figures")]
    for name, caption in _CAPTIONS.items():
        path = folder / f"{name}.png"
        if path.is_file():
            content.append(picture(path.read_bytes(), caption))
    content += training_section(report["runs"], (folder / f"{CURVES}.png").read_bytes())
    write_whole(folder / PAGE, whole_page(title, STYLE, content))


def _metrics(report: Node, scope: Node) -> list[Element]:
    of_scope = [result for result in report["results"] if result["images"] == scope["name"]]
    which = "" if scope["name"] == "all" else f": {scope['images']:,} images {scope['name']}"
    content = [element("h2", f"Metrics{which}"), _table(of_scope, differences=False)]
    if any(result["minus"] is not None for result in of_scope):
        content.append(_table(of_scope, differences=True))
    tests = [
        [
            f"{test['group']} - {test['minus']}",
            f"{test['run']} - {test['minus_run']}",
            test["only_run_right"],
            test["only_minus_right"],
            f"{test['p']:.2g}",
            f"{test['p_holm']:.2g}",
        ]
        for test in report["tests"]
        if test["images"] == scope["name"]
    ]
    if tests:
        caption = (
            "McNemar's test: images that one run alone got right. Images count as independent, "
            "which those of one lesion are not; the intervals allow for it."
        )
        header = ["groups", "runs", "first alone", "second alone", "p", "p (Holm)"]
        content.append(table(header, tests, caption))
    return content


def _table(results: list[Node], *, differences: bool) -> Element:
    rows: dict[str, list[Cell]] = {}
    for result in results:
        if result["metric"] in SHOWN and (result["minus"] is not None) == differences:
            minus = f" - {result['minus']}" if differences else ""
            name = f"{result['group']}{minus}"
            rows.setdefault(name, [name]).append(_told(result))
    return table(["difference" if differences else "group", *SHOWN.values()], list(rows.values()))


def _told(result: Node) -> str:
    if result["value"] is None:
        return "none"
    chance = result["sd"] if result["minus"] is None else result["seed_error"]
    seeds = "" if chance is None else f" +- {chance:.3f}"
    ends = f"{number(result['low'])} to {number(result['high'])}"
    return f"{number(result['value'])}{seeds} ({ends})"
