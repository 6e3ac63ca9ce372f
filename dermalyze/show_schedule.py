"""Draw a run's learning rate without training: `python -m dermalyze.show_schedule --help`."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from dermalyze.command import command

logger = logging.getLogger("dermalyze")


@command("show_schedule")
def main(cfg: DictConfig) -> None:
    """Draw the learning rate of every step; write the picture and its numbers."""
    from dermalyze.evaluation.plots import save_figure, schedule_figure
    from dermalyze.files import write_whole
    from dermalyze.recipe import learning_rates
    from dermalyze.schema import checked_show

    config, show = checked_show(cfg)
    rates = learning_rates(
        config,
        steps_per_epoch=show["steps_per_epoch"],
        improving_epochs=show["improving_epochs"],
    )
    picture = Path(show["output"])
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_figure(schedule_figure(rates, show["steps_per_epoch"]), picture)
    table = picture.with_suffix(".csv")
    steps = [(stage, rate) for stage, values in rates.items() for rate in values]
    lines = [f"{step},{stage},{rate!r}" for step, (stage, rate) in enumerate(steps)]
    write_whole(table, "\n".join(["step,stage,learning_rate", *lines]) + "\n")
    for stage, values in rates.items():
        logger.info(
            "stage %s: %d steps, learning rate from %.3g, highest %.3g, to %.3g",
            stage, len(values), values[0], max(values), values[-1],
        )  # fmt: skip
    logger.info(
        "made %s and %s. Next: python -m dermalyze.train with the same words", picture, table
    )


if __name__ == "__main__":
    main()
