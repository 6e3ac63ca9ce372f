"""Any folder of images with a table and classes of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dermalyze.data.folder import read_folder
from dermalyze.data.table import Finding, LesionTable, summary
from dermalyze.errors import ConfigError, DataError

HEADER = "file,diagnosis,patient"
ROWS = ("c.png,malignant,P2", "b.JPEG,benign,P1", "a.b.jpg,benign,P1")
IMAGES = ("c.png", "b.jpeg", "more/inner/a.b.jpg")
COLUMNS = {
    "image_column": "file",
    "class_column": "diagnosis",
    "lesion_column": "patient",
    **dict.fromkeys(
        ("dx_type_column", "age_column", "sex_column", "localization_column", "dataset_column")
    ),
}


def fill(
    root: Path,
    rows: Sequence[str] = ROWS,
    images: Sequence[str] = IMAGES,
    header: str = HEADER,
    name: str = "mine.csv",
) -> Path:
    root.mkdir(exist_ok=True)
    (root / name).write_text("\n".join([header, *rows]) + "\n")
    for path in images:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def read(root: Path, **changes: Any) -> LesionTable:
    options: Mapping[str, Any] = {
        "table": None,
        "classes": ["malignant", "benign"],
        "on_missing": "error",
        **COLUMNS,
        **changes,
    }
    return read_folder(root=str(root), **options)


def refusal(root: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(root, **changes)
    return str(caught.value)


def of_kind(table: LesionTable, kind: str) -> Finding:
    (finding,) = [finding for finding in table.findings if finding.kind == kind]
    return finding


def test_a_good_folder_becomes_a_table_like_any_other(tmp_path: Path) -> None:
    table = read(fill(tmp_path / "clinic"))
    assert table.frame["image_id"].tolist() == ["a.b", "b", "c"]
    assert table.frame["lesion_id"].tolist() == ["P1", "P1", "P2"]
    assert table.frame["dx"].tolist() == ["benign", "benign", "malignant"]
    assert table.frame["path"].tolist() == [
        str(tmp_path / "clinic" / path) for path in ("more/inner/a.b.jpg", "b.jpeg", "c.png")
    ]
    assert table.frame["age"].isna().all()
    assert set(table.frame["sex"]) == set(table.frame["dx_type"]) == {"unknown"}
    assert "dataset" not in table.frame
    assert table.name == "clinic"
    kinds = {(finding.level, finding.kind) for finding in table.findings}
    assert kinds == {("note", f"unknown_{c}") for c in ("age", "sex", "localization")}


def test_the_class_list_gives_the_order_and_the_spelling(tmp_path: Path) -> None:
    rows = ("c,MALIGNANT,P2", "b,benign ,P1", "a.b,Benign,P1")
    table = read(fill(tmp_path, rows), classes=["Malignant", " Benign", "other"])
    assert table.classes == ("Malignant", "Benign", "other")
    assert table.labels.tolist() == [1, 1, 0]
    assert table.frame["dx"].tolist() == ["Benign", "Benign", "Malignant"]
    assert summary(table)["images"].to_dict() == {"Malignant": 1, "Benign": 2, "other": 0}
    assert len(of_kind(table, "dx_spelling").items) == 2


def test_an_unknown_class_is_refused_with_the_nearest(tmp_path: Path) -> None:
    message = refusal(fill(tmp_path, ("c,malignent,P2", *ROWS[1:])))
    assert "mine.csv:2, dx 'malignent'. Did you mean 'malignant'?" in message


def test_descriptions_come_from_the_columns_that_are_named(tmp_path: Path) -> None:
    rows = ("c,malignant,P2,45,F,Graz,x", "b,benign,P1,400,,Wien,x", "a.b,benign,P1,5,M,Wien,x")
    header = f"{HEADER},years,gender,clinic,remark"
    table = read(
        fill(tmp_path, rows, header=header),
        age_column="years",
        sex_column="gender",
        dataset_column="clinic",
    )
    assert table.frame["age"].tolist()[::2] == [5.0, 45.0]
    assert np.isnan(table.frame["age"][1])
    assert table.frame["sex"].tolist() == ["m", "unknown", "f"]
    assert table.frame["dataset"].tolist() == ["wien", "wien", "graz"]
    assert of_kind(table, "age").level == "warning"
    assert of_kind(table, "extra_columns").items == ("remark",)


def test_without_lesions_each_image_is_one_and_that_is_a_warning(tmp_path: Path) -> None:
    table = read(fill(tmp_path), lesion_column=None)
    assert table.frame["lesion_id"].tolist() == ["a.b", "b", "c"]
    finding = of_kind(table, "no_lesions")
    assert finding.level == "warning"
    assert finding.items == ("c", "b", "a.b")
    assert "may train a model and test it" in finding.message


def test_what_is_checked_of_ham10000_is_checked_here_in_one_pass(tmp_path: Path) -> None:
    rows = (
        *ROWS, "c.jpg,benign,P3", "b,malignant,P1", "../x,benign,P4", "gone,benign,P5",
        "d,benign", "b.jpg,beningn,P1",
    )  # fmt: skip
    message = refusal(fill(tmp_path, rows))
    for part in (
        "mine.csv:2, image_id 'c', ",
        "mine.csv:5, image_id 'c': differ in dx, lesion_id",
        "lesion_id 'P1': benign",
        "mine.csv:7, image_id '../x'",
        "mine.csv:8, image_id 'gone'",
        "mine.csv:9, 2 fields",
        "mine.csv:10, dx 'beningn'. Did you mean 'benign'?",
    ):
        assert part in message
    table = read(fill(tmp_path / "drop", (*ROWS, "gone,benign,P5")), on_missing="drop")
    assert table.missing_images == ("gone",)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    message = refusal(fill(tmp_path), class_column="diagnoses", lesion_column="lesion")
    assert "missing columns: diagnoses, lesion. Found: file, diagnosis, patient." in message
    assert "Rename? 'diagnoses' for 'diagnosis'." in message
    assert "data.source.class_column=NAME" in message
    assert "data.source.lesion_column=null" in message


def test_of_several_tables_one_has_to_be_named(tmp_path: Path) -> None:
    fill(fill(tmp_path), rows=ROWS[:2], name="other.tsv")
    message = refusal(tmp_path)
    assert f"which table? {tmp_path}/mine.csv, {tmp_path}/other.tsv." in message
    assert "data.source.table=FILE" in message
    assert len(read(tmp_path, table="mine.csv")) == 3


def test_a_folder_that_is_not_there_or_has_no_table(tmp_path: Path) -> None:
    assert "there is no such folder" in refusal(tmp_path / "nowhere")
    message = refusal(tmp_path)
    assert f"no file *.csv or *.tsv or *.tab in {tmp_path}" in message
    assert "a CSV that has a row an image" in message


@pytest.mark.parametrize(
    "classes", [["benign"], [], ["benign", "Benign "], ["benign", ""], ["benign", "x", "X"]]
)
def test_class_lists_that_name_no_classes(tmp_path: Path, classes: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(fill(tmp_path), classes=classes)
    assert str(caught.value).startswith(f"data.source.classes={classes}: give two or more")


def test_one_column_for_two_things(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one column is given for two things: 'file' for image"):
        read(fill(tmp_path), lesion_column="file")
