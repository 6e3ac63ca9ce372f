from __future__ import annotations

import numpy as np
import torch

from dermalyze.augmentation.contact_sheet import GAP, augmented_views, contact_sheet
from dermalyze.augmentation.geometry import Geometry
from dermalyze.augmentation.pipeline import STREAMS, BatchAugmentation
from dermalyze.randomness import Purpose, generator


def augmentation() -> BatchAugmentation:
    geometry = Geometry(
        horizontal_flip=0.5,
        vertical_flip=0.5,
        rotation=20.0,
        affine_rotation=0.0,
        translation=0.0,
        scale=(1.0, 1.0),
        shear=0.0,
        perspective=0.0,
    )
    return BatchAugmentation(**dict.fromkeys(STREAMS) | {"geometry": geometry})  # type: ignore[arg-type]


def pictures(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_views_are_what_a_run_with_this_seed_would_train_on() -> None:
    images = pictures(3, 24)
    shown = augmented_views(augmentation(), images, views=2, seed=7)
    assert shown.shape == (3, 3, 24, 24, 3)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[:, 0], images)
    for epoch in range(2):
        chance = generator(7, Purpose.AUGMENTATION, epoch, 0)
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)
        seen = augmentation()(batch, chance, size=24).permute(0, 2, 3, 1).numpy()
        assert np.abs(shown[:, 1 + epoch] - seen).max() <= 0.5 + 1e-3


def test_a_sheet_has_a_row_an_image_and_says_what_it_is() -> None:
    views = pictures(6, 32).reshape(2, 3, 32, 32, 3)
    sheet = np.asarray(contact_sheet(views, title="augmentation=medium"))
    assert sheet.shape == (2 * (32 + GAP) - GAP + 3 * 16, 3 * (32 + GAP) - GAP, 3)
    for row in range(2):
        for column in range(3):
            top, left = 32 + row * (32 + GAP), column * (32 + GAP)
            shown = sheet[top : top + 32, left : left + 32]
            np.testing.assert_array_equal(shown, views[row, column])
    assert sheet[:16].min() < 100  # the title
    assert sheet[-16:].min() < 160  # the disclaimer


def test_a_long_title_is_cut_and_not_the_sheet() -> None:
    views = pictures(2, 64).reshape(1, 2, 64, 64, 3)
    short = contact_sheet(views, title="a")
    long = contact_sheet(views, title="augmentation=medium " * 20)
    assert long.size == short.size
    assert np.asarray(long)[:16, -4:].min() == 255
