"""Zip archives: what comes out, byte by byte, and what is refused before anything is written."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dermalyze.data.unpack import IMAGE_KINDS, unpack
from dermalyze.errors import DataError

MEMBERS = {f"ISIC_{i}.jpg": os.urandom(100 + i) for i in range(5)}
SUMS = {name: hashlib.sha256(data).hexdigest() for name, data in MEMBERS.items()}


def zipped(
    path: Path, members: Iterable[tuple[str | zipfile.ZipInfo, bytes]] = tuple(MEMBERS.items())
) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def out(
    archive: Path, max_files: int = 100, max_bytes: int = 10_000, max_ratio: float = 20.0
) -> dict[str, str]:
    return unpack(
        archive,
        archive.with_suffix(""),
        kinds=IMAGE_KINDS,
        max_files=max_files,
        max_bytes=max_bytes,
        max_ratio=max_ratio,
    )


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refusal(archive: Path, **limits: float) -> str:
    """The message; and nothing but the archive may be there afterwards."""
    before = tree(archive.parent.parent)
    with pytest.raises(DataError) as caught:
        out(archive, **limits)  # type: ignore[arg-type]
    assert tree(archive.parent.parent) == before
    assert not archive.with_suffix("").exists()
    return str(caught.value)


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A folder in a folder, so that what escapes is seen."""
    (tmp_path / "box").mkdir()
    return tmp_path / "box"


def test_members_come_out_flat_with_their_bytes_and_sums(box: Path) -> None:
    names = ["ISIC_0.jpg", "a/ISIC_1.jpg", "a/b/ISIC_2.jpg", "a/ISIC_3.JPG", "ISIC_4.png"]
    data = list(MEMBERS.values())
    assert out(zipped(box / "part.zip", zip(names, data, strict=True))) == {
        "ISIC_0.jpg": SUMS["ISIC_0.jpg"],
        "ISIC_1.jpg": SUMS["ISIC_1.jpg"],
        "ISIC_2.jpg": SUMS["ISIC_2.jpg"],
        "ISIC_3.JPG": SUMS["ISIC_3.jpg"],
        "ISIC_4.png": SUMS["ISIC_4.jpg"],
    }
    flat = [name.rpartition("/")[2] for name in names]
    assert tree(box / "part") == dict(zip(flat, data, strict=True))
    assert sorted(path.name for path in box.iterdir()) == ["part", "part.zip"]


def test_only_the_expected_kinds_are_written(box: Path) -> None:
    others = ["run.py", "x/.DS_Store", "__MACOSX/x/._ISIC_0.jpg", "__MACOSX/x/ISIC_0.jpg", ".a.jpg"]
    members = [*((name, b"other") for name in others), ("folder/", b""), *MEMBERS.items()]
    assert out(zipped(box / "part.zip", members)) == SUMS
    assert tree(box / "part") == MEMBERS


def test_a_second_run_changes_nothing_and_brings_back_what_is_gone(box: Path) -> None:
    archive = zipped(box / "part.zip")
    out(archive)
    (box / "part" / "ISIC_1.jpg").unlink()
    (box / "part" / "mine.txt").write_bytes(b"mine")
    kept = (box / "part" / "ISIC_2.jpg").stat().st_ino
    assert out(archive) == SUMS
    assert tree(box / "part") == {**MEMBERS, "mine.txt": b"mine"}
    assert (box / "part" / "ISIC_2.jpg").stat().st_ino == kept


def test_a_file_that_differs_is_never_written_over(box: Path) -> None:
    archive = zipped(box / "part.zip")
    (box / "part").mkdir()
    (box / "part" / "ISIC_3.jpg").write_bytes(b"resized")
    with pytest.raises(DataError, match=r"differ from the archive's: 1\.(.|\n)*ISIC_3\.jpg"):
        out(archive)
    assert tree(box / "part") == {"ISIC_3.jpg": b"resized"}
    assert sorted(path.name for path in box.iterdir()) == ["part", "part.zip"]


