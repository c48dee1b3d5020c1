"""Sparse gradients in which each row occurs once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEW = 8


def merged(
    values: NDArray[Any], indices: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The same slices with ascending, unique indices; duplicates are added in order."""
    if len(indices) < 2 or bool(np.all(indices[1:] > indices[:-1])):
        return values, indices
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    is_first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    starts = np.flatnonzero(is_first)
    sorted_values = values[order]
    if len(starts) < len(ordered):
        sorted_values = _sums(sorted_values, starts)
    return sorted_values, ordered[starts]


def _sums(values: NDArray[Any], starts: NDArray[np.int64]) -> NDArray[Any]:
    """The sums of groups of consecutive slices, each added strictly in order.

    All second slices are added at once, then all third ones; the last few long groups are finished
    one by one.  (`np.add.reduceat` may add in another order.)
    """
    lengths = np.diff(starts, append=len(values))
    sums = values[starts]
    done, active = 1, np.flatnonzero(lengths > 1)
    while len(active) > _FEW:
        sums[active] += values[starts[active] + done]
        done += 1
        active = active[lengths[active] > done]
    for group in active.tolist():
        rest = values[starts[group] + done : starts[group] + lengths[group]]
        sums[group] = np.add.accumulate(np.concatenate([sums[group : group + 1], rest]))[-1]
    return sums
