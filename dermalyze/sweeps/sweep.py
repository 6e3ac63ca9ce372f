"""A sweep from its beginning to its end, in the process that was started for it.

This process imports neither torch nor MLflow: what needs them is done in processes of their own,
which leaves it light enough to wait for days, and safe to fork from.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from dermalyze.errors import ConfigError, DermalyzeError
from dermalyze.run_folder import FREE_ON_RESUME, is_free_on_resume
from dermalyze.sweep_folder import (
    ENDED_WELL,
    NUMBER_OF_JOBS,
    SWEEP,
    all_jobs_of,
    ask_to_stop,
    forget_requests,
    override_key,
    read_sweep,
    write_sweep,
)
from dermalyze.sweeps.choices import check_choices, number_of_jobs
from dermalyze.sweeps.launchers import check_launcher
from dermalyze.sweeps.own_process import in_own_process
from dermalyze.tracking.run_lock import run_lock

logger = logging.getLogger("dermalyze")

_RESUME = "sweep.resume"
_JOB_FOLDER = "${hydra.job.num}"  # Hydra's own
# Of Hydra's own words, those that a resumed sweep gets anew.
_NEW_EACH_TIME = ("hydra.mode", "hydra.sweep.dir")


class OpenSweep:
    """The sweep that this process was started for, its folder locked against others.

    Attributes:
        folder: of the sweep.
        config: as composed for the sweep as a whole, without Hydra's own part.
        stopped_by: the signal that asked all of it to stop; 0: none.
        ended: whether what came of the jobs is said and written.
    """

    def __init__(self, folder: Path, config: DictConfig) -> None:
        self.folder, self.config = folder, config
        self.stopped_by, self.ended = 0, False
        self._held = ExitStack()
        self._before: dict[int, Any] = {}

    def take(self, config: DictConfig) -> None:
        """Lock the folder, and write down what the sweep is, if it is a new one.

        Args:
            config: the whole one, Hydra's own part included.

        Raises:
            ConfigError: the folder holds a sweep that was not asked for, or of other jobs.
            RunInUseError: another process works on it.
        """
        new = self.config.sweep.resume is None
        if new and (self.folder / SWEEP).exists():
            raise ConfigError(
                f"{self.folder}: holds a sweep already. Go on with it by {_RESUME}={self.folder}, "
                "or name another folder with hydra.sweep.dir=FOLDER."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(run_lock(self.folder))
        record = _described(config) if new else _gone_on_with(self.folder, _described(config))
        forget_requests(self.folder)
        write_sweep(self.folder, record)

    def listen(self) -> None:
        """From now on, a first SIGINT or SIGTERM lets jobs save and stop; a second acts at once."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = number
        ask_to_stop(self.folder, number)
        self._give_back()
        logger.warning(
            "%s: jobs that run save and stop, others do not begin; once more stops at once",
            signal.Signals(number).name,
        )

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def end(self, *, broke_off: bool = False) -> int:
        """Say and write what came of the jobs; return what the process has to exit with.

        Args:
            broke_off: whether a launcher or a search did, so that jobs may be missing.
        """
        self.ended = True
        heard = self.stopped_by  # what is said of a stopped sweep is said to its end
        concluded = in_own_process(
            partial(_conclude, self, broke_off=broke_off),
            stop_asked=lambda: self.stopped_by != heard,
        )
        if self.stopped_by:
            return 128 + self.stopped_by
        bad = {job.exit_code for job in all_jobs_of(self.folder) if job.status not in ENDED_WELL}
        if bad:
            return 2 if bad == {2} else 1
        return concluded.exit_code

    def leave(self) -> None:
        """Let go of the folder, and let signals act as they did before."""
        self._give_back()
        self._held.close()


