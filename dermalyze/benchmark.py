"""Measure speed against a peer, side by side: `python -m dermalyze.benchmark --help`."""

from __future__ import annotations

import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from dermalyze.command import command

logger = logging.getLogger("dermalyze")

_BARE_HYDRA_APP = """
import hydra
from omegaconf import DictConfig, OmegaConf

@hydra.main(config_path=None, config_name=None, version_base="1.3")
def main(cfg: DictConfig) -> None:
    print(OmegaConf.to_yaml(cfg))

main()
"""
_COMMANDS = ("train", "evaluate", "prepare")


@command("benchmark")
def main(cfg: DictConfig) -> None:
    """Time the start-up of each command beside a bare Hydra app; print and write the ratios."""
    from dermalyze.files import write_json
    from dermalyze.run_folder import software
    from dermalyze.schema import Benchmark, checked

    config = checked(cfg, Benchmark)
    rows = _startup(config["repeats"])
    folder = Path(config["output"])
    folder.mkdir(parents=True, exist_ok=True)
    about = software(device="cpu", threads=1, precision="none")
    write_json(folder / "startup.json", {"startup": rows, "software": about})
    lines = [f"{'':<38}{'median':>9}{'spread':>16}{'ratio':>8}"]
    for row in rows:
        spread = f"{row['fastest']:.2f} to {row['slowest']:.2f} s"
        lines.append(f"{row['what']:<38}{row['median']:>7.2f} s{spread:>16}{row['ratio']:>8.2f}")
    logger.info(
        "start-up against a bare Hydra app, %d runs each\n%s", cfg.repeats, "\n".join(lines)
    )
    logger.info("made %s", folder / "startup.json")


def _startup(repeats: int) -> list[dict[str, float | str]]:
    """Return medians and spreads in seconds; the peers take turns, so that drift meets all."""
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(_BARE_HYDRA_APP)
        for options in (["--help"], ["--cfg", "job"]):
            peers = {"bare Hydra app": [str(bare)]}
            peers |= {f"dermalyze.{name}": ["-m", f"dermalyze.{name}"] for name in _COMMANDS}
            seconds: dict[str, list[float]] = {name: [] for name in peers}
            for turn in tqdm(range(repeats + 1), desc=options[0], leave=False, disable=None):
                for name, arguments in peers.items():
                    started = time.perf_counter()
                    call = [sys.executable, *arguments, *options]
                    subprocess.run(call, cwd=folder, check=True, capture_output=True)
                    if turn > 0:  # the first turn fills the file system's caches
                        seconds[name].append(time.perf_counter() - started)
            yardstick = statistics.median(seconds["bare Hydra app"])
            rows += [
                {
                    "what": f"{name} {' '.join(options)}",
                    "median": statistics.median(values),
                    "fastest": min(values),
                    "slowest": max(values),
                    "ratio": statistics.median(values) / yardstick,
                }
                for name, values in seconds.items()
            ]
    return rows


if __name__ == "__main__":
    main()
