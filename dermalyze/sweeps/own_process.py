"""A process of its own for each piece of work, so that one that dies takes no other with it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_POLL = 0.2  # seconds
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)

# What a piece of work is: no arguments -> its exit code, and what it has to say (plain).
Work = Callable[[], tuple[int, Any]]


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        exit_code: its own; 128 plus the number of the signal that ended it, as shells count it.
        said: what the work said; None where it did not come to that.
    """

    exit_code: int
    said: Any

    @property
    def signal(self) -> int:
        """The number of the signal that ended or stopped it; 0: none did."""
        number = self.exit_code - 128
        return number if number in signal.valid_signals() else 0


def in_own_process(work: Work, *, stop_asked: Callable[[], bool]) -> Ended:
    """Fork a process, let it do the work, and wait for it.

    The new process starts with nothing that the work would import, since this one has imported
    nothing heavy; it dies with this one. A terminal's Ctrl-C does not reach it: whoever is to stop
    it says so by `stop_asked`, and then it gets one SIGINT. A scheduler's warning to this process
    (SIGUSR1, SIGUSR2) is handed on to it.
    """
    import multiprocessing  # late: most commands sweep nothing
    from multiprocessing.connection import wait

    context = multiprocessing.get_context("fork")
    answers, answer = context.Pipe(duplex=False)
    process = context.Process(target=_begin, args=(work, answer, os.getpid()))
    with warnings.catch_warnings():
        # Of threads that a fork leaves behind: a launcher's own, whose locks the work never takes.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    answer.close()
    said, listening, asked = None, True, False
    try:
        with _handing_on(process.pid or 0):
            while process.exitcode is None:
                # What is said is taken while it is said: a pipe holds 64 KiB, and then lets wait.
                ready = wait([process.sentinel, *([answers] if listening else [])], _POLL)
                if answers in ready:
                    said, listening = _heard(answers), False
                if not asked and process.exitcode is None and stop_asked():
                    os.kill(process.pid or 0, signal.SIGINT)
                    asked = True
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    if listening and answers.poll():
        said = _heard(answers)
    answers.close()
    code = process.exitcode
    return Ended(128 - code if code < 0 else code, said)


def _heard(answers: Connection) -> Any:
    """Return what the process says; None where it ends without a word, or in the middle of one."""
    try:
        return answers.recv()
    except (EOFError, OSError):
        return None


@contextmanager
def _handing_on(process: int) -> Iterator[None]:
    """Hand warnings on to the process, and leave Ctrl-C to whoever began the sweep."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hand_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # it has ended, and has nothing left to save
            os.kill(process, number)

    before = {number: signal.signal(number, hand_on) for number in _WARNINGS}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _begin(work: Work, answer: Connection, parent: int) -> None:
    os.setpgid(0, 0)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    for number in (signal.SIGTERM, *_WARNINGS):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, said = work()
    except KeyboardInterrupt:  # before the work could hear it, with nothing to save yet
        code, said = 128 + signal.SIGINT, None
    answer.send(said)
    answer.close()
    sys.exit(code)


def _die_with(parent: int) -> None:
    """End this process at once when its parent is gone: nobody would take what it says."""
    while os.getppid() == parent:
        time.sleep(_POLL)
    os.kill(os.getpid(), signal.SIGKILL)
