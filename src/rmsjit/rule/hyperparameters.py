"""Learning rate, decay factor, momentum and epsilon: what may be given, and its value at a step."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.rule.numbers import StepNumbers
from rmsjit.variables import Variable, array_of


class Hyperparameters:
    """What the numbers of each step come from.

    Parameters
    ----------
    given : dict
        Checked values by the names of `StepNumbers`; a number, a function of no arguments or,
        for the learning rate, a schedule.  Also "decay", by which the rate shrinks over the steps.
    names : dict, optional
        How messages call them, where a face has other words.
    counts_steps : bool
        Whether the number of the step is one of the numbers.

    Attributes
    ----------
    constant : StepNumbers or None
        The numbers of every step, once they have been asked for, where none of them can change.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        names: Mapping[str, str] | None = None,
        counts_steps: bool = False,
    ) -> None:
        self._given = {"decay": 0.0, "weight_decay": 0.0, "clip_weights": math.inf, **given}
        self._names = dict(names or {})
        self._used: dict[str, float] = {}  # what functions gave when they were last asked
        self._counts_steps = counts_steps
        self.constant: StepNumbers | None = None

    def __getitem__(self, name: str) -> Any:
        return self._given[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._given = {**self._given, name: value}
        self._used.pop(name, None)
        self.constant = None

    def at(self, counter: NDArray[Any] | None) -> StepNumbers:
        """The numbers of the step after as many as `counter` says.

        The same object as long as none of them can change.

        Raises
        ------
        TypeError, ValueError
            If a function or schedule gives no number, or one out of its range.
        """
        if self.constant is not None:
            return self.constant
        given = self._given
        iterations = 0 if counter is None else int(counter)
        numbers = StepNumbers(
            self._value("learning_rate", iterations) / (1.0 + given["decay"] * iterations),
            in_unit_interval(self._name("rho"), self._value("rho", iterations)),
            in_unit_interval(self._name("momentum"), self._value("momentum", iterations)),
            positive(self._name("epsilon"), self._value("epsilon", iterations)),
            nonnegative("weight_decay", self._value("weight_decay", iterations)),
            given["clip_weights"],
            iterations + 1.0 if self._counts_steps else 1.0,
        )
        varies = given["decay"] or self._counts_steps
        if not varies and all(isinstance(value, float) for value in given.values()):
            self.constant = numbers
        return numbers

    def now(self, name: str, iterations: int = 0) -> float:
        """The value of one of them."""
        return self._value(name, iterations)

    def last(self, name: str, iterations: int = 0) -> float:
        """The value of one of them that the last step has used, where a function gave it.

        A function is asked only where none has been used since it was set, and then once, for it
        may give another value each time.
        """
        used = self._used.get(name)
        return self._value(name, iterations) if used is None else used

    def _value(self, name: str, iterations: int) -> float:
        given = self._given[name]
        value = value_at(self._name(name), given, iterations)
        if not isinstance(given, (float, Variable)) and not is_schedule(given):
            self._used[name] = value
        return value

    def _name(self, name: str) -> str:
        return self._names.get(name, name)


def checked(name: str, value: Any, *, schedule: bool = False) -> Any:
    """A hyperparameter as it is kept: a float, a zero-argument callable, or a schedule.

    Parameters
    ----------
    name : str
        Of the argument, for messages.
    value : number, 0-d array, callable or LearningRateSchedule
    schedule : bool
        Whether a schedule is allowed.

    Raises
    ------
    TypeError
        If `value` is none of these.
    ValueError
        If a number is not finite.
    """
    if is_schedule(value):
        if not schedule:
            raise TypeError(f"{name} must be a number or a callable, got a schedule: {value!r}")
        return value
    if isinstance(value, dict) and schedule:  # a schedule as `get_config` writes it
        from rmsjit.schedules import deserialize

        return deserialize(value)
    if isinstance(value, Variable):  # followed, as TensorFlow follows a tf.Variable
        as_number(name, value)
        return value
    return value if callable(value) else as_number(name, value)


def is_schedule(value: Any) -> bool:
    """Whether a hyperparameter is a schedule; none can be before their module is imported."""
    module = sys.modules.get("rmsjit.schedules")
    return module is not None and isinstance(value, module.LearningRateSchedule)


def as_number(name: str, value: Any) -> float:
    """`value` as a finite float."""
    array = array_of(value)
    if not _is_number(array):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(array)
    except OverflowError:  # an integer or a fraction beyond all floats
        number = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def _is_number(value: Any) -> bool:
    """Whether a value is one real number, by its type: `float` reads text as well."""
    if isinstance(value, (np.ndarray, np.generic)):
        numeric = value.dtype.kind in "iuf" or value.dtype.name == "bfloat16"
        return numeric and value.ndim == 0 and not np.ma.is_masked(value)
    convertible = hasattr(value, "__float__") or hasattr(value, "__index__")
    return convertible and not isinstance(value, bool) and np.ndim(value) == 0


def in_unit_interval(name: str, value: float) -> float:
    """`value`, which must lie between 0 and 1."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return value


def positive(name: str, value: float) -> float:
    """`value`, which must be above zero."""
    if not value > 0.0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def nonnegative(name: str, value: float) -> float:
    """`value`, which must not be below zero."""
    if value < 0.0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return value


def value_at(name: str, hyperparameter: Any, iterations: int) -> float:
    """The value of a checked hyperparameter at a step."""
    if isinstance(hyperparameter, float):
        return hyperparameter
    if isinstance(hyperparameter, Variable):
        return as_number(name, hyperparameter)
    if is_schedule(hyperparameter):
        return as_number(f"{name} (from {hyperparameter!r})", hyperparameter(iterations))
    function: Callable[[], Any] = hyperparameter
    return as_number(f"{name} (from {_called(function)})", function())


def _called(function: Callable[[], Any]) -> str:
    return getattr(function, "__qualname__", repr(function)) + "()"
