"""Which variables have settings of their own.

A variable belongs to a group because it was given to it, or because its name matches a pattern of
the group.  Each group has a row in the numbers of a step; row 0 is for all other variables.
"""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rmsjit.rule.form import Form
from rmsjit.runtime.warning import warn
from rmsjit.state.entries import Entry, stem_of
from rmsjit.variables import is_trainable


class Group(Protocol):
    """Variables with settings of their own.

    Attributes
    ----------
    patterns : tuple of str
        Of the names of variables.
    awaited : set of int
        Variables that have no slots yet, by their numbers in the order in which slots are made.
    frozen : bool
        Whether its variables are left alone.
    epoch : int64 array, shape (1,)
        To be counted up when `frozen` changes; see `rmsjit.state.slots.SlotStore.epoch`.
    form : Form
        That of the store, which tells it of another.
    """

    patterns: tuple[str, ...]
    awaited: set[int]
    epoch: NDArray[np.int64]
    form: Form

    @property
    def frozen(self) -> bool: ...


class Assignment(NamedTuple):
    """The groups of a list of variables.

    Attributes
    ----------
    groups : int
        The number of rows of numbers, one more than that of groups.
    rows : int64 array, shape (variables,)
        The row of each variable.
    frozen : frozenset of int
        The positions of the variables that are not updated: those of frozen groups, and those that
        are not trainable.
    """

    groups: int
    rows: NDArray[np.int64]
    frozen: frozenset[int] = frozenset()


class Grouping:
    """The groups of an optimizer, in the order in which they were added."""

    def __init__(self) -> None:
        self.groups: tuple[Any, ...] = ()
        self._idle: list[Any] = []  # groups that no step has used yet
        self._unseen: dict[str, Any] = {}  # groups of variables, by their names, likewise

    def add(self, group: Group, entries: Iterable[Entry]) -> None:
        """Add a group with these variables, and those that its patterns match."""
        for entry in entries:
            entry.group = group
            self._unseen[entry.name] = group
        if group.patterns or group.awaited:
            self._idle = [*self._idle, group]
        self.groups = (*self.groups, group)

    def number(self, entries: Iterable[Entry], known: Iterable[Entry]) -> None:
        """Put variables that are about to get slots into the groups that await them.

        Parameters
        ----------
        entries : iterable of Entry
            The variables of a step, in order.
        known : iterable of Entry
            All variables that the optimizer knows.
        """
        waiting = [group for group in self.groups if group.awaited]
        if not waiting:
            return
        first = sum(1 for entry in known if entry.slots)
        for group in waiting:
            group.awaited = {number for number in group.awaited if number >= first}
        fresh = {id(entry): entry for entry in entries if not entry.slots}
        for number, entry in enumerate(fresh.values(), first):
            for group in waiting:
                if number in group.awaited:
                    entry.group = group

    def row_of(self, entry: Entry | None, stem: str = "") -> int:
        """The row of a variable, or of a name if it is not known; the last group counts."""
        name = stem if entry is None else entry.stem
        for row in range(len(self.groups), 0, -1):
            group = self.groups[row - 1]
            if entry is not None and entry.group is group:
                return row
            if name and any(fnmatchcase(name, pattern) for pattern in group.patterns):
                return row
        return 0

    def freezes(self, entry: Entry | None, stem: str = "") -> bool:
        """Whether the group of a variable is frozen."""
        row = self.row_of(entry, stem)
        return row > 0 and bool(self.groups[row - 1].frozen)

    def described(self, entry: Entry | None, stem: str) -> str:
        """The group of a variable in words, to be compared with those of another process."""
        row = self.row_of(entry, stem)
        if not row:
            return ", in no group"
        return f", in group {row}{', frozen' if self.freezes(entry, stem) else ''}"

    def assigned(
        self,
        variables: Sequence[Any],
        entries: Sequence[Entry | None],
        find: Callable[[Any], Entry | None],
    ) -> Assignment:
        """The groups of the variables of a step.

        Parameters
        ----------
        variables : sequence
        entries : sequence of Entry or None
            None where there is no gradient.
        find : callable
            Gives the entry of a variable, or None.
        """
        fixed = {k for k, variable in enumerate(variables) if not is_trainable(variable)}
        if not self.groups:
            return Assignment(1, np.zeros(len(variables), np.int64), frozenset(fixed))
        rows = [
            self.row_of(entry or find(variable), stem_of(variable))
            for variable, entry in zip(variables, entries, strict=True)
        ]
        for row, entry in zip(rows, entries, strict=True):
            if row and entry is not None:
                self.met(row, entry)
        frozen = {k for k, row in enumerate(rows) if row and self.groups[row - 1].frozen}
        return Assignment(len(self.groups) + 1, np.array(rows, np.int64), frozenset(frozen | fixed))

    def met(self, row: int, entry: Entry) -> None:
        """Note that a step uses a variable of the group of a row."""
        self._idle = [group for group in self._idle if group is not self.groups[row - 1]]
        self._unseen.pop(entry.name, None)

    def warn_of_unused(self) -> None:
        """Warn once of what no step has used; variables that are frozen need no gradient."""
        if not self._idle and not self._unseen:
            return
        idle, unseen = self._idle, self._unseen
        self._idle, self._unseen = [], {}
        for group in idle:
            if not group.frozen:
                warn(f"{group!r} has no effect: it matches no variable that has had a gradient")
        names = [name for name, group in unseen.items() if not group.frozen]
        if names:
            warn(
                f"settings of groups have no effect on {', '.join(names)}: no gradient in any step "
                f"since add_group"
            )
