"""Learning rate, decay factor, momentum and epsilon: what may be given, and its value at a step."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.rule.form import Form
from rmsjit.variables import Variable, array_of


class StepNumbers(NamedTuple):
    """The numbers of one step, as Python floats.

    Attributes
    ----------
    learning_rate : float
        With schedule and decay applied.
    rho, momentum : float
        Between 0 and 1.
    epsilon : float
        Positive.
    clipvalue : float
        Infinite where gradients are not clipped by value.
    """

    learning_rate: float
    rho: float
    momentum: float
    epsilon: float
    clipvalue: float = math.inf

    def packed(self, precision: Precision, form: Form) -> NDArray[Any]:
        """The fields of `rmsjit.kernels.rule.RuleNumbers`, in the dtype of the arithmetic.

        ``1 - rho`` is taken in that dtype, from the rounded rho, as TensorFlow takes it.

        Raises
        ------
        ValueError
            If epsilon rounds to zero there: a zero gradient would then give 0/0.
        """
        with np.errstate(over="ignore"):  # a bound beyond the dtype bounds nothing
            return self._packed(precision, form)

    def _packed(self, precision: Precision, form: Form) -> NDArray[Any]:
        dtype = np.dtype(precision.computing).type
        rho, epsilon = dtype(self.rho), dtype(self.epsilon)
        for name, given in (("learning_rate", self.learning_rate), ("epsilon", self.epsilon)):
            if not np.isfinite(dtype(given)):
                raise ValueError(
                    f"{name} must be finite in the dtype of the arithmetic, got {given}, which "
                    f"overflows in {precision.computing}"
                )
        if not epsilon > 0:
            raise ValueError(
                f"epsilon must not vanish in the dtype of the arithmetic, got {self.epsilon}, "
                f"which is 0 in {precision.computing}"
            )
        inside = form.epsilon_inside
        return np.array(
            [
                dtype(self.learning_rate),
                rho,
                dtype(1) - rho,
                dtype(self.momentum),
                epsilon if inside else 0,
                0 if inside else epsilon,
                dtype(self.clipvalue),
                np.finfo(dtype).max,
                np.inf if rho else np.finfo(dtype).max,  # infinity times a rho of 0 would be NaN
            ],
            dtype,
        )


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
    if isinstance(array, (bool, np.bool_, str, bytes)) or np.ndim(array) != 0:
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(array)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


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
