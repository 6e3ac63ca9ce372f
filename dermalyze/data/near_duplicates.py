"""Pictures that show the same thing in other bytes: proposed by a hash, proved by pixels.

A file saved again at another quality, size, brightness, contrast or sharpness has other bytes and
still is the same picture. So is, to a model, the next photograph of the same lesion from the same
place. Copies that are mirrored, or turned by more than a few degrees, are not looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy.fft import dctn, irfft2, rfft2
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from dermalyze.data.metadata_file import listed
from dermalyze.errors import ConfigError, DataError

Grey = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

GREY_SIZE = 64  # pixels a side of the pictures that are compared
HASH_BITS = 64
_LOWEST = 8  # frequencies a direction that go into the hash: 8 x 8 = 64 bits
_BLOCK = 256  # pictures transformed at once, so that they stay in the processor's cache


class NearPairs(NamedTuple):
    """P pairs of positions, first < second, with the Hamming distances of their hashes."""

    first: Positions
    second: Positions
    distance: Positions
    complete: bool  # False: the search stopped at its limit, and there are more


def grey_picture(image_HWC: npt.NDArray[np.uint8]) -> Grey:
    """Return the brightness (ITU-R BT.601, 0 to 255, shape (H, W)) of an RGB picture."""
    return np.asarray(Image.fromarray(image_HWC).convert("L"))


def perceptual_hashes(grey_NHW: Grey) -> Hashes:
    """Return the 64-bit DCT hash (pHash) of each of N grey pictures.

    A bit is 1 where one of the 8 x 8 lowest DCT-II coefficients exceeds the median of the 64
    (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). But for ties
    half of the bits are 1 in every picture, so distances are even numbers.
    """
    hashes = np.empty(len(grey_NHW), dtype=np.uint64)
    for start in range(0, len(grey_NHW), _BLOCK):
        block_BHW = grey_NHW[start : start + _BLOCK].astype(np.float32)
        lowest_BHW = dctn(block_BHW, axes=(1, 2))[:, :_LOWEST, :_LOWEST]
        lowest_BC = lowest_BHW.reshape(len(block_BHW), HASH_BITS)
        bits_BC = lowest_BC > np.median(lowest_BC, axis=1, keepdims=True)
        hashes[start : start + _BLOCK] = np.packbits(bits_BC, axis=1).view(np.uint64).ravel()
    return hashes


def near_pairs(hashes_N: Hashes, *, max_distance: int, at_most: int) -> NearPairs:
    """Return all pairs of hashes within a Hamming distance, without comparing all with all.

    Multi-index hashing (Norouzi, Punjani and Fleet, Fast Search in Hamming Space with Multi-Index
    Hashing, CVPR 2012): cut into `max_distance` + 1 pieces, two hashes that differ in at most
    `max_distance` bits are equal in at least one piece. So only hashes that share a piece are
    compared. Memory grows with N and `at_most`. The time is that of all with all at worst, when
    all hashes share a piece.

    Args:
        hashes_N: N hashes.
        max_distance: in bits, in [0, 63]. Up to about 10 the pieces are long enough to be worth
            it. Of 10,015 random hashes 10 compares 10.2 million pairs, 20 % of all, in 0.15 s of
            one core; 12, as in conf/duplicates.yaml, 21.9 million, 44 %, in 0.3 s; 16 more than
            all, since pairs that share several pieces are met again.
        at_most: how many pairs are returned; the search stops when it has found more.

    Raises:
        ConfigError: `max_distance` is not in [0, 63].
    """
    if not 0 <= max_distance < HASH_BITS:
        raise ConfigError(
            f"max_distance={max_distance}: not a number of differing bits in [0, {HASH_BITS - 1}]. "
            "Give a small one such as 8."
        )
    count = len(hashes_N)
    found = np.empty(0, dtype=np.int64)  # each pair as first * count + second
    pieces = max_distance + 1
    for low, high in pairwise(HASH_BITS * piece // pieces for piece in range(pieces + 1)):
        found = np.union1d(found, _pairs_by_piece(hashes_N, low, high, max_distance, at_most))
        if len(found) > at_most:
            break
    first, second = np.divmod(found[:at_most], max(count, 1))
    distance = np.bitwise_count(hashes_N[first] ^ hashes_N[second]).astype(np.int64)
    return NearPairs(first, second, distance, complete=len(found) <= at_most)


def _pairs_by_piece(
    hashes_N: Hashes, low: int, high: int, max_distance: int, at_most: int
) -> Positions:
    """Return the near pairs that are equal in bits [low, high), a few more than asked at most."""
    count = len(hashes_N)
    piece_N = (hashes_N >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
    order_N = np.argsort(piece_N, kind="stable")
    piece_N, sorted_N = piece_N[order_N], hashes_N[order_N]
    found: list[Positions] = []
    # Sorted, those that share a piece are neighbours: each is compared with the next one, then
    # with the next but one, and so on while any still shares.
    left, step, total = np.arange(count), 1, 0
    while len(left) and total <= at_most:
        left = left[left < count - step]
        left = left[piece_N[left] == piece_N[left + step]]
        near = left[np.bitwise_count(sorted_N[left] ^ sorted_N[left + step]) <= max_distance]
        one, other = order_N[near], order_N[near + step]
        found.append(np.minimum(one, other) * count + np.maximum(one, other))
        total += len(near)
        step += 1
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def similarities(grey_NHW: Grey, first: Positions, second: Positions) -> npt.NDArray[np.float32]:
    """Return how well each pair of pictures can be laid over each other, in [0, 1].

    It is the peak of their phase correlation (Kuglin and Hines, The Phase Correlation Image
    Alignment Method, 1975): 1 for equal pictures, whatever their brightness and contrast, and
    little less after a shift by a few pixels; about 0.1 for two lesions of like form, because it is
    details that have to agree. No picture may be of a single colour.
    """
    height, width = grey_NHW.shape[1:]
    # Without it the edges, where a picture does not go on as it began, would correlate.
    window_HW = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)

    def phases(at: Positions) -> npt.NDArray[np.complex64]:
        pixels_BHW = grey_NHW[at].astype(np.float32)
        centred_BHW = pixels_BHW - pixels_BHW.mean(axis=(1, 2), keepdims=True)
        spectrum_BHW = rfft2(centred_BHW * window_HW)
        phase_BHW: npt.NDArray[np.complex64] = spectrum_BHW / np.maximum(abs(spectrum_BHW), 1e-3)
        return phase_BHW

    result = np.empty(len(first), dtype=np.float32)
    many = len(first)
    with tqdm(total=many, desc="comparing", unit="pair", disable=None if many else True) as bar:
        for start in range(0, len(first), _BLOCK):
            part = slice(start, start + _BLOCK)
            crossed_BHW = phases(first[part]) * phases(second[part]).conj()
            result[part] = irfft2(crossed_BHW, s=(height, width)).max(axis=(1, 2))
            bar.update(len(crossed_BHW))
    return np.clip(result, 0, 1)


def merge_duplicates(frame: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return the table with the lesions of each pair joined, and with theirs, and so on.

    A joined lesion has the smallest of its ids. A split by lesion then keeps it in one part.

    Args:
        frame: a row an image, with image_id, lesion_id and dx; not changed.
        pairs: image ids of pictures that are the same.

    Raises:
        DataError: an image of a pair is not in the table, or a pair has two dx. A lesion has one
            dx, so such a pair cannot be joined; and left apart, the same picture could be learned
            under one name and asked for under the other. Which name is wrong is not ours to guess.
    """
    if not pairs:
        return frame.copy()
    images = pd.Index(frame["image_id"])
    rows_P2 = images.get_indexer(pd.Index(np.array(pairs).ravel())).reshape(-1, 2)
    unknown = [f"{a} and {b}" for (a, b), at in zip(pairs, rows_P2, strict=True) if at.min() < 0]
    dx_P2 = frame["dx"].to_numpy()[rows_P2]
    torn = [
        f"{a} ({dx_a}) and {b} ({dx_b})"
        for (a, b), (dx_a, dx_b) in zip(pairs, dx_P2, strict=True)
        if dx_a != dx_b
    ]
    problems = listed(
        "pairs of an image that the table does not have",
        "Find duplicates in this very table",
        unknown,
    ) or listed(
        "duplicates that have more than one dx",
        "Correct the dx of one, remove one, or ask for closer duplicates only",
        torn,
    )
    if problems:
        raise DataError("\n".join(["duplicates cannot be joined:", *problems]))

    # Numbered in the order of their ids, so the first lesion met of a component is the smallest.
    lesion_of_row, lesions = pd.factorize(frame["lesion_id"], sort=True)
    first, second = lesion_of_row[rows_P2].T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(lesions), len(lesions)))
    _, component = connected_components(graph, directed=False)
    _, smallest = np.unique(component, return_index=True)
    return frame.assign(lesion_id=lesions[smallest[component[lesion_of_row]]])
