"""Compare evaluated runs on the same images: `python -m dermalyze.compare --help`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dermalyze.command import command

if TYPE_CHECKING:
    from dermalyze.compared_runs.results import PairTest, Result
    from dermalyze.comparison import Compared, Scope

logger = logging.getLogger("dermalyze")


@command("compare")
def main(cfg: DictConfig) -> None:
    """Compare, write the results, print the tables."""
    # Imported here, so that --help and --cfg job need no pandas.
    from dermalyze.compared_runs.schema import Comparison
    from dermalyze.comparison import compare, write_comparison
    from dermalyze.schema import checked
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
        "made %s (compare.html, comparison.json, comparison.csv, figures). Next: open %s, or look "
        "at the images that only one run got right, in the runs' evaluation/%s/predictions.csv\n%s",
        folder,
        folder / "compare.html",
        found.split,
        DISCLAIMER,
    )


def _table(found: Compared, scope: Scope) -> str:
    """Return the metrics of the groups, and the differences of pairs, over a scope's images."""
    import pandas as pd

    from dermalyze.reporting.run_sections import SHOWN

    which = "" if scope.name == "all" else f" {scope.name}"
    title = (
        f"{found.split} split: {scope.images} images{which}, {scope.lesions} lesions; in brackets "
        f"{100 * found.level:g} % over {found.draws} draws of lesions, models as trained; +- over "
        "seeds"
    )
    seeds = {group.label: len(group.runs) for group in found.groups}
    rows: dict[str, dict[str, str]] = {}
    for result in found.results:
        if result.images == scope.name and result.metric in SHOWN:
            side = _side(result.group, result.minus)
            count = "" if result.minus else str(seeds[result.group])
            rows.setdefault(side, {"seeds": count})[SHOWN[result.metric]] = _cell(result)
    for side, tests in _by_side(found, scope).items():
        corrected = [test.p_holm for test in tests]
        ends = dict.fromkeys(f"{p:.2g}" for p in (min(corrected), max(corrected)))
        rows[side] |= {
            "right alone": ", ".join(f"{t.only_run_right}:{t.only_minus_right}" for t in tests),
            "Holm p": " to ".join(ends),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    return f"{title}\n{frame.to_string()}"


def _by_side(found: Compared, scope: Scope) -> dict[str, list[PairTest]]:
    sides: dict[str, list[PairTest]] = {}
    for test in found.tests:
        if test.images == scope.name:
            sides.setdefault(_side(test.group, test.minus), []).append(test)
    return sides


def _side(group: str, minus: str | None) -> str:
    return group if minus is None else f"{group} - {minus}"


def _cell(result: Result) -> str:
    """Return value, +- over seeds, and the interval over lesions."""
    if result.value is None:
        return "undefined"
    sign = "" if result.minus is None else "+"
    chance = result.sd if result.minus is None else result.seed_error
    seeds = "" if chance is None else f" +-{chance:.3f}"
    return f"{result.value:{sign}.3f}{seeds} [{result.low:{sign}.3f}, {result.high:{sign}.3f}]"


if __name__ == "__main__":
    main()
