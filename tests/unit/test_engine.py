from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import timm.optim
import torch
from small_training import (
    BATCH,
    CLASSES,
    EPOCHS,
    LABELS,
    PIXELS,
    SEED,
    STEPS,
    STORE,
    TRAIN,
    LossAt,
    Net,
    about,
    adamw,
    adamw_amsgrad,
    copied,
    differences,
    make_state,
    make_step,
    plain,
    schedule,
    seeded,
    sgd,
    through_file,
    train,
    validate,
    weights,
    without_timing,
)
from torch import nn
from torch.nn import functional as F

from dermalyze.checkpoint_file import previous_of, read_checkpoint, write_checkpoint
from dermalyze.data.samplers import UniformSampler
from dermalyze.engine.checkpoints import RunCheckpoints
from dermalyze.engine.early_stopping import EarlyStopping
from dermalyze.engine.interruption import Interruption
from dermalyze.engine.loop import epoch_windows
from dermalyze.engine.progress import NonFiniteLossError
from dermalyze.engine.state import Record, TrainState
from dermalyze.engine.step import TrainingStep
from dermalyze.errors import CheckpointError, ConfigError, DataError, Interrupted
from dermalyze.optim.optimizer_state import check_optimizer
from dermalyze.randomness import Purpose, generator

# One step


def smooth(**changes: Any) -> tuple[TrainState, TrainingStep]:
    """Return a model without BatchNorm and dropout, and a step without augmentation."""
    step = make_step(**{"augment": plain, "grad_clip": None, **changes})
    net = seeded(norm=False, dropout=0.0)
    return make_state(model=net, optimizer=sgd, rate=lambda step, costs: 0.5), step


@pytest.mark.parametrize("sizes", [(8, 8), (8, 3), (3, 8, 4)])
def test_accumulated_gradients_equal_one_batch(sizes):
    rows = np.arange(sum(sizes))
    window = np.split(rows, np.cumsum(sizes)[:-1])
    (parts, step), (whole, _) = smooth(), smooth()
    before = weights(parts.model)
    step(parts, window, 0)
    step(whole, [rows], 0)
    assert (weights(whole.model) - before).abs().max() > 1e-3
    torch.testing.assert_close(weights(parts.model), weights(whole.model), rtol=0, atol=1e-6)
    torch.testing.assert_close(parts.step_losses_S, whole.step_losses_S, rtol=0, atol=1e-6)
    assert torch.equal(parts.step_counts_S2K, whole.step_counts_S2K)


def test_an_uneven_window_is_not_the_mean_of_its_batches_means():
    """The comparison above would notice if every micro-batch counted alike."""
    (parts, step), (naive, _) = smooth(), smooth()
    window = [np.arange(8), np.arange(8, 11)]
    step(parts, window, 0)
    for rows in window:
        logits = naive.model(STORE.batch(rows))
        (F.cross_entropy(logits, torch.tensor(LABELS[rows])) / 2).backward()
    naive.optimizer.param_groups[0]["lr"] = 0.5
    naive.optimizer.step()
    assert (weights(parts.model) - weights(naive.model)).abs().max() > 1e-4


def test_a_step_equals_plain_torch_with_its_loss_and_hits():
    state, step = smooth()
    expected, _ = smooth()
    logits = expected.model(STORE.batch(TRAIN))
    loss = F.cross_entropy(logits, torch.tensor(LABELS[TRAIN]))
    loss.backward()
    expected.optimizer.param_groups[0]["lr"] = 0.5
    expected.optimizer.step()
    state.step = 2
    step(state, [TRAIN], 2)
    torch.testing.assert_close(weights(state.model), weights(expected.model), rtol=0, atol=1e-7)
    right = logits.argmax(1).numpy() == LABELS[TRAIN]
    images_K, right_K = (
        np.bincount(some, minlength=CLASSES).tolist()
        for some in (
            LABELS[TRAIN],
            LABELS[TRAIN][right],
        )
    )
    assert state.step_counts_S2K[2].tolist() == [images_K, right_K]
    assert state.step_counts_S2K.sum() == len(TRAIN) + sum(right_K)
    assert state.step_losses_S[2].item() == pytest.approx(loss.item(), abs=1e-6)
    assert state.step_losses_S.count_nonzero() == 1
    assert state.step == 2
    assert all(parameter.grad is None for parameter in state.model.parameters())


