"""What the documents tell people to type composes, and what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from dermalyze.benchmarks.schema import Benchmark
from dermalyze.compared_runs.schema import Comparison, Report
from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.exporting.schema import Export
from dermalyze.schema import (
    Evaluation,
    Prediction,
    Preparation,
    ShownAugmentation,
    checked,
    checked_run,
    checked_show,
)
from dermalyze.serving.schema import Serving

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
HEADERS = [ROOT / "Makefile", *sorted((ROOT / "conf").rglob("*.yaml"))]
CHECKS = {
    "train": checked_run,
    "evaluate": lambda cfg: checked(cfg, Evaluation),
    "predict": lambda cfg: checked(cfg, Prediction),
    "prepare": lambda cfg: checked(cfg, Preparation),
    "benchmark": lambda cfg: checked(cfg, Benchmark),
    "compare": lambda cfg: checked(cfg, Comparison),
    "report": lambda cfg: checked(cfg, Report),
    "export": lambda cfg: checked(cfg, Export),
    "serve": lambda cfg: checked(cfg, Serving),
    "show_augmentation": lambda cfg: checked(cfg, ShownAugmentation),
    "show_schedule": checked_show,
}


def commands() -> list[tuple[str, str]]:
    """Return (command, its arguments) of every line that calls one, comments cut off."""
    found = []
    for path in [*DOCUMENTS, *HEADERS]:
        for line in path.read_text(encoding="utf-8").splitlines():
            call = re.search(r" -m dermalyze\.(\w+)((?: [^#`|;]*)?)", line)
            if call and "=" in call[2]:
                found.append((call[1], re.split(r" {2,}| &&| \\", call[2].lstrip())[0].strip()))
    return sorted(set(found))


@pytest.mark.parametrize(("command", "arguments"), commands())
def test_every_command_in_the_documents_composes(command, arguments, tmp_path):
    sweep = arguments.startswith("-m ")
    words = [word.strip("'") for word in arguments.split() if "=" in word or "~" in word]
    if sweep:  # the first job of it
        words = [f"{name}={values.split(',')[0]}" for name, values in (w.split("=") for w in words)]
    words = [
        f"{name}={tmp_path}" if name in ("data.root", "hydra.run.dir") else word
        for word in words
        for name in [word.partition("=")[0]]
    ]
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose(command, overrides=words)
    CHECKS[command](cfg)


def test_commands_were_found():
    names = {command for command, _ in commands()}
    assert {"train", "evaluate", "prepare"} <= names
    assert ("train", "model/head=acrnn loss=focal") in commands()
    assert ("train", "-m training.seed=7,13,21") in commands()


@pytest.mark.parametrize(
    "recipe", sorted((CONF_DIR / "experiment").glob("*.yaml")), ids=lambda path: path.stem
)
def test_a_recipe_says_its_command_its_cost_and_what_to_expect_on_which_split(recipe):
    text = recipe.read_text(encoding="utf-8")
    header = re.match(r"(?:#.*\n)+", text)[0]
    assert f"#   python -m dermalyze.train experiment={recipe.stem}" in header
    assert re.search(r"^# Cost: .", header, re.M)
    expected = re.search(r"^# What to expect: .+(?:\n# .+)*", header, re.M)
    assert re.search(r"\bsplit\b", expected[0])


def test_every_local_link_and_picture_exists():
    missing = [
        f"{path.name}: {target}"
        for path in DOCUMENTS
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert missing == []


def test_the_table_of_groups_in_the_readme_names_every_option():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    options = [
        path.stem
        for folder in CONF_DIR.iterdir()
        if folder.is_dir()
        for path in folder.rglob("*.yaml")
    ]
    assert [option for option in options if f"`{option}`" not in text] == []
