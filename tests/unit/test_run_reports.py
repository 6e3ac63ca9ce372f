"""Pages and figures over many runs: what they show is what the runs' files hold."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn import metrics as sk
from test_comparison import FRAME, HISTORY, PROBS, a_run, asked, probabilities

from dermalyze import run_report
from dermalyze.compared_runs.trained import read_trained
from dermalyze.comparison import TRAINED, compare, write_comparison
from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.comparison_plots import (
    Judged,
    Row,
    histories_figure,
    intervals_figure,
    mean_roc,
    trust_figure,
)
from dermalyze.evaluation.fit_analysis import RULE, fit_analysis
from dermalyze.run_report import report_runs
from dermalyze.taxonomy import DISCLAIMER


class Seen(HTMLParser):
    """The words of a page, and what it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.sources: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two runs of one config and another of a larger learning rate."""
    named = [("A", 7, 0.1), ("B", 13, 0.1), ("C", 7, 0.2)]
    return [
        a_run(tmp_path / name, FRAME, PROBS[name], seed=seed, optimizer={"lr": lr})
        for name, seed, lr in named
    ]


def lines(figure: Figure, panel: int) -> dict[str, np.ndarray]:
    return {
        f"{line.get_label()} {line.get_linestyle()}": np.array(line.get_ydata())
        for line in figure.axes[panel].get_lines()
    }


# What training left


def test_the_best_epoch_is_the_one_that_training_chose(runs: list[str]) -> None:
    trained = read_trained(Path(runs[0]))
    assert (trained.best["epoch"], trained.monitor) == (2, "val/loss")
    assert trained.fit == fit_analysis(HISTORY)
    # An epoch that is better by less than min_delta is not better.
    config = Path(runs[0]) / "config.yaml"
    config.write_text(config.read_text().replace("min_delta: 0.0", "min_delta: 1.0"))
    assert read_trained(Path(runs[0])).best["epoch"] == 1


@pytest.mark.parametrize(
    ("history", "said"),
    [
        (None, r"not the history of a run \(FileNotFoundError"),
        ("[]", "not one epoch is recorded"),
        ('[{"epoch": 1}]', "training.monitor=val/loss: None in epoch 1"),
        ("[1]", r"not the history of a run \(AttributeError"),
        ("{", r"not the history of a run \(JSONDecodeError"),
    ],
)
def test_a_history_that_is_none(runs: list[str], history: str | None, said: str) -> None:
    path = Path(runs[0]) / "training_history.json"
    path.unlink()
    if history is not None:
        path.write_text(history)
    with pytest.raises(DataError, match=said):
        read_trained(Path(runs[0]))


# Figures


def test_histories_are_means_over_the_seeds_with_their_range() -> None:
    def history(*losses: float) -> list[dict[str, Any]]:
        return [
            {"epoch": epoch, "train/loss": 1.0, "val/loss": loss, "val/accuracy": None}
            for epoch, loss in enumerate(losses, 1)
        ]

    figure = histories_figure({"$a": [history(3, 2, 1), history(1, 1)], "b": [history(5)]})
    assert len(figure.axes) == 1  # nothing is known of accuracies
    found = lines(figure, 0)
    np.testing.assert_allclose(found["$a -"], [2, 1.5, 1])
    np.testing.assert_allclose(found["b -"], [5])
    ends = figure.axes[0].collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in ends} >= {(1, 1), (1, 3), (2, 1), (2, 2), (3, 1)}
    assert figure.get_supxlabel() == DISCLAIMER


def test_many_groups_are_drawn_seven_a_row_so_that_no_two_look_alike() -> None:
    figure = histories_figure({f"g{n}": [HISTORY] for n in range(16)})
    rows = [axes for axes in figure.axes if axes.get_legend() is not None]
    names = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in rows]
    assert [len(some) for some in names] == [7, 7, 2]
    assert [name for some in names for name in some] == [f"g{n}" for n in range(16)]
    for axes in rows:
        colours = [line.get_color() for line in axes.get_lines()]
        assert len(set(colours)) == len(axes.get_legend().get_texts())


def test_intervals_stand_where_they_are() -> None:
    rows = [Row("a", 0.5, 0.4, 0.7, [0.3, 0.7]), Row("b", 0.6, None, None, [None])]
    figure = intervals_figure({"accuracy": rows, "loss": rows[1:]}, differences=True)
    drawn = [
        (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].get_lines()
    ]
    assert drawn == [
        ([0.4, 0.7], [0, 0]), ([0.3, 0.7], [0, 0]), ([0.5], [0]),
        ([], []), ([0.6], [1]), ([0, 0], [0, 1]),
    ]  # fmt: skip
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_the_mean_roc_curve_is_that_of_scikit_learn_averaged() -> None:
    labels_N = np.repeat([0, 1, 2], 30)
    runs = [Judged(labels_N, probabilities(FRAME, seed, 1.0)) for seed in (1, 2)]
    areas = [sk.roc_auc_score(labels_N == k, run.probs_NK[:, k]) for run in runs for k in range(3)]
    found = mean_roc(runs)
    assert np.trapezoid(found, np.linspace(0, 1, 201)) == pytest.approx(np.mean(areas), abs=0.005)
    assert np.isnan(mean_roc([Judged(np.zeros(90, int), runs[0].probs_NK)])).all()
    figure = trust_figure({"a": runs})
    np.testing.assert_array_equal(lines(figure, 0)["_child1 -"], found)
    np.testing.assert_array_equal(lines(figure, 1)["_child0 -"], [0, 1])


# Pages


def test_the_page_of_a_comparison_holds_its_numbers_and_needs_no_other_file(
    runs: list[str], tmp_path: Path
) -> None:
    for name in "AC":  # a leak, in two runs
        (tmp_path / name / "train_split.csv").write_text("image_id,lesion_id,dx\nX,L3,nv\n")
    found = compare(asked(*runs, group_seeds=True, draws=20))
    folder = write_comparison(found, str(tmp_path / "out"))
    seen = Seen(folder / "compare.html")
    assert seen.words.count(DISCLAIMER) == 1
    assert f"{runs[0]} was trained on lesions of 2 of these images: a leak." in seen.words
    for group in found.groups:
        assert group.label in seen.words
    for result in found.results:
        if result.value is None:  # the AUC of the two images, which are of one class
            assert (result.images, result.metric) == (TRAINED, "macro_auc")
            continue
        chance = result.sd if result.minus is None else result.seed_error
        seeds = "" if chance is None else f" +- {chance:.3f}"
        told = f"{result.value:.3f}{seeds} ({result.low:.3f} to {result.high:.3f})"
        assert (told in seen.words) is (result.metric != "loss")
    assert "Metrics: 2 images of lesions that trained a run" in seen.words
    assert RULE in seen.words
    assert seen.words.count("severe overfit") == 0
    assert seen.words.count("mild overfit") == 3  # 0.75 in training, 0.625 on validation
    assert len(seen.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in seen.sources)
    stored = json.loads((folder / "comparison.json").read_text())["runs"]
    assert [(run["run"], run["best_epoch"], run["epochs"]) for run in stored] == [
        (run, 2, 3) for run in runs
    ]
    assert stored[0]["validation"]["balanced_accuracy"] == 0.5
    assert stored[0]["metrics"]["accuracy"] == pytest.approx(
        (PROBS["A"].argmax(1) == found.judged[Path(runs[0])].labels_N).mean()
    )


def evaluated(run: str, leakage: str | None) -> None:
    """Leave in a run's folder what a report reads of an evaluation."""
    folder = Path(run) / "evaluation" / "test"
    estimate = {"value": 0.5, "low": 0.25, "high": 0.75, "draws": 9}
    names = ("accuracy", "balanced_accuracy", "macro_f1", "ece")
    overall = dict.fromkeys(names, estimate) | {"macro_auc": {"value": None, "reason": "alone"}}
    report = {"intervals": {"overall": overall}, "images": 1234}
    report |= {"leakage": leakage, "fitted_on_these": None if leakage is None else "fitted"}
    (folder / "evaluation_metrics.json").write_text(json.dumps(report))
    for name in ("confusion_matrix", "calibration_curve"):
        Image.new("RGB", (4, 4)).save(folder / f"{name}.png")


