from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dermalyze.data import batches
from dermalyze.data.batches import (
    ImageStore,
    micro_batches,
    open_store,
)
from dermalyze.data.decode import PreprocessSpec, decode
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.errors import DataError

REPOSITORY = Path(__file__).parents[2]
CPU = torch.device("cpu")
PIXELS_ALONE = MetadataEncoding(columns=(), age=(0.0, 1.0), categories={})


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
    store = store_of(np.load(path, mmap_mode="r"))
    # Written after the store was made: only a store that holds no copy can see it.
    changed = images.copy()
    changed[3] = 255 - changed[3]
    np.load(path, mmap_mode="r+")[3] = changed[3]
    rows = np.array([3, 1])
    assert np.array_equal(store.batch(rows).permute(0, 2, 3, 1).numpy(), changed[rows])


def test_images_move_to_a_device_in_pieces(images, monkeypatch):
    monkeypatch.setattr(batches, "ROWS_AT_ONCE", 4)  # of 6
    images.flags.writeable = False
    assert np.array_equal(batches.moved(images, CPU).numpy(), images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("free", [0, 2**40])
def test_batches_on_a_cuda_device_are_those_on_the_cpu(images, free, monkeypatch):
    """Whether the whole array moves there or one batch at a time, ahead or not."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    device = torch.device("cuda")
    ids = [f"ISIC_{row}" for row in range(len(images))]
    store = ImageStore(images_NHWC=images, image_ids=ids, device=device)
    coming = [np.array([4, 0]), np.array([1]), np.array([5, 5, 2])]
    with store.reading_ahead(coming):
        for rows in [*coming, np.array([3])]:
            batch = store.batch(rows)
            assert batch.device.type == "cuda"
            assert np.array_equal(batch.cpu().permute(0, 2, 3, 1).numpy(), images[rows])


# Reading ahead


@pytest.fixture
def too_large(monkeypatch):
    """Let every array count as larger than the machine's memory."""
    monkeypatch.setattr(batches, "machine_memory", lambda: 0)


@pytest.fixture
def gatherings(monkeypatch) -> list[tuple[list[int], bool]]:
    """The rows that were gathered, and whether another thread did it."""
    done: list[tuple[list[int], bool]] = []
    gather = ImageStore._gathered

    def watched(self, rows_B):
        done.append((rows_B.tolist(), threading.current_thread() is not threading.main_thread()))
        return gather(self, rows_B)

    monkeypatch.setattr(ImageStore, "_gathered", watched)
    return done


COMING = [np.array([4, 0]), np.array([1]), np.array([5, 5, 2]), np.array([3])]


def test_batches_read_ahead_are_the_batches(images, too_large, gatherings):
    store = store_of(images)
    expected = [store.batch(rows) for rows in COMING]
    gatherings.clear()
    with store.reading_ahead(COMING):
        ahead = [store.batch(rows) for rows in COMING]
    assert all(torch.equal(one, other) for one, other in zip(ahead, expected, strict=True))
    assert gatherings == [(rows.tolist(), True) for rows in COMING]


def test_images_that_fit_into_memory_are_gathered_on_the_spot_for_the_cpu(images, gatherings):
    assert batches.machine_memory() > 2**27
    store = store_of(images)
    with store.reading_ahead(COMING):
        store.batch(COMING[0])
    assert gatherings == [([4, 0], False)]


def test_what_was_not_announced_is_gathered_on_the_spot(images, too_large, gatherings):
    store = store_of(images)
    with store.reading_ahead(COMING):
        for rows in ([3, 3], [4, 0], [2], [1]):
            batch = store.batch(np.array(rows)).permute(0, 2, 3, 1).numpy()
            assert np.array_equal(batch, images[rows])
    store.batch(COMING[2])
    here = [rows for rows, by_another_thread in gatherings if not by_another_thread]
    assert here == [[3, 3], [2], [5, 5, 2]]


def test_an_error_of_the_thread_comes_with_its_batch(images, too_large):
    store = store_of(images)
    with store.reading_ahead([COMING[0], np.array([6]), COMING[1]]):
        store.batch(COMING[0])
        with pytest.raises(IndexError, match="6 is out of bounds"):
            store.batch(np.array([6]))
        assert np.array_equal(store.batch(COMING[1])[0].permute(1, 2, 0).numpy(), images[1])


def test_two_batches_are_read_ahead_and_no_thread_is_left(images, too_large, gatherings):
    store = store_of(images)
    before = threading.active_count()
    with store.reading_ahead(COMING):
        assert threading.active_count() == before + 1
        for asked in range(3):
            deadline = time.monotonic() + 10
            while len(gatherings) < asked + 2 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)  # in which a third would be gathered
            assert len(gatherings) == min(asked + 2, 4)
            store.batch(COMING[asked])
    assert threading.active_count() == before


