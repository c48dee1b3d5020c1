"""Slots as the `Variable` objects that an optimizer hands out."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from rmsjit.arrays.blocks import has_records
from rmsjit.arrays.layout import Layout
from rmsjit.state.entries import Entry
from rmsjit.state.packed_slot import PackedSlot
from rmsjit.variables import Variable


def slot_variable(optimizer: str, entry: Entry, slot: str, value: NDArray[Any]) -> Variable:
    """A slot with this value, in the optimizer of this name."""
    return Variable(value, _title(optimizer, entry, slot), trainable=False)


def slot_of_owner(optimizer: str, entry: Entry, slot: str) -> Variable:
    """A slot that the rule uses, with the axes of the entry's owner."""
    return slot_seen_as(optimizer, entry, slot, entry.layout, entry.shape)


def slot_seen_as(
    optimizer: str, entry: Entry, slot: str, layout: Layout, shape: tuple[int, ...]
) -> Variable:
    """A slot that the rule uses, with the axes of a view of its variable."""
    flat = entry.slots[slot]
    if has_records(flat):
        return PackedSlot(flat, layout, shape, _title(optimizer, entry, slot))
    return slot_variable(optimizer, entry, slot, layout.logical(flat, shape))


def _title(optimizer: str, entry: Entry, slot: str) -> str:
    return f"{optimizer}/{entry.name}/{slot}"
