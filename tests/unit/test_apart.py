from __future__ import annotations

import os
import resource

import pytest

from dermalyze.allocation import keep_freed_memory
from dermalyze.benchmarks.apart import Peers, apart


class Counter:
    """Peers that know how often they were called; and which process they are in."""

    def __init__(self, start: int) -> None:
        self.called = start

    def peers(self) -> Peers:
        return {"count": self.count, "process": os.getpid, "faults": faults}

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
        apart(counting, keeps_memory=False, start=1) as theirs,
        apart(counting, keeps_memory=True, start=10) as ours,
    ):
        assert theirs["count"](2, twice=True) == 5
        assert theirs["count"](2, twice=False) == 7
        assert ours["count"](1, twice=False) == 11
        assert len({os.getpid(), theirs["process"](), ours["process"]()}) == 3
        with pytest.raises(TypeError, match="twice"):
            ours["count"](1)
        if keep_freed_memory():  # else there is no glibc, and nothing to keep
            assert theirs["faults"]() > 40_000  # of 51,200 pages of 4 kB
            assert ours["faults"]() < 1000
