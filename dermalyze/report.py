"""One page over one or many runs: `python -m dermalyze.report --help`."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from dermalyze.command import command

logger = logging.getLogger("dermalyze")


@command("report")
def main(cfg: DictConfig) -> None:
    """Write the page, and say where it is."""
    # Imported here, so that --help and --cfg job need no pandas.
    from dermalyze.compared_runs.schema import Report
    from dermalyze.run_report import report_runs
    from dermalyze.schema import checked
    from dermalyze.taxonomy import DISCLAIMER

    reported = report_runs(checked(cfg, Report))
    logger.info(
        "made %s over %d run%s, logged to MLflow for %d of them. Next: open it, or hold runs "
        "against each other: python -m dermalyze.compare runs=[A,B]\n%s",
        reported.page,
        reported.runs,
        "" if reported.runs == 1 else "s",
        reported.tracked,
        DISCLAIMER,
    )


if __name__ == "__main__":
    main()
