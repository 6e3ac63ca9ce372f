from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dermalyze.augmentation.mixing import Mix, Mixing, cut_box, partners_of
from dermalyze.config import check_targets
from dermalyze.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "mix"


def from_yaml(name: str, **changes: Any) -> Mixing:
    cfg = OmegaConf.load(CONF / f"{name}.yaml")
    check_targets({"mix": OmegaConf.to_container(cfg)})
    return instantiate(cfg, **{"total_epochs": 10, **changes})


def drawn(mixing: Mixing, count: int, *, epoch: int = 0, size: int = 64) -> list[Mix | None]:
    return [mixing(np.random.default_rng(at), epoch=epoch, size=size) for at in range(count)]


@pytest.mark.parametrize(
    ("images", "partners"),
    [(1, [0]), (2, [1, 0]), (5, [1, 0, 3, 2, 4]), (6, [1, 0, 3, 2, 5, 4])],
)
def test_neighbours_are_partners(images, partners):
    assert partners_of(torch.arange(images)).tolist() == partners


def test_mixup_by_hand():
    images = torch.tensor([10, 30, 200], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    labels = torch.eye(3)
    mix = Mix(kept=0.75, box=None)
    assert mix.images(images)[:, 0, 0, 0].tolist() == [15.0, 25.0, 200.0]
    expected = [[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]
    assert mix.rows(labels).tolist() == expected
    assert images[:, 0, 0, 0].tolist() == [10, 30, 200]


def test_cutmix_by_hand():
    images = torch.tensor([10, 30], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 3, 4)
    mix = Mix(kept=0.5, box=(1, 3, 0, 3))
    [[one], [other]] = mix.images(images).tolist()
    assert one == [[10, 10, 10, 10], [30, 30, 30, 10], [30, 30, 30, 10]]
    assert other == [[30, 30, 30, 30], [10, 10, 10, 30], [10, 10, 10, 30]]
    assert mix.images(images).dtype is torch.uint8


@pytest.mark.parametrize(
    ("kept", "centre", "box"),
    [
        (0.75, [0.5, 0.5], (16, 48, 16, 48)),  # half the side, a quarter of the area
        (0.0, [0.5, 0.5], (0, 64, 0, 64)),
        (1.0, [0.3, 0.9], (19, 19, 57, 57)),
        (0.75, [0.0, 0.99], (0, 16, 47, 64)),  # cut off at two borders
    ],
)
def test_boxes_by_hand(kept, centre, box):
    assert cut_box(kept, centre, 64) == box


@given(kept=st.floats(0, 1), y=st.floats(0, 0.999), x=st.floats(0, 0.999), size=st.integers(1, 300))
def test_boxes_lie_within_the_image(kept: float, y: float, x: float, size: int) -> None:
    top, bottom, left, right = cut_box(kept, [y, x], size)
    assert 0 <= top <= bottom <= size
    assert 0 <= left <= right <= size
    assert (bottom - top) * (right - left) <= (1 - kept) * size**2 + 1e-6


def test_cutmix_counts_the_area_that_is_left():
    """The clipped box, not the drawn lambda, says how much of the label is kept."""
    for mix in drawn(from_yaml("cutmix", probability=1.0), 300, size=50):
        assert mix is not None
        assert mix.box is not None
        top, bottom, left, right = mix.box
        image = torch.zeros(2, 1, 50, 50)
        image[0] = 1
        assert mix.images(image)[0].mean().item() == pytest.approx(mix.kept, abs=1e-6)
        assert mix.kept == 1 - (bottom - top) * (right - left) / 2500


@pytest.mark.parametrize(("name", "alpha"), [("mixup", 0.2), ("mixup", 2.0)])
def test_mixups_shares_are_beta(name, alpha):
    kept = np.array([mix.kept for mix in drawn(from_yaml(name, mixup_alpha=alpha), 10_000) if mix])
    assert len(kept) == 10_000
    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha)
    assert kept.mean() == pytest.approx(0.5, abs=4 * math.sqrt(variance / 10_000))
    assert kept.var() == pytest.approx(variance, rel=0.05)


def test_shares_of_batches():
    mixes = drawn(from_yaml("both", probability=0.6, cutmix_share=0.25), 10_000)
    mixed = [mix for mix in mixes if mix is not None]
    assert len(mixed) / 10_000 == pytest.approx(0.6, abs=0.02)
    assert sum(mix.box is not None for mix in mixed) / len(mixed) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(("name", "boxes"), [("none", None), ("mixup", False), ("cutmix", True)])
def test_each_option_mixes_what_its_name_says(name, boxes):
    mixing = from_yaml(name)
    kinds = {None if mix is None else mix.box is not None for mix in drawn(mixing, 200)}
    assert kinds - {None} == (set() if boxes is None else {boxes})
    assert mixing.is_off is (boxes is None)


def test_the_last_epochs_are_not_mixed():
    mixing = from_yaml("mixup", unmixed_last_epochs=3)
    mixed = [drawn(mixing, 1, epoch=epoch)[0] is not None for epoch in range(10)]
    assert mixed == [True] * 7 + [False] * 3
    assert from_yaml("mixup", unmixed_last_epochs=10).is_off


def test_the_same_chance_gives_the_same_mix():
    assert drawn(from_yaml("both"), 50) == drawn(from_yaml("both"), 50)


def test_values_out_of_range_are_refused_together():
    good = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "cutmix_share": 0.5, "probability": 1.0}
    bad = {"mixup_alpha": 0.0, "cutmix_alpha": -1.0, "cutmix_share": 1.5, "probability": -0.1}
    with pytest.raises(ConfigError) as error:
        Mixing(**bad, unmixed_last_epochs=0, total_epochs=10)
    assert all(f"mix.{name}={value}" in str(error.value) for name, value in bad.items())
    with pytest.raises(ConfigError, match=r"mix\.unmixed_last_epochs=11: .* the run's 10 epochs"):
        Mixing(**good, unmixed_last_epochs=11, total_epochs=10)
