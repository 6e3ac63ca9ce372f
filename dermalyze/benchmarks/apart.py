"""Peers in processes of their own, so that each finds memory as it does in its users' hands."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, get_start_method, parent_process, set_start_method
from multiprocessing.connection import wait
from threading import Thread
from typing import Any

from dermalyze.allocation import keep_freed_memory

Peers = dict[str, Callable[..., Any]]

_peers: Peers = {}
"""Of the process that this is."""


@dataclass(frozen=True)
class Apart:
    """A process with its peers.

    Attributes:
        peers: run there; what they are given and return can be pickled.
        keeps_memory: whether the process keeps what it frees.
    """

    peers: Peers
    keeps_memory: bool


@contextmanager
def apart(make: Callable[..., Peers], *, keep_memory: bool, **options: Any) -> Iterator[Apart]:
    """Make peers in a process of their own.

    Args:
        make: a function of a module, called there.
        keep_memory: whether the process is to keep what it frees, as Dermalyze's commands do where
            they can, or leaves memory to the C library, as everyone does who says nothing of it.
        options: of `make`; what can be pickled.
    """
    with _own_process() as process:
        making = process.submit(
            _make, make, options, keep_memory=keep_memory, start_method=get_start_method()
        )
        names, keeps = making.result()
        yield Apart({name: partial(_ask, process, name) for name in names}, keeps)


def memory_note(theirs: Apart, ours: Apart) -> str:
    """Return, for a table, which of two processes keeps the memory that it frees."""
    said = {True: "keeps the memory that it frees", False: "leaves memory to the C library"}
    return f"ours {said[ours.keeps_memory]}, the others' process {said[theirs.keeps_memory]}"


def _own_process() -> Executor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _ask(process: Executor, name: str, *args: Any, **options: Any) -> Any:
    return process.submit(_run, name, args, options).result()


def _make(
    make: Callable[..., Peers], options: Mapping[str, Any], *, keep_memory: bool, start_method: str
) -> tuple[list[str], bool]:
    # A process that was spawned would spawn its own as well, a DataLoader's workers: that takes
    # them seconds, which they do not take in their users' hands.
    set_start_method(start_method, force=True)
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_after, args=[parent.sentinel], daemon=True).start()
    kept = keep_memory and keep_freed_memory()
    made = make(**options)
    _peers.update(made)
    return list(made), kept


def _end_after(sentinel: int) -> None:
    """End this process with its parent, which may be killed before it can say so."""
    wait([sentinel])
    os._exit(1)


def _run(name: str, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    return _peers[name](*args, **options)
