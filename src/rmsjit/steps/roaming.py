"""Finding the known variables of a step, and following them, without a new place for each list.

A plan of small plain arrays serves for all others of its structure, such as the rows of a table.
Where they are is read from the headers of the arrays; the store knows what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of
from rmsjit.kernels import headers, loader
from rmsjit.state.entries import Entry, Member
from rmsjit.state.slots import SlotStore
from rmsjit.steps.headers import rows_of
from rmsjit.steps.pairs import Pairs
from rmsjit.steps.place import Footprint, Place
from rmsjit.steps.plans import structure_of


class Found(NamedTuple):
    """Variables that the store knows.

    Attributes
    ----------
    rows : int64 array, shape (variables, columns)
        Where they are, as `rmsjit.kernels.headers.read_arrays` writes it.
    entries : list of Entry
    prints : list of Footprint
    """

    rows: NDArray[np.int64]
    entries: list[Entry]
    prints: list[Footprint]


class Locator:
    """Finds the variables of pairs, if they have the structure of a plan.

    Only one thread at a time may use it.

    Parameters
    ----------
    place : Place
        That of the plan.
    names : sequence of str
        Of the slots, in the order of the form's `arithmetic`.
    epoch : int
        That of the store while the plan is valid.
    """

    def __init__(self, place: Place, names: Sequence[str], epoch: int) -> None:
        self._place, self._names, self._epoch = place, names, epoch
        self._memory = [(owner.dtype, owner.size, owner.itemsize) for owner in place.owners]
        self._rows = np.zeros((len(self._memory), headers.FOUND_COLUMNS), np.int64)
        self._call = place.reader.call_for(self._rows)
        self._call_address = address_of(self._call)
        compiled = loader.read_arrays()
        self._compiled = None if compiled is None else compiled.call

    def find(self, pairs: Pairs, variables: Sequence[Any], store: SlotStore) -> Found | None:
        """The variables of pairs.

        None unless they are different arrays of the structure, which the store knows with all
        slots, and whose memory is still there.
        """
        if self._compiled is None:
            status = self._read_in_python(pairs)
        else:
            status = self._compiled(id(pairs), self._call_address)
        if status == headers.NOT_AS_EXPECTED or store.unmet:
            return None
        rows, entries, prints = self._rows.copy(), [], []
        for row, variable, memory in zip(rows.tolist(), variables, self._memory, strict=True):
            array, _, address, _, _, root, root_address, root_size = row
            dtype, size, itemsize = memory
            entry = store.entries.get((address, dtype, size))
            if entry is None or array != id(variable):  # a signal handler has read others
                return None
            if entry.ground != (root, root_address, root_size * itemsize) and entry.is_gone:
                return None
            known = entry.footprint
            if known is None or known[0] != self._epoch:
                if not store.has_all_slots(entry):
                    return None
                known = entry.footprint = self._epoch, self._footprint_of(entry)
            entries.append(entry)
            prints.append(known[1])
        if len(variables) > 1 and len(set(entries)) < len(variables):
            return None
        return Found(rows, entries, prints)

    def _footprint_of(self, entry: Entry) -> Footprint:
        return Footprint.of(Member(entry, entry.slots), self._names)

    def _read_in_python(self, pairs: Pairs) -> int:
        """Read the rows without compiled code, which leaves the roots of the arrays out."""
        arrays = [array for _, array in pairs]
        kinds = [type(gradient) for gradient, _ in pairs]
        place = self._place
        if structure_of(arrays, kinds) != structure_of(place.variables, place.kinds):
            return headers.NOT_AS_EXPECTED
        self._rows[:, : headers.ROOT] = rows_of(arrays)
        return 0


class RoamingPlace(Place):
    """The place of one binding, which follows its variables from step to step.

    Parameters
    ----------
    place : Place
        That of a plan with a structure.
    addresses : int64 array
        Those of the binding, which `move` changes.
    """

    __slots__ = ()

    def __init__(self, place: Place, addresses: NDArray[np.int64]) -> None:
        self.kinds, self.frozen = place.kinds, place.frozen
        self.addresses, self.written = addresses, place.written.copy()
        self.reader = place.reader.roaming(self.written)
        self.dropped, self.constrained, self.draft = [], {}, None

    def move(self, arrays: Sequence[NDArray[Any]], found: Found) -> None:
        """Move to other variables, in which nothing remains of the former ones."""
        rows, entries, prints = found
        self.variables, self.entries = tuple(arrays), tuple(entries)
        self.reader.move(arrays, rows[:, : headers.ROOT])
        if len(prints) == 1:
            self.addresses[...], self.written[...] = prints[0]
            return
        np.concatenate([p.addresses for p in prints], out=self.addresses)
        np.concatenate([p.written for p in prints], axis=1, out=self.written)
        self.written.sort()  # known variables and slots are disjoint, so spans stay together

    def settled(self) -> Place:
        """The place where the variables are now, which stays there."""
        place = object.__new__(Place)
        place.kinds, place.frozen = self.kinds, self.frozen
        place.variables, place.entries = self.variables, self.entries
        place.addresses, place.written = self.addresses.copy(), self.written.copy()
        place.reader = self.reader.roaming(place.written)
        place.dropped, place.constrained, place.draft = [], {}, None
        return place
