"""Bounds on the elements of a point, kept by projection."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Box:
    """The points whose elements are within bounds.

    Parameters
    ----------
    bounds : Bounds, sequence of (min, max), or None
        As for ``scipy.optimize.minimize``: an object with ``lb`` and ``ub``, or a pair for each
        element, in which None stands for no bound.
    x : ndarray
        A point, which gives the shape.

    Raises
    ------
    TypeError
        If `bounds` is something else.
    ValueError
        If it does not fit `x`, or a lower bound is above its upper one.
    """

    def __init__(self, bounds: Any, x: NDArray[Any]) -> None:
        self._limits: tuple[NDArray[Any], NDArray[Any]] | None = None
        if bounds is None:
            return
        low, high = _limits(bounds, x)
        if not (low <= high).all():
            position = np.argwhere(~(low <= high))[0].tolist()
            raise ValueError(f"bounds must have min <= max, got others for the element {position}")
        self._limits = low, high

    def project(self, x: NDArray[Any]) -> None:
        """Move a point, in place, to the nearest one within the bounds."""
        if self._limits is not None:
            np.clip(x, *self._limits, out=x)

    def slope(self, x: NDArray[Any], gradient: NDArray[Any]) -> float:
        """The largest element of a gradient, without what would lead out of the bounds."""
        if self._limits is not None:
            low, high = self._limits
            gradient = x - np.clip(x - gradient, low, high)
        return float(np.abs(gradient).max(initial=0.0))


def _limits(bounds: Any, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        low, high = np.asarray(bounds.lb, float), np.asarray(bounds.ub, float)
    else:
        low, high = _from_pairs(bounds, x)
    try:
        return (
            np.broadcast_to(low, x.shape).astype(x.dtype),
            np.broadcast_to(high, x.shape).astype(x.dtype),
        )
    except ValueError:
        raise ValueError(
            f"bounds must fit x of shape {x.shape}, got shapes {low.shape} and {high.shape}"
        ) from None


def _from_pairs(bounds: Any, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        pairs = [(low, high) for low, high in bounds]
    except (TypeError, ValueError):
        raise TypeError(
            f"bounds must be a scipy.optimize.Bounds or a sequence of (min, max), got {bounds!r}"
        ) from None
    if len(pairs) != x.size:
        raise ValueError(f"bounds must have a pair for each of {x.size} elements, got {len(pairs)}")
    low = [-np.inf if low is None else low for low, _ in pairs]
    high = [np.inf if high is None else high for _, high in pairs]
    return np.array(low, float).reshape(x.shape), np.array(high, float).reshape(x.shape)
