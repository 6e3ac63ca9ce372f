from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dermalyze.sweeps.own_process import Ended, in_own_process


def never() -> bool:
    return False


def test_what_the_work_says_and_exits_with_comes_back() -> None:
    def work() -> tuple[int, Any]:
        return 3, {"parent": os.getppid(), "text": "é" * 1000}

    ended = in_own_process(work, stop_asked=never)
    assert ended == Ended(3, {"parent": os.getpid(), "text": "é" * 1000})
    assert ended.signal == 0


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGUSR1"])
def test_a_signal_that_ends_it_ends_nothing_else(name: str) -> None:
    number = signal.Signals[name]
    ended = in_own_process(lambda: (os.kill(os.getpid(), number), (0, 0))[1], stop_asked=never)
    assert (ended.exit_code, ended.signal, ended.said) == (128 + number, number, None)


def test_it_is_asked_once_to_stop_and_hears_it_as_ctrl_c(tmp_path: Path) -> None:
    heard = tmp_path / "heard"

    def work() -> tuple[int, Any]:
        try:
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            with heard.open("a") as file:
                file.write("x")
            time.sleep(0.5)  # saves; a second SIGINT would raise here
        return 130, "saved"

    assert in_own_process(work, stop_asked=lambda: True) == Ended(130, "saved")
    assert heard.read_text() == "x"


def test_a_warning_to_this_process_is_handed_on() -> None:
    def work() -> tuple[int, Any]:
        heard: list[int] = []
        signal.signal(signal.SIGUSR2, lambda number, _: heard.append(number))
        os.kill(os.getppid(), signal.SIGUSR2)
        while not heard:  # not signal.pause(): the answer may come before it
            time.sleep(0.01)
        return 0, "warned"

    before = signal.getsignal(signal.SIGUSR2)
    assert in_own_process(work, stop_asked=never) == Ended(0, "warned")
    assert signal.getsignal(signal.SIGUSR2) == before


def test_what_is_more_than_a_pipe_holds_comes_back() -> None:
    text = "x" * 1_000_000
    assert in_own_process(lambda: (0, text), stop_asked=never) == Ended(0, text)


def test_a_warning_that_comes_after_it_has_ended_harms_nothing() -> None:
    warned: list[int] = []

    def warn_too_late() -> bool:
        while multiprocessing.active_children():  # also takes the ended ones from the system
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)
        warned.append(signal.SIGUSR1)
        return False

    ended = in_own_process(lambda: (time.sleep(0.5), (0, "saved"))[1], stop_asked=warn_too_late)
    assert (ended, warned) == (Ended(0, "saved"), [signal.SIGUSR1])


ORPHAN = """
import os, sys, time
from pathlib import Path
from dermalyze.sweeps.own_process import in_own_process
def work():
    Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(60)
    return 0, None
in_own_process(work, stop_asked=lambda: False)
"""


def test_it_dies_with_the_process_that_waits_for_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", ORPHAN, str(pid)]) as waiting:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.01)
        waiting.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid.read_text()}").exists():
        state = Path(f"/proc/{pid.read_text()}/stat").read_text().split()[2]
        if state == "Z":  # dead, and waited for by nobody in a container without an init
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_terminals_and_sweeps_stop_only_what_they_are_meant_to() -> None:
    def work() -> tuple[int, Any]:
        return 0, (os.getpgid(0) == os.getpid(), signal.getsignal(signal.SIGTERM))

    ended = in_own_process(work, stop_asked=never)
    assert ended.said == (True, signal.SIG_DFL)
