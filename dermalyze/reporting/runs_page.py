"""What was trained and what came of it: one page over one or many runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from dermalyze.data.page_tree import Cell, element, table, whole_page
from dermalyze.files import write_whole
from dermalyze.reporting.page_parts import ECE_LIES_HIGH, STYLE, opening, picture, told, warning
from dermalyze.reporting.run_sections import SHOWN, settings_section, training_section

Node = Mapping[str, Any]
Pictures = Mapping[str, Sequence[tuple[bytes, str]]]


def write_runs_page(
    path: Path, groups: Sequence[Node], runs: Sequence[Node], curves: bytes, pictures: Pictures
) -> None:
    """Write a page that needs no other file.

    Args:
        path: of the page.
        groups: see `run_sections.settings_section`.
        runs: see `run_sections.training_section`; each also with "evaluations", a list of nodes
            with "part", "images", "estimates" and "no_test".
        curves: PNG of all runs' curves over each other.
        pictures: for each run that is pictured by itself its PNGs with their captions.
    """
    title = runs[0]["run"] if len(runs) == 1 else f"{len(runs)} runs"
    content = opening(
        f"Training report: {title}",
        "Metrics of one training each. Which of two is better is another question, for "
        "`python -m dermalyze.compare`: it gives differences with intervals.",
    )
    content += settings_section(groups)
    content += training_section(runs, curves)
    content += _evaluations(runs)
    for run, own in pictures.items():
        content.append(element("h2", run))
        content += [picture(png, caption) for png, caption in own]
    unpictured = len(runs) - len(pictures)
    if unpictured:
        words = f"{unpictured} more runs are not pictured by themselves (pictured_runs)."
        content.append(element("p", words))
    write_whole(path, whole_page(title, STYLE, content))


def _evaluations(runs: Sequence[Node]) -> list[Element]:
    rows: list[list[Cell]] = []
    content = [element("h2", "Evaluations")]
    for run in runs:
        for found in run["evaluations"]:
            for why in found["no_test"]:
                content.append(warning(f"{run['run']}, {found['part']} is no test: {why}."))
            metrics = [told(found["estimates"][name]) for name in SHOWN]
            rows.append([run["group"], str(run["seed"]), found["part"], found["images"], *metrics])
    if not rows:
        words = "No run was evaluated: python -m dermalyze.evaluate checkpoint=RUN"
        return [*content, element("p", words)]
    header = ["group", "seed", "split and how", "images", *SHOWN.values()]
    caption = f"In brackets: intervals by a bootstrap over lesions. {ECE_LIES_HIGH}"
    return [*content, table(header, rows, caption)]
