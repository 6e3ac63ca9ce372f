"""Text tables: what is read, what is refused, and whether the message names the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermalyze.data.metadata_file import MetadataFile, read_metadata_file
from dermalyze.errors import DataError

NEEDED = ("image_id", "dx")


def read(folder: Path, content: bytes) -> MetadataFile:
    path = folder / "t.csv"
    path.write_bytes(content)
    return read_metadata_file(path, needed=NEEDED)


def refusal(folder: Path, content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, content)
    return str(caught.value)


def test_values_stay_text_and_rows_keep_their_lines(tmp_path: Path) -> None:
    file = read(tmp_path, b"image_id,dx\n0012,NA\n\nnull,1e3\n")
    assert file.rows == (("0012", "NA"), ("null", "1e3"))
    assert file.lines == (2, 4)
    assert file.problems == ()
    frame = file.frame(["dx"])
    assert frame["dx"].tolist() == ["NA", "1e3"]
    assert frame["place"].tolist() == [f"{tmp_path}/t.csv:2", f"{tmp_path}/t.csv:4"]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_byte_order_mark_line_endings_and_quotes(tmp_path: Path, ending: bytes) -> None:
    lines = [b"\xef\xbb\xbf" + b'"image_id","dx"', b'"a,""b"""," n "', b"c,d"]
    file = read(tmp_path, ending.join(lines))
    assert file.header == ("image_id", "dx")
    assert file.rows == (('a,"b"', " n "), ("c", "d"))
    assert file.lines == (2, 3)


def test_tabs_are_recognised(tmp_path: Path) -> None:
    file = read(tmp_path, b'"image_id"\t"dx"\n"a, b"\t"nv"\n')
    assert (file.delimiter, file.rows) == ("\t", (("a, b", "nv"),))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("image_id,dx\na,nv\n".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("image_id,dx\na,nv\n".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
        ("image_id,dx\na,nv\n".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
        ("image_id,dx\na,nv\n".encode("utf-32"), "iconv -f UTF-32 -t UTF-8"),
        ("image_id,dx\na,nv\nb,naïve\n".encode("latin-1"), "t.csv:3, byte 0xef: not UTF-8"),
        (b"PK\x03\x04\x14\x00", "a zip archive or an Excel workbook"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"", "the file is empty. Expected columns: image_id, dx"),
        (b"\n \n", "the file is empty"),
        (b"image_id,dx\n", "a header and no rows. Expected: image_id, dx"),
        (b"image_id,dx,dx\na,nv,mel\n", "t.csv:1, column 'dx' stands 2 times"),
        (b"image,dx\na,nv\n", "missing columns: image_id. Found: image, dx. Needed: image_id, dx."),
        (b"image,dx\na,nv\n", "Rename? 'image_id' for 'image'."),
        (b"image_id,DX\na,nv\n", "Rename? 'dx' for 'DX'."),
        (b"image_id;dx\na;nv\n", "by comma or tab, not ';'"),
        (b'image_id,"dx\na,nv\n', "t.csv:1, 'image_id,\"dx'"),
        (b"image_id,dx\nx,a,nv\nx,b,nv\n", "fields than the 2 of the header: 2."),
    ],
)
def test_what_cannot_be_a_table_is_named(tmp_path: Path, content: bytes, named: str) -> None:
    assert named in refusal(tmp_path, content)


def test_header_faults_and_malformed_rows_come_together(tmp_path: Path) -> None:
    message = refusal(tmp_path, b'image_id,x,x\na,b,c\nshort,row\nnul,\0,d\nopen,"q,d\n')
    for part in (
        "'x' stands 2 times",
        "missing columns: dx",
        ":3, 2 fields",
        ":4, at",
        ":5, 'open",
    ):
        assert part in message


def test_malformed_rows_are_kept_for_the_readers_own_error(tmp_path: Path) -> None:
    file = read(tmp_path, b'image_id,dx\na,nv\nb\nc,nv,1\nd,\0\n"e,nv\n"f"g,nv\nh,mel\n')
    assert file.rows == (("a", "nv"), ("h", "mel"))
    assert file.lines == (2, 8)
    problems = "\n".join(file.problems)
    for part in (":3, 1 fields", ":4, 3 fields", ":5, at character 3", ":6, ", ":7, "):
        assert f"t.csv{part}" in problems


def test_ten_items_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    content = b"image_id,dx\na,nv\n" + b"short\n" * 13
    (problem,) = read(tmp_path, content).problems
    assert "header: 13." in problem
    assert problem.count("t.csv:") == 10
    assert problem.endswith("... and 3 more")


def test_unreadable_path_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_metadata_file(tmp_path, needed=NEEDED)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any_bytes"
    folder.mkdir(exist_ok=True)
    for start in (b"", b"image_id,dx\n"):
        try:
            file = read(folder, start + content)
        except DataError as error:
            assert "t.csv" in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert {len(row) for row in file.rows} == {len(file.header)}
            assert len(file.lines) == len(file.rows)
