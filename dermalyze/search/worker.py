"""One worker of a search: what it does with the study before, between and after its jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from dermalyze.run_folder import values_of_the_run
from dermalyze.schema import checked_run
from dermalyze.search.options import SearchOptions
from dermalyze.search.space import Space
from dermalyze.search.study import Proposal, Study
from dermalyze.sweep_folder import read_job
from dermalyze.tracking.mlflow_tracker import tracker_of

logger = logging.getLogger("dermalyze")


class Worker:
    """Searches in one sweep's folder; others may do so in theirs, for the same study.

    Args:
        options: of the search.
        arguments: overrides that were typed.
        compose: overrides -> the config of a job with them, without Hydra's own part.
        sweep: the folder of the worker's sweep, which its process holds locked.

    Raises:
        ConfigError: ranges that cannot work, or a study with another metric.
    """

    def __init__(
        self,
        *,
        options: SearchOptions,
        arguments: Sequence[str],
        compose: Callable[[Sequence[str]], DictConfig],
        sweep: Path,
    ) -> None:
        self.options, self.compose, self.sweep = options, compose, sweep
        self.space = Space(
            params=options.params, conditions=options.conditions, arguments=arguments
        )
        shared = compose(self.space.fixed)
        self.recipe = values_of_the_run(shared)
        self.study = Study(options=options, monitor=shared.training.monitor)

    def begin(self) -> SearchOptions:
        """See that all ranges make runs that can work, and trials like those that there are.

        Raises:
            ConfigError: they do not.
        """
        for words in self.space.examples():
            checked_run(self.compose(words))
        self.study.hold_to(self.recipe, self.space)
        logger.info(
            "study %s in %s: %d of %d trials are there",
            self.options.study,
            self.options.place,
            len(self.study.trials),
            self.options.n_trials,
        )
        return self.options

    def propose(self) -> list[Proposal]:
        """Return the next trials to run; none where there are enough."""
        return self.study.propose(self.space, self.sweep)

    def end(self, proposals: Sequence[Proposal]) -> list[bool]:
        """Write down what became of trials; return of each that has ended whether it failed."""
        failed = []
        for proposal in proposals:
            job = read_job(self.sweep / str(proposal.job))
            if job is not None and job.same_as is not None:
                job = read_job(self.sweep / str(job.same_as))
            if job is None:
                reason = "the launcher has left nothing of it"
                self.study.end(proposal.number, "failed", value=None, reason=reason)
                failed.append(True)
            elif job.status in ("done", "pruned", "failed"):
                self.study.end(proposal.number, job.status, value=job.value, reason=job.reason)
                failed.append(job.status == "failed")
            # else it was stopped, or not begun: it goes on when the search does
        return failed

    def conclude(self) -> None:
        """Say and write what the study found so far, into its folder and the sweep's MLflow run."""
        from dermalyze.search.results import best_first, results_text, write_results

        made = write_results(self.study)
        logger.info("%s", results_text(self.study))
        best = best_first(self.study)
        if best:
            shared = [word for word in self.space.fixed if not word.startswith("sweep")]
            tried = [f"{name}={value}" for name, value in best[0].params.items()]
            words = " ".join([*shared, *tried])
            logger.info("the best once more, or longer: python -m dermalyze.train %s", words)
        logger.info("made %s (%s)", self.options.place, ", ".join(path.name for path in made))
        tracker = tracker_of(self.sweep)
        if tracker is not None:
            tracker.reopen(self.sweep)
            for path in made:
                tracker.log_artifact(path, folder="study")
