"""Checks of constructor arguments that both optimizers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmsjit.arrays.dtypes import dtype_named
from rmsjit.arrays.tensors import new_array
from rmsjit.nest import flatten
from rmsjit.rule.checks import (
    checked,
    choice,
    in_unit_interval,
    integer,
    nonnegative,
    positive,
    positive_integer,
    positive_number,
)
from rmsjit.rule.form import Form
from rmsjit.rule.slot import ROUNDINGS, STATE_DTYPES
from rmsjit.steps.settings import StepSettings
from rmsjit.text import brief
from rmsjit.variables import array_of

Sparse = Literal["rows", "exact"]
Nonfinite = Literal["propagate", "skip", "raise"]
Reduction = Literal["mean", "sum"]
Rounding = Literal["nearest", "stochastic"]

Initializer: TypeAlias = str | ArrayLike | Callable[[tuple[int, ...], np.dtype[Any]], ArrayLike]


def checked_name(name: Any) -> str:
    """The prefix of slot names."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"name must be a string that is not empty, got {name!r}")
    return name


def _number_or_function(name: str, value: Any, check: Callable[[str, float], float]) -> Any:
    """A number that passes a check, or a function, whose results are checked at each step."""
    value = checked(name, value)
    if not callable(value):
        check(name, float(value))
    return value


def checked_factor(name: str, value: Any) -> Any:
    """A number between 0 and 1, or a callable that returns one."""
    return _number_or_function(name, value, in_unit_interval)


def checked_rate(name: str, value: Any, schedule: bool = True) -> Any:
    """A learning rate: a number, a callable that returns one, or a schedule."""
    refuse_variables(name, value)
    return checked(name, value, schedule=schedule)


def refuse_variables(name: str, value: Any) -> None:
    """Raise `TypeError` for variables as the first argument, where PyTorch has them."""
    if _holds_variables(value):
        raise TypeError(
            f"{name} must be a number, a function or a schedule, got {brief(value)}: variables are "
            f"not given to the optimizer but to each step, as in "
            f"apply_gradients([(gradient, variable)])"
        )


def _holds_variables(value: Any) -> bool:
    """Whether a value is an array or tensor, a structure of them, or an iterator, as in PyTorch."""
    if isinstance(value, Iterator):
        return True
    leaves = (array_of(leaf) for leaf in flatten(value))
    return any(getattr(leaf, "ndim", 0) > 0 for leaf in leaves)


def checked_epsilon(name: str, value: Any) -> Any:
    """A positive number, or a callable that returns one."""
    return _number_or_function(name, value, positive)


def checked_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def checked_gradient_scale(maximize: Any, grad_scale: Any) -> float:
    """What gradients are multiplied by, from both arguments."""
    scale = positive_number("grad_scale", grad_scale)
    return -scale if checked_flag("maximize", maximize) else scale


def checked_weight_decay(name: str, value: Any) -> Any:
    """A number that is not negative, or a callable that returns one."""
    return _number_or_function(name, value, nonnegative)


def checked_clip_weights(name: str, value: Any) -> float:
    """A positive bound, infinite for None."""
    if value is None:
        return math.inf
    return positive_number(name, value)


def checked_rounding(value: Any) -> str:
    """How variables of half types are rounded."""
    return choice("rounding", value, *ROUNDINGS)


def checked_state_dtype(value: Any, form: Form) -> dict[str, str]:
    """The dtypes of slots by name, from one for all slots of the rule or from a dict.

    Raises
    ------
    TypeError, ValueError
        If a dtype is not one that slots can have, or the form does not have a slot of a name.
    ImportError
        If ml_dtypes is not installed and a slot is to be in bfloat16.
    """
    if value is None:
        return {}
    has = {*form.slot_names, "momentum"}  # which may come later
    if not isinstance(value, Mapping):
        dtype = _state_dtype("state_dtype", value)
        return {name: dtype for name in ("rms", "mg", "momentum") if name in has}
    for name in value:
        if name not in has or name == "master":
            raise ValueError(
                f"state_dtype must name slots among {', '.join(sorted(has - {'master'}))}, "
                f"got {name!r}"
            )
    return {name: _state_dtype(f"state_dtype[{name!r}]", one) for name, one in value.items()}


