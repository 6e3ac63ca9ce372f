from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dermalyze.data.batches import (
    ImageStore,
    micro_batches,
    open_store,
)
from dermalyze.data.decode import PreprocessSpec, decode
from dermalyze.errors import DataError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),
        (10, 4, [4, 4, 2]),
        (11, 4, [4, 4, 3]),
        (3, 4, [3]),
        (4, 4, [4]),
        (5, 4, [5]),
        (2, 2, [2]),
        (3, 2, [3]),
        (5, 2, [2, 3]),
        (2, 1000, [2]),
    ],
)
def test_sizes_of_micro_batches(images, batch_size, sizes):
    assert [len(batch) for batch in micro_batches(np.arange(images), batch_size)] == sizes


@settings(deadline=None)
@given(images=st.integers(2, 500), batch_size=st.integers(2, 70))
def test_micro_batches_hold_every_image_once_in_order(images, batch_size):
    order = np.random.default_rng(images).permutation(images)
    batches = micro_batches(order, batch_size)
    assert np.array_equal(np.concatenate(batches), order)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 2 <= len(batches[-1]) <= batch_size + 1


@pytest.mark.parametrize(("images", "batch_size"), [(0, 4), (1, 4), (4, 1), (4, 0)])
def test_batches_of_one_are_refused(images, batch_size):
    with pytest.raises(DataError, match=f"{images} training images in batches of {batch_size}"):
        micro_batches(np.arange(images), batch_size)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


def store_of(images: np.ndarray) -> ImageStore:
    ids = [f"ISIC_{row}" for row in range(len(images))]
    return ImageStore(images_NHWC=images, image_ids=ids, device=CPU)


def test_a_batch_is_the_arrays_rows_channels_last(images):
    store = store_of(images)
    rows = np.array([4, 0, 4, 5])
    batch = store.batch(rows)
    assert len(store) == 6
    assert batch.dtype == torch.uint8
    assert batch.shape == (4, 3, 4, 5)
    assert batch.stride() == (4 * 5 * 3, 1, 5 * 3, 3)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(batch.numpy(), images[rows].transpose(0, 3, 1, 2))


def test_a_batch_is_a_copy(images):
    store = store_of(images)
    before = images.copy()
    store.batch(np.array([1, 2])).zero_()
    assert np.array_equal(images, before)


def test_an_empty_batch_has_its_shape(images):
    batch = store_of(images).batch(np.array([], dtype=np.int64))
    assert batch.shape == (0, 3, 4, 5)


def test_a_row_that_is_not_there_is_an_error(images):
    with pytest.raises(IndexError):
        store_of(images).batch(np.array([6]))


def test_a_memory_map_is_read_where_it_lies(tmp_path: Path, images):
    path = tmp_path / "images.npy"
    np.save(path, images)
    mapped = np.load(path, mmap_mode="c")
    store = store_of(mapped)
    # Written after the store was made: only a store that holds no copy can see it.
    changed = images.copy()
    changed[3] = 255 - changed[3]
    mapped[3] = changed[3]
    rows = np.array([3, 1])
    assert np.array_equal(store.batch(rows).permute(0, 2, 3, 1).numpy(), changed[rows])
    assert np.array_equal(np.load(path), images)


def test_the_store_of_a_table_follows_its_rows(tmp_path: Path):
    names = ["c", "a", "b"]
    for shade, name in enumerate(names):
        noise = np.random.default_rng(shade).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in names]
    table = SimpleNamespace(frame=pd.DataFrame({"image_id": names, "path": paths}))
    spec = PreprocessSpec(image_size=8)
    store = open_store(table, spec, str(tmp_path / "cache"), CPU)  # type: ignore[arg-type]
    assert store.image_ids == names
    batch = store.batch(np.array([2, 0])).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(batch, np.stack([decode(paths[2], spec), decode(paths[0], spec)]))
