"""Settings that only the constructor sets, as attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def fixed_at_construction(read: Callable[[Any], Any]) -> Any:
    """A property whose assignment raises an `AttributeError` that says what to do instead.

    The error is also for subclasses that want an attribute of their own with this name.
    """
    name = getattr(read, "__name__", "")

    def refuse(optimizer: Any, value: Any) -> None:
        raise AttributeError(
            f"{name} of {type(optimizer).__name__} is fixed at construction, got {value!r}: pass "
            f"it to the constructor of the optimizer; an attribute that a subclass adds needs "
            f"another name"
        )

    return property(read, refuse, doc=read.__doc__)
