"""A Python that has imported the heavy packages, and forks a process of its own for each command.

Importing torch, MLflow and the like takes longer than what most tests ask of a command. Only the
import is shared: every command has its own process, folder, environment, output and exit code.

`python warm_python.py` reads one JSON object a line, {argv, cwd, env, stdout, stderr, timeout}, and
answers each with the exit code of `python ARGV`, which begins with `-m MODULE` or a script's path.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO


class WarmPython:
    """Runs commands in a process that is forked from a warm one.

    Args:
        environment: of the warm process; what packages read at import is read from here.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(
        self, argv: list[str], *, cwd: Path, env: dict[str, str], out: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `python ARGV`; the text of both outputs goes through files below `out`."""
        files = {"stdout": out / "stdout", "stderr": out / "stderr"}
        task = {"argv": argv, "cwd": str(cwd), "env": env, "timeout": timeout}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task | {k: str(v) for k, v in files.items()}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
        return subprocess.CompletedProcess(argv, code, **texts)

    def close(self) -> None:
        """End the warm process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _import_the_heavy_packages() -> None:
    import mlflow  # noqa: F401
    import sklearn.metrics  # noqa: F401

    import dermalyze.assessment
    import dermalyze.comparison
    import dermalyze.experiment
    import dermalyze.search.results
    import dermalyze.search.worker  # noqa: F401

    # Without this a command's collector, at its end at the latest, walks and so copies all of that.
    gc.collect()
    gc.freeze()


def _next_command(tasks: TextIO, answers: TextIO) -> dict[str, Any] | None:
    """Fork for each task: return it in the child; None in the server, after the last one."""
    for line in tasks:
        task: dict[str, Any] = json.loads(line)
        child = os.fork()
        if child == 0:
            return task
        print(_exit_code(child, task["timeout"]), file=answers, flush=True)
    return None


def _exit_code(child: int, timeout: float) -> int:
    deadline = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.005)


def _become(task: dict[str, Any], started_with: dict[str, str]) -> None:
    """Make this process what `python ARGV` would have been started as."""
    os.setsid()
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, task["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, task["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(task["cwd"])
    for name in started_with.keys() - task["env"].keys():  # what imports set since then stays
        os.environ.pop(name, None)  # MLflow takes some of its own away
    os.environ.update(task["env"])
    sys.orig_argv = [sys.executable, *task["argv"]]
    is_module = task["argv"][0] == "-m"
    sys.argv = task["argv"][1:] if is_module else task["argv"]
    sys.path[0] = task["cwd"] if is_module else str(Path(sys.argv[0]).parent)


if __name__ == "__main__":
    environment = dict(os.environ)
    _import_the_heavy_packages()
    command = _next_command(sys.stdin, sys.stdout)
    if command is not None:
        _become(command, environment)
        if command["argv"][0] == "-m":
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
