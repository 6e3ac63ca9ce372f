"""A study on disk: which trials there were, which is next, and what became of each.

Several workers may share one study. Each looks and asks under one lock, so that no trial is handed
out twice and no more than were asked for are begun. What a trial tries is a function of the seed,
its number and what the study knows by then: a study that went on equals one that never stopped, and
workers do not follow each other's numbers.
"""

from __future__ import annotations

import logging
import socket
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optuna
import sqlalchemy
from filelock import FileLock
from hydra.utils import instantiate, to_absolute_path
from optuna.trial import FrozenTrial, Trial, TrialState

from dermalyze.errors import ConfigError
from dermalyze.evaluation.metrics import direction
from dermalyze.multirun_folder import numbered_jobs
from dermalyze.randomness import Purpose, generator
from dermalyze.search.options import SearchOptions
from dermalyze.search.space import Space
from dermalyze.search.trial_file import write_trial
from dermalyze.tracking.run_lock import is_abandoned

_LOCK = ".study.lock"
_SQLITE = "sqlite:///"
_PATIENCE = 120  # seconds that a worker waits for another one's writing
_WORDS = {"min": "minimize", "max": "maximize"}
# Of a trial and of the study, in Optuna's records.
FOLDER, HOST, REASON, RECIPE, MONITOR = "folder", "host", "reason", "recipe", "monitor"

State = Literal["done", "pruned", "failed"]


@dataclass(frozen=True)
class Proposal:
    """A trial to run.

    Attributes:
        number: of the trial, counted from 0 over the whole study.
        job: of the worker's sweep, counted from 0: the name of its folder.
        overrides: what it is.
    """

    number: int
    job: int
    overrides: list[str]


def open_storage(url: str, folder: Path) -> optuna.storages.RDBStorage:
    """Open the database of a study, or make it: by one process at a time.

    Args:
        url: such as `sqlite:///study.db`, from the folder that the command was started in.
        folder: where the lock is.
    """
    options: dict[str, object] = {"pool_pre_ping": True}
    if url.startswith(_SQLITE):
        url = f"{_SQLITE}{to_absolute_path(url.removeprefix(_SQLITE))}"
        options = {"connect_args": {"timeout": _PATIENCE}}
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(logging.WARNING)
    with FileLock(folder / _LOCK), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna 2.10's migrations are written for SQLAlchemy 1
        if not _is_made(url):
            # Optuna 2.10 writes which schema it has, and leaves it to SQLAlchemy 1 to commit that.
            # Only this is done without transactions, which workers that share a study need:
            # without them they see each other's trials half written.
            made = optuna.storages.RDBStorage(url, engine_kwargs={"isolation_level": "AUTOCOMMIT"})
            made.engine.dispose()
        return optuna.storages.RDBStorage(url, engine_kwargs=options)


def _is_made(url: str) -> bool:
    """Return whether the database has Optuna's tables, and says of which schema."""
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        query = sqlalchemy.text("SELECT version_num FROM alembic_version")
        made = sqlalchemy.inspect(connection).has_table("alembic_version")
        made = made and connection.execute(query).first() is not None
    engine.dispose()
    return made


