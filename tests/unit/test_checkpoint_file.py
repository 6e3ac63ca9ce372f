from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dermalyze import checkpoint_file
from dermalyze.checkpoint_file import (
    FORMAT_VERSION,
    previous_of,
    read_checkpoint,
    read_seal,
    write_checkpoint,
)
from dermalyze.errors import CheckpointError


def some_tensors() -> dict[str, torch.Tensor]:
    random_state = torch.Generator().manual_seed(7)
    return {
        "float32": torch.randn(2, 3, generator=random_state),
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "float64": torch.randn(3, generator=random_state).double() / 3,
        "bfloat16": torch.randn(5, generator=random_state).bfloat16(),
        "float16": torch.randn(3, generator=random_state).half(),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "bool": torch.tensor([True, False, True]),
        "uint8": torch.tensor([0, 255], dtype=torch.uint8),
        "scalar": torch.tensor(1 / 3),
        "empty": torch.empty(0, 4),
        "channels_last": torch.randn(2, 3, 4, 5, generator=random_state).to(
            memory_format=torch.channels_last
        ),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "parameter": torch.nn.Parameter(torch.randn(2, generator=random_state)),
    }


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_equal_bit_for_bit(
    tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype, name
        assert tensor.shape == expected[name].shape, name
        assert bits(tensor) == bits(expected[name]), name


def write_sealed(path: Path, header: object, tensors: dict[str, torch.Tensor]) -> None:
    """Write a file as a stranger could: any header, with a sha256 that matches."""
    text = json.dumps(header)
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"\n{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(bits(tensors[name]))
    sealed = json.dumps({"header": text, "sha256": digest.hexdigest()})
    save_file(tensors, path, metadata={"dermalyze": sealed})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint_latest.safetensors"


def test_round_trip_bit_for_bit(path):
    header = {
        "third": 1 / 3,
        "large": 2**53 + 1,
        "text": 'naïve \\u00e9 "quoted" \n 皮膚',
        "none": None,
        "nested": [{"a": [True, 1.5e-300]}],
    }
    write_checkpoint(path, some_tensors(), header)
    tensors, read = read_checkpoint(path)
    assert_equal_bit_for_bit(tensors, some_tensors())
    assert read == {"format_version": FORMAT_VERSION, **header}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_who_may_read_other_files_may_read_it(path):
    path.with_name("other").touch()
    for _ in range(2):  # the second is written beside the first
        write_checkpoint(path, some_tensors(), {})
    modes = {file.stat().st_mode for file in path.parent.iterdir()}
    assert modes == {path.with_name("other").stat().st_mode}


def test_no_tensors_and_no_header_are_a_checkpoint_too(path):
    write_checkpoint(path, {}, {})
    assert read_checkpoint(path) == ({}, {"format_version": FORMAT_VERSION})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=50)
@given(value=json_values)
def test_any_header_comes_back_equal(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    write_checkpoint(path, {"x": torch.zeros(1)}, {"value": value})
    assert read_checkpoint(path)[1]["value"] == value


def test_what_was_read_is_not_tied_to_the_file(path):
    write_checkpoint(path, {"x": torch.zeros(1000)}, {})
    before = path.read_bytes()
    tensors, _ = read_checkpoint(path)
    tensors["x"] += 1
    assert path.read_bytes() == before


def test_truncated_anywhere_is_refused(path):
    write_checkpoint(path, {"a": torch.arange(100.0), "b": torch.ones(3)}, {"epoch": 3})
    whole = path.read_bytes()
    places = sorted({0, 1, 7, 8, 9, len(whole) - 1, *range(0, len(whole), 37)})
    for place in places:
        path.write_bytes(whole[:place])
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)
    path.write_bytes(whole)
    assert read_checkpoint(path)[1]["epoch"] == 3


def test_one_flipped_bit_in_any_byte_is_refused(path):
    write_checkpoint(path, {"a": torch.arange(20.0), "b": torch.ones(3).bool()}, {"epoch": 3})
    whole = path.read_bytes()
    chance = random.Random(11)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
    path.write_bytes(whole)
    assert read_checkpoint(path)[1]["epoch"] == 3


def test_fifty_flipped_bits_in_a_large_file_are_each_refused(path):
    write_checkpoint(path, {"a": torch.arange(50_000), "b": torch.ones(50_000)}, {"epoch": 3})
    chance = random.Random(12)
    for _ in range(50):
        place, mask = chance.randrange(path.stat().st_size), 1 << chance.randrange(8)
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ mask]))
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([byte]))
    assert read_checkpoint(path)[1]["epoch"] == 3


ZEROS, ONES = torch.zeros(2), torch.ones(2)


@pytest.mark.parametrize(
    "changed",
    [
        {"a": ONES, "b": ZEROS},
        {"a": ZEROS, "c": ONES},
        {"a": ZEROS, "b": ONES.view(torch.int32)},
        {"a": ZEROS, "b": ONES.reshape(1, 2)},
        {"a": ZEROS},
        {"a": ZEROS, "b": ONES, "c": torch.empty(0)},
    ],
    ids=["exchanged", "renamed", "dtype", "shape", "missing", "more"],
)
def test_other_tensors_under_the_same_header_are_noticed(path, changed):
    write_checkpoint(path, {"a": ZEROS, "b": ONES}, {})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"a": ZEROS, "b": ONES}, path, metadata=metadata)
    assert read_checkpoint(path)[0]["b"].tolist() == [1, 1]
    save_file(changed, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="sha256 does not match"):
        read_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"dermalyze": "{"}])
