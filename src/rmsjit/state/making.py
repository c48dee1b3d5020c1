"""Making slots: memory of their own, and the values that they start from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

from rmsjit.arrays.blocks import MAPS, as_stored, record_of, records_for
from rmsjit.arrays.dtypes import dtype_named, slot_precision
from rmsjit.arrays.overlap import Overlaps, refuse_overlap
from rmsjit.rule.slot import Slot, is_packed
from rmsjit.state.entries import Entry, SlotMemory
from rmsjit.state.index import title

if TYPE_CHECKING:
    from rmsjit.state.slots import SlotStore


class FreshSlot(NamedTuple):
    """A slot that was allocated, but not entered into the store.

    Attributes
    ----------
    entry : Entry
    slot : Slot
    memory : ndarray
        Flat.
    """

    entry: Entry
    slot: Slot
    memory: NDArray[Any]


def missing_slots(
    store: SlotStore,
    entries: Iterable[Entry],
    epsilon: float = 0.0,
    touch: Callable[[list[FreshSlot]], None] | None = None,
) -> list[tuple[Entry, str, NDArray[Any]]]:
    """The slots that the form requires and these entries lack, allocated but not entered.

    `touch` is called before they are filled, unless the memory is the user's.
    """
    entries = list({entry.key: entry for entry in entries}.values())
    fresh = [
        FreshSlot(entry, slot, memory_for(store, entry, slot))
        for entry, slot in _creation_order(store, entries)
        if slot.name not in entry.slots
    ]
    if store.memories.allocator is not None:
        refuse_shared(store, [SlotMemory(s.name, memory) for _, s, memory in fresh], entries)
    elif touch is not None:
        touch(fresh)
    for entry, slot, memory in fresh:
        _start(store, entry, slot, memory, epsilon)
    return [(entry, slot.name, memory) for entry, slot, memory in fresh]


def _creation_order(store: SlotStore, entries: list[Entry]) -> list[tuple[Entry, Slot]]:
    if store.form.creation == "by_variable":
        return [(entry, slot) for entry in entries for slot in store.slots_of(entry)]
    own = {entry.key: store.slots_of(entry) for entry in entries}
    names = store.form.slot_names
    return [(e, s) for name in names for e in entries for s in own[e.key] if s.name == name]


def memory_for(store: SlotStore, entry: Entry, slot: Slot) -> NDArray[Any]:
    """New memory for a slot of an entry."""
    size = entry.canonical.size
    if slot.dtype is not None and is_packed(slot.dtype):
        length = entry.record_length
        record = record_of(MAPS[slot.dtype], length)
        return store.memories.allocate((records_for(size, length),), record, entry.canonical)
    precision = slot_precision(entry.precision, slot.dtype)
    return store.memories.allocate((size,), dtype_named(precision.name), entry.canonical)


def refuse_shared(store: SlotStore, slots: list[SlotMemory], entries: list[Entry]) -> None:
    """Raise `ValueError` if slots overlap each other, known memory or these entries."""
    index = store.index()
    new = Overlaps(entry for entry in entries if entry.key not in store.entries)
    for known in (index.variables, index.slots, new):
        refuse_overlap(known, slots, title, "slots must have memory of their own")


def _start(
    store: SlotStore, entry: Entry, slot: Slot, memory: NDArray[Any], epsilon: float
) -> None:
    own = store.created.get((entry.key, slot.name))  # added before the rule used it
    if own is not None and own.shape == entry.shape:
        values: Any = entry.layout.canonical(own.array).reshape(-1)
    else:
        values = slot.first_values(epsilon, entry.canonical.reshape(-1))
    memory[...] = as_stored(memory, values, entry.canonical.size)


def start_from_variable(store: SlotStore, entry: Entry, without: Collection[str]) -> None:
    """Set slots that start from the variable, but for some, after its values have changed."""
    for slot in store.slots_of(entry):
        if slot.start == "variable" and slot.name not in without:
            memory, values = entry.slots[slot.name], entry.canonical.reshape(-1)
            memory[...] = as_stored(memory, values, values.size)
