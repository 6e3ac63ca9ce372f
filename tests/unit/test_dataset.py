"""A config's data as a table: changed images refused, duplicates found once, joined, reported."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from dermalyze.data import duplicates
from dermalyze.data.audit import audit
from dermalyze.data.duplicates import (
    duplicate_pairs,
    join_lesions,
    parted_pairs,
    remember_pairs,
)
from dermalyze.data.manifest import Checksum, File, Manifest, write_manifest
from dermalyze.data.phantom_drawing import draw_lesion, photograph
from dermalyze.data.split import LesionStratified, Split
from dermalyze.data.table import LesionTable, read_ham10000
from dermalyze.dataset import check_parts, read_table
from dermalyze.errors import DataError
from dermalyze.prepare import as_value

HEADER = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
LIMITS = {"max_distance": 12, "min_similarity": 0.3}


def drawn(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return photograph(rng, draw_lesion(rng, "nv", difficulty=0.5, side=96), side=96)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def fill(root: Path, rows: Sequence[tuple[str, str, str, bytes]]) -> Path:
    """Write (image, lesion, dx, bytes) as a folder in HAM10000's layout."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    with (root / "HAM10000_metadata.csv").open("w", newline="") as file:
        described = [
            (lesion, image, dx, "histo", 40, "male", "back") for image, lesion, dx, _ in rows
        ]
        csv.writer(file).writerows([HEADER, *described])
    for image, _, _, content in rows:
        (root / "images" / f"{image}.jpg").write_bytes(content)
    return root


def rows_with_duplicates(dx_of_copy: str = "nv") -> list[tuple[str, str, str, bytes]]:
    """Six images: b1 equals a1, c1 is a2 at another quality; d1 and d2 are others."""
    return [
        ("a1", "A", "nv", jpeg(drawn(0))),
        ("a2", "A", "nv", jpeg(drawn(1))),
        ("b1", "B", dx_of_copy, jpeg(drawn(0))),
        ("c1", "C", "nv", jpeg(drawn(1), quality=50)),
        ("d1", "D", "mel", jpeg(drawn(2))),
        ("d2", "D", "mel", jpeg(drawn(3))),
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fill(tmp_path / "data", rows_with_duplicates())


def node(root: Path, **changes: Any) -> dict[str, Any]:
    source = {
        "_target_": "dermalyze.data.table.read_ham10000",
        "root": str(root),
        "metadata": None,
        "on_missing": "error",
    }
    return {
        "root": str(root),
        "source": source,
        "merge_duplicates": False,
        "duplicates": LIMITS,
        "duplicates_across_splits": "ignore",
        **changes,
    }


def read(root: Path, **changes: Any) -> LesionTable:
    return read_table(node(root, **changes), cache=str(root.parent / "cache"))


def no_audit(*_: Any, **__: Any) -> Any:
    raise AssertionError("images were looked at")


# --- joined before splitting ---


@pytest.mark.parametrize("root", ["/data/HAM10000", "my data (1)", "a,b=c{d}", "it's 5 %", "~/x"])
def test_prepare_names_any_folder_so_that_hydra_takes_it(root: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"data.root={as_value(root)}"])
    assert override.value() == root
    assert not override.is_sweep_override()


def test_nothing_is_looked_for_unless_asked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "audit", no_audit)
    table = read(root)
    assert table.frame["lesion_id"].tolist() == ["A", "A", "B", "C", "D", "D"]
    assert "original_lesion_id" not in table.frame
    assert table.original_lesions.tolist() == ["A", "A", "B", "C", "D", "D"]
    assert not (root.parent / "cache").exists()