@pytest.mark.parametrize("largest", [0.05, 100.0])
def test_clipping_equals_torchs(largest):
    state, step = smooth(grad_clip=largest)
    expected, _ = smooth()
    logits = expected.model(STORE.batch(TRAIN))
    target = F.one_hot(torch.tensor(LABELS[TRAIN]), CLASSES).float()
    F.cross_entropy(logits, target).backward()
    norm = nn.utils.clip_grad_norm_(expected.model.parameters(), largest)
    assert 0.05 < norm < 100.0
    expected.optimizer.param_groups[0]["lr"] = 0.5
    expected.optimizer.step()
    step(state, [TRAIN], 0)
    assert torch.equal(weights(state.model), weights(expected.model))


def test_the_learning_rate_of_all_groups_is_the_schedules_at_the_global_step():
    net = Net()
    groups = [{"params": list(net.layers[0].parameters())}, {"params": net.layers[7].parameters()}]
    asked: list[int] = []
    state = make_state(
        model=net,
        optimizer=lambda _: torch.optim.AdamW(groups),
        rate=lambda at, costs: asked.append(at) or 0.001 * (at + 1),
    )
    state.epoch, state.step = 2, 3
    state.history = [{"epoch": 1, "val/loss": 0.5}, {"epoch": 2, "val/loss": 0.4}]
    make_step()(state, [TRAIN], 0)
    assert asked == [2 * STEPS + 3]
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.001 * 14] * 2


def test_loss_scaling_changes_nothing_but_the_range():
    scaled, step = smooth(grad_clip=0.05)
    scaled.scaler = torch.amp.GradScaler("cpu", enabled=True)
    expected, _ = smooth()
    step(scaled, [TRAIN], 0)
    step(expected, [TRAIN], 0)
    torch.testing.assert_close(weights(scaled.model), weights(expected.model), rtol=0, atol=1e-6)
    torch.testing.assert_close(scaled.step_losses_S, expected.step_losses_S, rtol=0, atol=0)


def test_chance_is_named_by_seed_epoch_and_batch():
    """Every batch draws its own, however batches are put into windows."""

    def draws(accumulate: int, seed: int = SEED) -> list[float]:
        drawn: list[float] = []

        def augment(
            images_BCHW: torch.Tensor, random: np.random.Generator, **_: object
        ) -> torch.Tensor:
            drawn.append(random.random())
            return images_BCHW

        step = make_step(augment=augment, seed=seed)
        for epoch in range(2):
            state = make_state()
            state.epoch = epoch
            windows = epoch_windows(TRAIN, batch_size=BATCH, accumulate=accumulate)
            for state.step, window in enumerate(windows):
                step(state, window, state.step * accumulate)
        return drawn

    one = draws(1)
    assert len(set(one)) == 2 * STEPS
    assert one == [
        generator(SEED, Purpose.AUGMENTATION, epoch, batch).random()
        for epoch in range(2)
        for batch in range(STEPS)
    ]
    assert draws(2) == one
    assert not set(draws(1, seed=SEED + 1)) & set(one)


def test_a_step_on_its_own_equals_the_step_in_sequence(tmp_path):
    """Dropout and augmentation know no past: every step from a restored state, bit for bit."""
    step = make_step()
    windows = epoch_windows(TRAIN, batch_size=BATCH, accumulate=2)
    state = make_state(steps=len(windows))
    saved, after = [], []
    for position, window in enumerate(windows):
        saved.append(through_file(state, tmp_path / f"{position}.safetensors"))
        step(state, window, position * 2)
        state.step += 1
        after.append(copied(state))
    for position in reversed(range(len(windows))):
        alone = make_state(steps=len(windows), init=99)
        alone.restore(*saved[position])
        torch.manual_seed(position + 1000)
        step(alone, windows[position], position * 2)
        assert differences(copied(alone), after[position]) == []


