"""HAM10000 and ISIC tables: each row of what may come in, and what must happen then."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dermalyze.data.table import Finding, LesionTable, read_ham10000, read_isic2018, summary
from dermalyze.errors import DataError
from dermalyze.taxonomy import HAM10000_CODES

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"
GOOD = (
    "HAM_2,ISIC_3,mel,histo,45.0,female,back",
    "HAM_1,ISIC_2,nv,follow_up,30,male,face",
    "HAM_1,ISIC_1,nv,follow_up,30,male,face",
)
IMAGES = {f"ISIC_{i}.jpg": b"%d" % i for i in (1, 2, 3)}
ONE_HOT = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"


def fill(
    root: Path,
    rows: Sequence[str] = GOOD,
    images: Mapping[str, bytes] = IMAGES,
    header: str = HEADER,
    name: str = "HAM10000_metadata.csv",
) -> Path:
    root.mkdir(exist_ok=True)
    (root / name).write_text("\n".join([header, *rows]) + "\n")
    for path, content in images.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def ham(root: Path, on_missing: str = "error", metadata: str | None = None) -> LesionTable:
    return read_ham10000(root=str(root), metadata=metadata, on_missing=on_missing)  # type: ignore[arg-type]


def isic(root: Path, on_missing: str = "error") -> LesionTable:
    return read_isic2018(root=str(root), ground_truth=None, on_missing=on_missing)  # type: ignore[arg-type]


def refusal(root: Path, **options: str) -> str:
    with pytest.raises(DataError) as caught:
        ham(root, **options)
    return str(caught.value)


def of_kind(table: LesionTable, kind: str) -> Finding:
    (finding,) = [finding for finding in table.findings if finding.kind == kind]
    return finding


# --- what a good table becomes ---


def test_good_table_is_sorted_typed_and_without_findings(tmp_path: Path) -> None:
    table = ham(fill(tmp_path))
    frame = table.frame
    assert list(frame.columns) == [
        "image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "path", "label",
    ]  # fmt: skip
    assert frame.index.equals(frame.index.__class__(range(3)))
    assert frame["image_id"].tolist() == ["ISIC_1", "ISIC_2", "ISIC_3"]
    assert frame["age"].tolist() == [30.0, 30.0, 45.0]
    assert frame["age"].dtype == np.float64
    assert frame["path"].tolist() == [str(tmp_path / f"ISIC_{i}.jpg") for i in (1, 2, 3)]
    assert table.labels.tolist() == [5, 5, 4]
    assert table.labels.dtype == np.int64
    assert table.classes == HAM10000_CODES
    assert (len(table), table.name, table.findings, table.missing_images) == (3, "ham10000", (), ())


def test_fingerprint_is_the_hash_of_ids_lesions_and_dx(tmp_path: Path) -> None:
    table = ham(fill(tmp_path / "a"))
    text = '[["ISIC_1","HAM_1","nv"],["ISIC_2","HAM_1","nv"],["ISIC_3","HAM_2","mel"]]'
    assert table.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    other_dx = [row.replace("mel", "bcc") for row in GOOD]
    assert ham(fill(tmp_path / "b", other_dx)).fingerprint != table.fingerprint


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(GOOD))
def test_order_of_rows_does_not_matter(tmp_path: Path, rows: list[str]) -> None:
    table = ham(fill(tmp_path, rows))
    assert table.frame.equals(ham(fill(tmp_path, GOOD)).frame)


def test_summary_counts_images_and_lesions_of_all_classes(tmp_path: Path) -> None:
    counts = summary(ham(fill(tmp_path)))
    assert tuple(counts.index) == HAM10000_CODES
    assert counts.loc["nv"].tolist() == [2, 1, pytest.approx(2 / 3)]
    assert counts.loc["mel"].tolist() == [1, 1, pytest.approx(1 / 3)]
    assert counts.loc["df"].tolist() == [0, 0, 0]
    assert counts["images"].sum() == 3


# --- finding the table ---


def test_missing_root_says_where_it_looked_and_how_to_get_the_data(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    for part in (str(tmp_path / "nowhere"), "doi:10.7910/DVN/DBW86T", "data.root=DIR",
                 "HAM10000_images_part_1.zip", "data.download=true", "data=synthetic"):  # fmt: skip
        assert part in message
    (tmp_path / "archive.zip").write_bytes(b"PK")
    assert "is a file, not a folder" in refusal(tmp_path / "archive.zip")


def test_root_without_a_table_says_so(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert (
        f"no file HAM10000_metadata.csv or HAM10000_metadata or HAM10000_metadata.tab in {tmp_path}"
        in message
    )
    assert "data.source.metadata=FILE" in message
    assert "data=synthetic" in message


def test_relative_root_is_shown_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "data" / "x") in refusal(Path("data/x"))


@pytest.mark.parametrize(
    "name", ["ham10000_METADATA.CSV", "HAM10000_metadata", "x/HAM10000_metadata.tab"]
)
def test_table_is_found_in_all_its_spellings(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").mkdir()
    assert len(ham(fill(tmp_path, name=name))) == 3


def test_two_tables_are_refused_unless_they_are_equal(tmp_path: Path) -> None:
    fill(tmp_path)
    fill(tmp_path, name="HAM10000_metadata")
    assert len(ham(tmp_path)) == 3
    fill(tmp_path, rows=GOOD[:2], name="HAM10000_metadata")
    message = refusal(tmp_path)
    assert f"{tmp_path}/HAM10000_metadata, {tmp_path}/HAM10000_metadata.csv" in message
    assert "data.source.metadata=FILE" in message
    assert len(ham(tmp_path, metadata="HAM10000_metadata.csv")) == 3


def test_a_given_table_is_relative_to_root_or_working_folder_or_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "root", name="mine.csv")
    monkeypatch.chdir(tmp_path)
    for given_path in ("mine.csv", "root/mine.csv", str(root / "mine.csv")):
        assert len(ham(root, metadata=given_path)) == 3
    message = refusal(root, metadata="other.csv")
    assert f"no file at {root}/other.csv or {tmp_path}/other.csv" in message


# --- rows and labels (catalogue 1 to 20) ---


def test_01_rows_without_image_are_refused_or_dropped(tmp_path: Path) -> None:
    rows = [*GOOD, *(f"HAM_9,ISIC_9{i:02},bkl,histo,5,male,back" for i in range(12))]
    fill(tmp_path, rows)
    message = refusal(tmp_path)
    assert f"rows without an image in {tmp_path}: 12." in message
    assert f"{tmp_path}/HAM10000_metadata.csv:5, image_id 'ISIC_900'" in message
    assert "ISIC_909" in message
    assert "ISIC_910" not in message
    assert "... and 2 more" in message
    assert "data.on_missing=drop" in message

    table = ham(tmp_path, "drop")
    assert table.missing_images == tuple(f"ISIC_9{i:02}" for i in range(12))
    finding = of_kind(table, "missing_images")
    assert (finding.level, finding.items) == ("warning", table.missing_images)
    assert table.fingerprint == ham(fill(tmp_path / "whole")).fingerprint


def test_02_images_without_row_are_listed(tmp_path: Path) -> None:
    images = {**IMAGES, "images/ISIC_8.png": b"8", "ISIC_7.JPG": b"7", "images/notes.txt": b""}
    finding = of_kind(ham(fill(tmp_path, images=images)), "images_without_row")
    assert (finding.level, finding.items) == ("warning", ("ISIC_7", "ISIC_8"))


def test_03_equal_rows_are_dropped_once(tmp_path: Path) -> None:
    again = "HAM_2,ISIC_3, MEL,histo,45,Female,back"  # equal in meaning
    table = ham(fill(tmp_path, [*GOOD, again]))
    assert len(table) == 3
    finding = of_kind(table, "repeated_rows")
    assert finding.level == "warning"
    assert finding.items == (f"{tmp_path}/HAM10000_metadata.csv:5, image_id 'ISIC_3'",)


def test_04_differing_rows_of_one_image_are_refused_with_both_lines(tmp_path: Path) -> None:
    other = "HAM_2,isic_3,mel,histo,50.0,female,back"
    message = refusal(fill(tmp_path, [*GOOD, other]))
    file = f"{tmp_path}/HAM10000_metadata.csv"
    assert f"{file}:2, image_id 'ISIC_3', {file}:5, image_id 'isic_3': differ in age" in message


def test_05_lesion_with_two_dx_is_refused(tmp_path: Path) -> None:
    rows = [GOOD[0], GOOD[1], GOOD[2].replace("nv", "bkl")]
    message = refusal(fill(tmp_path, rows))
    file = f"{tmp_path}/HAM10000_metadata.csv"
    assert f"lesion_id 'HAM_1': nv ({file}:3), bkl ({file}:4)" in message


def test_06_unknown_dx_is_refused_with_the_nearest(tmp_path: Path) -> None:
    rows = [GOOD[0].replace("mel", "melanoma"), GOOD[1].replace("nv", ""), GOOD[2]]
    message = refusal(fill(tmp_path, rows))
    assert "HAM10000_metadata.csv:2, dx 'melanoma'. Did you mean 'mel'?" in message
    assert "HAM10000_metadata.csv:3, dx ''. Valid: akiec, bcc, bkl, df, mel, nv, vasc." in message


def test_07_dx_is_normalised_and_counted(tmp_path: Path) -> None:
    rows = [GOOD[0], GOOD[1].replace("nv", "NV"), GOOD[2].replace("nv", "nv ")]
    table = ham(fill(tmp_path, rows))
    assert table.frame["dx"].tolist() == ["nv", "nv", "mel"]
    finding = of_kind(table, "dx_spelling")
    assert finding.level == "note"
    assert [item.split(", ")[1] for item in finding.items] == ["dx 'NV'", "dx 'nv '"]


def test_08_missing_age_sex_and_place_are_unknown(tmp_path: Path) -> None:
    rows = ["HAM_2,ISIC_3,mel,,unknown,,NaN", *GOOD[1:]]
    table = ham(fill(tmp_path, rows))
    row = table.frame.loc[2]
    assert (row["sex"], row["localization"], row["dx_type"]) == ("unknown", "unknown", "unknown")
    assert np.isnan(row["age"])
    for kind in ("unknown_age", "unknown_sex", "unknown_localization"):
        assert of_kind(table, kind).items == ("ISIC_3",)
        assert of_kind(table, kind).level == "note"


@pytest.mark.parametrize("age", ["-5", "400", "old", "inf", "1_0", "0x1F", "120.5"])
def test_09_impossible_ages_are_unknown_with_a_warning(tmp_path: Path, age: str) -> None:
    table = ham(fill(tmp_path, [GOOD[0].replace("45.0", age), *GOOD[1:]]))
    assert table.frame["age"].isna().tolist() == [False, False, True]
    finding = of_kind(table, "age")
    assert finding.level == "warning"
    assert finding.items == (f"{tmp_path}/HAM10000_metadata.csv:2, age {age!r}",)


@pytest.mark.parametrize("age", ["0", "0.0", "-0"])
def test_09_age_zero_is_reported_apart(tmp_path: Path, age: str) -> None:
    table = ham(fill(tmp_path, [GOOD[0].replace("45.0", age), *GOOD[1:]]))
    assert table.frame["age"].isna().tolist() == [False, False, True]
    assert {finding.kind for finding in table.findings} == {"age_zero"}


def test_10_the_dataverse_form(tmp_path: Path) -> None:
    rows = ["\t".join(f'"{value}"' for value in [*row.split(","), "vidir_modern"]) for row in GOOD]
    header = "\t".join(f'"{name}"' for name in [*HEADER.split(","), "dataset"])
    table = ham(fill(tmp_path, rows, header=header, name="HAM10000_metadata"))
    assert table.frame["dataset"].tolist() == ["vidir_modern"] * 3
    assert of_kind(table, "tab_separated").level == "note"
    plain = ham(fill(tmp_path / "plain"))
    assert table.fingerprint == plain.fingerprint
    columns = [*plain.frame.columns.drop("path")]
    assert table.frame[columns].equals(plain.frame[columns])


def test_11_byte_order_mark_is_stripped(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / "HAM10000_metadata.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert ham(tmp_path).fingerprint == ham(fill(tmp_path / "plain")).fingerprint


def test_12_utf_16_is_named_with_its_mend(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / "HAM10000_metadata.csv"
    path.write_bytes(path.read_text().encode("utf-16"))
    assert f"iconv -f UTF-16 -t UTF-8 '{path}'" in refusal(tmp_path)


def test_13_an_extra_field_on_every_row_is_refused(tmp_path: Path) -> None:
    message = refusal(fill(tmp_path, [f"0,{row}" for row in GOOD]))
    assert "fields than the 7 of the header: 3." in message
    assert f"{tmp_path}/HAM10000_metadata.csv:2, 8 fields" in message


def test_14_17_broken_rows_and_wrong_values_come_in_one_error(tmp_path: Path) -> None:
    rows = [*GOOD, "HAM_3,ISIC_4,nv", 'HAM_3,ISIC_5,nv,"histo,1,male,x', "HAM_3,ISIC_6,nv,\0,1,x,y",
            "HAM_4,ISIC_7,nvv,histo,1,male,back", "HAM_1,ISIC_8,mel,histo,1,male,back",
            "HAM_5,../ISIC_9,nv,histo,1,male,back", "HAM_6,,nv,histo,1,male,back"]  # fmt: skip
    message = refusal(fill(tmp_path, rows))
    for part in (
        "csv:5, 3 fields", "csv:6, 'HAM_3", "csv:7, at character 17", "csv:8, dx 'nvv'",
        "lesion_id 'HAM_1': nv", "csv:10, image_id '../ISIC_9'", "without an image_id: 1",
        "csv:8, image_id 'ISIC_7'",
    ):  # fmt: skip
        assert part in message


def test_15_ids_stay_text(tmp_path: Path) -> None:
    rows = ["NA,0012,nv,histo,45.0,female,back", "007,NaN,mel,histo,45.0,female,back"]
    table = ham(fill(tmp_path, rows, {"0012.jpg": b"", "NaN.jpg": b""}))
    assert table.frame["image_id"].tolist() == ["0012", "NaN"]
    assert table.frame["lesion_id"].tolist() == ["NA", "007"]


def test_16_18_19_headers(tmp_path: Path) -> None:
    assert "'sex' stands 2 times" in refusal(fill(tmp_path, header=f"{HEADER},sex"))
    assert "a header and no rows" in refusal(fill(tmp_path, rows=[]))
    message = refusal(fill(tmp_path, header=HEADER.replace("lesion_id", "lesion")))
    assert "missing columns: lesion_id. Found: lesion, image_id," in message
    assert "Rename? 'lesion_id' for 'lesion'." in message


def test_20_empty_lesion_ids_are_groups_of_their_own(tmp_path: Path) -> None:
    rows = [GOOD[0].replace("HAM_2", ""), GOOD[1].replace("HAM_1", "  "), GOOD[2]]
    table = ham(fill(tmp_path, rows))
    assert table.frame["lesion_id"].tolist() == ["HAM_1", "image:ISIC_2", "image:ISIC_3"]
    finding = of_kind(table, "empty_lesion_id")
    assert (finding.level, len(finding.items)) == ("warning", 2)


def test_spaces_and_capitals_do_not_tear_a_lesion_apart(tmp_path: Path) -> None:
    rows = [GOOD[0], GOOD[1].replace("HAM_1", "ham_1"), GOOD[2].replace("HAM_1", " ham_1 ")]
    extra = "HAM_1,ISIC_4,nv,histo,45,male,back"
    table = ham(fill(tmp_path, [*rows, extra], {**IMAGES, "ISIC_4.jpg": b"4"}))
    assert table.frame["lesion_id"].tolist() == ["ham_1", "ham_1", "HAM_2", "ham_1"]
    assert of_kind(table, "lesion_spelling").level == "warning"
    assert len(of_kind(table, "spaces").items) == 1


def test_unseen_and_composed_characters_do_not_tear_a_lesion_apart(tmp_path: Path) -> None:
    spellings = ("L\u00e9", "Le\u0301\u200b")
    rows = [f"{name},ISIC_{n},nv,histo,45,male,back" for n, name in enumerate(spellings)]
    table = ham(fill(tmp_path, rows, {"ISIC_0.jpg": b"0", "ISIC_1.jpg": b"1"}))
    assert table.frame["lesion_id"].tolist() == ["L\u00e9", "L\u00e9"]
    assert of_kind(table, "lesion_spelling").level == "warning"


def test_unknown_columns_stay_out_with_a_note(tmp_path: Path) -> None:
    table = ham(fill(tmp_path, [f"{row},x" for row in GOOD], header=f"{HEADER},colour"))
    assert "colour" not in table.frame
    assert of_kind(table, "extra_columns").items == ("colour",)


def test_source_files_are_never_changed(tmp_path: Path) -> None:
    fill(tmp_path, [*GOOD, GOOD[0]])
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    ham(tmp_path)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()} == before


# --- the folder of images (catalogue 21 to 23, 27, 63) ---


def test_21_both_parts_and_the_doubled_folders_are_searched(tmp_path: Path) -> None:
    images = {
        "HAM10000_images_part_1/HAM10000_images_part_1/ISIC_1.jpg": b"1",
        "ham10000_images_part_2/ISIC_2.jpg": b"2",
        "Images/ISIC_3.jpg": b"3",
    }
    table = ham(fill(tmp_path, images=images))
    assert table.frame["path"].tolist() == [str(tmp_path / path) for path in images]


def test_other_folders_are_not_searched_by_ham10000(tmp_path: Path) -> None:
    images = {**IMAGES, "segmentations/ISIC_1.png": b"mask", "__MACOSX/ISIC_2.jpg": b"fork",
              ".hidden/ISIC_3.jpg": b"", "._ISIC_3.jpg": b""}  # fmt: skip
    assert ham(fill(tmp_path, images=images)).findings == ()


def test_22_one_id_in_both_parts(tmp_path: Path) -> None:
    first, second = (f"HAM10000_images_part_{part}/ISIC_1.jpg" for part in (1, 2))
    images = {"ISIC_2.jpg": b"2", "ISIC_3.jpg": b"3", first: b"same", second: b"same"}
    table = ham(fill(tmp_path, images=images))
    assert table.frame["path"][0] == str(tmp_path / first)
    assert (of_kind(table, "copies").level, of_kind(table, "copies").items) == ("note", ("ISIC_1",))

    message = refusal(fill(tmp_path / "other", images={**images, second: b"diff"}))
    assert f"ISIC_1: files differ: {tmp_path}/other/{first}, {tmp_path}/other/{second}" in message


def test_23_endings_and_ids_without_case(tmp_path: Path) -> None:
    images = {"isic_1.JPG": b"", "ISIC_2.jpeg": b"", "images/Isic_3.PnG": b""}
    table = ham(fill(tmp_path, images=images))
    assert table.frame["path"].tolist() == [str(tmp_path / path) for path in images]
    assert table.frame["image_id"].tolist() == ["ISIC_1", "ISIC_2", "ISIC_3"]


@pytest.mark.parametrize(
    ("second", "reason"),
    [("ISIC_1.png", "several extensions"), ("images/ISIC_1.jpeg", "several extensions"),
     ("isic_1.jpg", "several spellings in one folder")],
)  # fmt: skip
def test_23_two_candidates_are_refused(tmp_path: Path, second: str, reason: str) -> None:
    message = refusal(fill(tmp_path, images={**IMAGES, second: IMAGES["ISIC_1.jpg"]}))
    assert f"ISIC_1: {reason}: " in message
    assert second in message


@pytest.mark.parametrize(
    "image_id", ["../secret", "/etc/secret", "images/ISIC_1", "..", r"a\b", "C:secret"]
)
@pytest.mark.parametrize("on_missing", ["error", "drop"])
def test_27_ids_that_are_paths_are_refused(tmp_path: Path, image_id: str, on_missing: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"")
    rows = [*GOOD, f"HAM_7,{image_id},nv,histo,30,male,back"]
    message = refusal(fill(tmp_path / "root", rows), on_missing=on_missing)
    assert "values of image_id that could lead out of the folder: 1." in message
    assert f"HAM10000_metadata.csv:5, image_id {image_id!r}" in message
    assert "rows without an image" not in message


def test_27_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside")
    root = fill(tmp_path / "root", images={})
    (root / "images").symlink_to(outside)
    for i in (1, 2, 3):
        (root / f"ISIC_{i}.jpg").symlink_to(outside / f"ISIC_{i}.jpg")
    message = refusal(root, on_missing="drop")
    assert "folders and links that cannot be followed: 4." in message
    assert f"{root}/images: a link out of {root}" in message
    assert f"{root}/ISIC_1.jpg: a link out of {root}" in message

    for link in (*root.glob("*.jpg"), root / "HAM10000_metadata.csv"):
        link.unlink()
    (root / "HAM10000_metadata.csv").symlink_to(outside / "HAM10000_metadata.csv")
    assert "a link out of" in refusal(root)


def test_links_within_the_folder_are_followed_once(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", images={f"images/{name}": b for name, b in IMAGES.items()})
    (root / "HAM10000_images_part_1").symlink_to(root / "images")
    (root / "ISIC_1.jpg").symlink_to(root / "images" / "ISIC_1.jpg")
    (root / "images" / "images").symlink_to(root)
    (root / "circle").symlink_to(root / "circle")
    (root / "elsewhere").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(root)
    table = ham(tmp_path / "alias")
    assert table.findings == ()
    assert table.frame["path"].tolist() == [str(root / "images" / name) for name in IMAGES]


def test_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path, images={f"images/{name}": b for name, b in IMAGES.items()})
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "images":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    message = refusal(root, on_missing="drop")
    assert f"{root}/images: cannot be read: Permission denied" in message


def test_63_no_image_at_all_is_refused(tmp_path: Path) -> None:
    message = refusal(fill(tmp_path, images={}), on_missing="drop")
    assert f"no image of its 3 rows lies in {tmp_path}" in message
    assert "rows without an image" in refusal(tmp_path, on_missing="error")


# --- one-hot ground truth (catalogue 33) ---


def one_hot_rows(dx_of: Mapping[str, str], one: str = "1.0", zero: str = "0.0") -> list[str]:
    columns = ONE_HOT.lower().split(",")[1:]
    return [
        ",".join([image, *(one if column == dx else zero for column in columns)])
        for image, dx in dx_of.items()
    ]


def fill_isic(root: Path, rows: Sequence[str], header: str = ONE_HOT) -> Path:
    images = {f"ISIC2018_Task3_Test_Input/{row.split(',')[0]}.jpg": b"" for row in rows}
    (root / "truth").mkdir(parents=True, exist_ok=True)
    return fill(root, rows, images, header, "truth/ISIC2018_Task3_Test_GroundTruth.csv")


@pytest.mark.parametrize(("one", "zero"), [("1.0", "0.0"), ("1", "0")])
def test_33_columns_are_mapped_by_name(tmp_path: Path, one: str, zero: str) -> None:
    dx_of = {f"ISIC_{i}": dx for i, dx in enumerate(HAM10000_CODES)}
    table = isic(fill_isic(tmp_path, one_hot_rows(dx_of, one, zero)))
    assert table.frame["dx"].tolist() == list(HAM10000_CODES)
    assert table.labels.tolist() == list(range(7))
    assert table.frame["lesion_id"].tolist() == list(dx_of)
    assert table.frame["age"].isna().all()
    for column in ("dx_type", "sex", "localization"):
        assert set(table.frame[column]) == {"unknown"}
    assert table.name == "isic2018_task3"
    assert of_kind(table, "no_lesion_groupings").level == "note"


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(8)))
def test_33_order_of_columns_does_not_matter(tmp_path: Path, order: list[int]) -> None:
    rows = one_hot_rows({"ISIC_1": "nv", "ISIC_2": "vasc", "ISIC_3": "akiec"})
    root = fill_isic(tmp_path, rows)
    shuffled = [",".join(line.split(",")[i] for i in order) for line in (ONE_HOT, *rows)]
    fill(root, shuffled[1:], {}, shuffled[0], "truth/ISIC2018_Task3_Test_GroundTruth.csv")
    assert isic(root).labels.tolist() == [5, 6, 0]


@pytest.mark.parametrize(
    "scores",
    [
        "0,0,0,0,0,0,0",
        "1,1,0,0,0,0,0",
        "0.5,0.5,0,0,0,0,0",
        "2,0,0,0,0,0,-1",
        ",1,0,0,0,0,0",
        "x,1,0,0,0,0,0",
        "nan,1,0,0,0,0,0",
    ],
)
def test_33_rows_that_are_not_one_hot_are_refused(tmp_path: Path, scores: str) -> None:
    good = one_hot_rows({"ISIC_1": "nv"})
    for rows, line in (([*good, f"ISIC_2,{scores}"], 3), ([f"ISIC_2,{scores}"], 2)):
        with pytest.raises(DataError) as caught:
            isic(fill_isic(tmp_path, rows))
        assert "rows that are not a single 1 among 0: 1." in str(caught.value)
        assert f"GroundTruth.csv:{line}, image_id 'ISIC_2'" in str(caught.value)


def test_33_lesions_come_from_the_groupings(tmp_path: Path) -> None:
    rows = one_hot_rows({"ISIC_1": "nv", "ISIC_2": "nv", "ISIC_3": "mel"})
    root = fill_isic(tmp_path, rows)
    groupings = root / "ISIC2018_Task3_Test_LesionGroupings.csv"
    groupings.write_text("image,lesion_id,diagnosis_confirm_type\nISIC_1,HAM_1,x\nISIC_2,HAM_1,x\n")
    table = isic(root)
    assert table.frame["lesion_id"].tolist() == ["HAM_1", "HAM_1", "image:ISIC_3"]
    assert len(of_kind(table, "empty_lesion_id").items) == 1

    groupings.write_text("image,lesion_id\nisic_1,HAM_1\nISIC_2.jpg,HAM_1\n ISIC_3 ,HAM_3\n")
    assert isic(root).frame["lesion_id"].tolist() == ["HAM_1", "HAM_1", "HAM_3"]

    groupings.write_text("image,lesion_id\nISIC_1,HAM_1\nISIC_1,HAM_2\nISIC_2,HAM_1,x\n")
    with pytest.raises(DataError) as caught:
        isic(root)
    assert "images with more than one lesion: 2." in str(caught.value)
    assert f"{groupings}:4, 3 fields" in str(caught.value)


def test_33_without_ground_truth_or_with_two(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file \*GroundTruth.csv or .*ISIC 2018 task 3"):
        isic(tmp_path)
    fill_isic(tmp_path, one_hot_rows({"ISIC_1": "nv"}))
    fill(tmp_path, one_hot_rows({"ISIC_1": "mel"}), {}, ONE_HOT, "Training_GroundTruth.csv")
    with pytest.raises(DataError, match=r"Name one by data\.source\.ground_truth=FILE"):
        isic(tmp_path)


# --- the real table ---


@pytest.mark.skipif(
    "DERMALYZE_HAM10000" not in os.environ,
    reason="needs the 224 x 224 subset of HAM10000; give its folder in DERMALYZE_HAM10000",
)
def test_real_subset() -> None:
    table = ham(Path(os.environ["DERMALYZE_HAM10000"]), "drop")
    counts = summary(table)["images"].to_dict()
    assert counts == {
        "akiec": 183, "bcc": 264, "bkl": 583, "df": 60, "mel": 491, "nv": 4323, "vasc": 80,
    }  # fmt: skip
    assert (len(table), len(table.missing_images)) == (5984, 4031)
    assert table.frame["lesion_id"].is_unique
    levels = {finding.kind: (finding.level, len(finding.items)) for finding in table.findings}
    assert levels == {
        "age_zero": ("warning", 39),
        "unknown_age": ("note", 57),
        "unknown_sex": ("note", 57),
        "unknown_localization": ("note", 234),
        "missing_images": ("warning", 4031),
    }
