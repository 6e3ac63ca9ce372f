"""What a command line is answered with before any task is begun."""

from __future__ import annotations

import errno
import sys
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
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


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training.sede=1", "Did you mean 'training.seed'?"),
        ("trainig.seed=1", "Did you mean 'training.seed'?"),  # and not data.split.seed
        ("trainig.resume=RUN", "Did you mean 'training.resume'?"),
        ("head=acrnn", "Did you mean 'model/head' or 'stages.head'?"),
        ("training/loss=focal", "Did you mean 'loss'?"),
        ("training.lr=1e-4", "Did you mean 'optimizer.lr' or 'stages.whole.lr'?"),
        ("epochs=3", "Did you mean 'training.epochs' or 'stages.whole.epochs'?"),
        ("data.batch_size=8", "Did you mean 'data.cache_size' or 'training.batch_size'?"),
        ("optimizer.decay=0.1", "Did you mean 'optimizer.weight_decay' or 'ema.decay'?"),
        ("scheduler.lr=0.1", "Did you mean 'optimizer.lr' or 'stages.whole.lr'?"),
        (
            "loss.gamma=1",
            "loss=class_balanced and loss=focal have it.",
        ),  # and not the augmentation's
        ("scheduler.patience=5", "scheduler=plateau has it."),
    ],
)
def test_a_key_that_is_not_there_is_answered_with_the_one_that_was_meant(
    word: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @command("train")
    def task(cfg: DictConfig) -> None:
        pytest.fail("it was run")

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train", word])
    with pytest.raises(SystemExit) as ended:
        task()
    assert ended.value.code == 2
    key = word.partition("=")[0]
    assert capsys.readouterr().err == f"{key}: there is no such key or group. {said}\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.csv"), 2, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a.csv"), 2, "Permission denied"),
        (KeyboardInterrupt(), 130, "ended by Ctrl-C"),
    ],
)
def test_a_full_disk_and_ctrl_c_are_said_in_a_line(
    error: BaseException, code: int, said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    @command("report")
    def task(cfg: DictConfig) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["report", "runs=a"])
    with pytest.raises(SystemExit) as ended:
        task()
    assert ended.value.code == code
    shown = capsys.readouterr().out
    assert said in shown
    assert ("'a.csv'. Make room there, or name another place." in shown) is (code == 2)
    assert "Traceback" not in shown


@pytest.mark.parametrize("words", [[], ["-m"]])
def test_a_mistake_is_said_after_the_config_was_composed_once(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra by itself composes it twice: the first time it drops what it finds."""

    @command("train", sweeps=True)
    def task(cfg: DictConfig) -> None:
        pytest.fail("it was run")

    compose, composed = Hydra.compose_config, []

    def counted(self: Hydra, *args: Any, **kwargs: Any) -> Any:
        composed.append(kwargs)
        return compose(self, *args, **kwargs)

    monkeypatch.setattr(Hydra, "compose_config", counted)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train", "training.sede=1", *words])
    with pytest.raises(SystemExit) as ended:
        task()
    assert ended.value.code == 2
    assert "Did you mean 'training.seed'?" in capsys.readouterr().err
    assert len(composed) == 1
