"""The optimizer's state: for each variable's memory, its slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rmsjit.arrays.dtypes import Precision, dtype_named, precision_of
from rmsjit.arrays.layout import Key, address_of, is_dense, layout_of, memory_key, span_of
from rmsjit.arrays.placement import allocate_aligned
from rmsjit.rule.form import Form, Slot
from rmsjit.runtime.forks import RenewedLock
from rmsjit.state.clock import Clock
from rmsjit.variables import Variable, array_of

_NO_VARIABLE = "weight"  # in place of the memory of a variable

SlotAllocator = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]


class Entry:
    """A variable that the optimizer knows, and its slots.

    Attributes
    ----------
    key : tuple
        The memory (`rmsjit.arrays.layout.memory_key`).
    owner : ndarray or Variable
        The object that was given first; it keeps the memory alive.
    layout : Layout
        How the owner's axes lie in memory.
    canonical : ndarray
        The canonical view of the owner.
    precision : Precision
    slots : dict of str to ndarray
        The slots that the rule uses, each one-dimensional in canonical order.
    clock : Clock or None
        Which rows have steps to catch up with (``sparse="exact"``).
    table : ndarray or Variable
        The view of the variable whose rows the clock counts.
    """

    __slots__ = (
        "_scratch",
        "canonical",
        "clock",
        "key",
        "layout",
        "name",
        "owner",
        "precision",
        "slots",
        "table",
    )

    def __init__(self, owner: Any, precision: Precision) -> None:
        array = array_of(owner)
        self.owner = owner
        self.layout = layout_of(array)
        self.canonical = self.layout.canonical(array)
        self.key = memory_key(self.canonical)
        self.precision = precision
        self.slots: dict[str, NDArray[Any]] = {}
        self.clock: Clock | None = None
        self.table = owner
        self.name = ""
        self._scratch: list[NDArray[np.int32]] = []

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
    def span(self) -> tuple[int, int]:
        return span_of(self.canonical)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(array_of(self.owner).shape)


class Member(NamedTuple):
    """A variable's memory and the slots that a step uses on it."""

    entry: Entry
    slots: dict[str, NDArray[Any]]


def entry_of(variable: Any) -> Entry:
    """A new entry for a variable that is known to be good."""
    precision = precision_of(array_of(variable).dtype)
    assert precision is not None
    return Entry(variable, precision)


