"""Hair, rulers, bubbles, uneven light and dark corners, held against what they claim to draw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from dermalyze.augmentation.bubbles import Bubbles, BubblesParameters
from dermalyze.augmentation.field import Field, FieldParameters
from dermalyze.augmentation.hair import Hair, HairParameters
from dermalyze.augmentation.light import Light, LightParameters
from dermalyze.augmentation.ruler import Ruler, RulerParameters
from dermalyze.errors import ConfigError

HAIR: dict[str, Any] = {
    "probability": 0.35,
    "count": (2, 18),
    "length": (0.3, 1.6),
    "width": (0.003, 0.010),
    "bend": 0.2,
    "spread": 35.0,
    "opacity": (0.35, 0.9),
    "dark": ((25.0, 15.0, 15.0), (125.0, 75.0, 55.0)),
    "light": ((190.0, 160.0, 130.0), (235.0, 220.0, 205.0)),
    "light_share": 0.15,
}
RULER: dict[str, Any] = {
    "probability": 0.1,
    "spacing": (0.03, 0.08),
    "length": (0.025, 0.06),
    "width": (0.003, 0.007),
    "depth": 0.1,
    "tilt": 8.0,
    "opacity": (0.5, 0.9),
}
BUBBLES: dict[str, Any] = {
    "probability": 0.1,
    "count": (1, 12),
    "radius": (0.006, 0.05),
    "strength": (0.2, 0.7),
}
LIGHT: dict[str, Any] = {"probability": 0.4, "slope": 1.5, "falloff": 1.25}
FIELD: dict[str, Any] = {
    "probability": 0.2,
    "radius": (0.48, 0.64),
    "offset": 0.05,
    "softness": (0.01, 0.15),
    "darkness": (0.8, 1.0),
}
PARTS: list[tuple[type[Any], dict[str, Any]]] = [
    (Hair, HAIR),
    (Ruler, RULER),
    (Bubbles, BUBBLES),
    (Light, LIGHT),
    (Field, FIELD),
]
DRAWS = 10_000


def drawn(part: Any, seed: int = 0, draws: int = DRAWS) -> Any:
    return part.parameters(np.random.default_rng(seed).random((draws, part.own_columns)))


def grey(count: int, height: int, width: int, level: float = 200.0) -> torch.Tensor:
    return torch.full((count, 3, height, width), level)


def noise(count: int, height: int, width: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=random).float()


def is_chosen(rows_N: np.ndarray, probability: float) -> bool:
    error = np.sqrt(probability * (1 - probability) / DRAWS)
    return bool(abs(len(rows_N) / DRAWS - probability) < 4 * error)


def spans(values: np.ndarray, low: float, high: float) -> bool:
    margin = 0.02 * (high - low)
    values = values.ravel()
    return bool(
        low <= values.min() < low + margin
        and high - margin < values.max() <= high
        and stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    )


def centres(side: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels of a square, from its centre, in shares of its side."""
    axis = (np.arange(side) + 0.5) / side - 0.5
    return np.meshgrid(axis, axis)  # type: ignore[return-value]


# What all have in common


@pytest.mark.parametrize(("part", "values"), PARTS)
def test_only_the_chosen_change_and_stay_in_range(part: type, values: dict[str, Any]) -> None:
    made = part(**values | {"probability": 0.5})
    images = noise(40, 32, 32)
    parameters = drawn(made, draws=40)
    assert 10 < len(parameters.rows_N) < 30
    changed = made.apply(images.clone(), parameters)
    for row, (before, after) in enumerate(zip(images, changed, strict=True)):
        assert torch.equal(before, after) == (row not in parameters.rows_N)
    assert changed.min() >= 0
    assert changed.max() <= 255 + 1e-3


@pytest.mark.parametrize(("part", "values"), PARTS)
@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_probabilities_0_and_1_mean_never_and_always(
    part: type, values: dict[str, Any], probability: float
) -> None:
    made = part(**values | {"probability": probability})
    parameters = drawn(made, draws=50)
    assert sorted(parameters.rows_N) == list(range(50 if probability else 0))
    images = noise(50, 16, 16)
    assert torch.equal(made.apply(images.clone(), parameters), images) != bool(probability)


