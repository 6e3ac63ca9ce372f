"""The cache gives what decode gives, whatever happened to it or to its builder."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dermalyze.data import cache_build
from dermalyze.data.cache import open_images
from dermalyze.data.decode import PreprocessSpec, decode
from dermalyze.errors import DataError
from dermalyze.files import write_whole

REPOSITORY = Path(__file__).parents[2]
SPEC = PreprocessSpec(image_size=8)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Twelve images of random pixels and several sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = []
    for number in range(12):
        pixels = rng.integers(0, 256, (10 + number, 15, 3), np.uint8)
        name = folder / f"ISIC_{number}.{'png' if number % 2 else 'jpg'}"
        Image.fromarray(pixels).save(name)
        names.append(str(name))
    return names


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def caches(store: Path) -> list[Path]:
    return sorted(path for path in store.iterdir() if path.is_dir())


def decoded(paths: list[str], spec: PreprocessSpec = SPEC) -> np.ndarray:
    return np.stack([decode(path, spec) for path in paths])


def no_decoding(*_: Any) -> Any:
    raise AssertionError("decoded once more")


def test_rows_equal_decode_in_the_order_of_the_paths(
    paths: list[str], store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = open_images(paths, spec=SPEC, directory=store)
    assert isinstance(images, np.memmap)
    assert images.dtype == np.uint8
    assert images.shape == (12, 8, 8, 3)
    np.testing.assert_array_equal(images, decoded(paths))
    order = [5, 3, 3, 11]
    picked = [paths[n] for n in order]
    np.testing.assert_array_equal(
        open_images(picked, spec=SPEC, directory=str(store)), decoded(picked)
    )
    assert capfd.readouterr().err == ""  # no progress bar where nobody looks


def test_the_second_opening_does_not_decode(
    paths: list[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_images(paths, spec=SPEC, directory=store)
    monkeypatch.setattr(cache_build, "decode", no_decoding)
    np.testing.assert_array_equal(open_images(paths, spec=SPEC, directory=store), first)
    assert len(caches(store)) == 1


def test_the_array_cannot_be_written_to(paths: list[str], store: Path) -> None:
    images = open_images(paths, spec=SPEC, directory=store)
    with pytest.raises(ValueError, match="read-only"):
        images[:] = 0


def test_the_rate_is_logged(
    paths: list[str], store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dermalyze.data.cache_build")
    open_images(paths, spec=SPEC, directory=store)
    (message,) = caplog.messages
    assert message.startswith("decoded 12 images in ")
    assert f"images/s) to {caches(store)[0]}; 0 were copied" in message


# What earlier caches know


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were decoded, as they are decoded."""
    done: list[str] = []

    def counted(path: str, spec: PreprocessSpec) -> np.ndarray:
        done.append(path)
        return decode(path, spec)

    monkeypatch.setattr(cache_build, "decode", counted)
    return done


