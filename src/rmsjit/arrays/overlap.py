"""The memory that a step writes, so that gradients which lie in it are read in time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of, span_of
from rmsjit.state.slots import Member


def written_spans(members: Iterable[Member]) -> NDArray[np.int64]:
    """Start and end of all variables and slots, as ascending spans of which none meets another.

    Returns
    -------
    int64 array, shape (2, spans)
    """
    members = list(members)
    spans = [member.entry.span for member in members]
    spans += [span_of(value) for member in members for value in member.slots.values()]
    merged: list[list[int]] = []
    for start, end in sorted(spans):
        if start == end:
            continue
        if merged and start < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, np.int64).reshape(-1, 2).T.copy()


def span_that_meets(written: NDArray[np.int64], contiguous: NDArray[Any]) -> tuple[int, int] | None:
    """The last of the spans that shares memory with an array, or None."""
    start = address_of(contiguous)
    end = start + contiguous.nbytes
    last = int(np.searchsorted(written[0], end - 1, side="right")) - 1
    if start == end or last < 0 or written[1, last] <= start:
        return None
    return int(written[0, last]), int(written[1, last])
