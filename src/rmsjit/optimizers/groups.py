"""Groups of variables that have settings of their own, and their configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rmsjit.optimizers.core import Core
from rmsjit.optimizers.elsewhere import explaining_arguments
from rmsjit.optimizers.parameter_group import Members, ParameterGroup, members_of
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.state.divided import Divided
from rmsjit.state.entries import Entry, key_of
from rmsjit.state.slots import SlotStore
from rmsjit.steps.entering import entries_of


class Groups(Core):
    """Adding groups of variables."""

    @explaining_arguments()
    def add_group(
        self,
        variables: Any,
        *,
        learning_rate: Any = None,
        lr_multiplier: Any = None,
        weight_decay: Any = None,
        rho: Any = None,
        momentum: Any = None,
        epsilon: Any = None,
        frozen: bool = False,
    ) -> ParameterGroup:
        """Give some variables settings of their own.

        A step still updates all variables of a dtype in one call of compiled code.

        Parameters
        ----------
        variables : ndarray, Variable, str, int, or nested structure of them
            Variables by any view of their memory; or patterns of the names of `Variable` objects,
            such as ``"*/bias"``, in which ``*``, ``?`` and ``[...]`` are as in file names; or
            numbers in the order in which variables get slots, from 0.  If a variable is in several
            groups, the last one that was added counts.
        learning_rate : float, callable or LearningRateSchedule, optional
            By default the optimizer's, like the next ones.  A schedule needs an optimizer that
            counts steps.
        lr_multiplier : float or callable, optional
            Multiplies the learning rate, whether that is the group's or the optimizer's.
        weight_decay, rho, momentum, epsilon : float or callable, optional
            Weight decay and momentum only if the optimizer has them; 0 switches them off.
        frozen : bool, default False
            Leave the variables and their slots alone; their gradients do not count for a global
            norm either.

        Returns
        -------
        ParameterGroup
            Its attributes are the settings, and can be set: ``group.frozen = False``.

        Raises
        ------
        TypeError, ValueError
            If a variable can't be trained, or a setting is of a wrong type, out of range, or not
            for the form of the optimizer.  Nothing is changed then.
        NotImplementedError
            If variables are given by their numbers to a strategy that divides slots among
            processes.

        Warns
        -----
        RuntimeWarning
            Once, at the second step with the same variables, if a pattern has matched none, or a
            variable of a group that is not frozen has had no gradient.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> kernel = rmsjit.Variable(np.ones(2), name="dense/kernel")
        >>> bias = rmsjit.Variable(np.ones(2), name="dense/bias")
        >>> opt = rmsjit.RMSprop(0.1, weight_decay=0.5)
        >>> opt.add_group("*/bias", weight_decay=0.0, lr_multiplier=2.0)
        ParameterGroup('*/bias', lr_multiplier=2.0, weight_decay=0.0)
        >>> _ = opt.apply_gradients([(np.zeros(2), kernel), (np.zeros(2), bias)])
        >>> print(kernel.numpy(), bias.numpy())
        [0.95 0.95] [1. 1.]
        """
        given = {
            "learning_rate": learning_rate,
            "lr_multiplier": lr_multiplier,
            "weight_decay": weight_decay,
            "rho": rho,
            "momentum": momentum,
            "epsilon": epsilon,
        }
        settings = {name: value for name, value in given.items() if value is not None}
        return _added(
            self._store,
            self._hyperparameters,
            self._counts_steps,
            variables,
            {**settings, "frozen": frozen},
            are_divided=self._divides_slots,
        )

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The groups of variables that have settings of their own, as they were added."""
        return self._store.grouping.groups


def _added(
    store: SlotStore,
    hyperparameters: Hyperparameters,
    has_steps: bool,
    variables: Any,
    settings: Mapping[str, Any],
    *,
    are_divided: bool = False,
) -> ParameterGroup:
    """Make a group and let the next step use it; see `Optimizer.add_group`."""
    members = members_of(variables)
    if are_divided and members.numbers:
        raise NotImplementedError(
            "shard_state=True does not number variables, since no rank has parts of all of them: "
            "give groups variables, or patterns of their names"
        )
    group = ParameterGroup.make(hyperparameters, store, has_steps, members, settings)
    with store.lock.lock:
        divided = [d for v in members.variables if (d := _divided(store, v)) is not None]
        members.variables[:] = [v for v in members.variables if _divided(store, v) is None]
        entries = _entries_of(store, members, group)
        store.enter(entries, [])
        store.grouping.add(group, [*entries, *(one.whole for one in divided)])
        for one in divided:
            one.join(group)
        hyperparameters.add_group(group._settings)
        store.changed()
    return group


def _divided(store: SlotStore, variable: Any) -> Divided | None:
    return store.divided.get(key_of(variable))


def _entries_of(store: SlotStore, members: Members, group: ParameterGroup) -> list[Entry]:
    """The entries of the members that are there; the group awaits the others."""
    known = store.with_slots()
    group.awaited = {number for number in members.numbers if number >= len(known)}
    kinds = [np.ndarray] * len(members.variables)
    entries = [entry for entry in entries_of(store, members.variables, kinds) if entry is not None]
    return [*entries, *(known[number] for number in sorted(members.numbers - group.awaited))]


def group_configs(store: SlotStore) -> list[dict[str, Any]]:
    """The groups as arguments of `Optimizer.add_group`, for JSON.

    Variables are their numbers in the order in which they got slots.

    Raises
    ------
    TypeError
        If a variable has no slots yet, and so no number, or a schedule can't be serialised.
    """
    numbers = {entry.key: number for number, entry in enumerate(store.with_slots())}
    configs = [
        {"variables": [*group.patterns, *_numbers_of(group, store, numbers)], **group.to_dict()}
        for group in store.grouping.groups
    ]
    return [config for config in configs if config["variables"]]


def _numbers_of(group: ParameterGroup, store: SlotStore, numbers: Mapping[Any, int]) -> list[int]:
    """The numbers of the variables that a group was given."""
    entries = members_in(store, group)
    unnumbered = [entry.name for entry in entries if entry.key not in numbers]
    if unnumbered:
        raise TypeError(
            f"the configuration of {group!r} needs slots of {', '.join(unnumbered)}, by whose "
            f"order variables are numbered: call build(variables) first, or use a pattern of names"
        )
    awaited = {number for number in group.awaited if number >= len(numbers)}
    return sorted({*awaited, *(numbers[entry.key] for entry in entries)})


def members_in(store: SlotStore, group: ParameterGroup) -> list[Entry]:
    """The variables that a group was given and that are in no later one."""
    return [entry for entry in store.entries.values() if entry.group is group]
