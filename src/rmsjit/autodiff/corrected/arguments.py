"""Arguments of the corrected functions: by name, refused, or made arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from rmsjit.arrays.written import signature_of
from rmsjit.autodiff.autograd_names import anp, recordable
from rmsjit.autodiff.rules import name_of

Function = Callable[..., Any]
shape_of, ndim_of = anp.shape, anp.ndim  # which know boxes

# What to write instead of an argument that is refused.
INSTEAD = {
    "where": "select the elements first, with an index or np.where",
    "initial": "combine the result with the initial value, as in np.maximum(result, initial)",
    "correction": "use ddof",
    "mean": "leave it out",
    "out": "use the value that is returned",
}


def autograds(function: Any) -> Function:
    """autograd's version of a function of NumPy."""
    version = recordable(function)
    assert version is not None
    return version


def refused(function: Any, argument: str, instead: str) -> TypeError:
    """The error for an argument that a tape can't record."""
    return TypeError(f"a tape can't record {name_of(function)} with {argument}: {instead}")


def refuse_out(function: Any, keywords: dict[str, Any]) -> None:
    """Refuse to write a result to an array, since a tape would not know of it."""
    if keywords.get("out") is not None:
        raise refused(function, "out=", INSTEAD["out"])


def signature(function: Any) -> inspect.Signature:
    """That of a function that is known to have one."""
    found = signature_of(function)
    assert found is not None
    return found


def given_by_name(function: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """The arguments after the first by name, without those that are as NumPy has them anyway."""
    expected = signature(function)
    bound = expected.bind(*args, **keywords).arguments
    defaults = ((name, expected.parameters[name].default) for name in list(bound)[1:])
    return {name: bound[name] for name, default in defaults if bound[name] is not default}


def or_all(axis: Any, ndim: int) -> Any:
    """The axes that an argument means, as None means all."""
    return range(ndim) if axis is None else axis


def as_array(value: Any) -> Any:
    """Lists and numbers as arrays."""
    return value if hasattr(value, "dtype") else np.asarray(value)
