"""How the copy of an optimizer finds its variables among the copied arrays.

Copying and pickling link objects by identity, and NumPy copies a view to a new array.  Users may
hold any object over a variable's memory: the array that owns it, a `Variable` or a view.  So the
state of an optimizer contains all that are alive, and the copy finds out which of them are held.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import dtype_named
from rmsjit.arrays.layout import Key, Layout, address_of, canonical_view, layout_of
from rmsjit.arrays.owners import anchor_of, held_elsewhere, private_view
from rmsjit.state.entries import Entry, Home, entry_of, key_of
from rmsjit.state.index import NO_VARIABLE
from rmsjit.state.slot_variables import slot_of_owner
from rmsjit.variables import Variable, array_of

if TYPE_CHECKING:
    from rmsjit.state.slots import SlotStore


class InOwner(NamedTuple):
    """The position of a view in the array that owns its memory."""

    offset: int  # in bytes, from the first element of the array to that of the view
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    lengths: tuple[int, ...]  # the shape of the array
    steps: tuple[int, ...]  # the strides of the array


class Described(NamedTuple):
    """An entry in a form that can be copied."""

    name: str
    stem: str
    origin: Key  # the key of the entry
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    record_length: int
    objects: list[tuple[Any, Layout]]  # the objects that were passed as this variable
    places: list[tuple[NDArray[Any], InOwner, Layout]]  # arrays that own its memory, if still held
    slots: dict[str, NDArray[Any]]  # in canonical order
    group: Any  # to which the variable was given, or None


def state_of(store: SlotStore) -> dict[str, Any]:
    """The state of a store in a form that can be copied."""
    entries = list(store.entries.values())
    numbers = {entry.key: number for number, entry in enumerate(entries)}
    slots = {(e.key, slot) for e in entries for slot in e.slots}
    created = list(store.created.items())  # in one call, as other threads may add some
    probe = np.zeros(1)
    # Of a copy whose variables were duplicated, and in which no step has found them, likewise.
    links_arrays = store.links_arrays or not store.unmet
    return {
        "name": store.name,
        "form": store.form,
        "allocator": store.memories.allocator,
        "skipped_steps": store.skipped_steps,
        "grouping": store.grouping,
        "stems": dict(store.stems),
        "entries": described(entries),
        "created": [
            (numbers.get(key), slot, None if (key, slot) in slots else variable)
            for (key, slot), variable in created
        ],
        "probe": (probe, probe if links_arrays else None),
    }


def restore(store: SlotStore, state: dict[str, Any]) -> None:
    """Make a store that has no state yet the copy of the one that `state_of` described."""
    store.__init__(state["name"], state["form"], state["allocator"])  # type: ignore[misc]
    store.skipped_steps, store.stems = state["skipped_steps"], state["stems"]
    store.grouping = state["grouping"]
    for group in store.grouping.groups:
        group.epoch = store.epoch
    store.links_arrays = state["probe"][0] is state["probe"][1]
    entries = [revived(known, store.links_arrays) for known in state["entries"]]
    for entry, known in zip(entries, state["entries"], strict=True):
        for slot, flat in known.slots.items():
            ordered = entry.homes[0].from_original(flat)
            memory = store.memories.allocate(ordered.shape, ordered.dtype, entry.canonical)
            memory[...] = ordered
            entry.slots[slot] = memory
        if entry.is_nowhere:
            entry.homes = ()  # nobody held the variable when it was copied
        store.unmet |= {home.key: entry for home in entry.homes}
    store.entries = {entry.key: entry for entry in entries}
    store.unsettled = bool(entries)
    for number, slot, variable in state["created"]:
        if number is None:
            store.created[(NO_VARIABLE, len(store.created)), slot] = variable
            continue
        entry = entries[number]
        own = slot_of_owner(store.name, entry, slot) if variable is None else variable
        store.created[entry.key, slot] = own


def described(entries: Iterable[Entry]) -> list[Described]:
    """Entries in a form that can be copied; memory that is gone is not read."""
    entries = list(entries)
    gone = [entry.is_gone for entry in entries]
    objects = [[] if lost else entry.objects() for entry, lost in zip(entries, gone, strict=True)]
    arrays = [list(map(array_of, things)) for things in objects]
    views = [[*e.own_views, *given] for e, given in zip(entries, arrays, strict=True)]
    held = held_elsewhere(views)
    return [
        _described(entry, things, elsewhere and not lost)
        for entry, things, lost, elsewhere in zip(entries, objects, gone, held, strict=True)
    ]


def _described(entry: Entry, things: list[Any], is_held: bool) -> Described:
    slots, places = entry.slots, [_place(entry.owner, entry.layout)] if is_held else []
    objects = [(thing, layout_of(array_of(thing))) for thing in things]
    if entry.homes:  # a copy that no step has used: any of these may still be the variable
        objects, holders = _objects_at_homes(entry)
        places = [_place(home.view, home.layout) for home in entry.homes]
        places += [_place(home.view, home.layout, array) for array, home in holders]
        slots = {name: entry.homes[0].to_original(flat) for name, flat in slots.items()}
    return Described(
        entry.name,
        entry.stem,
        entry.key,
        entry.shape,
        entry.precision.name,
        entry.layout,
        entry.record_length,
        objects,
        places,
        slots,
        entry.group,
    )


def _objects_at_homes(
    entry: Entry,
) -> tuple[list[tuple[Any, Layout]], list[tuple[NDArray[Any], Home]]]:
    """The objects that were copied with an entry and are alive, with the layout of the original.

    An unpickled array may be a view of another array, which is not the one that the user has.
    Arrays that hold the memory, but have other axes than the variable, come second, with its home.
    """
    homes = {home.key: home for home in entry.homes}
    objects, holders = [], []
    for thing in {_axes_of(array_of(thing)): thing for thing in entry.remembered()}.values():
        home, array = homes.get(key_of(thing)), array_of(thing)
        if home is not None and _axes_of(array) == _axes_of(home.view):
            objects.append((thing, home.layout))
        elif home is not None and isinstance(thing, np.ndarray):
            holders.append((array, home))
    return objects, holders


def _axes_of(array: NDArray[Any]) -> tuple[Any, ...]:
    return address_of(array), array.shape, array.strides


def _place(
    view: NDArray[Any], layout: Layout, anchor: NDArray[Any] | None = None
) -> tuple[NDArray[Any], InOwner, Layout]:
    """Where a view is in an array that holds its memory, by default in the one that owns it."""
    anchor = anchor_of(view) if anchor is None else anchor
    offset = address_of(view) - address_of(anchor)
    return anchor, InOwner(offset, view.shape, view.strides, anchor.shape, anchor.strides), layout


def revived(state: Described, links_arrays: bool) -> Entry:
    """The entry of the copy, with all arrays that may be its variable, but without slots.

    Where copying has made several arrays of one (`links_arrays` is False, as with joblib), only
    the array of a `Variable`, which is never duplicated, may still be the user's; the others only
    give the values.
    """
    homes = [
        Home(private_view(array_of(thing)), layout, links_arrays or isinstance(thing, Variable))
        for thing, layout in state.objects
    ]
    for anchor, place, layout in state.places:
        view = _view_at(place, anchor, state.dtype)
        if view is not None:
            homes.append(Home(view, layout, links_arrays))
    if not homes:  # nobody holds the variable: a placeholder without memory, see `Entry.is_nowhere`
        view = np.broadcast_to(np.zeros((), dtype_named(state.dtype)), state.shape)
        homes.append(Home(view, state.layout, links_arrays))
    entry = entry_of(homes[0].view)
    entry.given = ()  # without our own view
    for thing in [*(thing for thing, _ in state.objects), *(array for array, _, _ in state.places)]:
        entry.saw(thing)
    entry.name, entry.stem, entry.origin = state.name, state.stem, state.origin
    entry.homes, entry.group = tuple(homes), state.group
    entry.record_length = state.record_length
    return entry


def _view_at(place: InOwner, anchor: NDArray[Any], dtype: str) -> NDArray[Any] | None:
    """The view at the same place in a copied array, or None if that is impossible."""
    if (place.offset, *place[1:3]) == (0, *place[3:]) and dtype == anchor.dtype.name:
        return private_view(anchor)  # it is the array itself
    if 0 in place.shape:  # which may begin behind the end of a copy
        return np.empty(place.shape, dtype_named(dtype))
    memory = canonical_view(anchor)
    offset, strides = place.offset, place.strides
    if anchor.strides != place.steps:  # copies are dense, and pickles are in C or F order
        moved = _moved(place, anchor.strides)
        if moved is None:
            return None
        offset, strides = moved
    if not memory.flags.c_contiguous:
        return None
    whole = memory.reshape(-1).view(np.uint8)
    start = offset + address_of(anchor) - address_of(memory)
    return np.ndarray(place.shape, dtype_named(dtype), whole, start, strides)


def _moved(place: InOwner, steps: tuple[int, ...]) -> tuple[int, tuple[int, ...]] | None:
    """Offset and strides of the view if the array has other strides, None if it can't be one."""
    axes = [k for k, length in enumerate(place.lengths) if length > 1]
    axes.sort(key=lambda k: -place.steps[k])
    if any(place.steps[k] <= 0 for k in axes):
        return None

    def indices(distance: int) -> list[int] | None:
        """A distance in bytes as a number of steps along each axis."""
        found = [0] * len(steps)
        rest = abs(distance)
        for k in axes:
            found[k], rest = divmod(rest, place.steps[k])
        return None if rest else [-n if distance < 0 else n for n in found]

    first = indices(place.offset)
    along = [indices(stride) for stride in place.strides]
    if first is None or None in along:
        return None
    ways = [way for way in along if way is not None]
    for k, length in enumerate(place.lengths):
        reach = [way[k] * (n - 1) for way, n in zip(ways, place.shape, strict=True)]
        low = first[k] + sum(r for r in reach if r < 0)
        if low < 0 or first[k] + sum(r for r in reach if r > 0) >= length:
            return None  # it wraps from one row into the next
    strides = [sum(n * step for n, step in zip(way, steps, strict=True)) for way in ways]
    return sum(n * step for n, step in zip(first, steps, strict=True)), tuple(strides)
