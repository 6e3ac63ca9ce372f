"""The audit of small drawn folders, counted by hand; its page; and the real table's numbers."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from dermalyze.data import audit as audit_module
from dermalyze.data.audit import Audit, audit
from dermalyze.data.audit_page import page, summary_lines, write_audit
from dermalyze.data.near_duplicates import merge_duplicates
from dermalyze.data.table import LesionTable, read_ham10000
from dermalyze.data.table_facts import ClassCount, Coverage, TableFacts, table_facts
from dermalyze.errors import ConfigError, DataError
from dermalyze.taxonomy import DISCLAIMER, HAM10000_CODES

COLUMNS = ("image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "dataset")


def drawn(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Bright skin with a dark spot, of a texture of its own."""
    random = np.random.default_rng(seed)
    coarse, fine = (gaussian_filter(random.normal(size=(90, 120)), sigma) for sigma in (8, 1.5))
    y, x = np.mgrid[-1:1:90j, -1:1:120j]
    brightness = 170 + 150 * coarse + 60 * fine - 80 * (np.hypot(x, y) + 2 * coarse < 0.5)
    rgb = brightness[..., None] * np.array([1.0, 0.8, 0.75])
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).resize(size)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def row(image_id: str, lesion_id: str, dx: str = "nv", **more: str) -> tuple[str, ...]:
    values = {"dx_type": "histo", "age": "40", "sex": "male", "localization": "back", **more}
    return (image_id, lesion_id, dx, *(values.get(column, "") for column in COLUMNS[3:]))


def read(root: Path, rows: Sequence[tuple[str, ...]], files: Mapping[str, bytes]) -> LesionTable:
    """Write a folder in HAM10000's layout and read it; `files` maps image ids to bytes."""
    root.mkdir(exist_ok=True)
    with (root / "HAM10000_metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    for image_id, content in files.items():
        (root / f"{image_id}.jpg").write_bytes(content)
    return read_ham10000(root=str(root), metadata=None, on_missing="drop")


def audited(table: LesionTable, pictured_pairs: int = 9) -> Audit:
    return audit(table, max_distance=12, min_similarity=0.3, pictured_pairs=pictured_pairs)


@pytest.fixture
def found(tmp_path: Path) -> Audit:
    """Nine images: one original and four copies of it, three others, and one without a file."""
    original = drawn(0)
    files = {
        "a_original": jpeg(original),
        "b_equal": jpeg(original),
        "c_quality": jpeg(original, quality=50),
        "d_smaller": jpeg(original.resize((80, 60))),
        "e_brighter": jpeg(ImageEnhance.Brightness(original).enhance(1.15)),
        "f_other": jpeg(drawn(1)),
        "g_other": jpeg(drawn(2)),
        "h_other": jpeg(drawn(3)),
    }
    rows = [
        row("a_original", "L1"),
        row("b_equal", "L2"),
        row("c_quality", "L1"),
        row("d_smaller", "L3", "mel"),
        row("e_brighter", "L4"),
        row("f_other", "L5"),
        row("g_other", "L5"),
        row("h_other", "L6", "mel"),
        row("i_missing", "L7"),
    ]
    return audited(read(tmp_path / "data", rows, files))


# --- facts of a table ---


def facts_table(**columns: list[str | float]) -> LesionTable:
    """A table of eight images; its frame has no path, so no image is there to be opened."""
    frame = pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(8)],
            "lesion_id": ["A", "A", "A", "B", "C", "C", "D", "E"],
            "dx": ["nv", "nv", "nv", "mel", "nv", "nv", "mel", "bcc"],
            **columns,
        }
    )
    return LesionTable(frame, HAM10000_CODES, "drawn", (), ())


