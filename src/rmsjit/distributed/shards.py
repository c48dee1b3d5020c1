"""Which rank owns which part of each variable, and the slots of it.

Dense variables are laid end to end, by dtype, and cut into equal parts, on multiples of a cache
line of their own elements.  A table, whose gradient names rows, is cut by rows.  A part of a
variable's memory is a variable of its own to the engine, so a rank has slots for its part alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, Layout, is_dense
from rmsjit.arrays.placement import CACHE_LINE
from rmsjit.distributed.incoming import Incoming


class Cut(NamedTuple):
    """How one variable is shared out.

    Attributes
    ----------
    by_rows : bool
        Whether `bounds` count rows of the variable as it is shaped, else elements in memory.
    bounds : tuple of int
        Rank r owns from ``bounds[r]`` to ``bounds[r + 1]``.
    """

    by_rows: bool
    bounds: tuple[int, ...]

    def part(self, array: NDArray[Any], layout: Layout, rank: int) -> NDArray[Any]:
        """The view of a variable that a rank owns."""
        owned = slice(self.bounds[rank], self.bounds[rank + 1])
        if self.by_rows:
            return array[owned]
        flat: NDArray[Any] = layout.canonical(array).reshape(-1)
        return flat[owned]

    def part_of_slot(
        self, slot: NDArray[Any], layout: Layout, shape: tuple[int, ...], rank: int
    ) -> NDArray[Any]:
        """The same of a slot of the whole variable, which is in canonical order."""
        owned = slice(self.bounds[rank], self.bounds[rank + 1])
        return layout.logical(slot, shape)[owned] if self.by_rows else slot[owned]

    def elements(self, size: int, rank: int) -> tuple[int, int]:
        """Where a rank's part starts and stops, in elements of a variable of `size`."""
        unit = size // max(self.bounds[-1], 1) if self.by_rows else 1
        return self.bounds[rank] * unit, self.bounds[rank + 1] * unit


class Shards:
    """The cuts of all variables of one optimizer.

    Parameters
    ----------
    ranks : int
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self.cuts: dict[Key, Cut] = {}

    def assign(self, incoming: Incoming) -> dict[int, Cut]:
        """By position, the cut of each variable that has a gradient.

        A variable keeps the cut that it first got.

        Raises
        ------
        ValueError
            If a variable that was cut within rows gets a sparse gradient.
        """
        new: dict[Key, Cut] = {}
        flat: dict[str, list[int]] = {}
        for k in incoming.present:
            key, array = incoming.keys[k], incoming.arrays[k]
            if key in self.cuts or key in new:
                continue
            contiguous = is_dense(incoming.layouts[k].canonical(array))
            if k in incoming.sparse or not contiguous:
                new[key] = Cut(True, _evenly(len(array), self._ranks))
            else:
                new[key] = Cut(False, ())
                flat.setdefault(incoming.precisions[k].name, []).append(k)
        for positions in flat.values():
            sizes = [incoming.arrays[k].size for k in positions]
            unit = max(1, CACHE_LINE // incoming.arrays[positions[0]].itemsize)
            for k, bounds in zip(positions, _end_to_end(sizes, self._ranks, unit), strict=True):
                new[incoming.keys[k]] = Cut(False, bounds)
        cuts = {**self.cuts, **new}
        for k in incoming.sparse:
            if not cuts[incoming.keys[k]].by_rows:
                raise ValueError(
                    f"{incoming.names[k]} had a dense gradient before and is shared out by "
                    f"elements, so its gradient can't be sparse; with shard_state a table must "
                    f"have a sparse gradient at its first step"
                )
        self.cuts = cuts
        return {k: cuts[incoming.keys[k]] for k in incoming.present}

    def forget(self) -> None:
        """Cut all variables anew when they are next seen."""
        self.cuts = {}


def _evenly(length: int, ranks: int) -> tuple[int, ...]:
    return tuple(length * rank // ranks for rank in range(ranks + 1))


def _end_to_end(sizes: list[int], ranks: int, unit: int) -> list[tuple[int, ...]]:
    """The bounds of each of these variables, laid end to end and cut into equal parts."""
    targets = _evenly(sum(sizes), ranks)
    bounds, start = [], 0
    for size in sizes:
        inside = [min(max(target - start, 0), size) for target in targets]
        bounds.append(tuple(p if p == size else p - p % unit for p in inside))
        start += size
    return bounds
