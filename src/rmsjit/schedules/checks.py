"""Checks of the arguments of schedules, and of steps."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np

Step = SupportsFloat | SupportsIndex
Check = Callable[[str, Any], Any]  # of a name and a value; returns the value as it is stored

LARGEST, SMALLEST = 1e38, 1e-38  # no formula of a decay overflows within this range
_LARGEST_STEP, _LARGEST_GROWTH = 2.0**64, 1e200


def step_of(step: Step) -> float:
    """A step as a float between 0 and 2**64."""
    try:
        value = float(step if type(step) is int or _is_real(step) else None)  # type: ignore[arg-type]
    except OverflowError:
        value = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"step must be one number (curve takes many), got {step!r}") from None
    if 0.0 <= value <= _LARGEST_STEP:
        return value
    raise ValueError(f"step must be between 0 and 2**64, got {step!r}")


def _is_real(value: Any) -> bool:
    """Whether a value has a real number type; `float` would also accept text and drop 1j."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "iuf"
    return hasattr(value, "__float__") or hasattr(value, "__index__")


def power_of(base: float, exponent: float) -> float:
    """``base ** exponent``, at most 1e200."""
    try:
        power = math.pow(base, exponent)
    except OverflowError:
        power = math.inf
    if power < _LARGEST_GROWTH:  # min() would cost as much as the rest of this function
        return power
    return _LARGEST_GROWTH


def number(name: str, value: Any, low: float = -LARGEST, high: float = LARGEST) -> float:
    """A real number between bounds, as an int or a float."""
    if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real:
        raise TypeError(f"{name} must be a real number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {_brief(low)} and {_brief(high)}, got {value!r}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _brief(bound: float) -> str:
    return f"{bound:g}".replace("e+", "e")


def below_one(name: str, value: Any) -> float:
    """A real number from 0 to below 1."""
    checked = number(name, value, low=0.0)
    if checked >= 1.0:
        raise ValueError(f"{name} must be below 1, got {value!r}")
    return checked


def count(name: str, value: Any) -> int:
    """A whole number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be 0 or more, got {value!r}")
    return int(value)


def numbers_in(name: str, value: Any) -> tuple[float, ...]:
    """A list of numbers, as a tuple."""
    items = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(items, Sequence):
        raise TypeError(f"{name} must be a list of numbers, got {value!r}")
    return tuple(number(f"{name}[{i}]", item) for i, item in enumerate(items))


def kind(name: str, value: Any, kinds: tuple[type, ...], expected: str) -> Any:
    """A value of one of some types."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    return value


def one_of(*allowed: str) -> Check:
    """A check that a value is one of some strings."""

    def check(name: str, value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")
        return value

    return check


def check_boundaries(boundaries: Sequence[float], pieces: str, got: int) -> None:
    """Raise `ValueError` unless there is one piece more than boundaries, and these increase."""
    expected = len(boundaries) + 1
    if got != expected:
        raise ValueError(f"{pieces} must be {expected}, one more than boundaries, got {got}")
    if any(low >= high for low, high in pairwise(boundaries)):
        raise ValueError(f"boundaries must be strictly increasing, got {boundaries}")


positive, not_negative = partial(number, low=SMALLEST), partial(number, low=0.0)
flag = partial(kind, kinds=(bool,), expected="a bool")
fraction = partial(number, low=0.0, high=1.0)

CHECKS: dict[str, Check] = {  # of arguments that several schedules have
    **dict.fromkeys(["initial_learning_rate", "end_learning_rate", "alpha"], number),
    **dict.fromkeys(["decay_rate", "power", "m_mul", "warmup_steps"], not_negative),
    **dict.fromkeys(["decay_steps", "first_decay_steps", "t_mul"], positive),
    **dict.fromkeys(["staircase", "cycle"], flag),
    **dict.fromkeys(["boundaries", "values"], numbers_in),
    "warmup_target": lambda name, value: None if value is None else number(name, value),
    "name": partial(kind, kinds=(str, type(None)), expected="a string or None"),
}