def test_facts_of_a_table_without_images() -> None:
    facts = table_facts(
        facts_table(
            age=[30.0, 30.0, 30.0, np.nan, 5.0, 5.0, np.nan, 80.0],
            sex=["male"] * 7 + ["unknown"],
            localization=["unknown"] * 8,
        )
    )
    assert facts == TableFacts(
        images=8,
        lesions=5,
        classes={
            **dict.fromkeys(HAM10000_CODES, ClassCount(0, 0, 0.0)),
            "nv": ClassCount(5, 2, 0.625),
            "mel": ClassCount(2, 2, 0.25),
            "bcc": ClassCount(1, 1, 0.125),
        },
        lesions_by_images={"1": 3, "2": 1, "3": 1},
        coverage={
            "age": Coverage(6, 2, 0.75),
            "sex": Coverage(7, 1, 0.875),
            "localization": Coverage(0, 8, 0.0),
        },
        lesions_of_several_dx=(),
        confounds=(),
    )
    assert facts.lesions_of_several_images == 2


def test_a_lesion_of_two_dx_is_told() -> None:
    table = facts_table(dx=["nv", "mel", "nv", "mel", "nv", "nv", "mel", "bcc"])
    assert table_facts(table).lesions_of_several_dx == ("A",)


def test_what_gives_dx_away_is_named_with_its_counts() -> None:
    follow, histo = "follow_up", "histo"
    table = facts_table(
        dx_type=[follow, follow, histo, histo, histo, histo, histo, "unknown"],
        dataset=["vienna", "vienna", "vienna", "rosendahl"] * 2,
    )
    dx_type, dataset = sorted(table_facts(table).confounds, key=lambda c: c.column, reverse=True)
    assert dx_type.column == "dx_type"
    assert dx_type.images == {
        "mel": {follow: 0, histo: 2},
        "nv": {follow: 2, histo: 3},  # the bcc's is unknown, and so is nobody's
    }
    assert dx_type.values_of_one_dx == {follow: "nv"}
    assert dx_type.dx_of_one_value == {"mel": histo}
    # chi2 = n (ad - bc)^2 / (row and column sums), V = sqrt(chi2 / n)
    assert dx_type.cramers_v == pytest.approx(abs(0 * 3 - 2 * 2) / np.sqrt(2 * 5 * 2 * 5))
    assert dataset.column == "dataset"
    assert dataset.images == {
        "bcc": {"rosendahl": 1, "vienna": 0},
        "mel": {"rosendahl": 1, "vienna": 1},
        "nv": {"rosendahl": 0, "vienna": 5},
    }
    expected = np.outer([1, 2, 5], [2, 6]) / 8
    chi2 = ((np.array([[1, 0], [1, 1], [0, 5]]) - expected) ** 2 / expected).sum()
    assert dataset.cramers_v == pytest.approx(np.sqrt(chi2 / 8))
    assert dataset.values_of_one_dx == {}
    assert dataset.dx_of_one_value == {"bcc": "rosendahl", "nv": "vienna"}


def test_a_column_of_one_value_confounds_nothing() -> None:
    assert table_facts(facts_table(dataset=["vienna"] * 7 + ["unknown"])).confounds == ()


# --- duplicates ---


def test_copies_are_found_and_others_are_not(found: Audit) -> None:
    pairs = {pair.image_ids for pair in found.pairs}
    same = ("a_original", "c_quality", "d_smaller", "e_brighter")
    near = {(one, other) for one in same for other in same if one < other}
    assert pairs == near | {("a_original", "b_equal")}
    assert [pair.image_ids for pair in found.pairs if pair.exact] == [("a_original", "b_equal")]
    assert all(pair.distance <= 4 and pair.similarity > 0.5 for pair in found.pairs)
    assert found.pairs_complete


def test_the_dangerous_pairs_come_first(found: Audit) -> None:
    order = [(pair.same_lesion, pair.same_dx, not pair.exact) for pair in found.pairs]
    assert order == sorted(order)
    # d_smaller is a mel, its three near-duplicates are nv; then the equal files of two lesions.
    assert [pair.same_dx for pair in found.pairs] == [False] * 3 + [True] * 4
    assert found.pairs[3].image_ids == ("a_original", "b_equal")
    assert [pair.image_ids for pair in found.within_lesions] == [("a_original", "c_quality")]
    assert len(found.across_lesions) == 6
    assert found.of_several_dx == found.pairs[:3]


