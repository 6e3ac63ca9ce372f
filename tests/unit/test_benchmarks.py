"""The benchmark times what it says, in turns, and its ratios are those of its seconds."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermalyze.benchmarks import cache, tracking
from dermalyze.benchmarks.cache import CACHE, LOOP, rates, write_photographs
from dermalyze.benchmarks.timing import in_turns, spread
from dermalyze.data import cache_build


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


def test_the_spread_is_median_and_extremes():
    assert spread([5.0, 1.0, 2.0]) == {"median": 2.0, "fastest": 1.0, "slowest": 5.0}


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
