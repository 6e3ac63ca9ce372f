"""What all commands share: one `conf/`, errors a person can read, truthful exit codes.

Exit codes: 0 done; 2 an error that the user can mend, said in one message without a traceback;
130 or 143 stopped by SIGINT or SIGTERM after saving (138 or 140 by SIGUSR1 or SIGUSR2); 1 anything
else, with a traceback.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, wraps
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser  # what Hydra itself reads the line with
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dermalyze.composition_errors import better_said
from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.errors import ConfigError, DataError, DermalyzeError, Interrupted, Pruned
from dermalyze.fresh_folder import remove_if_fresh
from dermalyze.launch import Launch, launch_of
from dermalyze.run_folder import as_typed
from dermalyze.sweeps.job import run_job
from dermalyze.sweeps.sweep import resumed_words, whole_sweep

logger = logging.getLogger("dermalyze")

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})

Task = Callable[[DictConfig], Any]


def command(
    config_name: str, *, by_many: bool = False, sweeps: bool = False
) -> Callable[[Task], Callable[[], None]]:
    """Make a task a Hydra app on `conf/<config_name>.yaml`.

    Args:
        config_name: without its ending.
        by_many: whether processes that torchrun started together may do the task together.
        sweeps: whether the jobs of `--multirun` are made a sweep of, which survives them.
    """
    register_resolvers()

    def decorate(task: Task) -> Callable[[], None]:
        def said(cfg: DictConfig, *, may_raise: bool) -> Any:
            try:
                return task(cfg)
            except Interrupted as stop:
                logger.warning("%s; the state is saved", stop)
                raise SystemExit(stop.exit_code) from stop
            except Pruned as stop:
                logger.info("%s; its place is given to another trial", stop)
                raise SystemExit(0) from stop
            except Exception as error:
                mendable = _mendable(error)
                if mendable is None:
                    logger.exception("failed")  # into the job's own log; Hydra leaves it out
                    raise
                logger.error("%s", mendable)
                if may_raise:  # other jobs go on; Hydra counts this one as failed
                    raise mendable from error
                _leave_no_folder()
                raise SystemExit(2) from mendable

        @wraps(task)
        def guarded(cfg: DictConfig) -> Any:
            if HydraConfig.get().mode is not RunMode.MULTIRUN:
                try:
                    return said(cfg, may_raise=False)
                except KeyboardInterrupt:
                    logger.warning("ended by Ctrl-C")
                    raise SystemExit(130) from None
            if sweeps:
                return run_job(partial(said, may_raise=False), cfg)
            return said(cfg, may_raise=True)

        app: Callable[[], None] = hydra.main(
            config_path=str(CONF_DIR), config_name=config_name, version_base="1.3"
        )(guarded)

        def answer() -> None:
            # Hydra then raises what is wrong with a command line instead of exiting with 1.
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            try:
                if {"--help", "-h"} & set(sys.argv[1:]):
                    words = [word for word in sys.argv[1:] if "=" in word]
                    print(_help(config_name, words, sweeps=sweeps))
                else:
                    _refuse_dashes(sys.argv[1:])
                    if sweeps:
                        sys.argv[1:] = resumed_words(sys.argv[1:])
                    with whole_sweep() if sweeps else nullcontext():
                        app()
            except ConfigError as error:
                print(error, file=sys.stderr)
                raise SystemExit(2) from error
            except DermalyzeError as error:  # of a sweep's job, which has said it
                raise SystemExit(2) from error
            except (CompactHydraException, OmegaConfBaseException) as error:
                print(_mendable(error) or better_said(error) or error, file=sys.stderr)
                raise SystemExit(2) from error

        @wraps(task)
        def main() -> None:
            try:
                launch = launch_of(os.environ)
                refused = _why_not_together(launch, config_name, by_many=by_many)
            except ConfigError as error:
                print(error, file=sys.stderr)
                raise SystemExit(2) from error
            if refused and launch.rank == 0:
                print(refused, file=sys.stderr)
                raise SystemExit(2)
            if refused:
                # torchrun ends all when one fails, which must not be before the first spoke.
                return
            if launch.size == 1:
                answer()
            else:
                _answer_together(launch, answer)

        return main

    return decorate


def _mode_of(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    """Return `hydra.mode` as a line's config has it, in the place of Hydra's own method.

    Hydra composes the config for this, drops what is wrong with it, and composes it once more to
    say that. Here the error is said at once.
    """
    cfg = self.compose_config(
        config_name, overrides, run_mode=RunMode.MULTIRUN, validate_sweep_overrides=False
    )
    return cfg.hydra.mode


Hydra.get_mode = _mode_of


def _leave_no_folder() -> None:
    """Remove the folder of a run that was refused; where several processes share it, it stays."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    shown = as_typed(folder)
    alone = launch_of(os.environ).size == 1
    if alone and remove_if_fresh(folder, job=hydra_config.job.name):
        logger.info("the run has made nothing in %s, so it is removed again", shown)


