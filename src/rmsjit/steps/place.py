"""The place of a step: the memory of its variables and of their slots.

A plan says how variables of some shapes and dtypes are updated; a place says where they are.  One
plan can serve for several places.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, address_of, is_dense, span_of
from rmsjit.arrays.overlap import merged_spans, span_that_meets
from rmsjit.kernels.headers import NOT_AS_EXPECTED
from rmsjit.state.entries import Entry, Member
from rmsjit.state.slots import SlotStore
from rmsjit.steps.headers import HeaderReader, rows_of
from rmsjit.steps.pairs import Pairs, naming
from rmsjit.steps.plans import identity_of, layouts_of
from rmsjit.variables import Variable


class Draft(NamedTuple):
    """What the first step at a place enters into the store.

    Attributes
    ----------
    entries : list of Entry
    slots : list of (Entry, str, ndarray)
    known : int
        How many variables the store knew when these were found not to overlap them.
    """

    entries: list[Entry]
    slots: list[tuple[Entry, str, NDArray[Any]]]
    known: int


class Place:
    """The memory of a list of variables.

    Parameters
    ----------
    variables : sequence
        As they were given.
    kinds : sequence of type
        The types of their gradients.
    members : sequence of Member or None
        Their memory and slots; None where there is no gradient.
    names : sequence of str
        Of the slots, in the order of the form's `arithmetic`.
    frozen : collection of int
        The positions of variables that need no gradient.

    Attributes
    ----------
    variables : tuple
        As they were given; kept alive, so their ids are not reused.
    entries : tuple of Entry or None
        What the store knows, or will know, of the variables; None where there is no gradient.
    addresses : int64 array, shape (pairs, 1 + slots)
        Of each variable's memory and slots, as kernels read them; zeros without a gradient, and
        for a slot that the variable does not have.
    written : int64 array, shape (2, spans)
        The memory that a step writes (`rmsjit.arrays.overlap.merged_spans`).
    reader : HeaderReader
    dropped : list of str
        Names of the variables that lack a gradient.
    constrained : dict of int to Variable
        The variables with a constraint, by position.
    draft : Draft or None
        What is not in the store yet.
    """

    __slots__ = (
        "addresses",
        "constrained",
        "draft",
        "dropped",
        "entries",
        "frozen",
        "kinds",
        "reader",
        "variables",
        "written",
    )

    def __init__(
        self,
        variables: Sequence[Any],
        kinds: Sequence[type],
        members: Sequence[Member | None],
        names: Sequence[str],
        frozen: Collection[int],
    ) -> None:
        self.kinds, self.frozen = tuple(kinds), frozen
        self.entries = tuple([member and member.entry for member in members])
        nowhere = Footprint(np.zeros((1, 1 + len(names)), np.int64), merged_spans(()))
        prints = [Footprint.of(member, names) if member else nowhere for member in members]
        self.addresses, self.written = nowhere.addresses[:0], nowhere.written
        if prints:  # a process may have no part of any variable
            self.addresses, self.written = _joined(prints)
        own = [_own_memory(*pair) for pair in zip(members, turns_of(members), strict=True)]
        self._take(variables, HeaderReader(variables, kinds, own, self.written))

    def _take(self, variables: Sequence[Any], reader: HeaderReader) -> None:
        self.variables, self.reader = tuple(variables), reader
        self.dropped = _dropped(variables, self.entries, self.frozen)
        self.constrained = _constrained(variables, self.entries)
        self.draft: Draft | None = None

    def rebound(self, variables: Sequence[Any]) -> Place:
        """This place for other views, or other `Variable` objects, of the same memory."""
        place = object.__new__(Place)
        place.kinds, place.entries, place.frozen = self.kinds, self.entries, self.frozen
        place.addresses, place.written = self.addresses, self.written
        place._take(variables, self.reader.rebound(variables))
        return place

    def moved(
        self, arrays: Sequence[NDArray[Any]], members: Sequence[Member], names: Sequence[str]
    ) -> Place:
        """A place for other plain arrays of the same shapes and dtypes, all with a gradient."""
        prints = [Footprint.of(member, names) for member in members]
        place = object.__new__(Place)
        place._resemble(self, *_joined(prints))
        place.variables = tuple(arrays)
        place.entries = tuple([member.entry for member in members])
        place.reader.move(arrays, rows_of(arrays))
        return place

    def _resemble(
        self, place: Place, addresses: NDArray[np.int64], written: NDArray[np.int64]
    ) -> None:
        """Copy what all places of plain arrays share; every array has a gradient."""
        self.kinds, self.frozen = place.kinds, place.frozen
        self.addresses, self.written = addresses, written
        self.reader = place.reader.roaming(written)
        self.dropped, self.constrained, self.draft = [], {}, None

    def settled(self) -> Place:
        """The same place, where it stays; see `rmsjit.steps.roaming.RoamingPlace`."""
        return self

    def follow(self, pairs: Pairs, store: SlotStore) -> int:
        """NOT_AS_EXPECTED, since it stays; see `rmsjit.steps.roaming.RoamingPlace`."""
        return NOT_AS_EXPECTED

    @property
    def owners(self) -> Sequence[NDArray[Any]]:
        """The arrays of the variables."""
        return self.reader.owners

    @property
    def has_gone(self) -> bool:
        """Whether the memory of a variable was closed, resized or remapped."""
        return any(entry is not None and entry.is_gone for entry in self.entries)

    @property
    def identity(self) -> Any:
        """The key of a list of these very objects and types of gradients."""
        return identity_of(self.variables, self.kinds)

    @property
    def layouts(self) -> Any:
        """The key of a list of any views of the same memory."""
        return layouts_of(self.variables, self.kinds)

    def name(self, position: int) -> str:
        """How messages name a variable."""
        return naming(self.variables[position], position)

    def is_readable(self, gradient: NDArray[Any], position: int, dtype: np.dtype[Any]) -> bool:
        """Whether kernels can read a gradient in place; see `rmsjit.kernels.headers`."""
        if gradient.dtype != dtype or not is_dense(gradient):
            return False
        span = span_that_meets(self.written, gradient)
        own = self.reader.own_memory(position)
        start = address_of(gradient)
        return span is None or (start == own and span == (start, start + gradient.nbytes))

    def was_met_again(self) -> None:
        """Note that a second step uses these variables, and the objects it was given."""
        for variable, entry in zip(self.variables, self.entries, strict=True):
            if entry is not None:
                entry.met_again = True
                entry.saw(variable)


class Footprint(NamedTuple):
    """The memory that the update of one variable touches.

    Attributes
    ----------
    addresses : int64 array, shape (1, 1 + slots)
        Of the variable, and of its slots in the order of the form's `arithmetic`; 0 for a slot
        that it does not have.
    written : int64 array, shape (2, spans)
        See `rmsjit.arrays.overlap.merged_spans`.
    """

    addresses: NDArray[np.int64]
    written: NDArray[np.int64]

    @classmethod
    def of(cls, member: Member, names: Sequence[str]) -> Footprint:
        """The footprint of a variable with the slots of these names."""
        start, held = address_of(member.entry.canonical), member.slots
        addresses = [start, *(address_of(held[n]) if n in held else 0 for n in names)]
        slots = (span_of(held[name]) for name in names if name in held)
        written = merged_spans([member.entry.span, *slots])
        return cls(np.array([addresses], np.int64), written)


def _joined(prints: Sequence[Footprint]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The addresses of several variables, and what their update writes."""
    if len(prints) == 1:
        return prints[0].addresses, prints[0].written
    addresses = np.concatenate([p.addresses for p in prints])
    return addresses, merged_spans(chain.from_iterable(p.written.T.tolist() for p in prints))


def turns_of(members: Sequence[Member | None]) -> list[int]:
    """For each pair, how many earlier pairs have the same variable and are updated before it."""
    seen: dict[Key, int] = {}
    turns = []
    for member in members:
        turn = seen.get(member.entry.key, 0) if member else 0
        if member:
            seen[member.entry.key] = turn + 1
        turns.append(turn)
    return turns


def _own_memory(member: Member | None, turn: int) -> int | None:
    """The address that a gradient may have although the step writes there: its own variable's.

    0 after the first turn, when the variable has changed already; None without a gradient.
    """
    if member is None:
        return None
    return 0 if turn else address_of(member.entry.canonical)


def _dropped(
    variables: Sequence[Any], entries: Sequence[Entry | None], frozen: Collection[int]
) -> list[str]:
    """The names of variables that lack a gradient."""
    missing = (k for k, entry in enumerate(entries) if entry is None and k not in frozen)
    return [naming(variables[k], k) for k in missing]


def _constrained(variables: Sequence[Any], entries: Sequence[Entry | None]) -> dict[int, Variable]:
    return {
        k: variable
        for k, (variable, entry) in enumerate(zip(variables, entries, strict=True))
        if entry is not None and isinstance(variable, Variable) and variable.constraint
    }
