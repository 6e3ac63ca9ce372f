"""Stages, averages of weights, mixing, growing images and recomputation, in the loop itself."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import (
    BATCH,
    CLASSES,
    EPOCHS,
    LABELS,
    SEED,
    STEPS,
    STORE,
    TRAIN,
    LossAt,
    Net,
    PlainLoss,
    copied,
    differences,
    make_state,
    make_step,
    mixing,
    plain,
    schedule,
    seeded,
    train,
    validate,
    without_timing,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dermalyze.augmentation.image_sizes import ImageSizes
from dermalyze.checkpoint_file import read_checkpoint
from dermalyze.distributed import ALONE, Ranks
from dermalyze.engine.loop import epoch_windows
from dermalyze.engine.state import Record, TrainState
from dermalyze.errors import Interrupted
from dermalyze.optim.stages import Stage
from dermalyze.randomness import Purpose, generator


def kill(loss: torch.Tensor) -> torch.Tensor:
    signal.raise_signal(signal.SIGTERM)
    return loss


def whole_and_resumed(
    folder: Path, make: Callable[[int], TrainState], *, call: int, **options: Any
) -> tuple[TrainState, TrainState]:
    """Return the end of an uninterrupted run, and of one stopped at a call of the loss."""
    whole = make(0)
    train(folder / "whole", whole, **options)
    with pytest.raises(Interrupted):
        train(folder / "cut", make(0), loss=LossAt(call, kill), **options)
    resumed = make(99)
    train(folder / "cut", resumed, **options)
    return whole, resumed


# Stages


def two_stages(net: Net) -> list[Stage]:
    """One epoch of the classifier alone, then the rest of everything at another rate."""
    body = net.layers[:4]

    def head_only() -> torch.optim.Optimizer:
        return torch.optim.SGD(net.layers[7].parameters(), momentum=0.9)

    def everything() -> torch.optim.Optimizer:
        return torch.optim.AdamW(net.parameters(), weight_decay=0.02, fused=True)

    return [
        Stage("head", 0, 1, lambda step, costs: 0.1 * 0.5**step, head_only, body),
        Stage("whole", 1, EPOCHS - 1, schedule, everything, None),
    ]


def staged(init: int) -> TrainState:
    return make_state(model=seeded(seed=init), stages=two_stages)


def test_the_first_stage_trains_the_head_alone_and_the_second_everything(tmp_path):
    state = staged(0)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    train(tmp_path / "one", state, epochs=1)
    after = state.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # Neither weights nor BatchNorm's statistics below the head.
    assert changed == {"layers.7.weight", "layers.7.bias"}
    state = staged(0)
    train(tmp_path / "all", state)
    after = state.model.state_dict()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged == set()
    assert int(after["layers.1.num_batches_tracked"]) == (EPOCHS - 1) * STEPS


def test_each_stage_has_its_own_schedule_and_optimiser(tmp_path):
    state = staged(0)
    assert isinstance(state.optimizer, torch.optim.SGD)
    train(tmp_path, state)
    assert isinstance(state.optimizer, torch.optim.AdamW)
    rates = [record["lr"] for record in state.history]
    last = STEPS - 1
    assert rates == [0.1 * 0.5**last, schedule(last), schedule(STEPS + last)]
    assert all(parameter.requires_grad for parameter in state.model.parameters())


def test_two_stages_equal_plain_torch(tmp_path):
    state = make_state(model=seeded(dropout=0.0), stages=two_stages)
    train(tmp_path, state, augment=plain)

    model = seeded(dropout=0.0)
    images = STORE.batch(np.arange(len(LABELS)))
    labels = torch.from_numpy(LABELS)
    model.layers[:4].requires_grad_(False)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.layers[7].parameters(), momentum=0.9)
    for epoch in range(EPOCHS):
        model.train()
        if epoch == 0:
            model.layers[:4].eval()
        if epoch == 1:
            model.requires_grad_(True)
            optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02, fused=True)
        order = generator(SEED, Purpose.ORDER, epoch).permutation(len(TRAIN))
        for position, rows in enumerate(np.split(order, [4, 8, 12, 16])):
            lr = 0.1 * 0.5**position if epoch == 0 else schedule((epoch - 1) * STEPS + position)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad()
            target = F.one_hot(labels[rows], CLASSES).float()
            F.cross_entropy(model(images[rows]), target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
    assert differences(dict(state.model.state_dict()), dict(model.state_dict())) == []


@pytest.mark.parametrize("call", [1, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS + 2])
def test_resume_within_and_across_stages_equals_uninterrupted(tmp_path, call):
    whole, resumed = whole_and_resumed(tmp_path, staged, call=call)
    assert differences(copied(resumed), copied(whole)) == []
    assert without_timing(resumed.history) == without_timing(whole.history)


def test_patience_of_the_first_stage_does_not_end_the_run(tmp_path):
    values = iter([0.1, 0.5, 0.6, 0.7, 0.8])

    def stages(net: Net) -> list[Stage]:
        head, whole = two_stages(net)
        return [Stage("head", 0, 2, head.schedule, head.make_optimizer, head.frozen),
                Stage("whole", 2, 3, whole.schedule, whole.make_optimizer, None)]  # fmt: skip

    state = make_state(stages=stages, patience=1)
    train(tmp_path, state, epochs=5, validate=lambda model: {"val/loss": next(values)})
    # Epoch 2 was one without improvement, and began the second stage anew; epoch 3 ended the run.
    assert [record["epoch"] for record in state.history] == [1, 2, 3]
    assert state.stopping.best_epoch == 1


def test_a_schedule_sees_the_results_of_its_stage_turned_so_that_less_is_better():
    seen: list[tuple[int, list[float]]] = []

    def watch(step: int, costs: Sequence[float] = ()) -> float:
        seen.append((step, list(costs)))
        return 0.1

    state = make_state(rate=watch, monitor="val/accuracy")
    state.stopping.direction = "max"
    state.history = [{"epoch": 1, "val/accuracy": 0.5}, {"epoch": 2, "val/accuracy": 0.75}]
    state.epoch = 2
    assert state.learning_rate(3) == 0.1
    assert seen == [(2 * STEPS + 3, [-0.5, -0.75])]
    state.stage = Stage("whole", 1, 2, watch, state.stage.make_optimizer, None)
    state.learning_rate(0)
    assert seen[1:] == [(STEPS, [-0.75])]


def test_the_loss_is_told_the_epoch_before_its_first_step_and_after_resuming(tmp_path):
    loss = PlainLoss()
    train(tmp_path / "whole", make_state(), loss=loss)
    assert loss.epochs == [0, 1, 2]
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", make_state(), loss=LossAt(STEPS + 2, kill))
    resumed = PlainLoss()
    train(tmp_path / "cut", make_state(), loss=resumed)
    assert resumed.epochs == [1, 2]


# The moving average


def test_the_moving_average_by_hand(tmp_path):
    """d = min(decay, (1 + n) / (10 + n)) after each step; buffers too; it is what predicts."""
    state = make_state(ema=0.2)
    models: list[dict[str, torch.Tensor]] = []
    step, windows = make_step(), epoch_windows(TRAIN, batch_size=BATCH, accumulate=1)
    average = {name: value.clone() for name, value in state.model.state_dict().items()}
    for n, window in enumerate(windows):
        step(state, window, n)
        state.step += 1
        decay = [1 / 10, 2 / 11, 0.2, 0.2, 0.2][n]
        for name, value in state.model.state_dict().items():
            average[name] = (
                decay * average[name] + (1 - decay) * value
                if value.is_floating_point()
                else value.clone()
            )
        models.append(dict(state.model.state_dict()))
    found = state.predictor.state_dict()
    assert state.predictor is not state.model
    for name, value in average.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
    assert not torch.equal(found["layers.7.weight"], models[-1]["layers.7.weight"])


def test_the_average_is_validated_selected_and_saved_and_training_goes_on_raw(tmp_path):
    seen: list[torch.Tensor] = []

    def watched(model: nn.Module) -> Record:
        seen.append(model.state_dict()["layers.7.weight"].clone())
        return validate(model)

    with_ema, without = make_state(ema=0.9), make_state()
    checkpoints = train(tmp_path / "ema", with_ema, validate=watched)
    train(tmp_path / "raw", without)
    assert differences(dict(with_ema.model.state_dict()), dict(without.model.state_dict())) == []
    tensors, header = read_checkpoint(checkpoints.best)
    best = seen[(with_ema.stopping.best_epoch or 0) - 1]
    assert torch.equal(tensors["layers.7.weight"], best)
    assert header["weights"] == "moving average"
    assert torch.equal(seen[-1], with_ema.predictor.state_dict()["layers.7.weight"])


@pytest.mark.parametrize("call", [2, STEPS, STEPS + 3])
def test_resume_with_a_moving_average_equals_uninterrupted(tmp_path, call):
    def make(init: int) -> TrainState:
        return make_state(ema=0.99, init=init)

    whole, resumed = whole_and_resumed(tmp_path, make, call=call)
    assert any(name.startswith("ema/") for name in copied(whole))
    assert differences(copied(resumed), copied(whole)) == []


# The average of the last epochs


def test_the_average_of_the_last_epochs_by_hand(tmp_path):
    ends: list[dict[str, torch.Tensor]] = []
    tried: list[nn.Module] = []

    def watched(model: nn.Module) -> Record:
        tried.append(model)
        ends.append({name: value.clone() for name, value in model.state_dict().items()})
        return validate(model)

    state = make_state(model=seeded(dropout=0.0), last_epochs=2)
    train(tmp_path, state, augment=plain, validate=watched)
    assert len(ends) == EPOCHS + 1  # the average is tried after the last epoch
    *_, one, two, average = ends
    for name, _ in state.model.named_parameters():
        torch.testing.assert_close(average[name], (one[name] + two[name]) / 2, rtol=1e-6, atol=1e-7)

    # BatchNorm's statistics are the mean over the batches of the last epoch's order.
    order = generator(SEED, Purpose.ORDER, EPOCHS - 1).permutation(len(TRAIN))
    model = seeded(dropout=0.0)
    model.load_state_dict(average)
    batches = [
        model.layers[0](STORE.batch(rows).float() / 255 - 0.5)
        for rows in np.split(order, [4, 8, 12, 16])
    ]
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(average["layers.1.running_mean"], means, rtol=1e-5, atol=1e-6)

    metrics = {name: value for name, value in state.history[-1].items() if "average_of" in name}
    assert metrics == {f"average_of_epochs/{k}": v for k, v in validate(tried[-1]).items()}


def test_the_average_becomes_the_best_model_if_it_is(tmp_path):
    values = iter([0.9, 0.8, 0.7, 0.1])
    state = make_state(last_epochs=2)
    checkpoints = train(tmp_path, state, validate=lambda model: {"val/loss": next(values)})
    tensors, header = read_checkpoint(checkpoints.best)
    assert (header["weights"], header["epoch"]) == ("average of epochs", EPOCHS)
    assert header["validation_metrics"] == {"val/loss": 0.1}
    assert state.last_epochs is not None
    expected = dict(state.last_epochs.average.module.state_dict())
    assert differences(tensors, expected) == []
    assert [record["val/loss"] for record in state.history] == [0.9, 0.8, 0.7]


@pytest.mark.parametrize("call", [STEPS + 1, 2 * STEPS, 2 * STEPS + 3])
def test_resume_with_an_average_of_epochs_equals_uninterrupted(tmp_path, call):
    def make(init: int) -> TrainState:
        return make_state(last_epochs=2, init=init)

    whole, resumed = whole_and_resumed(tmp_path, make, call=call)
    assert differences(copied(resumed), copied(whole)) == []
    assert resumed.best_record is not None
    assert without_timing([resumed.best_record]) == without_timing([whole.best_record or {}])


class WithNormedHead(Net):
    """Its classifier drops numbers before a BatchNorm, whose statistics so depend on chance."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[7] = nn.Sequential(nn.BatchNorm1d(20), nn.Linear(20, CLASSES))


