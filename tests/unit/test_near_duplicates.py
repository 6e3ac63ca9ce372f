"""Hashes and similarities against their definitions, all pairs against brute force, and merging."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter
from scipy.ndimage import gaussian_filter

from dermalyze.data.near_duplicates import (
    GREY_SIZE,
    grey_picture,
    merge_duplicates,
    near_pairs,
    perceptual_hashes,
    similarities,
)
from dermalyze.errors import ConfigError, DataError

NOTHING = np.empty(0, dtype=np.int64)


def drawn(layout: int, details: int | None = None) -> Image.Image:
    """A dark spot on bright skin: its form is one random texture, what is in it another."""
    coarse, fine = (
        gaussian_filter(np.random.default_rng(seed).normal(size=(150, 200)), sigma)
        for seed, sigma in ((layout, 12), (layout if details is None else details, 2))
    )
    y, x = np.mgrid[-1:1:150j, -1:1:200j]
    inside = np.hypot(x, y) + 3 * coarse < 0.5
    brightness = 180 + 200 * coarse + 60 * fine - 90 * gaussian_filter(inside.astype(float), 2)
    rgb = brightness[..., None] * np.array([1.0, 0.8, 0.75])
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def saved_again(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue()))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved at quality 40": lambda image: saved_again(image, 40),
    "half the size": lambda image: image.resize((100, 75)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.2),
    "paler colours": lambda image: ImageEnhance.Color(image).enhance(0.5),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
}


def small(image: Image.Image) -> np.ndarray:
    size = (GREY_SIZE, GREY_SIZE)
    return grey_picture(np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR)))


def compared(one: Image.Image, other: Image.Image) -> tuple[int, float]:
    grey_NHW = np.stack([small(one), small(other)])
    first, second = perceptual_hashes(grey_NHW)
    similarity = similarities(grey_NHW, np.array([0]), np.array([1]))
    return int(np.bitwise_count(first ^ second)), float(similarity[0])


# --- the two measures ---


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_in_other_bytes_is_near_and_similar(copy: str) -> None:
    for seed in range(5):
        distance, similarity = compared(drawn(seed), COPIES[copy](drawn(seed)))
        assert distance <= 10
        assert similarity > 0.5


def test_different_lesions_are_not_similar_even_where_their_hashes_are_near() -> None:
    found = [compared(drawn(1, one), drawn(1, other)) for one, other in combinations(range(6), 2)]
    assert max(similarity for _, similarity in found) < 0.25
    assert max(distance for distance, _ in found) <= 10  # so the hash alone will not do
    found = [compared(drawn(one), drawn(other)) for one, other in combinations(range(6), 2)]
    assert max(similarity for _, similarity in found) < 0.25
    assert min(distance for distance, _ in found) > 12


def test_the_next_photograph_of_a_lesion_is_similar() -> None:
    """The same scene, the camera moved by three per cent of the picture."""
    scene = drawn(3).resize((600, 450))
    one, other = scene.crop((20, 20, 580, 430)), scene.crop((37, 29, 597, 439))
    assert compared(one, other)[1] > 0.5


def test_hash_is_that_of_the_definition() -> None:
    grey = small(drawn(1))
    k, n = np.mgrid[:8, :GREY_SIZE]
    cosines = np.cos(np.pi * k * (2 * n + 1) / (2 * GREY_SIZE))  # DCT-II
    lowest = (cosines @ grey @ cosines.T).ravel()
    bits = lowest > np.median(lowest)
    (found,) = perceptual_hashes(grey[None])
    assert bits.sum() == 32
    assert np.unpackbits(np.array([found]).view(np.uint8)).astype(bool).tolist() == bits.tolist()


def test_similarity_is_that_of_the_definition() -> None:
    one, other = small(drawn(1)), small(COPIES["blurred"](drawn(1)))
    window = np.outer(np.hanning(GREY_SIZE), np.hanning(GREY_SIZE))
    a, b = (np.fft.fft2((grey - grey.mean()) * window) for grey in (one, other))
    peak = np.fft.ifft2(a * b.conj() / (abs(a) * abs(b))).real.max()
    found = similarities(np.stack([one, other]), np.array([0, 0]), np.array([1, 0]))
    assert found == pytest.approx([peak, 1.0], abs=1e-3)


def test_more_pictures_than_a_block_come_out_as_one_by_one() -> None:
    grey_NHW = np.stack([small(drawn(seed)) for seed in range(3)] * 100)
    hashes = perceptual_hashes(grey_NHW)
    assert hashes.tolist() == [perceptual_hashes(grey[None])[0] for grey in grey_NHW[:3]] * 100
    pairs = np.arange(300)
    found = similarities(grey_NHW, pairs, (pairs + 1) % 300)
    alone = [similarities(grey_NHW, np.array([i]), np.array([i + 1]))[0] for i in range(3)]
    assert found == pytest.approx(alone * 100, abs=1e-6)
    assert similarities(grey_NHW, NOTHING, NOTHING).shape == (0,)


@pytest.mark.parametrize("looked_at", [True, False])
def test_a_bar_counts_the_pairs_where_people_look(
    looked_at: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: looked_at)
    monkeypatch.setattr("sys.stderr", screen)
    grey_NHW = np.random.default_rng(0).integers(0, 256, (2, 16, 16), dtype=np.uint8)
    pairs = np.zeros(300, dtype=np.int64)
    similarities(grey_NHW, pairs, pairs + 1)
    assert ("comparing: 100%" in screen.getvalue()) is looked_at
    assert ("| 300/300 [" in screen.getvalue()) is looked_at
    shown = screen.getvalue()
    similarities(grey_NHW, NOTHING, NOTHING)
    assert screen.getvalue() == shown


def test_brightness_follows_bt601() -> None:
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert grey_picture(primaries).tolist() == [[76, 150, 29, 255]]


# --- all pairs ---


@st.composite
def clustered(draw: st.DrawFn) -> list[int]:
    """Hashes of which many are near each other: a few, each with some bits turned over."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    flips = st.lists(st.integers(0, 63), max_size=14)
    members = draw(st.lists(st.tuples(st.sampled_from(centres), flips), max_size=25))
    hashes = []
    for centre, bits in members:
        for bit in bits:
            centre ^= 1 << bit
        hashes.append(centre)
    return hashes


