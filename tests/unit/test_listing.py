"""Catalogue row 63: which images a file, a folder or a table stands for."""

from __future__ import annotations

import os
import sys

import pytest

from dermalyze.errors import DataError
from dermalyze.prediction.listing import listed_images


def listed(images):
    return [(given.name, given.picture, given.metadata) for given in listed_images(str(images))]


def test_a_file_is_itself(tmp_path):
    file = tmp_path / "without an ending"
    file.touch()
    assert listed(file) == [(str(file), str(file), None)]


def test_a_folder_is_all_of_its_images_however_deep_by_name(tmp_path):
    names = ["b.jpg", "a.PNG", "z/y/x.webp", "z/a.jpeg", "c/1.bmp"]
    for name in (*names, "notes.txt", ".hidden.jpg", ".git/a.jpg", "__MACOSX/a.jpg", "c/a.tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "b.jpg")
    expected = ["a.PNG", "b.jpg", "link.jpg", "c/1.bmp", "z/a.jpeg", "z/y/x.webp"]
    assert listed(tmp_path) == [(name, str(tmp_path / name), None) for name in expected]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_name_that_is_no_text_can_be_written(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.jpg"
    with open(path, "wb"):  # noqa: PTH123 - a path of bytes
        pass
    ((name, picture, _),) = listed(tmp_path)
    assert name == "\\xff.jpg"
    assert os.fsencode(picture) == path


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("path,age,sex,dx\na.jpg,50,male,nv\n\nsub/b.jpg,,female,\n", "t.csv"),
        ("\ufeffpath,age,sex,dx\r\na.jpg,50,male,nv\r\nsub/b.jpg,,female,\r\n", "t.CSV"),
        ("path\tage\tsex\tdx\na.jpg\t50\tmale\tnv\nsub/b.jpg\t\tfemale\t\n", "t.tsv"),
    ],
)
def test_a_table_names_files_and_what_is_known_of_them(tmp_path, content, name):
    (tmp_path / name).write_text(content, newline="")
    assert listed(tmp_path / name) == [
        ("a.jpg", str(tmp_path / "a.jpg"), {"age": "50", "sex": "male"}),
        ("sub/b.jpg", str(tmp_path / "sub/b.jpg"), {"age": "", "sex": "female"}),
    ]


def test_columns_are_known_in_any_capitals_and_a_tilde_may_be_of_a_name(tmp_path):
    rows = "path,AGE,Sex,dx\n~nobody-here/a.jpg,50,male,nv\n~$draft.jpg,,female,nv\n"
    (tmp_path / "t.csv").write_text(rows)
    assert listed(tmp_path / "t.csv") == [
        (name, str(tmp_path / name), {"age": age, "sex": sex})
        for name, age, sex in (("~nobody-here/a.jpg", "50", "male"), ("~$draft.jpg", "", "female"))
    ]
    with pytest.raises(DataError, match=r"images=~nobody-here: there is no such file or folder"):
        listed("~nobody-here")


def test_a_table_may_tell_nothing_besides_and_name_any_place(tmp_path):
    (tmp_path / "t.csv").write_text("dx,path\nnv,/far/a.jpg\n")
    assert listed(tmp_path / "t.csv") == [("/far/a.jpg", "/far/a.jpg", None)]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no column 'path' that names the files. A folder"),
        (b"image,age\n", "no column 'path' that names the files. Valid: age, image. A folder"),
        (b"paths\na.jpg\n", "no column 'path' that names the files. Did you mean 'paths'?"),
        (b"path,age\n", "a header and no rows"),
        (b"path,path\na,b\n", "columns that stand there twice: path"),
        (b"path,age,sex,Age\na,1,,2\n", "columns that stand there twice: age"),
        (b"path,age\na.jpg,1\nb.jpg\n", "t.csv:3: 1 fields where the header has 2"),
        (b"path,age\n ,1\n", "t.csv:2: names no file"),
        (b"path\n\xff.jpg\n", "cannot be read as a table in UTF-8"),
        (b'path\n"a.jpg\n', "cannot be read as a table"),
    ],
)
def test_faults_of_a_table_name_their_place(tmp_path, content, why):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        listed(tmp_path / "t.csv")
    assert why in str(caught.value)


def test_no_image_is_an_error(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        DataError, match=r"no file that ends in \.jpg, \.jpeg, \.png, \.bmp, \.webp"
    ):
        listed(tmp_path)
    with pytest.raises(DataError, match="there is no such file or folder"):
        listed(tmp_path / "absent")
