"""Errors that a user can mend. Commands print them without a traceback and exit with 2."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class DermalyzeError(Exception):
    """A problem that the user can mend: the message names the place, the value and the mend."""


class ConfigError(DermalyzeError):
    """The composed configuration cannot work, found before any data is read.

    Attributes:
        problems: what is wrong, each with its mend; the message where it tells of one alone.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class DataError(DermalyzeError):
    """Tables, images or splits that cannot be trusted."""


class CheckpointError(DermalyzeError):
    """A checkpoint that is missing, damaged, foreign or unfit for what was asked."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run did as it was told
    """The run was asked to stop and has saved its state.

    Attributes:
        exit_code: 128 plus the signal's number, as shells count it: 130 or 143.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class Pruned(Exception):  # noqa: N818 - not an error: the run did as it was told
    """A search has stopped the run, whose state is saved, since others did better by then.

    Attributes:
        value: the best of the monitored metric until then.
    """

    def __init__(self, epoch: int, monitor: str, value: float) -> None:
        super().__init__(f"pruned after epoch {epoch}: {monitor} was {value:.4g} at best")
        self.value = value


def meant(value: object, valid: Iterable[object]) -> str:
    """Return `" Did you mean 'x'?"` with the nearest valid name, or nothing if none is near."""
    close = get_close_matches(str(value), sorted(map(str, valid)), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def nearest(value: object, valid: Iterable[object]) -> str:
    """Return `" Did you mean 'x'?"` with the nearest valid name, or up to 20 valid ones."""
    names = sorted(str(name) for name in valid)
    more = f", … ({len(names)} in all)" if len(names) > 20 else ""
    listed = f" Valid: {', '.join(names[:20])}{more}." if names else ""
    return meant(value, names) or listed
