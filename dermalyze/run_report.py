"""Wires a report: runs in; one page over all of them out, and into each one's MLflow run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dermalyze.compared_runs.evaluations import Evaluated, read_evaluations
from dermalyze.compared_runs.groups import grouped
from dermalyze.compared_runs.trained import Trained, read_trained
from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.comparison_plots import histories_figure
from dermalyze.evaluation.plots import png_of, training_curves_figure
from dermalyze.reporting.page import FIGURES
from dermalyze.reporting.runs_page import write_runs_page
from dermalyze.tracking.mlflow_tracker import tracker_of

Node = dict[str, Any]

PAGE = "training_report.html"
_PICTURED = ("confusion_matrix", "calibration_curve")  # of each evaluation


@dataclass(frozen=True)
class Reported:
    """The page, of how many runs it is, and how many have it in MLflow."""

    page: Path
    runs: int
    tracked: int


def report_runs(config: Node) -> Reported:
    """Write a page over runs as `conf/report.yaml` describes.

    Args:
        config: checked, plain.

    Raises:
        ConfigError, CheckpointError, DataError: what the user can mend.
    """
    page = _page(config)
    groups, _ = grouped(config["runs"], group_seeds=config["group_seeds"], baseline=None)
    trained: dict[Path, Trained] = {}
    evaluated: dict[Path, list[Evaluated]] = {}
    runs = [run for group in groups for run in group.runs]
    for run in tqdm(runs, "reading runs", unit="run", leave=False, disable=None, delay=2):
        trained[run], evaluated[run] = read_trained(run), read_evaluations(run)
    histories = {group.label: [trained[run].history for run in group.runs] for group in groups}
    nodes = [
        {
            **trained[run].as_node(group),
            "evaluations": [found.as_node() for found in evaluated[run]],
        }
        for group in groups
        for run in group.runs
    ]
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_runs_page(
            page,
            [group.as_node() for group in groups],
            nodes,
            png_of(histories_figure(histories)),
            {
                str(run): _pictures(trained[run], evaluated[run])
                for run in runs[: config["pictured_runs"]]
            },
        )
    except OSError as error:
        raise DataError(f"{page}: cannot be written ({error}). Name another output.") from error
    tracked = [run for run in runs if config["track"] and _track(run, page)]
    return Reported(page, len(runs), len(tracked))


def _page(config: Node) -> Path:
    """Return where the page goes: into the folder of the one run or multirun, if it is one."""
    if config["output"] is not None:
        return _new_page(Path(config["output"]))
    given = config["runs"]
    alone = given if isinstance(given, str) else given[0] if len(given) == 1 else None
    return Path(config["paths"]["outputs"] if alone is None else alone) / PAGE


def _new_page(output: Path) -> Path:
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"output={output}: a page is written. Name a file that ends in .html.")
    if output.exists():
        raise ConfigError(
            f"output={output}: is there already. Name another file, or remove this one."
        )
    return output


def _pictures(trained: Trained, evaluated: list[Evaluated]) -> list[tuple[bytes, str]]:
    """Return a run's own pictures with their captions."""
    curves = training_curves_figure(trained.history, best_epoch=trained.best["epoch"])
    pictures = [(png_of(curves), "Training curves.")]
    for found in evaluated:
        for name in _PICTURED:
            path = found.folder / f"{name}.png"
            try:
                pictures.append((path.read_bytes(), f"{found.folder.name}: {FIGURES[name]}"))
            except OSError as error:
                raise DataError(
                    f"{path}: cannot be read ({error}). Evaluate the run again."
                ) from error
    return pictures


def _track(run: Path, page: Path) -> bool:
    """Add the page to the run's own MLflow run; return whether it has one."""
    tracker = tracker_of(run)
    if tracker is None:
        return False
    tracker.reopen(run)
    tracker.log_artifact(page, folder="plots")
    return True
