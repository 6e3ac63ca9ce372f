"""Every command can be started by a name of its own once the package is installed."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dermalyze"


def test_each_module_that_is_a_command_has_a_script() -> None:
    commands = set()
    for path in PACKAGE.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named_main = any(
            isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body
        )
        if named_main:
            commands.add(path.stem)
    assert {"train", "report", "show_schedule"} <= commands
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {
        f"dermalyze-{name.replace('_', '-')}": f"dermalyze.{name}:main" for name in commands
    }
