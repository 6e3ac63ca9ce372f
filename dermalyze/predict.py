"""Say what trained models make of images: `python -m dermalyze.predict --help`."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from dermalyze.command import command

logger = logging.getLogger("dermalyze")


@command("predict")
def main(cfg: DictConfig) -> None:
    """Predict, and say where the results are; images that failed make the exit code 2."""
    # Imported here, so that --help and --cfg job need no torch.
    from dermalyze.allocation import keep_freed_memory
    from dermalyze.errors import DataError
    from dermalyze.prediction.many import predict_many
    from dermalyze.schema import Prediction, checked
    from dermalyze.taxonomy import DISCLAIMER

    keep_freed_memory()
    tally = predict_many(checked(cfg, Prediction))
    where = "on the screen; output=predictions.csv keeps them"
    if cfg.output is not None:
        where = f"in {cfg.output}"
    logger.info("%d images, results %s\n%s", tally.images, where, DISCLAIMER)
    if tally.failures:
        raise DataError(
            f"{tally.failures} of {tally.images} images could not be predicted, the others stand. "
            f"The first: {tally.first_error}"
        )


if __name__ == "__main__":
    main()
