"""HAM10000's download, against a small Dataverse on this machine that fails in every known way."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.data.download import CITATION, LICENCE, download_files
from dermalyze.data.manifest import Manifest, read_manifest, verify
from dermalyze.errors import DataError
from dermalyze.schema import Preparation, checked

CHUNK = 65536  # what is lost at most when a connection breaks
_random = random.Random(0)


def images(start: int, number: int) -> dict[str, bytes]:
    return {f"ISIC_{i:07d}.jpg": _random.randbytes(20_000) for i in range(start, start + number)}


def zipped(members: dict[str, bytes], folder: str = "") -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, data in members.items():
            archive.writestr(folder + name, data)
    return held.getvalue()


PART_1, PART_2, TEST = images(1, 20), images(21, 5), images(90, 2)
UPLOAD = b"lesion_id,image_id,dx\nHAM_1,ISIC_0000001,nv\n"
CONVERSION = b'lesion_id\timage_id\tdx\n"HAM_1"\t"ISIC_0000001"\t"nv"\n'
STORED = {
    3172585: zipped(PART_1),
    3172584: zipped(PART_2),
    4338392: UPLOAD,
    3855824: zipped(TEST, "ISIC2018_Task3_Test_Images/"),
    6924466: UPLOAD.replace(b"HAM", b"HAMTEST"),
}
BIG = 3172585
BIG_PATH = f"/api/access/datafile/{BIG}"
RECORD_PATH = "/api/datasets/:persistentId/?persistentId=doi:10.7910/DVN/DBW86T"
TRAINING = ("HAM10000_images_part_1.zip", "HAM10000_images_part_2.zip", "HAM10000_metadata")
PART_1_TREE = {f"HAM10000_images_part_1/{name}": data for name, data in PART_1.items()}
PART_2_TREE = {f"HAM10000_images_part_2/{name}": data for name, data in PART_2.items()}
TRAINING_TREE = {**PART_1_TREE, **PART_2_TREE, "HAM10000_metadata.csv": UPLOAD}


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def entry(number: int, filename: str, **values: Any) -> dict[str, Any]:
    """A file as the record tells of it."""
    data_file = {
        "id": number,
        "filename": filename,
        "contentType": "application/zip",
        "filesize": len(STORED[number]),
        "md5": md5(STORED[number]),
        "checksum": {"type": "MD5", "value": md5(STORED[number])},
        "tabularData": False,
        **values,
    }
    return {"label": filename, "restricted": False, "dataFile": data_file}


def table(number: int, name: str) -> dict[str, Any]:
    """A table that was converted: the size is the conversion's, the MD5 the upload's."""
    return entry(
        number,
        f"{name}.tab",
        contentType="text/tab-separated-values",
        filesize=len(CONVERSION),
        tabularData=True,
        originalFileFormat="text/csv",
        originalFileName=f"{name}.csv",
        originalFileSize=len(STORED[number]),
    )


def record() -> dict[str, Any]:
    files = [
        entry(BIG, "HAM10000_images_part_1.zip"),
        entry(3172584, "HAM10000_images_part_2.zip"),
        table(4338392, "HAM10000_metadata"),
        entry(3855824, "ISIC2018_Task3_Test_Images.zip"),
        table(6924466, "ISIC2018_Task3_Test_GroundTruth"),
    ]
    version = {"versionNumber": 4, "versionMinorNumber": 0, "files": files}
    return {"status": "OK", "data": {"id": 1, "latestVersion": version}}


Fault = Callable[["Answer", bytes, int], None]


class Dataverse(ThreadingHTTPServer):
    """Speaks the Dataverse's paths; `faults` holds what to do instead, request by request."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.record = record()
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.asked: list[tuple[str, str | None]] = []  # path and range of all requests
        self.at = f"http://127.0.0.1:{self.server_address[1]}"

    def ranges(self, path: str = BIG_PATH) -> list[str | None]:
        return [wanted for asked, wanted in self.asked if asked == path]


