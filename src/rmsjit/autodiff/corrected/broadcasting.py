"""Functions that repeat their arguments along axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmsjit.autodiff.autograd_names import anp, getval, isbox
from rmsjit.autodiff.corrected.arguments import (
    Function,
    as_array,
    given_by_name,
    ndim_of,
    refuse_out,
    refused,
    shape_of,
)


def spread(value: Any, shape: tuple[int, ...]) -> Any:
    """The value repeated to a shape; unlike a sum with zeros, a product with ones keeps -0.0."""
    if shape_of(value) == shape:
        return value
    value = as_array(value)
    return value * np.ones(shape, value.dtype)


def _common_shape(*values: Any) -> tuple[int, ...]:
    return np.broadcast(*map(getval, values)).shape


def where(condition: Any, *choices: Any) -> Any:
    """autograd does not sum over the axes along which a choice was repeated."""
    shape = _common_shape(condition, *choices)
    return anp.where(condition, *[spread(x, shape) if isbox(x) else x for x in choices])


def _clip(
    a: Any,
    a_min: Any = None,
    a_max: Any = None,
    out: Any = None,
    *,
    min: Any = None,  # noqa: A002
    max: Any = None,  # noqa: A002
    **keywords: Any,
) -> Any:
    """autograd neither sums over repeated axes nor knows `min` and `max`."""
    refuse_out(np.clip, {"out": out})
    low, high = min if a_min is None else a_min, max if a_max is None else a_max
    bounds = (bound for bound in (low, high) if bound is not None)
    return anp.clip(spread(a, _common_shape(a, *bounds)), low, high, **keywords)


def _broadcast_to(array: Any, shape: Any, subok: bool = False) -> Any:
    """autograd knows no new axes and no lists."""
    shape = (shape,) if ndim_of(shape) == 0 else tuple(shape)
    lead = (1,) * (len(shape) - ndim_of(array))
    return anp.broadcast_to(anp.reshape(array, lead + shape_of(array)), shape)


def _solve(a: Any, b: Any) -> Any:
    """autograd does not sum over repeated matrices."""
    if ndim_of(b) == 1:
        return _solve(a, anp.reshape(b, (-1, 1)))[..., 0] if ndim_of(a) > 2 else _linsolve(a, b)
    stack = np.broadcast_shapes(shape_of(a)[:-2], shape_of(b)[:-2])
    return _linsolve(*(spread(x, stack + shape_of(x)[-2:]) for x in (a, b)))


_linsolve = anp.linalg.solve


def _einsum(subscripts: Any, *operands: Any, **keywords: Any) -> Any:
    """autograd does not sum over the axes along which an operand was repeated."""
    refuse_out(np.einsum, keywords)
    if isinstance(subscripts, str) and "." not in subscripts:
        labels = subscripts.replace(" ", "").split("->")[0].split(",")
        sizes: dict[str, int] = {}
        for names, operand in zip(labels, operands, strict=True):
            for name, size in zip(names, shape_of(operand), strict=True):
                sizes[name] = max(size, sizes.get(name, size))
        whole = [tuple(sizes[name] for name in names) for names in labels]
        operands = tuple(map(spread, operands, whole))
    return anp.einsum(subscripts, *operands, **keywords)


def _cross(a: Any, b: Any, *axes: Any, **keywords: Any) -> Any:
    """autograd does not sum over repeated vectors."""
    if shape_of(a) != shape_of(b) and not axes and not keywords:
        a, b = (spread(x, _common_shape(a, b)) for x in (a, b))
    return anp.cross(a, b, *axes, **keywords)


def _outer(a: Any, b: Any, **keywords: Any) -> Any:
    """autograd expects vectors."""
    return anp.outer(
        *(x if ndim_of(x) == 1 else anp.ravel(as_array(x)) for x in (a, b)), **keywords
    )


def _triangle(version: Function) -> Function:
    """autograd does not sum over the rows that a vector is repeated to."""

    def triangle(m: Any, k: int = 0) -> Any:
        return version(spread(m, shape_of(m) * 2) if ndim_of(m) == 1 else m, k)

    return triangle


def _full_like(a: Any, fill_value: Any, *args: Any, **keywords: Any) -> Any:
    """autograd takes the result for a constant, whatever fills it."""
    if not isbox(fill_value):
        return anp.full_like(a, fill_value, *args, **keywords)
    if args or keywords:
        raise refused(np.full_like, "dtype= or other options", "use astype")
    return spread(fill_value, shape_of(a)).astype(getval(a).dtype)


def _linspace(start: Any, stop: Any, *args: Any, **keywords: Any) -> Any:
    """autograd expects numbers, and the end point."""
    given = given_by_name(np.linspace, (start, stop, *args), keywords)
    num, endpoint = given.get("num", 50), given.get("endpoint", True)
    for name in given.keys() - {"stop", "num", "endpoint"}:
        raise refused(np.linspace, f"{name}=", "use astype or np.moveaxis on the result")
    if shape_of(start) == shape_of(stop) == () and endpoint:
        return anp.linspace(start, stop, num)
    slope = (stop - start) / max(num - bool(endpoint), 1)
    steps = np.arange(num, dtype=slope.dtype).reshape(-1, *(1,) * len(shape_of(slope)))
    points = steps * slope + start
    if not endpoint or num < 2:
        return points
    end = stop if isbox(stop) else np.asarray(stop, slope.dtype)
    return anp.concatenate([points[:-1], spread(end, shape_of(slope))[None]])


VERSIONS: dict[Any, Function] = {
    np.broadcast_to: _broadcast_to,
    np.clip: _clip,
    np.cross: _cross,
    np.einsum: _einsum,
    np.full_like: _full_like,
    np.linalg.solve: _solve,
    np.linspace: _linspace,
    np.outer: _outer,
    np.tril: _triangle(anp.tril),
    np.triu: _triangle(anp.triu),
    np.where: where,
}
