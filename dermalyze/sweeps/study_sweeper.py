"""Hydra's sweeper for a search: hands out the trials of a study, under any launcher."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from dermalyze.errors import DermalyzeError
from dermalyze.sweep_folder import stop_asked
from dermalyze.sweeps.own_process import in_own_process

if TYPE_CHECKING:  # it brings Optuna along
    from dermalyze.search.study import Proposal
    from dermalyze.search.worker import Worker

logger = logging.getLogger("dermalyze")

_HOME = "hydra_plugins.dermalyze"

T = TypeVar("T")


class StudySweeper(Sweeper):  # type: ignore[misc]  # hydra has no types
    """Runs trials of a study until it has as many as were asked for.

    What it has to do with the study it does in processes of their own, like all work of a sweep.

    Args:
        options: `hydra.sweeper.*`; read once the whole config is known.
    """

    def __init__(self, **options: Any) -> None:
        pass

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what launching and composing need."""
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search.

        Args:
            arguments: overrides that were typed.

        Raises:
            ConfigError: options that cannot work, or not with the study that is there.
        """
        options, batch = self._asked(arguments, lambda worker: (worker.begin(), worker.propose()))
        failures = 0
        while batch:
            # A launcher counts jobs on from the first; what a stopped sweep left may have gaps.
            for _, group in groupby(enumerate(batch), lambda pair: pair[1].job - pair[0]):
                proposals = [proposal for _, proposal in group]
                words = [tuple(proposal.overrides) for proposal in proposals]
                self.launcher.launch(words, initial_job_idx=proposals[0].job)
            failures, batch = self._asked(arguments, partial(_go_on, batch, failures))
            if failures >= options.max_failures:
                logger.error(
                    "%d trials have failed in a row (hydra.sweeper.max_failures): something else "
                    "is wrong than what they try. Mend it; the same command goes on.",
                    failures,
                )
        self._asked(arguments, lambda worker: worker.conclude())

    @property
    def _folder(self) -> Path:
        return Path(self.config.hydra.sweep.dir)

    def _asked(self, arguments: list[str], question: Callable[[Worker], T]) -> T:
        """Ask a worker something, in a process that may import what it likes."""

        def work() -> tuple[int, tuple[T | None, Exception | None]]:
            from dermalyze.search.options import search_options
            from dermalyze.search.worker import Worker

            try:
                worker = Worker(
                    options=search_options(self.config.hydra.sweeper),
                    arguments=arguments,
                    compose=self._composed,
                    sweep=self._folder,
                )
                return 0, (question(worker), None)
            except (DermalyzeError, HydraException) as error:
                return 2, (None, error)

        ended = in_own_process(work, stop_asked=lambda: False)
        if ended.said is None:
            raise RuntimeError(f"the study's process ended with exit code {ended.exit_code}")
        answer, error = ended.said
        if error is not None:
            raise error
        return answer  # type: ignore[no-any-return]

    def _composed(self, words: Sequence[str]) -> DictConfig:
        composed: DictConfig = self.loader.load_sweep_config(self.config, list(words))
        with open_dict(composed):
            del composed["hydra"]
        return composed


def _go_on(batch: list[Proposal], failures: int, worker: Worker) -> tuple[int, list[Proposal]]:
    """Write down what became of a batch; return how many have failed in a row, and the next."""
    for failed in worker.end(batch):
        failures = failures + 1 if failed else 0
    enough = failures >= worker.options.max_failures or stop_asked(worker.sweep)
    return failures, [] if enough else worker.propose()


def register_sweeper() -> None:
    """Let `hydra.sweeper._target_` name the sweeper; safe to call again."""
    # Hydra makes sweepers only of classes at home in `hydra_plugins`, a folder that would have to
    # lie beside this package. So this module goes by such a name too.
    StudySweeper.__module__ = _HOME
    sys.modules[_HOME] = sys.modules[register_sweeper.__module__]
    Plugins.instance().register(StudySweeper)