def wanted(*runs: str, **changed: Any) -> dict[str, Any]:
    return {
        "runs": list(runs), "group_seeds": True, "pictured_runs": 1, "output": None, "track": False,
        "paths": {"outputs": "outputs"},
    } | changed  # fmt: skip


def test_a_report_over_many_runs(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluated(runs[0], None)
    evaluated(runs[1], "seen")
    (tmp_path / "C/evaluation/test/evaluation_metrics.json").unlink()
    reported = report_runs(wanted(*runs))
    assert (reported.page, reported.runs, reported.tracked) == (
        Path("outputs/training_report.html"), 3, 0,
    )  # fmt: skip
    seen = Seen(reported.page)
    assert seen.words.count(DISCLAIMER) == 1
    assert "Training report: 3 runs" in seen.words
    assert seen.words.count("0.500 (0.250 to 0.750)") == 8
    assert seen.words.count("none: alone") == 2
    assert seen.words.count("1,234") == 2
    for why in ("seen", "fitted"):
        assert f"{runs[1]}, test is no test: {why}." in seen.words
    assert seen.words.count("2 of 3") == 3  # the best epoch
    assert {"optimizer.lr", "0.1", "0.2", "7, 13"} <= set(seen.words)
    assert "2 more runs are not pictured by themselves (pictured_runs)." in seen.words
    # All curves, and of one run its own, a confusion matrix and a calibration curve.
    assert len(seen.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in seen.sources)


def test_a_report_is_written_over_nothing_that_was_named(runs: list[str], tmp_path: Path) -> None:
    model, page = tmp_path / "model.safetensors", tmp_path / "mine.html"
    for path, why in ((model, "ends in .html"), (page, "is there already")):
        path.write_text("mine")
        with pytest.raises(ConfigError, match=f"output={path}: .*{why}"):
            report_runs(wanted(*runs, output=str(path)))
        assert path.read_text() == "mine"


def test_the_report_of_one_run_lies_in_its_folder_and_in_its_mlflow_run(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    class Recorder:
        def reopen(self, folder: Path) -> None:
            calls.append(("reopen", str(folder)))

        def log_artifact(self, path: Path, *, folder: str) -> None:
            calls.append(("log", str(path), folder))

    (tmp_path / "A/evaluation/test/evaluation_metrics.json").unlink()
    monkeypatch.setattr(run_report, "tracker_of", lambda folder: Recorder())
    reported = report_runs(wanted(runs[0], track=True))
    assert reported.page == tmp_path / "A" / "training_report.html"
    assert reported.tracked == 1
    assert calls == [("reopen", runs[0]), ("log", str(reported.page), "plots")]
    words = Seen(reported.page).words
    assert "No run was evaluated: python -m dermalyze.evaluate checkpoint=RUN" in words
    assert words[words.index("optimizer.lr") + 1] == "0.1"  # all settings of the only group
    monkeypatch.setattr(run_report, "tracker_of", lambda folder: None)
    assert report_runs(wanted(runs[0], track=True)).tracked == 0


def test_an_evaluation_by_another_version_is_named(runs: list[str]) -> None:
    with pytest.raises(DataError, match=r"A/evaluation/test/evaluation_metrics.json: not the"):
        report_runs(wanted(runs[0]))
