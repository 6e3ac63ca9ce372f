from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy import stats
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from dermalyze.augmentation.blur import Blur, BlurParameters
from dermalyze.augmentation.colour import LUMA, Colour, ColourParameters, hue_matrices
from dermalyze.augmentation.geometry import (
    Geometry,
    GeometryParameters,
    sampling_matrices,
)
from dermalyze.augmentation.kernels import perspective_grid
from dermalyze.augmentation.occlusion import Cutout, CutoutParameters, rectangles
from dermalyze.augmentation.pipeline import STREAMS, BatchAugmentation
from dermalyze.config import CONF_DIR, check_targets
from dermalyze.errors import ConfigError

GEOMETRY: dict[str, Any] = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.3,
    "rotation": 25.0,
    "affine_rotation": 15.0,
    "translation": 0.1,
    "scale": (0.9, 1.1),
    "shear": 0.0,
    "perspective": 0.0,
}
COLOUR: dict[str, Any] = {
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.1,
    "white_balance": 0.0,
    "gamma": 0.0,
}
BLUR: dict[str, Any] = {"probability": 0.1, "kernel_size": 5, "sigma": (0.1, 2.0)}
CUTOUT: dict[str, Any] = {
    "probability": 0.1,
    "area": (0.02, 0.1),
    "aspect": (0.5, 2.0),
    "fill": (124.0, 116.0, 104.0),
}
DRAWS = 10_000


def composed(name: str) -> BatchAugmentation:
    node = OmegaConf.load(CONF_DIR / "augmentation" / f"{name}.yaml")
    check_targets({"augmentation": OmegaConf.to_container(node)})
    augmentation = instantiate(node, _convert_="all")
    assert isinstance(augmentation, BatchAugmentation)
    return augmentation


def pipeline(**parts: object) -> BatchAugmentation:
    """An augmentation of these parts alone."""
    return BatchAugmentation(**dict.fromkeys(STREAMS) | parts)  # type: ignore[arg-type]


def noise(*shape: int, low: int = 0, high: int = 256, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).float()


