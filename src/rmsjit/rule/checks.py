"""Checks of hyperparameters: of what a user gives, and of numbers that functions return."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from rmsjit.rule.functions import takes_step
from rmsjit.variables import Variable, array_of


def checked(name: str, value: Any, *, schedule: bool = False) -> Any:
    """A hyperparameter as it is stored: a float, `Variable`, callable or schedule (if allowed).

    Raises
    ------
    TypeError
        If `value` is none of these, or a function that needs more arguments than the step.
    ValueError
        If a number is not finite.
    """
    if is_schedule(value):
        if not schedule:
            raise TypeError(f"{name} must be a number or a callable, got a schedule: {value!r}")
        return value
    if isinstance(value, dict) and schedule:  # as written by `get_config`
        from rmsjit.schedules import deserialize

        return deserialize(value)
    if isinstance(value, Variable):  # read again at every step, as TensorFlow does
        as_number(name, value)
        return value
    if callable(value):
        takes_step(name, value)
        return value
    return as_number(name, value)


def is_of_step(name: str, value: Any) -> bool:
    """Whether a hyperparameter is a function of the step, and not a schedule."""
    return callable(value) and not is_schedule(value) and takes_step(name, value)


def is_schedule(value: Any) -> bool:
    """Whether a hyperparameter is a schedule; does not import `rmsjit.schedules`."""
    # Another thread may be about to import it.
    schedule = getattr(sys.modules.get("rmsjit.schedules"), "LearningRateSchedule", None)
    return schedule is not None and isinstance(value, schedule)


def is_used(value: Any) -> bool:
    """Whether a hyperparameter is not 0, or may change: a `Variable` or a callable."""
    return callable(value) or isinstance(value, Variable) or bool(value != 0)


def as_number(name: str, value: Any) -> float:
    """`value` as a finite float."""
    array = array_of(value)
    if not _is_number(array):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(array)
    except OverflowError:  # an integer or a fraction too large for a float
        number = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def _is_number(value: Any) -> bool:
    """Whether the type of a value is that of one real number; `float` would accept text."""
    if isinstance(value, (np.ndarray, np.generic)):
        numeric = value.dtype.kind in "iuf" or value.dtype.name == "bfloat16"
        return numeric and value.ndim == 0 and not np.ma.is_masked(value)
    convertible = hasattr(value, "__float__") or hasattr(value, "__index__")
    return convertible and not isinstance(value, bool) and np.ndim(value) == 0


def in_unit_interval(name: str, value: float) -> float:
    """`value`, checked to be between 0 and 1."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return value


def positive(name: str, value: float) -> float:
    """`value`, checked to be above zero."""
    if not value > 0.0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def nonnegative(name: str, value: float) -> float:
    """`value`, checked not to be negative."""
    if value < 0.0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return value


def positive_number(name: str, value: Any) -> float:
    """`value` as a finite float above zero."""
    return positive(name, as_number(name, value))


def nonnegative_number(name: str, value: Any) -> float:
    """`value` as a finite float that is not negative."""
    return nonnegative(name, as_number(name, value))


def choice(name: str, value: Any, *allowed: str) -> str:
    """`value`, checked to be one of some words."""
    if not isinstance(value, str) or value not in allowed:
        *first, last = (f'"{word}"' for word in allowed)
        raise ValueError(f"{name} must be {', '.join(first)} or {last}, got {value!r}")
    return allowed[allowed.index(value)]  # not one of a subclass


def integer(name: str, value: Any, kind: str = "an integer") -> int:
    """`value`, checked to be an integer; `kind` says in errors what else the caller accepts."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be {kind}, got {value!r}")
    return int(value)


def positive_integer(name: str, value: Any, kind: str = "an integer") -> int:
    """`value`, checked to be an integer above zero."""
    number = integer(name, value, kind)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return number
