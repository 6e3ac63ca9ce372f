from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from dermalyze.allocation import keep_freed_memory

# Page faults of a process that asks ten times for some blocks of 40 MB.
FAULTS = """
import resource, sys
from dermalyze.allocation import keep_freed_memory
kept = keep_freed_memory() if "keep" in sys.argv else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    blocks = [bytearray(40 << 20) for _ in range(2)]
    for block in blocks:
        block[:] = b"x" * len(block)
use()
before = faults()
for _ in range(10):
    use()
print(kept, faults() - before)
"""


def told(*words: str, **environment: str) -> tuple[str, int]:
    said = subprocess.run(
        [sys.executable, "-c", FAULTS, *words],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    kept, faults = said.split()
    return kept, int(faults)


def test_blocks_that_were_freed_are_used_again_without_the_kernels_zeros() -> None:
    kept, faults = told("keep")
    if kept == "False":
        pytest.skip("the C library is not glibc")
    assert 10 * faults < told()[1]


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()


def test_what_the_environment_says_of_memory_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert not keep_freed_memory()
