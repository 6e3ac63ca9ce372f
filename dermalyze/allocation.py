"""Whether memory that tensors free stays with the process, to be used again.

glibc takes each block of more than 32 MB from the system anew and hands it back when it is freed;
the kernel then fills it with zeros again, page by page. On a CPU the activations of each step are
such blocks: EfficientNet-V2-S with 16 images asks for 800 MB of zeros a step, a fifth of its time.
Blocks that stay cost nothing, and the process stays as large as it was at its largest.
(mallopt(3); on GPUs torch does the same by itself.)
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h's numbers of what mallopt sets


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; return False where nothing was changed.

    Nothing is where the C library is not glibc (macOS, Windows, Alpine), and where the environment
    says already how memory is to be had (`MALLOC_...`, `GLIBC_TUNABLES`).
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if told or os.name != "posix":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
