"""What a phantom of each class looks like, with whom it is confused, how often, on whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# How strongly each class shows each cue when it shows all that a textbook promises. The first six
# are the body of the lesion, the others the structures that a dermatologist looks for.
TEXTBOOK: dict[str, dict[str, float]] = {
    "akiec": dict(melanin=0.25, blood=0.42, keratin=0.35, irregular=0.6, sharp=0.1, mottled=0.4)
    | dict(scales=1.0, dotted=1.0),
    "bcc": dict(melanin=0.15, blood=0.38, keratin=0.05, irregular=0.5, sharp=0.4, mottled=0.2)
    | dict(trees=1.0, nests=1.0, scales=0.2),
    "bkl": dict(melanin=0.48, blood=0.08, keratin=0.90, irregular=0.5, sharp=0.9, mottled=0.4)
    | dict(cysts=1.0, dots=0.1),
    "df": dict(melanin=0.42, blood=0.18, keratin=0.05, irregular=0.2, sharp=0.0, mottled=0.2)
    | dict(scar=1.0, network=0.5),
    "mel": dict(melanin=0.80, blood=0.12, keratin=0.05, irregular=1.0, sharp=0.5, mottled=1.0)
    | dict(veil=1.0, dots=1.0, network=0.5),
    "nv": dict(melanin=0.65, blood=0.12, keratin=0.05, irregular=0.2, sharp=0.1, mottled=0.3)
    | dict(network=1.0, dots=0.1),
    "vasc": dict(melanin=0.05, blood=0.55, keratin=0.00, irregular=0.2, sharp=0.8, mottled=0.1)
    | dict(lacunae=1.0),
}

# What is left of a lesion that shows nothing of its class: a brownish-pink blob.
FEATURELESS = dict(melanin=0.45, blood=0.22, keratin=0.15, irregular=0.5, sharp=0.4, mottled=0.3)

# With whom each class is confused in the clinic, most often first.
NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "akiec": ("bcc", "bkl"),
    "bcc": ("akiec", "vasc"),
    "bkl": ("mel", "nv", "akiec"),
    "df": ("nv", "bcc"),
    "mel": ("nv", "bkl"),
    "nv": ("mel", "bkl", "df"),
    "vasc": ("bcc", "mel"),
}

LESIONS_IN_HAM10000 = dict(akiec=228, bcc=327, bkl=727, df=73, mel=614, nv=5403, vasc=98)


@dataclass(frozen=True)
class Clinic:
    """What the made-up patients of a class are like: roughly HAM10000's."""

    age: tuple[float, float]  # mean and standard deviation, years
    male: float  # share in [0, 1]
    dx_type: dict[str, float]  # shares, sum 1
    localization: dict[str, float]  # weights


CLINICS = {
    "akiec": Clinic(
        (66, 11), 0.67, {"histo": 1.0},
        {"face": 5, "upper extremity": 3, "lower extremity": 3, "back": 1, "scalp": 1, "hand": 1},
    ),
    "bcc": Clinic(
        (67, 13), 0.62, {"histo": 1.0},
        {"back": 5, "face": 3, "lower extremity": 2, "chest": 1, "abdomen": 1, "neck": 1},
    ),
    "bkl": Clinic(
        (64, 14), 0.58, {"histo": 0.70, "consensus": 0.24, "confocal": 0.06},
        {"face": 4, "back": 3, "lower extremity": 2, "upper extremity": 1, "chest": 1, "trunk": 1},
    ),
    "df": Clinic(
        (53, 13), 0.55, {"histo": 0.48, "consensus": 0.52},
        {"lower extremity": 7, "upper extremity": 2, "abdomen": 1},
    ),
    "mel": Clinic(
        (61, 15), 0.62, {"histo": 1.0},
        {"back": 4, "upper extremity": 3, "lower extremity": 2, "face": 1, "chest": 1, "trunk": 1},
    ),
    "nv": Clinic(
        (46, 15), 0.51, {"histo": 0.37, "follow_up": 0.55, "consensus": 0.08},
        {"lower extremity": 4, "back": 4, "trunk": 3, "abdomen": 2, "upper extremity": 2},
    ),
    "vasc": Clinic(
        (51, 20), 0.49, {"histo": 0.47, "consensus": 0.53},
        {"trunk": 3, "abdomen": 3, "lower extremity": 3, "back": 2, "upper extremity": 1},
    ),
}  # fmt: skip


def cue_strengths(rng: np.random.Generator, dx: str, *, difficulty: float) -> dict[str, float]:
    """Draw how strongly one lesion of class `dx` shows each cue; all values >= 0.

    At difficulty 0 a lesion is its class's textbook page, give or take a fifth. The higher the
    difficulty (up to 1), the more it may borrow of a neighbouring class, and the more all its cues
    may fade towards the featureless blob.
    """
    neighbours = NEIGHBOURS[dx]
    likely = np.arange(len(neighbours), 0, -1.0)
    neighbour = TEXTBOOK[neighbours[rng.choice(len(neighbours), p=likely / likely.sum())]]
    borrowed = difficulty * rng.beta(0.6, 1.4)
    faded = difficulty * rng.beta(1.0, 1.0)
    strengths = {}
    for cue in sorted({cue for page in TEXTBOOK.values() for cue in page}):
        mixed = (1 - borrowed) * TEXTBOOK[dx].get(cue, 0.0) + borrowed * neighbour.get(cue, 0.0)
        shown = (1 - faded) * mixed + faded * FEATURELESS.get(cue, 0.0)
        strengths[cue] = shown * rng.uniform(0.8 - 0.4 * difficulty, 1.2)
    return strengths
