"""The findings of a sweep as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dermalyze.sweeps.findings import Finding, Metrics, by_recipe, components, spread

SHOWN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auc": "macro OvR AUC",
    "ece": "ECE (15 bins)",
}


def comparison_table(found: Sequence[Finding], ensemble: Metrics | None) -> str:
    """Return a row for each job and each recipe's mean and spread, for validation and test.

    Args:
        found: the jobs that are done.
        ensemble: its metrics on the test split; None where it was not evaluated.
    """
    rows: list[tuple[str, Mapping[str, str]]] = []
    validation = {finding.job.number: finding.validation for finding in found}
    rows += _block("validation, at the best epoch", found, validation)
    tests = {finding.job.number: finding.test for finding in found if finding.test}
    if tests:
        rows += _block("test", [finding for finding in found if finding.test], tests)
    if ensemble is not None:
        if not tests:
            rows.append(("test", {}))
        rows.append(("  all of them as an ensemble", _cells(ensemble)))
    if len(tests) == len(found):
        rows += _components(found)
    return _aligned(rows)


def _block(
    title: str, found: Sequence[Finding], values: Mapping[int, Metrics]
) -> list[tuple[str, Mapping[str, str]]]:
    rows: list[tuple[str, Mapping[str, str]]] = [(title, {})]
    groups = by_recipe(found)
    for recipe, group in groups.items():
        for finding in group:
            rows.append((f"  {finding.job.name}", _cells(values[finding.job.number])))
        if len(group) > 1:
            of = f" of {', '.join(recipe)}" if len(groups) > 1 and recipe else ""
            rows.append((f"  mean ± sd{of}, {len(group)} runs", _spreads(group, values)))
    return rows


def _spreads(group: Sequence[Finding], values: Mapping[int, Metrics]) -> dict[str, str]:
    cells = {}
    for metric in SHOWN:
        found = spread([values[finding.job.number] for finding in group], metric)
        cells[metric] = "undefined" if found is None else f"{found.mean:.4f}"
        if found is not None and found.deviation is not None:
            cells[metric] += f" ± {found.deviation:.4f}"
    return cells


def _components(found: Sequence[Finding]) -> list[tuple[str, Mapping[str, str]]]:
    rows: list[tuple[str, Mapping[str, str]]] = []
    for recipe, group in by_recipe(found).items():
        parts = {metric: components(group, metric) for metric in SHOWN}
        if all(part is None for part in parts.values()):
            continue
        rows.append((f"test, standard deviations by source {', '.join(recipe)}".rstrip(), {}))
        for source, name in (
            ("data", "  from the data (folds)"),
            ("seed", "  from seeds, in every fold alike"),
            ("rest", "  from seeds, in each fold another"),
        ):
            cells = {
                metric: "undefined" if part is None else f"{part[source] ** 0.5:.4f}"
                for metric, part in parts.items()
            }
            rows.append((name, cells))
    return rows


def _cells(metrics: Metrics) -> dict[str, str]:
    values = {metric: metrics.get(metric) for metric in SHOWN}
    return {
        metric: "undefined" if value is None else f"{value:.4f}" for metric, value in values.items()
    }


def _aligned(rows: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    lines = [("", *SHOWN.values())]
    lines += [(name, *(cells.get(metric, "") for metric in SHOWN)) for name, cells in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(SHOWN) + 1)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
