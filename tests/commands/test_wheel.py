"""The wheel carries conf/ and works where no checkout is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_the_installed_wheel_composes_the_same_config(python, tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built, installed = tmp_path / "built", tmp_path / "installed"
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(ROOT)]
    subprocess.run([*pip, *build], check=True, capture_output=True, timeout=120)
    (wheel,) = built.glob("dermalyze-*.whl")
    install = ["install", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True, timeout=120)

    where = python("-c", "import dermalyze; print(dermalyze.__file__)", PYTHONPATH=str(installed))
    assert Path(where.stdout.strip()).is_relative_to(installed)
    shipped = {path.relative_to(installed / "dermalyze/conf") for path in installed.rglob("*.yaml")}
    assert shipped == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}

    job = ("-m", "dermalyze.train", "model/head=acrnn", "--cfg", "job")
    from_wheel = python(*job, PYTHONPATH=str(installed)).stdout
    assert "AcrnnHead" in from_wheel
    assert from_wheel == python(*job).stdout
