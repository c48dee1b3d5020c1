"""Slots of whole variables and of shares: taken apart at the first step, put together to save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, Layout, layout_of, memory_key
from rmsjit.distributed.comm import receive, send
from rmsjit.distributed.shards import Cut
from rmsjit.state.slots import Entry, SlotStore, entry_of
from rmsjit.variables import array_of

Slots = dict[str, NDArray[Any]]


def shaped(entry: Entry, slot: str) -> NDArray[Any]:
    """A slot in the shape of the entry's owner."""
    return entry.layout.logical(entry.slots[slot], entry.shape)


def scatter(
    comm: Any, whole: Slots, array: NDArray[Any], cut: Cut, piece: Entry | None, slots: list[str]
) -> None:
    """Give each rank its part of the slots of a variable that rank 0 has as a whole.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    whole : dict
        On rank 0, slots of the whole variable in canonical order.
    array : ndarray
        The variable.
    cut : Cut
    piece : Entry or None
        Of this rank's part, if it has one.
    slots : list of str
        The same on all ranks.
    """
    layout = layout_of(array)
    for slot in slots:
        if comm.rank != 0:
            if piece is not None:
                receive(comm, shaped(piece, slot), 0)
            continue
        for rank in range(comm.size):
            part = cut.part_of_slot(whole[slot], layout, array.shape, rank)
            if part.size == 0:
                continue
            if rank:
                send(comm, part, rank)
            elif piece is not None:
                shaped(piece, slot)[...] = part


def gather(
    comm: Any, whole: Slots, array: NDArray[Any], cut: Cut, piece: Entry | None, slots: list[str]
) -> None:
    """Fill the slots of a whole variable on rank 0: the reverse of `scatter`."""
    layout = layout_of(array)
    for slot in slots:
        if comm.rank != 0:
            if piece is not None:
                send(comm, shaped(piece, slot), 0)
            continue
        for rank in range(comm.size):
            part = cut.part_of_slot(whole[slot], layout, array.shape, rank)
            if part.size == 0:
                continue
            if rank:
                receive(comm, part, rank)
            elif piece is not None:
                part[...] = shaped(piece, slot)


def gathered_store(
    comm: Any, store: SlotStore, cuts: Mapping[Key, Cut], variables: Mapping[str, Any]
) -> SlotStore:
    """A store as one process has it, complete on rank 0.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    store : SlotStore
        Of the shares of this rank.
    cuts : dict of Key to Cut
        How each variable is shared out, by its memory on this rank, in the same order on all.
    variables : dict of str to ndarray or Variable

    Raises
    ------
    ValueError
        If `variables` lacks one that is shared out.
    """
    owners = {key_of(array_of(variable)): variable for variable in variables.values()}
    missing = sum(key not in owners for key in cuts)
    if missing:
        raise ValueError(
            f"variables must hold every variable that the optimizer has stepped, but lacks "
            f"{missing} of {len(cuts)}"
        )
    whole = SlotStore(store.name, store.form)
    entries = [entry_of(owners[key]) for key in cuts]
    fresh = whole.missing(entries) if comm.rank == 0 else []
    whole.enter(entries, fresh)
    for key, entry in zip(cuts, entries, strict=True):
        array, cut = array_of(entry.owner), cuts[key]
        piece = store.entries.get(key_of(cut.part(array, entry.layout, comm.rank)))
        gather(comm, entry.slots, array, cut, piece, list(store.form.slot_names))
    for place, weight in store.created.items():
        if place[0] not in store.entries:  # a weight that belongs to no variable
            whole.created[place] = weight
    return whole


def key_of(array: NDArray[Any]) -> Key:
    """The key of an array's memory."""
    layout: Layout = layout_of(array)
    return memory_key(layout.canonical(array))
