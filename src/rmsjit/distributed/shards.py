"""Which rank owns which part of each variable, and its slots.

A dense variable is cut into equal parts, at multiples of a cache line from its start.  So every
rank reduces its part of a gradient as soon as it arrives, and none waits for its turn.  Small
variables of a dtype are laid end to end and cut together, so that most of them stay whole.  A
table, which has sparse gradients, is cut by rows.  The engine treats a part as a variable of its
own, so a rank has slots only for the parts that it owns.

With slots in 8 bits, a part begins with a record of the whole variable (`rmsjit.arrays.blocks`).
So it has the blocks that it would have in one process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from rmsjit.arrays.blocks import has_records, part_of, record_length, rows_of_records
from rmsjit.arrays.layout import Key, Layout, is_dense
from rmsjit.arrays.placement import CACHE_LINE
from rmsjit.distributed.incoming import Incoming

_LEAST_PART = 4096  # bytes: an update of fewer takes longer to find than to do


class Cut(NamedTuple):
    """How one variable is divided among ranks.

    Attributes
    ----------
    by_rows : bool
        Whether `bounds` count rows, along the first axis, or elements in memory order.
    bounds : tuple of int
        Rank r owns from ``bounds[r]`` to ``bounds[r + 1]``.
    record_length : int
        The elements of a record of slots in 8 bits; 0 if the variable has none.
    """

    by_rows: bool
    bounds: tuple[int, ...]
    record_length: int = 0

    def part(self, array: NDArray[Any], layout: Layout, rank: int) -> NDArray[Any]:
        """A view of a rank's part of a variable."""
        owned = slice(self.bounds[rank], self.bounds[rank + 1])
        if self.by_rows:
            return array[owned]
        flat: NDArray[Any] = layout.canonical(array).reshape(-1)
        return flat[owned]

    def part_of_slot(
        self, slot: NDArray[Any], layout: Layout, shape: tuple[int, ...], rank: int
    ) -> NDArray[Any]:
        """A view of a rank's part of a slot of the whole variable, given in canonical order."""
        if has_records(slot):
            return part_of(slot, *self.elements(math.prod(shape), rank))
        owned = slice(self.bounds[rank], self.bounds[rank + 1])
        return layout.logical(slot, shape)[owned] if self.by_rows else slot[owned]

    def elements(self, size: int, rank: int) -> tuple[int, int]:
        """Start and stop of a rank's part, in elements of a variable of this size."""
        unit = size // max(self.bounds[-1], 1) if self.by_rows else 1
        return self.bounds[rank] * unit, self.bounds[rank + 1] * unit


class Shards:
    """The cuts of all variables of one optimizer."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self.cuts: dict[Key, Cut] = {}

    def cuts_of(self, incoming: Incoming, packs: bool) -> dict[int, Cut]:
        """The cut of each variable that has a gradient, by position.

        A variable keeps its first cut, which is known here once `keep` was called.  `packs` says
        whether there are slots in 8 bits.

        Raises
        ------
        ValueError
            If a variable that is not cut by rows gets a sparse gradient.
        """
        new: dict[Key, Cut] = {}
        flat: list[int] = []
        lengths = {
            k: record_length(incoming.arrays[k].shape, incoming.layouts[k]) if packs else 0
            for k in incoming.distinct.values()
        }
        for key, k in incoming.distinct.items():
            if key in self.cuts:
                continue
            array, layout, length = incoming.arrays[k], incoming.layouts[k], lengths[k]
            contiguous = is_dense(layout.canonical(array))
            if k in incoming.sparse or not contiguous:
                unit = rows_of_records(array.shape, layout, length) if length else 1
                new[key] = Cut(True, _evenly(len(array), self._ranks, unit), length)
            else:
                new[key] = Cut(False, ())
                flat.append(k)
        for positions in incoming.by_precision(flat):
            sizes = [incoming.arrays[k].size for k in positions]
            itemsize = incoming.arrays[positions[0]].itemsize
            records = [lengths[k] for k in positions]
            found = bounds_of(sizes, self._ranks, itemsize, records)
            for k, bounds in zip(positions, found, strict=True):
                new[incoming.keys[k]] = Cut(False, bounds, lengths[k])
        cuts = {**self.cuts, **new}
        for k in incoming.sparse:
            if not cuts[incoming.keys[k]].by_rows:
                raise ValueError(
                    f"{incoming.names[k]} had a dense gradient before and is divided by elements, "
                    f"so its gradient can't be sparse; with shard_state a table must have a sparse "
                    f"gradient at its first step"
                )
        return {k: cuts[incoming.keys[k]] for k in incoming.present}

    def keep(self, cuts: Mapping[Key, Cut]) -> None:
        """Make cuts known, once all ranks have made them."""
        self.cuts = {**self.cuts, **cuts}


def _evenly(length: int, ranks: int, unit: int = 1) -> tuple[int, ...]:
    """Equal parts that begin at multiples of `unit`, as far as possible."""
    starts = (length * rank // ranks for rank in range(ranks))
    return (*(start - start % unit for start in starts), length)


class _Size(NamedTuple):
    """A variable's number of elements, and the unit at whose multiples it may be cut."""

    size: int
    unit: int


def bounds_of(
    sizes: Sequence[int], ranks: int, itemsize: int, records: Sequence[int]
) -> list[tuple[int, ...]]:
    """The bounds of the parts of each variable, in elements.

    `records` has the elements of a record of each; 0 if it is cut at cache lines.
    """
    line = max(1, CACHE_LINE // itemsize)
    flats = [_Size(size, unit or line) for size, unit in zip(sizes, records, strict=True)]
    is_small = [size * itemsize < ranks * _LEAST_PART for size in sizes]
    small = [flat for flat, alike in zip(flats, is_small, strict=True) if alike]
    together = iter(_end_to_end(small, ranks))
    return [
        next(together) if alike else _end_to_end([flat], ranks)[0]
        for flat, alike in zip(flats, is_small, strict=True)
    ]


def _end_to_end(flats: Sequence[_Size], ranks: int) -> list[tuple[int, ...]]:
    """The bounds of each variable when all are laid end to end and cut into equal parts."""
    targets = _evenly(sum(flat.size for flat in flats), ranks)
    bounds, start = [], 0
    for size, unit in flats:
        inside = [min(max(target - start, 0), size) for target in targets]
        bounds.append(tuple(p if p == size else p - p % unit for p in inside))
        start += size
    return bounds
