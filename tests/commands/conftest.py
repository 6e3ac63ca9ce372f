"""Whole commands as a person runs them: real processes, tiny drawn data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from warm_python import WarmPython

Command = Callable[..., subprocess.CompletedProcess[str]]

# Small enough that a run is mostly the start of Python, with BatchNorm and dropout in it.
TINY = (
    "data=synthetic",
    "data.source.lesions=84",
    "data.source.image_size=32",
    "data.source.imbalance=0.0",
    "data.image_size=32",
    "model=timm",
    "model.backbone=test_resnet",
    "model.pretrained=false",
    "training.epochs=2",
    "training.batch_size=8",
    "training.threads=1",
)


def _environment(**more: str) -> dict[str, str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DERMALYZE_HAM10000", "MLFLOW_TRACKING_URI")
    }
    return environment | {"OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the drawn pictures lie, so that they are drawn once."""
    return tmp_path_factory.mktemp("data") / "phantoms"


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmPython]:
    """Where the project's own commands are forked from."""
    server = WarmPython(_environment())
    yield server
    server.close()


@pytest.fixture(scope="session")
def python_in(
    warm: WarmPython, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Command]:
    """For fixtures that outlive a test: run `python ARGS` in a given folder."""
    texts = tmp_path_factory.mktemp("texts")

    def command_in(folder: Path) -> Command:
        def run(
            *args: str, expect: int = 0, cold: bool = False, **environment: str
        ) -> subprocess.CompletedProcess[str]:
            env, timeout = _environment(**environment), 240
            of_this_project = args[0].endswith(".py") or args[1].startswith("dermalyze.")
            if of_this_project and not cold and "PYTHONPATH" not in env:
                done = warm.run([*args], cwd=folder, env=env, out=texts, timeout=timeout)
            else:
                done = subprocess.run(
                    [sys.executable, *args],
                    cwd=folder,
                    env=env,
                    capture_output=True,
                    text=True,
                    timeout=timeout,
                    check=False,
                )
            assert done.returncode == expect, done.stdout + done.stderr
            return done

        return run

    return command_in


@pytest.fixture
def python(python_in: Callable[[Path], Command], tmp_path: Path) -> Command:
    """Run `python ARGS` in an empty folder, and expect an exit code, 0 unless `expect` is given.

    `cold=True` asks for a Python that has imported nothing yet.
    """
    return python_in(tmp_path)


@pytest.fixture(scope="session")
def trained(
    tiny: tuple[str, ...],
    python_in: Callable[[Path], Command],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished run's folder, `outputs/train/one` below where it was started. Read it only."""
    start = tmp_path_factory.mktemp("trained")
    python_in(start)("-m", "dermalyze.train", *tiny, "hydra.run.dir=outputs/train/one")
    return start / "outputs" / "train" / "one"


@pytest.fixture(scope="session")
def tiny(phantoms: Path) -> tuple[str, ...]:
    """The overrides of a tiny run."""
    return (*TINY, f"data.root={phantoms}")