def test_dropout_draws_anew_in_every_batch_and_epoch():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, CLASSES))
    seen: list[torch.Tensor] = []
    net[2].register_forward_pre_hook(lambda module, args: seen.append(args[0] == 0))
    step = make_step(augment=lambda images, random, **_: images.float() + 1)
    state = make_state(model=net)
    for state.epoch, batch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        step(state, [TRAIN[:4]], batch)
    first, *others, again = seen
    assert torch.equal(first, again)
    assert all(0.3 < (first != other).float().mean() < 0.7 for other in others)


# The state


@pytest.mark.parametrize("optimizer", [adamw, adamw_amsgrad, sgd])
@pytest.mark.parametrize("scaler", [False, True])
def test_a_restored_state_goes_on_as_if_nothing_had_been(tmp_path, optimizer, scaler):
    step = make_step()
    windows = epoch_windows(TRAIN, batch_size=BATCH, accumulate=1)
    state = make_state(optimizer=optimizer, scaler=scaler)

    def go_on(state: TrainState, steps: int) -> None:
        for _ in range(steps):
            step(state, windows[state.step], state.step)
            state.step += 1
            if state.step == STEPS:
                state.history.append({"epoch": state.epoch + 1, "val/loss": 1 / 3, "x": None})
                state.stopping.update(state.history[-1])
                state.begin_next_epoch(EPOCHS)

    go_on(state, 8)
    path = tmp_path / "x.safetensors"
    tensors, numbers = through_file(state, path)
    written = path.read_bytes()
    restored = make_state(optimizer=optimizer, scaler=scaler, init=99)
    restored.restore(tensors, numbers)
    assert (restored.epoch, restored.step, restored.global_step) == (1, 3, 8)
    assert differences(copied(restored), copied(state)) == []
    assert restored.numbers() == state.numbers()
    for parameter, values in restored.optimizer.state.items():
        for name, value in values.items():
            if name != "step":
                assert value.stride() == parameter.stride(), name

    go_on(state, 6)
    go_on(restored, 6)
    assert differences(copied(restored), copied(state)) == []
    assert restored.numbers() == state.numbers()
    assert path.read_bytes() == written

    # The comparison would notice any single tensor of the optimiser or of BatchNorm being lost.
    moments = [name for name in tensors if name.startswith("optimizer/")]
    assert len(moments) == len(list(state.model.parameters())) * {adamw: 3, sgd: 1}.get(
        optimizer, 4
    )
    for name in (*moments, "model/layers.1.running_mean"):
        lossy = make_state(optimizer=optimizer, scaler=scaler, init=99)
        lossy.restore(tensors | {name: torch.zeros_like(tensors[name])}, numbers)
        go_on(lossy, 6)
        assert differences(copied(lossy), copied(state)), name


def test_the_scalers_state_comes_back(tmp_path):
    state = make_state(scaler=True)
    explode = make_step(loss=LossAt(1, lambda loss: loss * torch.tensor(math.inf)))
    before = weights(state.model)
    explode(state, [TRAIN], 0)
    assert torch.equal(weights(state.model), before)  # the step was left out
    restored = make_state(scaler=True)
    restored.restore(*through_file(state, tmp_path / "x.safetensors"))
    assert restored.scaler.get_scale() == 2**15 == state.scaler.get_scale()


def test_another_model_is_refused():
    other = make_state(model=Net(norm=False))
    with pytest.raises(CheckpointError, match="another model"):
        make_state().restore(other.tensors(), other.numbers())


def test_another_optimizer_is_refused():
    state = make_state(optimizer=adamw)
    make_step()(state, [TRAIN], 0)
    with pytest.raises(CheckpointError, match="state of AdamW, but this run trains with SGD"):
        make_state(optimizer=sgd).restore(state.tensors(), state.numbers())


