"""An evaluation's figures and page: what they show is what was measured."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sk

from dermalyze.errors import DataError
from dermalyze.evaluation.result_plots import (
    calibration_figure,
    errors_figure,
    per_class_figure,
    pr_curves_figure,
    risk_coverage_figure,
    roc_curves_figure,
)
from dermalyze.judged_images import fitted_on_these
from dermalyze.reporting.figures import most_confident_mistakes, write_figures
from dermalyze.reporting.fitted import fit_on_validation
from dermalyze.reporting.page import write_page
from dermalyze.reporting.results import results
from dermalyze.taxonomy import DISCLAIMER

CLASSES = ["mel", "nv", "$a<b>$"]
CONFIG = {
    "intervals": {"level": 0.95, "draws": 50, "seed": 0},
    "specificities": [0.9],
    "subgroups": {"few_lesions": 30, "age_edges": [40]},
    "sets": {"level": 0.8, "penalty": 0.01, "free_ranks": 1},
}


def sampled(seed: int, images: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(3, size=images)
    odds_NK = np.exp(2 * (rng.normal(size=(images, 3)) + np.eye(3)[labels_N]))
    return labels_N, odds_NK / odds_NK.sum(axis=1, keepdims=True)


def lines(figure) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        str(line.get_label()): (np.array(line.get_xdata()), np.array(line.get_ydata()))
        for line in figure.axes[0].get_lines()
    }


def test_curves_are_those_of_the_classes_that_have_one() -> None:
    labels_N, probs_NK = sampled(0)
    labels_N = np.where(labels_N == 2, 1, labels_N)  # the third class has no image
    found = lines(roc_curves_figure(labels_N, probs_NK, CLASSES))
    auc = sk.roc_auc_score(labels_N == 0, probs_NK[:, 0])
    false, true = found[f"mel (AUC {auc:.3f})"]
    assert np.trapezoid(true, false) == pytest.approx(auc)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert len(found) == 3  # chance, mel and nv
    average = sk.average_precision_score(labels_N == 0, probs_NK[:, 0])
    found = lines(pr_curves_figure(labels_N, probs_NK, CLASSES))
    recall, precision = found[f"mel (AP {average:.3f})"]
    assert np.diff(recall) @ precision[1:] == pytest.approx(average)
    assert (recall[0], recall[-1], precision[0]) == (0, 1, precision[1])
    assert len(found) == 2


def test_bars_and_their_intervals() -> None:
    estimate = {"value": 0.5, "low": 0.4, "high": 0.7, "draws": 9}
    nothing = {"value": None, "low": None, "high": None, "draws": 0}
    entry = {"support": 1200, "precision": nothing, "recall": estimate, "f1": estimate}
    figure = per_class_figure({"mel": entry})
    axes = figure.axes[0]
    assert figure.get_supxlabel() == DISCLAIMER
    assert [bar.get_height() for bar in axes.patches] == [0.5, 0.5]
    assert axes.get_xticklabels()[0].get_text() == "mel\n(1,200)"
    ends = [c.get_segments()[0][:, 1].tolist() for c in axes.collections if c.get_segments()]
    assert ends == [pytest.approx([0.4, 0.7])] * 2


def test_calibration_and_risk() -> None:
    table = [
        {"low": 0.0, "high": 0.5, "images": 0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 1.0, "images": 7, "confidence": 0.9, "accuracy": 0.6},
    ]
    figure = calibration_figure(table, None)
    assert lines(figure)["as predicted"] == ([0.9], [0.6])
    (stairs,) = figure.axes[1].patches
    assert stairs.get_data().values.tolist() == [0, 7]
    figure = risk_coverage_figure(np.array([0.9, 0.8]), np.array([True, False]), 0.5)
    np.testing.assert_allclose(lines(figure)["area 0.2500"], [[0.5, 1], [0, 0.5]])
    assert lines(figure)["threshold of validation: 50.0% kept"][0].tolist() == [0.5, 0.5]


def test_mistakes_the_most_confident_first() -> None:
    confidence_N = np.array([0.5, 0.9, 0.7, 0.99])
    right_N = np.array([False, False, False, True])
    assert most_confident_mistakes(confidence_N, right_N) == [1, 2, 0]
    assert len(most_confident_mistakes(np.linspace(0, 1, 40), np.zeros(40, bool))) == 12
    with pytest.raises(DataError, match="1 captions for 0 pictures"):
        errors_figure([], ["a"])
    assert errors_figure([], []).get_suptitle() == "No mistakes"


class _Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.sources: list[str] = []

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.mark.parametrize("validated", [True, False])
def test_the_page_holds_the_numbers_and_needs_no_other_file(tmp_path, validated: bool) -> None:
    labels_N, probs_NK = sampled(1)
    Image.new("RGB", (8, 8), "pink").save(tmp_path / "a.png")
    frame = pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(60)],
            "lesion_id": [f"l{n // 2}" for n in range(60)],
            "age": [30.0, 50.0] * 30,
            "sex": "male",
            "localization": "back",
            "dx_type": "histo",
            "path": str(tmp_path / "a.png"),
        }
    )
    fitted = None
    if validated:
        fitted = fit_on_validation(*sampled(2), sets=CONFIG["sets"], abstention={"error": 0.2})
        fitted["unlike_training"] = {"members": [], "flag_above": 1.5, "reason": None}
    why_not = None if validated else "no validation part"
    found = results(
        labels_N,
        probs_NK,
        frame,
        CLASSES,
        config=CONFIG,
        fitted=fitted,
        why_not_fitted=why_not,
        unlike_N=np.arange(60) / 20 if validated else None,  # 29 of them are above 1.5
    )
    assert json.loads(json.dumps(found.report, allow_nan=False)) == found.report
    predicted_N = probs_NK.argmax(axis=1)
    shares = sk.confusion_matrix(labels_N, predicted_N, normalize="true")
    np.testing.assert_allclose(found.report["confusion_matrix"]["share_of_true"], shares)
    assert sorted(found.columns) == (
        [
            "set_aps",
            "set_class_conditional",
            "set_lac",
            "set_raps",
            "unlike_training",
            "unlike_training_flag",
        ]
        if validated
        else []
    )
    write_figures(tmp_path, labels_N, probs_NK, frame, CLASSES, found.report)
    Image.new("RGB", (8, 8)).save(tmp_path / "confusion_matrix.png")
    about = {
        "data": "x",
        "split": "test",
        "images": 60,
        "leakage": "seen",
        "fitted_on_these": fitted_on_these("val") if validated else None,
        "ensemble": "mean",
        "members": [
            {"epoch": 3, "seed": 7, "weight": 0.25},
            {"epoch": 4, "seed": 8, "weight": 0.75},
        ],
        "tta": {"views": ["identity", "horizontal"], "aggregation": "mean"},
    }
    assert found.report["calibration"]["temperature_note"] is None
    note = {"temperature_note": "temperature 20 is a bound"}
    at_bound = found.report["calibration"] | note
    errors = at_bound["before"]
    alone = {"temperature": 20.0, "temperature_note": None, "before": errors, "after": errors}
    at_bound["members"] = [alone | note, alone]
    write_page(tmp_path, found.report | about | {"calibration": at_bound})

    seen = _Seen()
    seen.feed((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert DISCLAIMER in seen.text
    assert "seen" in seen.text
    assert (
        "ensemble by mean: epoch 3 of seed 7 with weight 0.25, epoch 4 of seed 8 with weight 0.75; "
        "each image in 2 views, mean. In brackets: 95% intervals" in "".join(seen.text)
    )
    assert "$a<b>$" in seen.text
    notes = [text for text in seen.text if "is a bound" in text]
    of_first = "Of epoch 3 of seed 7 the temperature 20 is a bound."
    assert notes == (["The temperature 20 is a bound.", of_first] if validated else [])
    for name in ("accuracy", "macro_auc"):
        e = found.report["intervals"]["overall"][name]
        assert f"{e['value']:.3f} ({e['low']:.3f} to {e['high']:.3f})" in seen.text
    assert len(seen.sources) == 7
    assert all(source.startswith("data:image/png;base64,") for source in seen.sources)
    said = [text for text in seen.text if text.startswith("No test: these images chose the epoch")]
    assert len(said) == validated
    assert ("Not calibrated: no validation part." in seen.text) is not validated
    assert ("The temperature 20 is a bound." in seen.text) is validated
    text = "".join(seen.text)
    assert ("of the images are flagged as unlike those of validation" in text) is validated
    if validated:
        assert "its interval lies high" in text
        flagged = found.report["unlike_training"]["intervals"]["flagged"]
        assert f"48.3% ({flagged['low']:.1%} to {flagged['high']:.1%}) of the images" in text
        for method in ("lac", "class_conditional"):
            estimates = found.report["sets"][method]["intervals"]
            shown = [estimates["coverage"], *estimates["coverage_per_class"].values()]
            assert len(shown) == 4
            for e in shown:
                assert f"{e['value']:.3f} ({e['low']:.3f} to {e['high']:.3f})" in seen.text
            e = estimates["mean_size"]
            assert f"{e['value']:.2f} ({e['low']:.2f} to {e['high']:.2f})" in seen.text
        assert "coverage of mel" in seen.text
        e = found.report["calibration"]["intervals"]["after"]["brier"]
        assert f"{e['value']:.4f} ({e['low']:.4f} to {e['high']:.4f})" in seen.text
