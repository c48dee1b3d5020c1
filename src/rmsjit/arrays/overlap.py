"""Which memory meets which: variables that must not overlap, and what a step writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, address_of

Span = tuple[int, int]  # first address, and the one after the last byte

_OVERLAP_WORK: Any = 100_000  # NumPy's stubs know only two special values


class Memory(Protocol):
    """What must be known of a variable."""

    @property
    def key(self) -> Key: ...
    @property
    def canonical(self) -> NDArray[Any]: ...
    @property
    def span(self) -> Span: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def refuse_overlap(
    known: Iterable[Memory], new: Iterable[Memory], name: Callable[[Any], str]
) -> None:
    """Raise `ValueError` if two variables share a part of their memory, one of them new.

    Parameters
    ----------
    known, new : iterable of Memory
    name : callable
        How the message calls one of them.
    """
    pair = _overlapping(known, new)
    if pair is not None:
        one, other = (f"{name(memory)} of shape {memory.shape}" for memory in pair)
        raise ValueError(f"variables must not overlap in part, but {one} and {other} share memory")


def _overlapping(known: Iterable[Memory], new: Iterable[Memory]) -> tuple[Memory, Memory] | None:
    """Two different variables, at least one of them new, that share some of their memory."""
    fresh = {memory.key: memory for memory in new}
    if not fresh:
        return None
    everything = {**{memory.key: memory for memory in known}, **fresh}
    by_start = sorted(
        (memory for memory in everything.values() if memory.canonical.size),
        key=lambda memory: memory.span,
    )
    open_spans: list[Memory] = []
    for memory in by_start:
        start = memory.span[0]
        open_spans = [other for other in open_spans if other.span[1] > start]
        for other in open_spans:
            if (memory.key in fresh or other.key in fresh) and _share(memory, other):
                return other, memory
        open_spans.append(memory)
    return None


def _share(one: Memory, other: Memory) -> bool:
    """Whether two variables have an element in common; if that is too hard to tell, they have."""
    try:
        return bool(np.shares_memory(one.canonical, other.canonical, max_work=_OVERLAP_WORK))
    except np.exceptions.TooHardError:
        return True


def merged_spans(spans: Iterable[Span]) -> NDArray[np.int64]:
    """The same memory as ascending spans that do not meet.

    Returns
    -------
    int64 array, shape (2, spans)
        Starts and ends.
    """
    merged: list[list[int]] = []
    for start, end in sorted(spans):
        if start == end:
            continue
        if merged and start < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, np.int64).reshape(-1, 2).T.copy()


def span_that_meets(spans: NDArray[np.int64], contiguous: NDArray[Any]) -> Span | None:
    """The last of some `merged_spans` that shares memory with an array, or None."""
    start = address_of(contiguous)
    end = start + contiguous.nbytes
    last = int(np.searchsorted(spans[0], end - 1, side="right")) - 1
    if start == end or last < 0 or spans[1, last] <= start:
        return None
    return int(spans[0, last]), int(spans[1, last])