class Answer(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Dataverse

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        if self.headers["User-Agent"].startswith("python-requests"):  # as Harvard's firewall does
            return self.send(403, b"Forbidden")
        if self.path.startswith("/store/"):  # as in S3, where a file's address leads to
            path = self.path.removeprefix("/store").partition("&expires")[0]
            number = int(path.partition("?")[0].rpartition("/")[2])
            converted = number in (4338392, 6924466) and "format=original" not in path
            data = CONVERSION if converted else STORED[number]
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            fault = self.server.faults[path].popleft() if self.server.faults[path] else body
            return fault(self, data, start)
        self.server.asked.append((self.path, wanted))
        if self.path.startswith("/api/access/datafile/"):
            address = f"/store{self.path}&expires=60"
            return self.send(303, b"", Location=address)
        if self.server.faults[self.path]:
            return self.server.faults[self.path].popleft()(self, b"", 0)
        if self.path == RECORD_PATH:
            return self.send(200, json.dumps(self.server.record).encode())
        return self.send(404, b"")

    def send(self, status: int, data: bytes, **headers: str) -> None:
        self.head(status, len(data), **headers)
        self.wfile.write(data)

    def head(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


def body(answer: Answer, data: bytes, start: int) -> None:
    """The right answer."""
    if not start:
        return answer.send(200, data)
    if start >= len(data):
        return answer.send(416, b"", Content_Range=f"bytes */{len(data)}")
    told = f"bytes {start}-{len(data) - 1}/{len(data)}"
    return answer.send(206, data[start:], Content_Range=told)


def breaks_after(sent: int) -> Fault:
    def fault(answer: Answer, data: bytes, start: int) -> None:
        told = f"bytes {start}-{len(data) - 1}/{len(data)}"
        answer.head(206 if start else 200, len(data) - start, Content_Range=told)
        answer.wfile.write(data[start : start + sent])
        answer.wfile.flush()
        answer.connection.shutdown(socket.SHUT_RDWR)
        answer.close_connection = True

    return fault


def says(status: int, data: bytes = b"", **headers: str) -> Fault:
    return lambda answer, _data, _start: answer.send(status, data, **headers)


def ignores_range(answer: Answer, data: bytes, _start: int) -> None:
    answer.send(200, data)


def wrong_range(answer: Answer, data: bytes, start: int) -> None:
    """Tells truly that it sends other bytes than were asked for."""
    start -= 7
    told = f"bytes {start}-{len(data) - 1}/{len(data)}"
    answer.send(206, data[start:], Content_Range=told)


def range_of_another_file(answer: Answer, data: bytes, start: int) -> None:
    told = f"bytes {start}-{len(data) + 4}/{len(data) + 5}"
    answer.send(206, data[start:] + b"other", Content_Range=told)


def lying_range(answer: Answer, data: bytes, start: int) -> None:
    """Says that it sends what was asked for, and sends the file's first bytes."""
    told = f"bytes {start}-{len(data) - 1}/{len(data)}"
    answer.send(206, data[: len(data) - start], Content_Range=told)


def bare_206(answer: Answer, data: bytes, start: int) -> None:
    answer.send(206, data[start:])


def wrong_bytes(answer: Answer, data: bytes, _start: int) -> None:
    answer.send(200, data[:100] + bytes([data[100] ^ 1]) + data[101:])


def endless(answer: Answer, data: bytes, _start: int) -> None:
    """Tells no length and does not stop at the end of the file."""
    answer.head(200, None)
    answer.wfile.write(data + bytes(10 * CHUNK))
    answer.close_connection = True


def ends_early_without_a_length(answer: Answer, data: bytes, _start: int) -> None:
    answer.head(200, None)
    answer.wfile.write(data[:100_000])
    answer.close_connection = True


@pytest.fixture
def dataverse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dataverse]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Dataverse() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited between attempts; none of them pass."""
    waited: list[float] = []
    monkeypatch.setattr("dermalyze.data.fetch.time.sleep", waited.append)
    return waited


def settings(root: Path, dataverse: Dataverse, **changes: Any) -> dict[str, Any]:
    return {
        "root": str(root),
        "server": dataverse.at,
        "files": TRAINING,
        "attempts": 4,
        "backoff": 0.5,
        "longest_wait": 60.0,
        "timeout": 5.0,
        "keep_archives": False,
        "max_files": 100,
        "max_bytes": 10**7,
        "max_ratio": 20.0,
        **changes,
    }


def download(root: Path, dataverse: Dataverse, **changes: Any) -> Manifest:
    return download_files(**settings(root, dataverse, **changes))


def refusal(root: Path, dataverse: Dataverse, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        download(root, dataverse, **changes)
    return str(caught.value)


def data_in(root: Path) -> dict[str, bytes]:
    """Path and bytes of all files but the manifest, the notices and the lock."""
    others = {"manifest.json", "LICENSE-HAM10000.txt", "CITATION-HAM10000.txt", ".download.lock"}
    paths = (path for path in root.rglob("*") if path.is_file() and path.name not in others)
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def part(root: Path, data: bytes) -> Path:
    """What an earlier attempt has left of the big archive."""
    root.mkdir(exist_ok=True)
    path = root / "HAM10000_images_part_1.zip.part"
    path.write_bytes(data)
    return path


# What comes


def test_everything_comes_is_checked_and_unpacked(tmp_path: Path, dataverse: Dataverse) -> None:
    manifest = download(tmp_path / "new" / "ham10000", dataverse)
    root = tmp_path / "new" / "ham10000"
    assert data_in(root) == TRAINING_TREE
    assert manifest == read_manifest(root)
    assert verify(root=str(root)) == 20 + 5 + 1
    paths = [BIG_PATH, "/api/access/datafile/3172584"]
    assert dataverse.asked == [
        (RECORD_PATH, None),
        *((path, None) for path in paths),
        ("/api/access/datafile/4338392?format=original", None),
    ]


def test_the_manifest_tells_where_everything_is_from(tmp_path: Path, dataverse: Dataverse) -> None:
    download(tmp_path, dataverse)
    told = json.loads((tmp_path / "manifest.json").read_text())
    assert told["doi"] == "doi:10.7910/DVN/DBW86T"
    first, second, metadata = told["files"]
    assert {key: first[key] for key in first if key != "unpacked"} == {
        "name": "HAM10000_images_part_1.zip",
        "record_name": "HAM10000_images_part_1.zip",
        "version": "4.0",
        "url": dataverse.at + BIG_PATH,
        "size": len(STORED[BIG]),
        "checksum": {"type": "MD5", "value": md5(STORED[BIG])},
    }
    assert {**first["unpacked"], **second["unpacked"]} == {
        path: hashlib.sha256(data).hexdigest()
        for path, data in {**PART_1_TREE, **PART_2_TREE}.items()
    }
    # The record's name is the conversion's, its checksum the upload's; the upload was taken.
    assert metadata == {
        "name": "HAM10000_metadata.csv",
        "record_name": "HAM10000_metadata.tab",
        "version": "4.0",
        "url": dataverse.at + "/api/access/datafile/4338392?format=original",
        "size": len(UPLOAD),
        "checksum": {"type": "MD5", "value": md5(UPLOAD)},
        "unpacked": {},
    }


def test_the_manifest_is_the_same_wherever_and_whenever(
    tmp_path: Path, dataverse: Dataverse, waits: list[float]
) -> None:
    download(tmp_path / "a", dataverse)
    dataverse.faults[BIG_PATH] += [breaks_after(150_000), says(503)]
    download(tmp_path / "b", dataverse)
    assert len(waits) == 2
    assert (tmp_path / "a/manifest.json").read_bytes() == (
        tmp_path / "b/manifest.json"
    ).read_bytes()


def test_the_test_set_goes_into_a_folder_of_its_own(tmp_path: Path, dataverse: Dataverse) -> None:
    files = ("ISIC2018_Task3_Test_Images.zip", "ISIC2018_Task3_Test_GroundTruth")
    download(tmp_path, dataverse, files=files)
    assert data_in(tmp_path) == {
        **{f"ISIC2018_Task3_Test_Images/{name}": data for name, data in TEST.items()},
        "ISIC2018_Task3_Test_GroundTruth.csv": STORED[6924466],
    }


def test_the_record_may_leave_endings_out(tmp_path: Path, dataverse: Dataverse) -> None:
    files = dataverse.record["data"]["latestVersion"]["files"]
    files[3:] = [
        entry(3855824, "ISIC2018_Task3_Test_Images"),
        entry(6924466, "ISIC2018_Task3_Test_GroundTruth"),
    ]
    files[4]["dataFile"]["checksum"]["value"] = md5(CONVERSION)
    files[4]["dataFile"]["filesize"] = len(CONVERSION)
    names = ("ISIC2018_Task3_Test_Images.zip", "ISIC2018_Task3_Test_GroundTruth.csv")
    first = download(tmp_path, dataverse, files=names)
    assert data_in(tmp_path) == {
        **{f"ISIC2018_Task3_Test_Images/{name}": data for name, data in TEST.items()},
        "ISIC2018_Task3_Test_GroundTruth.csv": CONVERSION,
    }
    dataverse.asked.clear()
    assert download(tmp_path, dataverse, files=names) == first
    assert dataverse.asked == []


def composed(command: str, *overrides: str) -> dict[str, Any]:
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return checked(compose(command, list(overrides)), Preparation)


def test_the_option_says_which_files_are_fetched_and_they_are_read(
    tmp_path: Path, dataverse: Dataverse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the Dataverse has ISIC 2018: the ground truth in HAM10000's columns, converted to tabs."""
    truth = (
        b"lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"
        b"HAMTEST_1,ISIC_0000090,mel,histo,45,male,back,vidir_modern\n"
        b"HAMTEST_2,ISIC_0000091,nv,histo,50,female,face,rosendahl\n"
    )
    monkeypatch.setitem(STORED, 6924466, truth)
    dataverse.record = record()
    root, server = tmp_path / "isic", f"download.server={dataverse.at}"
    config = composed("prepare", "data=isic2018_test", f"data.root={root}", server)
    instantiate(config["download"], _convert_="all")
    assert [path for path, _ in dataverse.asked] == [
        RECORD_PATH,
        "/api/access/datafile/3855824",
        "/api/access/datafile/6924466?format=original",
    ]
    table = instantiate(config["data"]["source"], _convert_="all")
    assert table.frame[["image_id", "lesion_id", "dx"]].to_numpy().tolist() == [
        ["ISIC_0000090", "HAMTEST_1", "mel"],
        ["ISIC_0000091", "HAMTEST_2", "nv"],
    ]
    assert table.missing_images == ()


def test_options_with_nothing_to_download_name_nothing() -> None:
    own = ("data=folder", "data.root=mine", "data.source.classes=[a,b]")
    for overrides in (own, ("data=synthetic",)):
        config = composed("prepare", *overrides)
        assert config["data"]["downloads"] == config["download"]["files"] == []
    assert composed("prepare")["download"]["files"] == list(TRAINING)


def test_licence_and_citation_are_shown_and_lie_beside_the_data(
    tmp_path: Path, dataverse: Dataverse, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    download(tmp_path, dataverse, files=("HAM10000_metadata",))
    assert (tmp_path / "LICENSE-HAM10000.txt").read_text() == LICENCE
    assert (tmp_path / "CITATION-HAM10000.txt").read_text() == CITATION
    for words in ("CC BY-NC 4.0", "Sci. Data 5, 180161 (2018)", "doi:10.1038/sdata.2018.161"):
        assert words in caplog.text


def test_archives_are_kept_when_asked_for(tmp_path: Path, dataverse: Dataverse) -> None:
    download(tmp_path, dataverse, keep_archives=True)
    assert (tmp_path / "HAM10000_images_part_1.zip").read_bytes() == STORED[BIG]
    assert len(data_in(tmp_path)) == len(TRAINING_TREE) + 2


@pytest.mark.parametrize("kind", ["SHA-1", "SHA-256", "SHA-512"])
def test_other_checksums_than_md5_are_used(tmp_path: Path, dataverse: Dataverse, kind: str) -> None:
    value = hashlib.new(kind.replace("-", "").lower(), UPLOAD).hexdigest().upper()
    data_file = dataverse.record["data"]["latestVersion"]["files"][2]["dataFile"]
    data_file["checksum"] = {"type": kind, "value": value}
    assert (
        download(tmp_path, dataverse, files=("HAM10000_metadata",)).files[0].checksum.type == kind
    )
    data_file["checksum"]["value"] = value.replace(value[0], "0" if value[0] != "0" else "1")
    assert f"{kind} {value.lower()}" in refusal(
        tmp_path / "other", dataverse, files=("HAM10000_metadata",)
    )


# What is there already


def test_what_is_there_is_not_asked_for_again(tmp_path: Path, dataverse: Dataverse) -> None:
    first = download(tmp_path, dataverse)
    dataverse.asked.clear()
    assert download(tmp_path, dataverse) == first
    assert dataverse.asked == []


def test_only_what_is_missing_is_brought_back(tmp_path: Path, dataverse: Dataverse) -> None:
    download(tmp_path, dataverse)
    (tmp_path / "HAM10000_images_part_2/ISIC_0000023.jpg").unlink()
    dataverse.asked.clear()
    download(tmp_path, dataverse)
    assert dataverse.asked == [(RECORD_PATH, None), ("/api/access/datafile/3172584", None)]
    assert data_in(tmp_path) == TRAINING_TREE


def test_more_files_can_be_asked_for_later(tmp_path: Path, dataverse: Dataverse) -> None:
    download(tmp_path, dataverse, files=TRAINING[1:])
    dataverse.asked.clear()
    manifest = download(tmp_path, dataverse)
    assert dataverse.asked == [(RECORD_PATH, None), (BIG_PATH, None)]
    assert data_in(tmp_path) == TRAINING_TREE
    assert len(manifest.files) == 3


def test_an_archive_from_a_browser_is_checked_taken_and_left(
    tmp_path: Path, dataverse: Dataverse
) -> None:
    (tmp_path / "HAM10000_images_part_1.zip").write_bytes(STORED[BIG])
    download(tmp_path, dataverse)
    assert dataverse.ranges() == []
    assert data_in(tmp_path) == {**TRAINING_TREE, "HAM10000_images_part_1.zip": STORED[BIG]}


def test_a_foreign_file_of_the_name_is_never_written_over(
    tmp_path: Path, dataverse: Dataverse
) -> None:
    (tmp_path / "HAM10000_metadata.csv").write_bytes(b"my own table")
    message = refusal(tmp_path, dataverse, files=("HAM10000_metadata",))
    assert f"MD5 {md5(b'my own table')}, expected {md5(UPLOAD)}" in message
    assert "move it away" in message
    assert data_in(tmp_path) == {"HAM10000_metadata.csv": b"my own table"}


def test_a_changed_image_stops_the_download_before_it_starts(
    tmp_path: Path, dataverse: Dataverse
) -> None:
    download(tmp_path, dataverse)
    changed = tmp_path / "HAM10000_images_part_1/ISIC_0000003.jpg"
    changed.write_bytes(b"painted over")
    (tmp_path / "HAM10000_metadata.csv").unlink()
    dataverse.asked.clear()
    message = refusal(tmp_path, dataverse)
    assert "differ from their checksum: 1" in message
    assert "HAM10000_images_part_1/ISIC_0000003.jpg" in message
    assert dataverse.asked == []
    assert changed.read_bytes() == b"painted over"


# What breaks


def test_a_broken_download_goes_on_where_it_stopped(
    tmp_path: Path, dataverse: Dataverse, waits: list[float]
) -> None:
    dataverse.faults[BIG_PATH] += [breaks_after(200_000), breaks_after(100_000)]
    download(tmp_path, dataverse)
    assert data_in(tmp_path) == TRAINING_TREE
    first, second, third = dataverse.ranges()
    assert first is None
    assert second == f"bytes={200_000 // CHUNK * CHUNK}-"
    assert third == f"bytes={200_000 // CHUNK * CHUNK + 100_000 // CHUNK * CHUNK}-"
    assert waits == [0.5, 1.0]


def test_a_later_call_goes_on_where_the_last_one_gave_up(
    tmp_path: Path, dataverse: Dataverse
) -> None:
    dataverse.faults[BIG_PATH].append(breaks_after(3 * CHUNK))
    message = refusal(tmp_path, dataverse, attempts=1)
    assert "given up after 1 attempts" in message
    assert "what has arrived is kept" in message
    assert data_in(tmp_path) == {"HAM10000_images_part_1.zip.part": STORED[BIG][: 3 * CHUNK]}
    download(tmp_path, dataverse, attempts=1)
    assert dataverse.ranges() == [None, f"bytes={3 * CHUNK}-"]
    assert data_in(tmp_path) == TRAINING_TREE


def test_a_killed_process_loses_nothing_that_arrived(tmp_path: Path, dataverse: Dataverse) -> None:
    def hangs(answer: Answer, data: bytes, _start: int) -> None:
        answer.head(200, len(data))
        answer.wfile.write(data[: 4 * CHUNK])
        answer.wfile.flush()
        time.sleep(30)

    dataverse.faults[BIG_PATH].append(hangs)
    values = settings(tmp_path, dataverse, timeout=30.0)
    script = f"from dermalyze.data.download import *; download_files(**{values!r})"
    child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    arrived = tmp_path / "HAM10000_images_part_1.zip.part"
    while child.poll() is None and not (arrived.exists() and arrived.stat().st_size > 2 * CHUNK):
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    size = arrived.stat().st_size
    download(tmp_path, dataverse)
    assert dataverse.ranges() == [None, f"bytes={size}-"]
    assert data_in(tmp_path) == TRAINING_TREE


def test_a_download_killed_before_its_check_is_only_checked(
    tmp_path: Path, dataverse: Dataverse
) -> None:
    part(tmp_path, STORED[BIG])
    download(tmp_path, dataverse)
    assert dataverse.ranges() == []
    assert data_in(tmp_path) == TRAINING_TREE


@pytest.mark.parametrize(
    ("fault", "ranges"),
    [
        (ignores_range, ["bytes=100000-"]),
        (wrong_range, ["bytes=100000-", None]),
        (range_of_another_file, ["bytes=100000-", None]),
        (bare_206, ["bytes=100000-", None]),
        (says(416, Content_Range="bytes */5"), ["bytes=100000-", None]),
    ],
)
def test_a_server_that_gets_ranges_wrong_gives_the_whole_file(
    tmp_path: Path, dataverse: Dataverse, waits: list[float], fault: Fault, ranges: list[str | None]
) -> None:
    part(tmp_path, STORED[BIG][:100_000])
    dataverse.faults[BIG_PATH].append(fault)
    download(tmp_path, dataverse)
    assert dataverse.ranges() == ranges
    assert data_in(tmp_path) == TRAINING_TREE


@pytest.mark.parametrize("fault", [bare_206, says(416), says(202), says(204)])
def test_an_answer_without_the_file_is_not_taken_for_it(
    tmp_path: Path, dataverse: Dataverse, waits: list[float], fault: Fault
) -> None:
    dataverse.faults[BIG_PATH] += [fault, fault]
    download(tmp_path, dataverse)
    assert dataverse.ranges() == [None, None, None]
    assert data_in(tmp_path) == TRAINING_TREE


def test_wrong_bytes_are_told_and_removed(tmp_path: Path, dataverse: Dataverse) -> None:
    dataverse.faults[BIG_PATH].append(wrong_bytes)
    message = refusal(tmp_path, dataverse)
    good = STORED[BIG]
    found = md5(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    assert f"MD5 {found} of {len(good)} bytes, expected {md5(good)} of {len(good)}" in message
    assert "It was removed: try again" in message
    assert data_in(tmp_path) == {}
    download(tmp_path, dataverse)
    assert data_in(tmp_path) == TRAINING_TREE


def test_a_range_with_other_bytes_is_found_by_the_checksum_of_the_whole(
    tmp_path: Path, dataverse: Dataverse
) -> None:
    part(tmp_path, STORED[BIG][:100_000])
    dataverse.faults[BIG_PATH].append(lying_range)
    found = md5(STORED[BIG][:100_000] + STORED[BIG][: len(STORED[BIG]) - 100_000])
    assert f"MD5 {found}" in refusal(tmp_path, dataverse)
    assert data_in(tmp_path) == {}


def test_the_remains_of_another_file_are_found_by_the_checksum(
    tmp_path: Path, dataverse: Dataverse
) -> None:
    part(tmp_path, bytes(100_000))
    assert "what came is another file" in refusal(tmp_path, dataverse)
    assert data_in(tmp_path) == {}


def test_a_page_in_place_of_the_file_costs_nothing_that_arrived(
    tmp_path: Path, dataverse: Dataverse, waits: list[float]
) -> None:
    arrived = part(tmp_path, STORED[BIG][:100_000])
    page = says(200, b"<html>please log in</html>", Content_Type="text/html")
    dataverse.faults[BIG_PATH] += [page, page]
    message = refusal(tmp_path, dataverse, attempts=2)
    assert f"sends 26 bytes (text/html) in place of {len(STORED[BIG])}" in message
    assert arrived.read_bytes() == STORED[BIG][:100_000]


def test_a_server_that_does_not_stop_is_stopped(
    tmp_path: Path, dataverse: Dataverse, waits: list[float]
) -> None:
    dataverse.faults[BIG_PATH] += [endless, endless]
    message = refusal(tmp_path, dataverse, attempts=2)
    assert f"sends more than the {len(STORED[BIG])} bytes of the record" in message
    assert data_in(tmp_path) == {}


def test_an_early_end_without_a_length_is_noticed(
    tmp_path: Path, dataverse: Dataverse, waits: list[float]
) -> None:
    dataverse.faults[BIG_PATH].append(ends_early_without_a_length)
    download(tmp_path, dataverse)
    assert dataverse.ranges() == [None, "bytes=100000-"]
    assert data_in(tmp_path) == TRAINING_TREE


@pytest.mark.parametrize("seed", range(12))
def test_whatever_goes_wrong_no_wrong_byte_is_taken(
    tmp_path: Path, dataverse: Dataverse, waits: list[float], seed: int
) -> None:
    chance = random.Random(seed)
    faults = [
        *(ignores_range, wrong_range, range_of_another_file, lying_range, bare_206, wrong_bytes),
        *(endless, ends_early_without_a_length, breaks_after(70_000), breaks_after(0)),
        *(says(416), says(202), says(503), says(200, b"<html>")),
    ]
    if seed % 2:
        part(tmp_path, STORED[BIG][: chance.randrange(len(STORED[BIG]))])
    dataverse.faults[BIG_PATH] += chance.choices(faults, k=5)
    for _ in range(6):
        try:
            download(tmp_path, dataverse, attempts=3)
            break
        except DataError:
            there = data_in(tmp_path)
            assert set(there) <= {"HAM10000_images_part_1.zip.part"}
            assert read_manifest(tmp_path) is None
    assert data_in(tmp_path) == TRAINING_TREE


# What must be waited for


def test_waiting_is_as_long_as_asked_and_doubles_otherwise(
    tmp_path: Path, dataverse: Dataverse, waits: list[float]
) -> None:
    dataverse.faults[RECORD_PATH] += [says(429, Retry_After="7"), says(503)]
    dataverse.faults[BIG_PATH] += [says(503), says(429, Retry_After="3"), says(500)]
    download(tmp_path, dataverse)
    assert waits == [7.0, 1.0, 0.5, 3.0, 2.0]
    assert data_in(tmp_path) == TRAINING_TREE


def test_waiting_until_a_date_and_no_longer_than_the_limit(
    tmp_path: Path, dataverse: Dataverse, waits: list[float]
) -> None:
    date = formatdate(time.time() + 20, usegmt=True)
    dataverse.faults[BIG_PATH] += [says(503, Retry_After=date), says(503), says(503)]
    download(tmp_path, dataverse, backoff=40.0)
    assert 17 <= waits[0] <= 20
    assert waits[1:] == [60.0, 60.0]


def test_a_retry_after_that_says_nothing_is_not_heeded(
    tmp_path: Path, dataverse: Dataverse, waits: list[float]
) -> None:
    dataverse.faults[BIG_PATH].append(says(429, Retry_After="soon"))
    download(tmp_path, dataverse)
    assert waits == [0.5]


def test_a_server_that_asks_for_long_peace_gets_it(
    tmp_path: Path, dataverse: Dataverse, waits: list[float]
) -> None:
    arrived = part(tmp_path, STORED[BIG][:100_000])
    dataverse.faults[BIG_PATH].append(says(429, Retry_After="3600"))
    assert "answers 429 Too Many Requests and asks to be left alone for 3600 s" in refusal(
        tmp_path, dataverse
    )
    assert waits == []
    assert arrived.read_bytes() == STORED[BIG][:100_000]


def test_attempts_end(tmp_path: Path, dataverse: Dataverse, waits: list[float]) -> None:
    dataverse.faults[RECORD_PATH] += [says(503)] * 4
    message = refusal(tmp_path, dataverse)
    assert "answers 503 Service Unavailable; given up after 4 attempts" in message
    assert dataverse.asked == [(RECORD_PATH, None)] * 4
    assert waits == [0.5, 1.0, 2.0]


def test_a_server_that_is_not_there_or_silent_is_told(
    tmp_path: Path, dataverse: Dataverse, waits: list[float]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    message = refusal(tmp_path, dataverse, server=f"http://127.0.0.1:{port}")
    assert "Connection refused" in message
    assert waits == [0.5, 1.0, 2.0]

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        message = refusal(
            tmp_path, dataverse, server=f"http://127.0.0.1:{port}", timeout=0.1, attempts=2
        )
    assert "Read timed out" in message
    assert "given up after 2 attempts" in message


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_is_not_argued_with(
    tmp_path: Path, dataverse: Dataverse, waits: list[float], status: int
) -> None:
    dataverse.faults[BIG_PATH].append(says(status))
    message = refusal(tmp_path, dataverse)
    assert f"{BIG_PATH}: the server answers {status} " in message
    assert "archives that it saves into data.root are checked and taken" in message
    assert waits == []


# What the record says


def test_files_that_cannot_be_had_are_told_together(tmp_path: Path, dataverse: Dataverse) -> None:
    files = dataverse.record["data"]["latestVersion"]["files"]
    files[0]["restricted"] = True
    files[1]["dataFile"]["restricted"] = True
    del files[2]["dataFile"]["checksum"]
    files[3]["dataFile"]["checksum"] = {"type": "CRC", "value": "1"}
    files.append(files[4])
    names = (
        *TRAINING,
        "ISIC2018_Task3_Test_Images.zip",
        "ISIC2018_Task3_Test_GroundTruth",
        "HAM.zip",
    )
    message = refusal(tmp_path, dataverse, files=names)
    assert "version 4.0, cannot be used" in message
    assert "HAM10000_images_part_1.zip: restricted" in message
    assert "HAM10000_images_part_2.zip: restricted" in message
    assert "HAM10000_metadata: checksum None" in message
    assert "ISIC2018_Task3_Test_Images.zip: checksum {'type': 'CRC', 'value': '1'}" in message
    assert "ISIC2018_Task3_Test_GroundTruth: 2 files of this name" in message
    assert "HAM.zip: 0 files of this name." in message
    assert dataverse.asked == [(RECORD_PATH, None)]
    assert data_in(tmp_path) == {}


def test_a_misspelt_file_gets_the_nearest_name(tmp_path: Path, dataverse: Dataverse) -> None:
    message = refusal(tmp_path, dataverse, files=("HAM10000_image_part_1.zip",))
    assert "Did you mean 'HAM10000_images_part_1.zip'?" in message


@pytest.mark.parametrize(
    "answer",
    [b"<html></html>", b"[]", b'{"status": "OK", "data": {}}', b'{"data": {"latestVersion": 3}}'],
)
def test_something_else_than_a_record_is_told(
    tmp_path: Path, dataverse: Dataverse, answer: bytes
) -> None:
    dataverse.faults[RECORD_PATH].append(says(200, answer))
    assert "no record of a dataset came" in refusal(tmp_path, dataverse)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"originalFileName": None}, "HAM10000_metadata.csv"),
        ({"filename": "HAM10000_metadata", "originalFileName": None}, "HAM10000_metadata.csv"),
        ({"originalFileName": "HAM10000_metadata"}, "HAM10000_metadata.csv"),
        ({"originalFileName": "HAM10000_metadata.CSV"}, "HAM10000_metadata.CSV"),
        ({"originalFileName": "HAM10000_metadata./../x"}, "HAM10000_metadata.csv"),
        ({"originalFileName": "HAM10000_metadata.\\..\\x"}, "HAM10000_metadata.csv"),
        ({"tabularData": None, "originalFileSize": None}, "HAM10000_metadata.csv"),
    ],
)
def test_records_of_older_and_odd_dataverses(
    tmp_path: Path, dataverse: Dataverse, changes: dict[str, str | None], name: str
) -> None:
    data_file = dataverse.record["data"]["latestVersion"]["files"][2]["dataFile"]
    for key, value in changes.items():
        if value is None:
            del data_file[key]
        else:
            data_file[key] = value
    download(tmp_path, dataverse, files=("HAM10000_metadata",))
    assert data_in(tmp_path) == {name: UPLOAD}