def normed_head(init: int, **options: Any) -> TrainState:
    torch.manual_seed(init)
    return make_state(model=WithNormedHead(), last_epochs=2, **options)


def test_resume_after_the_very_last_step_takes_the_same_statistics(tmp_path):
    whole, resumed = whole_and_resumed(tmp_path, normed_head, call=EPOCHS * STEPS)
    assert differences(copied(resumed), copied(whole)) == []
    assert without_timing(resumed.history) == without_timing(whole.history)


def test_all_ranks_draw_alike_for_the_statistics_of_an_average():
    windows = epoch_windows(TRAIN, batch_size=BATCH, accumulate=2)

    def draws(ranks: Ranks) -> list[float]:
        return [float(torch.rand(1)) for _ in make_step(ranks=ranks).inputs(2, windows)]

    alone = draws(ALONE)
    assert len(set(alone)) == STEPS
    assert draws(Ranks(0, 2)) == draws(Ranks(1, 2)) == alone


def test_an_average_keeps_the_statistics_of_what_is_frozen(tmp_path):
    def head_alone(net: Net) -> list[Stage]:
        head = net.layers[7]
        make = partial(torch.optim.SGD, list(head.parameters()))
        return [Stage("head", 0, EPOCHS, schedule, make, net.layers[:4])]

    state = normed_head(0, stages=head_alone)
    frozen, learning = state.model.layers[1], state.model.layers[7][0]
    frozen.running_mean.fill_(0.25)
    train(tmp_path, state)
    assert state.last_epochs is not None
    average: Any = state.last_epochs.average.module
    assert average.layers[1].running_mean.tolist() == frozen.running_mean.tolist() == [0.25] * 4
    assert int(average.layers[1].num_batches_tracked) == 0
    assert int(learning.num_batches_tracked) == EPOCHS * STEPS
    assert int(average.layers[7][0].num_batches_tracked) == STEPS
    assert average.layers[7][0].momentum == learning.momentum == 0.1


