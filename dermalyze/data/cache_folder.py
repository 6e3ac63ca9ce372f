"""What the folder of one cache holds, and how it is known to be whole.

`images.npy` holds the rows; `index.json` says of which files they are (sha256, in order) and how
they were decoded. The folder's name is a checksum of that index.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermalyze.errors import DataError

ARRAY = "images.npy"
INDEX = "index.json"
# Only a folder of such a name is ever read as a cache.
NAME = re.compile(r"[0-9a-f]{32}")

Index = dict[str, Any]


def name_of(index: Index) -> str:
    """Return the folder's name: the first half of the index's sha256."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()[:32]


def shape_of(index: Index) -> tuple[int, int, int, int]:
    """Return the array's shape, (N, image_size, image_size, 3)."""
    return len(index["sha256"]), index["image_size"], index["image_size"], 3


def read_folder(folder: Path) -> tuple[Index, NDArray[np.uint8]]:
    """Return a cache's index and its rows, as a memory map that cannot be written to.

    The index is held against the folder's name and the array against the index: its size, type and
    shape. Its pixels are not read, so a byte that decayed on the disk is not found here.

    A map that could be written to, even one that keeps its changes to itself, would count as this
    process's own memory, and a kernel may refuse one that is larger than the machine's.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: it is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        expected_size = index.pop("bytes")
        if name_of(index) != folder.name:
            raise ValueError(f"{INDEX} has another checksum than the folder's name")
        size = (folder / ARRAY).stat().st_size
        if size != expected_size:
            raise ValueError(f"{ARRAY} has {size} bytes, expected {expected_size}")
        images: NDArray[np.uint8] = np.load(folder / ARRAY, mmap_mode="r", allow_pickle=False)
        shape = shape_of(index)
        if images.dtype != np.uint8 or images.shape != shape:
            raise ValueError(f"{ARRAY} holds {images.dtype} {images.shape}, expected uint8 {shape}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: a damaged image cache ({error}).") from error
    return index, images
