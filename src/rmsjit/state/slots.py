"""The store of an optimizer's variables and their slots."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, array_key, layout_of
from rmsjit.arrays.overlap import refuse_overlap
from rmsjit.arrays.owners import ground_of, private_view
from rmsjit.rule.form import Form
from rmsjit.rule.slot import Slot
from rmsjit.runtime.forks import RenewedLock
from rmsjit.runtime.uninterrupted import completed, run
from rmsjit.runtime.warning import warn
from rmsjit.state.divided import Divided
from rmsjit.state.entries import Entry, SlotMemory, entry_of, key_of, stem_of
from rmsjit.state.grouping import Grouping
from rmsjit.state.index import NO_VARIABLE, Index
from rmsjit.state.making import refuse_shared
from rmsjit.state.meeting import meet, settle
from rmsjit.state.memories import SlotAllocator, SlotMemories
from rmsjit.state.slot_variables import slot_of_owner, slot_seen_as, slot_variable
from rmsjit.state.sweeps import Sweeps
from rmsjit.variables import Variable, array_of


class SlotStore:
    """The variables that an optimizer has updated, and the slots and weights that it created.

    Parameters
    ----------
    name : str
        Prefix of the names of all slots.
    form : Form
        Determines the slots of each variable.
    allocator : callable, optional
        See `SlotMemories`.

    Attributes
    ----------
    memories : SlotMemories
        Gives slots memory.
    entries : dict of Key to Entry
        In the order in which the optimizer first saw the variables.
    created : dict of (Key, str) to Variable
        All slots and weights, in the order of their creation.
    sweeps : Sweeps
        When to forget variables that nobody holds any more, and how.
    epoch : int64 array, shape (1,)
        Counts the changes to known variables; compiled code reads it.
    lock : RenewedLock
        Held while entries are looked up and added.
    skipped_steps : int
        How many steps were skipped for a gradient that was not finite.
    grouping : Grouping
        Which variables have settings of their own.
    divided : dict of Key to Divided
        Variables with only a part, or nothing, in `entries`, by their memory.
    stems : dict of str to int
        How many variables have a name that is made of each stem.
    """

    def __init__(self, name: str, form: Form, allocator: SlotAllocator | None = None) -> None:
        self.name = name
        self.memories: SlotMemories = SlotMemories(allocator)
        self.sweeps: Sweeps = Sweeps()
        self.lock: RenewedLock = RenewedLock()
        self.epoch: NDArray[np.int64] = np.zeros(1, np.int64)
        self.entries: dict[Key, Entry] = {}
        self.created: dict[tuple[Key, str], Variable] = {}
        self.skipped_steps: int = 0
        self.grouping: Grouping = Grouping()
        self.divided: dict[Key, Divided] = {}
        self._form = form
        self.stems: dict[str, int] = {}
        self._index: Index | None = None
        self.unmet: dict[Key, Entry] = {}  # in a copy: unused entries, by the key of each home
        self.unsettled: bool = False
        self.apart: bool = False  # whether the copy was made without any of its variables
        self.links_arrays: bool = True  # whether copying preserved the sharing of arrays
        self._told: set[str] = set()

    @property
    def form(self) -> Form:
        """Determines the slots of each variable."""
        return self._form

    @form.setter
    def form(self, form: Form) -> None:
        for group in self.grouping.groups:
            group.form = form
        self._change(_form=form)

    def changed(self) -> None:
        """Invalidate all plans of steps, since something has changed for a known variable.

        Adding variables does not change anything for known ones.
        """
        self._change()

    def tell(self, what: str, message: str) -> None:
        """Warn once."""
        if what not in self._told:
            self._told.add(what)
            warn(message)

    # --- finding ------------------------------------------------------------------------------

    def find(self, variable: Any) -> Entry | None:
        """The entry of a variable, or None if the optimizer does not know it."""
        array = array_of(variable)
        if not isinstance(array, np.ndarray):
            return None
        key = array_key(array)
        if self.unmet:
            meet(self, key, array)
        entry = self.entries.get(key)
        return None if entry is None or entry.is_gone else entry

    def row_of(self, variable: Any) -> int:
        """The row of the group of a variable, 0 if it is in none."""
        return self.grouping.row_of(self.find(variable), stem_of(variable))

    def settle(self) -> None:
        """In a copy, find out which variables somebody holds, as at the first look for one."""
        if self.unmet:
            settle(self)

    def whole(self, variable: Any) -> Entry | None:
        """The entry of a variable, even if it is divided; None if it is not known."""
        divided = self.divided.get(key_of(variable))
        return self.find(variable) if divided is None else divided.whole

    def named(self, variable: Any) -> Entry:
        """The entry of a variable or name, even if the memory was resized; or raise `KeyError`."""
        entry = None
        if isinstance(variable, str):
            name = variable.removesuffix(":0")
            entry = next((e for e in self.entries.values() if e.name == name), None)
        elif isinstance(array := array_of(variable), np.ndarray):
            entry = self.find(variable) or self._at_origin(array) or self._resized(array)
        if entry is None:
            what = repr(variable) if isinstance(variable, str) else "this variable"
            names = ", ".join(entry.name for entry in islice(self.entries.values(), 20))
            raise KeyError(f"{self.name} does not know {what}; it knows {names or 'none'}")
        return entry

    def _resized(self, array: NDArray[Any]) -> Entry | None:
        root = ground_of(array).root
        gone = (e for e in self.entries.values() if e.ground.root == root and e.is_gone)
        return next(gone, None)

    def _at_origin(self, array: NDArray[Any]) -> Entry | None:
        """In a copy, the entry whose original variable is this array."""
        key = array_key(array)
        return next((e for e in self.entries.values() if e.origin == key), None)

    def variables(self) -> list[Variable]:
        """All known variables whose memory is still there."""
        there = [entry for entry in list(self.entries.values()) if not entry.is_gone]
        return [Variable(private_view(entry.owner), entry.name) for entry in there]

    def with_slots(self) -> list[Entry]:
        """The variables that have slots, in the order in which they got them."""
        keys = dict.fromkeys(key for key, _ in list(self.created))
        return [e for key in keys if (e := self.entries.get(key)) is not None and e.slots]

    def known(self, fresh: Entry, name: str) -> Entry | None:
        """The known entry of a variable for which `fresh` was just made, or None.

        Raises `ValueError`, which begins with `name`, if the variable was resized.
        """
        if self.unmet:
            meet(self, fresh.key, fresh.owner, name)
        former = self.index().grounds.get(fresh.ground.root)
        if former is not None and former != fresh.ground:
            raise ValueError(
                f"{name} was resized since the optimizer last used it: call resize_rows(variable) "
                f"to keep the slots of its rows, or forget(variable) to start again without state"
            )
        entry = self.entries.get(fresh.key)
        if entry is not None and entry.ground != fresh.ground and entry.is_gone:
            self.drop([entry])  # its address was reused
            return None
        return entry

    def refuse_overlap(self, new: Iterable[Entry], name: Callable[[Any], str]) -> None:
        """Raise `ValueError` if new variables overlap each other or known variables or slots."""
        new = list(new)
        for entry in new:
            while (other := self.index().variables.meeting(entry)) and other.is_gone:
                self.drop([other])
        index = self.index()
        refuse_overlap(index.variables, new, name)
        refuse_overlap(index.slots, new, name)

    def index(self) -> Index:
        """The index, updated with everything that was entered since its last use.

        It is rebuilt from the entries if an update was interrupted or another thread is using it.
        """
        index, self._index = self._index, None
        if index is None or not index.can_follow(self):
            index = Index()
        index.follow(self)
        self._index = index
        return index

    # --- slots --------------------------------------------------------------------------------

    def slots_of(self, entry: Entry) -> tuple[Slot, ...]:
        """The slots that the form has for a variable, whether they exist yet or not."""
        half, small = entry.precision.is_half, entry.is_small
        return self.form.of_variables(half=half, small=small).slots

    def has_all_slots(self, entry: Entry) -> bool:
        """Whether a variable has all slots of the form."""
        return all(slot.name in entry.slots for slot in self.slots_of(entry))

    def slot_of(self, variable: Any, slot: str) -> Variable | None:
        """A slot with the axes of `variable`, which may be any view of a known variable."""
        entry = self.find(variable)
        if entry is None:
            return None
        if slot not in entry.slots:
            return self.created.get((entry.key, slot))
        array = array_of(variable)
        return slot_seen_as(self.name, entry, slot, layout_of(array), array.shape)

    def add_slot(self, variable: Any, slot: str, value: NDArray[Any]) -> Variable:
        """Add a slot that the rule does not use, for a variable that has been checked."""
        entry = self.find(variable)
        refuse_shared(self, [SlotMemory(slot, value)], [entry_of(variable)])
        if entry is None:
            entry = entry_of(variable)
            self.enter([entry], [])
        self.created[entry.key, slot] = slot_variable(self.name, entry, slot, value)
        return self.created[entry.key, slot]

    def add_weight(self, name: str, value: NDArray[Any], trainable: bool) -> Variable:
        """Add a weight that belongs to no variable."""
        weight = Variable(value, f"{self.name}/{name}", trainable=trainable)
        numbers = (key[1] for key, _ in self.created if key[0] == NO_VARIABLE)
        self.created[(NO_VARIABLE, max(numbers, default=-1) + 1), name] = weight
        return weight

    def added_slot_names(self) -> list[str]:
        """The names of slots that the rule does not use, in order of creation."""
        return [
            slot
            for key, slot in self.created
            if key[0] != NO_VARIABLE and slot not in self.form.slot_names
        ]

    # --- entering -----------------------------------------------------------------------------

    def enter(self, entries: Iterable[Entry], fresh: Iterable[tuple[Entry, str, Any]]) -> bool:
        """Make new entries and slots known.

        Returns false, with nothing changed, if another caller, such as a signal handler or a
        function of the user's, has entered one of the variables or slots in the meantime.
        """
        entries, fresh = list(entries), list(fresh)
        if any(self.entries.get(entry.key, entry) is not entry for entry in entries):
            return False
        if any(entry.slots.get(slot, value) is not value for entry, slot, value in fresh):
            return False
        for entry in entries:
            if entry.key not in self.entries:
                entry.name = entry.name or self._name_for(entry.stem or "Variable")
        # Whoever is interrupted here would never add what is missing.
        completed(partial(self._add, entries, fresh))
        return all(self.entries[entry.key] is entry for entry in entries)

    def _add(self, entries: list[Entry], fresh: list[tuple[Entry, str, Any]]) -> None:
        """Add entries and slots, unless another entry has come first."""
        wrapped = {}
        for entry, slot, value in fresh:
            entry.slots = {**entry.slots, slot: value}
            wrapped[entry.key, slot] = slot_of_owner(self.name, entry, slot)
        if all(self.entries.setdefault(entry.key, entry) is entry for entry in entries):
            self.created.update(wrapped)

    def _name_for(self, stem: str) -> str:
        number = self.stems.get(stem, 0)
        self.stems[stem] = number + 1
        return f"{stem}_{number}" if number else stem

    # --- removing and replacing ---------------------------------------------------------------

    def remove(self, key: Key) -> dict[str, NDArray[Any]]:
        """Forget a variable and return its slots, none if it was not known."""
        entry = self.entries.get(key)
        if entry is None:
            return {}
        self.drop([entry])
        return entry.slots

    def drop(self, entries: Iterable[Entry]) -> None:
        """Forget variables and all their slots."""
        self.replace({entry.key: None for entry in entries})

    def replace(self, changes: Mapping[Key, Entry | None]) -> None:
        """Replace entries and their slots by others, or remove them if the new entry is None.

        The order of variables and slots does not change.
        """
        entries = {
            entry.key: entry
            for entry in (changes.get(key, known) for key, known in self.entries.items())
            if entry is not None
        }
        created: dict[tuple[Key, str], Variable] = {}
        for (key, slot), variable in self.created.items():
            if key not in changes:
                created[key, slot] = variable
            elif (entry := changes[key]) is not None:
                if slot in entry.slots:
                    variable = slot_of_owner(self.name, entry, slot)
                created[entry.key, slot] = variable
        unmet = {
            home: entry
            for home, entry in self.unmet.items()
            if entries.get(entry.key) is entry and entry.homes
        }
        self._change(entries=entries, created=created, unmet=unmet)

    def _change(self, **attributes: Any) -> None:
        """Set attributes and invalidate all plans; a signal handler finds both done or neither."""
        changes = partial(vars(self).update, **attributes, _index=None)
        run([changes, partial(np.add, self.epoch, 1, self.epoch)])

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Know the same variables and slots as before if the block raises an error."""
        names = ("entries", "created", "divided", "stems", "unmet")
        before = {name: dict(vars(self)[name]) for name in names}
        slots = [(entry, entry.slots) for entry in self.entries.values()]
        try:
            yield
        except BaseException:
            completed(partial(self._take_back, before, slots))
            raise

    def _take_back(self, before: Mapping[str, Any], slots: list[tuple[Entry, Any]]) -> None:
        for entry, held in slots:
            entry.slots = held
        self._change(**before)

    def restrict(self, slots: Mapping[Key, Collection[str]]) -> None:
        """Forget variables and slots that are not among these."""
        self.drop([entry for key, entry in self.entries.items() if key not in slots])
        kept = [
            (entry, {slot: own for slot, own in entry.slots.items() if slot in slots[key]})
            for key, entry in self.entries.items()
        ]
        fresh = {(e.key, slot) for e, held in kept for slot in e.slots.keys() - held.keys()}
        created = {key: slot for key, slot in self.created.items() if key not in fresh}
        completed(partial(self._take_back, {"created": created}, kept))

    def take_over(self, other: SlotStore) -> None:
        """Know what another store knows."""
        with self.lock.lock:
            entries = {**self.entries, **other.entries}
            self._change(entries=entries, created={**self.created, **other.created})

    # --- copies -------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        from rmsjit.state.copies import state_of  # imported here because few programs copy

        return state_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        from rmsjit.state.copies import restore

        restore(self, state)
