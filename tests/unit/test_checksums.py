"""Checksums are remembered for files that stayed as they are, and for no others."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

import pytest

from dermalyze.data import checksums as module
from dermalyze.data.checksums import TICK_NS, checksums

LONG_AGO = time.time_ns() - 10**12


def write(path: Path, content: bytes) -> None:
    """Write a file that looks as if it had been there for long."""
    path.write_bytes(content)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    (tmp_path / "images").mkdir()
    found = [tmp_path / "images" / f"{number}.jpg" for number in range(5)]
    for number, path in enumerate(found):
        write(path, bytes([number]) * 100)
    return [str(path) for path in found]


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "checksums.json"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that were read, as they are read; no file counts as just written."""
    monkeypatch.setattr(module, "TICK_NS", -(10**12))
    names: list[str] = []
    digest = hashlib.file_digest

    def counted(file, kind):
        names.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return names


def expected(paths: list[str]) -> list[str]:
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


def test_they_are_sha256_in_order_also_of_files_named_twice(paths, memory):
    twice = [paths[3], paths[0], paths[3]]
    assert checksums(twice, directory=memory.parent) == expected(twice)


def test_a_second_start_reads_no_image(paths, memory, read):
    first = checksums(paths, directory=memory.parent)
    assert sorted(read) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    read.clear()
    assert checksums(paths, directory=memory.parent) == first == expected(paths)
    assert read == []


def test_a_relative_path_is_the_same_file(paths, memory, read, monkeypatch):
    first = checksums(paths, directory=memory.parent)
    read.clear()
    monkeypatch.chdir(Path(paths[0]).parent)
    names = [Path(path).name for path in paths]
    assert checksums(names, directory=memory.parent) == first
    assert read == []


def other_size(path: Path) -> None:
    write(path, b"x" * 101)


def other_bytes(path: Path) -> None:
    path.write_bytes(b"x" * 100)


def other_bytes_and_the_old_time(path: Path) -> None:
    """As a backup that is played back does: only the time of change tells of it."""
    before = path.stat()
    path.write_bytes(b"x" * 100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def another_file(path: Path) -> None:
    write(path.with_name("new"), b"x" * 100)
    path.with_name("new").replace(path)


@pytest.mark.parametrize(
    "change", [other_size, other_bytes, other_bytes_and_the_old_time, another_file]
)
def test_a_changed_file_is_hashed_again_and_no_other(paths, memory, read, change):
    checksums(paths, directory=memory.parent)
    read.clear()
    change(Path(paths[2]))
    assert checksums(paths, directory=memory.parent) == expected(paths)
    assert read == ["2.jpg"]
    assert checksums(paths, directory=memory.parent) == expected(paths)
    assert read == ["2.jpg"]


@pytest.mark.parametrize("field", range(4))
def test_size_times_and_inode_each_count(paths, memory, read, field):
    checksums(paths, directory=memory.parent)
    remembered = json.loads(memory.read_text())
    remembered[paths[1]][0][field] += 1
    memory.write_text(json.dumps(remembered))
    read.clear()
    checksums(paths, directory=memory.parent)
    assert read == ["1.jpg"]


def test_a_file_just_written_is_not_remembered(paths, memory):
    """It could be written again without its times changing: clocks of file systems have ticks."""
    assert TICK_NS == 2 * 10**9
    assert checksums(paths, directory=memory.parent) == expected(paths)
    assert not memory.exists()  # their time of change is now, whatever they say of modification


def test_what_another_folder_needs_stays_remembered(paths, memory, read):
    checksums(paths[:2], directory=memory.parent)
    checksums(paths[2:], directory=memory.parent)
    read.clear()
    checksums(paths, directory=memory.parent)
    assert read == []


def test_a_file_that_cannot_be_read_has_none(paths, memory, read):
    checksums(paths, directory=memory.parent)
    Path(paths[1]).unlink()
    found = checksums([*paths, "no\0name"], directory=memory.parent)
    assert found[1] is None
    assert found[5] is None
    assert [found[0], *found[2:5]] == expected([paths[0], *paths[2:]])


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"a": 3}', '{"a": [3, "x"]}', '{"a": []}'])
def test_a_damaged_memory_is_told_and_made_anew(paths, memory, read, caplog, content):
    memory.parent.mkdir()
    memory.write_text(content)
    assert checksums(paths, directory=memory.parent) == expected(paths)
    (warning,) = caplog.messages
    assert warning.startswith(f"{memory}: cannot be read (")
    caplog.clear()
    checksums(paths, directory=memory.parent)
    assert caplog.messages == []
    assert len(read) == 5


def test_where_nothing_can_be_written_that_is_said(paths, tmp_path, read, caplog):
    caplog.set_level(logging.INFO, logger="dermalyze.data.checksums")
    (tmp_path / "file").touch()
    assert checksums(paths, directory=tmp_path / "file") == expected(paths)
    (message,) = caplog.messages
    assert "checksums are not remembered (" in message
