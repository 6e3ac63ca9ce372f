"""Signals that ask to stop: finish the step, save, and leave with a truthful exit code."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType

from dermalyze.errors import Interrupted

logger = logging.getLogger(__name__)

# By hand, and by whoever wants the machine; a second one acts at once.
_STOPPING = (signal.SIGINT, signal.SIGTERM)
# A scheduler's warning that time or place is up. It may reach a process twice, from the scheduler
# and from the launcher, so a second one is the first one again.
_WARNING = (signal.SIGUSR1, signal.SIGUSR2)


class Interruption:
    """Within this context a first SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 asks to stop.

    A second SIGINT or SIGTERM acts at once; a second SIGUSR1 or SIGUSR2 changes nothing.

    Signals reach only the main thread of a process; elsewhere (a launcher's worker thread) this
    context changes nothing.

    Attributes:
        signal: number of the one that asked to stop; 0: none did.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._outcome: Exception | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING + _WARNING:
                # A signal that the parent has this process ignore (nohup, a background job) stays
                # ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back(_STOPPING + _WARNING)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number in _WARNING:
            return
        self.signal = number
        self._give_back(_STOPPING)
        logger.warning(
            "%s: finishing the step and saving; once more stops at once",
            signal.Signals(number).name,
        )

    def _give_back(self, numbers: tuple[signal.Signals, ...]) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before.pop(number))  # type: ignore[arg-type]

    @property
    def requested(self) -> bool:
        """Whether someone asked to stop."""
        return self.signal != 0 or self._outcome is not None

    def heed(self, number: int) -> None:
        """Take a signal to another process of the run as one's own; 0: there was none."""
        self.signal = self.signal or number

    def stop_with(self, outcome: Exception | None) -> None:
        """Ask to stop as a signal does, and to leave with this outcome; None asks for nothing."""
        self._outcome = self._outcome or outcome

    def stop_if_requested(self) -> None:
        """Raise `Interrupted`, or the outcome that was asked for; the caller has saved."""
        if self.signal:
            raise Interrupted(self.signal)
        if self._outcome is not None:
            raise self._outcome