def test_foreign_safetensors_are_refused_with_a_mend(path, metadata):
    save_file({"a": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"model\.weights_file"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "sealed",
    [[], {}, {"header": 3, "sha256": ""}, {"header": None, "sha256": ""}, "text", 1, None],
)
def test_a_seal_of_another_kind_is_refused(path, sealed):
    save_file({"a": torch.zeros(2)}, path, metadata={"dermalyze": json.dumps(sealed)})
    with pytest.raises(CheckpointError, match="without the header 'dermalyze'"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "header", [[], "text", 7, None, {}, {"format_version": "1"}, {"format_version": None}]
)
def test_a_sealed_header_without_a_version_is_refused(path, header):
    write_sealed(path, header, {"a": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="without the header 'dermalyze'"):
        read_checkpoint(path)


def test_a_header_nested_too_deeply_is_refused(path):
    text = "[" * 100_000 + "]" * 100_000
    sealed = json.dumps({"header": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    save_file({}, path, metadata={"dermalyze": sealed})
    with pytest.raises(CheckpointError, match="without the header 'dermalyze'"):
        read_checkpoint(path)


def test_a_seal_tells_checkpoints_apart_without_their_tensors(path, monkeypatch):
    header = {"kind": "best", "epoch": 3}
    write_checkpoint(path, {"a": torch.arange(3.0)}, header)
    monkeypatch.setattr("dermalyze.checkpoint_file._digest", pytest.fail)  # nothing is summed up
    seal = read_seal(path)
    assert seal.header == {"format_version": FORMAT_VERSION, **header}
    text = json.dumps(seal.header, sort_keys=True)
    expected = hashlib.sha256(text.encode() + b"\na torch.float32 (3,)\n")
    expected.update(np.arange(3, dtype=np.float32).tobytes())
    assert (seal.text, seal.sha256) == (text, expected.hexdigest())
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        read_seal(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        read_seal(path)


def test_a_newer_format_is_refused(path):
    write_checkpoint(path, {"a": torch.zeros(2)}, {"format_version": FORMAT_VERSION + 1})
    with pytest.raises(CheckpointError, match=rf"format {FORMAT_VERSION + 1} by a newer version"):
        read_checkpoint(path)


def test_missing_folder_text_and_pickle_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: there is no such checkpoint"):
        read_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        read_checkpoint(tmp_path)
    (tmp_path / "text.safetensors").write_text("not a checkpoint\n" * 100)
    torch.save({"a": torch.zeros(3)}, tmp_path / "pickle.safetensors")
    for name in ("text", "pickle"):
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: damaged or not"):
            read_checkpoint(tmp_path / f"{name}.safetensors")


def test_the_one_before_is_kept(path):
    for epoch in range(3):
        write_checkpoint(path, {"a": torch.full((2,), float(epoch))}, {"epoch": epoch})
    previous = previous_of(path)
    assert previous.name == "checkpoint_latest_previous.safetensors"
    for file, epoch in ((path, 2), (previous, 1)):
        tensors, header = read_checkpoint(file)
        assert header["epoch"] == epoch
        assert tensors["a"].tolist() == [epoch, epoch]
    assert {file.name for file in path.parent.iterdir()} == {path.name, previous.name}


def _half_written(tensors: dict[str, torch.Tensor], file: Path, metadata: Any) -> None:
    save_file(tensors, file, metadata=metadata)
    os.truncate(file, 50)
    raise OSError(28, "No space left on device")


def _safetensors_error(tensors: dict[str, torch.Tensor], file: Path, metadata: Any) -> None:
    Path(file).write_bytes(b"half")
    raise SafetensorError("I/O error: No space left on device")


@pytest.mark.parametrize("failure", [_half_written, _safetensors_error])
def test_a_full_disk_leaves_the_old_one_intact(path, monkeypatch, failure):
    for epoch in range(2):
        write_checkpoint(path, {"a": torch.zeros(2)}, {"epoch": epoch})
    files = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    monkeypatch.setattr("safetensors.torch.save_file", failure)
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(path, {"a": torch.zeros(1024, 1024)}, {"epoch": 2})
    message = str(caught.value)
    assert str(path) in message
    assert "No space left on device" in message
    assert "needs about 4 MiB" in message
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == files


def test_a_failed_flush_leaves_the_old_one_intact(path, monkeypatch):
    write_checkpoint(path, {"a": torch.zeros(2)}, {"epoch": 0})
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint_file.os, "fsync", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        write_checkpoint(path, {"a": torch.ones(2)}, {"epoch": 1})
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_missing_folder_is_an_error_with_a_mend(tmp_path):
    with pytest.raises(CheckpointError, match="name another folder"):
        write_checkpoint(tmp_path / "no" / "x.safetensors", {"a": torch.zeros(1)}, {})


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_read_only_folder_is_an_error_with_a_mend(path):
    write_checkpoint(path, {"a": torch.zeros(1)}, {"epoch": 0})
    path.parent.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            write_checkpoint(path, {"a": torch.zeros(1)}, {"epoch": 1})
    finally:
        path.parent.chmod(0o700)
    assert read_checkpoint(path)[1]["epoch"] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_has_no_word_for_are_a_bug_and_write_nothing(path, value):
    write_checkpoint(path, {"a": torch.zeros(1)}, {"epoch": 0})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_checkpoint(path, {"a": torch.zeros(1)}, {"metrics": {"val/loss": value}})
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before
