"""Start-up of each command beside a bare Hydra app, one that has no config at all."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from dermalyze.benchmarks.timing import Bars, Report, in_turns, spread, spread_words

_BARE_HYDRA_APP = """
import hydra
from omegaconf import DictConfig, OmegaConf

@hydra.main(config_path=None, config_name=None, version_base="1.3")
def main(cfg: DictConfig) -> None:
    print(OmegaConf.to_yaml(cfg))

main()
"""
_COMMANDS = ("train", "evaluate", "predict", "export", "compare", "prepare")
# Words, the commands that they are given to, and the exit codes of the bare app and of a command.
_ASKED = (
    (("--help",), _COMMANDS, (0, 0)),
    (("--cfg", "job"), _COMMANDS, (0, 0)),
    (("training.sede=1",), ("train",), (1, 2)),  # no such key
)


def measure(*, repeats: int) -> Report:
    """Time `--help` and `--cfg job` of commands, and how long `train` takes to refuse a typo."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(_BARE_HYDRA_APP)
        for words, commands, (of_bare, of_ours) in _ASKED:
            said = " ".join(words)
            peers = {
                f"bare Hydra app {said}": partial(started, [str(bare), *words], folder, of_bare)
            }
            for name in commands:
                arguments = ["-m", f"dermalyze.{name}", *words]
                peers[f"dermalyze.{name} {said}"] = partial(started, arguments, folder, of_ours)
            seconds = in_turns(peers, repeats=repeats, title=said, between=lambda: None)
            found: list[dict[str, Any]] = [
                {"what": name, **spread(values)} for name, values in seconds.items()
            ]
            yardstick = found[0]["median"]
            rows += [{**row, "ratio": row["median"] / yardstick} for row in found]
    table = [f"{'':<38}{'median':>9}{'spread':>16}{'ratio':>8}"]
    for row in rows:
        between = spread_words(row, digits=2)
        table.append(f"{row['what']:<38}{row['median']:>7.2f} s{between:>16}{row['ratio']:>8.2f}")
    title = f"start-up against a bare Hydra app, {repeats} runs each"
    return Report(title, table, {"startup": rows}, Bars("seconds", rows, of="median"))


def started(arguments: list[str], folder: str, code: int) -> None:
    """Run Python in a folder.

    Raises:
        subprocess.CalledProcessError: it ended with another exit code than this one.
    """
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode != code:
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
