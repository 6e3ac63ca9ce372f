"""The parts of the benchmark compare the same work; how fast it is, no test asks."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_models import make_run
from torchvision import transforms as v1
from torchvision.transforms import v2

from dermalyze.benchmarks import (
    apart,
    chart,
    epoch,
    evaluate,
    gpu,
    infer,
    input,
    memory,
    scale,
    step,
)
from dermalyze.benchmarks.cache import write_photographs
from dermalyze.benchmarks.composing import composed
from dermalyze.benchmarks.infer import EAGER, INT8, OURS, models
from dermalyze.benchmarks.photographs import photographs
from dermalyze.benchmarks.rates import rate_rows, rate_table
from dermalyze.benchmarks.timing import Bars
from dermalyze.benchmarks.training import (
    config_of,
    noise,
    our_training,
    peer_network,
    plain_step,
    random_store,
    timm_step,
)
from dermalyze.benchmarks.usual import medium, pillow_files, tensor_files, transforms_of
from dermalyze.checkpoint_file import BEST
from dermalyze.engine.profile import PARTS
from dermalyze.errors import CheckpointError, ConfigError
from dermalyze.inference.loading import load_model
from dermalyze.inference.onnx_file import sealed

SIZE = 32


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers run in threads, since what they do is asked, and a process takes seconds to start."""
    monkeypatch.setattr(apart, "_own_process", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(apart, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(apart, "_peers", {})


def small_photographs(folder: Path, *, images: int) -> list[Path]:
    return write_photographs(folder, images=images, width=48, height=40, quality=90, noise=9.0)


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


def test_a_chart_shows_seconds_and_what_was_found_once_as_well() -> None:
    rows = [
        {"what": "a", "median": 2.0, "fastest": 1.0, "slowest": 4.0, "ratio": 1.0},
        {"what": "b", "median": 1146.9},
    ]
    (axes,) = chart.chart(Bars("seconds", rows, of="median"), "title").axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, 1146.9]
    assert [text.get_text() for text in axes.texts] == [" 1.00", " 1,150"]
    (errors,) = (line for line in axes.collections)
    assert [s[:, 0].tolist() for s in errors.get_segments()] == [[1, 4], [1146.9, 1146.9]]


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
    assert report.bars == Bars("images/s on one core", report.numbers["input"][:3])


def test_a_device_is_held_against_its_own_products() -> None:
    words = ["model=timm", "model.backbone=test_resnet", "model/head=linear", "ema=on"]
    words += [f"data.image_size={SIZE}", "training.batch_size=8", "augmentation=medium"]
    report = gpu.measure(repeats=1, device="cpu", images=17, matrix=64, options=words)
    rows, numbers = report.numbers["gpu"], report.numbers
    assert [row["what"] for row in rows] == [gpu.PLAIN, gpu.TIMM, gpu.HELD, gpu.CACHED]
    assert [row["images_per_second"] * row["median"] for row in rows] == pytest.approx([16] * 4)
    assert numbers["of_step_rate"] == pytest.approx(rows[2]["median"] / rows[3]["median"])
    for row in rows:
        of_the_image = row["images_per_second"] * numbers["flops_of_an_image"]
        share = of_the_image / numbers["flops_of_a_second"]
        assert row["share_of_matrix_rate"] == pytest.approx(share)
    assert "batches of 8, fp32 on the CPU" in report.title


def test_operations_are_those_of_products_forward_and_backward() -> None:
    network, counted = peer_network("test_resnet"), []

    def count(layer: torch.nn.Module, given: tuple[torch.Tensor], made: torch.Tensor) -> None:
        weights_per_output = layer.weight[0].numel()
        counted.append(2 * weights_per_output * made.numel())

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    network.eval()(torch.zeros(1, 3, SIZE, SIZE))
    # As much again for the gradients of the weights and of what came in, but for the image's.
    expected = 3 * sum(counted) - counted[0]
    assert gpu.operations_an_image("test_resnet", SIZE) == expected


@pytest.mark.parametrize("rows", [[0, 1], [40, 3]])
def test_a_held_batch_is_the_same_for_all_rows(rows: list[int]) -> None:
    held = gpu.HeldBatch(rows=50, batch_size=4, image_size=SIZE, device=torch.device("cpu"))
    assert len(held) == 50
    with held.reading_ahead([np.array(rows)]):
        expected = torch.from_numpy(noise(4, SIZE))[:2].permute(0, 3, 1, 2)
        assert torch.equal(held.batch(np.array(rows)), expected)


@pytest.mark.thorough
def test_parts_that_start_processes_work_in_them(tmp_path: Path) -> None:
    small = ["backbone=test_resnet", "image_size=32"]
    words = [f"{part}.{word}" for part in ("step", "infer", "evaluate") for word in small]
    words += ["step.batch_size=8", "infer.batch_sizes=[1]", "infer.calibration_images=4"]
    words += ["evaluate.images=84", "evaluate.batch_size=8", "epoch.images=9", "epoch.workers=[0]"]
    train = '"model=timm","model.backbone=test_resnet","data.image_size=32"'
    words += [f'epoch.options=[{train},"training.batch_size=4"]', "output=found"]
    parts = "parts=[step,epoch,infer,evaluate]"
    command = [sys.executable, "-m", "dermalyze.benchmark", parts, "repeats=1", *words]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.count("ours keeps the memory that it frees, the others' process leaves") == 4
    assert len([*(tmp_path / "found").glob("*.json")]) == 4


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("in_bf16", [False, True])
def test_the_shares_of_a_step_make_a_whole(in_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "multiplies_bf16", lambda device: in_bf16)
    report = step.measure(repeats=1, backbone="test_resnet", image_size=SIZE, batch_size=8)
    rows = [row["what"] for row in report.numbers["step"]]
    half = [step.HALF] if in_bf16 else []
    made = step.our_own(backbone="test_resnet", image_size=SIZE, batch_size=8)
    formats = {name: str(made[name].args[1].precision) for name in (step.WHOLE, *half)}
    assert formats == {step.WHOLE: "fp32", **dict.fromkeys(half, "bf16")}
    assert rows == [step.PLAIN, step.BARE, step.TIMM, step.AVERAGED, step.WHOLE, *half]
    assert (
        "torchvision's reference script is not in its package, so it is no peer here"
        in report.table
    )
    parts = report.numbers["shares"]
    assert list(parts) == [*PARTS, "rest"]
    assert sum(parts.values()) == pytest.approx(1)
    assert all(0 < parts[name] < 1 for name in PARTS)


@pytest.mark.parametrize("made", [plain_step, timm_step])
def test_the_peers_of_a_step_learn(made) -> None:
    store = random_store(8, image_size=SIZE)
    images, labels = store.batch(np.arange(8)).float() / 255, torch.arange(8) % 7
    take = made("test_resnet")
    losses = [take(images, labels) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("backbone", ["test_resnet", "mobilenetv3_small_050", "efficientnet_b0"])
def test_a_peer_trains_as_many_weights_as_ours(backbone: str) -> None:
    """Also where timm's own network has a hidden layer between pooling and classifier."""
    store = random_store(7, image_size=SIZE)
    options = ["model/head=linear"]
    state, _ = our_training(store, backbone=backbone, image_size=SIZE, options=options)
    peer = peer_network(backbone)
    logits_BK = peer(torch.rand(2, 3, SIZE, SIZE))
    assert logits_BK.shape == (2, 7)
    logits_BK.sum().backward()
    trained = [p.shape for p in peer.parameters() if p.grad is not None]
    assert sorted(trained) == sorted(p.shape for p in state.model.parameters())


def test_ours_is_what_train_builds() -> None:
    store = random_store(8, image_size=SIZE)
    state, ours = our_training(
        store, backbone="test_resnet", image_size=SIZE, options=["ema=on", "loss=focal"]
    )
    assert state.ema is not None
    assert type(ours.loss).__name__ == "FocalLoss"
    assert composed("train", ["loss=focal"]).loss._target_.endswith("FocalLoss")


@pytest.mark.usefixtures("here")
def test_the_words_of_train_say_what_an_epoch_is_of(tmp_path: Path) -> None:
    """On files of one's own: model, size, batches and sampler come from the words."""
    given = small_photographs(tmp_path, images=9)
    given[8].rename(tmp_path / "last.JPEG")
    (tmp_path / "notes.txt").write_text("no image")
    words = ["model=timm", "model.backbone=test_resnet", "data.image_size=32"]
    words += ["training.batch_size=4", "sampler=weighted", "mix=mixup", "training.accumulate=2"]
    words += ["loss.class_weights=none"]
    options = {"workers": [0], "options": words, "root": str(tmp_path)}
    report = epoch.measure(repeats=1, images=None, **options)
    assert report.title.startswith(
        "an epoch of 8 real images, test_resnet at 32 pixels, batches of 4, "
    )
    rows = {row["what"]: row for row in report.numbers["epoch"]}
    assert [*rows] == ["DataLoader, 0 workers", "timm's loader, 0 workers", epoch.OURS, epoch.FIRST]
    assert all("fastest" not in row for row in rows.values())  # one run each
    rate = rows[epoch.OURS]["images_per_second"]
    assert report.numbers["seconds_for_ham10000"] == pytest.approx(7010 / rate)
    assert f"an epoch of python -m dermalyze.train {' '.join(words)}" in report.table
    assert "validation, checkpoints and tracking left out" in report.table[-1]

    with pytest.raises(ConfigError, match=r"epoch.root=.*: 9 JPEG files, fewer than 10\. Name"):
        epoch.measure(repeats=1, images=10, **options)
    with pytest.raises(ConfigError, match=r"epoch.images=null: all files of a folder\. Name it by"):
        epoch.measure(repeats=1, images=None, **{**options, "root": None})
    with pytest.raises(ConfigError, match=r"epoch: 3 images make no batch of 4\. Ask for more by"):
        epoch.measure(repeats=1, images=3, **options)


def test_a_whole_recipe_is_an_epochs_words_and_metadata_are_refused() -> None:
    config = config_of(["experiment=quick_cpu", "data.image_size=48"])
    assert (config["model"]["backbone"], config["data"]["image_size"]) == ("resnet10t", 48)
    with pytest.raises(ConfigError, match=r"^model/metadata: the images here have no metadata"):
        config_of(["model/metadata=film"])
    with pytest.raises(ConfigError, match=r"^train: data\.batch_size: there is no such key"):
        config_of(["data.batch_size=8"])


@pytest.mark.usefixtures("here")
def test_views_have_both_peers_and_ratios_to_both(monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "photographs", small_photographs)
    monkeypatch.setattr(evaluate, "seconds_of_report", lambda *_: 1.0)
    report = evaluate.measure(
        repeats=1, backbone="test_resnet", image_size=SIZE, batch_size=8, images=28
    )
    alone, by_view, kept, ours = report.numbers["evaluate"]
    assert [row["what"] for row in (alone, by_view, kept)] == [
        evaluate.ONE_BY_ONE,
        evaluate.VIEW_BY_VIEW,
        evaluate.KEPT,
    ]
    assert ours["ratio"] == by_view["median"] / ours["median"]
    both = {
        evaluate.ONE_BY_ONE: alone["median"] / ours["median"],
        evaluate.VIEW_BY_VIEW: ours["ratio"],
        evaluate.KEPT: kept["median"] / ours["median"],
    }
    (line,) = (line for line in report.table if line.startswith("ours: "))
    assert line == "ours: " + ", ".join(f"{ratio:.2f} times {name}" for name, ratio in both.items())


def exported(run: Path, name: str, **changes: object) -> None:
    """Write a graph of three logits with the header that `export` writes for the run's model."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "sides"], ["logits"], keepdims=0),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 3, SIZE, SIZE])
    told = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    sides = numpy_helper.from_array(np.array([2, 3]), "sides")
    graph = helper.make_model(
        helper.make_graph(nodes, "mean colours", [given], [told], [sides]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    trained = load_model(run / BEST, torch.device("cpu"))
    found = {"images": 30, "agreement": 0.99, "balanced_accuracy": [0.5, 0.49]}
    more = {"in_float32": ["stem"], "layers": 20} if "int8" in name else {}
    header = {**trained.header, "disclaimer": "", "export": {**found, **more}, **changes}
    (run / name).write_bytes(sealed(graph, header))


@pytest.mark.usefixtures("here")
def test_a_runs_own_exports_are_timed_and_others_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", disclaimer="")
    size = {"backbone": "not looked at", "image_size": 999, "calibration_images": 1}
    asked = {"repeats": 1, "checkpoint": str(run), "batch_sizes": [1], **size}
    with pytest.raises(CheckpointError, match=r"no export to time\.\n.*export checkpoint=\S+ form"):
        infer.measure(**asked)
    exported(run, "model.onnx")
    report = infer.measure(**asked)
    assert report.title.startswith("inference of test_resnet at 32 pixels")
    rows = [row["what"] for row in report.numbers["infer"]]
    assert rows == [f"batch 1, {name}" for name in (EAGER, OURS, infer.FLOAT)]
    one, other = report.table[-2:]
    assert one.endswith(
        "on 30 validation images the same class for 0.9900, balanced accuracy 0.5000 -> 0.4900"
    )
    assert f"{run / 'model_int8.onnx'} is not there" in other
    exported(run, "model_int8.onnx")
    report = infer.measure(**asked)
    assert report.numbers["infer"][-1]["what"] == f"batch 1, {INT8}"
    assert report.table[-1].endswith("1 of 20 layers in float32")

    exported(run, "model.onnx", epoch=2)
    with pytest.raises(CheckpointError, match=r"model.onnx: was made of another model\. Export"):
        infer.measure(**asked)


@pytest.mark.thorough
def test_the_networks_of_inference_see_the_same_pixels_and_int8_is_int8() -> None:
    store = random_store(7, image_size=SIZE)  # one of each class
    made = models(store, "test_resnet", image_size=SIZE, calibration_images=4)
    images = store.batch(np.arange(4))
    with torch.inference_mode():
        logits = {name: network(images) for name, network in made.items()}
    exact = logits[OURS]
    for name, values in logits.items():
        assert values.shape == exact.shape == (4, 7)
        if name != OURS:
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
    assert "fastest" not in first  # one run


def test_a_table_is_the_map_of_a_file(tmp_path: Path) -> None:
    made, mapped = (
        random_store(4, image_size=SIZE, file=file) for file in (None, tmp_path / "4.npy")
    )
    assert (tmp_path / "4.npy").stat().st_size == 4 * 3 * SIZE**2 + 128  # NumPy's header
    assert isinstance(mapped._images_NHWC.base, np.memmap)
    rows = np.array([3, 0])
    assert torch.equal(made.batch(rows), mapped.batch(rows))


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