class Study:
    """One worker's view of a study.

    Args:
        options: of the search.
        monitor: `training.monitor`; its sense is the study's direction.

    Raises:
        ConfigError: the study that is there searches by another metric.
    """

    def __init__(self, *, options: SearchOptions, monitor: str) -> None:
        self.options, self.monitor = options, monitor
        self._lock = FileLock(options.place / _LOCK)
        storage = open_storage(options.storage, options.place)
        with self._lock:
            self.optuna = optuna.create_study(
                study_name=options.study,
                storage=storage,
                direction=_WORDS[direction(monitor)],
                sampler=optuna.samplers.RandomSampler(),  # asks nothing of the study
                load_if_exists=True,
            )
            self._keep(MONITOR, monitor)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by their numbers."""
        return self.optuna.get_trials(deepcopy=False)

    @property
    def maximises(self) -> bool:
        """Whether larger values are better."""
        return direction(self.monitor) == "max"

    def hold_to(self, recipe: Mapping[str, str], space: Space) -> None:
        """Write down what all trials share, or see that it is what the study was begun with.

        Raises:
            ConfigError: with every difference; results of such trials could not be compared.
        """
        with self._lock:
            self._keep(RECIPE, {**recipe, **_ranges(space)})

    def _keep(self, key: str, value: str | Mapping[str, str]) -> None:
        kept = self.optuna.user_attrs.get(key)
        if kept is None:
            self.optuna.set_user_attr(key, value)
        elif kept != value:
            before = kept if isinstance(kept, dict) else {f"training.{key}": kept}
            now = value if isinstance(value, Mapping) else {f"training.{key}": value}
            differences = [
                f"{name}: {before.get(name, '(absent)')} -> {now.get(name, '(absent)')}"
                for name in sorted(before.keys() | now.keys())
                if before.get(name) != now.get(name)
            ]
            raise ConfigError(
                f"hydra.sweeper.study={self.options.study}: the trials of a study must be "
                f"comparable, but this command changes what {self.options.place} was begun with:"
                "\n  - " + "\n  - ".join(differences) + "\nLeave these as they were, or begin "
                "another study: hydra.sweeper.study=NAME."
            )

    def propose(self, space: Space, sweep: Path) -> list[Proposal]:
        """Return the next trials, as many as a worker runs at once; none where none are left.

        First come trials whose worker is gone: they are run again, or go on where this sweep began
        them.

        Args:
            space: what may be tried.
            sweep: the folder of the worker's sweep, which it holds locked.
        """
        with self._lock:
            found = [
                self._proposal(Trial(self.optuna, trial._trial_id), space, sweep)
                for trial in self.trials
                if trial.state is TrialState.RUNNING and _is_left(trial, sweep)
            ][: self.options.n_jobs]
            while len(found) < self.options.n_jobs and len(self.trials) < self.options.n_trials:
                found.append(self._proposal(self.optuna.ask(), space, sweep))
            return sorted(found, key=lambda proposal: proposal.job)

    def _proposal(self, trial: Trial, space: Space, sweep: Path) -> Proposal:
        """Ask the sampler what a trial tries, if it has not been asked, and give it a folder."""
        sampled = Trial(self._sampling(trial.number), trial._trial_id)
        overrides = space.overrides(sampled._suggest)
        before = trial.user_attrs.get(FOLDER)
        if before is not None and Path(before).parent == sweep.resolve():
            folder = Path(before)
        else:
            folder = sweep.resolve() / str(self._next_job(sweep))
            trial.set_user_attr(FOLDER, str(folder))
            trial.set_user_attr(HOST, socket.gethostname())
        folder.mkdir(parents=True, exist_ok=True)
        params = {**sampled.params}
        write_trial(folder, study=self.options.study, number=trial.number, params=params)
        return Proposal(trial.number, int(folder.name), overrides)

    def _sampling(self, number: int) -> optuna.Study:
        seed = int(generator(self.options.seed, Purpose.SEARCH, number).integers(2**32))
        return optuna.load_study(
            study_name=self.options.study,
            storage=self.optuna._storage,
            sampler=instantiate(self.options.sampler, seed=seed, _convert_="all"),
        )

    def watched(self, number: int) -> Trial:
        """Return a trial that can say how it does, and be told to stop, in another process."""
        pruner = self.options.pruner
        study = optuna.load_study(
            study_name=self.options.study,
            storage=self.optuna._storage,
            sampler=optuna.samplers.RandomSampler(),
            pruner=optuna.pruners.NopPruner()
            if pruner is None
            else instantiate(pruner, _convert_="all"),
        )
        return Trial(study, self.trials[number]._trial_id)

    def _next_job(self, sweep: Path) -> int:
        own = [Path(trial.user_attrs.get(FOLDER, "")) for trial in self.trials]
        taken = [int(path.name) for path in own if path.parent == sweep.resolve()]
        taken += [int(path.name) for path in numbered_jobs(sweep)]
        return 1 + max(taken, default=-1)

    def end(self, number: int, state: State, *, value: float | None, reason: str | None) -> None:
        """Write down what became of a trial, once.

        Args:
            value: of `training.monitor`, where it is done.
            reason: why it failed.
        """
        trial = self.trials[number]
        if trial.state is not TrialState.RUNNING:
            return
        if reason is not None:
            Trial(self.optuna, trial._trial_id).set_user_attr(REASON, reason)
        states = {
            "done": TrialState.COMPLETE,
            "pruned": TrialState.PRUNED,
            "failed": TrialState.FAIL,
        }
        self.optuna.tell(number, value if state == "done" else None, state=states[state])


def _ranges(space: Space) -> dict[str, str]:
    return {f"range of {name}": text for name, text in space.described().items()}


def _is_left(trial: FrozenTrial, sweep: Path) -> bool:
    """Return whether nobody runs a trial that counts as running: not its job, nor its worker."""
    if FOLDER not in trial.user_attrs:
        return True  # all this happens under one lock: its worker died in the middle of it
    folder, host = Path(trial.user_attrs[FOLDER]), trial.user_attrs.get(HOST)
    if host != socket.gethostname():
        return False  # its locks cannot be seen from here
    return is_abandoned(folder) and (
        folder.parent == sweep.resolve() or is_abandoned(folder.parent)
    )
