"""Whether a data set can be trusted: broken files, duplicates, gaps, and what leaks the label.

An audit tells and never changes: what to do about a pair of duplicates is said by whoever reads
it, and done by `near_duplicates.merge_duplicates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from dermalyze.data.image_check import (
    ImageFault,
    Look,
    counted,
    look_at_all,
    odd_images,
    thumbnails,
)
from dermalyze.data.near_duplicates import near_pairs, perceptual_hashes, similarities
from dermalyze.data.table import Finding, LesionTable
from dermalyze.data.table_facts import TableFacts, table_facts
from dermalyze.errors import DataError
from dermalyze.taxonomy import DISCLAIMER

# Pairs of near hashes that are looked at. 6,000 images of HAM10000 make 10,000 within 12 bits; more
# than this come from hundreds of near-equal images, or from a max_distance that tells none apart.
PAIRS_AT_MOST = 200_000


@dataclass(frozen=True)
class Pair:
    """Two images that are the same: byte for byte (`exact`), or to the eye."""

    image_ids: tuple[str, str]
    lesion_ids: tuple[str, str]
    dx: tuple[str, str]
    exact: bool
    distance: int  # bits in which the 64-bit hashes differ
    similarity: float  # peak of the phase correlation, in [0, 1]

    @property
    def same_lesion(self) -> bool:
        """Whether both stand under one lesion_id, as they should."""
        return self.lesion_ids[0] == self.lesion_ids[1]

    @property
    def same_dx(self) -> bool:
        """Whether both have one dx, as they should."""
        return self.dx[0] == self.dx[1]


@dataclass(frozen=True)
class Audit:
    """What was found.

    `pairs` is sorted, the most dangerous first: two lesions before one, two dx before one, then the
    closest. Of k equal files each one is paired with the first, which alone is compared with other
    images. `look_alikes` counts pairs whose hashes are near while their pixels differ: other
    pictures of a like layout. `pairs_complete` is False when there were too many pairs to look at
    all. `thumbnails` maps image ids of the first pairs to JPEGs (base64); not part of `as_dict`.
    """

    name: str
    fingerprint: str  # of the table
    max_distance: int
    min_similarity: float
    facts: TableFacts
    findings: tuple[Finding, ...]
    missing_images: int
    broken: tuple[ImageFault, ...]
    odd: tuple[ImageFault, ...]
    sizes: dict[str, int]  # "width x height" -> images, the most frequent first
    modes: dict[str, int]  # Pillow's mode, such as RGB -> images
    pairs: tuple[Pair, ...]
    pairs_complete: bool
    look_alikes: int
    thumbnails: dict[str, str]

    @property
    def across_lesions(self) -> tuple[Pair, ...]:
        """Duplicates under two lesion ids: a split by lesion can put them into two parts."""
        return tuple(pair for pair in self.pairs if not pair.same_lesion)

    @property
    def within_lesions(self) -> tuple[Pair, ...]:
        """Duplicates under one lesion id: harmless to a split, and no news to training."""
        return tuple(pair for pair in self.pairs if pair.same_lesion)

    @property
    def of_several_dx(self) -> tuple[Pair, ...]:
        """Duplicates of which one dx at least must be wrong."""
        return tuple(pair for pair in self.pairs if not pair.same_dx)

    def confirmed(self, *, min_similarity: float) -> list[tuple[str, str]]:
        """Return the image ids of equal files, and of near-duplicates at least so similar.

        The similarity and not the distance is what tells the same lesion from a like one.

        Raises:
            DataError: less similar pairs were not looked for, or there were too many to look at
                all: it would be a list with gaps.
        """
        if min_similarity < self.min_similarity:
            raise DataError(
                f"duplicates of a similarity from {min_similarity:g}: only those from "
                f"{self.min_similarity:g} were looked for. Audit again with a smaller "
                "min_similarity."
            )
        if not self.pairs_complete:
            raise DataError(
                f"{self.name}: more than {PAIRS_AT_MOST:,} pairs of images have near hashes; not "
                "all were looked at. Audit again with a smaller max_distance, or remove the images "
                "that are in most pairs."
            )
        return [
            pair.image_ids for pair in self.pairs if pair.exact or pair.similarity >= min_similarity
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return all but the thumbnails as plain values for JSON."""
        values = asdict(self)
        del values["thumbnails"]
        values["findings"] = [
            {"level": f.level, "kind": f.kind, "message": f.message, "items": len(f.items)}
            for f in self.findings
        ]
        values["pairs"] = [
            {**asdict(pair), "same_lesion": pair.same_lesion, "same_dx": pair.same_dx}
            for pair in self.pairs
        ]
        values["pair_counts"] = {
            "exact": sum(pair.exact for pair in self.pairs),
            "near": sum(not pair.exact for pair in self.pairs),
            "across_lesions": len(self.across_lesions),
            "of_several_dx": len(self.of_several_dx),
        }
        return {**values, "disclaimer": DISCLAIMER}


