"""What may come in as tables and labels, row by row of a catalogue, and where each is shown.

Each row names the tests that hold it. Where a row is about the whole way from a command to the
data, its test stands below.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.data.duplicates import parted_pairs
from dermalyze.data.manifest import Checksum, File, Manifest, write_manifest
from dermalyze.data.split import LesionStratified, Split, save_split
from dermalyze.data.table import LesionTable, read_ham10000
from dermalyze.errors import ConfigError, DataError
from dermalyze.run_data import load_data
from dermalyze.schema import checked_run

HERE = Path(__file__).parent
CATALOGUE = {
    1: ("a row without its image", "test_table::test_01_rows_without_image_are_refused_or_dropped"),
    2: ("an image without a row", "test_table::test_02_images_without_row_are_listed"),
    3: ("image_id twice, rows equal", "test_table::test_03_equal_rows_are_dropped_once"),
    4: (
        "image_id twice, rows differ",
        "test_table::test_04_differing_rows_of_one_image_are_refused_with_both_lines",
    ),
    5: ("one lesion_id with two dx", "test_table::test_05_lesion_with_two_dx_is_refused"),
    6: (
        "unknown dx",
        "test_table::test_06_unknown_dx_is_refused_with_the_nearest",
        "test_folder::test_an_unknown_class_is_refused_with_the_nearest",
    ),
    7: ("`NV`, `nv `", "test_table::test_07_dx_is_normalised_and_counted"),
    8: ("no age or sex", "test_table::test_08_missing_age_sex_and_place_are_unknown"),
    9: (
        "impossible ages, and 0",
        "test_table::test_09_impossible_ages_are_unknown_with_a_warning",
        "test_table::test_09_age_zero_is_reported_apart",
    ),
    10: (
        "the Dataverse's form",
        "test_table::test_10_the_dataverse_form",
        "test_layouts::test_dataverse",
    ),
    11: ("byte order mark", "test_table::test_11_byte_order_mark_is_stripped"),
    12: (
        "UTF-16 or Latin-1",
        "test_table::test_12_utf_16_is_named_with_its_mend",
        "test_metadata_file::test_what_cannot_be_a_table_is_named",
    ),
    13: ("one extra field", "test_table::test_13_an_extra_field_on_every_row_is_refused"),
    14: ("a short row", "test_table::test_14_17_broken_rows_and_wrong_values_come_in_one_error"),
    15: ("ids `NA`, `0012`", "test_table::test_15_ids_stay_text"),
    16: ("header name twice", "test_table::test_16_18_19_headers"),
    17: (
        "NUL byte, open quote",
        "test_table::test_14_17_broken_rows_and_wrong_values_come_in_one_error",
    ),
    18: (
        "empty, header only",
        "test_table::test_16_18_19_headers",
        "test_metadata_file::test_what_cannot_be_a_table_is_named",
    ),
    19: (
        "missing column",
        "test_table::test_16_18_19_headers",
        "test_folder::test_a_column_that_is_not_there",
    ),
    20: ("empty lesion_id", "test_table::test_20_empty_lesion_ids_are_groups_of_their_own"),
    21: (
        "part_1 and part_2",
        "test_table::test_21_both_parts_and_the_doubled_folders_are_searched",
        "test_layouts::test_kaggle_with_its_doubled_lower_case_folders",
    ),
    22: ("one id in both parts", "test_table::test_22_one_id_in_both_parts"),
    23: (
        "`.jpg .JPG .jpeg .png`",
        "test_table::test_23_endings_and_ids_without_case",
        "test_table::test_23_two_candidates_are_refused",
    ),
    24: (
        "zero byte, truncated, a web page",
        "test_decode::test_an_empty_file",
        "test_decode::test_a_truncated_file",
        "test_decode::test_a_web_page_named_jpg",
        "test_cache::test_all_bad_files_are_named_in_one_error",
    ),
    25: (
        "another checksum than the manifest's",
        "test_catalogue_tables::test_25_training_refuses_a_changed_image_before_it_decodes_any",
        "test_dataset::test_a_changed_image_that_decodes_is_refused_with_its_path_and_the_mend",
        "test_dataset::test_a_change_after_the_first_start_is_noticed_too",
    ),
    26: (
        "unusual pictures: converted where nothing is lost, else refused",
        "test_decode::test_more_than_8_bits",
        "test_decode::test_an_animation",
        "test_decode::test_cmyk_becomes_rgb",
        "test_decode::test_a_palette_becomes_the_colours_it_stands_for",
        "test_decode::test_transparent_pixels_are_laid_over_black",
        "test_decode::test_exif_rotation_and_mirroring_are_applied",
        "test_decode::test_too_many_pixels_are_refused_from_the_header_without_a_warning",
        "test_decode::test_a_webp_bomb",
        "test_decode::test_50_megapixels_are_allowed",
    ),
    27: (
        "ids that are paths, links out",
        "test_table::test_27_ids_that_are_paths_are_refused",
        "test_table::test_27_links_out_of_the_folder_are_refused",
    ),
    28: (
        "a class with too few lesions",
        "test_split::test_classes_with_too_few_lesions_are_all_named_with_their_counts",
        "test_catalogue_tables::test_28_to_32_come_out_of_the_way_that_training_takes",
    ),
    29: (
        "sizes that leave nothing",
        "test_split::test_sizes_that_cannot_be",
        "test_catalogue_tables::test_29_sizes_are_refused_before_anything_is_read",
    ),
    30: (
        "a class absent from a part",
        "test_split::test_sizes_so_small_that_a_part_would_be_empty",
        "test_split::test_a_class_absent_from_a_part",
    ),
    31: (
        "near-duplicates across parts",
        "test_dataset::test_strict_stops_report_warns_and_ignore_does_not_look",
        "test_dataset::test_pairs_in_two_parts",
        "test_catalogue_tables::test_28_to_32_come_out_of_the_way_that_training_takes",
    ),
    32: (
        "a split of other data",
        "test_split::test_images_that_differ_are_named_five_each_way",
        "test_split::test_values_that_differ_are_named",
        "test_split::test_rows_moved_by_hand_change_the_fingerprint",
        "test_catalogue_tables::test_28_to_32_come_out_of_the_way_that_training_takes",
    ),
    33: (
        "one-hot ground truth",
        "test_table::test_33_columns_are_mapped_by_name",
        "test_table::test_33_order_of_columns_does_not_matter",
        "test_table::test_33_rows_that_are_not_one_hot_are_refused",
        "test_table::test_33_lesions_come_from_the_groupings",
        "test_table::test_33_without_ground_truth_or_with_two",
    ),
}


@cache
def functions_in(module: str) -> frozenset[str]:
    tree = ast.parse((HERE / f"{module}.py").read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_row_has_a_test_that_is_there() -> None:
    assert list(CATALOGUE) == list(range(1, 34))
    named = [name for _, *names in CATALOGUE.values() for name in names]
    gone = [
        name for name in named if name.partition("::")[2] not in functions_in(name.split("::")[0])
    ]
    assert gone == []
    # And the other way: a test numbered after a row is named there.
    for test in functions_in("test_table"):
        numbered = re.match(r"test((?:_\d\d)+)_", test)
        for row in map(int, numbered[1].split("_")[1:] if numbered else []):
            assert row > len(CATALOGUE) or f"test_table::{test}" in CATALOGUE[row], test


# --- the whole way from a command's config to the data ---


EQUAL = ("i0", "i1")


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five lesions each of benign and malignant; two benign ones show the same picture."""
    root = tmp_path / "data"
    root.mkdir()
    rows = ["image_id,lesion_id,dx"]
    for i in range(10):
        rows.append(f"i{i},L{i},{'benign' if i < 5 else 'malignant'}")
        (root / f"i{i}.jpg").write_bytes(jpeg(0 if i < 2 else i))
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return root