@pytest.mark.parametrize(("part", "values"), PARTS)
def test_a_picture_that_is_not_square_is_drawn_on_as_the_middle_of_a_square_is(
    part: type, values: dict[str, Any]
) -> None:
    """Lengths are shares of the shorter side, from the centre."""
    made = part(**values | {"probability": 1.0})
    parameters = drawn(made, draws=6)
    wide = made.apply(grey(6, 64, 96), parameters)
    square = made.apply(grey(6, 64, 64), parameters)
    assert (wide - 200).abs().max() > 20
    torch.testing.assert_close(wide[..., 16:-16], square, rtol=0, atol=0.2)


# Hair


def one_hair(**changes: Any) -> HairParameters:
    straight = HairParameters(
        rows_N=np.array([0]),
        counts_N=np.array([1]),
        colours_N3=np.array([[40.0, 20.0, 0.0]]),
        centres_NK2=np.zeros((1, 1, 2)),
        angles_NK=np.zeros((1, 1)),
        lengths_NK=np.full((1, 1), 0.5),
        bends_NK=np.zeros((1, 1)),
        widths_NK=np.full((1, 1), 0.04),
        opacities_NK=np.ones((1, 1)),
    )
    return replace(straight, **changes)


def covered(parameters: HairParameters, side: int) -> np.ndarray:
    """The share of each pixel that is hair, read off a picture of one level."""
    images = Hair(**HAIR).apply(grey(1, side, side, 100.0), parameters)
    share: np.ndarray = (100 - images[0, 2].numpy()) / 100
    return share


def test_hairs_are_drawn_as_the_config_says() -> None:
    hair = drawn(Hair(**HAIR))
    assert is_chosen(hair.rows_N, 0.35)
    assert np.all(np.diff(hair.counts_N) <= 0)
    counts = np.bincount(hair.counts_N)[2:]
    assert len(counts) == 17
    assert stats.chisquare(counts).pvalue > 1e-3
    light = hair.colours_N3[:, 0] > 150
    assert abs(light.mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / len(light))
    assert spans(hair.colours_N3[~light, 0], 25, 125)
    assert spans(hair.colours_N3[light, 2], 130, 205)
    assert spans(hair.lengths_NK, 0.3, 1.6)
    assert spans(hair.widths_NK, 0.003, 0.010)
    assert spans(hair.bends_NK, -0.2, 0.2)
    assert spans(hair.opacities_NK, 0.35, 0.9)
    assert spans(hair.centres_NK2[..., 0], -0.5, 0.5)
    assert spans(hair.centres_NK2[..., 1], -0.5, 0.5)
    # One direction in half a turn for each image, every hair within 35 degrees of it.
    assert 65 < np.ptp(hair.angles_NK, axis=1).max() <= 70
    assert -35 <= hair.angles_NK.min() < -25
    assert 205 < hair.angles_NK.max() <= 215


def test_a_straight_hair_by_hand() -> None:
    # At 100 pixels it is 4 wide and 50 long, in the middle, between the rows 49 and 50.
    share = covered(one_hair(), 100)
    # At x = 0.5 pixels the half width is 2 (1 - (0.5 / 25)^2) = 1.9992.
    assert share[47:53, 50] == pytest.approx([0, 0.9992, 1, 1, 0.9992, 0], abs=1e-4)
    # At x = 20.5 it is 2 (1 - 0.82^2) = 0.6552, of which the rows 0.5 away see 0.6552 each.
    assert share[47:53, 70] == pytest.approx([0, 0, 0.6552, 0.6552, 0, 0], abs=1e-4)
    assert np.all(share[:, :20] == 0)
    assert np.all(share[:, 80:] == 0)


def test_a_hair_thinner_than_a_pixel_covers_its_width() -> None:
    share = covered(one_hair(widths_NK=np.full((1, 1), 0.003)), 101)
    assert share[50, 50] == pytest.approx(0.303, abs=1e-3)  # 0.003 of 101 pixels
    assert share[:, 50].sum() == pytest.approx(0.303, abs=1e-3)


