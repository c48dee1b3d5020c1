"""Moving a plan to other known variables, without a new place for each list.

A plan of small plain arrays serves for all others of its structure, such as the rows of a table.
The store knows what is there.  Compiled code follows to variables that were found before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of
from rmsjit.kernels import loader
from rmsjit.kernels.headers import NOT_AS_EXPECTED
from rmsjit.state.entries import Entry, Member
from rmsjit.state.slots import SlotStore
from rmsjit.steps.headers import rows_of
from rmsjit.steps.pairs import Pairs
from rmsjit.steps.place import Footprint, Place
from rmsjit.steps.records import Records


class Found(NamedTuple):
    """Variables that the store knows.

    Attributes
    ----------
    arrays : sequence of ndarray
    rows : list of tuple of int
        Where they are; see `rmsjit.steps.headers.rows_of`.
    entries : list of Entry
    prints : list of Footprint
    """

    arrays: Sequence[NDArray[Any]]
    rows: list[tuple[int, ...]]
    entries: list[Entry]
    prints: list[Footprint]


class Locator:
    """Finds variables that have the structure of a plan.

    Parameters
    ----------
    place : Place
        That of the plan.
    names : sequence of str
        Of the slots, in the order of the form's `arithmetic`.

    Attributes
    ----------
    records : Records
        Those of the variables that were found.
    compiled : callable or None
        Follows to these; None where object headers can't be read.
    """

    def __init__(self, place: Place, names: Sequence[str]) -> None:
        self._names = names
        self._memory = [(owner.dtype, owner.size) for owner in place.owners]
        self.records = Records(self._memory, 1 + len(names))
        kernel = loader.follow()
        self.compiled = None if kernel is None else kernel.call

    def find(self, arrays: Sequence[NDArray[Any]], store: SlotStore) -> Found | None:
        """Arrays of the structure, if the store knows them all, with their slots."""
        rows = rows_of(arrays)
        starts = [start for _, _, start, _, _ in rows]
        entries, prints = [], []
        for position, entry in enumerate(self.entries_at(starts, store)):
            if entry is None or entry.is_gone or not store.has_all_slots(entry):
                return None
            footprint = Footprint.of(Member(entry, entry.slots), self._names)
            self._note(position, entry, footprint, len(store.entries))
            entries.append(entry)
            prints.append(footprint)
        return Found(arrays, rows, entries, prints)

    def entries_at(self, starts: Sequence[int], store: SlotStore) -> list[Entry | None]:
        """What the store knows at these addresses, as variables of the structure."""
        known = store.entries
        places = zip(starts, self._memory, strict=True)
        return [known.get((start, dtype, size)) for start, (dtype, size) in places]

    def _note(self, position: int, entry: Entry, footprint: Footprint, known: int) -> None:
        """Have compiled code find the variable the next time."""
        slots = [entry.slots.get(name) for name in self._names]
        sizes = [entry.canonical.nbytes, *(0 if slot is None else slot.nbytes for slot in slots)]
        self.records.add(position, entry, footprint.addresses[0].tolist(), sizes, known)


class RoamingPlace(Place):
    """The place of one binding, which follows its variables from step to step.

    Parameters
    ----------
    place : Place
        That of a plan with a structure.
    addresses : int64 array
        Those of the binding, which are changed.
    locator : Locator
    """

    __slots__ = ("_call", "_call_address", "_locator", "_working")

    def __init__(self, place: Place, addresses: NDArray[np.int64], locator: Locator) -> None:
        self._resemble(place, addresses, place.written.copy())
        self._locator = locator
        self._working = np.zeros(len(addresses), np.int64)
        call = self.reader.call_for(addresses)
        more = locator.records.address, address_of(self._working)
        self._call = np.array([*call, *more], np.int64)
        self._call_address = address_of(self._call)

    def follow(self, pairs: Pairs, store: SlotStore) -> int:
        """Move to the variables of pairs, if they were found before.

        Returns
        -------
        int
            How many variables may have lost their memory; NOT_AS_EXPECTED if nothing has changed.
        """
        compiled = self._locator.compiled
        unsure = NOT_AS_EXPECTED if compiled is None else compiled(id(pairs), self._call_address)
        if unsure == NOT_AS_EXPECTED:
            return NOT_AS_EXPECTED
        self.variables = tuple([array for _, array in pairs])
        self.reader.take(self.variables)
        self.entries = tuple(self._locator.entries_at(self.addresses[:, 0].tolist(), store))
        return int(unsure)

    def move(self, found: Found) -> None:
        """Move to the variables that were found; all former ones are replaced."""
        arrays, rows, entries, prints = found
        self.variables, self.entries = tuple(arrays), tuple(entries)
        self.reader.move(arrays, rows)
        np.concatenate([p.addresses for p in prints], out=self.addresses)
        np.concatenate([p.written for p in prints], axis=1, out=self.written)
        self.written.sort()  # known variables and slots are disjoint, so spans stay together

    def settled(self) -> Place:
        """The place where the variables are now, which stays there."""
        place = object.__new__(Place)
        place._resemble(self, self.addresses.copy(), self.written.copy())
        place.variables, place.entries = self.variables, self.entries
        return place
