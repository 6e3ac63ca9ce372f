"""Catalogue rows 54 to 58 and 60, and the Python interface: one path from images to results."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import CLASSES, TOLD, draw, make_run

from dermalyze import SkinLesionPredictor, load_ensemble_predictor
from dermalyze.checkpoint_file import BEST, read_checkpoint, write_checkpoint
from dermalyze.compute import Precision
from dermalyze.data.batches import ImageStore
from dermalyze.data.decode import decode
from dermalyze.errors import CheckpointError, ConfigError, DataError
from dermalyze.inference.aggregate import aggregated
from dermalyze.inference.ensemble import Greedy
from dermalyze.inference.forward import predict_views
from dermalyze.inference.identity import trained_as, way_of
from dermalyze.inference.loading import load_model, read_facts
from dermalyze.inference.uncertainty import uncertainty
from dermalyze.prediction import panel
from dermalyze.prediction.results import Failure, Prediction
from dermalyze.prediction.ways import find_way, method_of, views_of
from dermalyze.reporting.fitted import keep, sets_of
from dermalyze.taxonomy import DISCLAIMER

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    start = tmp_path_factory.mktemp("runs")
    return [
        make_run(start / "one", seed=1, balanced_accuracy=0.75),
        make_run(start / "two", seed=2, balanced_accuracy=0.25, size=48),
    ]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return [draw(folder / f"{number}.png", number) for number in range(7)]


@pytest.fixture(scope="module")
def predictor(runs):
    return SkinLesionPredictor(runs[0], device="cpu")


def probs(results):
    return np.array([list(result.probabilities.values()) for result in results])


def as_evaluated(run, paths, mode="off"):
    """probs_VNK by the path that `evaluate` takes: a store of decoded images."""
    loaded = load_model(run / BEST, CPU)
    store = ImageStore(
        images_NHWC=np.stack([decode(path, loaded.preprocess) for path in paths]),
        image_ids=[path.name for path in paths],
        device=CPU,
    )
    rows, precision = np.arange(len(paths)), Precision(CPU, None)
    views = views_of(mode, None)
    return predict_views(loaded.model, store, rows, views=views, batch_size=64, precision=precision)


def test_all_that_may_be_given_gives_the_same(predictor, paths):
    path = paths[0]
    image = Image.open(path)
    pixels_HWC = np.array(image)
    tensor_HWC = torch.tensor(pixels_HWC)
    given = [str(path), path.open("rb"), image, pixels_HWC, tensor_HWC, tensor_HWC.permute(2, 0, 1)]
    results = [predictor.predict(one) for one in [path, *given]]
    given[1].close()
    assert all(result.probabilities == results[0].probabilities for result in results)
    expected = as_evaluated(predictor._panel.home, [path])[0]
    np.testing.assert_allclose(probs(results[:1]), expected, rtol=0, atol=1e-6)
    assert [result.image for result in results] == [
        *[str(path)] * 4,
        *["image 0"] * 3,
    ]


def test_a_result_is_typed_frozen_and_reads_like_a_dict(predictor, paths):
    result = predictor.predict(paths[1])
    best = max(result["probabilities"], key=result["probabilities"].get)
    assert result.predicted_class == result["predicted_class"] == best
    assert result.confidence == result.probabilities[best]
    assert sum(result.probabilities.values()) == pytest.approx(1, abs=1e-12)
    assert list(result.probabilities) == list(predictor.classes) == list(CLASSES)
    assert result.disclaimer == DISCLAIMER
    assert "error" not in result
    assert dict(result) == result
    assert len(result) == len(list(result)) == 13
    with pytest.raises(KeyError):
        result["predict"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.confidence = 1.0
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert plain == result.as_dict()
    assert plain["uncertainty"]["margin"] == result.uncertainty.margin
    assert plain["model"]["checkpoints"] == [str(predictor._panel.home / BEST)]
    names = {"bcc": "basal cell carcinoma", "mel": "melanoma", "own": "own"}
    assert result.predicted_class_description == names[best]


@pytest.mark.parametrize("mode", ["light", "medium", "full"])
@pytest.mark.parametrize("aggregation", ["mean", "geometric_mean", "max"])
def test_views_are_merged_as_evaluation_does(predictor, paths, mode, aggregation):
    probs_VNK = as_evaluated(predictor._panel.home, paths, mode)
    expected_NK = aggregated(probs_VNK, aggregation=aggregation)
    result = predictor.predict_with_tta(paths[2], mode=mode, aggregation=aggregation)
    np.testing.assert_allclose(probs([result])[0], expected_NK[2], rtol=0, atol=1e-6)
    assert (result.model.tta, result.model.tta_aggregation) == (mode, aggregation)
    unsure = uncertainty(expected_NK, probs_VNK[None], np.ones(1))
    for name, values_N in (
        ("predictive_entropy", unsure.entropy_N),
        ("mutual_information", unsure.mutual_information_N),
        ("predicted_class_deviation", unsure.deviation_N),
        ("margin", unsure.margin_N),
    ):
        assert result.uncertainty[name] == pytest.approx(values_N[2], abs=1e-6), name
    batch = predictor.predict_batch(paths, batch_size=24, mode=mode, aggregation=aggregation)
    np.testing.assert_allclose(probs(batch), expected_NK, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100, None])
def test_a_batch_keeps_its_order_and_a_bad_file_its_place(predictor, paths, batch_size, tmp_path):
    (tmp_path / "bad.png").write_bytes(paths[0].read_bytes()[:100])
    given = [paths[0], tmp_path / "bad.png", *paths[1:], tmp_path / "absent.png", np.zeros((2, 2))]
    results = list(predictor.predict_batch(given, batch_size=batch_size))
    assert [type(result) for result in results] == [
        Failure if position in (1, 8, 9) else Prediction for position in range(10)
    ]
    assert [result.image for result in results[:9]] == [str(path) for path in given[:9]]
    expected = as_evaluated(predictor._panel.home, paths)[0]
    found = probs(result for result in results if "error" not in result)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.abs(np.diff(expected, axis=0)).max(axis=1).min() > 1e-3  # an order to mix up
    assert "truncated or damaged" in results[1].error
    assert "absent.png: cannot be opened" in results[8]["error"]
    assert "image 9: pixels of type float64" in results[9].error


def test_a_batch_streams(predictor, paths):
    """Of an endless supply only a few batches are taken before the first result comes."""
    taken = []

    def supply():
        for number in itertools.count():
            taken.append(number)
            yield paths[number % len(paths)]

    results = predictor.predict_batch(supply(), batch_size=2)
    next(results)
    assert len(taken) <= 6


def test_what_cannot_be_used_is_said_before_the_first_result(predictor, paths):
    with pytest.raises(ConfigError, match=r"tta=huge: there is none. Valid: full, light, medium, "):
        predictor.predict_with_tta(paths[0], "huge")
    with pytest.raises(ConfigError, match="'mean', 'geometric_mean' or 'max'"):
        predictor.predict_batch(paths, mode="light", aggregation="median")
    with pytest.raises(ConfigError, match="batch_size=0: at least 1"):
        predictor.predict_batch(paths, batch_size=0)
    with pytest.raises(DataError, match=r"none\.png: cannot be opened"):
        predictor.predict("none.png")
    for images, metadata, said in (
        (paths, [None], "metadata: ends after 1. Give a metadata for each image."),
        (paths[:1], [None, None], "images: ends after 1. Give a metadata for each image."),
        (paths, {"age": 50}, "metadata: that of one image. Give a list, with one for each image."),
        ("a.jpg", None, "images=a.jpg: one path, where several images are asked for: [PATH]."),
    ):
        with pytest.raises(ConfigError) as refused:
            list(predictor.predict_batch(images, metadata=metadata))
        assert str(refused.value) == said


def test_options_of_the_predictor_are_checked(runs):
    with pytest.raises(ConfigError, match=r"set_method=all: there is none\. Valid: lac, aps, raps"):
        SkinLesionPredictor(runs[0], set_method="all")
    with pytest.raises(ConfigError, match="amp=fp32"):
        SkinLesionPredictor(runs[0], amp="fp32")
    with pytest.raises(ConfigError, match="device=gpu"):
        SkinLesionPredictor(runs[0], device="gpu")
    with pytest.raises(CheckpointError, match="does not exist"):
        SkinLesionPredictor("nowhere")


def test_an_ensemble_weighs_its_members_by_their_validation(runs, paths, predictor):
    """Each sees its own pixels: one takes larger pictures."""
    ensemble = load_ensemble_predictor(runs, device="cpu")
    probs_MNK = np.stack([as_evaluated(run, paths)[0] for run in runs])
    result = ensemble.predict(paths[3])
    expected = 0.75 * probs_MNK[0, 3] + 0.25 * probs_MNK[1, 3]
    np.testing.assert_allclose(probs([result])[0], expected, rtol=0, atol=1e-6)
    assert result.model.weights == (0.75, 0.25)
    assert result.model.ensemble == "weighted_mean"
    for aggregation in ("mean", "geometric_mean"):
        result = ensemble.predict(paths[3], aggregation=aggregation)
        merged_NK = aggregated(probs_MNK, aggregation=aggregation)
        np.testing.assert_allclose(probs([result])[0], merged_NK[3], rtol=0, atol=1e-6)
    views = [as_evaluated(run, paths, "medium") for run in runs]
    merged = np.stack([aggregated(view, aggregation="max") for view in views])
    how = {"tta_mode": "medium", "tta_aggregation": "max", "ensemble_aggregation": "mean"}
    result = ensemble.predict_with_tta(paths[3], **how)
    np.testing.assert_allclose(probs([result])[0], merged[:, 3].mean(axis=0), rtol=0, atol=1e-6)
    batch = probs(ensemble.predict_batch(paths, 16, **how))
    np.testing.assert_allclose(batch, merged.mean(axis=0), rtol=0, atol=1e-6)

    given = load_ensemble_predictor(runs, weights=[1, 3]).predict(paths[3])
    assert given.model.weights == (0.25, 0.75)
    one = load_ensemble_predictor(runs[:1]).predict(paths[3])
    assert one.probabilities == predictor.predict(paths[3]).probabilities
    assert one.model.ensemble is None


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ([1, -1], "-1.0 is no finite number of at least 0"),
        ([1, float("nan")], "nan"),
        ([0, 0], "their sum is 0"),
        ([1, 2, 3], "3 weights for 2 models"),
    ],
)
def test_weights_that_are_none_are_refused_at_once(runs, weights, why):
    with pytest.raises(ConfigError, match=why):
        load_ensemble_predictor(runs, weights=weights)


def test_members_are_held_against_each_other(runs, paths, tmp_path, caplog, predictor):
    caplog.set_level(logging.INFO)
    twice = load_ensemble_predictor([runs[0], runs[0] / BEST])
    assert "are the same model, which has two votes" in caplog.text
    np.testing.assert_allclose(
        probs([twice.predict(paths[0])]), probs([predictor.predict(paths[0])]), rtol=1e-12
    )
    caplog.clear()
    load_ensemble_predictor(runs)
    assert "32 pixels" in caplog.text
    assert "48 pixels" in caplog.text
    other = make_run(tmp_path / "other", classes=["mel", "bcc", "own"])
    with pytest.raises(DataError, match="the same classes in the same order"):
        load_ensemble_predictor([runs[0], other])
    with pytest.raises(ConfigError, match="Valid: geometric_mean, greedy, mean, weighted_mean"):
        twice.predict(paths[0], aggregation="median")
    sweep = tmp_path / "sweep"
    make_run(sweep / "0", seed=1)
    make_run(sweep / "1", seed=2)
    with pytest.raises(ConfigError, match=r"2 models\. Use load_ensemble_predictor"):
        SkinLesionPredictor(sweep)
    assert load_ensemble_predictor(sweep).predict(paths[0]).model.weights == (0.5, 0.5)


FITTED = {
    "temperature": 2.0,
    "thresholds": {
        "lac": [0.6] * 3,
        "aps": [0.9] * 3,
        "raps": [0.9] * 3,
        "class_conditional": [None, 0.1, 0.1],
    },
    "abstain_below": 0.4,
    "validation": {"images": 50},
}
SETS = {"level": 0.8, "penalty": 0.01, "free_ranks": 1}


def fit(run, members, views, method, weights, *, precision="fp32", fitted=None):
    facts = [read_facts(member / BEST) for member in members]
    if method is None or isinstance(method, str):
        method = method_of(method, None)
    way = way_of(views_of(views, None), method, np.array(weights))
    prediction = {**way, "logit_adjustment": None, "precision": precision}
    about = {"models": trained_as(facts), "prediction": prediction, "sets": SETS}
    keep(run, about | {"abstention": {"error": 0.1}}, fitted or FITTED)


def test_a_set_is_what_was_fitted_for_this_way_of_predicting(tmp_path, paths):
    run = make_run(tmp_path / "run", seed=1)
    fit(run, [run], "off", None, [1.0])
    predictors = {name: SkinLesionPredictor(run, set_method=name) for name in FITTED["thresholds"]}
    sizes = set()
    for name, predictor in predictors.items():
        for path in paths:
            result = predictor.predict(path)
            (row_K,) = sets_of(FITTED, probs([result]), SETS)[name]
            assert result.prediction_set == tuple(np.array(CLASSES)[row_K]), name
            sizes.add(len(result.prediction_set))
        assert result.prediction_set_note == (
            f"{name}: made to hold the true class in 80% of images, on average over images like "
            "the 50 of validation that it was fitted on; of one image it promises nothing"
        )
    assert len(sizes) > 1
    seen_otherwise = predictors["lac"].predict_with_tta(paths[0], "light")
    assert seen_otherwise.prediction_set is None
    assert "not fitted for this way" in seen_otherwise.prediction_set_note
    fit(run, [run], "light", None, [1.0])
    again = SkinLesionPredictor(run)
    assert again.predict_with_tta(paths[0], "light").prediction_set is not None
    assert again.predict(paths[0]).prediction_set is not None

    elsewhere = tmp_path / "alone.safetensors"
    elsewhere.write_bytes((run / BEST).read_bytes())
    result = SkinLesionPredictor(elsewhere).predict(paths[0])
    assert result.prediction_set is None
    assert "lies in no run's folder" in result.prediction_set_note


def test_temperature_and_silence_are_what_was_fitted(tmp_path, paths):
    run = make_run(tmp_path / "run", seed=1)
    raw = SkinLesionPredictor(run, device="cpu").predict(paths[0])
    assert (raw.calibrated_probabilities, raw.abstain) == (None, None)
    assert raw.calibration_note == raw.prediction_set_note
    assert "not fitted for this way of predicting" in raw.calibration_note

    roots = {code: value**0.5 for code, value in raw.probabilities.items()}  # temperature 2
    expected = {code: root / sum(roots.values()) for code, root in roots.items()}
    largest = max(expected.values())
    for limit, silent in ((largest + 1e-6, True), (largest - 1e-6, False), (None, None)):
        fit(run, [run], "off", None, [1.0], fitted=FITTED | {"abstain_below": limit})
        result = SkinLesionPredictor(run, device="cpu").predict(paths[0])
        assert result.probabilities == raw.probabilities
        assert result.calibrated_probabilities == pytest.approx(expected, abs=1e-12)
        assert result.abstain is silent
        start = "temperature 2.0000, fitted on 50 images of validation; "
        assert result.calibration_note == start + (
            "no confidence reached on validation the error that was asked for, so there is no word "
            "on abstaining"
            if limit is None
            else f"abstain: below a confidence of {limit:.4f}, from which on at most 10% of those "
            "images were mistaken"
        )
    assert json.loads(json.dumps(result.as_dict()))["calibrated_probabilities"] == (
        result.calibrated_probabilities
    )


def test_what_was_fitted_in_another_number_format_is_not_used(tmp_path, paths):
    run = make_run(tmp_path / "run", seed=1)
    fit(run, [run], "off", None, [1.0], precision="bf16")
    assert SkinLesionPredictor(run, device="cpu").predict(paths[0]).abstain is None
    in_bf16 = SkinLesionPredictor(run, device="cpu", amp="bf16").predict(paths[0])
    assert in_bf16.abstain is not None
    fit(run, [run], "off", None, [1.0])
    for amp in ("auto", "off"):  # which are both fp32 on a CPU
        assert SkinLesionPredictor(run, device="cpu", amp=amp).predict(paths[0]).abstain is not None


def test_a_selection_on_validation_is_found_where_an_evaluation_left_it(tmp_path, paths):
    sweep = tmp_path / "sweep"
    members = [make_run(sweep / "0", seed=1), make_run(sweep / "1", seed=2)]
    ensemble = load_ensemble_predictor(sweep)
    with pytest.raises(ConfigError, match=r"ensemble=greedy \(metric=.*\): its weights are chosen"):
        ensemble.predict(paths[0], aggregation="greedy")
    fit(sweep, members, "off", "greedy", [0.2, 0.8])
    by_loss = Greedy(metric="val/loss", rounds=3)
    fit(sweep, members, "off", by_loss, [0.5, 0.5], fitted=FITTED | {"temperature": 3.0})
    result = ensemble.predict(paths[0], aggregation="greedy")
    assert result.model.weights == (0.2, 0.8)
    assert result.calibration_note.startswith("temperature 2.0000")
    facts = [read_facts(member / BEST) for member in members]
    off, asked = views_of("off", None), {"home": sweep, "precision": "fp32"}
    found = find_way(off, by_loss, facts, **asked)
    assert found.weights_M.tolist() == [0.5, 0.5]
    assert found.fit["fitted"]["temperature"] == 3.0
    with pytest.raises(ConfigError, match=r"greedy \(metric=val/loss, rounds=4\): its weights are"):
        find_way(off, Greedy(metric="val/loss", rounds=4), facts, **asked)
    assert result.prediction_set is not None
    with pytest.raises(ConfigError, match="greedy"):
        ensemble.predict_with_tta(paths[0], "light", ensemble_aggregation="greedy")


def test_what_is_known_besides_is_told_to_who_learnt_it(tmp_path, paths, predictor):
    taught = SkinLesionPredictor(make_run(tmp_path / "told", seed=3, encoding=TOLD))
    nothing = taught.predict(paths[0])
    assert nothing.model.metadata == ()
    told = taught.predict(paths[0], metadata={"age": 71, "sex": " Male ", "localization": "ear"})
    assert told.model.metadata == ("age", "sex")  # an ear is no place that it has learnt of
    assert np.abs(probs([told]) - probs([nothing])).max() > 1e-4
    unknown = {"age": 0, "sex": "unknown", "localization": None}
    assert taught.predict(paths[0], metadata=unknown) == nothing
    batch = list(
        taught.predict_batch(paths[:1] * 3, metadata=[None, dict(age="71", sex="male"), {}])
    )
    np.testing.assert_allclose(probs(batch[1:2]), probs([told]), rtol=0, atol=1e-6)
    np.testing.assert_allclose(probs([batch[0], batch[2]]), probs([nothing] * 2), atol=1e-6)

    with pytest.raises(DataError, match="metadata 'site'"):
        taught.predict(paths[0], metadata={"site": "back"})
    with pytest.raises(DataError, match="age '-3' is no number of years up to 120"):
        taught.predict(paths[0], metadata={"age": -3})
    alone = predictor.predict(paths[0], metadata={"age": "none of its business"})
    assert alone.model.metadata == ()
    assert alone == predictor.predict(paths[0])


def test_probabilities_that_are_not_finite_are_not_ranked(runs, paths, tmp_path, monkeypatch):
    tensors, header = read_checkpoint(runs[0] / BEST)
    broken = {name: tensor * float("nan") for name, tensor in tensors.items()}
    broken |= {name: t for name, t in tensors.items() if not t.is_floating_point()}
    (tmp_path / "run").mkdir()
    write_checkpoint(tmp_path / "run" / BEST, broken, header)
    with pytest.raises(DataError, match=r"not finite \(first: .*0\.png\)"):
        SkinLesionPredictor(tmp_path / "run").predict(paths[0])

    whole = panel.view_probabilities

    def one_broken(*args, **kwargs):
        probs_VNK = whole(*args, **kwargs)
        probs_VNK[:, 1] = np.nan
        return probs_VNK

    monkeypatch.setattr(panel, "view_probabilities", one_broken)
    results = list(SkinLesionPredictor(runs[0]).predict_batch(paths[:4], batch_size=4))
    assert ["error" in result for result in results] == [False, True, False, False]
    assert results[1].error.startswith(f"{paths[1]}: 1 of 1 images got probabilities that are not")
    expected = as_evaluated(runs[0], paths[:4])[0]
    found = probs([results[0], *results[2:]])
    np.testing.assert_allclose(found, expected[[0, 2, 3]], rtol=0, atol=1e-6)


def test_importing_the_package_stays_light():
    script = (
        "import sys, dermalyze\n"
        "assert {'SkinLesionPredictor', 'load_ensemble_predictor'} <= set(dir(dermalyze))\n"
        "print(sorted({'torch', 'numpy', 'hydra'} & sys.modules.keys()))\n"
        "try: dermalyze.Predictor\n"
        "except AttributeError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\nmodule 'dermalyze' has no attribute 'Predictor'\n"