@pytest.mark.parametrize("angle", [0.0, 30.0, 45.0, 115.0])
@pytest.mark.parametrize("bend", [-0.1, 0.0, 0.2])
def test_a_hair_is_the_parabola_it_claims_to_be(angle: float, bend: float) -> None:
    """Against 16 x 16 points a pixel, each inside the hair or not."""
    side, fine = 64, 1024
    hair = one_hair(
        angles_NK=np.array([[angle]]),
        bends_NK=np.array([[bend]]),
        centres_NK2=np.array([[[0.05, -0.1]]]),
        lengths_NK=np.array([[0.7]]),
    )
    x, y = centres(fine)
    turn = np.deg2rad(angle)
    u = (x - 0.05) * np.cos(turn) + (y + 0.1) * np.sin(turn)
    v = (y + 0.1) * np.cos(turn) - (x - 0.05) * np.sin(turn)
    inside = np.abs(v - bend * 0.7 * (u / 0.35) ** 2) < 0.02 * (1 - (u / 0.35) ** 2)
    expected = inside.reshape(side, 16, side, 16).mean(axis=(1, 3))
    share = covered(hair, side)
    assert share.sum() == pytest.approx(expected.sum(), rel=0.06)
    assert np.abs(share - expected).mean() < 0.0025
    assert np.corrcoef(share.ravel(), expected.ravel())[0, 1] > 0.99


def test_hairs_lie_over_each_other_and_do_not_add_up() -> None:
    one = one_hair(opacities_NK=np.full((1, 1), 0.6))
    twice = HairParameters(
        one.rows_N,
        np.array([2]),
        one.colours_N3,
        *(
            np.repeat(values, 2, axis=1)
            for values in (
                one.centres_NK2,
                one.angles_NK,
                one.lengths_NK,
                one.bends_NK,
                one.widths_NK,
                one.opacities_NK,
            )
        ),
    )
    np.testing.assert_array_equal(covered(twice, 50), covered(one, 50))
    assert covered(one, 50).max() == pytest.approx(0.6, abs=2e-3)
    only_one_there = replace(twice, counts_N=np.array([1]), angles_NK=np.array([[0.0, 90.0]]))
    np.testing.assert_array_equal(covered(only_one_there, 50), covered(one, 50))


# Ruler


def test_rulers_are_drawn_as_the_config_says() -> None:
    ruler = drawn(Ruler(**RULER | {"probability": 1.0}))
    edges = np.rint(ruler.angles_N / 90)
    assert stats.chisquare(np.bincount(edges.astype(int), minlength=4)).pvalue > 1e-3
    assert spans(ruler.angles_N - 90 * edges, -8, 8)
    assert spans(ruler.depths_N, 0, 0.1)
    assert spans(ruler.phases_N, 0, 5)
    assert spans(ruler.spacings_N, 0.03, 0.08)
    assert spans(ruler.lengths_N, 0.025, 0.06)
    assert spans(ruler.widths_N, 0.003, 0.007)
    assert spans(ruler.opacities_N, 0.5, 0.9)
    assert is_chosen(drawn(Ruler(**RULER)).rows_N, 0.1)


def printed(angle: float) -> np.ndarray:
    """The share of light that marks take: every 10 of 100 pixels, 2 wide, 8 long, 5 inside."""
    parameters = RulerParameters(
        rows_N=np.array([0]),
        angles_N=np.array([angle]),
        depths_N=np.array([0.05]),
        phases_N=np.array([0.0]),
        spacings_N=np.array([0.1]),
        lengths_N=np.array([0.08]),
        widths_N=np.array([0.02]),
        opacities_N=np.array([0.8]),
    )
    taken: np.ndarray = 1 - Ruler(**RULER).apply(grey(1, 100, 100), parameters)[0, 1].numpy() / 200
    return taken


def test_marks_by_hand() -> None:
    expected = np.zeros((100, 100))
    # The long marks are those in the middle and every fifth from it: at 50 and, outside, at 0.
    for mark in range(10, 100, 10):
        expected[5 : 17 if mark == 50 else 13, mark - 1 : mark + 1] = 0.8
    expected[5:17, :1] = expected[5:17, 99:] = 0.8
    np.testing.assert_allclose(printed(0.0), expected, atol=1e-5)


def test_a_ruler_lies_along_any_edge() -> None:
    upper = printed(0.0)
    np.testing.assert_allclose(printed(90.0), np.rot90(upper, -1), atol=1e-4)  # clockwise: right
    np.testing.assert_allclose(printed(180.0), np.rot90(upper, 2), atol=1e-4)
    assert printed(10.0).sum() == pytest.approx(upper.sum(), rel=0.05)
    assert np.abs(printed(10.0) - upper).max() > 0.7


# Bubbles


