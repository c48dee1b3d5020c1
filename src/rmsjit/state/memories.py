"""The memory of slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rmsjit.arrays.blocks import reordered
from rmsjit.arrays.layout import address_of, layout_of
from rmsjit.arrays.placement import CACHE_LINE, allocate_aligned
from rmsjit.state.entries import Entry, entry_of

SlotAllocator = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]


class SlotMemories:
    """Gives slots memory.

    Parameters
    ----------
    allocator : callable, optional
        ``allocator(shape, dtype)`` returns the memory for a slot.
    """

    def __init__(self, allocator: SlotAllocator | None = None) -> None:
        self.allocator = allocator

    def allocate(
        self, shape: tuple[int, ...], dtype: DTypeLike, beside: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Memory for a slot, with the same offset within a cache line as `beside`."""
        dtype = np.dtype(dtype)
        if self.allocator is not None:
            return _checked(self.allocator(shape, dtype), shape, dtype)
        start = 0 if beside is None else address_of(beside)
        return allocate_aligned(shape, dtype, start)

    def placed(self, flat: NDArray[Any], entry: Entry) -> NDArray[Any]:
        """A slot's elements, copied unless their memory is suitable as a slot of this entry."""
        fits = flat.flags.c_contiguous and flat.flags.writeable
        off = (address_of(flat) - address_of(entry.canonical)) % CACHE_LINE
        if fits and (self.allocator is not None or not off):
            return flat
        memory = self.allocate(flat.shape, flat.dtype, entry.canonical)
        memory[...] = flat
        return memory

    def moved(self, entry: Entry, variable: Any, view: NDArray[Any] | None = None) -> Entry:
        """A new entry for another variable of the same size and dtype, with the same slots.

        Its axes are those of a view of the former one.  Without one, or if the shapes differ,
        elements keep their order in memory.
        """
        new = entry_of(variable)
        new.follow(entry)
        for slot, flat in entry.slots.items():
            if view is not None and new.shape == view.shape:
                flat = reordered(flat, view.shape, layout_of(view), new.layout)
            new.slots[slot] = self.placed(flat, new)
        return new


def _checked(array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    fits = (
        isinstance(array, np.ndarray)
        and array.shape == shape
        and array.dtype == dtype
        and array.flags.c_contiguous
        and array.flags.writeable
        and array.flags.aligned
    )
    if not fits:
        got = repr(type(array).__name__)
        if isinstance(array, np.ndarray):
            got = f"shape {array.shape}, dtype {array.dtype}"
        raise ValueError(
            f"slot_allocator must return a writeable, C-contiguous array of shape {shape} and "
            f"dtype {dtype}, got {got}"
        )
    return array  # type: ignore[no-any-return]
