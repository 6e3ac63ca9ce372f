"""The benchmark times what it says, in turns, and its ratios are those of its seconds."""

from __future__ import annotations

import gc
import json
import mmap
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dermalyze.benchmarks import cache, input, memory, parts, startup, step, tracking
from dermalyze.benchmarks.cache import CACHE, LOOP, rates, write_photographs
from dermalyze.benchmarks.timing import Report, in_turns, spread, spread_words
from dermalyze.data import cache_build
from dermalyze.errors import ConfigError


def test_peers_take_turns_and_the_first_turn_is_not_counted(monkeypatch):
    """On a clock that only the peers move: a by 2 s, then 3 s and so on, b by 10 s each time."""
    now, happened = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def a() -> None:
        happened.append("a")
        now[0] += 1 + happened.count("a")

    def b() -> None:
        happened.append("b")
        now[0] += 10

    def between() -> None:
        happened.append("-")
        now[0] += 1000  # untimed

    seconds = in_turns({"a": a, "b": b}, repeats=3, title="", between=between)
    assert "".join(happened) == "-a-b-a-b-a-b-a-b"
    assert seconds == {"a": [3, 4, 5], "b": [10, 10, 10]}


def test_the_spread_is_median_and_extremes_and_a_single_run_has_none():
    row = spread([5.0, 1.0, 2.0])
    assert row == {"median": 2.0, "fastest": 1.0, "slowest": 5.0}
    assert spread_words(row, digits=1) == "1.0 to 5.0 s"
    assert spread([5.0]) == {"median": 5.0}
    assert spread_words(spread([5.0]), digits=1) == ""


def test_rates_and_ratios_by_hand():
    seconds = {LOOP: [4.0, 8.0, 2.0], CACHE: [1.0, 1.0, 3.0]}
    loop, built = rates(seconds, images=200, cores={LOOP: 1, CACHE: 2})
    assert (loop["what"], built["what"]) == (LOOP, CACHE)
    assert (loop["images_per_second"], built["images_per_second"]) == (50.0, 200.0)
    assert built["images_per_second_and_core"] == 100.0
    assert (loop["ratio"], built["ratio"]) == (1.0, 4.0)
    assert loop["seconds_for_ham10000"] == pytest.approx(200.3)
    assert built["seconds_for_ham10000"] == pytest.approx(50.075)


def test_the_files_are_as_large_as_photographs_and_no_two_alike(tmp_path: Path):
    paths = write_photographs(tmp_path, images=9, width=600, height=450, quality=90, noise=12.0)
    assert len({path.read_bytes() for path in paths}) == 9
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (600, 450)
            assert np.asarray(image.convert("L")).std() > 12
    mean_size = np.mean([path.stat().st_size for path in paths])
    assert 150_000 < mean_size < 280_000


def test_every_counted_build_decodes_every_file(monkeypatch: pytest.MonkeyPatch):
    decoded: list[str] = []
    decode = cache_build.decode

    def counted(path, spec):
        decoded.append(path)
        return decode(path, spec)

    monkeypatch.setattr(cache_build, "decode", counted)
    report = cache.measure(
        repeats=2, images=5, width=64, height=48, quality=90, noise=12.0, image_size=32
    )
    assert len(decoded) == 3 * 5
    assert report.numbers["images"] == 5
    loop, built = report.numbers["cache"]
    assert built["ratio"] == loop["median"] / built["median"]
    assert "5 JPEG files of 64 x 48" in report.title
    assert [line.startswith((LOOP, CACHE)) for line in report.table] == [False, True, True]


def test_shares_of_tracking_by_hand():
    """Medians of three runs, each part its own; 2 epochs of 50 s."""
    runs = [
        {"begin": 1.0, "epochs": 0.2, "end": 0.5, "cpu": 1.0},
        {"begin": 3.0, "epochs": 0.4, "end": 0.1, "cpu": 3.0},
        {"begin": 2.0, "epochs": 0.6, "end": 0.3, "cpu": 2.0},
    ]
    (row,) = tracking.shares({"kind": runs}, epochs=2, training=100.0)
    assert row["what"] == "kind"
    assert (row["begin"], row["epoch"], row["end"]) == (2.0, 0.2, 0.3)
    assert row["total"] == pytest.approx(2.9)  # of 1.7, 3.5 and 2.9
    assert row["share"] == pytest.approx(0.029)
    assert (row["cpu"], row["cpu_share"]) == (2.0, 0.02)


@pytest.mark.thorough
def test_tracking_is_measured_on_runs_that_are_recorded():
    report = tracking.measure(
        repeats=1, epochs=2, seconds_per_epoch=100.0, checkpoint_megabytes=0.1
    )
    file, model = report.numbers["tracking"]
    assert report.numbers["training_seconds"] == 200.0
    for row in (file, model):
        assert 0 < row["begin"] + 2 * row["epoch"] + row["end"] == pytest.approx(row["total"])
        assert 0 < row["cpu"] <= row["total"] + 0.5
    assert model["end"] > file["end"]  # it records more