def test_bubbles_are_drawn_as_the_config_says() -> None:
    bubbles = drawn(Bubbles(**BUBBLES | {"probability": 1.0}))
    there = bubbles.strengths_NK > 0
    counts = np.bincount(there.sum(axis=1))[1:]
    assert len(counts) == 12
    assert stats.chisquare(counts).pvalue > 1e-3
    assert np.all(there[:, :-1] >= there[:, 1:])
    assert spans(bubbles.strengths_NK[there], 0.2, 0.7)
    assert spans(np.sqrt(bubbles.radii_NK), np.sqrt(0.006), np.sqrt(0.05))
    assert spans(bubbles.directions_N, 0, 360)
    assert spans(bubbles.centres_NK2[..., 0], -0.5, 0.5)
    assert spans(bubbles.centres_NK2[..., 1], -0.5, 0.5)
    assert is_chosen(drawn(Bubbles(**BUBBLES)).rows_N, 0.1)


def test_bubbles_are_rims_and_glints_wherever_they_lie() -> None:
    """Against the formula over the whole picture: no window cuts anything that could be seen."""
    side = 100
    bubbles = replace(
        drawn(Bubbles(**BUBBLES | {"probability": 1.0}), draws=8),
        centres_NK2=np.random.default_rng(1).uniform(-0.55, 0.55, (8, 12, 2)),
    )
    x, y = centres(side)
    expected = np.zeros((8, side, side))
    for image in range(8):
        turn = np.deg2rad(bubbles.directions_N[image])
        for centre, radius, strength in zip(
            bubbles.centres_NK2[image],
            bubbles.radii_NK[image],
            bubbles.strengths_NK[image],
            strict=True,
        ):
            right, down = (x - centre[0]) / radius, (y - centre[1]) / radius
            distance = np.hypot(right, down)
            towards = (right * np.cos(turn) + down * np.sin(turn)) / distance
            rim = np.exp(-(((distance - 1) / max(0.16, 0.6 / (side * radius))) ** 2))
            off_glint = np.hypot(right - 0.5 * np.cos(turn), down - 0.5 * np.sin(turn))
            expected[image] += strength * (rim * towards + np.exp(-((off_glint / 0.2) ** 2)))
    expected = expected.clip(-1, 1)
    level = 100.0
    shown = level + expected * np.where(expected > 0, 255 - level, level)
    images = Bubbles(**BUBBLES).apply(grey(8, side, side, level), bubbles)
    assert np.abs(shown - level).max() > 80
    np.testing.assert_allclose(images[:, 0].numpy(), shown, atol=0.05)


def test_a_bubble_is_bright_towards_the_light_and_dark_away_from_it() -> None:
    bubble = BubblesParameters(
        rows_N=np.array([0]),
        directions_N=np.array([0.0]),
        centres_NK2=np.zeros((1, 1, 2)),
        radii_NK=np.array([[0.05]]),
        strengths_NK=np.array([[0.5]]),
    )
    image = Bubbles(**BUBBLES).apply(grey(1, 201, 201, 100.0), bubble)[0, 0]
    # 10.05 pixels to the right of the middle of pixel 100 the rim is at its height.
    assert image[100, 110].item() == pytest.approx(100 + 0.5 * 155, abs=0.3)
    assert image[100, 90].item() == pytest.approx(100 - 0.5 * 100, abs=0.3)
    assert image[100, 105].item() == pytest.approx(100 + 0.5 * 155, abs=1)  # the glint
    assert image[120, 100].item() == 100


# Light


def test_light_is_drawn_as_the_config_says() -> None:
    light = drawn(Light(**LIGHT))
    assert is_chosen(light.rows_N, 0.4)
    assert spans(light.slopes_N, 0, np.log(1.5))
    assert spans(light.falloffs_N, 0, np.log(1.25))
    assert spans(light.directions_N, 0, 360)


def lit(*, slope: float, direction: float, falloff: float) -> np.ndarray:
    parameters = LightParameters(
        rows_N=np.array([0]),
        slopes_N=np.log([slope]),
        directions_N=np.array([direction]),
        falloffs_N=np.log([falloff]),
    )
    factor: np.ndarray = Light(**LIGHT).apply(grey(1, 201, 201, 100.0), parameters)[0, 0].numpy()
    return factor / 100


def test_light_means_what_its_ratios_say() -> None:
    right = lit(slope=1.5, direction=0.0, falloff=1.0)
    # From the middle of the first pixel to that of the last are 200 of 201 sides.
    assert right[:, -1] / right[:, 0] == pytest.approx(np.full(201, 1.5 ** (200 / 201)), rel=1e-4)
    np.testing.assert_allclose(lit(slope=1.5, direction=90.0, falloff=1.0), right.T, rtol=1e-4)
    round_light = lit(slope=1.0, direction=0.0, falloff=1.25)
    edge = 1.25 ** ((200 / 201) ** 2)
    assert round_light[100, 100] / round_light[100, 0] == pytest.approx(edge, rel=1e-4)
    both = lit(slope=1.4, direction=33.0, falloff=1.2)
    assert np.log(both).mean() == pytest.approx(0, abs=1e-4)