LARGER_THAN_ITS_MEMORY = """
import json, resource, sys
from pathlib import Path
import numpy as np, torch
from PIL import Image
import PIL
from dermalyze.compute import Precision
from dermalyze.data import batches
from dermalyze.data.cache import open_images
from dermalyze.data.cache_folder import name_of
from dermalyze.data.checksums import checksums
from dermalyze.data.decode import PreprocessSpec
from dermalyze.inference.forward import predict_probabilities

MIB, SIDE, IMAGES = 2**20, 512, 1024
folder = Path(sys.argv[1])
spec, path = PreprocessSpec(image_size=SIDE), folder / "black.png"
Image.new("RGB", (9, 9)).save(path)
paths = [str(path)] * IMAGES

# A whole cache of black images, as open_images would have built it, but a file with a hole in it.
index = {"pillow": PIL.__version__, **spec.as_dict(), "sha256": checksums(paths, directory=folder)}
cache = folder / name_of(index)
cache.mkdir()
with (cache / "images.npy").open("wb") as array:
    shape = (IMAGES, SIDE, SIDE, 3)
    np.lib.format.write_array_header_1_0(
        array, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    size = array.truncate(array.tell() + int(np.prod(shape)))
(cache / "index.json").write_text(json.dumps({**index, "bytes": size}))

class Brightness(torch.nn.Module):
    def forward(self, images_BCHW):
        seen.append(len(images_BCHW))
        mean_B = images_BCHW[:, :, ::64, ::64].float().mean(dim=(1, 2, 3))
        return torch.stack([mean_B, mean_B + 1], dim=1)

torch.set_num_threads(1)
seen, cpu = [], torch.device("cpu")
used = int(next(line.split()[1] for line in open("/proc/self/status") if "VmData" in line)) * 1024
limit = used + 128 * MIB
assert size > 5 * 128 * MIB
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
images = open_images(paths, spec=spec, directory=folder)
store = batches.ImageStore(images_NHWC=images, image_ids=paths, device=cpu)
rows = np.random.default_rng(0).permutation(IMAGES)[:160]
for memory in (2**60, 0):  # on the spot, and ahead
    batches.machine_memory = lambda: memory
    probs = predict_probabilities(
        Brightness(), store, rows, batch_size=16, precision=Precision(cpu, None)
    )
    assert np.allclose(probs[:, 1], 1 / (1 + np.exp(-1)))
    print(sum(seen))
try:
    np.load(cache / "images.npy", mmap_mode="c")
except (OSError, MemoryError) as error:
    print("a private map:", type(error).__name__)
try:
    np.array(images)
except MemoryError as error:
    print("a copy:", type(error).__name__)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts maps on Linux alone")
def test_images_may_be_several_times_larger_than_the_memory(tmp_path: Path):
    """768 MiB of images for a process that may take 128; a private map or a copy is refused."""
    done = subprocess.run(
        [sys.executable, "-c", LARGER_THAN_ITS_MEMORY, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "160",
        "320",
        "a private map: OSError",
        "a copy: MemoryError",
    ]


def test_the_store_of_a_table_follows_its_rows(tmp_path: Path):
    names = ["c", "a", "b"]
    for shade, name in enumerate(names):
        noise = np.random.default_rng(shade).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in names]
    table = SimpleNamespace(frame=pd.DataFrame({"image_id": names, "path": paths}))
    spec = PreprocessSpec(image_size=8)
    cache = str(tmp_path / "cache")
    store = open_store(table, spec, cache, CPU, encoding=PIXELS_ALONE)  # type: ignore[arg-type]
    assert store.image_ids == names
    rows = np.array([2, 0])
    batch = store.batch(rows).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(batch, np.stack([decode(paths[2], spec), decode(paths[0], spec)]))
    (images,) = store.inputs(rows)  # a model of pixels alone is called with nothing else
    assert torch.equal(images, store.batch(rows))

    ages = table.frame.assign(age=[40.0, 50.0, np.nan])
    told = MetadataEncoding(columns=("age",), age=(50.0, 10.0), categories={})
    with_ages = SimpleNamespace(frame=ages)
    store = open_store(with_ages, spec, cache, CPU, encoding=told)  # type: ignore[arg-type]
    images, metadata = store.inputs(rows)
    assert torch.equal(images, store.batch(rows))
    assert metadata.dtype == torch.float32
    assert metadata.tolist() == [[0.0, 1.0], [-1.0, 0.0]]
