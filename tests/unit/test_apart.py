from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from multiprocessing import get_start_method
from pathlib import Path

import pytest

from dermalyze.benchmarks.apart import Apart, Peers, apart, memory_note


class Counter:
    """Peers that know how often they were called; and which process they are in."""

    def __init__(self, start: int) -> None:
        self.called = start

    def peers(self) -> Peers:
        return {
            "count": self.count,
            "process": os.getpid,
            "faults": faults,
            "start": get_start_method,
        }

    def count(self, more: int, *, twice: bool) -> int:
        self.called += more * (1 + twice)
        return self.called


def counting(*, start: int) -> Peers:
    return Counter(start).peers()


def faults() -> int:
    """Return the page faults of a block of 200 MB that is asked for anew."""
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(200 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_peers_apart_have_a_process_each_and_its_memory() -> None:
    with (
        apart(counting, keep_memory=False, start=1) as theirs,
        apart(counting, keep_memory=True, start=10) as ours,
    ):
        assert theirs.peers["count"](2, twice=True) == 5
        assert theirs.peers["count"](2, twice=False) == 7
        assert ours.peers["count"](1, twice=False) == 11
        assert len({os.getpid(), theirs.peers["process"](), ours.peers["process"]()}) == 3
        assert theirs.peers["start"]() == get_start_method()  # of a DataLoader's workers
        with pytest.raises(TypeError, match="twice"):
            ours.peers["count"](1)
        if ours.keeps_memory:  # else there is no glibc, and nothing to keep
            assert 10 * ours.peers["faults"]() < theirs.peers["faults"]()
        assert memory_note(theirs, Apart({}, keeps_memory=True)) == (
            "ours keeps the memory that it frees, the others' process leaves memory to the C "
            "library"
        )


KILLED = """
import os, signal
from dermalyze.benchmarks.apart import apart
with apart(dict, keep_memory=False, process=os.getpid) as theirs:
    print(theirs.peers["process"](), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_ends_with_the_one_that_was_killed() -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert killed.returncode == -signal.SIGKILL
    until = time.monotonic() + 20
    while running(int(killed.stdout)):
        assert time.monotonic() < until
        time.sleep(0.05)


def running(process: int) -> bool:
    """Return whether it runs; one that ended and that nobody asked for does not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
