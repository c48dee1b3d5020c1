"""Cutting the elements of many variables into pieces of equal work for a number of threads."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.blocks import BLOCK
from rmsjit.arrays.placement import CACHE_LINE

_LONG = 1 << 12  # elements; shorter pieces need not begin on a cache line


class Partition(NamedTuple):
    """Work for kernels: see `rmsjit.kernels.dense.update_pieces`.

    Attributes
    ----------
    pieces : int64 array, shape (pieces, 3)
        Number of the variable, first element, number of elements.
    bins : int64 array, shape (bins + 1,)
        Where the pieces of each bin start, and the number of pieces.
    """

    pieces: NDArray[np.int64]
    bins: NDArray[np.int64]


def cut_evenly(
    sizes: NDArray[np.int64], addresses: NDArray[np.int64], itemsize: int, bins: int
) -> Partition:
    """Cut the concatenation of all variables into `bins` parts of about equal size.

    Cuts within a variable are on cache lines, so that no two threads write to the same line and no
    vector straddles two, which would cost 10 % or more of the time.  For the same reason a long
    variable that does not begin on a cache line is cut at the first one.
    """
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    cuts = [
        _on_line(total * part // bins, ends, sizes, addresses, itemsize) for part in range(bins)
    ]
    cuts.append(total)
    pieces: list[tuple[int, int, int]] = []
    starts = [0]
    row = 0
    for low, high in pairwise(cuts):
        position = low
        while position < high:
            while ends[row] <= position:
                row += 1
            stop = min(high, int(ends[row]))
            first = position - int(ends[row] - sizes[row])
            if stop - position >= _LONG:
                head = _up_to_line(first, int(addresses[row]), itemsize)
                stop = position + head if head else stop
            pieces.append((row, first, stop - position))
            position = stop
        starts.append(len(pieces))
    return Partition(np.array(pieces, np.int64).reshape(-1, 3), np.array(starts, np.int64))


def on_blocks(part: Partition, sizes: NDArray[np.int64], lengths: NDArray[np.int64]) -> Partition:
    """The same pieces, with cuts within a variable moved back to the start of a block of 8 bits.

    `lengths` are the elements of a record of each variable (`rmsjit.arrays.blocks`).
    """
    rows, starts, counts = part.pieces.T
    ends, length = starts + counts, lengths[rows]
    starts = starts - starts % length % BLOCK
    ends = np.where(ends == sizes[rows], ends, ends - ends % length % BLOCK)
    return Partition(np.stack([rows, starts, ends - starts], axis=1), part.bins)


def pieces_of(
    part: Partition, positions: NDArray[np.int64], groups: NDArray[np.int64] | None = None
) -> Partition:
    """The partition as kernels read it, with variables numbered by their positions in the list.

    Its pieces have a fourth column: the row of the step's numbers, `groups` by variable.
    """
    rows, starts, counts = part.pieces.T
    group = np.zeros_like(rows) if groups is None else groups[rows]
    pieces = np.stack([positions[rows], starts, counts, group], axis=1)
    return Partition(np.ascontiguousarray(pieces), np.ascontiguousarray(part.bins, np.int64))


def _on_line(
    position: int,
    ends: NDArray[np.int64],
    sizes: NDArray[np.int64],
    addresses: NDArray[np.int64],
    itemsize: int,
) -> int:
    """`position`, moved back to the start of a cache line within its variable."""
    if position == 0:
        return 0
    row = int(np.searchsorted(ends, position, side="right"))
    if row == len(ends):
        return position
    first = int(ends[row] - sizes[row])
    excess = (int(addresses[row]) + (position - first) * itemsize) % CACHE_LINE
    return max(first, position - excess // itemsize)


def _up_to_line(first: int, address: int, itemsize: int) -> int:
    """The number of elements from `first` to the next cache line."""
    return -(address + first * itemsize) % CACHE_LINE // itemsize


def cut_by_length(sizes: NDArray[np.int64], length: int, bins: int) -> Partition:
    """Cut every variable into pieces of `length` elements; its last one may be shorter."""
    counts = -(-sizes // length)
    rows = np.repeat(np.arange(len(sizes)), counts)
    starts = (np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    pieces = np.stack([rows, starts, np.minimum(length, sizes[rows] - starts)], axis=1)
    return Partition(pieces, np.arange(bins + 1) * len(rows) // bins)


def backwards(part: Partition, length: int) -> Partition:
    """The same bins, with their work cut into pieces of at most `length` and reversed."""
    row, start, count = part.pieces.T
    cuts = np.maximum(1, -(-count // length))
    source = np.repeat(np.arange(len(cuts)), cuts)
    offset = (np.arange(len(source)) - np.repeat(np.cumsum(cuts) - cuts, cuts)) * length
    fine = np.stack([row[source], start[source] + offset, count[source] - offset], axis=1)
    fine[:, 2] = np.minimum(fine[:, 2], length)
    borders = np.concatenate([[0], np.cumsum(cuts)])[part.bins]
    for low, high in pairwise(borders):
        fine[low:high] = fine[low:high][::-1]
    return Partition(fine, borders)
