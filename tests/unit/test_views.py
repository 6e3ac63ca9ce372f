"""Test-time augmentation: what each view is, and that the forward path shows all of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from dermalyze.compute import Precision
from dermalyze.config import CONF_DIR
from dermalyze.data.batches import ImageStore
from dermalyze.errors import ConfigError
from dermalyze.inference.forward import predict_probabilities, predict_views
from dermalyze.inference.views import AS_THEY_ARE, Views, warped

CPU = torch.device("cpu")
FP32 = Precision(CPU, None)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
METADATA = np.arange(5, dtype=np.float32)[:, None]
IDS = [f"ISIC_{row}" for row in range(5)]
STORE = ImageStore(images_NHWC=PIXELS, image_ids=IDS, device=CPU)
ROWS = np.array([3, 0, 4])
# Row, column to row, column: numpy's own words for the symmetries of the square.
BY_NUMPY = {
    "identity": lambda a: a,
    "horizontal": lambda a: a[:, ::-1],
    "vertical": lambda a: a[::-1],
    "both": lambda a: a[::-1, ::-1],
    "quarter_turn": lambda a: np.rot90(a, 1),
    "three_quarter_turn": lambda a: np.rot90(a, -1),
    "transpose": lambda a: a.swapaxes(0, 1),
    "anti_transpose": lambda a: np.rot90(a, 2).swapaxes(0, 1),
}


def option(name: str, *overrides: str) -> Views:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        cfg = compose("evaluate", ["checkpoint=run", f"tta={name}", *overrides])
    views: Views = instantiate(cfg.tta, _convert_="all")
    return views


def shown(views: Views, pixels: np.ndarray = PIXELS) -> np.ndarray:
    """The views as (view, image, row, column, channel)."""
    images_PCHW = views.of(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return images_PCHW.permute(0, 2, 3, 1).unflatten(0, (len(views), -1)).numpy()


@pytest.mark.parametrize(("name", "count"), [("off", 1), ("light", 4), ("medium", 8), ("full", 12)])
def test_the_options_have_their_views_each_once(name: str, count: int) -> None:
    views = option(name)
    assert (views.name, len(views), views.aggregation) == (name, count, "mean")
    pictures = shown(views)
    assert pictures.shape == (count, *PIXELS.shape)
    assert len({picture.tobytes() for picture in pictures}) == count
    np.testing.assert_array_equal(pictures[0], PIXELS)


def test_symmetries_put_pixels_elsewhere_and_change_none() -> None:
    views = option("medium")
    assert set(views.names) == set(BY_NUMPY)
    pictures = shown(views)
    assert pictures.dtype == np.uint8
    for name, view in zip(views.names, pictures, strict=True):
        for picture, original in zip(view, PIXELS, strict=True):
            np.testing.assert_array_equal(picture, BY_NUMPY[name](original), err_msg=name)


def test_full_is_medium_two_rotations_and_two_zooms() -> None:
    full = option("full")
    assert full.names[8:] == ("rotation -15", "rotation 15", "zoom 1.1", "zoom 1.25")
    pictures = shown(full)
    assert pictures.dtype == np.float32
    np.testing.assert_array_equal(pictures[:8], shown(option("medium")))
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float()
    for view, (angle, zoom) in zip(pictures[8:], full.warps, strict=True):
        expected = warped(images, angle, zoom).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(view, expected)
    assert full.warps == ((-15.0, 1.0), (15.0, 1.0), (0.0, 1.1), (0.0, 1.25))


def test_warps_turn_counter_clockwise_and_enlarge_the_middle() -> None:
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float()
    np.testing.assert_allclose(warped(images, 90.0, 1.0), images.rot90(1, (2, 3)), atol=1e-3)
    # On a ramp along x, pixel i of W shows what lies at the centre plus its distance over 2.
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    expected = 3.5 + (np.arange(8) - 3.5) / 2
    np.testing.assert_allclose(warped(ramp, 0.0, 2.0)[0, 0, 4], expected, atol=1e-5)


class Flatten(nn.Module):
    """A linear layer over all pixels, and the metadata: no view is like another."""

    def __init__(self) -> None:
        super().__init__()
        self.weights_PK = 0.1 * torch.randn(
            (3 * 6 * 6, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float32
        )

    def forward(
        self, images_BCHW: torch.Tensor, metadata_BM: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits_BK: torch.Tensor = images_BCHW.float().div(255).flatten(1) @ self.weights_PK
        return logits_BK if metadata_BM is None else logits_BK * (1 + metadata_BM)


@pytest.mark.parametrize("batch_size", [1, 8, 17, 100])
def test_every_view_of_every_image_is_predicted_in_order(batch_size: int) -> None:
    """As the same pictures, made by numpy and shown one after another, are."""
    views, model = option("medium"), Flatten()
    store = ImageStore(images_NHWC=PIXELS, image_ids=IDS, device=CPU, metadata_NM=METADATA)
    probs_VNK = predict_views(
        model, store, ROWS, views=views, batch_size=batch_size, precision=FP32
    )
    assert (probs_VNK.shape, probs_VNK.dtype) == ((8, 3, 4), np.float64)
    for name, probs_NK in zip(views.names, probs_VNK, strict=True):
        pictures = np.stack([BY_NUMPY[name](picture) for picture in PIXELS])
        one = ImageStore(images_NHWC=pictures, image_ids=IDS, device=CPU, metadata_NM=METADATA)
        expected = predict_probabilities(model, one, ROWS, batch_size=64, precision=FP32)
        np.testing.assert_allclose(probs_NK, expected, rtol=0, atol=1e-6, err_msg=name)
    assert np.ptp(probs_VNK, axis=0).max() > 0.1


def test_without_views_the_model_gets_the_very_batch_that_it_always_got() -> None:
    batches: list[torch.Tensor] = []

    class Remembering(Flatten):
        def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            batches.append(images_BCHW)
            return super().forward(images_BCHW)

    model = Remembering()
    probs_NK = predict_probabilities(model, STORE, ROWS, batch_size=2, precision=FP32)
    assert [len(batch) for batch in batches] == [2, 1]
    for batch, rows in zip(batches, (ROWS[:2], ROWS[2:]), strict=True):
        expected = STORE.batch(rows)
        assert torch.equal(batch, expected)
        assert (batch.dtype, batch.stride()) == (torch.uint8, expected.stride())
    logits_NK = torch.cat([Flatten()(STORE.batch(rows)) for rows in (ROWS[:2], ROWS[2:])])
    np.testing.assert_array_equal(probs_NK, logits_NK.double().softmax(dim=1).numpy())
    assert AS_THEY_ARE.is_off
    assert not option("light").is_off


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rotations": [0.0]}, "tta.rotations=[0.0]: 0.0 is not between"),
        ({"rotations": [180.0]}, "tta.rotations=[180.0]: 180.0 is not between"),
        ({"rotations": [math.nan]}, "tta.rotations=[nan]: nan is not between"),
        ({"zooms": [1.0]}, "tta.zooms=[1.0]: 1.0 is no finite factor above 1"),
        ({"zooms": [math.inf]}, "tta.zooms=[inf]: inf is no finite factor above 1"),
        ({"zooms": [1.1, 1.1]}, "tta.zooms=[1.1, 1.1]: one is there twice"),
        ({"symmetries": []}, "tta: no view is left"),
        (
            {"symmetries": ["both", "both"]},
            "tta.symmetries=['both', 'both']: one is there twice and would count so",
        ),
    ],
)
def test_views_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    values: dict[str, Any] = {"symmetries": ["identity"], "rotations": [], "zooms": []}
    with pytest.raises(ConfigError) as refused:
        Views(name="x", aggregation="mean", **values | changes)
    assert said in str(refused.value)


def test_off_is_the_image_as_it_is_and_nothing_else() -> None:
    rotated: dict[str, Any] = {"symmetries": ["identity"], "rotations": [10.0], "zooms": []}
    with pytest.raises(ConfigError) as refused:
        Views(name="off", aggregation="mean", **rotated)
    assert str(refused.value) == (
        "the configuration cannot work:\n  - tta=off: is the image as it is, and not identity, "
        "rotation 10. Choose light, medium or "
        "full, or call these otherwise: tta.name=NAME"
    )
    assert len(Views(name="mine", aggregation="mean", **rotated)) == 2
