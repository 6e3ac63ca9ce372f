"""The graph that autograd keeps of a forward pass: which operation read what."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor


def readers_of(output: Tensor) -> Counter[Any]:
    """Return how many operations took in what each operation before them gave, by autograd."""
    readers: Counter[Any] = Counter()
    waiting: list[Any] = [output.grad_fn]
    seen = {output.grad_fn}
    while waiting:
        node = waiting.pop()
        for before, _ in node.next_functions if node is not None else ():
            readers[before] += 1
            if before not in seen:
                seen.add(before)
                waiting.append(before)
    return readers
