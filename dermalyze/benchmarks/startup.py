"""Start-up of each command beside a bare Hydra app, one that has no config at all."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from dermalyze.benchmarks.timing import Report, in_turns, spread

_BARE_HYDRA_APP = """
import hydra
from omegaconf import DictConfig, OmegaConf

@hydra.main(config_path=None, config_name=None, version_base="1.3")
def main(cfg: DictConfig) -> None:
    print(OmegaConf.to_yaml(cfg))

main()
"""
_COMMANDS = ("train", "evaluate", "prepare")


def measure(*, repeats: int) -> Report:
    """Time `--help` and `--cfg job` of each command."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(_BARE_HYDRA_APP)
        for options in (["--help"], ["--cfg", "job"]):
            calls = {"bare Hydra app": [str(bare)]}
            calls |= {f"dermalyze.{name}": ["-m", f"dermalyze.{name}"] for name in _COMMANDS}
            peers = {
                f"{name} {' '.join(options)}": partial(
                    subprocess.run,
                    [sys.executable, *arguments, *options],
                    cwd=folder,
                    check=True,
                    capture_output=True,
                )
                for name, arguments in calls.items()
            }
            seconds = in_turns(peers, repeats=repeats, title=options[0], between=lambda: None)
            found: list[dict[str, Any]] = [
                {"what": name, **spread(values)} for name, values in seconds.items()
            ]
            yardstick = found[0]["median"]
            rows += [{**row, "ratio": row["median"] / yardstick} for row in found]
    table = [f"{'':<38}{'median':>9}{'spread':>16}{'ratio':>8}"]
    for row in rows:
        between = f"{row['fastest']:.2f} to {row['slowest']:.2f} s"
        table.append(f"{row['what']:<38}{row['median']:>7.2f} s{between:>16}{row['ratio']:>8.2f}")
    title = f"start-up against a bare Hydra app, {repeats} runs each"
    return Report(title, table, {"startup": rows})
