"""Masked arrays, which rmsjit refuses: what lies under a mask is no number to use."""

from __future__ import annotations

import sys
from typing import Any


def is_masked(kind: type) -> bool:
    """Whether arrays of a type have a mask."""
    module = sys.modules.get("numpy.ma")  # nothing is masked where nobody has imported it
    return module is not None and issubclass(kind, module.MaskedArray)


def refuse_masked(value: Any, name: str) -> None:
    """Raise `TypeError` for a masked array, or a list of such.

    Parameters
    ----------
    value : object
    name : str
        How the message calls it.
    """
    if isinstance(value, (list, tuple)):
        if value and not isinstance(value[0], (float, int)):  # else it is a row of numbers
            for item in value:
                refuse_masked(item, name)
    elif is_masked(type(value)):
        raise TypeError(
            f"{name} must not be a masked array, since what lies under the mask would be used: "
            f"give x.filled(0) for a gradient that is zero there, x.data for all values"
        )