@given(clustered(), st.integers(0, 63))
def test_all_pairs_are_those_of_brute_force(hashes: list[int], max_distance: int) -> None:
    expected = [
        (i, j, distance)
        for i, j in combinations(range(len(hashes)), 2)
        if (distance := (hashes[i] ^ hashes[j]).bit_count()) <= max_distance
    ]
    found = near_pairs(np.array(hashes, np.uint64), max_distance=max_distance, at_most=10_000)
    assert list(zip(*map(np.ndarray.tolist, found[:3]), strict=True)) == expected
    assert found.complete


def test_a_thousand_hashes_with_planted_neighbours() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 1000, dtype=np.uint64)
    hashes[500:600] = hashes[:100] ^ np.uint64(0b1001 << 30)
    found = near_pairs(hashes, max_distance=8, at_most=1000)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= 8
    assert set(zip(found.first, found.second, strict=True)) == set(
        zip(*np.nonzero(np.triu(near, 1)), strict=True)
    )
    assert {(i, i + 500) for i in range(100)} <= set(zip(found.first, found.second, strict=True))


@pytest.mark.parametrize("max_distance", range(1, 33))
def test_a_pair_whose_differences_are_spread_evenly_is_found(max_distance: int) -> None:
    """The hardest one: with one piece less, every piece would hold a difference."""
    spread = sum(1 << (64 * bit + 32) // max_distance for bit in range(max_distance))
    hashes = np.array([0, spread], np.uint64)
    assert spread.bit_count() == max_distance
    assert near_pairs(hashes, max_distance=max_distance, at_most=9).distance == [max_distance]
    assert len(near_pairs(hashes, max_distance=max_distance - 1, at_most=9).first) == 0


@pytest.mark.parametrize("max_distance", [0, 5])
def test_a_flood_of_equal_hashes_stops_at_the_limit_and_says_so(max_distance: int) -> None:
    hashes = np.full(5000, 7, dtype=np.uint64)  # 12,497,500 pairs
    found = near_pairs(hashes, max_distance=max_distance, at_most=9000)
    assert (len(found.first), found.complete) == (9000, False)
    assert (found.first < found.second).all()
    assert (found.distance == 0).all()


@pytest.mark.parametrize(("at_most", "complete"), [(3, True), (2, False), (0, False)])
def test_the_limit_is_exact(at_most: int, complete: bool) -> None:
    found = near_pairs(np.zeros(3, np.uint64), max_distance=2, at_most=at_most)
    assert (len(found.first), found.complete) == (at_most, complete)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_have_no_pairs(count: int) -> None:
    found = near_pairs(np.zeros(count, np.uint64), max_distance=12, at_most=9)
    assert (len(found.first), found.complete) == (0, True)


@pytest.mark.parametrize("max_distance", [-1, 64])
def test_a_distance_that_64_bits_cannot_have(max_distance: int) -> None:
    with pytest.raises(ConfigError, match=rf"max_distance={max_distance}: .* \[0, 63\]"):
        near_pairs(np.zeros(3, np.uint64), max_distance=max_distance, at_most=9)


# --- merging ---


def table(lesions: str, dx: str = "") -> pd.DataFrame:
    """Images i0, i1, ... of the lesions named by one letter each, all nv unless said otherwise."""
    return pd.DataFrame(
        {
            "image_id": [f"i{row}" for row in range(len(lesions))],
            "lesion_id": list(lesions),
            "dx": ["nv" if code in ("", "n") else "mel" for code in dx or "n" * len(lesions)],
            "age": np.arange(len(lesions), dtype=float),
        }
    )


def merged(frame: pd.DataFrame, *pairs: tuple[int, int]) -> str:
    joined = merge_duplicates(frame, [(f"i{a}", f"i{b}") for a, b in pairs])
    pd.testing.assert_frame_equal(joined.drop(columns="lesion_id"), frame.drop(columns="lesion_id"))
    return "".join(joined["lesion_id"])


def test_joined_lesions_take_all_their_images_and_the_smallest_id() -> None:
    frame = table("dbdcca")
    assert merged(frame, (1, 0)) == "bbbcca"
    assert merged(frame, (0, 3), (4, 1)) == "bbbbba"  # d-c and c-b, through two images of c
    assert merged(frame, (0, 2)) == "dbdcca"  # one lesion already
    assert merged(frame) == "dbdcca"
    assert "".join(frame["lesion_id"]) == "dbdcca"


@given(
    st.lists(st.integers(0, 11), min_size=2, max_size=20),
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=12),
)
def test_merging_is_transitive(lesions: list[int], drawn_pairs: list[tuple[int, int]]) -> None:
    frame = table("".join("abcdefghijkl"[lesion] for lesion in lesions))
    pairs = [(a % len(frame), b % len(frame)) for a, b in drawn_pairs]
    expected = frame["lesion_id"].tolist()
    for _ in frame.index:  # long enough for a chain through all rows
        for a, b in pairs:
            both = {expected[a], expected[b]}
            expected = [min(both) if lesion in both else lesion for lesion in expected]
    assert merged(frame, *pairs) == "".join(expected)
    assert merged(frame, *reversed(pairs)) == "".join(expected)


def test_duplicates_of_two_dx_are_refused_and_all_named() -> None:
    frame = table("abcde", dx="nmnmn")
    with pytest.raises(DataError) as caught:
        merged(frame, (0, 1), (0, 2), (3, 4))
    message = str(caught.value)
    assert "duplicates that have more than one dx: 2. Correct the dx of one" in message
    assert "i0 (nv) and i1 (mel)" in message
    assert "i3 (mel) and i4 (nv)" in message
    assert "i2" not in message


def test_pairs_of_another_table_are_refused() -> None:
    with pytest.raises(DataError, match=r"the table does not have: 1\.[^$]*\n  i0 and i9"):
        merged(table("abc"), (0, 1), (0, 9))