class SlotStore:
    """Every variable that an optimizer has updated, and all that it has created for them.

    Parameters
    ----------
    name : str
        Prefix of the names of all slots.
    form : Form
        Which slots each variable gets.
    allocator : callable, optional
        ``allocator(shape, dtype)`` gives the memory of a slot.

    Attributes
    ----------
    entries : dict of Key to Entry
    created : dict of (Key, str) to Variable
        All slots and weights, in the order of their creation.
    lock : RenewedLock
        Held while more than one thing changes.
    epoch : int64 array, shape (1,)
        How often what is known of a variable has changed; compiled code reads it.
    """

    def __init__(self, name: str, form: Form, allocator: SlotAllocator | None = None) -> None:
        self.name = name
        self.allocator = allocator
        self.epoch = np.zeros(1, np.int64)
        self.lock = RenewedLock()
        self.entries: dict[Key, Entry] = {}
        self.created: dict[tuple[Key, str], Variable] = {}  # in order of creation
        self._form = form
        self._stems: dict[str, int] = {}  # how many variables came with each name

    @property
    def form(self) -> Form:
        """Which slots each variable gets."""
        return self._form

    @form.setter
    def form(self, form: Form) -> None:
        self._form = form
        self.changed()

    def changed(self) -> None:
        """Say that what is known of a variable has changed, and plans of steps must be made anew.

        Further variables alone change nothing for those that are known.
        """
        self.epoch[0] += 1

    def find(self, variable: Any) -> Entry | None:
        """The entry of a variable, or None where the optimizer has not seen it."""
        array = array_of(variable)
        if not isinstance(array, np.ndarray):
            return None
        return self.entries.get(memory_key(layout_of(array).canonical(array)))

    def slot_of(self, variable: Any, slot: str) -> Variable | None:
        """A slot with the axes of `variable`, which may be any view of the variable's memory."""
        entry = self.find(variable)
        if entry is None or slot not in entry.slots:
            return None if entry is None else self.created.get((entry.key, slot))
        array = array_of(variable)
        shaped = layout_of(array).logical(entry.slots[slot], array.shape)
        return self._wrapped(entry, slot, shaped)

    def add_slot(self, variable: Any, slot: str, value: NDArray[Any]) -> Variable:
        """A slot that the rule does not know, for a variable that is known to be good."""
        entry = self.find(variable)
        if entry is None:
            entry = entry_of(variable)
            self.enter([entry], [])
        self.created[entry.key, slot] = self._wrapped(entry, slot, value)
        return self.created[entry.key, slot]

    def add_weight(self, name: str, value: NDArray[Any], trainable: bool) -> Variable:
        """A weight that belongs to no variable."""
        weight = Variable(value, f"{self.name}/{name}", trainable=trainable)
        self.created[(_NO_VARIABLE, len(self.created)), name] = weight
        return weight

    def added_slot_names(self) -> list[str]:
        """The slots that the rule does not know, in order of creation."""
        return [
            slot
            for key, slot in self.created
            if key[0] != _NO_VARIABLE and slot not in self.form.slot_names
        ]

    def missing(
        self, entries: Iterable[Entry], epsilon: float = 0.0
    ) -> list[tuple[Entry, str, NDArray[Any]]]:
        """The slots that the form asks for and these entries lack, allocated but not entered."""
        entries = list({entry.key: entry for entry in entries}.values())
        return [
            (entry, slot.name, self._start(entry, slot, epsilon))
            for entry, slot in self._creation_order(entries)
            if slot.name not in entry.slots
        ]

    def enter(self, entries: Iterable[Entry], fresh: Iterable[tuple[Entry, str, Any]]) -> bool:
        """Make new entries and slots known.

        Returns
        -------
        bool
            False if one of the entries has been entered by somebody else meanwhile, such as the
            handler of a signal: then the others are known, and theirs holds.
        """
        wrapped = []
        for entry in entries:
            if entry.key not in self.entries and not entry.name:
                entry.name = self._name_for(entry.owner)
        known = True
        for entry, slot, value in fresh:
            entry.slots = {**entry.slots, slot: value}
            shaped = entry.layout.logical(value, entry.shape)
            wrapped.append(((entry.key, slot), self._wrapped(entry, slot, shaped)))
        for entry in entries:
            known = known and self.entries.setdefault(entry.key, entry) is entry
        if known:
            self.created.update(wrapped)
        return known

    def remove(self, key: Key) -> dict[str, NDArray[Any]]:
        """Forget a variable; its slots, none if it was not known."""
        entry = self.entries.pop(key, None)
        for known in [known for known in self.created if known[0] == key]:
            del self.created[known]
        self.changed()
        return {} if entry is None else entry.slots

    def __getstate__(self) -> dict[str, Any]:
        """Slots as their variables are shaped, since a copy may lie otherwise in memory."""
        numbers = {key: number for number, key in enumerate(self.entries)}
        return {
            "name": self.name,
            "form": self.form,
            "allocator": self.allocator,
            "owners": [entry.owner for entry in self.entries.values()],
            "created": [
                (numbers.get(key), slot, variable) for (key, slot), variable in self.created.items()
            ],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["name"], state["form"], state["allocator"])  # type: ignore[misc]
        entries = [entry_of(owner) for owner in state["owners"]]
        self.enter(entries, [])
        for number, slot, variable in state["created"]:
            if number is None:
                self.created[(_NO_VARIABLE, len(self.created)), slot] = variable
            elif slot in self.form.slot_names:
                self.enter([], [(entries[number], slot, self._restored(entries[number], variable))])
            else:
                self.created[entries[number].key, slot] = variable

    def _restored(self, entry: Entry, variable: Variable) -> NDArray[Any]:
        canonical = entry.layout.canonical(variable.array)
        memory = self.allocate((canonical.size,), canonical.dtype, entry.canonical)
        memory[...] = canonical.reshape(-1)
        return memory

    def _creation_order(self, entries: list[Entry]) -> list[tuple[Entry, Slot]]:
        if self.form.creation == "by_variable":
            return [(entry, slot) for entry in entries for slot in self.form.slots]
        return [(entry, slot) for slot in self.form.slots for entry in entries]

    def _start(self, entry: Entry, slot: Slot, epsilon: float) -> NDArray[Any]:
        dtype = entry.canonical.dtype if slot.dtype is None else dtype_named(slot.dtype)
        value = self.allocate((entry.canonical.size,), dtype, entry.canonical)
        own = self.created.get((entry.key, slot.name))  # added before the rule used it
        if own is not None and own.shape == entry.shape:
            value[...] = entry.layout.canonical(own.array).reshape(-1)
        else:
            value[...] = slot.first_value(epsilon)
        return value

    def allocate(
        self, shape: tuple[int, ...], dtype: DTypeLike, beside: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Memory for a slot, its first element as far from a cache line as that of `beside`."""
        dtype = np.dtype(dtype)
        if self.allocator is not None:
            return _checked_allocation(self.allocator(shape, dtype), shape, dtype)
        start = 0 if beside is None else address_of(beside)
        return allocate_aligned(shape, dtype, start)

    def _name_for(self, owner: Any) -> str:
        stem = owner.name.partition(":")[0] if isinstance(owner, Variable) else "Variable"
        number = self._stems.get(stem, 0)
        self._stems[stem] = number + 1
        return f"{stem}_{number}" if number else stem

    def _wrapped(self, entry: Entry, slot: str, value: NDArray[Any]) -> Variable:
        return Variable(value, f"{self.name}/{entry.name}/{slot}", trainable=False)


def _checked_allocation(array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    fits = (
        isinstance(array, np.ndarray)
        and array.shape == shape
        and array.dtype == dtype
        and array.flags.c_contiguous
        and array.flags.writeable
        and array.flags.aligned
    )
    if not fits:
        raise ValueError(
            f"slot_allocator must return a writeable, C-contiguous array of shape {shape} and "
            f"dtype {dtype}, got {_described(array)}"
        )
    return array  # type: ignore[no-any-return]


def _described(array: Any) -> str:
    if isinstance(array, np.ndarray):
        return f"shape {array.shape}, dtype {array.dtype}"
    return repr(type(array).__name__)
