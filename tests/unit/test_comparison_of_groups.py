"""Groups of seeds against each other: means, spreads and intervals, each as by hand."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_comparison import CLASSES, FRAME, a_run, asked, probabilities

from dermalyze.compared_runs.groups import grouped
from dermalyze.compared_runs.words import decisive, in_words, labels
from dermalyze.comparison import Compared, Result, compare
from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.intervals import lesion_weights
from dermalyze.evaluation.metrics import METRICS, summary_metrics
from dermalyze.evaluation.seed_spread import error_of_difference, spread

CROSS_ENTROPY = {"_target_": "dermalyze.losses.cross_entropy.CrossEntropy"}
FOCAL = {"_target_": "dermalyze.losses.focal.FocalLoss", "gamma": 2.0}
SEEDS = (7, 13, 21)


def probs(group: int, seed: int) -> np.ndarray:
    return probabilities(FRAME, 100 * group + seed, 1.0 + 0.5 * group)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A multirun of two losses with three seeds each, jobs 0 to 5, and a job that never began."""
    for group, loss in enumerate((CROSS_ENTROPY, FOCAL)):
        for place, seed in enumerate(SEEDS):
            settings = {"loss": {**loss, "class_weights": "balanced"}, "optimizer": None}
            folder = tmp_path / "sweep" / str(3 * group + place)
            a_run(folder, FRAME, probs(group, seed), seed=seed, **settings)
    (tmp_path / "sweep" / "6").mkdir()
    return tmp_path / "sweep"


def one(found: Compared, **wanted: Any) -> Result:
    (result,) = (
        result
        for result in found.results
        if all(getattr(result, name) == value for name, value in wanted.items())
    )
    return result


def naive(group: int, rows: np.ndarray) -> dict[str, float]:
    """The mean over the seeds of each metric of some rows, one image at a time if need be."""
    labels_N = pd.Index(CLASSES).get_indexer(pd.Index(FRAME["dx"]))[rows]
    values = [summary_metrics(labels_N, probs(group, seed)[rows]) for seed in SEEDS]
    return {name: float(np.mean([one[name] for one in values])) for name in METRICS}


def test_spread_by_hand() -> None:
    # Deviations -2, 0, 2: the variance is 8 / 2, the error 2 / sqrt(3).
    found = spread([0.5, 0.7, 0.3])
    assert found == pytest.approx((0.5, 0.2, 0.3, 0.7, 0.2 / 3**0.5))
    assert spread([0.5]) == (0.5, None, None, None, None)
    # 0.3 and 0.4 at right angles.
    other = spread([1.0, 1.0])._replace(error=0.4)
    assert error_of_difference(found._replace(error=0.3), other) == pytest.approx(0.5)
    assert error_of_difference(found, spread([0.5])) is None