def test_a_table_that_was_not_converted_is_taken_as_it_is(
    tmp_path: Path, dataverse: Dataverse
) -> None:
    files = dataverse.record["data"]["latestVersion"]["files"]
    files[2] = entry(4338392, "HAM10000_metadata")
    files[2]["dataFile"]["checksum"]["value"] = md5(CONVERSION)
    files[2]["dataFile"]["filesize"] = len(CONVERSION)
    download(tmp_path, dataverse, files=("HAM10000_metadata",))
    assert data_in(tmp_path) == {"HAM10000_metadata": CONVERSION}


# The disk and other processes


def test_a_disk_too_small_is_found_before_the_download(
    tmp_path: Path, dataverse: Dataverse
) -> None:
    data_file = dataverse.record["data"]["latestVersion"]["files"][0]["dataFile"]
    data_file["filesize"] = 10**18
    message = refusal(tmp_path, dataverse)
    assert "need 2000000000.00 GB and the disk has " in message
    assert dataverse.asked == [(RECORD_PATH, None)]


def test_sizes_and_times_are_told(
    tmp_path: Path, dataverse: Dataverse, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    part(tmp_path, STORED[BIG][:100_000])
    remaining = sum(len(STORED[i]) for i in (BIG, 3172584, 4338392)) - 100_000
    download(tmp_path, dataverse)
    assert f"3 files, {remaining / 1e9:.2f} GB to download into {tmp_path}" in caplog.text


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, dataverse: Dataverse) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be written" in refusal(tmp_path / "file" / "ham10000", dataverse)