def test_the_rest_is_counted(found: Audit) -> None:
    assert (found.facts.images, found.facts.lesions, found.missing_images) == (8, 6, 1)
    assert found.sizes == {"120 x 90": 7, "80 x 60": 1}
    assert found.modes == {"RGB": 8}
    assert found.broken == ()
    (odd,) = found.odd
    assert (odd.image_id, odd.dx) == ("d_smaller", "mel")
    assert odd.reason == "80 x 60, where most are 120 x 90"


def test_confirmed_pairs_join_lesions(found: Audit, tmp_path: Path) -> None:
    everything = found.confirmed(min_similarity=0.3)
    assert everything == [pair.image_ids for pair in found.pairs]
    assert found.confirmed(min_similarity=1.1) == [("a_original", "b_equal")]
    frame = read_ham10000(root=str(tmp_path / "data"), metadata=None, on_missing="drop").frame
    joined = merge_duplicates(frame, found.confirmed(min_similarity=1.1))
    assert joined["lesion_id"].tolist() == ["L1", "L1", "L1", "L3", "L4", "L5", "L5", "L6"]
    joined = merge_duplicates(frame, [p.image_ids for p in found.pairs if p.same_dx])
    assert joined["lesion_id"].tolist() == ["L1", "L1", "L1", "L3", "L1", "L5", "L5", "L6"]
    with pytest.raises(DataError, match=r"more than one dx: 3\."):
        merge_duplicates(frame, everything)


def test_a_confirmation_with_gaps_is_refused(
    found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"similarity from 0\.2: only those from 0\.3"):
        found.confirmed(min_similarity=0.2)
    monkeypatch.setattr(audit_module, "PAIRS_AT_MOST", 2)
    table = read_ham10000(root=str(tmp_path / "data"), metadata=None, on_missing="drop")
    cut = audited(table)
    assert (len(cut.pairs), cut.pairs_complete) == (3, False)  # two near ones and the equal ones
    assert "duplicates: 1 exact, 2 near, and more: too many to look at all" in summary_lines(cut)
    assert "this list has gaps" in page(cut)
    with pytest.raises(DataError, match="more than 2 pairs of images have near hashes"):
        cut.confirmed(min_similarity=0.3)


def test_a_distance_out_of_range_is_refused(tmp_path: Path) -> None:
    table = read(tmp_path, [row("a", "A"), row("b", "B")], {"a": jpeg(drawn(0)), "b": b""})
    with pytest.raises(ConfigError, match="max_distance=64"):
        audit(table, max_distance=64, min_similarity=0.3, pictured_pairs=0)


# --- broken and odd files ---


