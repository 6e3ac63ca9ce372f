"""Warp and colour on the CPU are those of torch, up to rounding, whoever shares the work."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dermalyze.augmentation import cpu_kernels, geometry, kernels
from dermalyze.augmentation.blur import gaussian_kernels
from dermalyze.augmentation.colour import ColourParameters, colour_maps
from dermalyze.augmentation.cpu_kernels import OpenCVKernels, in_pixels, shared_out
from dermalyze.augmentation.geometry import sampling_matrices
from dermalyze.augmentation.kernels import TorchKernels, kernels_of
from dermalyze.augmentation.pipeline import BatchAugmentation
from dermalyze.config import CONF_DIR

IMAGES = 40
OPENCV, TORCH = OpenCVKernels(), TorchKernels()


def composed(name: str) -> BatchAugmentation:
    node = OmegaConf.load(CONF_DIR / "augmentation" / f"{name}.yaml")
    augmentation: BatchAugmentation = instantiate(node, _convert_="all")
    return augmentation


def noise(side: int, count: int = IMAGES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, side, side, 3)
    bytes_BHWC = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return bytes_BHWC.permute(0, 3, 1, 2)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["light", "medium", "heavy"])
@pytest.mark.parametrize(("old", "new"), [(48, 48), (90, 48)])
def test_both_warp_alike(name: str, old: int, new: int) -> None:
    """Of noise, whose neighbours differ by up to 255: 4e-5 of a pixel are 0.01 grey values.

    Both compute coordinates of up to 90 pixels in float32, whose steps are 8e-6 there; several
    roundings add up, most where a homography divides.
    """
    drawn = composed(name).parameters(np.arange(IMAGES), np.random.default_rng(0))
    matrices = sampling_matrices(drawn[0][1], new, new)
    assert np.any(matrices[:, 2, :2]) == (name == "heavy")
    ours = OPENCV.warp(noise(old), matrices, (new, new))
    theirs = TORCH.warp(noise(old), matrices, (new, new))
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-2)
    assert torch.equal(OPENCV.warp(noise(old).float(), matrices, (new, new)), ours)
    assert torch.equal(OPENCV.warp(noise(old).contiguous(), matrices, (new, new)), ours)


@pytest.mark.parametrize("power", [0.0, 0.2])
def test_both_recolour_alike(power: float) -> None:
    random = np.random.default_rng(1)
    factors = [random.uniform(0.6, 1.4, IMAGES) for _ in range(3)]
    parameters = ColourParameters(
        *factors,
        hue_B=random.uniform(-0.1, 0.1, IMAGES),
        gains_B3=random.uniform(0.8, 1.2, (IMAGES, 3)),
        gammas_B=np.exp(random.uniform(-power, power, IMAGES)),
    )
    maps, gammas = colour_maps(parameters), parameters.gammas_B
    images = noise(16).float()
    before = images.clone()
    ours = OPENCV.recolour(images, maps, gammas)
    torch.testing.assert_close(ours, TORCH.recolour(images, maps, gammas), rtol=0, atol=1e-3)
    assert torch.equal(images, before)
    assert (ours.min(), ours.max()) == (0, 255)  # cut off on both sides
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_both_blur_and_fill_the_same_images_alike(layout: torch.memory_format) -> None:
    before = noise(21).float().contiguous(memory_format=layout)
    rows = np.array([0, 3, 39])
    kernels_NK = gaussian_kernels(np.array([0.4, 1.0, 2.0]), 5)
    bounds = np.array([[0, 3, 5, 21], [4, 5, 0, 1], [20, 21, 20, 21]])
    fill = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    results = []
    for one in (OPENCV, TORCH):
        blurred, filled = before.clone(), before.clone()
        one.blur(blurred, rows, kernels_NK)
        one.fill(filled, rows, bounds, fill)
        results.append((blurred, filled))
    (blurred, filled), (their_blurred, their_filled) = results
    torch.testing.assert_close(blurred, their_blurred, rtol=0, atol=1e-3)
    assert torch.equal(filled, their_filled)
    for after in (blurred, filled):
        changed = (after != before).flatten(1).any(dim=1).nonzero().flatten().tolist()
        assert changed == rows.tolist()
    assert torch.equal(filled[3, :, 4, 0], fill.flatten())


@pytest.mark.parametrize("name", ["medium", "heavy", "domain"])
def test_a_whole_augmentation_is_the_same_by_both(name: str, monkeypatch) -> None:
    """So what was drawn, and the statistics of the results, are those of torch's kernels."""
    ours = composed(name)(noise(32), np.random.default_rng(2), size=32)
    for module in ("geometry", "colour", "blur", "occlusion"):
        monkeypatch.setattr(f"dermalyze.augmentation.{module}.kernels_of", lambda images: TORCH)
    theirs = composed(name)(noise(32), np.random.default_rng(2), size=32)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-2)
    assert not torch.equal(ours, theirs)


