"""Work on many files at once, with its progress shown."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], title: str
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item, in order; a bar shows how far it is where people look.

    Threads, because hashing and Pillow's decoding run outside the GIL: 600 x 450 JPEGs to 224 on
    two cores make 230 images/s one after another, 530 in threads, 440 in two forked processes.
    """
    pool = ThreadPoolExecutor()
    try:
        results = pool.map(function, items)
        yield from tqdm(results, total=len(items), desc=title, unit="image", disable=None)
    finally:
        pool.shutdown(cancel_futures=True)
