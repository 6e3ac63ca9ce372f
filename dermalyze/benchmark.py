"""Measure speed against a peer, side by side: `python -m dermalyze.benchmark --help`."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from pathlib import Path

from omegaconf import DictConfig

from dermalyze.command import command

logger = logging.getLogger("dermalyze")


@command("benchmark")
def main(cfg: DictConfig) -> None:
    """Measure the parts that were asked for: a table, a JSON file and, of rates, a chart."""
    from dermalyze.benchmarks.chart import write_chart
    from dermalyze.benchmarks.memory import peak_megabytes
    from dermalyze.benchmarks.schema import Benchmark
    from dermalyze.benchmarks.timing import Report
    from dermalyze.files import write_json
    from dermalyze.run_folder import software
    from dermalyze.schema import checked
    from dermalyze.taxonomy import DISCLAIMER

    config = checked(cfg, Benchmark)
    folder = Path(config["output"])
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for part in config["parts"]:
        measure = import_module(f"dermalyze.benchmarks.{part}").measure
        report: Report = measure(repeats=config["repeats"], **config.get(part, {}))
        logger.info("%s\n%s", report.title, "\n".join(report.table))
        about = software(device="cpu", threads=os.cpu_count() or 1, precision="fp32")
        memory = {"peak_megabytes": peak_megabytes()}
        write_json(folder / f"{part}.json", {**report.numbers, **memory, "software": about})
        files.append(f"{part}.json")
        if report.bars is not None:
            files.append(f"{part}.png")
            write_chart(folder / files[-1], report.bars, report.title)
    logger.info(
        "made %s (%s); at most %.0f MB of memory", folder, ", ".join(files), peak_megabytes()
    )
    logger.info(DISCLAIMER)


if __name__ == "__main__":
    main()
