"""The classes of dermoscopic lesions: code, order, name, and whether malignant.

Every probability vector in the project follows the order of the class list it was made with;
HAM10000's is alphabetical by code.
"""

from __future__ import annotations

from dataclasses import dataclass

DISCLAIMER = "For education and research only; not a medical device, never for diagnosis."


@dataclass(frozen=True)
class LesionClass:
    """One diagnosis (`dx`) that a model can tell apart."""

    code: str
    name: str
    malignant: bool


HAM10000: tuple[LesionClass, ...] = (
    LesionClass("akiec", "actinic keratosis / intraepithelial carcinoma", malignant=True),
    LesionClass("bcc", "basal cell carcinoma", malignant=True),
    LesionClass("bkl", "benign keratosis-like lesion", malignant=False),
    LesionClass("df", "dermatofibroma", malignant=False),
    LesionClass("mel", "melanoma", malignant=True),
    LesionClass("nv", "melanocytic nevus", malignant=False),
    LesionClass("vasc", "vascular lesion", malignant=False),
)

_NAMES = {lesion_class.code: lesion_class.name for lesion_class in HAM10000}

HAM10000_CODES: tuple[str, ...] = tuple(lesion_class.code for lesion_class in HAM10000)


def in_words(code: str) -> str:
    """Return the name of a class in words; of a class of one's own, nothing."""
    return _NAMES.get(code, "")


def description(code: str) -> str:
    """Return the name of a class in words; of a class of one's own, its code."""
    return in_words(code) or code
