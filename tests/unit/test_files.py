from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from dermalyze.files import in_the_way, joined_codes, writable, write_json, write_whole


def test_what_is_written_comes_back(tmp_path):
    write_whole(tmp_path / "text", "ä\n")
    assert (tmp_path / "text").read_bytes() == "ä\n".encode()
    write_whole(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    write_json(tmp_path / "a.json", {"loss": 0.1, "none": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 0.1, "none": None}


def test_a_file_where_a_folder_is_to_be_is_found(tmp_path):
    (tmp_path / "file").touch()
    assert in_the_way(tmp_path / "new" / "folder") is None
    assert in_the_way(tmp_path) is None
    for place in ("file", "file/x", "file/x/y"):
        assert in_the_way(tmp_path / place) == tmp_path / "file"


def test_codes_in_one_cell_can_be_told_apart():
    assert joined_codes(["nv", "mel"], ["mel", "bcc", "nv"]) == "nv mel"
    assert joined_codes(["nv", "basal cell"], ["basal cell", "nv"]) == "nv; basal cell"
    assert joined_codes([], ["basal cell", "nv"]) == ""


def test_names_that_are_no_text_can_be_written():
    assert writable(os.fsdecode(b"a\xff\xc3\xa4.jpg")) == "a\\xffä.jpg"


def test_a_failure_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, [float("nan")])
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json(path, [2])
    assert json.loads(path.read_text()) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_write_one_path_do_not_take_each_others_file(tmp_path):
    path = tmp_path / "a"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_whole(path, b"x" * 100_000), range(200)))
    assert path.read_bytes() == b"x" * 100_000
    assert list(tmp_path.iterdir()) == [path]