# The command: its parts one after the other.


def asked_for(folder: Path, *names: str) -> dict[str, Any]:
    return {"parts": [*names], "repeats": 3, "output": str(folder), "input": {"images": 7}}


def found(**numbers: float) -> Callable[..., Report]:
    return lambda *, repeats, **given: Report("title", ["row"], {**numbers, **given, "r": repeats})


def without_a_package(**_: object) -> Report:
    try:
        raise ModuleNotFoundError("onnxruntime")
    except ModuleNotFoundError as error:
        raise ConfigError("onnxruntime is not installed. pip install 'it'") from error


def test_each_part_is_written_with_what_its_numbers_depend_on(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(input, "measure", found(a=1.0))
    monkeypatch.setattr(step, "measure", found(b=2.0))
    parts.measure_parts(asked_for(tmp_path, "input", "step"), typed=False)
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("input", "step"))
    about = one.pop("about")
    assert one == {"a": 1.0, "images": 7, "r": 3}
    assert other["b"] == 2.0
    assert about["cpu"]
    assert about["cores"] >= 1 <= about["threads"]
    assert datetime.fromisoformat(about["date"]).utcoffset() == timedelta(0)
    assert {"torch", "timm", "onnxruntime", "dermalyze", "git_commit", "command"} <= about.keys()
    assert not list(tmp_path.glob("*.png"))  # without bars


def test_a_part_whose_package_is_missing_is_left_out_and_said(monkeypatch, tmp_path: Path, caplog):
    monkeypatch.setattr(input, "measure", without_a_package)
    monkeypatch.setattr(step, "measure", found(b=2.0))
    with pytest.raises(ConfigError, match=r"are missing: input\. See .* parts=\[input\] measures"):
        parts.measure_parts(asked_for(tmp_path, "input", "step"), typed=False)
    assert "input is left out: onnxruntime is not installed. pip install 'it'" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["step.json"]


def test_a_part_that_was_typed_ends_the_command_where_its_package_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(input, "measure", without_a_package)
    monkeypatch.setattr(step, "measure", found(b=2.0))
    with pytest.raises(ConfigError, match=r"^onnxruntime is not installed"):
        parts.measure_parts(asked_for(tmp_path, "input", "step"), typed=True)
    assert not list(tmp_path.iterdir())


def test_other_errors_of_a_part_are_not_passed_over(monkeypatch, tmp_path: Path):
    def wrong(**_: object) -> Report:
        raise ConfigError("epoch.root=x: no files")

    monkeypatch.setattr(input, "measure", wrong)
    with pytest.raises(ConfigError, match=r"^epoch.root=x: no files"):
        parts.measure_parts(asked_for(tmp_path, "input"), typed=False)


def test_the_memory_of_a_part_is_its_own():
    gc.collect()  # what earlier tests left behind would be let go of in the middle
    if not memory.forget_peak():
        pytest.skip("this system does not forget how much memory was held at most")
    before = memory.peak_megabytes()
    with mmap.mmap(-1, 200_000_000) as held:  # of the system's own, whatever malloc keeps
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert 180 < memory.peak_megabytes() - before < 260
    memory.forget_peak()
    assert memory.peak_megabytes() - before < 100


def test_start_up_is_that_of_commands_that_ended_as_they_should(monkeypatch):
    codes = {"bare": 1, "train": 2}
    calls = []

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(words[1:])
        name = "bare" if words[1].endswith("bare.py") else words[2].removeprefix("dermalyze.")
        code = codes[name] if words[-1] == "training.sede=1" else 0
        return subprocess.CompletedProcess(words, code, "said", "wrong")

    monkeypatch.setattr(startup.subprocess, "run", run)
    rows = {row["what"]: row for row in startup.measure(repeats=1).numbers["startup"]}
    names = ("train", "evaluate", "predict", "export", "compare", "prepare")
    words = ("--help", "--cfg job")
    assert [*rows] == [
        *(f"{who} {said}" for said in words
          for who in ("bare Hydra app", *(f"dermalyze.{name}" for name in names))),
        "bare Hydra app training.sede=1", "dermalyze.train training.sede=1",
    ]  # fmt: skip
    assert ["-m", "dermalyze.export", "--cfg", "job"] in calls
    assert rows["bare Hydra app training.sede=1"]["ratio"] == 1

    codes["train"] = 0  # it took the typo
    with pytest.raises(subprocess.CalledProcessError, match=r"dermalyze.train', 'training.sede=1'"):
        startup.measure(repeats=1)