def test_what_a_killed_run_left_is_cleared(box: Path) -> None:
    (box / ".part.unpacking").mkdir()
    (box / ".part.unpacking" / "ISIC_0.jpg").write_bytes(b"half")
    assert out(zipped(box / "part.zip")) == SUMS
    assert tree(box / "part") == MEMBERS
    assert not (box / ".part.unpacking").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../ISIC_9.jpg", "leads out of the folder"),
        ("a/../../ISIC_9.jpg", "leads out of the folder"),
        ("..\\ISIC_9.jpg", "leads out of the folder"),
        ("/etc/ISIC_9.jpg", "an absolute path"),
        ("\\ISIC_9.jpg", "an absolute path"),
        ("C:\\ISIC_9.jpg", "an absolute path"),
        ("C:ISIC_9.jpg", "an absolute path"),
        ("\\\\host\\share\\ISIC_9.jpg", "an absolute path"),
        ("a/C:/ISIC_9.jpg", "a colon"),
        ("ISIC_9.jpg:stream.jpg", "a colon"),
        ("../run.py", "leads out of the folder"),
        ("../", "leads out of the folder"),
    ],
)
def test_a_member_that_would_leave_the_folder_stops_everything(
    box: Path, name: str, why: str
) -> None:
    message = refusal(zipped(box / "part.zip", [*MEMBERS.items(), (name, b"")]))
    assert "members that could harm: 1" in message
    assert f"{name!r}: " in message
    assert why in message


def test_a_name_with_a_nul_is_refused(box: Path) -> None:
    archive = zipped(box / "part.zip", [("ISIC_9.jpgX.py", b"data")])
    archive.write_bytes(archive.read_bytes().replace(b"ISIC_9.jpgX.py", b"ISIC_9.jpg\0.py"))
    assert "a NUL in its name" in refusal(archive)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(box: Path, kind: int) -> None:
    link = zipfile.ZipInfo("ISIC_9.jpg")
    link.external_attr = (kind | 0o777) << 16
    message = refusal(zipped(box / "part.zip", [*MEMBERS.items(), (link, b"/etc/passwd")]))
    assert "'ISIC_9.jpg': a link or a device" in message


def test_two_members_that_would_be_one_file_are_refused(box: Path) -> None:
    members = [("a/ISIC_1.jpg", b"one"), ("b/isic_1.JPG", b"two"), ("ISIC_2.jpg", b"three")]
    message = refusal(zipped(box / "part.zip", members))
    assert "would be one file: 2" in message
    assert "'a/ISIC_1.jpg'" in message
    assert "'b/isic_1.JPG'" in message


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("max_files", 4, "5 members, over the limit of 4"),
        ("max_bytes", 509, "unpacks to 510 bytes, over the limit of 509"),
    ],
)
def test_an_archive_over_a_limit_is_refused(box: Path, limit: str, value: int, said: str) -> None:
    archive = zipped(box / "part.zip")  # 100 + 101 + 102 + 103 + 104 bytes
    assert said in refusal(archive, **{limit: value})
    assert out(archive, **{limit: value + 1}) == SUMS  # type: ignore[arg-type]


def test_a_member_packed_too_densely_is_refused(box: Path) -> None:
    archive = zipped(box / "part.zip", [("ISIC_9.jpg", bytes(100_000))])
    with zipfile.ZipFile(archive) as opened:
        packed = opened.infolist()[0].compress_size
    message = refusal(archive, max_bytes=10**6)
    assert f"'ISIC_9.jpg': {packed} bytes become 100000" in message
    assert "denser than 20 to 1" in message
    assert len(out(archive, max_bytes=10**6, max_ratio=100_000 / packed)) == 1


def test_members_that_share_their_bytes_are_refused(box: Path) -> None:
    """Ten entries of the directory that point to one body: a bomb of the overlapping kind."""
    archive = zipped(box / "part.zip", [("ISIC_0.jpg", os.urandom(5000))])
    raw = archive.read_bytes()
    *_, size, start, _ = struct.unpack("<4s4H2LH", raw[-22:])
    entries = b"".join(
        raw[start : start + size].replace(b"ISIC_0", b"ISIC_%d" % i) for i in range(10)
    )
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 10, 10, len(entries), start, 0)
    archive.write_bytes(raw[:start] + entries + end)
    assert "they overlap" in refusal(archive, max_bytes=10**6)


