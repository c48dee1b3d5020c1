"""What a store knows, sorted by memory, so that a new variable is compared with its neighbours."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from rmsjit.arrays.overlap import Overlaps
from rmsjit.arrays.owners import Ground
from rmsjit.state.entries import Entry, SlotMemory
from rmsjit.state.packed_slot import memory_of

if TYPE_CHECKING:
    from rmsjit.state.slots import SlotStore

NO_VARIABLE = "weight"  # first part of the keys of weights that belong to no variable


class Index:
    """The variables and slots of a store, sorted by memory."""

    def __init__(self) -> None:
        self.variables: Overlaps[Entry] = Overlaps()
        self.slots: Overlaps[SlotMemory] = Overlaps()
        self.grounds: dict[int, Ground] = {}  # by their root
        self._entries = self._created = 0

    def can_follow(self, store: SlotStore) -> bool:
        return self._entries <= len(store.entries) and self._created <= len(store.created)

    def follow(self, store: SlotStore) -> None:
        """Add what was entered since the last call."""
        more = len(store.entries) - self._entries
        for entry in list(islice(reversed(store.entries.values()), more))[::-1]:
            if not entry.is_nowhere:
                self.variables.add(entry)
            self.grounds[entry.ground.root] = entry.ground
            self._entries += 1
        more = len(store.created) - self._created
        for (key, slot), value in list(islice(reversed(store.created.items()), more))[::-1]:
            if key[0] != NO_VARIABLE:
                self.slots.add(SlotMemory(slot, memory_of(value)))
            self._created += 1


def title(memory: Any) -> str:
    """The name of a slot or a variable in a message."""
    if isinstance(memory, SlotMemory):
        return f"the slot {memory.name}"
    return f"the variable {memory.name}" if memory.name else "its variable"
