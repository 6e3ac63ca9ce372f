"""The parts of a benchmark one after the other, and what is written of each."""

from __future__ import annotations

import logging
import os
import platform
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from dermalyze.benchmarks.chart import write_chart
from dermalyze.benchmarks.memory import forget_peak, peak_megabytes
from dermalyze.benchmarks.timing import Report
from dermalyze.errors import ConfigError
from dermalyze.files import write_json
from dermalyze.run_folder import origin, software

logger = logging.getLogger(__name__)

_CPUS = Path("/proc/cpuinfo")
_PACKAGES = ("onnx", "onnxruntime", "opencv-python-headless")  # beside those of every run


def measure_parts(config: dict[str, Any], *, typed: bool) -> None:
    """Measure the parts that were asked for: of each a table, a JSON file and a chart.

    The JSON says under `about` on what machine, by which versions, and the most memory that this
    process held meanwhile where the system can tell; not those that some parts start.

    Args:
        config: checked, plain, of `python -m dermalyze.benchmark`.
        typed: whether the parts were named on the command line. Of those that were not, one whose
            package is missing is left out.

    Raises:
        ConfigError: a package is missing; for parts that were not typed, after all the others.
    """
    folder = Path(config["output"])
    folder.mkdir(parents=True, exist_ok=True)
    files, left_out = [], []
    for part in config["parts"]:
        memory_counts = forget_peak()
        try:
            measure = import_module(f"dermalyze.benchmarks.{part}").measure
            report: Report = measure(repeats=config["repeats"], **config.get(part, {}))
        except ConfigError as error:
            if typed or not isinstance(error.__cause__, ModuleNotFoundError):
                raise
            logger.warning("%s is left out: %s", part, error)
            left_out.append(part)
            continue
        logger.info("%s\n%s", report.title, "\n".join(report.table))
        about = machine()
        if memory_counts:
            about["peak_megabytes"] = peak_megabytes()
        write_json(folder / f"{part}.json", {**report.numbers, "about": about})
        files.append(f"{part}.json")
        if report.bars is not None:
            files.append(f"{part}.png")
            write_chart(folder / files[-1], report.bars, report.title)
    logger.info("made %s (%s)", folder, ", ".join(files))
    if left_out:
        raise ConfigError(
            f"not measured, since packages are missing: {', '.join(left_out)}. See above for what "
            f"to install; then parts=[{','.join(left_out)}] measures the rest."
        )


def machine() -> dict[str, Any]:
    """Return what numbers depend on: the day, the command, its code, the processor, versions."""
    import torch  # late: a part may measure what goes without

    started = origin()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": started["command"],
        "git_commit": started["git_commit"],
        "cpu": processor(),
        "cores": os.cpu_count(),
        **software(device="cpu", threads=torch.get_num_threads(), precision="fp32"),
        **{name: _version(name) for name in _PACKAGES},
    }


def processor() -> str:
    """Return the processor's model, as Linux names it; else what Python knows of it."""
    if _CPUS.exists():
        for line in _CPUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
