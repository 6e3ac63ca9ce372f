"""Measure speed against a peer, side by side: `python -m dermalyze.benchmark --help`."""

from __future__ import annotations

import logging

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dermalyze.command import command

logger = logging.getLogger("dermalyze")


@command("benchmark")
def main(cfg: DictConfig) -> None:
    """Measure the parts that were asked for: a table, a JSON file and a chart of each."""
    from dermalyze.benchmarks.parts import measure_parts
    from dermalyze.benchmarks.schema import Benchmark
    from dermalyze.schema import checked
    from dermalyze.taxonomy import DISCLAIMER

    words = HydraConfig.get().overrides.task
    typed = any(word.lstrip("+").startswith("parts=") for word in words)
    measure_parts(checked(cfg, Benchmark), typed=typed)
    logger.info(DISCLAIMER)


if __name__ == "__main__":
    main()
