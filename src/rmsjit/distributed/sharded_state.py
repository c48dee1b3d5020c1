"""Slots of whole variables and of shards: split at the first step, joined to be saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, array_key, layout_of
from rmsjit.distributed.comm import receive, send
from rmsjit.distributed.shards import Cut
from rmsjit.state.entries import Entry, entry_of
from rmsjit.state.slots import SlotStore
from rmsjit.variables import array_of

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
    for name in names:
        own = None if piece is None else piece.layout.logical(piece.slots[name], piece.shape)
        if comm.rank != 0:
            if own is not None:
                (send if gather else receive)(comm, own, 0)
            continue
        for rank in range(comm.size):
            part = cut.part_of_slot(whole[name], layout, array.shape, rank)
            if part.size == 0:
                continue
            if rank:
                (receive if gather else send)(comm, part, rank)
            elif own is not None:
                source, target = (own, part) if gather else (part, own)
                target[...] = source


def gathered_store(
    comm: Any, store: SlotStore, cuts: Mapping[Key, Cut], variables: Mapping[str, Any]
) -> SlotStore:
    """The store that one process would have, complete on rank 0.

    `store` has the slots of this rank's parts.  `cuts` is in the same order on all ranks, with keys
    of this rank's memory.

    Raises
    ------
    ValueError
        If a variable that has a cut is not among `variables`.
    """
    owners = {array_key(array_of(variable)): variable for variable in variables.values()}
    missing = sum(key not in owners for key in cuts)
    if missing:
        raise ValueError(
            f"variables must hold every variable that the optimizer has stepped, but lacks "
            f"{missing} of {len(cuts)}"
        )
    whole = SlotStore(store.name, store.form)
    entries = [entry_of(owners[key]) for key in cuts]
    whole.enter(entries, whole.missing(entries) if comm.rank == 0 else [])
    for entry, cut in zip(entries, cuts.values(), strict=True):
        array, names = array_of(entry.owner), store.form.slot_names
        piece = store.entries.get(array_key(cut.part(array, entry.layout, comm.rank)))
        move_slots(comm, entry.slots, array, cut, piece, names, gather=True)
    for place, weight in store.created.items():
        if place[0] not in store.entries:  # a weight that belongs to no variable
            whole.created[place] = weight
    return whole