def load(root: Path, *overrides: str) -> Any:
    """Read, split and open the data as training does."""
    register_resolvers()
    words = [
        "data=folder",
        f"data.root={root}",
        "data.source.classes=[benign,malignant]",
        "data.image_size=16",
        f"paths.cache={root.parent / 'cache'}",
        *overrides,
    ]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = checked_run(compose("train", words))
    return load_data(config, torch.device("cpu"))


def test_25_training_refuses_a_changed_image_before_it_decodes_any(root: Path) -> None:
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.glob("*.jpg")}
    file = File(
        name="images.zip",
        record_name="images.zip",
        version="4.0",
        url="https://example.org",
        size=None,
        checksum=Checksum(type="MD5", value="0" * 32),
        unpacked=sums,
    )
    write_manifest(root, Manifest(doi="doi:10.7910/DVN/DBW86T", files=(file,)))
    (root / "i7.jpg").write_bytes(jpeg(70))
    with pytest.raises(DataError) as caught:
        load(root)
    assert f"  {root / 'i7.jpg'}" in str(caught.value)
    assert "download again: data.download=true" in str(caught.value)
    assert [path.name for path in (root.parent / "cache").glob("*") if path.is_dir()] == []


def test_29_sizes_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    sizes = ("data.split.val_size=0.6", "data.split.test_size=0.6")
    with pytest.raises(Exception, match="together >= 1") as caught:
        load(tmp_path / "nowhere", *sizes)
    assert isinstance(caught.value.__cause__ or caught.value, ConfigError)
    with pytest.raises(Exception, match="there is no such folder"):
        load(tmp_path / "nowhere")


