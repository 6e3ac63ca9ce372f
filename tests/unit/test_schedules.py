from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dermalyze.config import check_targets
from dermalyze.errors import ConfigError
from dermalyze.optim.schedules import Constant, CosineRestarts, OneCycle, Plateau, Schedule

CONF = Path(__file__).parents[2] / "conf" / "scheduler"


def from_yaml(name: str, peak_lr: float, total_steps: int, steps_per_epoch: int) -> Schedule:
    cfg = OmegaConf.load(CONF / f"{name}.yaml")
    check_targets({"scheduler": OmegaConf.to_container(cfg)})
    return instantiate(cfg)(
        peak_lr=peak_lr, total_steps=total_steps, steps_per_epoch=steps_per_epoch
    )


def cosine(**change: float) -> CosineRestarts:
    arguments = {
        "restart_epochs": 2.0,
        "restart_factor": 1,
        "eta_min": 1e-5,
        "warmup_fraction": 0.0,
        "peak_lr": 1e-3,
        "total_steps": 60,
        "steps_per_epoch": 5,
    }
    return CosineRestarts(**{**arguments, **change})


def torch_rates(
    peak_lr: float, period: int, factor: int, eta_min: float, steps: int
) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak_lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=period, T_mult=factor, eta_min=eta_min
    )
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.05, 0.3])
def test_after_the_warm_up_cosine_restarts_equal_torch(factor: int, warmup_fraction: float) -> None:
    schedule = cosine(
        restart_factor=factor, warmup_fraction=warmup_fraction, total_steps=400, peak_lr=3e-3
    )
    warmup_steps = round(400 * warmup_fraction)
    expected = torch_rates(3e-3, period=10, factor=factor, eta_min=1e-5, steps=400)
    rates = [schedule(step) for step in range(400)]
    # The last step of the warm-up has the full rate already.
    full_from = max(warmup_steps - 1, 0)
    assert rates[full_from:] == pytest.approx(expected[full_from:], rel=1e-9, abs=0)
    for step in range(full_from):
        ramp = (step + 1) / warmup_steps
        assert rates[step] == pytest.approx(expected[step] * ramp, rel=1e-9, abs=0)


def test_one_period_by_hand() -> None:
    schedule = cosine(restart_epochs=1.0, steps_per_epoch=4, peak_lr=1.0, eta_min=0.2)
    half = math.sqrt(0.5)
    period = [1.0, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half)]
    assert [schedule(step) for step in range(12)] == pytest.approx(3 * period)


def test_defaults_restart_at_epochs_20_and_40() -> None:
    steps_per_epoch = 157
    schedule = from_yaml("cosine_restarts", 1e-3, 60 * steps_per_epoch, steps_per_epoch)
    rates = [schedule(step) for step in range(60 * steps_per_epoch)]
    warmup_steps = round(0.05 * 60 * steps_per_epoch)  # 3 epochs
    restarts = [
        step / steps_per_epoch
        for step in range(warmup_steps, len(rates))
        if rates[step] > rates[step - 1]
    ]
    assert restarts == [20.0, 40.0]
    assert rates[20 * steps_per_epoch] == rates[40 * steps_per_epoch] == 1e-3
    assert rates[0] == pytest.approx(1e-3 / warmup_steps)
    # One step before the end of a period: (1 + cos(pi - x)) / 2 = sin(x / 2)^2, x = pi / T.
    last = 1e-5 + 0.99e-3 * math.sin(math.pi / (2 * 20 * steps_per_epoch)) ** 2
    assert rates[-1] == pytest.approx(last, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({}, 0.0),  # 12 epochs are six periods
        ({"total_steps": 65}, 0.5),  # and half a seventh
        ({"total_steps": 5}, 0.5),  # half of the first
        ({"restart_factor": 2, "total_steps": 30}, 0.0),  # periods of 10 and 20 steps
        ({"restart_factor": 2, "total_steps": 20}, 0.5),
        ({"restart_epochs": None, "total_steps": 7}, 0.0),
    ],
)
def test_what_is_left_of_the_way_down_at_the_end(change: dict[str, float], left: float) -> None:
    assert cosine(**change).left_at_end() == pytest.approx(left)