def test_the_cpu_has_kernels_of_its_own() -> None:
    assert isinstance(kernels_of(torch.zeros(1)), OpenCVKernels)
    assert isinstance(kernels_of(torch.zeros(1, device="meta")), TorchKernels)
    assert geometry.kernels_of is kernels.kernels_of


def test_units_become_pixels_by_hand() -> None:
    """The identity from 4 x 4 pixels to 2 x 2: pixel 0 covers old pixels 0 and 1, so 0.5."""
    (matrix,) = in_pixels(np.eye(3)[None], (4, 4), (2, 2))
    np.testing.assert_allclose(matrix @ [0, 0, 1], [0.5, 0.5, 1])
    np.testing.assert_allclose(matrix @ [1, 1, 1], [2.5, 2.5, 1])
    # Mirrored left and right, from 6 columns and 3 rows: column 0 comes from column 5.
    (matrix,) = in_pixels(np.diag([-1.0, 1.0, 1.0])[None], (3, 6), (3, 6))
    np.testing.assert_allclose(matrix @ [0, 2, 1], [5, 2, 1], atol=1e-12)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", ["medium", "heavy"])
def test_results_do_not_depend_on_threads_or_on_the_batch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "PIXELS_WORTH_A_THREAD", 32 * 32)
    augmentation, images = composed(name), noise(32)
    torch.set_num_threads(1)
    matrices = sampling_matrices(
        augmentation.parameters(np.arange(IMAGES), np.random.default_rng(3))[0][1], 32, 32
    )
    alone = OPENCV.warp(images, matrices, (32, 32))
    for count in (2, 3):
        torch.set_num_threads(count)
        assert torch.equal(OPENCV.warp(images, matrices, (32, 32)), alone)
    few = np.array([3, 17, 39])
    assert torch.equal(OPENCV.warp(images[few], matrices[few], (32, 32)), alone[few])

    maps, gammas = np.tile(np.eye(4, 3) * 0.9, (IMAGES, 1, 1)), np.linspace(0.5, 1.5, IMAGES)
    gaussians = gaussian_kernels(np.linspace(0.5, 2, len(few)), 5)
    changed = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        recoloured = OPENCV.recolour(alone, maps, gammas)
        OPENCV.blur(recoloured, few, gaussians)
        changed.append(recoloured)
    assert torch.equal(changed[0], changed[1])
    assert torch.equal(changed[0], changed[2])
    assert not torch.equal(changed[0], OPENCV.recolour(alone, maps, gammas))


@pytest.mark.usefixtures("threads")
def test_threads_are_those_of_torch_however_few_images_there_are() -> None:
    before = threading.active_count()
    torch.set_num_threads(3)
    for count in range(9):
        shared_out(lambda _: None, count, pixels=10**6)
    assert threading.active_count() <= before + 3


@pytest.mark.usefixtures("threads")
def test_no_thread_is_at_work_any_more_when_an_error_is_raised() -> None:
    torch.set_num_threads(2)
    done = threading.Event()

    def work(position: int) -> None:
        if position == 0:
            raise ValueError("zero")
        time.sleep(0.2)
        done.set()

    with pytest.raises(ValueError, match="zero"):
        shared_out(work, 2, pixels=10**6)
    assert done.is_set()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("threads_of_torch", [1, 4])
def test_an_error_of_a_thread_is_raised(threads_of_torch: int) -> None:
    torch.set_num_threads(threads_of_torch)
    done: list[int] = []

    def work(position: int) -> None:
        done.append(position)
        if position == 2:
            raise ValueError("two")

    with pytest.raises(ValueError, match="two"):
        shared_out(work, 5, pixels=10**6)
    assert {0, 1, 2} <= set(done)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("side", "expected"), [(64, 1), (224, 3)])
def test_small_images_stay_in_one_thread(side: int, expected: int) -> None:
    """The barrier waits until so many threads are at work at once."""
    torch.set_num_threads(3)
    together, names = threading.Barrier(expected), set()

    def work(_: int) -> None:
        together.wait(timeout=60)
        names.add(threading.current_thread().name)

    shared_out(work, 3, pixels=side**2)
    assert len(names) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    """Those of its parent did not come along, and waiting for them would never end."""
    lines = """
        import os, torch
        from dermalyze.augmentation.cpu_kernels import shared_out
        torch.set_num_threads(2)
        done = []
        shared_out(done.append, 4, pixels=10**6)
        child = os.fork()
        shared_out(done.append, 4, pixels=10**6)
        if child == 0:
            os._exit(len(done))
        _, status = os.waitpid(child, 0)
        print(len(done), os.waitstatus_to_exitcode(status))
    """
    script = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(lines)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "8 8\n"
