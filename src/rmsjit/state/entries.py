"""Entries: what an optimizer knows about one variable."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.blocks import record_length, reordered
from rmsjit.arrays.dtypes import Precision, precision_of
from rmsjit.arrays.layout import (
    Key,
    Layout,
    array_key,
    canonical_view,
    is_dense,
    layout_of,
    memory_key,
    span_of,
)
from rmsjit.arrays.owners import Ground, ground_of, is_still, private_view
from rmsjit.state.clock import Clock
from rmsjit.variables import Variable, array_of

_MOST_GIVEN = 8  # objects remembered per variable


def key_of(variable: Any) -> Key:
    """The key of a variable's memory."""
    return array_key(array_of(variable))


class Home(NamedTuple):
    """An array that was copied along with an entry and may be its variable."""

    view: NDArray[Any]  # our view of the copy
    layout: Layout  # of the original array, which may differ from that of the copy
    is_linked: bool  # whether the user's copy of the variable may be the same memory

    @property
    def key(self) -> Key:
        return array_key(self.view)

    def from_original(self, flat: NDArray[Any]) -> NDArray[Any]:
        """Rearrange elements from the canonical order of the original to that of the copy."""
        return reordered(flat, self.view.shape, self.layout, layout_of(self.view))

    def to_original(self, flat: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `from_original`."""
        return reordered(flat, self.view.shape, layout_of(self.view), self.layout)


class Entry:
    """A variable that the optimizer knows, and its slots.

    Attributes
    ----------
    key : tuple
        Identifies the memory (`rmsjit.arrays.layout.memory_key`).
    owner : ndarray
        Our view of the array that was passed first; it keeps the memory alive.
    given : tuple of weakref
        The objects that were passed as this variable, some of which may be dead.
    ground : Ground
        The underlying memory when the optimizer first saw the variable.
    layout : Layout
        The layout of the owner.
    canonical : ndarray
        The canonical view of the owner.
    span : tuple of int
        First address, and the address after the last byte.
    precision : Precision
    record_length : int
        The elements of a record of a slot in 8 bits (`rmsjit.arrays.blocks`); 0 if the variable is
        too small for these.
    slots : dict of str to ndarray
        The slots that the rule uses, each one-dimensional in canonical order.
    clock : Clock or None
        Counts the steps that rows have missed (``sparse="exact"``).
    table : ndarray
        The view of the variable whose rows the clock counts.
    name : str
        A unique name, from which the names of slots are made.
    group : rmsjit.state.grouping.Group or None
        The last group that it was given to.
    met_again : bool
        Whether more than one step has used it.
    origin : tuple or None
        In a copy, the key of the original.
    homes : tuple of Home
        In a copy, the arrays that may be its variable, until a step uses it.
    number : int or None
        The number that processes have agreed on; see `rmsjit.state.numbering`.
    first : int
        The number of its first element; above 0 for a part of a divided variable.
    """

    __slots__ = (
        "_scratch",
        "canonical",
        "clock",
        "first",
        "given",
        "ground",
        "group",
        "homes",
        "key",
        "layout",
        "met_again",
        "name",
        "number",
        "origin",
        "owner",
        "precision",
        "record_length",
        "slots",
        "span",
        "stem",
        "table",
    )

    def __init__(self, variable: Any, precision: Precision) -> None:
        array = array_of(variable)
        self.owner: NDArray[Any] = private_view(array)
        self.layout: Layout = layout_of(array)
        self.canonical: NDArray[Any] = self.layout.canonical(self.owner)
        self.key: Key = memory_key(self.canonical)
        self.ground: Ground = ground_of(self.owner)
        self.span: tuple[int, int] = span_of(self.canonical)
        self.precision: Precision = precision
        self.record_length: int = record_length(self.owner.shape, self.layout)
        self.slots: dict[str, NDArray[Any]] = {}
        self.clock: Clock | None = None
        self.table: NDArray[Any] = self.owner
        self.stem: str = stem_of(variable)
        self.name: str = ""
        self.given: tuple[weakref.ref[Any], ...] = ()
        self.group: Any = None
        self.met_again: bool = False
        self.origin: Key | None = None
        self.homes: tuple[Home, ...] = ()
        self.number: int | None = None
        self.first: int = 0
        self._scratch: list[NDArray[np.int32]] = []
        self.saw(variable)

    def saw(self, variable: Any) -> None:
        """Remember an object that was passed as this variable, without keeping it alive.

        Not an array that owns its memory: any view leads to it, and NumPy does not resize an array
        in place that has weak references.
        """
        is_array = isinstance(variable, np.ndarray)
        if is_array and variable.base is None:
            return
        reference = weakref.ref(variable)
        for other in self.given:  # `in` would compare what they refer to
            if other is reference:
                break
        else:
            alive = [other for other in self.given if other() is not None]
            self.given = (*alive[1 - _MOST_GIVEN :], reference)
        if not is_array:
            self.saw(array_of(variable))

    def remembered(self) -> list[Any]:
        """The remembered objects that are alive."""
        return [thing for reference in self.given if (thing := reference()) is not None]

    def objects(self) -> list[Any]:
        """The remembered objects that are alive and still refer to this memory."""
        return [thing for thing in self.remembered() if key_of(thing) == self.key]

    def follow(self, other: Entry) -> None:
        """Become the successor of another entry."""
        self.name, self.stem, self.met_again = other.name, other.stem, other.met_again
        self.origin, self.group = other.origin, other.group
        self.number, self.first = other.number, other.first
        self.record_length = other.record_length

    def take_scratch(self, rows: int) -> NDArray[np.int32]:
        """An array with a zero for each row, to be given back with all zeros.

        It is kept between steps, so that a step need not clear memory for all rows of the table.
        Threads that step at the same time get different arrays.
        """
        try:
            scratch = self._scratch.pop()
        except IndexError:
            return np.zeros(rows, np.int32)
        return scratch if len(scratch) == rows else np.zeros(rows, np.int32)

    def give_scratch(self, scratch: NDArray[np.int32]) -> None:
        """Keep an array from `take_scratch` for the next step."""
        self._scratch.append(scratch)

    @property
    def dense(self) -> bool:
        """Whether kernels run on the memory in place."""
        return is_dense(self.canonical)

    @property
    def is_small(self) -> bool:
        """Whether its slots are too small to be kept in 8 bits."""
        return not self.record_length

    @property
    def shape(self) -> tuple[int, ...]:
        return self.owner.shape

    @property
    def is_gone(self) -> bool:
        """Whether the memory was closed, resized or remapped, and must not be accessed."""
        return not is_still(self.ground, self.owner)

    @property
    def is_nowhere(self) -> bool:
        """Whether this is a copy whose variable nobody held; its owner is a placeholder."""
        return not self.owner.flags.writeable and not any(self.owner.strides)

    @property
    def own_views(self) -> list[NDArray[Any]]:
        """All of our own arrays over the memory."""
        return [self.owner, self.canonical, self.table, *(home.view for home in self.homes)]


class Member(NamedTuple):
    """A variable and the slots that a step updates with it."""

    entry: Entry
    slots: dict[str, NDArray[Any]]


class SlotMemory:
    """A slot, to be compared with other memory (`rmsjit.arrays.overlap.Memory`)."""

    __slots__ = ("canonical", "key", "name", "shape", "span")

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self.name: str = name
        self.canonical: NDArray[Any] = canonical_view(array)
        self.span: tuple[int, int] = span_of(self.canonical)
        self.shape: tuple[int, ...] = array.shape
        self.key: Key = (object(),)  # two slots are never the same, even at one address


def stem_of(variable: Any) -> str:
    """The name of a `Variable` without its number of output, as in "kernel:0"; else empty."""
    return variable.name.partition(":")[0] if isinstance(variable, Variable) else ""


def entry_of(variable: Any) -> Entry:
    """A new entry for a variable that has been checked."""
    precision = precision_of(array_of(variable).dtype)
    assert precision is not None
    return Entry(variable, precision)
