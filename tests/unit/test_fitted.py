"""What validation decides: kept, found again, and reported on other images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dermalyze.errors import DataError
from dermalyze.evaluation.calibration import calibration_errors, with_temperature
from dermalyze.evaluation.intervals import interval, lesion_weights
from dermalyze.prediction.fitted_answers import fitted_answers
from dermalyze.prediction.ways import Way, method_of, views_of
from dermalyze.reporting.fitted import (
    CALIBRATION,
    abstention_report,
    all_kept,
    calibration_report,
    fit_on_validation,
    keep,
    kept,
    sets_of,
    sets_report,
)
from dermalyze.reporting.measures import Bootstrap
from dermalyze.reporting.resampled import Resampled
from dermalyze.reporting.trust_section import trust_section
from dermalyze.validation_fit import validation_fit

SETS = {"level": 0.8, "penalty": 0.01, "free_ranks": 1}
CLASSES = ["a", "b", "c"]


def sampled(seed: int, images: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(3, size=images)
    odds_NK = np.exp(3 * (rng.normal(size=(images, 3)) + np.eye(3)[labels_N]))
    return labels_N, odds_NK / odds_NK.sum(axis=1, keepdims=True)


def resampled(lesion_ids_N: list[str] | None = None) -> Resampled:
    bootstrap = Bootstrap(level=0.9, draws=40, seed=5)
    return Resampled(bootstrap, lesion_ids_N or [str(n // 2) for n in range(300)])


def fitted() -> dict:
    return fit_on_validation(*sampled(0), sets=SETS, abstention={"error": 0.1})


def test_it_is_found_again_for_the_same_model_asked_in_the_same_way(tmp_path) -> None:
    about = {"models": [{"epoch": 3}], "prediction": {"views": ("identity",)}, "sets": SETS}
    assert kept(tmp_path, about) is None
    keep(tmp_path, about, fitted())
    assert kept(tmp_path, about) == fitted()
    assert kept(tmp_path, about | {"models": [{"epoch": 4}]}) is None
    assert kept(tmp_path, about | {"sets": {**SETS, "level": 0.9}}) is None


def test_each_way_of_predicting_keeps_its_own_until_the_models_are_others(tmp_path) -> None:
    one = {"models": [{"epoch": 3}], "prediction": {"tta": "off"}, "sets": SETS}
    two = one | {"prediction": {"tta": "medium"}}
    other = fit_on_validation(*sampled(1), sets=SETS, abstention={"error": 0.1})
    keep(tmp_path, one, fitted())
    keep(tmp_path, two, other)
    assert (kept(tmp_path, one), kept(tmp_path, two)) == (fitted(), other)
    asked_otherwise = one | {"sets": {**SETS, "level": 0.9}}
    keep(tmp_path, asked_otherwise, other)
    assert kept(tmp_path, one) is None
    assert (kept(tmp_path, asked_otherwise), kept(tmp_path, two)) == (other, other)
    export = one | {"models": [{"epoch": 3, "export": "onnx"}]}
    keep(tmp_path, export, fitted())
    assert (kept(tmp_path, asked_otherwise), kept(tmp_path, export)) == (other, fitted())
    keep(tmp_path, one | {"models": [{"epoch": 4}]}, fitted())
    assert [fit["about"]["models"] for fit in all_kept(tmp_path)] == [[{"epoch": 4}]]


@pytest.mark.parametrize(
    "content", ["{", '{"fits": [{}]}', '{"fits": 3}', '{"about": {}, "fitted": {}}', "[]"]
)
def test_a_file_that_is_none_of_these_is_refused(tmp_path, content) -> None:
    (tmp_path / CALIBRATION).write_text(content)
    with pytest.raises(DataError, match="Remove it and evaluate again"):
        kept(tmp_path, {"models": [], "prediction": {}})


def test_a_class_too_rare_for_the_level_is_in_every_set() -> None:
    labels_N, probs_NK = sampled(0)
    rare_N = np.where(labels_N == 2, 0, labels_N)
    found = fit_on_validation(rare_N, probs_NK, sets=SETS, abstention={"error": 0.1})
    assert found["thresholds"]["class_conditional"][2] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert sets_of(found, probs_NK, SETS)["class_conditional"][:, 2].all()


def test_each_of_several_models_is_told_by_its_own_temperature() -> None:
    (labels_N, sure_NK), (other_N, _) = sampled(0), sampled(1)
    unsure_NK = with_temperature(sure_NK, 4.0)
    together_NK = (sure_NK + unsure_NK) / 2
    how = {"sets": SETS, "abstention": {"error": 0.1}}
    found = fit_on_validation(labels_N, together_NK, **how, probs_MNK=[sure_NK, unsure_NK])
    one, two = found["members"]
    assert one["temperature"] == pytest.approx(4 * two["temperature"], rel=1e-5)
    assert one["before"] == calibration_errors(labels_N, sure_NK)
    assert two["after"]["nll"] == pytest.approx(one["after"]["nll"], abs=1e-8)
    assert found["temperature"] not in (one["temperature"], two["temperature"])
    assert fit_on_validation(labels_N, sure_NK, **how, probs_MNK=[sure_NK])["members"] == []

    alone = {"resampled": resampled(), "why_not": None, "probs_MNK": [sure_NK, unsure_NK]}
    told = calibration_report(other_N, together_NK, found, **alone)["members"]
    assert [m["temperature"] for m in told] == [one["temperature"], two["temperature"]]
    assert told[0]["validation"] == {"before": one["before"], "after": one["after"]}
    cooled_NK = with_temperature(unsure_NK, two["temperature"])
    assert told[1]["before"] == calibration_errors(other_N, unsure_NK)
    assert told[1]["after"] == calibration_errors(other_N, cooled_NK)


@pytest.mark.parametrize(
    ("turn", "bound", "how"), [(0, 0.05, "far from sure enough"), (1, 20.0, "far too sure")]
)
def test_a_temperature_at_its_bound_is_said_to_be_one(turn, bound, how, tmp_path, caplog) -> None:
    """Of a model that is always right, or never, also where it is one of several."""
    _, probs_NK = sampled(0)
    labels_N = (probs_NK.argmax(axis=1) + turn) % 3
    asked = {"sets": SETS, "abstention": {"error": 0.1}}
    found = fit_on_validation(labels_N, probs_NK, **asked)
    assert found["temperature"] == pytest.approx(bound, rel=2e-6)
    said = (
        f"temperature {bound:g} is a bound of the search (0.05 to 20), not an optimum: on "
        f"validation the model is {how}, and what is calibrated by it means little"
    )
    how_told = {"resampled": resampled(), "why_not": None}
    report = calibration_report(*sampled(1), found, **how_told)
    assert report["temperature_note"] == said
    guessed_N = (labels_N + (np.arange(len(labels_N)) % 5 == 0)) % 3  # four of five are right
    two = [probs_NK, 0.4 * np.eye(3)[guessed_N] + 0.2]
    with_two = fit_on_validation(labels_N, probs_NK, **asked, probs_MNK=two)
    assert with_two["members"][1]["temperature"] == pytest.approx(np.log(3) / np.log(8), rel=1e-4)
    of_two = calibration_report(*sampled(1), with_two, **how_told, probs_MNK=two)["members"]
    assert [one["temperature_note"] for one in of_two] == [said, None]
    assert calibration_report(*sampled(1), fitted(), **how_told)["temperature_note"] is None

    asked |= {"unlike_training": {}}
    about = {"models": [], "prediction": {"tta": "off"}, **asked}
    of_first = f"model 1 by itself: its {said}"
    for one, warned in (
        (found, [f"the {said}"]),
        (with_two, [f"the {said}", of_first]),
        (fitted(), []),
    ):
        keep(tmp_path, about, one)
        caplog.clear()
        again, _ = validation_fit(
            asked,
            [],
            home=tmp_path,
            prediction=about["prediction"],
            on_validation=lambda: pytest.fail("it was fitted anew"),
        )
        assert again == one
        assert caplog.messages == warned

    fit = {"about": about, "fitted": found}
    way = Way(views_of("off", None), method_of("mean", None), np.ones(1), fit, None)
    answers = fitted_answers(way, probs_NK, CLASSES, "lac")
    start = f"temperature {bound:.4f}, fitted on 300 images of validation ({said}); "
    assert answers[0].calibration_note.startswith(start)


def test_the_page_says_where_there_is_silence() -> None:
    labels_N, probs_NK = sampled(1)
    rest = {
        "calibration": {"temperature": 1.0, "before": {}, "temperature_note": None, "members": []},
        "members": [],
        "sets": {"level": 0.8},
        "unlike_training": {"flagged": None},
    }
    for limit, said in (
        (None, "Silent about nothing: no confidence reached on validation the error that"),
        (
            2.0,
            "Silent about every image: none reaches a confidence of 2.000, chosen on validation.",
        ),
        (0.0, "Silent below a confidence of 0.000, chosen on validation, the model answers"),
    ):
        found = fitted() | {"abstain_below": limit}
        report = abstention_report(labels_N, probs_NK, found, resampled=resampled(), why_not=None)
        words = [one.text for one in trust_section({**rest, "abstention": report})]
        assert str(words[-1]).startswith(said)


def test_reports_on_other_images() -> None:
    labels_N, probs_NK = sampled(1)
    found = fitted()
    cooled_NK = with_temperature(probs_NK, found["temperature"])
    report = calibration_report(labels_N, probs_NK, found, resampled=resampled(), why_not=None)
    assert report["before"] == calibration_errors(labels_N, probs_NK)
    assert report["after"] == calibration_errors(labels_N, cooled_NK)
    assert report["after"]["nll"] < report["before"]["nll"]

    sets = sets_of(found, probs_NK, SETS)
    report = sets_report(labels_N, sets, CLASSES, 0.8, resampled=resampled())
    lac = report["lac"]
    assert lac["coverage"] == pytest.approx(0.8, abs=0.08)  # 300 and 300 images: 3 x 0.033
    weights = np.bincount(labels_N) / 300
    assert np.dot(list(lac["coverage_per_class"].values()), weights) == pytest.approx(
        lac["coverage"]
    )
    assert np.dot(lac["sizes"], [1, 2, 3]) / 300 == pytest.approx(lac["mean_size"])

    report = abstention_report(labels_N, probs_NK, found, resampled=resampled(), why_not=None)
    kept_N = cooled_NK.max(axis=1) >= found["abstain_below"]
    wrong_N = probs_NK.argmax(axis=1) != labels_N
    assert (report["coverage"], report["error"]) == pytest.approx(
        (kept_N.mean(), wrong_N[kept_N].mean())
    )
    assert report["error"] < wrong_N.mean()


def test_intervals_of_six_images_by_hand() -> None:
    """Four lesions, one of three images; each draw's mean is counted image by image."""
    lesion_ids, labels_N = list("aaabcd"), np.array([0, 0, 1, 1, 0, 0])
    probs_NK = np.array(
        [
            [0.9, 0.1, 0.0],
            [0.4, 0.6, 0.0],
            [0.3, 0.7, 0.0],
            [0.8, 0.2, 0.0],
            [0.6, 0.4, 0.0],
            [0.7, 0.3, 0.0],
        ]
    )
    # One class, two or three in a set; the second and the fourth image lack their class.
    sets_NK = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
    held_N, size_N = [1, 0, 1, 0, 1, 1], [1, 1, 2, 1, 2, 3]
    found = {"temperature": 1.0, "abstain_below": 0.65, "validation": {}, "members": []}
    kept_N, wrong_N = np.array([1, 0, 1, 1, 0, 1]), np.array([0, 1, 0, 1, 0, 0])
    times_DN = lesion_weights(lesion_ids, draws=40, seed=5).astype(int)
    how = {"resampled": resampled(lesion_ids), "why_not": None}

    def expected(values_N: list, among_N: np.ndarray | None = None) -> dict:
        among_N = np.ones(6, int) if among_N is None else among_N
        means = []
        for times_N in np.concatenate([np.ones((1, 6), int), times_DN]):
            drawn = np.repeat(values_N, times_N * among_N)
            means.append(drawn.mean() if len(drawn) else np.nan)
        low, high, draws = interval(np.array(means[1:]), level=0.9)
        return pytest.approx({"value": means[0], "low": low, "high": high, "draws": draws})

    report = sets_report(labels_N, {"lac": sets_NK}, CLASSES, 0.8, resampled=how["resampled"])
    lac = report["lac"]
    assert (lac["coverage"], lac["mean_size"]) == (4 / 6, 10 / 6)
    assert lac["coverage_per_class"] == {"a": 3 / 4, "b": 1 / 2, "c": None}
    assert lac["intervals"]["coverage"] == expected(held_N)
    assert lac["intervals"]["mean_size"] == expected(size_N)
    per_class = lac["intervals"]["coverage_per_class"]
    assert per_class["a"] == expected(held_N, labels_N == 0)
    assert per_class["b"] == expected(held_N, labels_N == 1)
    assert per_class["b"]["draws"] < 40  # some draws hold neither of its two lesions
    reason = "none of the 6 images is labelled c"
    assert per_class["c"] == {"value": None, "low": None, "high": None, "draws": 0} | {
        "reason": reason
    }

    report = abstention_report(labels_N, probs_NK, found, **how)
    assert (report["coverage"], report["error"], report["reason"]) == (4 / 6, 1 / 4, None)
    assert report["intervals"]["coverage"] == expected(kept_N)
    assert report["intervals"]["error"] == expected(wrong_N, kept_N)

    estimates = calibration_report(labels_N, probs_NK, found, **how)["intervals"]["before"]
    of_true_N = probs_NK[np.arange(6), labels_N]
    assert estimates["nll"] == expected(-np.log(of_true_N))
    # Two classes with probability: twice the squared distance of the true one's from 1.
    assert estimates["brier"] == expected(2 * (1 - of_true_N) ** 2)
    errors = [
        calibration_errors(np.repeat(labels_N, times_N), np.repeat(probs_NK, times_N, axis=0))
        for times_N in times_DN
    ]
    low, high, _ = interval(np.array([error["ece"] for error in errors]), level=0.9)
    ece = calibration_errors(labels_N, probs_NK)["ece"]
    assert estimates["ece"] == pytest.approx({"value": ece, "low": low, "high": high, "draws": 40})


def test_what_keeps_silent_about_all_says_so() -> None:
    labels_N, probs_NK = sampled(1)
    how = {"resampled": resampled(), "why_not": None}
    report = abstention_report(labels_N, probs_NK, fitted() | {"abstain_below": 1.1}, **how)
    assert (report["coverage"], report["error"]) == (0, None)
    assert report["reason"] == report["intervals"]["error"]["reason"] == "no image is so confident"
    report = abstention_report(labels_N, probs_NK, fitted() | {"abstain_below": None}, **how)
    assert (report["coverage"], report["intervals"]) == (None, None)
    assert report["reason"] == ("no confidence reached on validation the error that was asked for")


def test_without_validation_it_says_why() -> None:
    labels_N, probs_NK = sampled(1)
    how = {"resampled": resampled(), "why_not": "no validation part"}
    report = calibration_report(labels_N, probs_NK, None, **how)
    assert (report["temperature"], report["after"]) == (None, None)
    assert report["reason"] == "no validation part"
    report = sets_report(labels_N, {}, CLASSES, 0.8, resampled=how["resampled"])
    assert report == {"level": 0.8}
    report = abstention_report(labels_N, probs_NK, None, **how)
    assert (report["coverage"], report["reason"]) == (None, "no validation part")
