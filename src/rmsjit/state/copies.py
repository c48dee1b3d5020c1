"""What a copy of an optimizer needs to find its variables among the copies of arrays.

Copying and pickling link objects by their identity, and NumPy copies a view to an array of its
own.  A user may hold any of the objects over a variable's memory: the array that has it, a
`Variable`, a view.  So all that are alive travel along with the state, and the copy finds out which
of them its user holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import dtype_named
from rmsjit.arrays.layout import Key, Layout, address_of, layout_of
from rmsjit.arrays.owners import anchor_of, held_elsewhere, private_view
from rmsjit.state.entries import Entry, Home, entry_of
from rmsjit.variables import array_of


class Place(NamedTuple):
    """Where a view lies in the array that has its memory.

    Attributes
    ----------
    offset : int
        In bytes, from the first element of the array to that of the view.
    shape, strides : tuple of int
        Of the view.
    lengths, steps : tuple of int
        Shape and strides of the array.
    """

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    lengths: tuple[int, ...]
    steps: tuple[int, ...]


class Described(NamedTuple):
    """An entry, as it is copied.

    Attributes
    ----------
    name, stem : str
    origin : tuple
        Its key.
    shape : tuple of int
    dtype : str
    layout : Layout
        Its own.
    objects : list of (object, Layout)
        What was given for it.
    places : list of (ndarray, Place, Layout)
        The array that has the memory, if it may be held by somebody, and where the entry lies.
    slots : dict of str to ndarray
        In canonical order.
    """

    name: str
    stem: str
    origin: Key
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    objects: list[tuple[Any, Layout]]
    places: list[tuple[NDArray[Any], Place, Layout]]
    slots: dict[str, NDArray[Any]]


def described(entries: Iterable[Entry]) -> list[Described]:
    """Entries as they are copied; no memory that is gone is read."""
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
    slots, views = entry.slots, [(entry.owner, entry.layout)] if is_held else []
    if entry.homes:  # no step has named it since it was copied: it may still be in any of these
        things, views = [], [(home.view, home.layout) for home in entry.homes]
        slots = {name: in_first_order(entry.homes[0], flat) for name, flat in slots.items()}
    return Described(
        entry.name,
        entry.stem,
        entry.key,
        entry.shape,
        entry.precision.name,
        entry.layout,
        [(thing, layout_of(array_of(thing))) for thing in things],
        [(anchor_of(view), _place(view), layout) for view, layout in views],
        slots,
    )


def _place(view: NDArray[Any]) -> Place:
    anchor = anchor_of(view)
    offset = address_of(view) - address_of(anchor)
    return Place(offset, view.shape, view.strides, anchor.shape, anchor.strides)


def revived(state: Described) -> Entry:
    """The entry in a copy, with all the homes that its variable may have, without slots."""
    homes = [Home(private_view(array_of(thing)), layout) for thing, layout in state.objects]
    for anchor, place, layout in state.places:
        view = _view_at(place, anchor, state.dtype)
        if view is not None:
            homes.append(Home(view, layout))
    if not homes:
        view = _nowhere(state.shape, dtype_named(state.dtype))
        homes.append(Home(view, state.layout))
    entry = entry_of(homes[0].view)
    entry.given = ()  # but for a view of our own
    for thing, _ in state.objects:
        entry.saw(thing)
    entry.name, entry.stem, entry.origin = state.name, state.stem, state.origin
    entry.homes = tuple(homes)
    return entry


def _nowhere(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array without elements of its own, in place of a variable that nobody holds."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def is_nowhere(view: NDArray[Any]) -> bool:
    """Whether an array stands for a variable that nobody holds."""
    return not view.flags.writeable and not any(view.strides)


def in_order_of(home: Home, flat: NDArray[Any]) -> NDArray[Any]:
    """Elements in canonical order of what a home is a copy of, in that of the home."""
    shaped = home.layout.logical(flat, home.view.shape)
    return layout_of(home.view).canonical(shaped).reshape(-1)


def in_first_order(home: Home, flat: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `in_order_of`."""
    shaped = layout_of(home.view).logical(flat, home.view.shape)
    return home.layout.canonical(shaped).reshape(-1)


def _view_at(place: Place, anchor: NDArray[Any], dtype: str) -> NDArray[Any] | None:
    """The view at the same place of a copied array, or None where there can be none."""
    if (place.offset, *place[1:3]) == (0, *place[3:]) and dtype == anchor.dtype.name:
        return private_view(anchor)  # it is the array itself
    memory = layout_of(anchor).canonical(anchor)
    offset, strides = place.offset, place.strides
    if anchor.strides != place.steps:  # a copy is dense, and pickles have one of two orders
        moved = _moved(place, anchor.strides)
        if moved is None:
            return None
        offset, strides = moved
    if not memory.flags.c_contiguous:
        return None
    whole = memory.reshape(-1).view(np.uint8)
    start = offset + address_of(anchor) - address_of(memory)
    return np.ndarray(place.shape, dtype_named(dtype), whole, start, strides)


def _moved(place: Place, steps: tuple[int, ...]) -> tuple[int, tuple[int, ...]] | None:
    """Offset and strides of the view where the array has other strides, if it is a view there."""
    axes = [k for k, length in enumerate(place.lengths) if length > 1]
    axes.sort(key=lambda k: -place.steps[k])
    if any(place.steps[k] <= 0 for k in axes):
        return None

    def indices(distance: int) -> list[int] | None:
        """A distance as one along each axis."""
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
            return None  # it goes from one row to the next
    strides = [sum(n * step for n, step in zip(way, steps, strict=True)) for way in ways]
    return sum(n * step for n, step in zip(first, steps, strict=True)), tuple(strides)
