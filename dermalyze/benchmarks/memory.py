"""The most memory that commands hold at once, and how it grows with the number of images."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dermalyze.benchmarks.timing import Bars, Report

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def measure(
    *, repeats: int, backbone: str, image_size: int, images: Sequence[int], files: Sequence[int]
) -> Report:
    """Run commands as people do, each in a process of its own, on drawn images.

    Memory is counted once: it hardly varies. The bytes of the images themselves stand beside it;
    they are read through a memory map, whose pages count as long as they are in memory.

    Args:
        repeats: not used.
        backbone: timm's name; its weights are random.
        image_size: pixels.
        images: drawn lesions that `train` and `evaluate` work on, in several runs.
        files: that `predict` is given; the last drawn ones, named again and again.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in images:
            drawn = Path(folder) / f"drawn{count}"
            run = Path(folder) / f"run{count}"
            words = [
                "data=synthetic",
                f"data.root={drawn}",
                f"data.source.lesions={count}",
                "data.source.imbalance=0.0",
                f"data.image_size={image_size}",
                "model=timm",
                f"model.backbone={backbone}",
                "model.pretrained=false",
                "training.epochs=1",
                "tracking=none",
                f"hydra.run.dir={run}",
            ]
            held = peak_of("train", words, Path(folder))
            shown = len(list(drawn.rglob("*.jpg")))
            rows.append(row_of("train", shown, held, shown * 3 * image_size**2))
            held = peak_of("evaluate", [f"checkpoint={run}", "track=false"], Path(folder))
            rows.append(row_of("evaluate", shown, held, shown * 3 * image_size**2))
        paths = sorted(drawn.rglob("*.jpg"))
        for count in files:
            table = Path(folder) / f"{count}.csv"
            names = [str(paths[number % len(paths)]) for number in range(count)]
            table.write_text("\n".join(["path", *names]) + "\n", encoding="utf-8")
            output = Path(folder) / f"{count}_predicted.csv"
            words = [f"checkpoint={run}", f"images={table}", f"output={output}"]
            rows.append(row_of("predict", count, peak_of("predict", words, Path(folder)), None))
    table_lines = [f"{'':<12}{'images':>10}{'at most':>12}{'of images':>12}"]
    for row in rows:
        own = "" if row["image_megabytes"] is None else f"{row['image_megabytes']:.0f} MB"
        table_lines.append(
            f"{row['what']:<12}{row['images']:>10,}{row['peak_megabytes']:>9.0f} MB{own:>12}"
        )
    title = f"memory of commands, {backbone} at {image_size} pixels"
    bars = [{**row, "what": f"{row['what']}, {row['images']:,} images"} for row in rows]
    return Report(title, table_lines, {"memory": rows}, Bars("MB", bars, of="peak_megabytes"))


def row_of(what: str, images: int, peak: float, image_bytes: int | None) -> dict[str, Any]:
    """Return a line of the report."""
    own = None if image_bytes is None else image_bytes / 1e6
    return {"what": what, "images": images, "peak_megabytes": peak, "image_megabytes": own}


def peak_of(command: str, words: Sequence[str], folder: Path) -> float:
    """Return the most megabytes that a command held, run in a folder.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with (folder / "said.txt").open("w") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", f"dermalyze.{command}", *words],
            cwd=folder,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise subprocess.CalledProcessError(
            child.returncode, child.args, (folder / "said.txt").read_text(encoding="utf-8")
        )
    return in_megabytes(used.ru_maxrss)


def forget_peak() -> bool:
    """Let `peak_megabytes` count from now on; return False where the system cannot: not Linux."""
    try:
        _CLEAR.write_text("5", encoding="ascii")  # proc(5): resets the peak resident set size
    except OSError:
        return False
    return True


def peak_megabytes() -> float:
    """Return the most that this process held at once since `forget_peak`, pages of files included.

    What it held already at that time counts too, as long as it is held.
    """
    (kibibytes,) = (
        line.split()[1]
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        if line.startswith("VmHWM:")
    )
    return int(kibibytes) * 1024 / 1e6


def in_megabytes(ru_maxrss: int) -> float:
    """Return what the operating system counts in kibibytes, and macOS in bytes."""
    return ru_maxrss / 1e6 if sys.platform == "darwin" else ru_maxrss * 1024 / 1e6