def audit(
    table: LesionTable, *, max_distance: int, min_similarity: float, pictured_pairs: int
) -> Audit:
    """Look at every image of a table once, and at the table.

    Near-duplicates are pairs whose 64-bit perceptual hashes differ in at most `max_distance` bits
    and whose pixels at 64 x 64 have a phase correlation with a peak of at least `min_similarity`.
    The hash alone will not do, because lesions in the middle of skin hash alike: 10,384 pairs of
    5,984 images from HAM10000, each under a lesion id of its own, are within 12 bits. Three have a
    peak above 0.3, and to the eye show the same lesion; the others stay below 0.28. (Two such
    pairs more are known, shifted so far that their hashes are 16 and 24 bits apart.) A copy at JPEG
    quality 30, at half the size or at 1.2 times the brightness has a peak above 0.5.

    Args:
        table: what to look at. Files that cannot be read are listed and do not stop the audit.
        max_distance: in bits, in [0, 63]; such as 12.
        min_similarity: in [0, 1]; such as 0.3.
        pictured_pairs: for how many pairs thumbnails are kept, the most dangerous first; >= 0.

    Raises:
        ConfigError: `max_distance` is out of range.
    """
    looks, rows, broken = look_at_all(table.frame)
    pairs, look_alikes, complete = _pairs(rows, looks, max_distance, min_similarity)
    pictured = [image_id for pair in pairs[:pictured_pairs] for image_id in pair.image_ids]
    return Audit(
        name=table.name,
        fingerprint=table.fingerprint,
        max_distance=max_distance,
        min_similarity=min_similarity,
        facts=table_facts(table),
        findings=table.findings,
        missing_images=len(table.missing_images),
        broken=tuple(broken),
        odd=tuple(odd_images(rows, looks)),
        sizes=counted(look.size for look in looks),
        modes=counted(look.mode for look in looks),
        pairs=tuple(pairs),
        pairs_complete=complete,
        look_alikes=look_alikes,
        thumbnails=thumbnails(rows, pictured),
    )


def _pairs(
    rows: pd.DataFrame, looks: Sequence[Look], max_distance: int, min_similarity: float
) -> tuple[list[Pair], int, bool]:
    """Return the duplicates, the number of look-alikes, and whether all pairs were looked at."""
    values = list(rows[["image_id", "lesion_id", "dx"]].itertuples(index=False, name=None))

    def pair(first: int, second: int, exact: bool, distance: int, similarity: float) -> Pair:
        image_ids, lesion_ids, dx = zip(values[first], values[second], strict=True)
        return Pair(image_ids, lesion_ids, dx, exact, distance, similarity)

    first_of: dict[str, int] = {}
    found = []
    for position, look in enumerate(looks):
        first = first_of.setdefault(look.sha256, position)
        if first != position:
            found.append(pair(first, position, True, 0, 1.0))

    compared = np.array([at for at in first_of.values() if not looks[at].is_flat], dtype=np.int64)
    if len(compared) == 0:
        return sorted(found, key=_danger), 0, True
    grey_NHW = np.stack([looks[at].grey_HW for at in compared])
    near = near_pairs(perceptual_hashes(grey_NHW), max_distance=max_distance, at_most=PAIRS_AT_MOST)
    similarity = similarities(grey_NHW, near.first, near.second)
    alike = similarity >= min_similarity
    found += [
        pair(compared[first], compared[second], False, int(distance), round(float(r), 4))
        for first, second, distance, r in zip(
            near.first[alike], near.second[alike], near.distance[alike], similarity[alike],
            strict=True,
        )
    ]  # fmt: skip
    return sorted(found, key=_danger), int((~alike).sum()), near.complete


def _danger(pair: Pair) -> tuple[Any, ...]:
    closeness = (not pair.exact, pair.distance, -pair.similarity)
    return (pair.same_lesion, pair.same_dx, *closeness, pair.image_ids)