def test_growing_periods_restart_later_and_later() -> None:
    schedule = cosine(restart_factor=2)  # periods of 10, 20, 40 steps
    at_peak = [step for step in range(150) if schedule(step) == 1e-3]
    assert at_peak == [0, 10, 30, 70]


def test_periods_are_whole_steps() -> None:
    schedule = cosine(restart_epochs=0.5, steps_per_epoch=7)  # 3.5 steps
    assert [step for step in range(13) if schedule(step) == 1e-3] == [0, 4, 8, 12]


def test_constant_by_hand() -> None:
    schedule = from_yaml("constant", 2e-3, 80, 8)  # 4 steps of warm-up
    expected = [0.5e-3, 1e-3, 1.5e-3] + [2e-3] * 77
    assert [schedule(step) for step in range(80)] == pytest.approx(expected, rel=1e-12)


def test_constant_without_warm_up() -> None:
    schedule = Constant(warmup_fraction=0.0, peak_lr=0.1, total_steps=5, steps_per_epoch=1)
    assert [schedule(step) for step in range(5)] == [0.1] * 5


@given(
    restart_epochs=st.floats(0.2, 30),
    restart_factor=st.integers(1, 4),
    eta_min=st.floats(0, 1e-3),
    warmup_fraction=st.floats(0, 0.99),
    steps_per_epoch=st.integers(3, 500),
    step=st.integers(0, 5000),
)
def test_rates_stay_between_their_bounds(
    restart_epochs: float,
    restart_factor: int,
    eta_min: float,
    warmup_fraction: float,
    steps_per_epoch: int,
    step: int,
) -> None:
    schedule = cosine(
        restart_epochs=restart_epochs,
        restart_factor=restart_factor,
        eta_min=eta_min,
        warmup_fraction=warmup_fraction,
        steps_per_epoch=steps_per_epoch,
        total_steps=5000,
    )
    rate = schedule(step)
    assert 0 <= rate <= 1e-3 * (1 + 1e-12)
    if step >= 5000 * warmup_fraction + 1:
        assert rate >= eta_min * (1 - 1e-12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eta_min": 2e-3}, "scheduler.eta_min=0.002"),
        ({"eta_min": -1e-9}, "scheduler.eta_min=-1e-09"),
        ({"eta_min": math.nan}, "scheduler.eta_min=nan"),
        ({"warmup_fraction": 1.0}, "scheduler.warmup_fraction=1.0"),
        ({"warmup_fraction": -0.1}, "scheduler.warmup_fraction=-0.1"),
        ({"restart_factor": 0}, "scheduler.restart_factor=0"),
        ({"restart_epochs": 0.0}, "scheduler.restart_epochs=0.0"),
        ({"restart_epochs": 0.05}, "scheduler.restart_epochs=0.05"),  # a quarter of a step
        ({"restart_epochs": math.inf}, "scheduler.restart_epochs=inf"),
        ({"restart_epochs": math.nan}, "scheduler.restart_epochs=nan"),
        ({"peak_lr": 0.0}, "peak_lr=0.0"),
        ({"peak_lr": math.inf}, "peak_lr=inf"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        cosine(**change)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "change",
    [{"warmup_fraction": 1.0}, {"peak_lr": -1.0}, {"total_steps": 0}, {"steps_per_epoch": 0}],
)
def test_constant_refuses_values_out_of_range(change: dict[str, float]) -> None:
    arguments = {"warmup_fraction": 0.0, "peak_lr": 0.1, "total_steps": 5, "steps_per_epoch": 1}
    with pytest.raises(ConfigError) as error:
        Constant(**{**arguments, **change})
    name, value = next(iter(change.items()))
    assert f"{name}={value}" in str(error.value)


def test_the_lowest_rate_may_be_the_peak() -> None:
    schedule = cosine(eta_min=1e-3)
    assert [schedule(step) for step in range(60)] == pytest.approx([1e-3] * 60)


def test_one_cosine_over_the_whole_stage() -> None:
    schedule = from_yaml("cosine", 1e-3, 200, 7)
    expected = torch_rates(1e-3, period=200, factor=1, eta_min=1e-5, steps=200)
    rates = [schedule(step) for step in range(200)]
    assert rates[9:] == pytest.approx(expected[9:], rel=1e-9)
    assert rates[:9] == pytest.approx(
        [rate * (at + 1) / 10 for at, rate in enumerate(expected[:9])]
    )


def onecycle(**change: float) -> OneCycle:
    arguments = {"warmup_fraction": 0.3, "start_divisor": 25.0, "end_divisor": 1e4}
    run = {"peak_lr": 2e-3, "total_steps": 100, "steps_per_epoch": 10}
    return OneCycle(**{**arguments, **run, **change})


@pytest.mark.parametrize("steps", [3, 7, 100, 333])
@pytest.mark.parametrize("up", [0.1, 0.3, 0.5])
def test_one_cycle_equals_torch(steps: int, up: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2e-3, total_steps=steps, pct_start=up, div_factor=25, final_div_factor=1e4
    )
    expected = []
    for step in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()
    schedule = onecycle(total_steps=steps, warmup_fraction=up)
    assert [schedule(step) for step in range(steps)] == pytest.approx(expected, rel=1e-9)


def plateau(**change: float) -> Plateau:
    arguments = {"factor": 0.3, "patience": 2, "threshold": 0.0, "cooldown": 0, "min_lr": 1e-6}
    run = {"warmup_fraction": 0.0, "peak_lr": 1e-3, "total_steps": 300, "steps_per_epoch": 3}
    return Plateau(**{**arguments, **run, **change})


@given(
    costs=st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1.5]), max_size=40),
    patience=st.integers(0, 3),
    threshold=st.sampled_from([0.0, 0.25]),
    cooldown=st.integers(0, 3),
)
def test_plateau_equals_torch(
    costs: list[float], patience: int, threshold: float, cooldown: int
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.3, patience=patience, threshold=threshold, threshold_mode="abs",
        cooldown=cooldown, min_lr=1e-6, eps=0.0,
    )  # fmt: skip
    schedule = plateau(patience=patience, threshold=threshold, cooldown=cooldown)
    assert schedule(0) == 1e-3
    for epoch, cost in enumerate(costs, start=1):
        scheduler.step(cost)
        rate = schedule(3 * epoch, costs[:epoch])
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_plateau_warms_up() -> None:
    schedule = plateau(warmup_fraction=0.01)  # 3 steps
    assert [schedule(step) for step in range(4)] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("make", "change", "said"),
    [
        (onecycle, {"start_divisor": 0.5}, "scheduler.start_divisor=0.5"),
        (onecycle, {"end_divisor": math.inf}, "scheduler.end_divisor=inf"),
        (onecycle, {"warmup_fraction": 1.0}, "scheduler.warmup_fraction=1.0"),
        (plateau, {"factor": 1.0}, "scheduler.factor=1.0"),
        (plateau, {"min_lr": 2e-3}, "scheduler.min_lr=0.002"),
        (plateau, {"patience": -1}, "scheduler.patience=-1"),
        (plateau, {"threshold": -0.1}, "scheduler.threshold=-0.1"),
        (plateau, {"cooldown": -1}, "scheduler.cooldown=-1"),
        (plateau, {"peak_lr": 0.0}, "peak_lr=0.0"),
    ],
)
def test_other_schedules_refuse_values_out_of_range(
    make: object, change: dict[str, float], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make(**change)  # type: ignore[operator]
    assert said in str(error.value)
