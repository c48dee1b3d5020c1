"""The numbers of variables, in the order in which they get slots in one process.

Random bits depend on them, and so does the order of a checkpoint.  Processes that train together
agree on the numbers (`Entry.number`), since they may know different variables: after a checkpoint
was loaded on one of them, or where a variable is divided and a process has no part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count

from rmsjit.arrays.layout import Key
from rmsjit.state.entries import Entry
from rmsjit.state.slots import SlotStore


def numbers_of(store: SlotStore, others: Iterable[Key] = ()) -> dict[Key, int]:
    """The numbers of all whole variables that have slots, and of `others`, which get them next.

    Those that were agreed on are kept; the others get the numbers that are left, in their order.
    """
    parts = {one.part.key for one in store.divided.values() if one.part is not None}
    whole = [entry for entry in store.with_slots() if entry.key not in parts]
    divided = {key: one.whole for key, one in store.divided.items()}
    known = {**{entry.key: entry for entry in whole}, **divided}
    numbers = {key: entry.number for key, entry in known.items() if entry.number is not None}
    taken = set(numbers.values())
    free = (number for number in count() if number not in taken)
    for key in (*known, *others):
        if key not in numbers:
            numbers[key] = next(free)
    return numbers


def agree_on(store: SlotStore, numbers: Mapping[Key, int]) -> None:
    """Give variables and their parts the numbers that all processes have agreed on."""
    known = [(entry, number) for key, number in numbers.items() for entry in _of(store, key)]
    if any(entry.number != number for entry, number in known):
        for entry, number in known:
            entry.number = number
        store.changed()  # plans of steps depend on them


def _of(store: SlotStore, key: Key) -> Iterator[Entry]:
    """The entries of a variable and of its part, as far as there are any."""
    if key in store.divided:
        whole, part = store.divided[key]
        yield whole
        if part is not None:
            yield part
    elif key in store.entries:
        yield store.entries[key]


def forget_numbers(store: SlotStore) -> None:
    """Have the numbers follow the order of slots again."""
    for entry in store.entries.values():
        entry.number = None
