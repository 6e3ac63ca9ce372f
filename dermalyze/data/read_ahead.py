"""Gathers the batches that come next while the current one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np

# One batch is ready when it is asked for and the next is on its way; more would only fill memory.
LOOK_AHEAD = 2

Batch = TypeVar("Batch")


class ReadAhead(Generic[Batch]):
    """A `gather` that one thread has run ahead with, for batches whose order is known.

    Whatever is asked for is what `gather` returns or raises for these rows: a batch that is not the
    next one of the known order is gathered on the spot.

    Args:
        gather: rows_B -> batch; called in the thread.
        batches: the rows of each batch, in the order in which they will be asked for.
    """

    def __init__(
        self, gather: Callable[[np.ndarray], Batch], batches: Sequence[np.ndarray]
    ) -> None:
        self._gather = gather
        self._coming = iter(batches)
        self._under_way: deque[tuple[np.ndarray, Future[Batch]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read ahead")

    def __enter__(self) -> ReadAhead[Batch]:
        for _ in range(LOOK_AHEAD):
            self._begin_next()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def gathered(self, rows_B: np.ndarray) -> Batch:
        """Return `gather(rows_B)`; an error of the thread is raised here."""
        if not self._under_way or not np.array_equal(self._under_way[0][0], rows_B):
            return self._gather(rows_B)
        _, batch = self._under_way.popleft()
        self._begin_next()
        return batch.result()

    def _begin_next(self) -> None:
        rows_B = next(self._coming, None)
        if rows_B is not None:
            self._under_way.append((rows_B, self._thread.submit(self._gather, rows_B)))