def test_seeds_of_one_group_alone_are_told_how_to_be_compared(
    sweep: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    runs = [str(sweep / job) for job in "012"]
    assert compare(asked(*runs, group_seeds=True, draws=2)).tests == []
    assert caplog.messages == [
        "the runs differ in nothing but their seed, so they are one group with none to hold it "
        "against; group_seeds=false holds each run against each"
    ]
    caplog.clear()
    assert len(compare(asked(*runs, group_seeds=False, draws=2)).tests) == 3
    assert caplog.messages == []


def test_a_multirun_is_groups_of_seeds_with_means_spreads_and_paired_intervals(
    sweep: Path,
) -> None:
    found = compare(asked(str(sweep), group_seeds=True, draws=12))
    labels = ["loss=cross_entropy", "loss=focal"]
    assert [(group.label, group.seeds) for group in found.groups] == [(g, SEEDS) for g in labels]
    assert [run.name for group in found.groups for run in group.runs] == [*"012345"]
    assert len(found.results) == 3 * len(METRICS)

    # Draw by draw, lesion by lesion: images as often as they were drawn.
    rows_D = [
        np.repeat(np.arange(len(FRAME)), weights_N.astype(int))
        for weights_N in lesion_weights(FRAME["lesion_id"], draws=12, seed=1)
    ]
    drawn = [[naive(group, rows) for rows in rows_D] for group in (0, 1)]
    everything = np.arange(len(FRAME))
    labels_N = pd.Index(CLASSES).get_indexer(pd.Index(FRAME["dx"]))
    for metric in METRICS:
        means = [naive(group, everything)[metric] for group in (0, 1)]
        errors = []
        for group, label in enumerate(labels):
            values_S = [summary_metrics(labels_N, probs(group, seed))[metric] for seed in SEEDS]
            result = one(found, group=label, minus=None, metric=metric)
            ends = np.quantile([draw[metric] for draw in drawn[group]], [0.025, 0.975])
            sd = pd.Series(values_S).std()
            errors.append(sd / 3**0.5)
            assert (result.value, result.low, result.high) == pytest.approx((means[group], *ends))
            assert (result.sd, result.smallest, result.largest, result.seed_error) == (
                pytest.approx((sd, min(values_S), max(values_S), errors[-1]))
            )
        result = one(found, group=labels[1], minus=labels[0], metric=metric)
        gains = [b[metric] - a[metric] for a, b in zip(*drawn, strict=True)]
        ends = np.quantile(gains, [0.025, 0.975])
        expected = (means[1] - means[0], *ends, (errors[0] ** 2 + errors[1] ** 2) ** 0.5)
        assert (result.value, result.low, result.high, result.seed_error) == pytest.approx(expected)
        assert (result.sd, result.smallest, result.largest) == (None, None, None)

    # McNemar's tests pair the seeds in their order, and Holm corrects for all three.
    pairs = [(Path(test.run).name, Path(test.minus_run).name) for test in found.tests]
    assert pairs == [("3", "0"), ("4", "1"), ("5", "2")]
    smallest = min(found.tests, key=lambda test: test.p)
    assert smallest.p_holm == pytest.approx(min(1, 3 * smallest.p))


@pytest.mark.parametrize("by_label", [True, False])
def test_a_baseline_is_held_against_every_other_group_and_against_nothing_else(
    sweep: Path, tmp_path: Path, by_label: bool
) -> None:
    a_run(tmp_path / "third", FRAME, probs(2, 7), loss={**FOCAL, "gamma": 1.0})
    base = tmp_path / "base"  # a multirun of its own, and not among the runs unless named there
    base.mkdir()
    for job in "012":
        (sweep / job).rename(base / job)
    runs = [str(sweep), str(tmp_path / "third"), *([str(base)] if by_label else [])]
    named = "loss=cross_entropy" if by_label else str(base)
    found = compare(asked(*runs, group_seeds=True, draws=5, baseline=named))
    assert found.baseline == "baseline"
    assert [len(group.runs) for group in found.groups] == [3, 1, 3]
    assert found.groups[2].label == "baseline"
    assert {result.minus for result in found.results} == {None, "baseline"}
    assert len(found.results) == 5 * len(METRICS)
    assert {(test.group, test.minus) for test in found.tests} == {
        (group.label, "baseline") for group in found.groups[:2]
    }


def test_a_baseline_that_is_no_group_or_several(sweep: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds runs of 2 groups.*cross_entropy; loss=focal"):
        grouped(str(sweep), group_seeds=True, baseline=str(sweep))
    with pytest.raises(ConfigError, match=r"neither a folder nor one of the groups.*loss=focal"):
        grouped(str(sweep), group_seeds=True, baseline="loss=focus")


def test_seeds_alone_are_one_group_and_a_repeat_is_left_out(
    sweep: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (sweep / "1" / "config.yaml").write_text((sweep / "0" / "config.yaml").read_text())
    runs = [str(sweep / job) for job in "012"]
    with caplog.at_level(logging.WARNING):
        groups, baseline = grouped(runs, group_seeds=True, baseline=None)
    assert [(group.label, group.seeds) for group in groups] == [(str(sweep), (7, 21))]
    assert baseline is None
    assert f"{sweep}/1 has the config and the seed 7 of {sweep}/0" in caplog.text
    found = compare(asked(*runs, group_seeds=True, draws=5))
    assert (len(found.results), found.tests) == (len(METRICS), [])
    with pytest.raises(ConfigError, match=r"alone. Give another run"):
        compare(asked(runs[0], group_seeds=True))


def test_folders_and_device_make_no_other_group(sweep: Path) -> None:
    for job, device in zip("01", ("cpu", "cuda"), strict=True):
        config = OmegaConf.load(sweep / job / "config.yaml")
        config.training.device, config.paths = device, {"outputs": device}
        OmegaConf.save(config, sweep / job / "config.yaml")
    groups, _ = grouped(str(sweep), group_seeds=True, baseline=None)
    assert [group.seeds for group in groups] == [SEEDS, SEEDS]


def test_runs_of_other_test_splits_are_refused_by_name_with_the_first_ids(
    sweep: Path, tmp_path: Path
) -> None:
    changed = FRAME.assign(image_id=[f"X{n}" for n in range(len(FRAME))])
    other = a_run(tmp_path / "other", changed, probs(0, 7), seed=8)
    with pytest.raises(DataError) as caught:
        compare(asked(str(sweep), other, group_seeds=True))
    message = str(caught.value)
    assert f"{sweep}/0 and {other} cannot be compared" in message
    assert f"90 images in {other} only: X0, X1, X10, X11, X12 and 85 more" in message


def test_groups_that_read_alike_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path / name, FRAME, probs(0, 7), optimizer={"name": "x"}, mix=mix)
        for name, mix in (
            ("one", {"a": "1, mix.b=2", "b": "3"}),
            ("two", {"a": "1", "b": "2, mix.b=3"}),
        )
    ]
    groups, _ = grouped(runs, group_seeds=True, baseline=None)
    assert [group.label for group in groups] == [
        f"mix.a=1, mix.b=2, mix.b=3 ({run})" for run in runs
    ]


# Words


def test_words_are_the_nearest_option_and_what_differs_from_it() -> None:
    focal = {"loss._target_": FOCAL["_target_"], "loss.gamma": "2.0"}
    weighted, unweighted = ({"loss.class_weights": kind} for kind in ("balanced", "none"))
    assert in_words(focal | weighted) == {"loss": "focal"}
    assert in_words(focal | unweighted) == {"loss": "focal", "loss.class_weights": "none"}
    assert in_words(focal) == {"loss": "focal", "loss.class_weights": "(absent)"}


def test_any_backbone_is_timm_by_its_name() -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", ["model=timm", "model.backbone=resnet50", "training.seed=3"])
    words = in_words(decisive(cfg))
    assert (words["model"], words["model.backbone"]) == ("timm", "resnet50")
    assert (words["data/split"], words["model/head"]) == ("lesion_stratified", "simple")
    assert not {"training.seed", "training.device", "data.root", "paths.outputs"} & words.keys()


def test_labels_name_what_most_have_not() -> None:
    settings = [
        {"epochs": "40", "lr": "1"},
        {"epochs": "40", "lr": "2"},
        {"epochs": "40", "lr": "3"},
        {"epochs": "9", "lr": "1"},
        {"epochs": "40", "lr": "1", "new": "4"},
    ]
    common = "common settings"
    assert labels(settings, baseline=None) == [common, "lr=2", "lr=3", "epochs=9", "new=4"]
    # What one lacks is named only where it would have no name of its own.
    lacking = [
        {"a": "1", "b": "2"},
        {"a": "1"},
        {"b": "2"},
        {"a": "1", "b": "2", "c": "3"},
        {"a": "7"},
    ]
    assert labels(lacking, baseline=0) == [
        "baseline", "b=(absent)", "a=(absent)", "c=3", "a=7",
    ]  # fmt: skip
    assert labels(lacking[:3], baseline=None) == [common, "b=(absent)", "a=(absent)"]
    # Without a value that more than half have, each names its own.
    assert labels(settings[:2], baseline=None) == ["lr=1", "lr=2"]
    assert labels(settings[1:], baseline=2) == [
        "epochs=40, lr=2", "epochs=40, lr=3", "baseline", "epochs=40, new=4",
    ]  # fmt: skip