def test_duplicates_are_joined_with_their_lesions(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    apart, table = read(root), read(root, merge_duplicates=True)
    assert table.frame["lesion_id"].tolist() == ["A", "A", "A", "A", "D", "D"]
    assert table.original_lesions.tolist() == ["A", "A", "B", "C", "D", "D"]
    assert table.findings[-1].items == ("B into A", "C into A")
    said = "lesions joined with another one, because images of both show the same: 2"
    assert f"data: {said}" in caplog.messages
    assert table.fingerprint != apart.fingerprint
    assert table.frame["image_id"].equals(apart.frame["image_id"])
    assert table.labels.tolist() == apart.labels.tolist()


def test_what_was_found_is_found_again_without_looking(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read(root, merge_duplicates=True)
    monkeypatch.setattr(duplicates, "audit", no_audit)
    assert read(root, merge_duplicates=True).frame.equals(first.frame)
    moved = root.rename(root.parent / "elsewhere")
    assert read(moved, merge_duplicates=True).fingerprint == first.fingerprint


@pytest.mark.parametrize("what", ["limits", "image"])
def test_other_limits_and_other_images_are_looked_at_anew(
    root: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(root, merge_duplicates=True).frame["lesion_id"].nunique() == 2
    if what == "limits":
        closer = {**LIMITS, "min_similarity": 1.0}  # equal files only
        table = read(root, merge_duplicates=True, duplicates=closer)
    else:
        (root / "images" / "c1.jpg").write_bytes(jpeg(drawn(9)))
        table = read(root, merge_duplicates=True)
    assert table.frame["lesion_id"].tolist() == ["A", "A", "A", "C", "D", "D"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"pairs": 3}', b'{"pairs": [["a"]]}', b"\xff"])
def test_a_damaged_memory_is_said_and_made_anew(
    root: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first = read(root, merge_duplicates=True)
    (memory,) = (root.parent / "cache" / "duplicates").iterdir()
    whole = memory.read_bytes()
    memory.write_bytes(content)
    assert read(root, merge_duplicates=True).frame.equals(first.frame)
    assert f"{memory}: cannot be read" in caplog.text
    assert memory.read_bytes() == whole


def test_what_an_audit_found_need_not_be_looked_for(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read(root)
    cache = root.parent / "cache"
    pairs = remember_pairs(audit(table, **LIMITS, pictured_pairs=3), table, cache)
    assert sorted(pairs) == [("a1", "b1"), ("a2", "c1")]
    monkeypatch.setattr(duplicates, "audit", no_audit)
    assert duplicate_pairs(table, **LIMITS, directory=cache) == pairs


def test_duplicates_of_two_dx_are_refused_with_their_names(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", rows_with_duplicates(dx_of_copy="bkl"))
    with pytest.raises(DataError) as caught:
        read(root, merge_duplicates=True)
    assert "duplicates cannot be joined:" in str(caught.value)
    assert "a1 (nv) and b1 (bkl)" in str(caught.value)
    assert "Correct the dx of one, remove one" in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named(root: Path) -> None:
    (root.parent / "cache").write_bytes(b"")
    with pytest.raises(DataError, match=r"paths\.cache=.*: the duplicates cannot be kept"):
        read(root, merge_duplicates=True)


# --- across the parts of a split ---


def split_of(table: LesionTable, parts: str) -> Split:
    """Return the split whose row i is in train (r), val (v), test (t) or in no part (-)."""
    return Split.of(table.frame, np.array(["rvt-".index(part) for part in parts]), "by_hand", None)


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ("rrrrvt", []),
        ("rrrtvt", ["a2 (train) and c1 (test)"]),
        ("rvtrvt", ["a1 (train) and b1 (test)", "a2 (val) and c1 (train)"]),
        ("rr-tvt", ["a2 (train) and c1 (test)"]),
    ],
)
def test_pairs_in_two_parts(root: Path, parts: str, found: list[str]) -> None:
    table = read(root)
    pairs = [("a1", "b1"), ("a2", "c1")]
    assert parted_pairs(table.frame, split_of(table, parts), pairs) == found


def test_strict_stops_report_warns_and_ignore_does_not_look(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    table, cache = read(root), str(root.parent / "cache")
    leaking, sound = split_of(table, "rrrtvt"), split_of(table, "rrrrvt")
    with pytest.raises(DataError) as caught:
        check_parts(table, leaking, node(root, duplicates_across_splits="strict"), cache=cache)
    assert "data.duplicates_across_splits=strict: pairs of images" in str(caught.value)
    assert "a2 (train) and c1 (test)" in str(caught.value)
    assert "data.merge_duplicates=true" in str(caught.value)

    check_parts(table, leaking, node(root, duplicates_across_splits="report"), cache=cache)
    (warning,) = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert "a2 (train) and c1 (test)" in warning
    check_parts(table, sound, node(root, duplicates_across_splits="strict"), cache=cache)
    assert "no image has a duplicate in another part" in caplog.messages[-1]

    monkeypatch.setattr("dermalyze.dataset.duplicate_pairs", no_audit)
    check_parts(table, leaking, node(root), cache=cache)


# --- images that are not those that were downloaded (catalogue 25) ---


def manifest_of(root: Path) -> None:
    """Write the manifest that a download of this very folder would have left."""
    images = sorted((root / "images").iterdir())
    archive = File(
        name="images.zip",
        record_name="images.zip",
        version="4.0",
        url="https://example.org/1",
        size=1,
        checksum=Checksum(type="MD5", value="0" * 32),
        unpacked={
            f"images/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in images
        },
    )
    write_manifest(root, Manifest(doi="doi:10.7910/DVN/DBW86T", files=(archive,)))


def test_images_as_downloaded_are_read(root: Path) -> None:
    manifest_of(root)
    assert len(read(root)) == 6


def test_a_changed_image_that_decodes_is_refused_with_its_path_and_the_mend(root: Path) -> None:
    manifest_of(root)
    changed = root / "images" / "d1.jpg"
    changed.write_bytes(jpeg(drawn(7)))
    (root / "images" / "unknown.jpg").write_bytes(b"no row and not in the manifest")
    with pytest.raises(DataError) as caught:
        read(root)
    assert "files that differ from their checksum: 1." in str(caught.value)
    assert f"  {changed}" in str(caught.value)
    assert "download again: data.download=true" in str(caught.value)


def test_a_change_after_the_first_start_is_noticed_too(root: Path) -> None:
    manifest_of(root)
    for path in (root / "images").iterdir():  # old enough for their checksums to be remembered
        os.utime(path, (1e9, 1e9))
    read(root)
    (root / "images" / "a1.jpg").write_bytes(jpeg(drawn(8)))
    with pytest.raises(DataError, match=r"a1\.jpg"):
        read(root)


# --- the real images ---


@pytest.mark.slow
@pytest.mark.skipif(
    "DERMALYZE_HAM10000" not in os.environ,
    reason="needs the 224 x 224 subset of HAM10000; give its folder in DERMALYZE_HAM10000",
)
def test_the_known_pairs_of_the_real_subset_stay_together(tmp_path: Path) -> None:
    table = read_ham10000(root=os.environ["DERMALYZE_HAM10000"], metadata=None, on_missing="drop")
    pairs = duplicate_pairs(table, **LIMITS, directory=tmp_path)
    joined = join_lesions(table, pairs)
    assert set(joined.findings[-1].items) == {
        "HAM_0007525 into HAM_0001109",
        "HAM_0004198 into HAM_0004196",
        "HAM_0004214 into HAM_0004213",
    }
    parted = {table: 0, joined: 0}
    for seed in range(20):
        split = LesionStratified(val_size=0.15, test_size=0.15, seed=seed)
        for read_as in parted:
            drawn_split = split(read_as.frame, read_as.classes)
            parted[read_as] += len(parted_pairs(read_as.frame, drawn_split, pairs))
    assert parted[table] > 0
    assert parted[joined] == 0
    assert json.loads(next((tmp_path / "duplicates").iterdir()).read_text())["pairs"] == [
        list(pair) for pair in pairs
    ]
