"""Masked arrays, which rmsjit rejects: masked elements have no value that may be used."""

from __future__ import annotations

import sys
from typing import Any


def is_masked(kind: type) -> bool:
    """Whether a type is that of masked arrays."""
    # Without it there are no masked arrays; another thread may be about to import it.
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)
    return masked is not None and issubclass(kind, masked)


def refuse_masked(value: Any, name: str) -> None:
    """Raise `TypeError` for a masked array or a list of them; `name` is for the message."""
    if isinstance(value, (list, tuple)):
        if value and not isinstance(value[0], (float, int)):  # skip lists of numbers
            for item in value:
                refuse_masked(item, name)
    elif is_masked(type(value)):
        raise TypeError(
            f"{name} must not be a masked array, since masked elements would be used as well: "
            f"pass x.filled(0) for a gradient that is zero there, or x.data to use all values"
        )
