"""The settings of one group of variables, which replace those of the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rmsjit.rule.checks import nonnegative
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.rule.numbers import StepNumbers

MULTIPLIER = "lr_multiplier"
NAMES = ("learning_rate", MULTIPLIER, "weight_decay", "rho", "momentum", "epsilon")

Read = Callable[[str, int], float]  # the value of a hyperparameter, by name and iterations


class GroupSettings:
    """What a group sets for itself; it has everything else from the optimizer.

    Parameters
    ----------
    given : mapping
        Checked values by name, as for `Hyperparameters`; those that are not set are left out.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._set = dict(given)
        self._own = Hyperparameters(given)

    def get(self, name: str) -> Any:
        """The value of a setting; None if the optimizer's holds."""
        return self._set.get(name)

    def set(self, name: str, value: Any) -> None:
        """Set a checked value, or None to go back to the optimizer's."""
        self._set = {**self._set, name: value}
        if value is None:
            del self._set[name]
        self._own[name] = value

    @property
    def functions(self) -> list[str]:
        """The names of settings that are functions, and not schedules."""
        return [name for name in self._own.functions if name in self._set]

    def used(self) -> dict[str, float]:
        """What each function last returned."""
        return self._own.used()

    def recall(self, used: Mapping[str, float]) -> None:
        """Take these for what functions last returned."""
        self._own.recall(used)

    @property
    def is_constant(self) -> bool:
        """Whether the numbers can't change from step to step."""
        return all(isinstance(value, float) for value in self._set.values())

    def over(self, inherited: Read, last: bool) -> Read:
        """The values of the group, where it sets them, over those of the optimizer.

        Parameters
        ----------
        inherited : callable
        last : bool
            Whether to give what functions last returned, instead of calling them.
        """
        own = self._own.last if last else self._own.now

        def read(name: str, iterations: int) -> float:
            return own(name, iterations) if name in self._set else inherited(name, iterations)

        return read

    @property
    def of_step(self) -> list[str]:
        """The names of settings that are functions of the step."""
        return sorted(self._own.of_step)

    def multiplied(self, numbers: StepNumbers, last: bool, calls: int) -> StepNumbers:
        """Numbers with the learning rate times the multiplier of the group.

        Parameters
        ----------
        numbers : StepNumbers
        last : bool
            Whether to use what a function last returned, instead of calling it.
        calls : int
            What functions of the step are given, as for the learning rate.
        """
        if MULTIPLIER not in self._set:
            return numbers
        factor = (self._own.last if last else self._own.now)(MULTIPLIER, calls)
        rate = numbers.learning_rate * nonnegative(MULTIPLIER, factor)
        return numbers._replace(learning_rate=rate)

    def to_dict(self) -> dict[str, Any]:
        """The settings as values for JSON; of a function, what it last returned.

        Raises
        ------
        TypeError
            If a schedule can't be serialised.
        """
        return {name: self._own.serialized(name) for name in NAMES if name in self._set}
