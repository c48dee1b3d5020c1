"""Functions as hyperparameters: without arguments, or of the step."""

from __future__ import annotations

import inspect
from typing import Any


def takes_step(name: str, function: Any) -> bool:
    """Whether a function is one of the step, rather than one without arguments.

    One that can be called without arguments is called so, even if it accepts some.

    Parameters
    ----------
    name : str
        The hyperparameter, for the error message.
    function : callable

    Returns
    -------
    bool

    Raises
    ------
    TypeError
        If it needs more than one argument.

    Examples
    --------
    >>> takes_step("rho", lambda: 0.9), takes_step("rho", lambda step: 0.9)
    (False, True)
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C don't tell
        return False
    if _accepts(signature):
        return False
    if _accepts(signature, 0):
        return True
    raise TypeError(
        f"{name} must be a function without arguments or of the step, got {function!r}, "
        f"which takes {signature}"
    )


def _accepts(signature: inspect.Signature, *arguments: Any) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True
