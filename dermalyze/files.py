"""Files that are whole or not there: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content`, so that `path` holds what it held before or all of it, whatever happens."""
    writer = f"{os.getpid()}-{threading.get_ident()}"  # two threads may write one path at once
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write plain containers as JSON; a NaN is refused, since JSON has none."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
