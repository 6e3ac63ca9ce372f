"""The parts of the benchmark compare the same work; how fast it is, no test asks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms as v1
from torchvision.transforms import v2

from dermalyze.benchmarks import chart, input, memory, scale, step
from dermalyze.benchmarks.composing import composed
from dermalyze.benchmarks.infer import EAGER, INT8, OURS, models
from dermalyze.benchmarks.photographs import photographs
from dermalyze.benchmarks.rates import rate_rows, rate_table
from dermalyze.benchmarks.timing import Bars
from dermalyze.benchmarks.training import our_training, plain_step, random_store
from dermalyze.benchmarks.usual import medium, pillow_files, tensor_files, transforms_of
from dermalyze.engine.profile import PARTS

SIZE = 32


def test_rates_and_ratios_by_hand() -> None:
    rows = rate_rows({"a": [4.0, 2.0, 8.0], "b": [1.0, 1.0, 5.0]}, images=8, yardstick="a")
    assert [row["images_per_second"] for row in rows] == [2.0, 8.0]
    assert [row["ratio"] for row in rows] == [1.0, 4.0]
    assert [(row["fastest"], row["slowest"]) for row in rows] == [(2.0, 8.0), (1.0, 5.0)]
    header, *lines = rate_table(rows)
    assert header.split() == ["median", "spread", "images/s", "ratio"]
    assert lines[1].split() == ["b", "1.000", "s", "1.000", "to", "5.000", "s", "8.0", "4.00"]


def test_a_chart_has_a_bar_a_peer_with_its_spread() -> None:
    rows = rate_rows({"a": [4.0, 2.0, 8.0], "b": [1.0, 1.0, 5.0]}, images=8, yardstick="a")
    (axes,) = chart.chart(Bars("images/s", rows), "title").axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, 8.0]
    assert [text.get_text() for text in axes.texts] == [" 1.00", " 4.00"]
    (errors,) = (line for line in axes.collections)
    ends = [segment[:, 0].tolist() for segment in errors.get_segments()]
    np.testing.assert_allclose(ends, [[1, 4], [1.6, 8]])  # 8 images in 8 and 2 s, in 5 and 1 s


@pytest.mark.parametrize("kind", [v1, v2], ids=["v1", "v2"])
def test_the_usual_transforms_draw_what_ours_draw(kind) -> None:
    resize, left, top, turn, affine, colour, blur = transforms_of(medium(), kind, size=SIZE)
    assert tuple(resize.size) == (SIZE, SIZE)
    assert (left.p, top.p) == (0.5, 0.3)
    assert tuple(turn.degrees) == (-25, 25)
    assert tuple(affine.degrees) == (-15, 15)
    assert tuple(affine.translate) == (0.1, 0.1)
    assert tuple(affine.scale) == (0.9, 1.1)
    for range_ in (colour.brightness, colour.contrast, colour.saturation):
        assert tuple(range_) == pytest.approx((0.8, 1.2))
    assert tuple(colour.hue) == pytest.approx((-0.1, 0.1))
    assert blur.p == 0.1


def test_the_usual_files_are_tensors_of_the_wanted_size(tmp_path: Path) -> None:
    paths = photographs(tmp_path, images=1)
    for made in (pillow_files, tensor_files):
        files = made(paths, [4], size=SIZE)
        image, label = files[0]
        assert (len(files), label, image.shape) == (1, 4, (3, SIZE, SIZE))
        assert image.dtype == torch.float32
        assert 0 <= image.min() < image.max() <= 1


def test_every_peer_of_a_part_is_in_its_report() -> None:
    before = torch.get_num_threads()
    report = input.measure(repeats=1, images=2, image_size=SIZE, batch_size=1)
    assert torch.get_num_threads() == before
    names = [row["what"] for row in report.numbers["input"]]
    assert names == [input.PILLOW, input.TENSORS, input.OURS, input.GATHER]
    assert report.numbers["input"][0]["ratio"] == 1
    assert report.bars == Bars("images/s on one core", report.numbers["input"])


def test_the_shares_of_a_step_make_a_whole() -> None:
    report = step.measure(repeats=1, backbone="test_resnet", image_size=SIZE, batch_size=8)
    parts = report.numbers["shares"]
    assert list(parts) == [*PARTS, "rest"]
    assert sum(parts.values()) == pytest.approx(1)
    assert all(0 < parts[name] < 1 for name in PARTS)


def test_the_plain_step_learns(monkeypatch) -> None:
    store = random_store(8, image_size=SIZE)
    images, labels = store.batch(np.arange(8)).float() / 255, torch.arange(8) % 7
    take = plain_step("test_resnet")
    losses = [take(images, labels) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_ours_is_what_train_builds() -> None:
    store = random_store(8, image_size=SIZE)
    state, ours = our_training(
        store, backbone="test_resnet", image_size=SIZE, options=["ema=on", "loss=focal"]
    )
    assert state.ema is not None
    assert type(ours.loss).__name__ == "FocalLoss"
    assert composed("train", ["loss=focal"]).loss._target_.endswith("FocalLoss")


@pytest.mark.thorough
def test_the_networks_of_inference_see_the_same_pixels_and_int8_is_int8() -> None:
    store = random_store(4, image_size=SIZE)
    made = models(store, "test_resnet", image_size=SIZE, calibration_images=4)
    images = store.batch(np.arange(4))
    with torch.inference_mode():
        logits = {name: network(images) for name, network in made.items()}
    exact = logits[OURS]
    for name, values in logits.items():
        assert values.shape == exact.shape == (4, 7)
        if name not in (EAGER, OURS):  # torch's plain one has weights of its own
            close = 0.1 if name == INT8 else 1e-4
            torch.testing.assert_close(values, exact, rtol=0, atol=close)
    assert not torch.equal(logits[INT8], exact)


def test_scale_varies_one_thing_at_a_time() -> None:
    sizes = {"batch_sizes": [7, 14], "image_sizes": [32], "data_sizes": [30, 3000]}
    report = scale.measure(
        repeats=1, backbone="test_resnet", image_size=SIZE, batch_size=7, processes=[], **sizes
    )
    rows = {row["what"]: row for row in report.numbers["scale"]}
    assert list(rows) == [
        *("batches of 7", "batches of 14", "32 pixels"),
        *("order of 30 rows", "order of 3,000 rows"),
        *("batches from 30 rows", "batches from 3,000 rows"),
    ]
    first, second = rows["batches of 7"], rows["batches of 14"]
    assert first["images_per_second"] == pytest.approx(scale.STEPS * 7 / first["median"])
    assert second["ratio"] == second["images_per_second"] / first["images_per_second"]
    assert rows["order of 30 rows"]["ratio"] == rows["32 pixels"]["ratio"] == 1


def test_memory_is_counted_in_megabytes() -> None:
    """Python with torch and timm takes some hundred; a unit wrong would be a thousandfold off."""
    assert 100 < memory.peak_megabytes() < 20_000


@pytest.mark.thorough
def test_commands_are_measured_by_what_they_held() -> None:
    made = memory.measure(
        repeats=1, backbone="test_resnet", image_size=SIZE, images=[84], files=[10]
    )
    train, evaluate, predict = made.numbers["memory"]
    assert [row["what"] for row in (train, evaluate, predict)] == ["train", "evaluate", "predict"]
    assert train["images"] == evaluate["images"] >= 84
    assert train["image_megabytes"] == train["images"] * 3 * SIZE**2 / 1e6
    assert (predict["images"], predict["image_megabytes"]) == (10, None)
    assert all(100 < row["peak_megabytes"] < 20_000 for row in (train, evaluate, predict))


@pytest.mark.thorough
def test_a_command_that_fails_says_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        memory.peak_of("export", [], tmp_path)
    assert failed.value.returncode == 2
    assert "missing: checkpoint" in failed.value.output
