"""Compare evaluated runs on the same images: `python -m dermalyze.compare --help`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dermalyze.command import command

if TYPE_CHECKING:
    from dermalyze.comparison import Compared, Result, Scope

logger = logging.getLogger("dermalyze")

_SHOWN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auc": "macro OvR AUC",
    "ece": "ECE (15 bins)",
}


@command("compare")
def main(cfg: DictConfig) -> None:
    """Compare, write the results, print the tables."""
    # Imported here, so that --help and --cfg job need no pandas.
    from dermalyze.comparison import compare, write_comparison
    from dermalyze.schema import Comparison, checked
    from dermalyze.taxonomy import DISCLAIMER

    config = checked(cfg, Comparison)
    found = compare(config)
    folder = write_comparison(found, config["output"])
    for run, images in found.trained_on.items():
        if images:
            logger.warning(
                "leakage: %s was trained on lesions of %d of these images; its numbers are too "
                "good there",
                run,
                images,
            )
    for scope in found.scopes:
        logger.info("%s", _table(found, scope))
    logger.info(
        "made %s (comparison.json, comparison.csv). Next: look at the images that only one run got "
        "right, in the runs' evaluation/%s/predictions.csv\n%s",
        folder,
        found.split,
        DISCLAIMER,
    )


def _table(found: Compared, scope: Scope) -> str:
    """Return the metrics of the runs, and the differences of each two, over a scope's images."""
    import pandas as pd

    which = "" if scope.name == "all" else f" {scope.name}"
    title = (
        f"{found.split} split: {scope.images} images{which}, {scope.lesions} lesions; "
        f"intervals of {100 * found.level:g} %, {found.draws} draws of lesions"
    )
    rows: dict[str, dict[str, str]] = {}
    for result in found.results:
        if result.images == scope.name and result.metric in _SHOWN:
            rows.setdefault(_side(result.run, result.minus), {})[_SHOWN[result.metric]] = _cell(
                result
            )
    for test in found.tests:
        if test.images == scope.name:
            rows[_side(test.run, test.minus)] |= {
                "right alone": f"{test.only_run_right} : {test.only_minus_right}",
                "McNemar p": f"{test.p:.2g}",
                "Holm p": f"{test.p_holm:.2g}",
            }
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    return f"{title}\n{frame.to_string()}"


def _side(run: str, minus: str | None) -> str:
    return run if minus is None else f"{run} - {minus}"


def _cell(result: Result) -> str:
    if result.value is None:
        return "undefined"
    sign = "" if result.minus is None else "+"
    return f"{result.value:{sign}.3f} [{result.low:{sign}.3f}, {result.high:{sign}.3f}]"


if __name__ == "__main__":
    main()