def test_only_what_changed_is_decoded(
    paths: list[str], store: Path, decodings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dermalyze.data.cache_build")
    open_images(paths[:10], spec=SPEC, directory=store)
    assert sorted(decodings) == sorted(paths[:10])
    decodings.clear()

    Image.new("RGB", (9, 9), (1, 2, 3)).save(paths[4])
    images = open_images(paths[::-1], spec=SPEC, directory=store)
    assert sorted(decodings) == sorted([paths[4], paths[10], paths[11]])
    np.testing.assert_array_equal(images, decoded(paths[::-1]))
    assert caplog.messages[1].startswith("decoded 3 images in ")
    assert caplog.messages[1].endswith("; 9 were copied from earlier caches")
    decodings.clear()

    images = open_images([paths[0], paths[11], paths[0]], spec=SPEC, directory=store)
    assert decodings == []  # all of it lies in two earlier caches
    np.testing.assert_array_equal(images, decoded([paths[0], paths[11], paths[0]]))


def test_rows_decoded_otherwise_are_not_copied(
    paths: list[str], store: Path, decodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_images(paths, spec=SPEC, directory=store)
    open_images(paths, spec=PreprocessSpec(image_size=9), directory=store)
    assert len(decodings) == 24
    monkeypatch.setattr("dermalyze.data.decode.DECODE_VERSION", 0)
    open_images(paths, spec=SPEC, directory=store)
    assert len(decodings) == 36
    monkeypatch.setattr("PIL.__version__", "0.0")
    open_images(paths, spec=SPEC, directory=store)
    assert len(decodings) == 48


def test_a_damaged_cache_lends_no_rows(paths: list[str], store: Path, decodings: list[str]) -> None:
    open_images(paths, spec=SPEC, directory=store)
    swap_two_checksums(caches(store)[0])
    decodings.clear()
    images = open_images(paths[::-1], spec=SPEC, directory=store)
    assert len(decodings) == 12
    np.testing.assert_array_equal(images, decoded(paths[::-1]))


# The key


def test_a_changed_file_makes_a_new_cache(paths: list[str], store: Path) -> None:
    old = np.array(open_images(paths, spec=SPEC, directory=store))
    Image.new("RGB", (9, 9), (1, 2, 3)).save(paths[1])
    new = open_images(paths, spec=SPEC, directory=store)
    assert (new[1] == (1, 2, 3)).all()
    np.testing.assert_array_equal(np.delete(new, 1, axis=0), np.delete(old, 1, axis=0))
    assert len(caches(store)) == 2


def test_one_changed_byte_makes_a_new_cache(paths: list[str], store: Path) -> None:
    open_images(paths, spec=SPEC, directory=store)
    with Path(paths[1]).open("ab") as file:
        file.write(b"\0")  # after the end mark, where no pixel changes
    open_images(paths, spec=SPEC, directory=store)
    assert len(caches(store)) == 2


def test_the_same_files_elsewhere_find_the_cache(
    paths: list[str], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_images(paths, spec=SPEC, directory=store)
    copied = [shutil.copy(path, tmp_path / f"copy_{n}.img") for n, path in enumerate(paths)]
    monkeypatch.setattr(cache_build, "decode", no_decoding)
    copies = open_images([str(path) for path in copied], spec=SPEC, directory=store)
    np.testing.assert_array_equal(copies, first)


def test_order_size_and_decoder_are_part_of_the_key(
    paths: list[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_images(paths, spec=SPEC, directory=store)
    open_images(paths[::-1], spec=SPEC, directory=store)
    other = PreprocessSpec(image_size=9)
    images = open_images(paths, spec=other, directory=store)
    np.testing.assert_array_equal(images, decoded(paths, other))
    assert len(caches(store)) == 3
    monkeypatch.setattr("dermalyze.data.decode.DECODE_VERSION", 0)
    open_images(paths, spec=SPEC, directory=store)
    assert len(caches(store)) == 4
    monkeypatch.setattr("PIL.__version__", "0.0")
    open_images(paths, spec=SPEC, directory=store)
    assert len(caches(store)) == 5


# Damage


def truncate(folder: Path) -> None:
    os.truncate(folder / "images.npy", 1000)


def transpose(folder: Path) -> None:
    array = np.load(folder / "images.npy")
    np.save(folder / "images.npy", array.reshape(8, 8, 12, 3))


def retype(folder: Path) -> None:
    np.save(folder / "images.npy", np.load(folder / "images.npy").view(np.int8))


def swap_two_checksums(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["sha256"][:2] = index["sha256"][1::-1]
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "images.npy has 1000 bytes, expected 2432"),
        (transpose, r"images.npy holds uint8 \(8, 8, 12, 3\), expected uint8 \(12, 8, 8, 3\)"),
        (retype, "images.npy holds int8"),
        (lambda folder: (folder / "images.npy").write_bytes(bytes(2432)), "magic string"),
        (lambda folder: (folder / "images.npy").unlink(), "No such file"),
        (lambda folder: (folder / "index.json").write_text("{"), "Expecting property name"),
        (lambda folder: (folder / "index.json").write_text("[]"), "pop"),
        (lambda folder: (folder / "index.json").write_text("3"), "no attribute 'pop'"),
        (lambda folder: (folder / "index.json").write_text("{}"), "bytes"),
        (swap_two_checksums, "index.json has another checksum than the folder's name"),
        (lambda folder: (folder / "index.json").unlink(), "No such file"),
    ],
)
def test_a_damaged_cache_is_told_and_built_anew(
    paths: list[str],
    store: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Any,
    reason: str,
) -> None:
    open_images(paths, spec=SPEC, directory=store)
    (folder,) = caches(store)
    damage(folder)
    images = open_images(paths, spec=SPEC, directory=store)
    np.testing.assert_array_equal(images, decoded(paths))
    (warning,) = caplog.messages
    assert warning.startswith(f"{folder}: a damaged image cache (")
    assert warning.endswith("Building it anew.")
    caplog.clear()
    open_images(paths, spec=SPEC, directory=store)
    assert caplog.messages == []


# Other processes

PROLOGUE = """
import hashlib, itertools, os, sys, time
from pathlib import Path
from dermalyze.data import cache, cache_build
from dermalyze.data.decode import PreprocessSpec

store, *paths = sys.argv[1:]
real, count = cache_build.decode, itertools.count()
"""
DIES = """
def decode(path, spec):
    if next(count) == 5:
        os._exit(9)
    return real(path, spec)

cache_build.decode = decode
cache.open_images(paths, spec=PreprocessSpec(image_size=8), directory=store)
"""
BUILDS_TOGETHER = """
def decode(path, spec):
    next(count)
    for _ in range(2000):  # until the other process has started, too
        if len(list(Path(store).glob("ready*"))) == 2:
            return real(path, spec)
        time.sleep(0.01)
    os._exit(9)

cache_build.decode = decode
Path(store).mkdir(exist_ok=True)
Path(store, f"ready{os.getpid()}").touch()
images = cache.open_images(paths, spec=PreprocessSpec(image_size=8), directory=store)
print(next(count), hashlib.sha256(images.tobytes()).hexdigest())
"""


def start(script: str, store: Path, paths: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + script, str(store), *paths],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_build_leaves_nothing_half_used(
    paths: list[str], store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = start(DIES, store, paths)
    process.communicate(timeout=60)
    assert process.returncode == 9
    (remains,) = caches(store)
    assert remains.name.endswith(".building")
    assert (remains / "images.npy").exists()

    images = open_images(paths, spec=SPEC, directory=store)
    np.testing.assert_array_equal(images, decoded(paths))
    assert [path.name for path in caches(store)] == [remains.name.removesuffix(".building")]
    assert caplog.messages == []


def test_remains_of_other_caches_are_removed_and_nothing_else(
    paths: list[str], store: Path
) -> None:
    remains = store / ("0" * 32 + ".building")
    others = [store / "mine.building", store / ("0" * 31 + ".building"), store / ("1" * 32)]
    for folder in (remains, *others):
        folder.mkdir(parents=True)
        (folder / "images.npy").touch()
    open_images(paths, spec=SPEC, directory=store)
    assert not remains.exists()
    assert all((folder / "images.npy").exists() for folder in others)


def test_two_processes_share_one_build(paths: list[str], store: Path) -> None:
    processes = [start(BUILDS_TOGETHER, store, paths) for _ in range(2)]
    reports = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(int(decodings) for decodings, _ in reports) == [0, len(paths)]
    assert reports[0][1] == reports[1][1]
    assert len(caches(store)) == 1


# Refusals


def test_all_bad_files_are_named_in_one_error(paths: list[str], store: Path) -> None:
    Path(paths[2]).write_bytes(b"")
    Path(paths[4]).write_bytes(b"<html>")
    Path(paths[6]).unlink()
    with pytest.raises(DataError) as caught:
        open_images(paths, spec=SPEC, directory=store)
    first, *problems = str(caught.value).splitlines()
    assert first == "3 of 12 images cannot be used:"
    assert f"{paths[2]}: the file is empty" in problems[0]
    assert f"{paths[4]}: not an image but a web page" in problems[1]
    assert f"{paths[6]}: cannot be opened: No such file" in problems[2]
    assert caches(store) == []


def test_of_many_bad_files_ten_are_named(paths: list[str], store: Path) -> None:
    for path in paths:
        Path(path).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_images(paths, spec=SPEC, directory=store)
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[0] == "12 of 12 images cannot be used:"
    assert lines[-1] == "  - and 2 more"


def test_a_file_that_appears_meanwhile_is_not_cached_under_a_key_without_it(
    paths: list[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Path(paths[0]).read_bytes()
    Path(paths[0]).unlink()

    def late(path: str, spec: PreprocessSpec) -> np.ndarray:
        write_whole(Path(paths[0]), content)  # other threads may be reading it
        return decode(path, spec)

    monkeypatch.setattr(cache_build, "decode", late)
    with pytest.raises(DataError, match="came into being"):
        open_images(paths, spec=SPEC, directory=store)
    monkeypatch.setattr(cache_build, "decode", decode)
    images = open_images(paths, spec=SPEC, directory=store)
    np.testing.assert_array_equal(images, decoded(paths))


def test_a_file_that_changes_while_it_is_read_is_not_cached_as_what_it_was(
    paths: list[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, other = Path(paths[0]).read_bytes(), Path(paths[1]).read_bytes()

    def under_way(path: str, spec: PreprocessSpec) -> np.ndarray:
        if path == paths[0]:
            write_whole(Path(path), other)
        return decode(path, spec)

    monkeypatch.setattr(cache_build, "decode", under_way)
    with pytest.raises(DataError) as refused:
        open_images(paths, spec=SPEC, directory=store)
    assert f"1 images changed while they were read, such as {paths[0]}." in str(refused.value)
    monkeypatch.setattr(cache_build, "decode", decode)
    Path(paths[0]).write_bytes(before)
    images = open_images(paths, spec=SPEC, directory=store)
    np.testing.assert_array_equal(images, decoded(paths))


def test_too_little_room_is_told_before_anything_is_decoded(
    paths: list[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 2303, 2303))
    monkeypatch.setattr(cache_build, "decode", no_decoding)
    with pytest.raises(DataError, match=r"needs 2304 bytes.*2303 bytes are free.*paths\.cache="):
        open_images(paths, spec=SPEC, directory=store)
    assert caches(store) == []


def test_a_disk_that_fills_up_leaves_nothing(
    paths: list[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot be written .*No space left on device.*Make room"):
        open_images(paths, spec=SPEC, directory=store)
    assert caches(store) == []


def test_a_folder_that_cannot_be(paths: list[str], store: Path) -> None:
    store.touch()
    with pytest.raises(DataError, match=f"paths.cache={store}: the image cache cannot be written"):
        open_images(paths, spec=SPEC, directory=store)


def test_no_paths(store: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        open_images([], spec=SPEC, directory=store)