def test_a_directory_that_lies_about_a_size_gains_nothing(box: Path) -> None:
    """The member would unpack to 3,000 bytes and says 10."""
    archive = zipped(box / "part.zip", [("ISIC_0.jpg", os.urandom(3000))])
    raw = bytearray(archive.read_bytes())
    *_, start, _ = struct.unpack("<4s4H2LH", raw[-22:])
    struct.pack_into("<L", raw, start + 24, 10)
    archive.write_bytes(raw)
    assert "truncated or damaged" in refusal(archive)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_archive_is_refused(box: Path, share: float) -> None:
    archive = zipped(box / "part.zip")
    raw = archive.read_bytes()
    archive.write_bytes(raw[: int(share * len(raw))])
    assert "truncated or damaged" in refusal(archive)


def test_a_flipped_byte_in_the_last_member_leaves_no_file_of_the_others(box: Path) -> None:
    archive = zipped(box / "part.zip")
    raw = bytearray(archive.read_bytes())
    raw[raw.index(MEMBERS["ISIC_4.jpg"][50:60])] ^= 1
    archive.write_bytes(raw)
    message = refusal(archive)
    assert "ISIC_4.jpg" in message
    assert "download it again" in message


def test_encrypted_and_unusual_members_are_refused(box: Path) -> None:
    archive = zipped(box / "part.zip", [("ISIC_0.jpg", b"data")])
    raw = bytearray(archive.read_bytes())
    *_, start, _ = struct.unpack("<4s4H2LH", raw[-22:])
    raw[start + 8] |= 1
    archive.write_bytes(raw)
    assert "'ISIC_0.jpg': encrypted" in refusal(archive)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as opened:
        opened.writestr("ISIC_0.jpg", b"data")
    assert "'ISIC_0.jpg': compression method 14" in refusal(archive)


def test_an_archive_without_images_is_refused(box: Path) -> None:
    archive = zipped(box / "part.zip", [("table.csv", b"a,b"), ("notes.txt", b"c")])
    assert "none of its 2 members is a file of the kinds .jpeg, .jpg, .png" in refusal(archive)


def test_an_archive_that_the_disk_cannot_hold_is_refused_first(box: Path) -> None:
    archive = zipped(box / "part.zip", [("ISIC_0.jpg", b"data")])
    raw = bytearray(archive.read_bytes())
    *_, start, _ = struct.unpack("<4s4H2LH", raw[-22:])
    # A size of 8 bytes stands in an extra field of the directory, as in archives over 4 GB.
    extra = struct.pack("<HHQ", 1, 8, 10**18)
    struct.pack_into("<L", raw, start + 24, 0xFFFFFFFF)
    struct.pack_into("<H", raw, start + 30, len(extra))
    entry = bytes(raw[start:-22]) + extra
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), start, 0)
    archive.write_bytes(bytes(raw[:start]) + entry + end)
    message = refusal(archive, max_bytes=10**19, max_ratio=1e19)
    assert "needs 1000000000.00 GB and the disk has " in message


def test_a_missing_archive_is_told(box: Path) -> None:
    with pytest.raises(DataError, match=r"part\.zip cannot be unpacked"):
        out(box / "part.zip")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.text(st.sampled_from("ab./\\:C~ \n"), min_size=1, max_size=8), min_size=1, max_size=4
    )
)
def test_whatever_the_names_nothing_leaves_the_folder(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    outer = tmp_path_factory.mktemp("outer")
    (outer / "box").mkdir()
    members = [(zipfile.ZipInfo(f"{name}{i}.jpg"), b"data") for i, name in enumerate(names)]
    archive = zipped(outer / "box" / "part.zip", members)
    try:
        written = set(out(archive))
    except DataError:
        written = set()
    assert {path.name for path in outer.iterdir()} == {"box"}
    assert {path.name for path in (outer / "box").iterdir()} <= {"part.zip", "part"}
    assert set(tree(outer / "box")) == {"part.zip", *(f"part/{name}" for name in written)}
