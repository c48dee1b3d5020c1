"""Reductions, whose options autograd ignores or knows by position only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from rmsjit.autodiff.autograd_names import anp, getval
from rmsjit.autodiff.corrected.arguments import (
    INSTEAD,
    Function,
    autograds,
    given_by_name,
    ndim_of,
    or_all,
    refused,
    shape_of,
)


def _reduction(function: Any, *recorded: str) -> Function:
    """autograd's version, called by keyword and only with the `recorded` arguments."""
    version = autograds(function)
    known = {"axis", "keepdims", *recorded}

    def reduce(a: Any, *args: Any, **keywords: Any) -> Any:
        if args or not keywords.keys() <= known:
            keywords = given_by_name(function, (a, *args), keywords)
            if keywords.get("where") is True:
                del keywords["where"]
            for name in keywords.keys() - known:
                raise refused(function, f"{name}=", INSTEAD[name])
        return version(a, **keywords)

    return reduce


_product = _reduction(np.prod, "dtype")


def _prod(a: Any, *args: Any, **keywords: Any) -> Any:
    """autograd divides the product by each factor, which may be zero."""
    if np.all(getval(a)):
        return _product(a, *args, **keywords)
    given = given_by_name(np.prod, (a, *args), keywords)
    if given.keys() - {"axis", "keepdims"}:
        return _product(a, **given)
    axes = normalize_axis_tuple(or_all(given.get("axis"), ndim_of(a)), ndim_of(a))
    shape = shape_of(a)
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    factors = anp.reshape(anp.transpose(a, (*axes, *rest)), (-1, *(shape[axis] for axis in rest)))
    while len(factors) > 1:
        half = len(factors) // 2
        pairs = factors[:half] * factors[half : 2 * half]
        factors = anp.concatenate([pairs, factors[2 * half :]])
    return anp.reshape(factors[0], _reduced(shape, axes, given.get("keepdims", False)))


def _reduced(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """The shape of a reduction over `axes`."""
    if keepdims:
        return tuple(1 if axis in axes else length for axis, length in enumerate(shape))
    return tuple(length for axis, length in enumerate(shape) if axis not in axes)


_BY_ELEMENTS = {
    1: lambda a, **where: anp.sum(anp.abs(a), **where),
    np.inf: lambda a, **where: anp.max(anp.abs(a), **where),
    -np.inf: lambda a, **where: anp.min(anp.abs(a), **where),
}


def _norm(
    x: Any,
    ord: Any = None,  # noqa: A002  # NumPy's names
    axis: Any = None,
    keepdims: bool = False,
) -> Any:
    """autograd ignores `keepdims`, takes axes as positive, and gets NaN for infinite orders."""
    ndim = ndim_of(x)
    if axis is not None:
        axis = normalize_axis_tuple(axis, ndim)
        axis = axis[0] if len(axis) == 1 else axis
    if ord in _BY_ELEMENTS and (isinstance(axis, int) or (axis is None and ndim == 1)):
        return _BY_ELEMENTS[ord](x, axis=axis, keepdims=keepdims)
    norm = anp.linalg.norm(x, ord, axis)
    if not keepdims:
        return norm
    axes = normalize_axis_tuple(or_all(axis, ndim), ndim)
    return anp.reshape(norm, _reduced(shape_of(x), axes, keepdims=True))


VERSIONS: dict[Any, Function] = {
    np.amax: _reduction(np.amax),
    np.amin: _reduction(np.amin),
    np.max: _reduction(np.max),
    np.mean: _reduction(np.mean, "dtype"),
    np.min: _reduction(np.min),
    np.prod: _prod,
    np.std: _reduction(np.std, "dtype", "ddof"),
    np.sum: _reduction(np.sum, "dtype"),
    np.var: _reduction(np.var, "dtype", "ddof"),
    np.linalg.norm: _norm,
}