class _RefusedError(BaseException):
    """Carries an error past Hydra, which turns those of a callback into warnings."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


_open: list[OpenSweep] = []  # one at most: Hydra makes its callbacks itself, and copies them


def begin_sweep(config: DictConfig) -> None:
    """Check what is to be run, take the sweep's folder and begin its MLflow run.

    What is wrong is raised by `whole_sweep`.

    Args:
        config: as Hydra composed it for the whole sweep, its own part included.
    """
    run = config.copy()
    with open_dict(run):
        del run["hydra"]
    sweep = OpenSweep(Path(config.hydra.sweep.dir), run)
    try:
        check_launcher(config.hydra.launcher._target_)
        _check_folders(config)
        check_choices(config)
        sweep.take(config)
    except (DermalyzeError, HydraException) as error:
        raise _RefusedError(error) from error
    _open.append(sweep)
    sweep.listen()
    in_own_process(partial(_begin_tracking, sweep), stop_asked=_never)


@contextmanager
def whole_sweep() -> Iterator[None]:
    """End the sweep that is begun within this context, if one is, however its jobs end.

    Raises:
        SystemExit: with what the sweep ends with.
        DermalyzeError, HydraException: why it cannot begin.
    """
    try:
        yield
        if _open:
            raise SystemExit(_open[0].end())
    except _RefusedError as refused:
        raise refused.error from refused.error.__cause__  # as if Hydra had let it pass
    except BaseException as error:
        if _open and not _open[0].ended:  # a launcher that broke off, or a second Ctrl-C
            _open[0].stopped_by |= signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0
            _open[0].end(broke_off=True)
        raise
    finally:
        while _open:
            _open.pop().leave()


def resumed_words(words: Sequence[str]) -> list[str]:
    """Return a command line that goes on with a sweep where it asks for one, else as it is.

    Raises:
        ConfigError: no such sweep; or the words would make another sweep of it.
    """
    typed = [word for word in words if word not in ("-m", "--multirun")]
    asked = [word for word in typed if override_key(word) == _RESUME]
    if not asked:
        return list(words)
    (folder,) = OverridesParser.create().parse_overrides(asked[-1:])
    record = read_sweep(Path(str(folder.value())))
    changing = [word for word in typed if not _may_change(override_key(word))]
    if changing:
        raise ConfigError(
            f"{asked[-1]}: a resumed sweep is the same sweep, but {', '.join(changing)} would make "
            f"another. Leave it out. What may change: hydra/launcher, {', '.join(FREE_ON_RESUME)}."
        )
    keys = {override_key(word) for word in typed}
    of_the_other_launcher = "hydra.launcher." if "hydra/launcher" in keys else ()
    kept = [
        word
        for word in [*record["overrides"], *record["hydra_overrides"]]
        if override_key(word) not in keys and not word.startswith(of_the_other_launcher)
    ]
    return ["--multirun", *kept, *typed]


def _may_change(key: str) -> bool:
    return is_free_on_resume(key) or key.startswith(("hydra.", "hydra/"))


def _check_folders(config: DictConfig) -> None:
    """Refuse other names of jobs' folders than their numbers, by which a sweep finds them again.

    Raises:
        ConfigError: another is asked for.
    """
    sweep = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if isinstance(sweep, dict) and sweep["subdir"] != _JOB_FOLDER:
        raise ConfigError(
            f"hydra.sweep.subdir={sweep['subdir']}: a job's folder is called by its number. Leave "
            "it out; hydra.sweep.dir=FOLDER names the sweep's own, and its table says what each "
            "job is."
        )


def _described(config: DictConfig) -> dict[str, Any]:
    """Return the record of a new sweep: what it was started with, and what is fixed in it."""
    overrides = list(config.hydra.overrides.task)
    parsed = OverridesParser.create().parse_overrides(overrides)
    return {
        "status": "running",
        "overrides": overrides,
        "hydra_overrides": [
            override
            for override in config.hydra.overrides.hydra
            if override_key(override) not in _NEW_EACH_TIME
        ],
        "fixed": [one.get_key_element() for one in parsed if not one.is_sweep_override()],
        NUMBER_OF_JOBS: number_of_jobs(config),
        "working_directory": os.getcwd(),  # noqa: PTH109 - plain text for JSON
    }


def _gone_on_with(folder: Path, now: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a sweep that is begun again, by the record that it would have by now.

    Raises:
        ConfigError: it would have other jobs, whose folders are not theirs.
    """
    before = read_sweep(folder)
    if before.get(NUMBER_OF_JOBS) not in (None, now[NUMBER_OF_JOBS]):
        raise ConfigError(
            f"{_RESUME}={folder}: the sweep has {before[NUMBER_OF_JOBS]} jobs, and this command "
            f"line would make {now[NUMBER_OF_JOBS]}. Give one value to each key that is changed, "
            "or begin another sweep."
        )
    # What is typed on resuming sets no job apart from those that were run before.
    return {**before, "fixed": list(dict.fromkeys([*before["fixed"], *now["fixed"]]))}


def _never() -> bool:
    return False


def _begin_tracking(sweep: OpenSweep) -> tuple[int, None]:
    from dermalyze.sweeps.tracking import begin_tracking

    begin_tracking(sweep.folder, sweep.config)
    return 0, None


def _conclude(sweep: OpenSweep, *, broke_off: bool) -> tuple[int, None]:
    from dermalyze.sweeps.conclusion import conclude

    stopped = sweep.stopped_by != 0
    conclude(sweep.folder, sweep.config, stopped=stopped, broke_off=broke_off)
    return 0, None
