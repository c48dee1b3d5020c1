"""Functions that rearrange elements or work along axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from rmsjit.autodiff.autograd_names import anp, getval
from rmsjit.autodiff.corrected.arguments import (
    Function,
    ndim_of,
    or_all,
    refuse_out,
    refused,
    shape_of,
)


def _transpose(a: Any, axes: Any = None) -> Any:
    """autograd sorts the axes to invert them, so none may be negative."""
    return anp.transpose(a, None if axes is None else normalize_axis_tuple(axes, ndim_of(a)))


def _repeat(a: Any, repeats: Any, axis: Any = None) -> Any:
    """autograd expects a positive axis, and the same number for all elements."""
    if axis is None:
        a, axis = anp.ravel(a), 0
    axis = normalize_axis_index(axis, ndim_of(a))
    if np.size(repeats) == 1:
        return anp.repeat(a, int(np.reshape(repeats, ())), axis)
    rows = np.repeat(np.arange(shape_of(a)[axis]), repeats)
    return a[(slice(None),) * axis + (rows,)]


def _tile(A: Any, reps: Any) -> Any:  # noqa: N803  # NumPy's name
    """autograd aligns `reps` with the first axes and not with the last."""
    reps = (reps,) if ndim_of(reps) == 0 else tuple(reps)
    ndim = max(len(reps), ndim_of(A))
    shape = (1,) * (ndim - ndim_of(A)) + shape_of(A)
    return anp.tile(anp.reshape(A, shape), (1,) * (ndim - len(reps)) + reps)


def _roll(a: Any, shift: Any, axis: Any = None) -> Any:
    """autograd knows no tuples."""
    if axis is None:
        return anp.roll(a, int(np.sum(shift)))
    for one, along in np.broadcast(shift, axis):
        a = anp.roll(a, int(one), int(along))
    return a


def _reshape(a: Any, shape: Any, order: Any = "C", **keywords: Any) -> Any:
    """See `_order`."""
    return anp.reshape(a, shape, order=_order(a, order), **keywords)


def _ravel(a: Any, order: Any = "C") -> Any:
    """See `_order`."""
    return anp.ravel(a, order=_order(a, order))


def _order(a: Any, order: Any) -> Any:
    """C or F for A or K, which autograd applies to the gradient, whose memory may differ."""
    if order not in ("A", "K"):
        return order
    flags = getval(a).flags
    if order == "K" and not flags.forc:
        raise refused(np.ravel, 'order="K"', 'use order="C" or "F"')
    return "F" if flags.fnc else "C"


def _diag(v: Any, k: int = 0) -> Any:
    """autograd expects a square matrix."""
    if ndim_of(v) != 2:
        return anp.diag(v, k)
    height, width = shape_of(v)
    rows, columns = np.nonzero(np.eye(height, width, k, dtype=bool))
    return v[rows, columns]


def _pad(array: Any, pad_width: Any, mode: Any = "constant", **keywords: Any) -> Any:
    """autograd needs a mode, and a pair of widths for each axis."""
    if ndim_of(array) and not isinstance(pad_width, dict):
        pad_width = np.broadcast_to(pad_width, (ndim_of(array), 2))
    return anp.pad(array, pad_width, mode, **keywords)


def _concatenate(arrays: Any, axis: Any = 0, **keywords: Any) -> Any:
    """autograd needs an axis."""
    refuse_out(np.concatenate, keywords)
    for name in keywords.keys() - {"out"}:
        raise refused(np.concatenate, f"{name}=", "use astype")
    if axis is None:
        arrays, axis = [anp.ravel(anp.array(array)) for array in arrays], 0
    return anp.concatenate(arrays, axis)


def _gradient(f: Any, *spacing: Any, axis: Any = None, edge_order: int = 1) -> Any:
    """autograd expects at least four elements along each axis."""
    if spacing or edge_order != 1:
        raise refused(np.gradient, "spacing or edge_order=", "divide by the spacing afterwards")
    axes = normalize_axis_tuple(or_all(axis, ndim_of(f)), ndim_of(f))
    if min(shape_of(f), default=0) < 2:
        return np.gradient(getval(f), axis=axis)  # which raises an error
    slopes = tuple(_slope(f, along) for along in axes)
    return slopes[0] if len(slopes) == 1 else slopes


def _slope(f: Any, axis: int) -> Any:
    def part(start: int | None, stop: int | None) -> Any:
        return f[(slice(None),) * axis + (slice(start, stop),)]

    inner = (part(2, None) - part(None, -2)) / 2
    edges = part(1, 2) - part(0, 1), part(-1, None) - part(-2, -1)
    return anp.concatenate([edges[0], inner, edges[1]], axis)


VERSIONS: dict[Any, Function] = {
    np.concatenate: _concatenate,
    np.diag: _diag,
    np.gradient: _gradient,
    np.pad: _pad,
    np.ravel: _ravel,
    np.repeat: _repeat,
    np.reshape: _reshape,
    np.roll: _roll,
    np.tile: _tile,
    np.transpose: _transpose,
}