def test_moments_of_more_weights_than_are_trained_are_refused() -> None:
    """As of a run that trained weights which are none any more; its indices would be others'."""
    state = make_state()
    make_step()(state, [TRAIN], 0)
    tensors = state.tensors()
    count = sum(len(group["params"]) for group in state.optimizer.param_groups)
    tensors[f"optimizer/{count}/exp_avg"] = torch.zeros(3)
    with pytest.raises(
        CheckpointError, match=rf"of at least {count + 1} weights, but here {count} "
    ):
        make_state().restore(tensors, state.numbers())


@pytest.mark.parametrize(
    "make",
    [timm.optim.Lamb, timm.optim.Adan, timm.optim.AdaBelief, timm.optim.AdamP, timm.optim.SGDW],
)
def test_optimisers_that_count_in_groups_or_in_plain_numbers_resume_exactly(tmp_path, make):
    """SGDW without momentum keeps None."""

    def made(init: int) -> TrainState:
        return make_state(optimizer=lambda parameters: make(parameters, lr=0.01), init=init)

    whole, resumed = made(0), made(99)
    train(tmp_path / "whole", whole)
    loss = LossAt(STEPS + 3, kill_with(signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", made(0), loss=loss)
    train(tmp_path / "cut", resumed)
    assert differences(copied(resumed), copied(whole)) == []
    assert resumed.numbers()["optimizer_numbers"] == whole.numbers()["optimizer_numbers"]


def test_a_state_that_was_saved_before_numbers_were_is_read():
    state = make_state()
    make_step()(state, [TRAIN], 0)
    numbers = state.numbers()
    del numbers["optimizer_numbers"]
    restored = make_state(init=99)
    restored.restore(copied(state), numbers)
    assert differences(copied(restored), copied(state)) == []


class KeepsLists(torch.optim.SGD):
    """Keeps what no checkpoint can hold, in a weight's state and in its group."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["seen"] = torch.Size([1])
            for weight in group["params"]:
                self.state[weight]["factors"] = [weight.detach().clone()]


def test_an_optimiser_whose_state_no_checkpoint_can_hold_is_refused():
    with pytest.raises(ConfigError) as refused:
        check_optimizer(make_optimizer=KeepsLists, name="KeepsLists")
    assert str(refused.value) == (
        "optimizer: KeepsLists keeps what a checkpoint cannot hold (factors, seen), so no run with "
        "it could be resumed. Choose another one"
    )


# Early stopping


def stopping_after(
    values: Sequence[float],
    *,
    direction: Literal["min", "max"],
    patience: int | None,
    min_delta: float = 0.0,
) -> tuple[list[bool], EarlyStopping, list[bool]]:
    rule = EarlyStopping(
        monitor="val/x", direction=direction, patience=patience, min_delta=min_delta
    )
    best, stops = [], []
    for epoch, value in enumerate(values, start=1):
        best.append(rule.update({"epoch": epoch, "val/x": value, "val/none": None}))
        stops.append(rule.should_stop)
    return best, rule, stops


@pytest.mark.parametrize(("direction", "sign"), [("min", 1), ("max", -1)])
def test_early_stopping_by_hand(direction, sign):
    values = [sign * value for value in (3.0, 2.0, 2.0, 2.5, 1.0, 1.0, 1.5)]
    best, rule, stops = stopping_after(values, direction=direction, patience=2)
    assert best == [True, True, False, False, True, False, False]
    assert stops == [False, False, False, True, False, False, True]
    assert (rule.best_value, rule.best_epoch) == (sign * 1.0, 5)
    assert rule.epochs_without_improvement == 2


def test_improvement_must_exceed_min_delta():
    values = [1.0, 0.75, 0.5, 0.49, 0.2]
    best, rule, _ = stopping_after(values, direction="min", patience=9, min_delta=0.25)
    assert best == [True, False, True, False, True]
    assert rule.epochs_without_improvement == 0


def test_without_patience_it_never_stops():
    _, rule, stops = stopping_after([0.0] * 50, direction="max", patience=None)
    assert not any(stops)
    assert (rule.best_epoch, rule.epochs_without_improvement) == (1, 49)


def test_zero_is_a_value():
    best, rule, _ = stopping_after([0.0, 0.0, 0.1], direction="max", patience=None)
    assert best == [True, False, True]
    assert rule.best_epoch == 3


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize("direction", ["min", "max"])
def test_a_metric_without_a_value_selects_nothing(value, direction):
    rule = EarlyStopping(monitor="val/x", direction=direction, patience=1, min_delta=0.0)
    with pytest.raises(DataError, match=rf"training\.monitor=val/x: {value} in epoch 4") as caught:
        rule.update({"epoch": 4, "val/x": value, "val/loss": 0.5, "val/none": None})
    assert "val/loss" in str(caught.value)
    assert "val/none" not in str(caught.value)
    with pytest.raises(DataError, match="None in epoch 1"):
        rule.update({"epoch": 1, "val/loss": 0.5})
    assert rule.best_value is None


# The loop


def kill_with(number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(loss: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), number)
        return loss

    return change


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainState:
    """The state at the end of an uninterrupted run."""
    state = make_state()
    train(tmp_path_factory.mktemp("whole"), state)
    return state


def test_windows_of_an_epoch():
    windows = epoch_windows(np.arange(21), batch_size=4, accumulate=2)
    assert [[len(rows) for rows in window] for window in windows] == [[4, 4], [4, 4], [5]]
    assert np.concatenate([rows for window in windows for rows in window]).tolist() == [*range(21)]


def test_fit_equals_a_loop_of_plain_torch(tmp_path):
    state = make_state(model=seeded(dropout=0.0))
    records: list[Record] = []
    checkpoints = train(tmp_path, state, augment=plain, sinks=[records.append])

    model = seeded(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02, fused=True)
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    labels = torch.from_numpy(LABELS)
    expected: list[Record] = []
    best: dict[str, torch.Tensor] = {}
    for epoch in range(EPOCHS):
        order = generator(SEED, Purpose.ORDER, epoch).permutation(len(TRAIN))
        summed, right = 0.0, np.zeros(CLASSES)
        model.train()
        for position, rows in enumerate(np.split(order, [4, 8, 12, 16])):
            lr = schedule(epoch * STEPS + position)
            for group in optimizer.param_groups:
                group["lr"] = lr
            logits = model(images[rows])
            loss = F.cross_entropy(logits, F.one_hot(labels[rows], CLASSES).float())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            summed += loss.item() * len(rows)
            called = logits.argmax(1) == labels[rows]
            right += np.bincount(labels[rows][called], minlength=CLASSES)
        metrics = validate(model)
        if all(metrics["val/loss"] < record["val/loss"] for record in expected):  # type: ignore[operator]
            best = {name: value.clone() for name, value in model.state_dict().items()}
            best_epoch = epoch + 1
        expected.append(
            {
                "epoch": epoch + 1,
                "train/loss": summed / len(TRAIN),
                "train/accuracy": right.sum() / len(TRAIN),
                "train/balanced_accuracy": float(
                    (right / np.bincount(LABELS[TRAIN], minlength=CLASSES)).mean()
                ),
                **metrics,
                "lr": lr,
            }
        )

    assert all(record["images_per_second"] > 0 for record in state.history)  # type: ignore[operator]
    history = without_timing(state.history)
    for record, hand in zip(history, expected, strict=True):
        assert record["train/loss"] == pytest.approx(hand["train/loss"], rel=1e-12)
        assert {**record, "train/loss": 0} == {**hand, "train/loss": 0}
    assert records == state.history
    assert differences(dict(state.model.state_dict()), dict(model.state_dict())) == []
    assert state.finished

    tensors, header = read_checkpoint(checkpoints.best)
    assert differences(tensors, best) == []
    assert header["epoch"] == best_epoch == state.stopping.best_epoch
    assert header["kind"] == "best"
    assert header["monitor"] == "val/loss"
    assert header["validation_metrics"] == {
        name: expected[best_epoch - 1][name] for name in ("val/loss", "val/macro_auc")
    }
    assert header["classes"] == about()["classes"]


def test_fit_on_a_finished_run_does_nothing(tmp_path):
    state = make_state()
    train(tmp_path, state)
    after = copied(state)
    again = make_state(init=99)
    train(tmp_path, again, loss=LossAt(1, lambda loss: loss * math.nan))
    assert differences(copied(again), after) == []


def test_fit_stops_early(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    values = iter([0.5, 0.7, 0.5, 0.4])
    state = make_state(patience=2)
    checkpoints = train(
        tmp_path, state, epochs=10, validate=lambda model: {"val/loss": next(values)}
    )
    assert [record["epoch"] for record in state.history] == [1, 2, 3]
    assert read_checkpoint(checkpoints.best)[1]["epoch"] == 1
    assert "stopped early: val/loss has not improved for 2 epochs" in caplog.text
    again = make_state(patience=2)
    train(tmp_path, again, epochs=10, validate=lambda model: {"val/loss": next(values)})
    assert again.history == state.history


def test_a_metric_that_is_missing_stops_the_run_before_anything_is_saved(tmp_path):
    with pytest.raises(DataError, match=r"training\.monitor=val/macro_auc: None in epoch 1"):
        train(tmp_path, make_state(monitor="val/macro_auc"))
    assert list(tmp_path.iterdir()) == []


class BrokenGradient(torch.autograd.Function):
    """The identity, with a gradient that is not a number."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.nan


def images_of(epoch: int, step: int) -> list[str]:
    order = UniformSampler().order(LABELS[TRAIN], seed=SEED, epoch=epoch)
    [rows] = epoch_windows(TRAIN[order], batch_size=BATCH, accumulate=1)[step]
    return [STORE.image_ids[row] for row in rows]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda loss: loss * math.nan, "the loss became nan"),
        (lambda loss: loss * math.inf, "the loss became inf"),
        (BrokenGradient.apply, "the weights became infinite or not a number"),
    ],
)
@pytest.mark.parametrize("step", [1, 3, STEPS])
@pytest.mark.parametrize("save_every", [None, 1])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(
    tmp_path, whole, change, what, step, save_every
):
    checks = 1 if what.startswith("the weights") else 1000
    loss = LossAt(STEPS + step, change)
    state = make_state()
    with pytest.raises(NonFiniteLossError) as caught:
        train(
            tmp_path, state, loss=loss, check_every_steps=checks, checkpoint_every_steps=save_every
        )
    message = str(caught.value)
    names = ", ".join(images_of(epoch=1, step=step - 1))
    assert f"{what} in epoch 2, step {step} (images {names})" in message
    assert message.endswith(
        "Nothing of it was saved. Resumed, the run would come to the same. Begin a new one with a "
        "lower optimizer.lr, training.grad_clip=1.0 or training.amp=off."
    )

    checkpoints = RunCheckpoints(folder=tmp_path, about=about())
    good = make_state(init=99)
    assert checkpoints.load_latest(good)
    assert (good.epoch, good.step) == (1, step - 1 if save_every else 0)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in good.tensors().values())
    train(tmp_path, resumed := make_state())
    assert differences(copied(resumed), copied(whole)) == []


