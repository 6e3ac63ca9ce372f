"""The end of a sweep: what its jobs found, side by side and together, said and written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dermalyze.assessment import Assessment, assess
from dermalyze.config import CONF_DIR
from dermalyze.errors import DermalyzeError
from dermalyze.schema import Evaluation, checked
from dermalyze.sweep_folder import (
    ENDED_WELL,
    ENSEMBLE,
    SHARED_SWEEP,
    SWEEP,
    Job,
    all_jobs_of,
    read_sweep,
    write_sweep,
)
from dermalyze.sweep_folder import Status as JobStatus
from dermalyze.sweeps.ensemble import ensemble_problem, write_ensemble
from dermalyze.sweeps.findings import (
    Finding,
    as_record,
    by_recipe,
    components,
    findings,
    spread,
    tested,
)
from dermalyze.sweeps.out_of_fold import write_out_of_fold
from dermalyze.sweeps.table import SHOWN, comparison_table
from dermalyze.sweeps.tracking import begin_tracking, begun
from dermalyze.taxonomy import DISCLAIMER
from dermalyze.tracking.run_lock import is_abandoned
from dermalyze.tracking.sweep_tags import parent_tags
from dermalyze.tracking.tracker import Status, Tracker

logger = logging.getLogger("dermalyze")

Node = dict[str, Any]


@dataclass(frozen=True)
class Together:
    """What the jobs are together.

    Attributes:
        file: that `evaluate checkpoint=` takes as one model; None where they are none.
        problem: why they are none, or why their evaluation failed.
        test: metrics on the test split; empty where they were not evaluated.
    """

    file: Path | None
    problem: str | None
    test: dict[str, float | None]


def conclude(sweep: Path, cfg: DictConfig, *, stopped: bool, broke_off: bool) -> None:
    """Say and write what came of a sweep's jobs.

    The test split is opened only when all jobs are done: for the ensemble of all of them, and for
    each job where they differ by chance alone, since among other jobs their results would choose.

    Args:
        sweep: its folder.
        cfg: of the sweep as a whole.
        stopped: whether it was asked to stop.
        broke_off: whether a launcher or a search did: then it is not done, whatever its jobs are.
    """
    record = read_sweep(sweep)
    jobs = [_settled(sweep, job) for job in all_jobs_of(sweep)]
    bad = [job for job in jobs if job.status not in ENDED_WELL]
    status = "stopped" if stopped else "failed" if bad or broke_off else "done"
    tracker = begin_tracking(sweep, cfg)
    found = findings(sweep, jobs, record["fixed"])
    together = _together(sweep, found, bad)
    untested: dict[int, str] = {}
    write_sweep(sweep, {**record, **_said(status, jobs, found, together, untested)})
    if status == "done" and cfg.sweep.evaluate:
        untested = _evaluate_jobs(cfg, found)
        together = _evaluate_together(sweep, cfg, found, together)
        found = findings(sweep, jobs, record["fixed"])
        write_sweep(sweep, {**record, **_said(status, jobs, found, together, untested)})
    out_of_fold = write_out_of_fold(sweep, found)
    _log(jobs, found, together, untested)
    made = [SWEEP]
    made += [ENSEMBLE] if together.file else []
    made += [out_of_fold.name] if out_of_fold else []
    following = _following(sweep, status, together)
    logger.info(
        "made %s (%s). Next: %s\nCompare runs: %s\n%s",
        sweep,
        ", ".join(made),
        following,
        tracker.how_to_look(),
        DISCLAIMER,
    )
    _record(tracker, sweep, made, found, status)


def _settled(sweep: Path, job: Job) -> Job:
    """Return the job; one whose process is gone without a word has failed."""
    if job.status != "running" or not is_abandoned(sweep / str(job.number)):
        return job
    return replace(job, status="failed", reason="its process is gone, without a word")


def _together(sweep: Path, found: Sequence[Finding], bad: Sequence[Job]) -> Together:
    problem = ensemble_problem(found)
    if problem is None:
        return Together(write_ensemble(sweep, found, bad), None, {})
    (sweep / ENSEMBLE).unlink(missing_ok=True)  # of an earlier beginning, with other jobs
    return Together(None, problem, {})


def _evaluate_jobs(cfg: DictConfig, found: Sequence[Finding]) -> dict[int, str]:
    """Evaluate each job, where they differ by chance alone; return by number why one cannot be."""
    problems: dict[int, str] = {}
    if len(by_recipe(found)) > 1:
        return problems
    for finding in found:
        if not finding.test:
            number = finding.job.number
            logger.info("evaluating job %d on its test split", number)
            try:
                _assessment(cfg, finding.folder)
            except DermalyzeError as error:  # of these images or this model; its run is well
                problems[number] = str(error)
    return problems


def _evaluate_together(
    sweep: Path, cfg: DictConfig, found: Sequence[Finding], together: Together
) -> Together:
    if together.file is None:
        return together
    logger.info("evaluating the ensemble of %d jobs on their test split", len(found))
    try:
        assessment = _assessment(cfg, together.file)
    except DermalyzeError as error:  # of these images or models; the sweep itself is well
        return replace(together, problem=str(error))
    tracker = begun(cfg, "ensemble", assessment.folder, {}, parent_tags(sweep))
    test = tested(assessment.folder)
    tracker.log_metrics({f"test/{name}": value for name, value in test.items()}, step=0)
    for path in sorted(assessment.folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            tracker.log_artifact(path, folder="evaluation")
    tracker.finish("FINISHED")
    return replace(together, test=test)


def _assessment(cfg: DictConfig, checkpoint: Path) -> Assessment:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        evaluation = compose("evaluate")
    evaluation.checkpoint = str(checkpoint)
    evaluation.device, evaluation.amp = cfg.training.device, cfg.training.amp
    evaluation.paths.outputs, evaluation.paths.cache = cfg.paths.outputs, cfg.paths.cache
    return assess(checked(evaluation, Evaluation))


def _said(
    status: str,
    jobs: Sequence[Job],
    found: Sequence[Finding],
    together: Together,
    untested: Mapping[int, str],
) -> Node:
    """Return what sweep.json says of the end."""
    of_job = {
        finding.job.number: {
            **as_record(finding),
            "test_problem": untested.get(finding.job.number),
        }
        for finding in found
    }
    return {
        "status": status,
        "jobs": [
            {**asdict(job), "folder": str(job.number), **of_job.get(job.number, {})} for job in jobs
        ],
        "recipes": [
            {
                "overrides": list(recipe),
                "jobs": [finding.job.number for finding in group],
                "validation": _spreads([finding.validation for finding in group]),
                "test": _spreads([finding.test for finding in group]),
                "test_variance": {metric: components(group, metric) for metric in SHOWN},
            }
            for recipe, group in by_recipe(found).items()
        ],
        "ensemble": {
            "file": together.file.name if together.file else None,
            "problem": together.problem,
            "test": together.test or None,
        },
        "disclaimer": DISCLAIMER,
    }


def _spreads(values: Sequence[Any]) -> Node:
    found = {metric: spread(values, metric) for metric in SHOWN}
    return {metric: None if one is None else asdict(one) for metric, one in found.items()}


def _log(
    jobs: Sequence[Job], found: Sequence[Finding], together: Together, untested: Mapping[int, str]
) -> None:
    counts = dict.fromkeys(get_args(JobStatus), 0)
    for job in jobs:
        counts[job.status] += 1
    words = {**{status: status for status in counts}, "twin": "the same as another"}
    shown = ", ".join(f"{count} {words[status]}" for status, count in counts.items() if count)
    logger.info("%d jobs: %s", len(jobs), shown)
    for job in jobs:
        if job.status in ("failed", "stopped"):
            logger.warning("job %d (%s) %s: %s", job.number, job.name, job.status, job.reason)
    if found:
        logger.info("what they found\n%s", comparison_table(found, together.test or None))
    for number, problem in untested.items():
        logger.warning("job %d could not be evaluated on its test split: %s", number, problem)
    if together.problem:
        what = "no ensemble" if together.file is None else "the ensemble could not be evaluated"
        logger.info("%s: %s", what, together.problem)


def _following(sweep: Path, status: str, together: Together) -> str:
    if status != "done":
        return f"python -m dermalyze.train -m sweep.resume={sweep}"
    if together.file is not None and not together.test:
        return f"python -m dermalyze.evaluate checkpoint={together.file}"
    if together.file is not None:
        return f"python -m dermalyze.evaluate checkpoint={together.file} tta=medium"
    return f"python -m dermalyze.evaluate checkpoint={sweep}/NUMBER"


def _record(
    tracker: Tracker, sweep: Path, made: Sequence[str], found: Sequence[Finding], status: str
) -> None:
    """Record in MLflow what was made, and the means of a sweep that is one recipe."""
    if len(by_recipe(found)) == 1:
        means: dict[str, float | None] = {}
        for metric in SHOWN:
            for part in ("validation", "test"):
                one = spread([getattr(finding, part) for finding in found], metric)
                if one is not None:
                    means[f"mean_{part}/{metric}"] = one.mean
                    means[f"sd_{part}/{metric}"] = one.deviation
        tracker.log_metrics(means, step=0)
    tracker.adopt([finding.folder for finding in found])
    for name in (SHARED_SWEEP, *made[1:]):
        tracker.log_artifact(sweep / name)
    ended: dict[str, Status] = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
    tracker.finish(ended[status])
