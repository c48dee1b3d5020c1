"""Checks of constructor arguments that both optimizers share."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmsjit.hyperparameters import checked, in_unit_interval


def checked_name(name: Any) -> str:
    """A prefix for the names of slots."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"name must be a string that is not empty, got {name!r}")
    return name


def checked_factor(name: str, value: Any) -> Any:
    """A number between 0 and 1, or a callable that will be asked for one."""
    value = checked(name, value)
    return value if callable(value) else in_unit_interval(name, value)


def checked_threads(value: int | None) -> int | None:
    """A number of threads, or None for as many as may be used."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"num_threads must be an integer or None, got {value!r}")
    if value < 1:
        raise ValueError(f"num_threads must be at least 1, got {value}")
    return int(value)


def checked_sparse(value: str) -> bool:
    """Whether sparse gradients are to be exact."""
    if value not in ("rows", "exact"):
        raise ValueError(f'sparse must be "rows" or "exact", got {value!r}')
    return value == "exact"