# Interruptions


@pytest.mark.parametrize(
    ("number", "exit_code", "call"),
    [
        (signal.SIGTERM, 143, 1),
        (signal.SIGINT, 130, 3),
        (signal.SIGTERM, 143, STEPS),
        (signal.SIGTERM, 143, STEPS + 2),
        (signal.SIGUSR1, 138, 2),
        (signal.SIGUSR2, 140, STEPS + 1),
        (signal.SIGINT, 130, EPOCHS * STEPS),
    ],
)
def test_interrupted_within_an_epoch_and_resumed_equals_uninterrupted(
    tmp_path, whole, number, exit_code, call
):
    state = make_state()
    with pytest.raises(Interrupted) as caught:
        train(tmp_path, state, loss=LossAt(call, kill_with(number)))
    assert caught.value.exit_code == exit_code
    assert state.global_step == call
    resumed = make_state(init=99)
    train(tmp_path, resumed)
    assert differences(copied(resumed), copied(whole)) == []
    assert without_timing(resumed.history) == without_timing(whole.history)


def test_an_interrupted_run_leaves_the_same_best_model(tmp_path):
    best = train(tmp_path / "whole", make_state()).best
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", make_state(), loss=LossAt(7, kill_with(signal.SIGTERM)))
    again = train(tmp_path / "cut", make_state(init=99)).best
    (tensors, header), (expected, expected_header) = read_checkpoint(again), read_checkpoint(best)
    assert differences(tensors, expected) == []
    assert header == expected_header