def test_the_best_epochs_record_holds_nothing_of_an_average_that_was_worse(tmp_path):
    values = iter([0.9, 0.8, 0.1, 0.7])
    state = make_state(last_epochs=2)
    train(tmp_path, state, validate=lambda model: {"val/loss": next(values)})
    assert state.best_record is not None
    assert [key for key in state.best_record if "val" in key] == ["val/loss"]
    assert state.history[-1]["average_of_epochs/val/loss"] == 0.7


# Mixing


def test_a_mixed_step_equals_the_papers_formula():
    """Mixup: the mixed images' loss is the loss against labels mixed by the same share."""
    state = make_state(model=seeded(norm=False, dropout=0.0))
    step = make_step(augment=plain, mixing=mixing(mixup_alpha=1.0), grad_clip=None)
    rows = TRAIN[:4]
    mix = step.mixing(generator(SEED, Purpose.MIXING, 0, 3), epoch=0, size=8)
    assert mix is not None
    images = STORE.batch(rows).float()
    mixed = mix.kept * images + (1 - mix.kept) * images[[1, 0, 3, 2]]
    logits = state.model(mixed)
    labels = torch.from_numpy(LABELS[rows])
    other = labels[[1, 0, 3, 2]]
    expected = mix.kept * F.cross_entropy(logits, labels) + (1 - mix.kept) * F.cross_entropy(
        logits, other
    )
    step(state, [rows], 3)
    assert float(state.step_losses_S[0]) == pytest.approx(expected.item(), rel=1e-5)


