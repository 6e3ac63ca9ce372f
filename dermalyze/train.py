"""Train one run, or many with `-m`: `python -m dermalyze.train --help`."""

from __future__ import annotations

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dermalyze.command import command

logger = logging.getLogger("dermalyze")


@command("train", by_many=True, sweeps=True)
def main(cfg: DictConfig) -> float:
    """Train; return the best value of `training.monitor`, which sweeps select by."""
    # Imported here, so that --help and --cfg job need neither torch nor mlflow.
    from dermalyze.run_folder import CONFIG, as_typed, resumed_config
    from dermalyze.schema import check_run_values
    from dermalyze.search.trial_file import trial_number
    from dermalyze.taxonomy import DISCLAIMER

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    resume, trial = cfg.training.resume is not None, None
    if hydra_config.mode is RunMode.MULTIRUN:  # a job that was begun before goes on
        resume = (folder / CONFIG).is_file()
        if trial_number(folder) is not None:
            from dermalyze.search.trial import trial_of

            trial = trial_of(folder, hydra_config.sweeper, cfg.training.monitor)
    if resume:
        cfg = resumed_config(cfg, folder, list(hydra_config.overrides.task))
    check_run_values(cfg)
    if hydra_config.mode is RunMode.RUN:  # of a job of a sweep Hydra has said something
        logger.info(
            "this run's folder is %s; loading torch and timm takes some seconds",
            as_typed(folder),
        )
    from dermalyze.experiment import run_training  # later than wrong values are refused

    outcome = run_training(cfg, folder, resume=resume, trial=trial)

    shown = ", ".join(
        f"{key.removeprefix('val/').replace('_', ' ')} {value:.4f}"
        for key, value in outcome.best.items()
        if key.startswith("val/") and value is not None
    )
    logger.info("best epoch %s on validation: %s", outcome.best["epoch"], shown)
    logger.info(
        "made %s. Next: python -m dermalyze.evaluate checkpoint=%s\nCompare runs: %s\n%s",
        as_typed(folder),
        as_typed(folder),
        outcome.how_to_look,
        DISCLAIMER,
    )
    return outcome.best_value


if __name__ == "__main__":
    main()
