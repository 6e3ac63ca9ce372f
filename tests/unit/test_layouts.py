"""The forms in which HAM10000 and ISIC 2018 come are recognised, and that is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from dermalyze.data.table import LesionTable, read_ham10000, read_isic2018
from dermalyze.errors import DataError

COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
ROW = ("HAM_1", "ISIC_1", "mel", "histo", "45", "female", "back")
PART_1 = "HAM10000_images_part_1"


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def layouts(table: LesionTable) -> list[str]:
    return [finding.message for finding in table.findings if finding.kind == "layout"]


def ham(root: Path) -> LesionTable:
    return read_ham10000(root=str(root), metadata=None, on_missing="error")


def isic(root: Path) -> LesionTable:
    return read_isic2018(root=str(root), ground_truth=None, on_missing="error")


def test_kaggle_with_its_doubled_lower_case_folders(tmp_path: Path) -> None:
    write(tmp_path / "HAM10000_metadata.csv", ",".join(COLUMNS), ",".join(ROW))
    for folder in (PART_1, PART_1.lower()):
        write(tmp_path / folder / "ISIC_1.jpg", "same")
    table = ham(tmp_path)
    assert table.frame["path"].tolist() == [str(tmp_path / PART_1 / "ISIC_1.jpg")]
    folders = f"{PART_1}, {PART_1.lower()}"
    assert layouts(table) == [f"layout: Kaggle (comma-separated, images in {folders})"]
    assert [f.kind for f in table.findings] == ["layout", "copies"]


@pytest.mark.parametrize(
    ("name", "delimiter", "more", "said"),
    [
        ("HAM10000_metadata", "\t", ("dataset",), "tab-separated, with the column dataset"),
        ("HAM10000_metadata.tab", "\t", (), "tab-separated, without the column dataset"),
        (
            "HAM10000_metadata.csv",
            ",",
            ("dataset",),
            "as uploaded: comma-separated, with the column dataset",
        ),
    ],
)
def test_dataverse(
    tmp_path: Path, name: str, delimiter: str, more: tuple[str, ...], said: str
) -> None:
    header, row = (*COLUMNS, *more), (*ROW, *["vidir_modern"] * len(more))
    quoted = [delimiter.join(f'"{value}"' for value in values) for values in (header, row)]
    write(tmp_path / name, *quoted)
    write(tmp_path / PART_1 / "ISIC_1.jpg", "")
    table = ham(tmp_path)
    assert layouts(table) == [f"layout: Dataverse ({said})"]
    assert ("dataset" in table.frame) is ("dataset" in more)


def test_a_layout_of_no_source_is_given_no_name(tmp_path: Path) -> None:
    write(tmp_path / "HAM10000_metadata.csv", ",".join(COLUMNS), ",".join(ROW))
    write(tmp_path / "images" / "ISIC_1.jpg", "")
    assert layouts(ham(tmp_path)) == []


ONE_HOT = ("image,MEL,NV,BCC,AKIEC,BKL,DF,VASC", "ISIC_1,1,0,0,0,0,0,0")


@pytest.mark.parametrize("part", ["Training", "Test"])
def test_isic_challenge_with_and_without_groupings(tmp_path: Path, part: str) -> None:
    write(tmp_path / f"ISIC2018_Task3_{part}_GroundTruth.csv", *ONE_HOT)
    write(tmp_path / f"ISIC2018_Task3_{part}_Input" / "ISIC_1.jpg", "")
    said = "layout: ISIC challenge (one-hot ground truth, {} LesionGroupings)"
    assert layouts(isic(tmp_path)) == [said.format("without")]
    groupings = tmp_path / f"ISIC2018_Task3_{part}_LesionGroupings.csv"
    write(groupings, "image,lesion_id,diagnosis_confirm_type", "ISIC_1,HAM_7,histopathology")
    table = isic(tmp_path)
    assert layouts(table) == [said.format("with")]
    assert table.frame["lesion_id"].tolist() == ["HAM_7"]


@pytest.mark.parametrize("ending", ["", ".csv", ".tab"])
def test_isic_as_the_dataverse_has_it(tmp_path: Path, ending: str) -> None:
    delimiter = "\t" if ending == ".tab" else ","
    header, row = (*COLUMNS, "dataset"), (*ROW, "vidir_molemax")
    name = f"ISIC2018_Task3_Test_GroundTruth{ending}"
    write(tmp_path / name, delimiter.join(header), delimiter.join(row))
    write(tmp_path / "ISIC2018_Task3_Test_Images" / "ISIC_1.jpg", "")
    table = isic(tmp_path)
    assert layouts(table) == ["layout: Dataverse's ISIC 2018 task 3 (HAM10000's columns)"]
    assert table.name == "isic2018_task3"
    columns = ["lesion_id", "dx", "age", "dataset"]
    assert table.frame[columns].to_numpy().tolist() == [["HAM_1", "mel", 45.0, "vidir_molemax"]]


def test_a_missing_column_is_told_of_the_form_that_was_meant(tmp_path: Path) -> None:
    truth = tmp_path / "ISIC2018_Task3_Test_GroundTruth.csv"
    for header, missing in ((COLUMNS[1:], "lesion_id"), (ONE_HOT[0].split(",")[:-1], "VASC")):
        write(truth, ",".join(header), ",".join(["1"] * len(header)))
        with pytest.raises(DataError, match=f"missing columns: {missing}. Found: "):
            isic(tmp_path)
