"""Two processes that torchrun starts train one run, as one process would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from same_run import assert_same_run, without_timing
from test_resume import STOPPED

from dermalyze.checkpoint_file import BEST, LATEST, read_checkpoint

FAILING = str(Path(__file__).with_name("failing_train.py"))
TRAIN = ("-m", "dermalyze.train")

Torchrun = Callable[..., "CompletedProcess[str]"]

# Each starts processes that import all anew; `tests/unit/test_distributed.py` forks them.
pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]


@pytest.fixture
def torchrun(python) -> Torchrun:
    """Run `torchrun ARGS` with two processes in an empty folder; it ends with 1 if one fails."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

    def run(*args: str, expect: int = 0) -> CompletedProcess[str]:
        return python(*launcher, *args, expect=expect)

    return run


def test_two_processes_equal_one(python, torchrun, tiny, tmp_path):
    """Ten steps of a model that neither draws nor normalises by rank, and all metrics."""
    overrides = (
        *tiny,
        "model.backbone=test_vit",
        "model/head=linear",
        "model.head.dropout=0.0",
        "training.batch_size=14",
        "augmentation=medium",
        "mix=both",
        "tracking=none",
    )
    torchrun(*TRAIN, *overrides)
    [two] = (tmp_path / "outputs" / "train").iterdir()
    one = tmp_path / "one"
    python(*TRAIN, *overrides, f"hydra.run.dir={one}")

    for name in (BEST, LATEST):
        tensors, header = read_checkpoint(two / name)
        expected, _ = read_checkpoint(one / name)
        assert header["software"]["ranks"] == 2
        torch.testing.assert_close(tensors, expected, rtol=0, atol=1e-5)
    assert len(expected["epoch/step_losses"]) * 2 == 10
    histories = [json.loads((run / "training_history.json").read_text()) for run in (one, two)]
    for record, other in zip(*map(without_timing, histories), strict=True):
        assert other == pytest.approx(record, abs=1e-5)
    # One folder, in which one process wrote what a single one writes.
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert (two / "train.log").read_text().count("best epoch") == 1

    done = python(*TRAIN, f"training.resume={two}")
    assert "the run so far used ranks=2, now 1" in done.stdout


def test_killed_within_an_epoch_and_resumed_equals_uninterrupted(torchrun, tiny, tmp_path):
    """With BatchNorm, dropout and weighted sampling."""
    overrides = (
        *tiny,
        "training.checkpoint_every_steps=3",
        "sampler=weighted",
        "loss.class_weights=none",
        "augmentation=medium",
        "tracking=none",
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    torchrun(*TRAIN, *overrides, f"hydra.run.dir={whole}")
    kill = (STOPPED, "13", "SIGKILL")
    torchrun(*kill, *overrides, f"hydra.run.dir={stopped}", expect=1)
    assert read_checkpoint(stopped / LATEST)[1]["state"]["step"] == 3
    torchrun(*TRAIN, f"training.resume={stopped}")
    assert_same_run(stopped, whole)


def test_sigterm_saves_once_and_ends_truthfully(torchrun, tiny, tmp_path):
    run = tmp_path / "run"
    folder = ("tracking=none", f"hydra.run.dir={run}", "training.check_every_steps=2")
    stopped = torchrun(STOPPED, "4", "SIGTERM", *tiny, *folder, expect=1)
    assert stopped.stdout.count("the state is saved") == 1
    assert "exitcode  : 143" in stopped.stderr
    # Struck in the fifth step, heard where the loss is read back.
    state = read_checkpoint(run / LATEST)[1]["state"]
    assert (state["epoch"], state["step"]) == (0, 6)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failing_process_ends_all_with_its_error(torchrun, tiny, rank, tmp_path):
    overrides = (*tiny, "tracking=none", f"hydra.run.dir={tmp_path / 'run'}")
    failed = torchrun(FAILING, str(rank), "3", *overrides, expect=1)
    said = "rank 1: an image" if rank == 1 else "] an image"
    assert failed.stdout.count(f"{said} of this rank cannot be read") == 1
    assert "Traceback" not in failed.stdout
    assert not (tmp_path / "run" / LATEST).exists()


def test_what_cannot_be_shared_is_refused_by_one_message(torchrun, tiny, tmp_path):
    swept = torchrun(*TRAIN, "-m", *tiny, "training.seed=1,2", expect=1)
    assert swept.stderr.count("a sweep cannot be shared") == 1
    assert not (tmp_path / "multirun").exists()

    evaluated = torchrun("-m", "dermalyze.evaluate", "checkpoint=nowhere", expect=1)
    assert evaluated.stderr.count("evaluate is done by one process") == 1

    mistyped = torchrun(*TRAIN, "training.epoch=3", expect=1)
    assert mistyped.stderr.count("Did you mean 'training.epochs'?") == 1

    small = torchrun(*TRAIN, *tiny, "training.batch_size=3", expect=1)
    assert small.stdout.count("training.batch_size=3 for 2 processes") == 1

    shown = torchrun(*TRAIN, "--cfg", "job")
    assert shown.stdout.count("rank_timeout: 1800") == 1
