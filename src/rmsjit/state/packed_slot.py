"""Slots in 8 bits, as the optimizer hands them out."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmsjit.arrays.blocks import packed, unpacked
from rmsjit.arrays.layout import Layout
from rmsjit.variables import Variable


class PackedSlot(Variable):
    """A slot in blocks of 8 bits: its array is a copy that can't be written.

    `assign` packs what it is given, each number rounded to nearest.

    Parameters
    ----------
    records : ndarray of `rmsjit.arrays.blocks.record_of`
        The memory of the slot, in the canonical order of its variable.
    layout : Layout
        That of the variable.
    shape : tuple of int
    name : str
    """

    __slots__ = ("_layout", "_shape", "records")

    def __init__(
        self, records: NDArray[Any], layout: Layout, shape: tuple[int, ...], name: str
    ) -> None:
        self.records = records
        self._layout, self._shape = layout, shape
        self._name, self._trainable, self._constraint = name, False, None

    @property
    def _array(self) -> NDArray[Any]:  # type: ignore[override]
        flat = unpacked(self.records, int(np.prod(self._shape)))
        array = self._layout.logical(flat, self._shape)
        array.flags.writeable = False
        return array

    def __deepcopy__(self, memo: dict[int, Any]) -> Variable:  # type: ignore[override]
        """A plain variable with the values."""
        copied = memo[id(self)] = Variable(self._array.copy(), self._name, trainable=False)
        return copied

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return Variable, (self._array, self._name, None, False)

    def packed(self, value: ArrayLike) -> NDArray[Any]:
        """The memory that the slot would have with this value."""
        canonical = self._layout.canonical(np.asarray(value).reshape(self._shape))
        return packed(canonical.reshape(-1), self.records.dtype)

    def assign(self, value: ArrayLike) -> PackedSlot:
        """Overwrite the value, rounded to nearest; a wrong shape raises `ValueError`."""
        self.records[...] = self.packed(self._checked(value))
        return self

    def assign_add(self, delta: ArrayLike) -> PackedSlot:
        """Add `delta`; otherwise like `assign`."""
        return self.assign(self._array + self._checked(delta))

    def assign_sub(self, delta: ArrayLike) -> PackedSlot:
        """Subtract `delta`; otherwise like `assign`."""
        return self.assign(self._array - self._checked(delta))


def memory_of(slot: Variable) -> NDArray[Any]:
    """The memory of a slot, which holds blocks if it is packed."""
    return slot.records if isinstance(slot, PackedSlot) else slot.array


def stored(slot: Variable, value: NDArray[Any]) -> NDArray[Any]:
    """A value as the memory of a slot holds it."""
    return slot.packed(value) if isinstance(slot, PackedSlot) else np.array(value, slot.dtype)
