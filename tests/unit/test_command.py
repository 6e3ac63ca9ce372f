"""What a command line is answered with before any config is composed."""

from __future__ import annotations

import sys

import pytest
from omegaconf import DictConfig

from dermalyze.command import command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--training.epochs", "3"], "--training.epochs: options are written training.epochs=3,"),
        (["loss=focal", "--epochs=3"], "--epochs=3: options are written epochs=3,"),
        (["-m", "--no-compile"], "--no-compile: options are written no-compile=VALUE,"),
        (["--compile", "loss=focal"], "--compile: options are written compile=VALUE,"),
    ],
)
def test_options_with_dashes_are_refused_with_how_they_are_written(
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @command("train", sweeps=True)
    def task(cfg: DictConfig) -> None:
        pytest.fail("it was run")

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train", *words])
    with pytest.raises(SystemExit) as ended:
        task()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{said} without dashes; --help shows all keys.\n"
