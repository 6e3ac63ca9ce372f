"""Shares of batches, and real processes that exchange gradients, statistics and predictions."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import (
    CLASSES,
    CPU,
    EPOCHS,
    LABELS,
    STORE,
    LossAt,
    Net,
    PlainLoss,
    adamw,
    copied,
    differences,
    make_state,
    make_step,
    mixing,
    plain,
    schedule,
    seeded,
    sgd,
    train,
    without_timing,
)
from torch import nn
from torch.nn import functional as F

from dermalyze.augmentation.mixing import Mix
from dermalyze.distributed import ALONE, Ranks, joined, rank_problems
from dermalyze.engine.state import TrainState
from dermalyze.errors import ConfigError, Interrupted
from dermalyze.launch import Launch, launch_of
from dermalyze.optim.stages import Stage

Work = Callable[[Ranks, Path], Any]


def kill(loss: torch.Tensor) -> torch.Tensor:
    signal.raise_signal(signal.SIGTERM)
    return loss


# What a process is told


def test_a_process_that_was_told_nothing_is_alone():
    assert launch_of({}) == Launch(rank=0, size=1, local_rank=0)
    assert launch_of({"WORLD_SIZE": "1"}) == Launch(rank=0, size=1, local_rank=0)


def test_torchruns_variables():
    told = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert launch_of(told) == Launch(rank=5, size=8, local_rank=1)


@pytest.mark.parametrize(
    "told",
    [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2", "RANK": "0"}],
)
def test_a_process_that_cannot_know_which_one_it_is(told):
    with pytest.raises(ConfigError, match=rf"WORLD_SIZE={told['WORLD_SIZE']}, .*LOCAL_RANK=\(abse"):
        launch_of(told)


# Shares of a batch


def shares(batch: int, size: int) -> list[np.ndarray]:
    """The positions that count, rank by rank."""
    own = [Ranks(rank, size).share(batch) for rank in range(size)]
    return [share.positions_B[: share.images] for share in own]


def test_shares_by_hand():
    assert [own.tolist() for own in shares(8, 2)] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [own.tolist() for own in shares(7, 3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [own.tolist() for own in shares(3, 2)] == [[0, 1, 2], []]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", range(2, 24))
def test_every_image_counts_once_and_no_rank_learns_from_one_alone(batch, size):
    assert sorted(np.concatenate(shares(batch, size)).tolist()) == list(range(batch))
    for rank in range(size):
        share = Ranks(rank, size).share(batch)
        assert len(share.positions_B) >= 2
        assert share.images in (0, len(share.positions_B))
        assert (np.diff(share.positions_B) > 0).all()
    assert ALONE.share(batch).positions_B.tolist() == list(range(batch))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("batch", [6, 7, 8, 9])
@pytest.mark.parametrize("box", [None, (1, 3, 0, 2)])
def test_mixing_stays_inside_a_share(batch, size, box):
    images = torch.rand(batch, 3, 4, 4)
    mix = Mix(0.3, box)
    whole = mix.images(images)
    for own in shares(batch, size):
        assert torch.equal(mix.images(images[own]), whole[own])
        assert torch.equal(mix.rows(images[own]), mix.rows(images)[own])


@pytest.mark.parametrize(
    ("device", "options", "said"),
    [
        ("cpu", {"batch_size": 7}, "training.batch_size=7 for 4 processes: .*Use 8 or more"),
        ("cpu", {"sync_batch_norm": True}, "training.sync_batch_norm=true: .*needs GPUs"),
        ("mps", {}, "training.device=mps: it cannot exchange gradients"),
    ],
)
def test_what_several_processes_cannot_do(device, options, said):
    good = {"batch_size": 8, "sync_batch_norm": False}
    four, alone = Launch(0, 4, 0), Launch(0, 1, 0)
    [problem] = rank_problems(four, torch.device(device), **{**good, **options})
    assert re.search(said, problem)
    assert rank_problems(alone, torch.device(device), **{**good, **options}) == []
    assert rank_problems(four, CPU, **good) == []


# Real processes


def begin(rank: int, size: int, port: int, work: Work, folder: Path) -> None:
    """What a process does; it is started anew, so it is told as torchrun tells it."""
    torch.set_num_threads(1)
    told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    with joined(launch_of(os.environ), CPU, folder=folder, timeout=60) as ranks:
        torch.save(work(ranks, folder), folder / f"{rank}.pt")


def together(size: int, work: Work, folder: Path) -> list[Any]:
    """Return what `work(ranks, folder)` returns in each of several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(begin, (size, port, work, folder), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def exchange(ranks: Ranks, folder: Path) -> dict[str, Any]:
    number, table = torch.tensor(ranks.rank + 1.0), torch.full((2, 2), 10.0**ranks.rank)
    ranks.add_up([number, table])
    asked: list[list[int]] = []

    def predict(rows_N: np.ndarray) -> np.ndarray:
        asked.append(rows_N.tolist())
        return np.stack([rows_N, -rows_N], axis=1).astype(float)

    rows = np.array([5, 3, 8, 1, 9, 0, 7])
    seven = ranks.predicted(predict, rows, batch_size=2)
    two = ranks.predicted(predict, rows[:2], batch_size=2)
    ranks.refuse_differences({"seed": 1})
    with pytest.raises(ConfigError) as refused:
        ranks.refuse_differences({"seed": 1, "loss": "ce" if ranks.rank < 2 else "focal"})
    return {
        "sums": (number.item(), table.tolist()),
        "gathered": ranks.gathered(f"rank {ranks.rank}"),
        "asked": asked,
        "predicted": (seven.tolist(), two.tolist()),
        "refused": str(refused.value),
    }


@pytest.mark.slow
def test_what_ranks_tell_each_other(tmp_path):
    told = together(3, exchange, tmp_path)
    for each in told:
        assert each["sums"] == (6.0, [[111.0, 111.0], [111.0, 111.0]])
        assert each["gathered"] == ["rank 0", "rank 1", "rank 2"]
        seven, two = each["predicted"]
        assert seven == [[row, -row] for row in (5, 3, 8, 1, 9, 0, 7)]
        assert two == seven[:2]
        assert "loss: ce on rank 0, focal on rank 2" in each["refused"]
        assert "rank 1" not in each["refused"]
    # Whole batches in turn, each done once; of a single batch, two ranks get nothing.
    assert [each["asked"] for each in told] == [[[5, 3, 7], [5, 3]], [[8, 1]], [[9, 0]]]


WINDOW = [np.arange(7), np.arange(7, 9)]  # of the second, two of three ranks do nothing that counts


def one_step(ranks: Ranks, folder: Path) -> dict[str, torch.Tensor]:
    state = make_state(
        model=seeded(dropout=0.0), optimizer=sgd, rate=lambda step, costs: 0.5, ranks=ranks
    )
    state.train_mode()
    make_step(augment=plain, grad_clip=None, ranks=ranks)(state, WINDOW, 0)
    return copied(state)


@pytest.mark.slow
def test_a_shared_step_equals_plain_torch(tmp_path):
    """Each rank normalises its own images; gradients, losses and statistics count by them."""
    first, *others = together(3, one_step, tmp_path)
    assert [differences(other, first) for other in others] == [[], []]

    expected = seeded(dropout=0.0)
    norm = expected.layers[1]
    total, mean, variance = 0.0, torch.zeros(4), torch.zeros(4)
    for rank in range(3):
        net, images = seeded(dropout=0.0), 0
        for rows in WINDOW:
            share = Ranks(rank, 3).share(len(rows))
            own = rows[share.positions_B]
            loss = F.cross_entropy(net(STORE.batch(own)), torch.tensor(LABELS[own]))
            (loss * share.images / 9).backward()
            total += loss.item() * share.images / 9
            images += share.images
        for parameter, part in zip(expected.parameters(), net.parameters(), strict=True):
            parameter.grad = part.grad + (0.0 if parameter.grad is None else parameter.grad)
        mean += net.layers[1].running_mean * images / 9
        variance += net.layers[1].running_var * images / 9
    torch.optim.SGD(expected.parameters(), lr=0.5).step()
    norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, variance, torch.tensor(2)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(first[f"model/{name}"], value, rtol=0, atol=1e-6)
    assert first["epoch/step_losses"][0].item() == pytest.approx(total, abs=1e-6)


def two_stages(net: Net) -> list[Stage]:
    """One epoch of the classifier alone, then two of everything."""
    head = net.layers[7]
    return [
        Stage("head", 0, 1, schedule, lambda: sgd(list(head.parameters())), net.layers[:4]),
        Stage("whole", 1, 2, schedule, lambda: adamw(list(net.parameters())), None),
    ]


RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mixed": ({}, {"mixing": mixing(mixup_alpha=0.4, cutmix_alpha=1.0)}),
    "stages": ({"stages": two_stages}, {}),
    "accumulated": ({"steps": 3, "ema": 0.9, "last_epochs": 2}, {"accumulate": 2}),
}


