"""Slots of whole variables and of shards: split at the first step, joined to be saved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from rmsjit.arrays.blocks import has_records
from rmsjit.arrays.layout import Key, array_key, layout_of
from rmsjit.checkpoints.array_file import read_arrays
from rmsjit.checkpoints.content import decoded
from rmsjit.distributed.comm import receive, send
from rmsjit.distributed.shards import Cut
from rmsjit.state.entries import Entry, entry_of, key_of
from rmsjit.state.making import missing_slots
from rmsjit.state.numbering import numbers_of
from rmsjit.state.slots import SlotStore
from rmsjit.variables import array_of

_FIRST_TAG = 1  # of messages: one for each slot of a variable
Slots = dict[str, NDArray[Any]]


def move_slots(
    comm: Any,
    whole: Slots,
    array: NDArray[Any],
    cut: Cut,
    piece: Entry | None,
    names: Sequence[str],
    *,
    gather: bool,
) -> None:
    """Copy slots of a variable from rank 0 to the ranks that own its parts, or back to gather them.

    `whole` has the slots of the whole variable on rank 0, in canonical order.  `piece` is the entry
    of this rank's part, if it has one.  `names` must be the same on all ranks.
    """
    layout = layout_of(array)
    for tag, name in enumerate(names, _FIRST_TAG):
        own = None if piece is None else _with_axes(piece.slots[name], piece)
        if comm.rank != 0:
            if own is not None:
                (send if gather else receive)(comm, own, 0, tag)
            continue
        for rank in range(comm.size):
            part = cut.part_of_slot(whole[name], layout, array.shape, rank)
            if part.size == 0:
                continue
            if rank:
                (receive if gather else send)(comm, part, rank, tag)
            elif own is not None:
                source, target = (own, part) if gather else (part, own)
                target[...] = source


def _with_axes(slot: NDArray[Any], piece: Entry) -> NDArray[Any]:
    """A slot of a part as `Cut.part_of_slot` gives it."""
    return slot if has_records(slot) else piece.layout.logical(slot, piece.shape)


class Joined:
    """The state that one process would have, about to be gathered on rank 0.

    Everything that may fail on one rank alone is done at construction.

    Parameters
    ----------
    cuts : dict of Key to Cut
        In the same order on all ranks, with keys of this rank's memory.
    store : SlotStore
        Has the slots of this rank's parts, and of whole variables that were not stepped yet.
    variables : dict of str to ndarray or Variable
    rank : int

    Attributes
    ----------
    whole : SlotStore
        Complete on rank 0 after `gather`.

    Raises
    ------
    ValueError
        If a variable that has a cut is not among `variables`, or this rank has forgotten its part.
    """

    def __init__(
        self, cuts: Mapping[Key, Cut], store: SlotStore, variables: Mapping[str, Any], rank: int
    ) -> None:
        owners = {key_of(variable): variable for variable in variables.values()}
        missing = sum(key not in owners for key in cuts)
        if missing:
            raise ValueError(
                f"variables must hold every variable that the optimizer has stepped, but lacks "
                f"{missing} of {len(cuts)}"
            )
        self.whole = SlotStore(store.name, store.form)
        self.whole.skipped_steps = store.skipped_steps
        self.whole.grouping = store.grouping
        self._entries = [_in_group_of(store.whole(owners[key]), owners[key]) for key in cuts]
        self._cuts = list(cuts.values())
        self._pieces = [
            _piece(store, entry, cut, rank)
            for entry, cut in zip(self._entries, self._cuts, strict=True)
        ]
        undivided = {
            key: _in_group_of(known, owners[key])
            for key, known in store.entries.items()
            if key in owners and key not in cuts
        }  # since they were loaded or built only
        fresh = self._missing_slots(store, undivided) if rank == 0 else []
        self.whole.enter([*self._entries, *undivided.values()], fresh)
        for place, weight in store.created.items():
            if place[0] not in store.entries:  # a weight that belongs to no variable
                self.whole.created[place] = weight

    def _missing_slots(
        self, store: SlotStore, undivided: Mapping[Key, Entry]
    ) -> list[tuple[Entry, str, NDArray[Any]]]:
        """The slots of all variables, in the order in which one process has made them."""
        numbers = numbers_of(store)
        entries = [*self._entries, *(e for key, e in undivided.items() if key in numbers)]
        entries.sort(key=lambda entry: numbers[entry.key])
        made = []
        for entry, name, slot in missing_slots(self.whole, entries):
            held = store.entries[entry.key].slots if entry.key in undivided else {name: slot}
            if name in held:
                made.append((entry, name, held[name]))
        return made

    def gather(self, comm: Any) -> None:
        """Exchange the slots."""
        for entry, cut, piece in zip(self._entries, self._cuts, self._pieces, strict=True):
            array = array_of(entry.owner)
            names = [slot.name for slot in self.whole.slots_of(entry)]
            move_slots(comm, entry.slots, array, cut, piece, names, gather=True)


def _in_group_of(known: Entry | None, variable: Any) -> Entry:
    """A new entry for a variable, in the group that it is in; an empty one may not be known."""
    entry = entry_of(variable)
    if known is not None:
        entry.group, entry.record_length = known.group, known.record_length
    return entry


def share_groups(store: SlotStore, whole: SlotStore) -> None:
    """Give a store of whole variables the groups of one that has parts."""
    known = [*(one.whole for one in store.divided.values()), *store.entries.values()]
    parts = {id(one.part) for one in store.divided.values()}
    grouped = [entry for entry in known if entry.group is not None and id(entry) not in parts]
    whole.grouping = store.grouping
    whole.enter([_in_group_of(entry, entry.owner) for entry in grouped], [])


def _piece(store: SlotStore, entry: Entry, cut: Cut, rank: int) -> Entry | None:
    """The entry of this rank's part of a variable, None if it has no part."""
    part = cut.part(array_of(entry.owner), entry.layout, rank)
    if part.size == 0:
        return None
    piece = store.entries.get(array_key(part))
    if piece is None:
        raise ValueError("this rank does not know its part of a variable")
    store.enter([piece], missing_slots(store, [piece]))  # if momentum has been raised since
    return piece


def check_slots_can_be_divided(path: str | os.PathLike[str]) -> None:
    """Raise `ValueError` if a file has slots that the rule does not use, which have no parts."""
    checkpoint = decoded(*read_arrays(path))
    added = {
        weight.name
        for weight in checkpoint.weights
        if weight.variable is not None and weight.name not in checkpoint.optimizer.form.slot_names
    }
    if added:
        raise ValueError(
            f"shard_state=True can't divide the slots {', '.join(sorted(added))}, which were added "
            f"by add_slot: load the file with shard_state=False"
        )
