"""Which folders of refused runs go again, and which stay."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dermalyze.fresh_folder import FreshFolderCallback, remove_if_fresh

REFUSED = (".hydra", "train.log", "config.yaml", "config_redacted.yaml", "run.json", ".run.lock")


def begun(folder: Path, *made: str) -> None:
    """Do what Hydra and a run do with a folder, until the run is refused."""
    FreshFolderCallback().on_run_start(OmegaConf.create({"hydra": {"run": {"dir": str(folder)}}}))
    folder.mkdir(exist_ok=True)
    for name in made:
        if name == ".hydra":
            (folder / name).mkdir()
            (folder / name / "overrides.yaml").touch()
        else:
            (folder / name).touch()


@pytest.mark.parametrize("made", [REFUSED[:2], REFUSED, ()])
def test_what_holds_nothing_of_a_run_goes(made: tuple[str, ...], tmp_path: Path) -> None:
    begun(tmp_path / "run", *made)
    assert remove_if_fresh(tmp_path / "run", job="train")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "made", ["train_split.csv", "checkpoint_latest.safetensors", ".run.pid", ".hydra_resumed", "a"]
)
def test_what_holds_anything_else_stays_whole(made: str, tmp_path: Path) -> None:
    begun(tmp_path / "run", *REFUSED, made)
    assert not remove_if_fresh(tmp_path / "run", job="train")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {*REFUSED, made}


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    begun(tmp_path / "run", *REFUSED)
    assert not remove_if_fresh(tmp_path / "run", job="train")
    assert len([*(tmp_path / "run").iterdir()]) == len(REFUSED)


def test_another_commands_log_is_somebody_elses(tmp_path: Path) -> None:
    begun(tmp_path / "run", *REFUSED)
    assert not remove_if_fresh(tmp_path / "run", job="evaluate")
    assert (tmp_path / "run" / "train.log").exists()


def test_the_log_is_closed_and_written_no_more(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    handler = logging.FileHandler(tmp_path / "run" / "train.log")
    other = logging.FileHandler(tmp_path / "train.log")
    logging.getLogger().addHandler(handler)
    logging.getLogger().addHandler(other)
    try:
        assert remove_if_fresh(tmp_path / "run", job="train")
        assert handler not in logging.getLogger().handlers
        assert handler.stream is None
        assert other in logging.getLogger().handlers
    finally:
        for one in (handler, other):
            logging.getLogger().removeHandler(one)
            one.close()


def test_a_folder_that_cannot_be_named_is_left_to_hydra_to_say() -> None:
    FreshFolderCallback().on_run_start(OmegaConf.create({"hydra": {"run": {"dir": "${nowhere}"}}}))