def _state_dtype(name: str, value: Any) -> str:
    try:
        found = value if isinstance(value, str) else np.dtype(value).name
    except TypeError:
        raise TypeError(f"{name} must be a dtype, got {value!r}") from None
    if found not in STATE_DTYPES:
        raise ValueError(f"{name} must be one of {', '.join(STATE_DTYPES)}, got {value!r}")
    found = STATE_DTYPES[STATE_DTYPES.index(found)]  # not one of a subclass
    if found == "bfloat16":
        dtype_named(found)
    return found


def checked_seed(value: Any) -> int:
    """A seed of random bits."""
    seed = integer("seed", value)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, got {value}")
    return seed


def checked_calls(value: int | None) -> int | None:
    """A number of calls for each step, or None for a step at each call."""
    name = "gradient_accumulation_steps"
    return None if value is None else positive_integer(name, value, "an integer or None")


def checked_reduction(value: Any) -> str:
    """What a step takes of the gradients of its calls."""
    return choice("gradient_accumulation_reduction", value, "mean", "sum")


def checked_threads(value: int | None) -> int | None:
    """A number of threads, or None for all that the process may use."""
    return None if value is None else positive_integer("num_threads", value, "an integer or None")


def checked_sparse(value: str) -> bool:
    """Whether the sparse mode is "exact"."""
    return choice("sparse", value, "rows", "exact") == "exact"


def checked_nonfinite(value: str) -> str:
    """The policy for gradients that are not finite."""
    return choice("nonfinite", value, "propagate", "skip", "raise")


def check_aggregate(former: bool | None, now: bool) -> None:
    """Check that the calls of a step agree whether gradients are summed; None before the first."""
    if former not in (None, now):
        raise ValueError(
            "experimental_aggregate_gradients must be the same in all calls of one step, got both "
            "values"
        )


def checked_function(name: str, value: Any) -> Any:
    """A callable or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, got {value!r}")
    return value


def checked_strategy(value: Any) -> Any:
    """A strategy, recognised by its method `reduced`, or None."""
    is_one = not isinstance(value, type) and callable(getattr(value, "reduced", None))
    if value is not None and not is_one:
        raise TypeError(f"strategy must be a strategy or None, got {value!r}")
    return value


def enrolled(strategy: Any) -> int:
    """The number of one more optimizer of a strategy, 0 if it does not number them."""
    enrol = getattr(strategy, "enrol", None)
    return 0 if enrol is None else enrol()


def checked_settings(
    sparse: str,
    nonfinite: str,
    track_norms: bool,
    num_threads: int | None,
    seed: int,
    strategy: Any,
) -> StepSettings:
    """The arguments that say how steps are taken."""
    return StepSettings(
        exact=checked_sparse(sparse),
        nonfinite=checked_nonfinite(nonfinite),
        track_norms=checked_flag("track_norms", track_norms),
        num_threads=checked_threads(num_threads),
        seed=checked_seed(seed),
        strategy=checked_strategy(strategy),
    )


def checked_functions(name: str, values: Sequence[Any] | None) -> list[Any]:
    """A list of callables, empty for None."""
    if values is not None and not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of callables, got {values!r}")
    functions = list(values or ())
    for position, function in enumerate(functions):
        if not callable(function):
            raise TypeError(f"{name}[{position}] must be callable, got {function!r}")
    return functions


def with_schedule(
    arguments: Mapping[str, Any], custom_objects: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Arguments with the learning rate as a schedule if it is the configuration of one."""
    rate = arguments.get("learning_rate")
    if not isinstance(rate, dict):
        return dict(arguments)
    from rmsjit import schedules

    schedule = schedules.deserialize(rate, custom_objects=dict(custom_objects or {}))
    return {**arguments, "learning_rate": schedule}


def initial_value(
    initializer: Initializer, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """The initial value of a slot or weight, in new memory."""
    if isinstance(initializer, str):
        if initializer not in ("zeros", "ones"):
            raise ValueError(
                f'initializer must be "zeros", "ones", an array or a callable, got {initializer!r}'
            )
        return np.full(shape, initializer == "ones", dtype)
    value = new_array(initializer(shape, dtype) if callable(initializer) else initializer, dtype)
    if value.shape != shape:
        raise ValueError(f"initializer must give shape {shape}, got {value.shape}")
    return value


def is_integer_scalar(array: Any) -> bool:
    """Whether a value is an array that can count steps."""
    return (
        isinstance(array, np.ndarray)
        and array.ndim == 0
        and array.dtype.kind in "iu"
        and array.dtype.isnative
        and array.flags.aligned
    )
