from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from test_contract import TRAIN, Trial

from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.engine import frozen_maps

FROZEN = ["model=timm", "model.backbone=test_efficientnet", "model.pretrained=false",
          "stages=frozen", "augmentation=none", "model/metadata=film", "optimizer=sgd"]  # fmt: skip


@pytest.fixture(autouse=True)
def hydra_on_conf() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield


def seen_by_the_backbone(trial: Trial) -> list[int]:
    """Return a list that gets the number of images of each of the backbone's calls."""
    sizes: list[int] = []
    backbone: Any = trial.state.model.backbone
    backbone.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


def weights(trial: Trial) -> dict[str, torch.Tensor]:
    return dict(trial.state.model.state_dict())


def test_maps_are_computed_once_and_train_the_same_head() -> None:
    once, each_time = Trial.of(*FROZEN), Trial.of(*FROZEN)
    each_time.step.images_change = True
    seen_once, seen_each_time = seen_by_the_backbone(once), seen_by_the_backbone(each_time)
    before = {name: value.clone() for name, value in weights(once).items()}
    for _ in range(3):
        once.go_on()
        each_time.go_on()
    assert seen_once == [len(TRAIN)]
    assert seen_each_time == [8, 8, 5]
    for name, value in weights(once).items():
        torch.testing.assert_close(value, weights(each_time)[name], rtol=0, atol=1e-5)
    changed = {
        name for name, value in weights(once).items() if not torch.equal(value, before[name])
    }
    assert changed
    assert not any(name.startswith("backbone.") for name in changed)
    assert any(name.startswith("metadata.") for name in changed)


@pytest.mark.parametrize("change", ["augmentation=light", "mix=cutmix", "stages=one"])
def test_images_that_change_and_backbones_that_learn_are_seen_each_time(change: str) -> None:
    trial = Trial.of(*FROZEN, change)
    seen = seen_by_the_backbone(trial)
    trial.go_on()
    assert trial.step.maps is None
    assert seen == [8]


def test_maps_are_left_behind_with_their_stage() -> None:
    trial = Trial.of(*FROZEN, "stages=two", "stages.head.epochs=1")
    trial.go_on()
    assert trial.step.maps is not None
    trial.state.history.append({"epoch": 1, "val/loss": 1.0})
    trial.state.begin_next_epoch(8)
    trial.go_on()
    assert trial.step.maps is None


def test_without_the_memory_for_them_they_are_computed_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    expected = Trial.of(*FROZEN)
    expected.step.images_change = True
    expected.go_on()
    trial = Trial.of(*FROZEN)
    monkeypatch.setattr(frozen_maps, "machine_memory", lambda: 1)
    trial.go_on()
    assert trial.step.maps is None
    assert "computed anew in every epoch" in caplog.text
    for name, value in weights(trial).items():
        np.testing.assert_array_equal(value, weights(expected)[name])


def test_a_resumed_run_computes_anew_where_it_did_before_whatever_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped, resumed = Trial.of(*FROZEN), Trial.of(*FROZEN)
    with monkeypatch.context() as small:
        small.setattr(frozen_maps, "machine_memory", lambda: 1)
        stopped.go_on()
    resumed.state.restore(stopped.state.tensors(), stopped.state.numbers())
    resumed.go_on()
    assert (resumed.state.keeps_maps, resumed.step.maps) == (False, None)
    stopped.go_on()
    for name, value in weights(resumed).items():
        np.testing.assert_array_equal(value, weights(stopped)[name])


def test_a_resumed_run_says_where_memory_is_too_small_for_what_was_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stopped, resumed = Trial.of(*FROZEN), Trial.of(*FROZEN)
    stopped.go_on()
    assert stopped.state.keeps_maps is True
    resumed.state.restore(stopped.state.tensors(), stopped.state.numbers())
    monkeypatch.setattr(frozen_maps, "machine_memory", lambda: 1)
    resumed.go_on()
    [warning] = [record for record in caplog.records if record.name == "dermalyze.engine.step"]
    assert warning.levelname == "WARNING"
    assert "the run so far kept the frozen backbone's maps" in warning.getMessage()
    assert resumed.state.keeps_maps is False
