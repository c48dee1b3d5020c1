"""Which of their arguments NumPy's functions write to."""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import Any

import numpy as np

# Functions that write to their first argument, and its name.
_WRITERS = {
    np.copyto: "dst",
    np.fill_diagonal: "a",
    np.place: "arr",
    np.put: "a",
    np.put_along_axis: "arr",
    np.putmask: "a",
}


def written_arguments(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments of a call that a function of NumPy writes to; some may be None."""
    given = _by_name(function, args, kwargs)
    out = given.get("out", ())
    targets = [*(out if isinstance(out, tuple) else (out,)), given.get(_WRITERS.get(function, ""))]
    if function is np.nan_to_num and not given.get("copy", True):
        targets.append(given["x"])
    return targets


def _by_name(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a function of NumPy by the names of its parameters."""
    signature = signature_of(function)
    if signature is not None:
        with contextlib.suppress(TypeError):  # wrong arguments, which the function refuses itself
            return signature.bind(*args, **kwargs).arguments
    return dict(zip([_WRITERS.get(function, "")], args, strict=False)) | kwargs


@functools.cache
def signature_of(function: Any) -> inspect.Signature | None:
    """The parameters of a function; None for some compiled ones."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None
