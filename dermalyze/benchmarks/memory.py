"""How much memory this process has needed so far."""

from __future__ import annotations

import resource
import sys


def peak_megabytes() -> float:
    """Return the most that the process has held in memory at once, pages of files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