def test_broken_and_odd_files_are_listed_and_stop_nothing(tmp_path: Path) -> None:
    whole = jpeg(drawn(0))
    files = {
        "a": whole,
        "b": jpeg(drawn(1)),
        "c_empty": b"",
        "d_cut": whole[: len(whole) // 2],
        "e_page": b"<!DOCTYPE html><title>404</title>",
        "f_grey": jpeg(drawn(2).convert("L")),
        "g_flat": jpeg(Image.new("RGB", (120, 90), (9, 9, 9))),
        "h_flat": jpeg(Image.new("RGB", (120, 90), (200, 9, 9))),
        "i_empty": b"",
    }
    found = audited(read(tmp_path, [row(image_id, f"L{image_id}") for image_id in files], files))
    reasons = {fault.image_id: fault.reason for fault in found.broken}
    assert list(reasons) == ["c_empty", "d_cut", "e_page", "i_empty"]
    assert reasons["c_empty"].startswith("the file is empty (0 bytes)")
    assert reasons["d_cut"].startswith("truncated or damaged")
    assert reasons["e_page"].startswith("not an image but a web page")
    assert {fault.image_id: fault.reason for fault in found.odd} == {
        "f_grey": "L, where most are RGB",
        "g_flat": "a single colour, shows nothing",
        "h_flat": "a single colour, shows nothing",
    }
    # Neither the two empty files nor the two flat pictures, whose hashes are equal.
    assert (found.pairs, found.look_alikes) == ((), 0)
    assert found.modes == {"RGB": 4, "L": 1}
    assert found.facts.images == 9


def test_a_folder_of_nothing_but_broken_files(tmp_path: Path) -> None:
    found = audited(read(tmp_path, [row("a", "A"), row("b", "B")], {"a": b"", "b": b"GIF"}))
    assert len(found.broken) == 2
    assert (found.odd, found.sizes, found.pairs, found.look_alikes) == ((), {}, (), 0)
    assert "Broken: 2" in page(found)


# --- what is written ---


def test_json_holds_what_was_found(found: Audit, tmp_path: Path) -> None:
    write_audit(found, tmp_path / "new" / "folder")
    values = json.loads((tmp_path / "new" / "folder" / "audit.json").read_text())
    assert values == json.loads(json.dumps(found.as_dict()))
    assert values["facts"]["classes"]["mel"] == {"images": 2, "lesions": 2, "share_of_images": 0.25}
    assert values["pair_counts"] == {
        "exact": 1, "near": 6, "across_lesions": 6, "of_several_dx": 3,
    }  # fmt: skip
    assert values["pairs"][3] == {
        "image_ids": ["a_original", "b_equal"],
        "lesion_ids": ["L1", "L2"],
        "dx": ["nv", "nv"],
        "exact": True,
        "distance": 0,
        "similarity": 1.0,
        "same_lesion": False,
        "same_dx": True,
    }
    assert {finding["kind"]: finding["items"] for finding in values["findings"]} == {
        "layout": 0,
        "missing_images": 1,
    }
    assert values["disclaimer"] == DISCLAIMER
    assert (values["max_distance"], values["min_similarity"]) == (12, 0.3)
    assert "thumbnails" not in values


def test_lines_for_the_screen(found: Audit) -> None:
    assert summary_lines(found) == [
        "lesions with several images: 2 of 6",
        "images whose values are unknown: age 0, sex 0, localization 0, dx_type 0",
        "broken images: 0; odd ones: 1",
        "duplicates: 1 exact, 6 near",
        "of these under different lesions: 6, with different dx: 3",
    ]


def test_lines_name_what_gives_dx_away(tmp_path: Path) -> None:
    rows = [row("a", "A", "nv", dx_type="follow_up"), row("b", "B", "mel", dx_type="histo")]
    lines = summary_lines(audited(read(tmp_path, rows, dict.fromkeys("ab", b""))))
    assert lines[-1] == (
        "dx_type goes along with dx (Cramér's V 1.00) and is never a feature: "
        "follow_up is always nv, histo is always mel, mel is always histo, nv is always follow_up"
    )


class Parsed(HTMLParser):
    """All elements with their attributes, all text, and tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_needs_no_other_file_and_shows_the_pairs(found: Audit) -> None:
    parsed = Parsed(page(found))
    pictures = parsed.all("img")
    assert len(pictures) == 14
    for picture in pictures:
        kind, _, data = str(picture["src"]).partition(";base64,")
        assert kind == "data:image/jpeg"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (200, 200)
    assert {tag for tag, _ in parsed.elements}.isdisjoint({"script", "link", "iframe", "a"})
    assert "http" not in page(found).replace("http-equiv", "")
    assert parsed.all("html") == [{"lang": "en"}]
    for words in (
        DISCLAIMER,
        "image d_smaller, lesion L3, dx mel",
        "Under different lesion ids: 6",
        "Under one lesion id: 1",
        "the same bytes",
        "different dx",
        "80 x 60, where most are 120 x 90",
        found.fingerprint,
    ):
        assert words in parsed.text


def test_pairs_beyond_those_pictured_are_counted(found: Audit, tmp_path: Path) -> None:
    table = read_ham10000(root=str(tmp_path / "data"), metadata=None, on_missing="drop")
    few = audited(table, pictured_pairs=1)
    assert few.pairs == found.pairs
    parsed = Parsed(page(few))
    assert len(parsed.all("img")) == 2
    assert "5 more pairs stand in audit.json." in parsed.text
    assert "1 more pairs stand in audit.json." in parsed.text
    assert Parsed(page(audited(table, pictured_pairs=0))).all("img") == []


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    image_id = "<img src=x onerror=alert(1)>"
    lesion_id = "\"'><script>alert(2)</script>"
    dataset = "<b onclick=alert(3)>&amp;</b>"
    rows = [
        row(image_id, lesion_id, dataset=dataset, dx_type="</style><i>"),
        row("equal", "L2", dataset=dataset, dx_type="histo"),
        row("<u>broken</u>".replace("/", ""), "L3", "mel", dataset="vienna"),
    ]
    same = jpeg(drawn(0))
    files = {image_id: same, "equal": same, "<u>broken<u>": b"<svg onload=alert(4)>"}
    found = audited(read(tmp_path, rows, files))
    text = page(found)
    parsed = Parsed(text)
    for evil in (
        image_id,
        lesion_id,
        dataset.lower(),
        "</style><i>",
        "<u>broken<u>",
        "<svg onload",
    ):
        assert evil not in text
        assert evil in parsed.text
    assert {tag for tag, _ in parsed.elements}.isdisjoint({"script", "b", "u", "i", "svg"})
    assert [picture["alt"] for picture in parsed.all("img")] == [f"{image_id}, nv", "equal, nv"]
    names = {name for _, attributes in parsed.elements for name in attributes}
    assert not any(name.startswith("on") for name in names)


def test_a_folder_that_cannot_be_written_is_named(found: Audit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/below: the audit cannot be saved"):
        write_audit(found, tmp_path / "file" / "below")


# --- the real table ---


def real_folder() -> Path:
    root = os.environ.get("DERMALYZE_HAM10000")
    if not root:
        pytest.skip("needs the 224 x 224 subset of HAM10000; give its folder in DERMALYZE_HAM10000")
    return Path(root)


def test_facts_of_the_whole_real_table() -> None:
    frame = pd.read_csv(real_folder() / "HAM10000_metadata.csv")
    frame = frame.assign(age=frame["age"].where(frame["age"] > 0))
    facts = table_facts(LesionTable(frame, HAM10000_CODES, "ham10000", (), ()))
    assert (facts.images, facts.lesions, facts.lesions_of_several_images) == (10_015, 7_470, 1_956)
    assert list(facts.lesions_by_images) == ["1", "2", "3", "4", "5", "6"]
    assert {dx: (count.images, count.lesions) for dx, count in facts.classes.items()} == {
        "akiec": (327, 228),
        "bcc": (514, 327),
        "bkl": (1_099, 727),
        "df": (115, 73),
        "mel": (1_113, 614),
        "nv": (6_705, 5_403),
        "vasc": (142, 98),
    }
    unknown = {column: coverage.unknown for column, coverage in facts.coverage.items()}
    assert unknown == {"age": 57 + 39, "sex": 57, "localization": 234, "dx_type": 0}
    assert facts.lesions_of_several_dx == ()
    (dx_type,) = facts.confounds
    assert dx_type.values_of_one_dx == {"confocal": "bkl", "follow_up": "nv"}
    assert dx_type.dx_of_one_value == dict.fromkeys(("akiec", "bcc", "mel"), "histo")


@pytest.mark.slow
def test_images_of_the_real_subset() -> None:
    table = read_ham10000(root=str(real_folder()), metadata=None, on_missing="drop")
    found = audited(table)
    assert (found.facts.images, found.facts.lesions, found.missing_images) == (5_984, 5_984, 4_031)
    assert {dx: count.images for dx, count in found.facts.classes.items()} == {
        "akiec": 183, "bcc": 264, "bkl": 583, "df": 60, "mel": 491, "nv": 4_323, "vasc": 80,
    }  # fmt: skip
    assert found.sizes == {"224 x 224": 5_984}
    assert (found.broken, found.odd, found.within_lesions, found.of_several_dx) == ((), (), (), ())
    # Looked at by eye: each of the three pairs shows one lesion, under two ids.
    assert {pair.lesion_ids for pair in found.pairs} == {
        ("HAM_0001109", "HAM_0007525"),
        ("HAM_0004196", "HAM_0004198"),
        ("HAM_0004213", "HAM_0004214"),
    }
