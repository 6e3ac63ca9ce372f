"""Dermalyze: train, compare and honestly evaluate classifiers of dermoscopic images.

For education and research, never for diagnosis.

    from dermalyze import SkinLesionPredictor, load_ensemble_predictor
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dermalyze.prediction.predictor import (
        EnsemblePredictor,
        SkinLesionPredictor,
        load_ensemble_predictor,
    )

__version__ = "0.1.0"

__all__ = ["EnsemblePredictor", "SkinLesionPredictor", "load_ensemble_predictor"]


def __getattr__(name: str) -> Any:
    """Import the predictor when it is first asked for: it brings torch along."""
    if name in __all__:
        return getattr(import_module("dermalyze.prediction.predictor"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