def smooth(count: int, height: int, width: int) -> torch.Tensor:
    """Images whose bilinear interpolation hardly depends on how it is rounded."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [
        torch.stack([torch.sin(x / (5 + i)), torch.cos(y / (6 + i)), torch.sin((x + y) / 9)])
        for i in range(count)
    ]
    return 127.5 + 100 * torch.stack(waves)


def moved(
    images: torch.Tensor,
    *,
    flips: tuple[bool, bool] = (False, False),
    angles: tuple[float, float] = (0.0, 0.0),
    translation: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    shears: tuple[float, float] = (0.0, 0.0),
    perspective: tuple[float, float] = (0.0, 0.0),
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    count = len(images)
    parameters = GeometryParameters(
        flips_B2=np.tile(flips, (count, 1)),
        angles_B2=np.tile(angles, (count, 1)),
        translations_B2=np.tile(translation, (count, 1)),
        scales_B=np.full(count, scale),
        shears_B2=np.tile(shears, (count, 1)),
        perspectives_B2=np.tile(perspective, (count, 1)),
    )
    return Geometry(**GEOMETRY).apply(images, parameters, size or tuple(images.shape[2:]))


def recoloured(
    images: torch.Tensor,
    *,
    brightness: float = 1.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0),
    gamma: float = 1.0,
) -> torch.Tensor:
    count = len(images)
    values = [np.full(count, value) for value in (brightness, contrast, saturation, hue)]
    parameters = ColourParameters(*values, np.tile(gains, (count, 1)), np.full(count, gamma))
    return Colour(**COLOUR).apply(images, parameters)


# What is drawn


def within_four_errors(happened: np.ndarray, probability: float) -> bool:
    error = np.sqrt(probability * (1 - probability) / len(happened))
    return abs(happened.mean() - probability) < 4 * error


def spans(values: np.ndarray, low: float, high: float, scale: str = "uniform") -> bool:
    """Within the bounds, close to both, and spread as they should be."""
    spread = stats.loguniform(low, high) if scale == "log" else stats.uniform(low, high - low)
    margin = 0.01 * (high - low)
    return bool(
        low <= values.min() < low + margin
        and high - margin < values.max() <= high
        and stats.kstest(values, spread.cdf).pvalue > 1e-3
    )


def test_medium_draws_what_its_config_says() -> None:
    drawn = composed("medium").parameters(np.arange(DRAWS), np.random.default_rng(0))
    geometry, colour, blur, cutout = (parameters for _, parameters in drawn)

    assert within_four_errors(geometry.flips_B2[:, 0], 0.5)
    assert within_four_errors(geometry.flips_B2[:, 1], 0.3)
    assert spans(geometry.angles_B2[:, 0], -25, 25)
    assert spans(geometry.angles_B2[:, 1], -15, 15)
    assert spans(geometry.translations_B2[:, 0], -0.1, 0.1)
    assert spans(geometry.translations_B2[:, 1], -0.1, 0.1)
    assert spans(geometry.scales_B, 0.9, 1.1)

    assert spans(colour.brightness_B, 0.8, 1.2)
    assert spans(colour.contrast_B, 0.8, 1.2)
    assert spans(colour.saturation_B, 0.8, 1.2)
    assert spans(colour.hue_B, -0.1, 0.1)

    assert within_four_errors(np.isin(np.arange(DRAWS), blur.rows_N), 0.1)
    assert spans(blur.sigmas_N, 0.1, 2.0)

    assert within_four_errors(np.isin(np.arange(DRAWS), cutout.rows_N), 0.1)
    assert spans(cutout.areas_N, 0.02, 0.1)
    assert spans(cutout.aspects_N, 0.5, 2.0, scale="log")
    assert spans(cutout.places_N2[:, 0], 0, 1)
    assert spans(cutout.places_N2[:, 1], 0, 1)


def test_no_two_parameters_share_their_chance() -> None:
    drawn = composed("heavy").parameters(np.arange(DRAWS), np.random.default_rng(1))
    geometry, colour, blur, cutout = (parameters for _, parameters in drawn)
    everywhere = [
        *(getattr(geometry, field.name).reshape(DRAWS, -1) for field in fields(geometry)),
        *(getattr(colour, field.name).reshape(DRAWS, -1) for field in fields(colour)),
        np.isin(np.arange(DRAWS), blur.rows_N)[:, None],
        np.isin(np.arange(DRAWS), cutout.rows_N)[:, None],
    ]
    values = np.concatenate(everywhere, axis=1)
    correlation = np.corrcoef(values[:, values.std(axis=0) > 0], rowvar=False)
    assert correlation.shape == (17, 17)
    assert np.abs(correlation - np.eye(17)).max() < 4.5 / np.sqrt(DRAWS)


def test_medium_still_draws_what_it_drew_when_it_had_four_parts() -> None:
    """So that runs of earlier versions resume as they were: one row of 18 uniforms a position."""
    drawn = composed("medium").parameters(np.arange(9), np.random.default_rng(13))
    geometry, colour, blur, cutout = (parameters for _, parameters in drawn)
    uniform_BP = np.random.default_rng(13).random((9, 18))
    np.testing.assert_array_equal(geometry.flips_B2, uniform_BP[:, :2] < [0.5, 0.3])
    np.testing.assert_allclose(geometry.angles_B2, [25, 15] * (2 * uniform_BP[:, 2:4] - 1))
    np.testing.assert_allclose(geometry.scales_B, 0.9 + 0.2 * uniform_BP[:, 6])
    np.testing.assert_allclose(colour.hue_B, 0.1 * (2 * uniform_BP[:, 10] - 1))
    np.testing.assert_array_equal(blur.rows_N, np.flatnonzero(uniform_BP[:, 11] < 0.1))
    np.testing.assert_array_equal(cutout.rows_N, np.flatnonzero(uniform_BP[:, 13] < 0.1))
    for neutral in (geometry.shears_B2, geometry.perspectives_B2):
        assert np.all(neutral == 0)
    for neutral in (colour.gains_B3, colour.gammas_B):
        assert np.all(neutral == 1)


def test_heavy_widens_medium_and_tilts_the_camera() -> None:
    drawn = composed("heavy").parameters(np.arange(DRAWS), np.random.default_rng(14))
    geometry, colour, blur, cutout = (parameters for _, parameters in drawn)
    assert within_four_errors(geometry.flips_B2[:, 0], 0.5)
    assert within_four_errors(geometry.flips_B2[:, 1], 0.5)
    assert spans(geometry.angles_B2[:, 0], -90, 90)
    assert spans(geometry.angles_B2[:, 1], -30, 30)
    assert spans(geometry.translations_B2[:, 0], -0.15, 0.15)
    assert spans(geometry.scales_B, 0.8, 1.25)
    assert spans(geometry.shears_B2[:, 0], -10, 10)
    assert spans(geometry.shears_B2[:, 1], -10, 10)
    assert spans(geometry.perspectives_B2[:, 0], -0.1, 0.1)
    assert spans(geometry.perspectives_B2[:, 1], -0.1, 0.1)
    assert spans(colour.brightness_B, 0.7, 1.3)
    assert spans(colour.contrast_B, 0.7, 1.3)
    assert spans(colour.saturation_B, 0.7, 1.3)
    assert spans(colour.hue_B, -0.1, 0.1)
    assert within_four_errors(np.isin(np.arange(DRAWS), blur.rows_N), 0.2)
    assert spans(blur.sigmas_N, 0.1, 2.5)
    assert within_four_errors(np.isin(np.arange(DRAWS), cutout.rows_N), 0.25)
    assert spans(cutout.areas_N, 0.02, 0.15)
    assert spans(cutout.aspects_N, 0.33, 3.0, scale="log")


def test_domain_draws_artefacts_and_the_colours_of_devices() -> None:
    augmentation = composed("domain")
    drawn = augmentation.parameters(np.arange(DRAWS), np.random.default_rng(15))
    assert [type(part).__name__ for part, _ in drawn] == [
        *("Geometry", "Hair", "Ruler", "Bubbles", "Light", "Colour", "Field", "Blur")
    ]
    _, hair, ruler, bubbles, light, colour, field, _ = (parameters for _, parameters in drawn)
    assert spans(colour.gains_B3[:, 0], 1 / 1.12, 1.12, scale="log")
    assert np.all(colour.gains_B3[:, 1] == 1)
    assert spans(colour.gains_B3[:, 2], 1 / 1.12, 1.12, scale="log")
    assert spans(colour.gammas_B, 1 / 1.2, 1.2, scale="log")
    happened = np.stack(
        [np.isin(np.arange(DRAWS), part.rows_N) for part in (hair, ruler, bubbles, light, field)]
    )
    for chosen, probability in zip(happened, (0.35, 0.1, 0.1, 0.4, 0.2), strict=True):
        assert within_four_errors(chosen, probability)
    correlation = np.corrcoef([*happened, colour.gains_B3[:, 0], colour.gains_B3[:, 2]])
    assert np.abs(correlation - np.eye(7)).max() < 4 / np.sqrt(DRAWS)


def test_light_draws_flips_small_rotations_and_a_little_light() -> None:
    augmentation = composed("light")
    assert augmentation.parts["blur"] is None
    assert augmentation.parts["cutout"] is None
    drawn = augmentation.parameters(np.arange(DRAWS), np.random.default_rng(2))
    geometry, colour = (parameters for _, parameters in drawn)
    assert within_four_errors(geometry.flips_B2[:, 0], 0.5)
    assert within_four_errors(geometry.flips_B2[:, 1], 0.3)
    assert spans(geometry.angles_B2.sum(axis=1), -10, 10)
    assert np.all(geometry.translations_B2 == 0)
    assert np.all(geometry.scales_B == 1)
    assert spans(colour.brightness_B, 0.9, 1.1)
    assert spans(colour.contrast_B, 0.9, 1.1)
    assert np.all(colour.saturation_B == 1)
    assert np.all(colour.hue_B == 0)


def test_none_returns_the_images_themselves() -> None:
    images = noise(2, 3, 8, 8).to(torch.uint8)
    assert composed("none")(images, np.random.default_rng(0), size=8) is images


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_probabilities_0_and_1_mean_never_and_always(probability: float) -> None:
    augmentation = pipeline(
        geometry=Geometry(
            **GEOMETRY | {"horizontal_flip": probability, "vertical_flip": probability}
        ),
        blur=Blur(**BLUR | {"probability": probability}),
        cutout=Cutout(**CUTOUT | {"probability": probability}),
    )
    drawn = augmentation.parameters(np.arange(1000), np.random.default_rng(0))
    geometry, blur, cutout = (parameters for _, parameters in drawn)
    assert np.all(geometry.flips_B2 == bool(probability))
    assert len(blur.rows_N) == len(cutout.rows_N) == 1000 * probability


# Position and generator alone decide


@pytest.mark.parametrize("name", ["medium", "heavy", "domain"])
def test_some_images_of_a_batch_become_what_they_become_in_the_whole(name: str) -> None:
    """Whoever augments which of them; rounding differs with the number of images at once."""
    images_BCHW = noise(11, 3, 24, 24).to(torch.uint8)
    whole = composed(name)(images_BCHW, np.random.default_rng(5), size=24)
    for own in (np.array([0, 1, 6, 7]), np.array([2, 3, 8, 9, 10])):
        part = composed(name)(images_BCHW[own], np.random.default_rng(5), size=24, positions_B=own)
        torch.testing.assert_close(part, whole[own], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["medium", "heavy", "domain"])
def test_an_image_does_not_depend_on_the_size_of_its_batch(name: str) -> None:
    images = noise(40, 3, 24, 24).to(torch.uint8)
    augmentation = composed(name)
    large = augmentation(images, np.random.default_rng(3), size=24)
    for count in (1, 7, 23):
        small = augmentation(images[:count], np.random.default_rng(3), size=24)
        torch.testing.assert_close(small, large[:count], rtol=0, atol=1e-3)
    few = augmentation.parameters(np.arange(7), np.random.default_rng(3))
    many = augmentation.parameters(np.arange(40), np.random.default_rng(3))
    for (_, first), (_, second) in zip(few, many, strict=True):
        chosen = getattr(second, "rows_N", np.arange(40)) < 7
        for field in fields(first):
            np.testing.assert_array_equal(
                getattr(first, field.name), getattr(second, field.name)[chosen]
            )


def test_leaving_parts_out_does_not_change_artefacts() -> None:
    whole = composed("domain")
    together = {
        type(p): drawn for p, drawn in whole.parameters(np.arange(99), np.random.default_rng(4))
    }
    for name in ("hair", "ruler", "bubbles", "light", "field"):
        alone = pipeline(**{name: whole.parts[name]}).parameters(
            np.arange(99), np.random.default_rng(4)
        )
        ((part, drawn),) = alone
        for field in fields(drawn):
            np.testing.assert_array_equal(
                getattr(drawn, field.name), getattr(together[type(part)], field.name)
            )


def test_leaving_a_part_out_does_not_change_the_others() -> None:
    whole = composed("medium")
    part = pipeline(
        blur=whole.parts["blur"],
    )
    (_, alone), *nothing = part.parameters(np.arange(200), np.random.default_rng(4))
    _, together = whole.parameters(np.arange(200), np.random.default_rng(4))[2]
    assert not nothing
    np.testing.assert_array_equal(alone.rows_N, together.rows_N)
    np.testing.assert_array_equal(alone.sigmas_N, together.sigmas_N)


@pytest.mark.parametrize("name", ["medium", "heavy", "domain"])
def test_the_same_generator_gives_the_same_bits(name: str) -> None:
    images = noise(32, 3, 24, 24).to(torch.uint8)
    augmentation = composed(name)
    first = augmentation(images, np.random.default_rng(5), size=24)
    again = augmentation(images, np.random.default_rng(5), size=24)
    other = augmentation(images, np.random.default_rng(6), size=24)
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).all(dim=(1, 2, 3)).any()


@pytest.mark.parametrize("name", ["light", "medium", "heavy", "domain"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_is_float32_in_range_and_the_input_stays(
    name: str, memory_format: torch.memory_format
) -> None:
    images = noise(24, 3, 28, 28).to(torch.uint8).contiguous(memory_format=memory_format)
    before = images.clone()
    augmented = composed(name)(images, np.random.default_rng(7), size=28)
    assert augmented.dtype == torch.float32
    assert augmented.shape == images.shape
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    # A blurred pixel is a mean of values in the range, up to rounding.
    assert augmented.min() >= 0
    assert augmented.max() <= 255 + 1e-4


@pytest.mark.parametrize("name", ["medium", "heavy", "domain"])
def test_memory_format_does_not_change_the_result(name: str) -> None:
    images = noise(24, 3, 24, 24).to(torch.uint8)
    augmentation = composed(name)
    first = augmentation(images, np.random.default_rng(8), size=24)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    second = augmentation(channels_last, np.random.default_rng(8), size=24)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-3)


def test_the_whole_is_torchvisions_chain_of_its_parts() -> None:
    augmentation = pipeline(
        geometry=Geometry(**GEOMETRY),
        colour=Colour(**COLOUR | {"hue": 0.0}),
        blur=Blur(**BLUR | {"probability": 1.0}),
        cutout=Cutout(**CUTOUT | {"probability": 1.0}),
    )
    images = noise(6, 3, 44, 44, low=80, high=170).to(torch.uint8)
    drawn = augmentation.parameters(np.arange(6), np.random.default_rng(11))
    geometry, colour, blur, cutout = (parameters for _, parameters in drawn)
    expected = Geometry(**GEOMETRY).apply(images.float(), geometry, (44, 44))
    for row, image in enumerate(expected):
        recolour = TF.adjust_brightness(image / 255, colour.brightness_B[row])
        recolour = TF.adjust_contrast(recolour, colour.contrast_B[row])
        recolour = TF.adjust_saturation(recolour, colour.saturation_B[row]) * 255
        expected[row] = TF.gaussian_blur(recolour, [5, 5], [float(blur.sigmas_N[row])])
        top, bottom, left, right = rectangles(cutout, 44, 44)[row]
        expected[row, :, top:bottom, left:right] = torch.tensor(CUTOUT["fill"]).view(3, 1, 1)
    augmented = augmentation(images, np.random.default_rng(11), size=44)
    torch.testing.assert_close(augmented, expected, rtol=0, atol=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["medium", "heavy", "domain"])
def test_nothing_waits_for_the_device_and_it_computes_what_the_cpu_does(name: str) -> None:
    images = noise(48, 3, 36, 36).to(torch.uint8)
    on_device = images.cuda().contiguous(memory_format=torch.channels_last)
    augmentation = composed(name)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        augmented = augmentation(on_device, np.random.default_rng(9), size=36)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = augmentation(images, np.random.default_rng(9), size=36)
    torch.testing.assert_close(augmented.cpu(), expected, rtol=0, atol=0.05)


# Geometry


def test_parameters_that_change_nothing_give_the_images_back() -> None:
    images = noise(3, 3, 37, 50)
    torch.testing.assert_close(moved(images), images, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (37, 50)])
def test_flips_are_exact(size: tuple[int, int]) -> None:
    images = noise(2, 3, *size)
    expected = {
        (True, False): TF.horizontal_flip(images),
        (False, True): TF.vertical_flip(images),
        (True, True): TF.vertical_flip(TF.horizontal_flip(images)),
    }
    for flips, flipped in expected.items():
        warped = moved(images, flips=flips)
        torch.testing.assert_close(warped, flipped, rtol=0, atol=1e-3)
        assert torch.equal(warped.round(), flipped)


def test_ninety_degrees_are_a_quarter_turn_counter_clockwise() -> None:
    images = noise(2, 3, 33, 33)
    expected = torch.rot90(images, 1, dims=(2, 3))
    torch.testing.assert_close(moved(images, angles=(90, 0)), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(moved(images, angles=(60, 30)), expected, rtol=0, atol=1e-3)
    assert torch.equal(TF.rotate(images, 90), expected)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (80, 48)])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (True, True)])
def test_the_composed_warp_is_torchvisions_affine(
    size: tuple[int, int], flips: tuple[bool, bool]
) -> None:
    height, width = size
    images = smooth(2, height, width)
    flipped = TF.horizontal_flip(images) if flips[0] else images
    flipped = TF.vertical_flip(flipped) if flips[1] else flipped
    shift = (0.0625, -0.125)

    def reference(values: torch.Tensor) -> torch.Tensor:
        return TF.affine(
            values,
            angle=-(17 + 9),  # torchvision's affine turns clockwise
            translate=[shift[0] * width, shift[1] * height],
            scale=1.1,
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )

    warped = moved(images, flips=flips, angles=(17, 9), translation=shift, scale=1.1)
    interior = reference(torch.ones_like(images)) > 0.999
    assert interior.float().mean() > 0.6
    difference = (warped - reference(flipped)).abs()[interior]
    assert difference.max() < 0.01


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("shears", [(8.0, 0.0), (0.0, -6.0), (7.0, 5.0)])
def test_shear_is_torchvisions(size: tuple[int, int], shears: tuple[float, float]) -> None:
    height, width = size
    images = smooth(2, height, width)
    shift = (0.0625, -0.125)

    def reference(values: torch.Tensor) -> torch.Tensor:
        return TF.affine(
            values,
            angle=-26.0,
            translate=[shift[0] * width, shift[1] * height],
            scale=1.1,
            shear=list(shears),
            interpolation=InterpolationMode.BILINEAR,
        )

    warped = moved(images, angles=(17, 9), translation=shift, scale=1.1, shears=shears)
    interior = reference(torch.ones_like(images)) > 0.999
    assert interior.float().mean() > 0.5
    assert (warped - reference(images)).abs()[interior].max() < 0.05
    assert (warped - moved(images, angles=(17, 9), translation=shift, scale=1.1)).abs().max() > 5


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("perspective", [(0.1, 0.0), (0.0, -0.2), (-0.15, 0.1)])
def test_perspective_is_torchvisions_of_the_corners_it_moves(
    size: tuple[int, int], perspective: tuple[float, float]
) -> None:
    height, width = size
    half = np.array([width, height]) / 2
    images = smooth(2, height, width)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])  # in half widths and half heights
    ends = corners / (1 - corners @ perspective)[:, None]

    def reference(values: torch.Tensor) -> torch.Tensor:
        return TF.perspective(
            values,
            startpoints=(half + half * corners).tolist(),
            endpoints=(half + half * ends).tolist(),
            interpolation=InterpolationMode.BILINEAR,
        )

    warped = moved(images, perspective=perspective)
    interior = reference(torch.ones_like(images)) > 0.999
    assert interior.float().mean() > 0.5
    assert (warped - reference(images)).abs()[interior].max() < 0.02
    assert (warped - images).abs().max() > 20


def test_all_moves_at_once_take_points_where_they_say() -> None:
    """Forwards by hand, step by step; the matrices lead back."""
    height, width = 48, 80
    half = np.array([width, height]) / 2
    augmentation = composed("heavy")
    (_, parameters), *_ = augmentation.parameters(np.arange(50), np.random.default_rng(16))
    matrices_B33 = sampling_matrices(parameters, height, width)
    start = np.random.default_rng(17).uniform(-1, 1, (50, 2))
    for row, matrix in enumerate(matrices_B33):
        x, y = start[row] * half * np.where(parameters.flips_B2[row], -1, 1)
        lean, rise = np.tan(np.deg2rad(parameters.shears_B2[row]))
        x -= lean * y
        y -= rise * x
        turn = np.deg2rad(parameters.angles_B2[row].sum())
        x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        at = parameters.scales_B[row] * np.array([x, y]) / half
        at = at + 2 * parameters.translations_B2[row]
        at = at / (1 - at @ parameters.perspectives_B2[row])
        back = matrix @ [*at, 1]
        np.testing.assert_allclose(back[:2] / back[2], start[row], atol=1e-12)


def test_the_grid_of_homographies_is_torchs_where_they_are_affine() -> None:
    (_, parameters), *_ = composed("medium").parameters(np.arange(5), np.random.default_rng(18))
    matrices = torch.from_numpy(sampling_matrices(parameters, 20, 32)).float()
    assert torch.equal(matrices[:, 2], torch.tensor([0.0, 0.0, 1.0]).expand(5, 3))
    expected = F.affine_grid(matrices[:, :2], [5, 3, 20, 32], align_corners=False)
    grid = perspective_grid(matrices, [5, 3, 20, 32])
    torch.testing.assert_close(grid, expected, rtol=0, atol=1e-6)


def test_what_comes_in_from_beyond_a_border_is_the_image_reflected() -> None:
    images = noise(1, 3, 32, 32)
    warped = moved(images, translation=(0.25, -0.5))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (16, 16), (8, 8)), mode="symmetric")
    np.testing.assert_allclose(warped.numpy(), padded[:, :, 32:, :32], rtol=0, atol=1e-3)


@given(
    seed=st.integers(0, 2**32 - 1),
    larger=st.integers(0, 20),
    size=st.integers(16, 40),
    level=st.integers(0, 255),
)
def test_no_colour_is_invented_at_borders(seed: int, larger: int, size: int, level: int) -> None:
    far = Geometry(
        **GEOMETRY | {"rotation": 180.0, "translation": 0.9, "scale": (0.2, 3.0)},
    )
    augmentation = pipeline(
        geometry=far,
        blur=Blur(**BLUR),
    )
    images = torch.full((4, 3, size + larger, size + larger), level, dtype=torch.uint8)
    augmented = augmentation(images, np.random.default_rng(seed), size=size)
    expected = torch.full((4, 3, size, size), float(level))
    torch.testing.assert_close(augmented, expected, rtol=0, atol=1e-3)


# Out of larger pictures


@pytest.mark.parametrize("size", [(64, 64), (40, 56), (32, 28)])
def test_the_warp_that_changes_nothing_is_torchs_interpolation(size: tuple[int, int]) -> None:
    images = noise(3, 3, 64, 56)
    expected = F.interpolate(images, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(moved(images, size=size), expected, rtol=0, atol=1e-3)


def test_half_the_size_is_the_mean_of_four_pixels_each() -> None:
    """So nothing aliases at the largest reduction that the config allows."""
    images = noise(2, 3, 48, 48)
    halved = F.avg_pool2d(images, 2)
    torch.testing.assert_close(moved(images, size=(24, 24)), halved, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(48, 48), (32, 32), (40, 28)])
def test_a_move_of_larger_pictures_is_the_move_of_the_smaller_ones(size: tuple[int, int]) -> None:
    """Angles, shares and factors mean the same whatever the pictures are stored at."""
    images = smooth(2, 56, 56)
    move: dict[str, Any] = {"flips": (True, False), "angles": (17, 9), "scale": 1.1}
    move["translation"] = (0.0625, -0.125)
    small = F.interpolate(images, size, mode="bilinear", align_corners=False)
    difference = (moved(images, size=size, **move) - moved(small, **move)).abs()
    assert difference[:, :, 8:-8, 8:-8].max() < 3  # of 200; the small ones are interpolated twice
    untouched = (moved(images, size=size) - moved(small, **move)).abs()
    assert untouched.max() > 100


def test_blur_and_cutout_act_on_pixels_of_the_result() -> None:
    augmentation = pipeline(
        geometry=Geometry(**GEOMETRY),
        blur=Blur(**BLUR | {"probability": 1.0}),
        cutout=Cutout(**CUTOUT | {"probability": 1.0}),
    )
    images = noise(4, 3, 60, 60).to(torch.uint8)
    drawn = augmentation.parameters(np.arange(4), np.random.default_rng(12))
    geometry, blur, cutout = (parameters for _, parameters in drawn)
    expected = Geometry(**GEOMETRY).apply(images.float(), geometry, (32, 32))
    assert expected.shape == (4, 3, 32, 32)
    for row, image in enumerate(expected):
        expected[row] = TF.gaussian_blur(image, [5, 5], [float(blur.sigmas_N[row])])
        top, bottom, left, right = rectangles(cutout, 32, 32)[row]
        expected[row, :, top:bottom, left:right] = torch.tensor(CUTOUT["fill"]).view(3, 1, 1)
    augmented = augmentation(images, np.random.default_rng(12), size=32)
    torch.testing.assert_close(augmented, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", [(9, 9), (8, 9), (7, 7)])
def test_without_a_warp_other_sizes_are_refused(shape: tuple[int, int]) -> None:
    images = noise(2, 3, *shape).to(torch.uint8)
    with pytest.raises(ConfigError, match=r"geometry=null: .* are wanted at 8, .*cache_size=null"):
        composed("none")(images, np.random.default_rng(0), size=8)


# Colour: mid-range colours, so that nothing is clamped


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.2])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_factor_means_what_it_means_in_torchvision(name: str, factor: float) -> None:
    images = noise(3, 3, 20, 24, low=60, high=190)
    adjust = getattr(TF, f"adjust_{name}")
    expected = adjust(images / 255, factor) * 255
    # torchvision's luma weights sum to 0.9999.
    atol = 1e-4 if name == "brightness" else 1e-4 * 190 * abs(factor - 1) + 1e-4
    torch.testing.assert_close(recoloured(images, **{name: factor}), expected, rtol=0, atol=atol)


def test_factors_are_composed_in_torchvisions_order() -> None:
    images = noise(3, 3, 20, 24, low=80, high=170)
    expected = TF.adjust_brightness(images / 255, 1.2)
    expected = TF.adjust_saturation(TF.adjust_contrast(expected, 0.8), 1.15) * 255
    actual = recoloured(images, brightness=1.2, contrast=0.8, saturation=1.15)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.02)


def test_gains_multiply_the_channels_before_all_else() -> None:
    images = noise(3, 3, 20, 24, low=80, high=170)
    gains = (1.1, 1.0, 0.9)
    balanced = images * torch.tensor(gains).view(3, 1, 1)
    torch.testing.assert_close(recoloured(images, gains=gains), balanced, rtol=0, atol=1e-3)
    rest = {"brightness": 1.1, "contrast": 0.8, "saturation": 1.1, "hue": 0.03}
    torch.testing.assert_close(
        recoloured(images, gains=gains, **rest), recoloured(balanced, **rest), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("gamma", [0.8, 1.25])
def test_gamma_is_torchvisions_and_comes_after_the_clamp(gamma: float) -> None:
    images = noise(2, 3, 16, 16)
    expected = TF.adjust_gamma(images / 255, gamma) * 255
    torch.testing.assert_close(recoloured(images, gamma=gamma), expected, rtol=0, atol=1e-2)
    bright = TF.adjust_gamma((images * 1.2).clamp(max=255) / 255, gamma) * 255
    curved = recoloured(images, brightness=1.2, gamma=gamma)
    torch.testing.assert_close(curved, bright, rtol=0, atol=1e-2)


def test_no_change_of_colour_is_the_identity() -> None:
    images = noise(3, 3, 20, 24)
    torch.testing.assert_close(recoloured(images), images, rtol=0, atol=1e-4)


def test_colours_are_clamped_to_the_range() -> None:
    images = noise(2, 3, 16, 16)
    brighter = recoloured(images, brightness=1.2)
    torch.testing.assert_close(brighter, (images * 1.2).clamp(max=255), rtol=0, atol=1e-4)
    vivid = recoloured(images, saturation=1.2, hue=0.1)
    assert vivid.min() == 0
    assert vivid.max() == 255


@pytest.mark.parametrize("hue", [-0.1, -0.03, 0.05, 0.1])
def test_hue_turns_chroma_and_keeps_luma(hue: float) -> None:
    images = noise(2, 3, 16, 16, low=100, high=150)
    turned = recoloured(images, hue=hue)
    luma = torch.from_numpy(LUMA).float()
    before, after = (torch.einsum("bchw,c->bhw", values, luma) for values in (images, turned))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3)

    # Chroma as a complex number, from the definition of I and Q by B - Y and R - Y.
    def chroma(values: torch.Tensor) -> np.ndarray:
        red, _, blue = values.double().numpy().transpose(1, 0, 2, 3)
        y = values.double().numpy().transpose(0, 2, 3, 1) @ LUMA
        u, v = 0.492 * (blue - y), 0.877 * (red - y)
        return (v + 1j * u) * np.exp(-1j * np.deg2rad(-33))

    expected = chroma(images) * np.exp(-2j * np.pi * hue)
    assert np.abs(chroma(turned) - expected).max() < 0.01 * np.abs(expected).max()


def test_hue_approximates_the_turn_of_hsv() -> None:
    """HSV keeps the largest channel and YIQ the luma, so only what is not grey is compared."""
    images = noise(2, 3, 32, 32, low=90, high=165)
    for hue in (-0.1, -0.02, 0.02, 0.1):
        exact = TF.adjust_hue(images / 255, hue) * 255 - images
        linear = recoloured(images, hue=hue) - images
        exact, linear = (change - change.mean(dim=1, keepdim=True) for change in (exact, linear))
        cosine = (linear * exact).sum() / (linear.norm() * exact.norm())
        assert cosine > 0.85
        assert 0.9 < linear.norm() / exact.norm() < 1.2


def test_hue_matrices_add_their_turns() -> None:
    third, sum_of_three = hue_matrices(np.array([1 / 3, 1.0]))
    np.testing.assert_allclose(third @ third @ third, sum_of_three, atol=1e-12)
    np.testing.assert_allclose(sum_of_three, np.eye(3), atol=1e-12)


# Blur


def test_blur_is_torchvisions_and_touches_only_the_chosen() -> None:
    images = noise(6, 3, 23, 31)
    rows, sigmas = np.array([1, 2, 5]), np.array([0.1, 0.77, 2.0])
    blurred = Blur(**BLUR).apply(images.clone(), BlurParameters(rows, sigmas))
    for row, sigma in zip(rows, sigmas, strict=True):
        expected = TF.gaussian_blur(images[row], [5, 5], [sigma, sigma])
        torch.testing.assert_close(blurred[row], expected, rtol=0, atol=1e-4)
    for row in (0, 3, 4):
        assert torch.equal(blurred[row], images[row])


def test_blur_refuses_images_smaller_than_its_margin() -> None:
    blur = Blur(**BLUR | {"kernel_size": 17})
    parameters = BlurParameters(np.array([0]), np.array([1.0]))
    assert blur.apply(noise(1, 3, 9, 12), parameters).shape == (1, 3, 9, 12)
    with pytest.raises(ConfigError, match=r"blur\.kernel_size=17: images of 8 pixels.* 15 or less"):
        blur.apply(noise(1, 3, 8, 12), parameters)


# Cutout


def test_cutout_fills_its_rectangle_and_leaves_the_rest() -> None:
    images = noise(5, 3, 40, 60)
    parameters = CutoutParameters(
        rows_N=np.array([1, 4]),
        areas_N=np.array([0.1, 0.05]),
        aspects_N=np.array([2.0, 0.5]),
        places_N2=np.array([[0.0, 0.0], [0.999, 0.999]]),
    )
    cut = Cutout(**CUTOUT).apply(images.clone(), parameters)
    expected = images.clone()
    fill = torch.tensor([124.0, 116.0, 104.0]).view(3, 1, 1)
    # 240 pixels at 2:1 are 11 high and 22 wide; 120 at 1:2 are 15 high and 8 wide.
    expected[1, :, :11, :22] = fill
    expected[4, :, 25:, 52:] = fill
    assert torch.equal(cut, expected)


@given(
    height=st.integers(16, 300),
    width=st.integers(16, 300),
    area=st.floats(0.001, 0.99),
    aspect=st.floats(0.05, 20),
    place=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
)
def test_cutout_covers_its_share_within_the_image(
    height: int, width: int, area: float, aspect: float, place: tuple[float, float]
) -> None:
    parameters = CutoutParameters(
        rows_N=np.array([0]),
        areas_N=np.array([area]),
        aspects_N=np.array([aspect]),
        places_N2=np.array([place]),
    )
    top, bottom, left, right = rectangles(parameters, height, width)[0]
    assert 0 <= top < bottom <= height
    assert 0 <= left < right <= width
    pixels = area * height * width
    # The width is a whole number, so half a column may be missing, and never less than one.
    assert abs((bottom - top) * (right - left) - pixels) <= max((bottom - top) / 2, 1 - pixels)


def test_medium_covers_two_to_ten_percent_at_the_wanted_aspect() -> None:
    _, parameters = composed("medium").parameters(np.arange(DRAWS), np.random.default_rng(10))[-1]
    top, bottom, left, right = rectangles(parameters, 224, 224).T
    share = (bottom - top) * (right - left) / 224**2
    assert np.abs(share - parameters.areas_N).max() < 0.5 * 100 / 224**2
    aspect = (right - left) / (bottom - top)
    assert np.abs(np.log(aspect / parameters.aspects_N)).max() < 0.06
    assert top.min() == left.min() == 0
    assert bottom.max() == right.max() == 224


# What the constructors refuse


@pytest.mark.parametrize(
    ("part", "base", "name", "value"),
    [
        (Geometry, GEOMETRY, "horizontal_flip", 1.5),
        (Geometry, GEOMETRY, "vertical_flip", -0.1),
        (Geometry, GEOMETRY, "vertical_flip", float("nan")),
        (Geometry, GEOMETRY, "rotation", -1.0),
        (Geometry, GEOMETRY, "affine_rotation", 181.0),
        (Geometry, GEOMETRY, "translation", 1.0),
        (Geometry, GEOMETRY, "scale", [1.1, 0.9]),
        (Geometry, GEOMETRY, "scale", [0.0, 1.0]),
        (Geometry, GEOMETRY, "shear", 45.0),
        (Geometry, GEOMETRY, "perspective", 0.3),
        (Colour, COLOUR, "brightness", 1.1),
        (Colour, COLOUR, "contrast", -0.2),
        (Colour, COLOUR, "saturation", 2.0),
        (Colour, COLOUR, "hue", 0.11),
        (Colour, COLOUR, "hue", -0.1),
        (Colour, COLOUR, "white_balance", 0.31),
        (Colour, COLOUR, "gamma", -0.1),
        (Blur, BLUR, "probability", 2.0),
        (Blur, BLUR, "kernel_size", 4),
        (Blur, BLUR, "kernel_size", -1),
        (Blur, BLUR, "sigma", [0.0, 2.0]),
        (Blur, BLUR, "sigma", [2.0, 1.0]),
        (Cutout, CUTOUT, "probability", -1.0),
        (Cutout, CUTOUT, "area", [0.1, 1.0]),
        (Cutout, CUTOUT, "area", [0.2, 0.1]),
        (Cutout, CUTOUT, "aspect", [0.0, 1.0]),
        (Cutout, CUTOUT, "fill", [0.0, 0.0, 256.0]),
        (Cutout, CUTOUT, "fill", [0.0, 0.0]),
    ],
)
def test_values_out_of_range_are_refused_by_name_and_value(
    part: type, base: dict[str, Any], name: str, value: object
) -> None:
    part(**base)
    with pytest.raises(ConfigError) as error:
        part(**base | {name: value})
    assert f"augmentation.{part.__name__.lower()}.{name}={value}: " in str(error.value)


def test_all_problems_of_a_part_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Colour(**COLOUR | {"brightness": 3.0, "saturation": -1.0, "hue": 0.5})
    message = str(error.value)
    assert message.count("augmentation.colour.") == 3
    assert "more changes what a lesion looks like" in message