@pytest.mark.parametrize("epoch", [1, 2])
def test_interrupted_between_epochs_and_resumed_equals_uninterrupted(tmp_path, whole, epoch):
    def sink(record: Record) -> None:
        if record["epoch"] == epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    state = make_state()
    with pytest.raises(Interrupted) as caught:
        train(tmp_path, state, sinks=[sink])
    assert caught.value.exit_code == 143
    assert (state.epoch, state.step) == (epoch, 0)
    resumed = make_state(init=99)
    train(tmp_path, resumed)
    assert differences(copied(resumed), copied(whole)) == []
    assert without_timing(resumed.history) == without_timing(whole.history)


class StruckAfterAnswer(Interruption):
    """Gets its signal right after the n-th time it was asked, at the worst moment."""

    def __init__(self, question: int) -> None:
        super().__init__()
        self.question, self.questions = question, 0

    @property
    def requested(self) -> bool:
        answer = super().requested
        self.questions += 1
        if self.questions == self.question:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer


@pytest.mark.parametrize("question", [1, 2, STEPS, STEPS + 1])
def test_a_signal_at_any_moment_is_saved_before_the_run_stops(tmp_path, question):
    state = make_state()
    with pytest.raises(Interrupted):
        train(tmp_path, state, interruption=StruckAfterAnswer(question), check_every_steps=1)
    saved = make_state(init=99)
    assert RunCheckpoints(folder=tmp_path, about=about()).load_latest(saved)
    assert saved.global_step == state.global_step
    assert differences(copied(saved), copied(state)) == []


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGINT) != before[0]
        assert not interruption.requested
        interruption.stop_if_requested()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.fixture(autouse=True)
