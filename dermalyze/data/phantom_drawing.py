"""How a phantom lesion is drawn: pigments in the skin, then a photograph of it. Not patients.

`draw_lesion` lays pigment densities on a square canvas four lesion radii wide and works out what
light they let through: exp(-sum of densities times absorbances), after Beer and Lambert, so that
pigments mix as they do in skin. `photograph` lays that film on drawn skin, under a drawn lens.
What belongs to which class stands in `phantom_classes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from dermalyze.data.phantom_classes import cue_strengths

Floats = NDArray[np.floating[Any]]  # float32 wherever pixels are

# Absorbance of one unit of each pigment in red, green and blue light; chosen by eye.
ABSORBANCE_PC = np.array(
    [
        [0.62, 1.00, 1.30],  # melanin near the surface: brown
        [0.14, 1.00, 0.72],  # blood: red
        [0.24, 0.30, 0.50],  # keratin: waxy grey-yellow
        [1.10, 0.80, 0.52],  # melanin in the depth: blue-grey (Tyndall effect)
    ],
    np.float32,
)
WHITE_RGB = np.array([0.95, 0.89, 0.87], np.float32)  # scars, scales, cysts scatter all light


@dataclass(frozen=True)
class Lesion:
    """One drawn lesion, the same in all photographs of it.

    light: RGB image, the share of light that the pigments let through, 255 for all of it.
    white: L image, the share of light that is scattered before it meets a pigment.
    skin_RGB: colour of the skin around the lesion, in (0, 1).
    radius: of the lesion, as a share of the photograph's side.
    """

    light: Image.Image
    white: Image.Image
    skin_RGB: Floats
    radius: float


def _sigmoid(values: Floats) -> Floats:
    shares: Floats = 1 / (1 + np.exp(-values.clip(-30, 30)))
    return shares


def _noise(rng: np.random.Generator, side: int, cells: int) -> Floats:
    """Smooth noise of about unit variance, with a grain of side / cells pixels."""
    grid = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
    return np.float32(1.35) * np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))


def _spread(rng: np.random.Generator, n: int, inner: float, outer: float) -> Floats:
    """Return n points (x, y) spread over a ring, radii in lesion radii: a shaken sunflower."""
    radius = np.sqrt(inner**2 + (outer**2 - inner**2) * (np.arange(n) + rng.uniform(0, 1, n)) / n)
    golden = math.pi * (3 - math.sqrt(5))
    angle = golden * np.arange(n) + rng.uniform(0, 2 * math.pi) + rng.normal(0, 0.25, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)


def _ovals(axis: Floats, centres_N2: Floats, radii_N2: Floats, edge: float) -> Floats:
    """Cover the canvas with ovals: 1 inside, 0 outside, the sharper the larger `edge`.

    A Gaussian is the product of its profiles, so all ovals together are one matrix product.
    """
    x_NW, y_NH = (
        np.exp(-(((axis - centres_N2[:, i, None]) / radii_N2[:, i, None]) ** 2)) for i in (0, 1)
    )
    covered: Floats = (edge * (y_NH.T @ x_NW - 0.4) + 0.5).clip(0, 1)
    return covered


def _lines(side: int, polylines: list[Floats], widths: list[float]) -> Floats:
    """Draw polylines (points x, y in pixels) as coverage in [0, 1], anti-aliased."""
    sheet = Image.new("L", (2 * side, 2 * side))
    pen = ImageDraw.Draw(sheet)
    for points, width in zip(polylines, widths, strict=True):
        pen.line((2 * points).ravel().tolist(), fill=255, width=max(1, round(2 * width)))
    return np.asarray(sheet.reduce(2), np.float32) / 255


def _vessel_trees(rng: np.random.Generator, side: int) -> Floats:
    """Cover the canvas with two trees of wandering vessels that enter from the rim."""
    polylines, widths = [], []
    rims = rng.uniform(0, 2 * math.pi) + np.array([0, rng.uniform(1.5, 4.5)])
    sprouts = [(np.array([math.cos(r), math.sin(r)]), r + math.pi, 0.08, 0) for r in rims]
    while sprouts:
        start, heading, width, depth = sprouts.pop()
        turns = heading + np.cumsum(rng.normal(0, 0.28, 8 - 2 * depth))
        steps = 0.15 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
        points = start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
        polylines.append(((points + 2) * side / 4).astype(np.float32))
        widths.append(width * side / 4)
        if depth < 2:
            for joint in rng.choice(np.arange(2, len(points)), 2, replace=False):
                aside = rng.choice([-1, 1]) * rng.uniform(0.5, 1.0)
                sprouts.append((points[joint], turns[joint - 1] + aside, 0.65 * width, depth + 1))
    return _lines(side, polylines, widths)


def draw_lesion(rng: np.random.Generator, dx: str, *, difficulty: float, side: int) -> Lesion:
    """Draw a lesion of class `dx` on a canvas of `side` pixels, four lesion radii wide."""
    cue = cue_strengths(rng, dx, difficulty=difficulty)
    axis = np.linspace(-2, 2, side, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    coarse, blotch, middle, fine = (_noise(rng, side, cells) for cells in (5, 7, 12, 40))
    slant = rng.uniform(0, 2 * math.pi)
    dark_side = x * math.cos(slant) + y * math.sin(slant)

    # Outline: a stretched circle whose radius wavers with the angle.
    order = np.arange(2, 8)
    waves = rng.normal(0, 1, 6) * (0.03 + 0.11 * cue["irregular"]) / np.sqrt(order)
    angles = np.linspace(-math.pi, math.pi, 181)
    outline = 1 + np.cos(np.outer(angles, order) + rng.uniform(0, 2 * math.pi, 6)) @ waves
    stretch = math.exp(rng.normal(0, 0.09))
    distance = np.hypot(x * stretch, y / stretch)
    inside = np.interp(np.arctan2(y, x), angles, outline).astype(np.float32) - distance
    inside += 0.05 * (0.5 + cue["irregular"]) * middle
    body = _sigmoid(inside * (5 + 22 * cue["sharp"]))
    centre = np.exp(-((distance / 0.55) ** 2))

    # Pigments of the body.
    depth = math.exp(rng.normal(0, 0.2))
    mottle = 0.5 * coarse + 0.25 * middle + 0.35 * dark_side
    melanin = depth * cue["melanin"] * np.exp(cue["mottled"] * mottle + 0.06 * fine)
    blood = cue["blood"] * (1 + 0.25 * coarse + 0.1 * middle)
    blood += 0.3 * cue["mottled"] * cue["melanin"] * _sigmoid(4 * (blotch - 0.8))
    keratin = cue["keratin"] * (1 + 0.25 * middle + 0.15 * fine)
    deep = np.zeros_like(body)
    white = np.zeros_like(body)

    def spots(n: tuple[int, int], reach: tuple[float, float], size: tuple[float, float]) -> Floats:
        centres_N2 = _spread(rng, int(rng.integers(*n)), *reach)
        radii_N2 = rng.uniform(*size, (len(centres_N2), 1)) * rng.uniform(0.8, 1.2, (1, 2))
        return _ovals(axis, centres_N2, radii_N2.astype(np.float32), 2.0)

    # Structures.
    if cue["network"]:  # a honeycomb (three plane waves at 120 degrees), bent by the noise
        wave = 2 * math.pi / rng.uniform(0.18, 0.25)
        bent_x, bent_y = x + 0.08 * coarse + 0.02 * middle, y + 0.08 * blotch
        honeycomb = np.zeros_like(body)
        for turn in (slant, slant + 2 * math.pi / 3, slant - 2 * math.pi / 3):
            honeycomb += np.cos(wave * math.cos(turn) * bent_x + wave * math.sin(turn) * bent_y)
        melanin *= 1 + 0.85 * cue["network"] * (_sigmoid(-2.5 * honeycomb) - 0.45)
    if cue["veil"]:
        veil = cue["veil"] * _sigmoid(3 * (blotch + 0.3)) * np.exp(-((distance / 0.75) ** 2))
        melanin *= 1 - 0.45 * veil
        deep += 0.75 * veil
        white += 0.22 * veil
    if cue["dots"]:
        melanin += 1.5 * cue["dots"] * spots((8, 20), (0.4, 1.1), (0.045, 0.08))
    if cue["cysts"]:
        melanin += 0.8 * cue["cysts"] * spots((4, 10), (0.1, 0.9), (0.06, 0.10))
        white += 0.6 * cue["cysts"] * spots((6, 16), (0.1, 0.9), (0.045, 0.08))
    if cue["nests"]:
        deep += 0.75 * cue["nests"] * spots((2, 7), (0.1, 0.85), (0.10, 0.25))
    if cue["trees"]:
        blood += 1.0 * cue["trees"] * _vessel_trees(rng, side)
    if cue["dotted"]:
        blood += 0.8 * cue["dotted"] * spots((18, 40), (0.1, 1.0), (0.04, 0.06))
    if cue["scales"]:
        white += 0.6 * cue["scales"] * _sigmoid(5 * (0.7 * fine + 0.7 * middle - 0.9))
    if cue["lacunae"]:
        lacunae = cue["lacunae"] * spots((9, 18), (0.1, 0.85), (0.13, 0.24))
        blood += 0.8 * lacunae * (1 + 0.2 * middle)
        deep += rng.uniform(0, 0.5) * lacunae
    if cue["scar"]:
        scar = cue["scar"] * (centre * (0.8 + 0.3 * middle)).clip(0, 1)
        melanin *= 1 - 0.8 * scar.clip(0, 1)
        white += 0.65 * scar

    densities_PHW = np.stack([melanin, blood, keratin, deep]).clip(0, 2.5) * body
    light_HWC = np.exp(-np.tensordot(densities_PHW, ABSORBANCE_PC, axes=(0, 0)))
    tan = rng.beta(1.3, 2.5)
    skin_RGB = np.exp(-tan * np.array([0.25, 0.45, 0.60])) * np.array([0.93, 0.77, 0.70])
    return Lesion(
        light=Image.fromarray((255 * light_HWC + 0.5).astype(np.uint8)),
        white=Image.fromarray((255 * white.clip(0, 0.9) * body).astype(np.uint8)),
        skin_RGB=skin_RGB.astype(np.float32),
        radius=rng.uniform(0.20, 0.32),
    )


def _hairs(rng: np.random.Generator, side: int) -> Floats:
    """Cover a photograph with a few long, slightly bent hairs, mostly of one direction."""
    n = int(rng.integers(2, 12))
    along = np.linspace(-0.6, 0.6, 12) * rng.uniform(0.4, 1.4, (n, 1))
    bow = rng.normal(0, 0.25, (n, 1)) * along**2
    turn = rng.normal(rng.uniform(0, math.pi), 0.35, (n, 1))
    x = rng.uniform(0, 1, (n, 1)) + along * np.cos(turn) - bow * np.sin(turn)
    y = rng.uniform(0, 1, (n, 1)) + along * np.sin(turn) + bow * np.cos(turn)
    hairs = [points.astype(np.float32) for points in np.stack([x, y], axis=2) * side]
    return _lines(side, hairs, list(side * rng.uniform(0.004, 0.013, n)))


def _ruler(rng: np.random.Generator, side: int) -> Floats:
    """Cover one edge of a photograph with the ticks of a scale."""
    ticks = np.arange(rng.uniform(0, 0.05), 1, rng.uniform(0.05, 0.08))
    lengths = np.where(np.arange(len(ticks)) % 5 == 0, 0.09, 0.05)
    lines = [
        np.array([[tick, 0], [tick, length]], np.float32) * side
        for tick, length in zip(ticks, lengths, strict=True)
    ]
    return np.rot90(_lines(side, lines, [0.008 * side] * len(lines)), int(rng.integers(4)))


def photograph(
    rng: np.random.Generator,
    lesion: Lesion,
    *,
    session: np.random.Generator | None = None,
    side: int,
) -> Image.Image:
    """Take one RGB picture of `side` x `side` pixels of a lesion.

    Position, turn, zoom, light, hair, ruler, dark corners, blur and the device's colours are
    drawn anew for each picture and tell nothing about the class.

    Args:
        rng: chance of this picture.
        lesion: what is photographed.
        session: chance of the light, the dark corners and the device's colours; pictures that get
            equal generators are of one device in one light. None: `rng`, a session of its own.
        side: pixels.
    """
    session = rng if session is None else session
    # Where on the canvas each pixel of the picture lies, as PIL's affine (a, b, c, d, e, f).
    canvas = lesion.light.width
    scale = canvas / 4 / (lesion.radius * rng.uniform(0.85, 1.2) * side)
    turn, mirror = rng.uniform(0, 2 * math.pi), float(rng.choice([-1, 1]))
    a, b = scale * math.cos(turn), scale * math.sin(turn)
    centre_x, centre_y = side / 2 + side * rng.uniform(-0.09, 0.09, 2)
    affine = [
        value
        for p, q in ((mirror * a, mirror * b), (-b, a))
        for value in (p, q, canvas / 2 - p * centre_x - q * centre_y)
    ]
    size, how, smooth = (side, side), Image.Transform.AFFINE, Image.Resampling.BILINEAR
    light = lesion.light.transform(size, how, affine, smooth, fillcolor=(255, 255, 255))
    white = lesion.white.transform(size, how, affine, smooth)

    # Skin with uneven tan and blood, under a lamp that stands a little to one side.
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    tan = 0.025 * (_noise(rng, side, 24) + _noise(rng, side, 6))
    blood = 0.04 + 0.04 * _noise(rng, side, 9)
    slope_x, slope_y = session.normal(0, 0.06, 2).tolist()
    lamp = 1 + slope_x * x + slope_y * y - session.uniform(0, 0.16) * (x**2 + y**2)
    lamp += 0.012 * _noise(rng, side, side // 2)
    image_HWC = np.exp(-tan[..., None] * ABSORBANCE_PC[0] - blood[..., None] * ABSORBANCE_PC[1])
    image_HWC *= lesion.skin_RGB * (np.asarray(light, np.float32) / 255)
    image_HWC += (np.asarray(white, np.float32) / 255)[..., None] * (WHITE_RGB - image_HWC)
    image_HWC *= lamp[..., None]

    if rng.random() < 0.30:
        hair_RGB = np.array([0.20, 0.13, 0.10], np.float32) * rng.uniform(0.5, 2.2)
        image_HWC += 0.85 * _hairs(rng, side)[..., None] * (hair_RGB - image_HWC)
    if rng.random() < 0.12:
        image_HWC *= 1 - 0.8 * _ruler(rng, side)[..., None]
    if session.random() < 0.20:
        image_HWC *= _sigmoid(25 * (session.uniform(1.05, 1.3) - np.hypot(x, y)))[..., None]

    gain_RGB = np.exp(session.normal(0, 0.06) + session.normal(0, 0.04, 3)).astype(np.float32)
    image_HWC = (gain_RGB * image_HWC.clip(0, 1) ** math.exp(session.normal(0, 0.12))).clip(0, 1)
    picture = Image.fromarray((255 * image_HWC + 0.5).astype(np.uint8))
    if rng.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.003, 0.010) * side))
    return picture
