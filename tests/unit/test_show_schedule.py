from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.recipe import learning_rates
from dermalyze.schema import checked_run


def rates(*overrides: str, improving: int | None = None) -> dict[str, list[float]]:
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        config = checked_run(compose("train", list(overrides)))
    return learning_rates(config, steps_per_epoch=4, improving_epochs=improving)


def test_the_rates_are_those_of_the_stages() -> None:
    found = rates("stages=two", "training.epochs=7", "scheduler=cosine", "optimizer.lr=0.5")
    assert list(found) == ["head", "whole"]
    assert [len(values) for values in found.values()] == [20, 8]
    assert found["head"][1:] == [1e-3] * 19  # constant, after one step of warm-up of 5 %
    whole = found["whole"]
    assert whole[0] == 0.5
    assert whole[4] == pytest.approx((0.5 + 1e-5) / 2)


def test_plateau_lowers_the_rate_once_results_stand_still() -> None:
    options = ["scheduler=plateau", "training.epochs=12", "scheduler.warmup_fraction=0"]
    [values] = rates(*options, improving=3).values()
    # Better in epochs 1 to 4, then four that are not: patience 3 is over before epoch 9.
    assert values[: 8 * 4] == [3e-4] * 32
    assert values[32:] == pytest.approx([0.3 * 3e-4] * 16)
    [values] = rates(*options).values()
    assert values == [3e-4] * 48


def test_a_stage_that_ends_at_a_high_rate_is_told(caplog: pytest.LogCaptureFixture) -> None:
    rates()
    assert not caplog.records
    rates("training.epochs=10", "stages=two")
    [record] = caplog.records
    assert record.getMessage().startswith(
        "stage whole: its 5 epochs end amid a period of scheduler.restart_epochs, at a rate 85% of"
    )


@pytest.mark.slow
def test_the_command_writes_the_curve_and_its_numbers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dermalyze.show_schedule", "scheduler=onecycle"]
    options = ["show.steps_per_epoch=3", "experiment=quick_cpu", "show.output=here/rate.png"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "made here/rate.png and here/rate.csv" in done.stdout
    assert (tmp_path / "here" / "rate.png").read_bytes()[:4] == b"\x89PNG"
    with (tmp_path / "here" / "rate.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15 * 3
    assert float(rows[0]["learning_rate"]) == pytest.approx(1e-3 / 25)
    assert max(float(row["learning_rate"]) for row in rows) <= 1e-3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]