def sigint_raises():
    """As in a terminal; a shell's background job ignores SIGINT instead."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert not interruption.requested


def test_a_second_signal_acts_at_once():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            interruption.stop_if_requested()


def test_a_scheduler_may_warn_twice_and_a_person_still_stop_at_once():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match="stopped by SIGUSR2"):
            interruption.stop_if_requested()
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_in_another_thread_it_changes_nothing():
    before = signal.getsignal(signal.SIGINT)
    inside: list[object] = []

    def work() -> None:
        with Interruption() as interruption:
            inside.extend([signal.getsignal(signal.SIGINT), interruption.requested])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before, False]


# Checkpoints of a run


def two_saved(folder: Path) -> tuple[RunCheckpoints, list[dict[str, torch.Tensor]]]:
    """Save after the first and after the second step; return what was saved."""
    checkpoints = RunCheckpoints(folder=folder, about=about())
    state, step, saved = make_state(), make_step(), []
    for _ in range(2):
        step(state, [TRAIN], 0)
        state.step += 1
        checkpoints.save_latest(state)
        saved.append(copied(state))
    return checkpoints, saved


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_nothing_saved_is_no_error(tmp_path):
    state = make_state()
    before = copied(state)
    assert RunCheckpoints(folder=tmp_path, about=about()).load_latest(state) is False
    assert differences(copied(state), before) == []


def test_the_latest_is_loaded(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    checkpoints, saved = two_saved(tmp_path)
    state = make_state(init=99)
    assert checkpoints.load_latest(state) is True
    assert differences(copied(state), saved[1]) == []
    assert caplog.text == ""


@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_latest_falls_back_to_the_one_before(tmp_path, caplog, missing):
    checkpoints, saved = two_saved(tmp_path)
    if missing:  # killed between the two renames of a save
        checkpoints.latest.unlink()
    else:
        damage(checkpoints.latest)
    state = make_state(init=99)
    assert checkpoints.load_latest(state) is True
    assert state.step == 1
    assert differences(copied(state), saved[0]) == []
    assert ("falling back" in caplog.text) is not missing


def test_without_a_good_checkpoint_nothing_is_resumed(tmp_path):
    checkpoints, _ = two_saved(tmp_path)
    damage(checkpoints.latest)
    previous_of(checkpoints.latest).write_bytes(b"")
    state = make_state()
    before = copied(state)
    with pytest.raises(CheckpointError, match="no checkpoint can be resumed from") as caught:
        checkpoints.load_latest(state)
    assert f"{checkpoints.latest}: its sha256" in str(caught.value)
    assert f"{previous_of(checkpoints.latest)}: damaged" in str(caught.value)
    assert differences(copied(state), before) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", ["akiec", "bkl", "bcc"]),
        ("model", {"_target_": "net", "backbone": "large"}),
        ("preprocess", {"image_size": 9}),
        ("metadata", {"columns": ["age"]}),
        ("split_fingerprint", "abd"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, key, value):
    two_saved(tmp_path)
    other = RunCheckpoints(folder=tmp_path, about=about(**{key: value}))
    state = make_state()
    before = copied(state)
    with pytest.raises(CheckpointError, match=f"made with another {key}") as caught:
        other.load_latest(state)
    assert f"checkpoint: {about()[key]}" in str(caught.value)
    assert f"this run:   {value}" in str(caught.value)
    assert differences(copied(state), before) == []


def test_a_checkpoint_of_other_pixels_is_refused_and_one_that_says_nothing_of_them_is_taken(
    tmp_path,
):
    two_saved(tmp_path)
    other = RunCheckpoints(folder=tmp_path, about=about(images_fingerprint="0ac"))
    with pytest.raises(CheckpointError, match="images have changed since"):
        other.load_latest(make_state())
    tensors, header = read_checkpoint(other.latest)
    del header["images_fingerprint"]  # as an earlier version wrote it
    write_checkpoint(other.latest, tensors, header)
    assert other.load_latest(make_state()) is True


@pytest.mark.parametrize(
    ("key", "before", "now"),
    [
        ("threads", 1, 2),
        ("device", "cpu", "cuda"),
        ("ranks", 1, 4),
        ("precision", "fp32", "bf16"),
        ("torch", "2.7.0", "2.8.0"),
        ("evaluation_batch_size", 64, 32),
    ],
)
def test_another_machine_is_told_but_taken(tmp_path, caplog, key, before, now):
    two_saved(tmp_path)
    place = about() if key in about() else about()["software"]
    changes = {key: now} if key in about() else {"software": {**place, key: now}}
    assert place[key] == before
    other = RunCheckpoints(folder=tmp_path, about=about(**changes))
    assert other.load_latest(make_state()) is True
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert f"the run so far used {key}={before}, now {now}" in warning.getMessage()


@pytest.mark.parametrize("resumed", [False, True])
def test_room_is_asked_for_what_is_not_there_yet(tmp_path, monkeypatch, resumed):
    """Three states with two moments each and two models, less the files that are there."""
    state = make_state(optimizer=adamw)
    weights = sum(value.nbytes for value in state.model.state_dict().values())
    states = sum(value.nbytes for value in state.tensors().values()) + 2 * weights
    mend = "Make room, or name a folder on another disk with hydra.run.dir=FOLDER."
    checkpoints, there = RunCheckpoints(folder=tmp_path, about=about()), 0
    if resumed:
        checkpoints, _ = two_saved(tmp_path)
        checkpoints.load_latest(state)
        states = sum(value.nbytes for value in state.tensors().values())
        there = sum(path.stat().st_size for path in tmp_path.iterdir())
        mend = "Make room, then resume."
    needed = 3 * states + 2 * weights - there

    def let_be_free(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))

    let_be_free(needed)
    checkpoints.check_room(state)
    let_be_free(needed - 1)
    with pytest.raises(CheckpointError) as refused:
        checkpoints.check_room(state)
    assert str(refused.value).endswith(mend)


def test_numbers_survive_json_exactly():
    state = make_state()
    state.history = [{"epoch": 1, "val/loss": 0.1 + 0.2, "val/auc": None}]
    assert json.loads(json.dumps(state.numbers())) == state.numbers()