def whole_runs(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Fifteen steps, or nine, of each recipe, without what is drawn or normalised by rank."""
    done = {}
    for name, (options, changes) in RECIPES.items():
        net = seeded(norm=False, dropout=0.0)
        state = make_state(model=net, ranks=ranks, **options)
        train(folder / f"{name} on {ranks.size}", state, ranks=ranks, **changes)
        done[name] = (copied(state), without_timing(state.history))
    return done


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.thorough)])
def test_runs_equal_those_of_one_process(tmp_path, size):
    alone = whole_runs(ALONE, tmp_path)
    for done in together(size, whole_runs, tmp_path):
        for name, (tensors, history) in alone.items():
            shared, shared_history = done[name]
            torch.testing.assert_close(shared, tensors, rtol=0, atol=1e-5)
            assert len(history) == len(shared_history) == EPOCHS
            for record, other in zip(history, shared_history, strict=True):
                assert other == pytest.approx(record, abs=1e-5)


class WideNet(Net):
    """With enough weights that the order of sums over three ranks shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[7] = nn.Sequential(nn.Linear(20, 300), nn.Tanh(), nn.Linear(300, CLASSES))


def stopped_and_resumed(ranks: Ranks, folder: Path) -> dict[str, Any]:
    def make(seed: int) -> TrainState:
        torch.manual_seed(seed)
        return make_state(model=WideNet(), ema=0.9, steps=4, ranks=ranks)

    whole, cut = make(0), make(0)
    options = {"ranks": ranks, "batch_size": 6}  # a pair for each rank
    train(folder / "whole", whole, **options)
    loss = LossAt(5, kill) if ranks.rank == 1 else PlainLoss()
    with pytest.raises(Interrupted) as stopped:
        train(folder / "cut", cut, loss=loss, **options)
    resumed = make(99)  # waits for all ranks, and so for the one that saved
    train(folder / "cut", resumed, **options)
    return {
        "stopped": (cut.epoch, cut.step, stopped.value.exit_code),
        "differences": differences(copied(resumed), copied(whole)),
        "history": without_timing(resumed.history) == without_timing(whole.history),
        "whole": copied(whole),
    }


@pytest.mark.thorough
def test_a_signal_to_one_rank_stops_all_and_resuming_equals_uninterrupted(tmp_path):
    """With BatchNorm and dropout, and three ranks, whose sums depend on their order."""
    first, *others = each = together(3, stopped_and_resumed, tmp_path)
    # In the first step of the second epoch; agreed on where the loss is read back, at every second.
    assert [done["stopped"] for done in each] == [(1, 2, 143)] * 3
    assert [done["differences"] for done in each] == [[]] * 3
    assert all(done["history"] for done in each)
    assert [differences(done["whole"], first["whole"]) for done in others] == [[], []]
