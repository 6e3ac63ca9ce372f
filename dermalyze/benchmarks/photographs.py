"""JPEG files that cost a decoder what HAM10000's photographs cost it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from dermalyze.benchmarks.cache import write_photographs
from dermalyze.config import CONF_DIR


def photographs(folder: Path, *, images: int) -> list[Path]:
    """Write so many files, of the size that `cache.*` of the benchmark's config says."""
    cache = OmegaConf.load(CONF_DIR / "benchmark.yaml").cache
    size = {name: cache[name] for name in ("width", "height", "quality", "noise")}
    return write_photographs(folder, images=images, **size)
