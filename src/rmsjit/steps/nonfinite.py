"""The policy for NaN and infinity in gradients, shared by all ways to take a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROPAGATE, RAISE = "propagate", "raise"  # the third policy is "skip"


def accepts(policy: str, finite: NDArray[np.bool_], name: Callable[[int], str]) -> bool:
    """Whether to take a step, given which gradients are finite.

    Parameters
    ----------
    policy : {"propagate", "skip", "raise"}
    finite : bool array, shape (gradients,)
    name : callable
        How messages name the variable at a position.

    Raises
    ------
    FloatingPointError
        If a gradient is not finite and the policy is "raise".
    """
    if policy == PROPAGATE or finite.all():
        return True
    if policy == RAISE:
        names = ", ".join(name(int(k)) for k in np.flatnonzero(~finite))
        raise FloatingPointError(f"the gradient of {names} must be finite, got NaN or infinity")
    return False


def finite_gradients(gradients: list[Any]) -> NDArray[np.bool_]:
    """Which gradients, arrays or slices, are finite."""
    return np.array([np.isfinite(getattr(g, "values", g)).all() for g in gradients], np.bool_)
