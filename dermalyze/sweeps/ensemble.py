"""The finished jobs of a sweep as one model: which they are, and why they may be none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from dermalyze.data.split_files import first, read_rows
from dermalyze.files import write_whole
from dermalyze.sweep_folder import ENSEMBLE, Job
from dermalyze.sweeps.findings import Finding
from dermalyze.taxonomy import DISCLAIMER


def ensemble_problem(found: Sequence[Finding]) -> str | None:
    """Return why the jobs make no ensemble; None where they do.

    Members need the same classes in the same order, and the same test images, or there would be
    none that all of them may be judged on.
    """
    if len(found) < 2:
        return f"an ensemble needs two jobs that are done, and {len(found)} is"
    one, *others = found
    images = _test_images(one)
    for other in others:
        if other.facts.classes != one.facts.classes:
            return (
                f"jobs {one.job.number} and {other.job.number} have other classes: "
                f"{', '.join(one.facts.classes)} and {', '.join(other.facts.classes)}"
            )
        differing = images ^ _test_images(other)
        if differing:
            return (
                f"jobs {one.job.number} and {other.job.number} have other test splits: "
                f"{len(differing)} images are in only one of them ({first(sorted(differing))})"
            )
    return None


def write_ensemble(sweep: Path, found: Sequence[Finding], left_out: Sequence[Job]) -> Path:
    """Write the file that `evaluate checkpoint=` takes as one model; return its path.

    Args:
        sweep: its folder.
        found: the members.
        left_out: jobs that would be members, had they ended well.
    """
    path = sweep / ENSEMBLE
    content = {
        "checkpoints": [finding.folder.name for finding in found],
        "classes": list(found[0].facts.classes),
        "left_out": {job.number: f"{job.status}: {job.reason}" for job in left_out},
        "disclaimer": DISCLAIMER,
    }
    header = (
        "# The jobs of a sweep as one model; `checkpoints` are runs' folders beside this file.\n"
        f"# python -m dermalyze.evaluate checkpoint={path}\n"
    )
    write_whole(path, header + OmegaConf.to_yaml(OmegaConf.create(content)))
    return path


def _test_images(finding: Finding) -> frozenset[str]:
    problems: list[str] = []
    rows = read_rows(finding.folder, problems)
    return frozenset(row.image_id for row in rows if row.part == "test")
