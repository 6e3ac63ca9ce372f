"""Peers in processes of their own, so that each finds memory as it does in its users' hands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

from dermalyze.allocation import keep_freed_memory

Peers = dict[str, Callable[..., Any]]

_peers: Peers = {}
"""Of the process that this is."""


@contextmanager
def apart(make: Callable[..., Peers], *, keeps_memory: bool, **options: Any) -> Iterator[Peers]:
    """Make peers in a process of their own, and yield what runs each of them there.

    Args:
        make: a function of a module; what its peers are given and return can be pickled.
        keeps_memory: whether the process keeps what it frees, as Dermalyze's commands do, or leaves
            memory to the C library, as everyone does who says nothing of it.
        options: of `make`; what can be pickled.
    """
    with _own_process() as process:
        names = process.submit(_make, make, options, keeps_memory=keeps_memory).result()
        yield {name: partial(_ask, process, name) for name in names}


def _own_process() -> Executor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _ask(process: Executor, name: str, *args: Any, **options: Any) -> Any:
    return process.submit(_run, name, args, options).result()


def _make(
    make: Callable[..., Peers], options: Mapping[str, Any], *, keeps_memory: bool
) -> list[str]:
    if keeps_memory:
        keep_freed_memory()
    made = make(**options)
    _peers.update(made)
    return list(made)


def _run(name: str, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    return _peers[name](*args, **options)
