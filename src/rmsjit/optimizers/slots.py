"""Slots: making them ahead, and reading them with all rows up to date."""

from __future__ import annotations

from typing import Any

from rmsjit.nest import variables_in
from rmsjit.optimizers.core import Core
from rmsjit.steps.entering import build
from rmsjit.variables import Variable


class Slots(Core):
    """The part of slots that both interfaces share."""

    def build(self, var_list: Any) -> None:
        """Create the slots of `var_list` ahead of the first step.

        Parameters
        ----------
        var_list : ndarray, Variable, or nested structure of them

        Raises
        ------
        TypeError, ValueError
            If one of them can't be trained, or two partly overlap in memory.
        """
        build(self._store, variables_in(var_list), self._hyperparameters)

    def sync(self, var: Any = None, indices: Any = None) -> None:
        """Bring rows of a table up to date before they are read or set (``sparse="exact"``).

        Without it, an overwritten row still receives the updates that it missed, at its next step.

        Parameters
        ----------
        var : ndarray or Variable, optional
            The table; all tables if left out.
        indices : array_like of integers, optional
            The rows; all rows if left out.

        Raises
        ------
        TypeError, ValueError, IndexError
            If indices are no integers, the variable has no rows, or an index is out of range.
        """
        if self._settings.exact:
            self._engine.sync(var, indices)

    def get_slot_names(self) -> list[str]:
        """The names of the slots of each variable."""
        names = [*self._store.form.slot_names, *self._store.added_slot_names()]
        return list(dict.fromkeys(names))

    def _slot(self, var: Any, slot_name: str) -> Variable | None:
        self.sync(var)
        return self._store.slot_of(var, slot_name)

    def _created(self) -> list[Variable]:
        self.sync()
        return list(self._store.created.values())