def drawn(table: LesionTable, seed: int) -> Split:
    method = LesionStratified(val_size=0.15, test_size=0.15, seed=seed)
    return method(table.frame, table.classes)


def test_28_to_32_come_out_of_the_way_that_training_takes(root: Path) -> None:
    # 28: five lesions a class, and six would be needed.
    with pytest.raises(DataError, match=r"benign 5, malignant 5; at least 10 are needed"):
        load(root, "data.split.val_size=0.05", "data.split.test_size=0.05")
    # 31: a seed that parts the two equal pictures is stopped, joined lesions are not parted.
    table = load(root).table
    parted = [seed for seed in range(20) if parted_pairs(table.frame, drawn(table, seed), [EQUAL])]
    strict = (f"data.split.seed={parted[0]}", "data.duplicates_across_splits=strict")
    with pytest.raises(DataError, match=r"i0 \(\w+\) and i1 \(\w+\)"):
        load(root, *strict)
    joined = load(root, *strict, "data.merge_duplicates=true")
    assert joined.table.frame["lesion_id"].tolist() == [
        "L0",
        "L0",
        *(f"L{i}" for i in range(2, 10)),
    ]
    assert sorted({"L0", "L1"} & set(joined.lesions("train") + joined.lesions("val"))) in (
        [],
        ["L0", "L1"],
    )
    # 32: the split of the joined table does not fit the table as it is.
    save_split(joined.split, joined.table.frame, root.parent / "split")
    with pytest.raises(DataError, match="have another lesion_id: i1"):
        load(root, "data/split=from_files", f"data.split.directory={root.parent / 'split'}")


def test_all_findings_of_a_table_come_in_one_pass(tmp_path: Path) -> None:
    """Problems of every kind in one error, and findings of every kind with one reading."""
    header = "lesion_id,image_id,dx,dx_type,age,sex,localization"
    good = ["A,i1,NV,histo,-5,male,back", ",i2,mel,histo,0,,", "A,i1,nv,histo,-5,male,back"]
    (tmp_path / "HAM10000_metadata.csv").write_text("\n".join([header, *good, "A,i3,nv,x,1,f,b"]))
    for name in ("i1", "i2", "other"):
        (tmp_path / f"{name}.jpg").write_bytes(b"")
    table = read_ham10000(root=str(tmp_path), metadata=None, on_missing="drop")
    assert [finding.kind for finding in table.findings] == [
        "dx_spelling", "age", "age_zero", "unknown_sex", "unknown_localization", "repeated_rows",
        "empty_lesion_id", "images_without_row", "missing_images",
    ]  # fmt: skip
    bad = [*good, "A,i1,mel,histo,1,male,back", "B,../i4,nv,x,1,f,b", "C,i2,nvv,x,1,f,b", "D,i5,nv"]
    (tmp_path / "HAM10000_metadata.csv").write_text("\n".join([header, *bad]))
    with pytest.raises(DataError) as caught:
        read_ham10000(root=str(tmp_path), metadata=None, on_missing="error")
    for part in (
        "rows with another number of fields", "rows with an unknown dx: 1",
        "images with several rows that differ: 2", "lesions with more than one dx: 1",
        "could lead out of the folder: 1",
    ):  # fmt: skip
        assert part in str(caught.value)
