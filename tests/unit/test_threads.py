from __future__ import annotations

import itertools
import threading
import time

import pytest

from dermalyze.data.threads import chunks_in_threads


def test_chunks_come_in_order_whoever_is_done_first():
    def slow_at_first(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    chunks = [[0, 1, 2], [3], [], [4, 5, 6, 7]]
    assert list(chunks_in_threads(slow_at_first, chunks)) == [[0, 1, 4], [9], [], [16, 25, 36, 49]]


def test_an_endless_supply_is_taken_as_it_is_asked_for():
    taken = []
    chunks = (taken.append(number) or [number] for number in itertools.count())
    results = chunks_in_threads(lambda number: number, chunks)
    assert [next(results) for _ in range(5)] == [[0], [1], [2], [3], [4]]
    assert len(taken) <= 5 + 2
    before = threading.active_count()
    results.close()
    assert threading.active_count() < before


def test_an_error_is_raised_where_its_chunk_would_come():
    results = chunks_in_threads(lambda number: 6 // number, [[3, 2], [1, 0]])
    assert next(results) == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
