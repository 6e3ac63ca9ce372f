"""Evaluate a trained model: `python -m dermalyze.evaluate --help`."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from dermalyze.command import command

logger = logging.getLogger("dermalyze")

_SHOWN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auc": "macro OvR AUC",
    "ece": "ECE (15 bins)",
}


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate, write the results, print the short table."""
    # Imported here, so that --help and --cfg job need neither torch nor mlflow.
    from dermalyze.assessment import assess
    from dermalyze.schema import Evaluation, checked
    from dermalyze.taxonomy import DISCLAIMER

    assessment = assess(checked(cfg, Evaluation))
    lines = [f"{cfg.split} split, {assessment.images} images"]
    if cfg.logit_adjustment is not None:
        lines[0] += f", probabilities / (class shares in training)^{cfg.logit_adjustment:g}"
    for key, name in _SHOWN.items():
        value = assessment.metrics[key]
        lines.append(f"  {name:<18} {'undefined' if value is None else format(value, '.4f')}")
    logger.info("\n".join(lines))
    logger.info(
        "made %s (report.html, evaluation_metrics.json, predictions.csv, figures)\n%s%s",
        assessment.folder,
        f"compare it in MLflow: {assessment.how_to_look}\n" if assessment.how_to_look else "",
        DISCLAIMER,
    )


if __name__ == "__main__":
    main()