def test_what_is_lit_beyond_white_is_white() -> None:
    parameters = LightParameters(np.array([0]), np.log([2.0]), np.zeros(1), np.zeros(1))
    image = Light(**LIGHT).apply(grey(1, 32, 32, 240.0), parameters)
    assert image.max() == 255
    assert image[..., 0].max() < 180


# Field


def test_fields_are_drawn_as_the_config_says() -> None:
    field = drawn(Field(**FIELD | {"probability": 1.0}))
    assert spans(field.centres_N2[:, 0], -0.05, 0.05)
    assert spans(field.centres_N2[:, 1], -0.05, 0.05)
    assert spans(field.radii_N, 0.48, 0.64)
    assert spans(field.softnesses_N, 0.01, 0.15)
    assert spans(field.darknesses_N, 0.8, 1.0)
    assert is_chosen(drawn(Field(**FIELD)).rows_N, 0.2)


def test_a_field_by_hand() -> None:
    parameters = FieldParameters(
        rows_N=np.array([1]),
        centres_N2=np.array([[0.1, 0.0]]),
        radii_N=np.array([0.4]),
        softnesses_N=np.array([0.1]),
        darknesses_N=np.array([0.9]),
    )
    image = Field(**FIELD).apply(grey(2, 101, 101), parameters)[1, 0]
    # On the row through the centre, pixel 50 lies at x = 0, and pixel i at (i - 50) / 101. The
    # light falls from x = 0.1 - 0.4 = -0.3, half of it is gone at -0.35, all at -0.4.
    assert image[50, 20:].eq(200).all()
    step = (35 / 101 - 0.3) / 0.1
    lost = 0.9 * (3 * step**2 - 2 * step**3)
    assert image[50, 15].item() == pytest.approx(200 * (1 - lost), abs=0.01)
    assert image[50, 9].item() == pytest.approx(20, abs=1e-3)
    assert image[0, 0].item() == pytest.approx(20, abs=1e-3)


# What the constructors refuse


@pytest.mark.parametrize(
    ("part", "base", "name", "value"),
    [
        *[(part, base, "probability", 1.5) for part, base in PARTS],
        (Hair, HAIR, "count", [0, 3]),
        (Hair, HAIR, "count", [5, 3]),
        (Hair, HAIR, "length", [0.0, 1.0]),
        (Hair, HAIR, "width", [0.1, 0.2]),
        (Hair, HAIR, "bend", 0.3),
        (Hair, HAIR, "spread", 91.0),
        (Hair, HAIR, "opacity", [0.5, 1.1]),
        (Hair, HAIR, "dark", [[0.0, 0.0, 0.0]]),
        (Hair, HAIR, "light", [[0.0, 0.0, 0.0], [0.0, 0.0, 256.0]]),
        (Hair, HAIR, "light_share", -0.1),
        (Ruler, RULER, "spacing", [0.08, 0.03]),
        (Ruler, RULER, "length", [0.0, 0.1]),
        (Ruler, RULER, "width", [0.0, 0.1]),
        (Ruler, RULER, "depth", 0.4),
        (Ruler, RULER, "tilt", -1.0),
        (Ruler, RULER, "opacity", [0.5, float("nan")]),
        (Bubbles, BUBBLES, "count", [1, 101]),
        (Bubbles, BUBBLES, "radius", [0.0, 0.05]),
        (Bubbles, BUBBLES, "strength", [-0.1, 0.5]),
        (Light, LIGHT, "slope", 0.9),
        (Light, LIGHT, "falloff", 4.5),
        (Field, FIELD, "radius", [0.3, 0.6]),
        (Field, FIELD, "offset", 0.3),
        (Field, FIELD, "softness", [0.0, 0.6]),
        (Field, FIELD, "darkness", [0.9, 1.1]),
    ],
)
def test_values_out_of_range_are_refused_by_name_and_value(
    part: type, base: dict[str, Any], name: str, value: object
) -> None:
    part(**base)
    with pytest.raises(ConfigError) as error:
        part(**base | {name: value})
    assert f"augmentation.{part.__name__.lower()}.{name}={value}: " in str(error.value)