def _why_not_together(launch: Launch, config_name: str, *, by_many: bool) -> str | None:
    if launch.size == 1:
        return None
    if not by_many:
        return (
            f"WORLD_SIZE={launch.size}: {config_name} is done by one process. Start it without "
            "torchrun."
        )
    words = sys.argv[1:]
    if {"-m", "--multirun"} & set(words) or any(word.startswith("hydra.mode=") for word in words):
        return (
            f"WORLD_SIZE={launch.size}: a sweep cannot be shared, since each process would do all "
            "of it. Call torchrun once for each run, or sweep without it."
        )
    return None


def _answer_together(launch: Launch, answer: Callable[[], None]) -> None:
    """Answer as the first of several processes, or join it as one that says errors alone."""
    from dermalyze.distributed import tell_folder, told_folder

    if launch.rank == 0:
        try:
            answer()
        finally:  # where it trained nothing, the others still wait for its folder
            tell_folder("")
        return
    folder = told_folder()
    if not folder:  # the first process has shown something, or said what is wrong
        return
    log = "hydra.job_logging"
    quoted = folder.replace("\\", "\\\\").replace("'", "\\'")
    sys.argv += [
        f"hydra.run.dir='{quoted}'",
        "hydra.output_subdir=null",
        "hydra/job_logging=stdout",
        f"{log}.root.level=ERROR",
        f"{log}.formatters.simple.format='[%(asctime)s] rank {launch.rank}: %(message)s'",
    ]
    answer()


def _refuse_dashes(words: list[str]) -> None:
    """Refuse a key that is written as other programs write their options.

    Raises:
        ConfigError: says how it is written here.
    """
    if not any(word.startswith("--") for word in words):  # the parser is slow to make
        return
    _, unknown = get_args_parser().parse_known_args(words)
    dashed = next((word for word in unknown if word.startswith("--")), None)
    if dashed is None:
        return
    key, _, value = dashed.lstrip("-").partition("=")
    following = words[words.index(dashed) + 1 :][:1]
    if not value and following and not following[0].startswith("-") and "=" not in following[0]:
        value = following[0]
    raise ConfigError(
        f"{dashed}: options are written {key}={value or 'VALUE'}, without dashes; --help shows all "
        "keys."
    )


def _mendable(error: BaseException | None) -> DermalyzeError | None:
    """Return the error for the user in what Hydra or OmegaConf wrapped around it, if any.

    A file that a disk or its rights have no room for is one, wherever it was to be written.
    """
    while isinstance(error, (HydraException, OmegaConfBaseException)):
        error = error.__cause__ or error.__context__
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return DataError(f"{error}. Make room there, or name another place.")
    return error if isinstance(error, DermalyzeError) else None


def _help(config_name: str, overrides: list[str], *, sweeps: bool) -> str:
    """Fill the config's `hydra.help.template`, as Hydra would in three times the time.

    Hydra copies its whole store of configs for each group that it lists, its own included.
    """
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = hydra.compose(config_name, overrides, return_hydra_config=True)
    template = Template(cfg.hydra.help.template)
    # The groups that this command composes; launchers are for those that sweep.
    chosen = {name for name in cfg.hydra.runtime.choices if sweeps or "hydra/" not in name}
    with open_dict(cfg):
        del cfg["hydra"]
    options: dict[str, list[str]] = {}
    for path in sorted(CONF_DIR.rglob("*/*.yaml")):
        options.setdefault(path.parent.relative_to(CONF_DIR).as_posix(), []).append(path.stem)
    groups = [f"{group}: {', '.join(names)}" for group, names in options.items() if group in chosen]
    return template.safe_substitute(
        APP_CONFIG_GROUPS="\n".join(groups), CONFIG=OmegaConf.to_yaml(cfg)
    )
