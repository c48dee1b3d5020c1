"""Calling autograd's rules, with errors that name the function whose rule is at fault."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from rmsjit.autodiff.autograd_names import primitive_vjps, sparse_object_types
from rmsjit.autodiff.gather import Rows

_OF_AUTOGRAD = ("autograd", "numpy", "scipy")

# What a rule raises for arguments that its author has not thought of.
_FAULTS = (
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)


def name_of(function: Any) -> str:
    """The full name of a function, for errors."""
    function = getattr(function, "fun", function)  # autograd's version knows the original
    name = getattr(function, "__name__", repr(function))
    return f"{getattr(function, '__module__', None) or 'numpy'}.{name}"


def derivative(function: Any, call: tuple[Any, ...]) -> Any:
    """The derivative of `function` at the arguments of `call`.

    Raises
    ------
    NotImplementedError
        If the rule has not been written for such arguments.
    numpy.linalg.LinAlgError
        If there is no derivative, as for a singular matrix.
    """
    try:
        return primitive_vjps[function](*call)
    except _FAULTS as error:
        _raise_named(function, error)


def pulled_back(function: Any, pull: Any, gradient: Any) -> tuple[Any, ...]:
    """The parts that a derivative of `function` gives; raises as `derivative` does."""
    try:
        return tuple(pull(gradient))
    except _FAULTS as error:
        _raise_named(function, error)


def _raise_named(function: Any, error: Exception) -> NoReturn:
    name = name_of(function)
    if not _is_of_autograd(name):
        raise error
    kinds = np.linalg.LinAlgError, NotImplementedError
    kind = kinds[0] if isinstance(error, kinds[0]) else kinds[1]
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    raise kind(
        f"autograd can't differentiate {name} for these arguments ({reason}): use other "
        f"functions instead"
    ) from error


def check_shape(part: Any, shape: tuple[int, ...], function: Any) -> None:
    """Raise `ValueError` if a part of a gradient does not have the shape of its argument.

    The rule is wrong then.  Summing the part to the right shape would only hide it.
    """
    if isinstance(part, Rows) or type(part) in sparse_object_types:
        return
    got = part.shape if hasattr(part, "shape") else np.shape(part)
    if got != shape:
        name = name_of(function)
        whose = "autograd's" if _is_of_autograd(name) else "the"
        raise ValueError(
            f"{whose} derivative of {name} is wrong for these arguments: its shape is "
            f"{got}, and that of the argument {shape}; use other functions instead"
        )


def _is_of_autograd(name: str) -> bool:
    """Whether the rule of a function is autograd's, and not one that the user has written."""
    return name.split(".")[0] in _OF_AUTOGRAD