def test_a_second_process_waits_and_downloads_nothing(
    tmp_path: Path, dataverse: Dataverse, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    waiting = threading.Event()

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting for another process" in record.getMessage():
                waiting.set()

    def only_when_the_other_waits(answer: Answer, data: bytes, start: int) -> None:
        assert waiting.wait(10)
        body(answer, data, start)

    dataverse.faults[BIG_PATH].append(only_when_the_other_waits)
    handler = Notice()
    logging.getLogger("dermalyze").addHandler(handler)
    results: list[Manifest] = []
    threads = [
        threading.Thread(target=lambda: results.append(download(tmp_path, dataverse)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    logging.getLogger("dermalyze").removeHandler(handler)
    assert results[0] == results[1]
    assert len(dataverse.asked) == 4
    assert data_in(tmp_path) == TRAINING_TREE


def test_a_whole_folder_needs_no_lock_and_may_be_read_only(
    tmp_path: Path, dataverse: Dataverse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    download(tmp_path, dataverse)
    monkeypatch.setattr("dermalyze.data.download.FileLock", read_only)
    assert len(download(tmp_path, dataverse).files) == 3
    (tmp_path / "HAM10000_metadata.csv").unlink()
    assert "Read-only file system" in refusal(tmp_path, dataverse)


# Archives that must not be unpacked


def test_an_unsafe_archive_is_kept_and_nothing_of_it_written(
    tmp_path: Path, dataverse: Dataverse, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = zipped({"../ISIC_1.jpg": b"out"})
    monkeypatch.setitem(STORED, BIG, bad)
    dataverse.record = record()
    root = tmp_path / "ham10000"
    assert "leads out of the folder" in refusal(root, dataverse)
    assert data_in(tmp_path) == {"ham10000/HAM10000_images_part_1.zip": bad}
    assert read_manifest(root) is None


def test_the_limits_of_unpacking_are_those_given(tmp_path: Path, dataverse: Dataverse) -> None:
    assert "20 members, over the limit of 19" in refusal(tmp_path, dataverse, max_files=19)
    assert "over the limit of 399999" in refusal(tmp_path, dataverse, max_bytes=399_999)
    assert dataverse.ranges() == [None]
    download(tmp_path, dataverse, max_files=20, max_bytes=400_000)
    assert dataverse.ranges() == [None]


# Checking afterwards (an image that decodes and is another one than was downloaded)


def test_verify_names_all_that_is_missing_or_changed(tmp_path: Path, dataverse: Dataverse) -> None:
    download(tmp_path, dataverse)
    images = tmp_path / "HAM10000_images_part_1"
    one, two = (images / f"ISIC_000000{i}.jpg" for i in (1, 2))
    two.write_bytes(one.read_bytes())  # a good picture, of another lesion
    (tmp_path / "HAM10000_metadata.csv").write_bytes(UPLOAD.replace(b"nv", b"df"))
    (images / "ISIC_0000007.jpg").unlink()
    with pytest.raises(DataError) as caught:
        verify(root=str(tmp_path))
    missing, _, changed = str(caught.value).partition("differ from their checksum: 2")
    assert "missing: 1" in missing
    assert "HAM10000_images_part_1/ISIC_0000007.jpg" in missing
    assert "HAM10000_images_part_1/ISIC_0000002.jpg" in changed
    assert "HAM10000_metadata.csv" in changed
    assert "ISIC_0000001" not in str(caught.value)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "missing: 1"),
        (lambda path: path.write_bytes(b""), "differ from their checksum: 1"),
    ],
)
def test_verify_needs_only_one_fault(
    tmp_path: Path, dataverse: Dataverse, harm: Callable[[Path], object], said: str
) -> None:
    download(tmp_path, dataverse)
    harm(tmp_path / "HAM10000_images_part_2/ISIC_0000025.jpg")
    with pytest.raises(DataError, match=said):
        verify(root=str(tmp_path))


def test_verify_without_a_manifest_or_with_a_foreign_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is none"):
        verify(root=str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(DataError, match="cannot be read as a manifest"):
        verify(root=str(tmp_path))
