"""Entries: what an optimizer knows of one variable."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision, precision_of
from rmsjit.arrays.layout import Key, Layout, is_dense, layout_of, memory_key, span_of
from rmsjit.arrays.owners import ground_of, private_view
from rmsjit.state.clock import Clock
from rmsjit.variables import Variable, array_of

_MOST_GIVEN = 8  # objects over one memory that are remembered


class Home(NamedTuple):
    """Where the variable of a copied entry may be: one of the arrays that were copied along.

    Attributes
    ----------
    view : ndarray
    layout : Layout
        That of the array of which it is a copy, which may lie otherwise.
    """

    view: NDArray[Any]
    layout: Layout


class Entry:
    """A variable that the optimizer knows, and its slots.

    Attributes
    ----------
    key : tuple
        The memory (`rmsjit.arrays.layout.memory_key`).
    owner : ndarray
        A view of our own of the array that was given first; it keeps the memory alive.
    given : tuple of weakref
        The objects that were given for it and may still be there.
    ground : Ground
        Where its memory lay when the optimizer met it.
    layout : Layout
        How the owner's axes lie in memory.
    canonical : ndarray
        The canonical view of the owner.
    span : tuple of int
        Its first address and the one after its last byte.
    precision : Precision
    slots : dict of str to ndarray
        The slots that the rule uses, each one-dimensional in canonical order.
    clock : Clock or None
        Which rows have steps to catch up with (``sparse="exact"``).
    table : ndarray
        The view of the variable whose rows the clock counts.
    name : str
        What slots are named after, and no other entry has.
    met_again : bool
        Whether a second step has named it.
    origin : tuple or None
        In a copy, the key that it had in the original.
    homes : tuple of Home
        In a copy, until a step names it: where its variable may be.
    """

    __slots__ = (
        "_scratch",
        "canonical",
        "clock",
        "given",
        "ground",
        "homes",
        "key",
        "layout",
        "met_again",
        "name",
        "origin",
        "owner",
        "precision",
        "slots",
        "span",
        "stem",
        "table",
    )

    def __init__(self, variable: Any, precision: Precision) -> None:
        array = array_of(variable)
        self.owner = private_view(array)
        self.layout = layout_of(array)
        self.canonical = self.layout.canonical(self.owner)
        self.key = memory_key(self.canonical)
        self.ground = ground_of(self.owner)
        self.span = span_of(self.canonical)
        self.precision = precision
        self.slots: dict[str, NDArray[Any]] = {}
        self.clock: Clock | None = None
        self.table = self.owner
        self.stem = variable.name.partition(":")[0] if isinstance(variable, Variable) else ""
        self.name = ""
        self.given: tuple[weakref.ref[Any], ...] = ()
        self.met_again = False
        self.origin: Key | None = None
        self.homes: tuple[Home, ...] = ()
        self._scratch: list[NDArray[np.int32]] = []
        self.saw(variable)

    def saw(self, variable: Any) -> None:
        """Remember an object that was given for it, without keeping it alive.

        An array that has its own memory is found through any view of it; NumPy would not resize
        it in place if there was a weak reference.
        """
        seen = self.given
        for thing in {id(thing): thing for thing in (variable, array_of(variable))}.values():
            if isinstance(thing, np.ndarray) and thing.base is None:
                continue
            reference = weakref.ref(thing)
            if not any(reference is other for other in seen):
                alive = [other for other in seen if other() is not None]
                seen = (*alive[1 - _MOST_GIVEN :], reference)
        self.given = seen

    def objects(self) -> list[Any]:
        """The objects that were given for it and are still there, as they were given."""
        alive = [thing for thing in (reference() for reference in self.given) if thing is not None]
        return [thing for thing in alive if self.is_at(array_of(thing))]

    def is_at(self, array: NDArray[Any]) -> bool:
        """Whether an array is over the memory of this entry."""
        return memory_key(layout_of(array).canonical(array)) == self.key

    def follow(self, other: Entry) -> None:
        """Take the place of another entry, whose variable is this one's from now on."""
        self.name, self.stem, self.met_again = other.name, other.stem, other.met_again
        self.origin = other.origin

    def take_scratch(self, rows: int) -> NDArray[np.int32]:
        """Zeros, one for each of `rows`; give them back as zeros.

        Kept from step to step, so that no step costs as much as the table has rows; several
        threads that step at once have one each.
        """
        try:
            scratch = self._scratch.pop()
        except IndexError:
            return np.zeros(rows, np.int32)
        return scratch if len(scratch) == rows else np.zeros(rows, np.int32)

    def give_scratch(self, scratch: NDArray[np.int32]) -> None:
        """Keep scratch for the next step."""
        self._scratch.append(scratch)

    @property
    def dense(self) -> bool:
        """Whether kernels run on the memory itself."""
        return is_dense(self.canonical)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.owner.shape

    @property
    def is_gone(self) -> bool:
        """Whether the memory was closed, resized or mapped anew, so that it must not be touched."""
        return ground_of(self.owner) != self.ground

    @property
    def own_views(self) -> list[NDArray[Any]]:
        """All arrays of our own over the memory."""
        return [self.owner, self.canonical, self.table, *(home.view for home in self.homes)]


class Member(NamedTuple):
    """A variable's memory and the slots that a step uses on it."""

    entry: Entry
    slots: dict[str, NDArray[Any]]


class SlotMemory:
    """A slot's memory, as it is compared with others (`rmsjit.arrays.overlap.Memory`)."""

    __slots__ = ("canonical", "key", "name", "shape", "span")

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self.name = name
        self.canonical = layout_of(array).canonical(array)
        self.span = span_of(self.canonical)
        self.shape = array.shape
        self.key = (object(),)  # no two slots are the same, wherever they are


def entry_of(variable: Any) -> Entry:
    """A new entry for a variable that is known to be good."""
    precision = precision_of(array_of(variable).dtype)
    assert precision is not None
    return Entry(variable, precision)
