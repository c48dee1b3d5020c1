"""`ParameterGroup`: variables with settings of their own, as `Optimizer.add_group` returns it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.nest import variables_in
from rmsjit.optimizers.arguments import (
    checked_epsilon,
    checked_factor,
    checked_flag,
    checked_rate,
    checked_weight_decay,
)
from rmsjit.rule.checks import is_schedule, is_used
from rmsjit.rule.form import Form
from rmsjit.rule.group_settings import MULTIPLIER, NAMES, GroupSettings
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.variables import Variable, array_of

if TYPE_CHECKING:
    from rmsjit.state.slots import SlotStore

_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "learning_rate": checked_rate,
    MULTIPLIER: checked_weight_decay,
    "weight_decay": checked_weight_decay,
    "rho": checked_factor,
    "momentum": checked_factor,
    "epsilon": checked_epsilon,
}


class Members(NamedTuple):
    """What variables a group was made for."""

    patterns: tuple[str, ...]
    variables: list[Any]
    numbers: set[int]  # of variables in the order in which they get slots


def members_of(given: Any) -> Members:
    """The members that the first argument of `Optimizer.add_group` names.

    Raises
    ------
    TypeError
        If it or an item is of a type not allowed there, or a negative number.
    ValueError
        If it is empty.
    """
    single = isinstance(given, (str, int, np.integer, Variable, np.ndarray))
    if not single and not isinstance(given, Iterable):
        raise TypeError(f"variables must be variables or patterns, got {given!r}")
    items = [given] if single else variables_in(given)
    if not items:
        raise ValueError("variables must hold at least one variable or pattern, got none")
    members = Members(tuple(item for item in items if isinstance(item, str)), [], set())
    for item in items:
        if isinstance(array_of(item), np.ndarray):
            members.variables.append(item)
        elif isinstance(item, (int, np.integer)) and not isinstance(item, bool) and item >= 0:
            members.numbers.add(int(item))
        elif not isinstance(item, str):
            raise TypeError(
                f"variables must be arrays, Variables, patterns of names or numbers of variables, "
                f"got {item!r}"
            )
    return members


def _setting(name: str, doc: str) -> Any:
    """A property for a setting of a group; None means that of the optimizer."""

    def read(group: ParameterGroup) -> Any:
        return group._settings.get(name)

    def write(group: ParameterGroup, value: Any) -> None:
        group._set(name, group._checked(name, value))

    return property(read, write, doc=doc)


class ParameterGroup:
    """Variables with settings of their own; made by `RMSprop.add_group`.

    Its settings are attributes that can be read and set.  None stands for the optimizer's value.

    Attributes
    ----------
    learning_rate : float, callable, LearningRateSchedule or None
    lr_multiplier : float, callable or None
        Multiplies the learning rate of the group.
    weight_decay, rho, momentum, epsilon : float, callable or None
    frozen : bool
        Whether steps leave the variables and their slots alone.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsjit
    >>> w, b = np.ones(2), np.ones(2)
    >>> opt = rmsjit.RMSprop(0.1)
    >>> group = opt.add_group([b], lr_multiplier=0.5, frozen=True)
    >>> _ = opt.apply_gradients([(w, w), (b, b)])
    >>> b
    array([1., 1.])
    >>> group.frozen = False
    >>> group
    ParameterGroup(1 variable, lr_multiplier=0.5)
    """

    # So that assigning to a misspelled setting raises an error.
    __slots__ = (
        "_count",
        "_frozen",
        "_has_steps",
        "_hyperparameters",
        "_settings",
        "awaited",
        "epoch",
        "form",
        "patterns",
    )

    def __init__(self, hyperparameters: Hyperparameters, store: SlotStore, has_steps: bool) -> None:
        self.patterns: tuple[str, ...] = ()
        self.awaited: set[int] = set()
        self.epoch: NDArray[np.int64] = store.epoch
        self._frozen = False
        self.form: Form = store.form
        self._hyperparameters = hyperparameters
        self._has_steps = has_steps  # whether the optimizer counts steps, as schedules need
        self._settings = GroupSettings({})
        self._count = 0

    @classmethod
    def make(
        cls,
        hyperparameters: Hyperparameters,
        store: SlotStore,
        has_steps: bool,
        members: Members,
        settings: Mapping[str, Any],
    ) -> ParameterGroup:
        """A group that is not known to the optimizer yet; every setting is checked."""
        group = cls(hyperparameters, store, has_steps)
        for name in (name for name in NAMES if name in settings):
            group._settings.set(name, group._checked(name, settings[name]))
        group._frozen = checked_flag("frozen", settings.get("frozen", False))
        group.patterns = members.patterns
        group._count = len(members.variables) + len(members.numbers)
        return group

    learning_rate: Any = _setting("learning_rate", "Replaces the optimizer's.")
    lr_multiplier: Any = _setting(MULTIPLIER, "Multiplies the learning rate of the group.")
    weight_decay: Any = _setting("weight_decay", "Replaces the optimizer's.")
    rho: Any = _setting("rho", "Replaces the optimizer's.")
    momentum: Any = _setting("momentum", "Replaces the optimizer's.")
    epsilon: Any = _setting("epsilon", "Replaces the optimizer's.")

    @property
    def frozen(self) -> bool:
        """Whether steps leave the variables and their slots alone."""
        return self._frozen

    @frozen.setter
    def frozen(self, value: bool) -> None:
        self._frozen = checked_flag("frozen", value)
        self.epoch[0] += 1  # so that steps are planned again

    def _checked(self, name: str, value: Any) -> Any:
        """A setting that the form of the optimizer has a use for, or None."""
        if value is None:
            return None
        value, form = _CHECKS[name](name, value), self.form
        if is_schedule(value) and not self._has_steps:
            raise TypeError(f"{name} must be a number or a callable, got a schedule: {value!r}")
        if name == "weight_decay" and is_used(value) and form.weight_decay is None:
            raise ValueError(
                "weight_decay of a group needs an optimizer with weight decay: give the optimizer "
                "a weight_decay, and 0 to the groups that have none"
            )
        if name == "momentum" and is_used(value) and not form.has_momentum:
            raise ValueError(
                "momentum of a group needs an optimizer with momentum: give the optimizer a "
                "momentum, and 0 to the groups that have none"
            )
        if name == "epsilon" and form.starts_from_epsilon:
            raise ValueError(f"epsilon can't differ in a group where slots start from it: {form}")
        return value

    def _set(self, name: str, value: Any) -> None:
        self._settings.set(name, value)
        self._hyperparameters.changed()

    def to_dict(self) -> dict[str, Any]:
        """The settings as values for JSON; of a function, the value that it last returned."""
        settings = self._settings.to_dict()
        return settings | {"frozen": True} if self._frozen else settings

    def __repr__(self) -> str:
        members = [repr(pattern) for pattern in self.patterns]
        if self._count:
            members.append(f"{self._count} variable{'s' if self._count > 1 else ''}")
        settings = {k: v for k in NAMES if (v := self._settings.get(k)) is not None}
        settings |= {"frozen": True} if self._frozen else {}
        shown = [*members, *(f"{name}={value!r}" for name, value in settings.items())]
        return f"ParameterGroup({', '.join(shown)})"
