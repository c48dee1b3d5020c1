"""What a NaN or an infinity in a gradient does: the one policy for every way to take a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROPAGATE, SKIP, RAISE = "propagate", "skip", "raise"


def accepts(policy: str, finite: NDArray[np.bool_], name: Callable[[int], str]) -> bool:
    """Whether a step is taken whose gradients are finite or not.

    Parameters
    ----------
    policy : {"propagate", "skip", "raise"}
    finite : bool array, shape (gradients,)
    name : callable
        How messages name the variable at a position.

    Raises
    ------
    FloatingPointError
        If it must not be, and that is an error.
    """
    if policy == PROPAGATE or finite.all():
        return True
    if policy == RAISE:
        names = ", ".join(name(int(k)) for k in np.flatnonzero(~finite))
        raise FloatingPointError(f"the gradient of {names} must be finite, got NaN or infinity")
    return False


def finite_gradients(gradients: list[Any]) -> NDArray[np.bool_]:
    """Which of some gradients, arrays or slices, are finite."""
    return np.array([np.isfinite(getattr(g, "values", g)).all() for g in gradients], np.bool_)