def test_resume_while_mixing_equals_uninterrupted(tmp_path):
    both = {"mixing": mixing(mixup_alpha=0.4, cutmix_alpha=1.0)}
    whole, resumed = whole_and_resumed(tmp_path, lambda init: make_state(init=init), call=7, **both)
    assert differences(copied(resumed), copied(whole)) == []
    unmixed = make_state()
    train(tmp_path / "unmixed", unmixed)
    assert differences(copied(unmixed), copied(whole))  # and mixing did something


# Growing images


def test_sizes_grow_to_the_full_one_in_multiples_of_32():
    sizes = ImageSizes(first=96, last=224, growing_epochs=4)
    assert [sizes(epoch) for epoch in range(6)] == [96, 128, 160, 192, 224, 224]
    assert [ImageSizes(first=64, last=64, growing_epochs=0)(epoch) for epoch in range(2)] == [
        64
    ] * 2
    assert ImageSizes(first=60, last=108, growing_epochs=2)(1) == 96


def test_the_augmentation_is_asked_for_the_epochs_size(tmp_path):
    asked: list[int] = []

    def augment(
        images_BCHW: torch.Tensor, random: object, *, size: int, positions_B: np.ndarray
    ) -> torch.Tensor:
        asked.append(size)
        return images_BCHW

    train(tmp_path, make_state(), augment=augment, image_size=lambda epoch: 8 + epoch)
    assert asked == [8] * STEPS + [9] * STEPS + [10] * STEPS


# Recomputation


class Recomputing(Net):
    """Runs its convolutions a second time in the backward pass."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        x = images_BCHW.float() / 255 - 0.5
        features = checkpoint(self.layers[:4], x, use_reentrant=False)
        logits_BK: torch.Tensor = self.layers[4:](features)
        return logits_BK


def test_recomputation_changes_neither_gradients_nor_statistics():
    def state_after(net: Net, *, recomputes: bool) -> TrainState:
        net.load_state_dict(seeded(dropout=0.0).state_dict())
        state = make_state(model=net)
        make_step(recomputes=recomputes)(state, [TRAIN[:8]], 0)
        return state

    plain_net = state_after(Net(dropout=0.0), recomputes=False)
    again = state_after(Recomputing(dropout=0.0), recomputes=True)
    assert differences(copied(again), copied(plain_net)) == []
    counted_twice = state_after(Recomputing(dropout=0.0), recomputes=False)
    assert set(differences(copied(counted_twice), copied(plain_net))) == {
        "model/layers.1.running_mean",
        "model/layers.1.running_var",
        "model/layers.1.num_batches_tracked",
    }


def test_everything_at_once_resumes_exactly(tmp_path):
    def make(init: int) -> TrainState:
        return make_state(
            model=seeded(seed=init), stages=two_stages, ema=0.9, last_epochs=1, scaler=True
        )

    options = {"mixing": mixing(mixup_alpha=0.4, cutmix_alpha=1.0), "accumulate": 2}

    def shorter(init: int) -> TrainState:
        state = make(init)
        state.step_losses_S = torch.zeros(3)
        state.step_counts_S2K = torch.zeros((3, 2, CLASSES), dtype=torch.int64)
        return state

    whole, resumed = whole_and_resumed(tmp_path, shorter, call=8, **options)
    assert differences(copied(resumed), copied(whole)) == []
