"""Measure speed against a peer, side by side: `python -m dermalyze.benchmark --help`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from dermalyze.command import command

logger = logging.getLogger("dermalyze")


@command("benchmark")
def main(cfg: DictConfig) -> None:
    """Measure the parts that were asked for; print their tables and write a JSON file for each."""
    from dermalyze.benchmarks import cache, startup, tracking
    from dermalyze.benchmarks.timing import Report
    from dermalyze.files import write_json
    from dermalyze.run_folder import software
    from dermalyze.schema import Benchmark, checked

    config = checked(cfg, Benchmark)
    measures: dict[str, Callable[..., Report]] = {
        "startup": startup.measure,
        "cache": cache.measure,
        "tracking": tracking.measure,
    }
    folder = Path(config["output"])
    folder.mkdir(parents=True, exist_ok=True)
    about = software(device="cpu", threads=1, precision="none")
    files = []
    for part in config["parts"]:
        report = measures[part](repeats=config["repeats"], **config.get(part, {}))
        files.append(f"{part}.json")
        write_json(folder / files[-1], {**report.numbers, "software": about})
        logger.info("%s\n%s", report.title, "\n".join(report.table))
    logger.info("made %s (%s)", folder, ", ".join(files))


if __name__ == "__main__":
    main()
