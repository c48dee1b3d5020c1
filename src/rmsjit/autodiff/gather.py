"""Rows taken from a table, and the gradient that names them instead of filling a table."""

from __future__ import annotations

from typing import Any, NamedTuple

import autograd.numpy as anp
import numpy as np
from autograd.extend import defjvp, defvjp, primitive, vspace
from autograd.numpy.numpy_vjps import untake
from autograd.tracer import isbox
from numpy.typing import NDArray

from rmsjit.autodiff import hooks
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.variables import Variable, array_of


@primitive  # type: ignore[untyped-decorator]  # autograd has no types
def take_rows(table: Any, ids: NDArray[np.intp]) -> Any:
    """``table[ids]``, for ids known to be rows."""
    return table.take(ids, axis=0)


# What autograd's own traces and second derivatives use, which know dense gradients only.
defvjp(take_rows, lambda ans, table, ids: lambda g: untake(g, ids, vspace(table)))
defjvp(take_rows, lambda g, ans, table, ids: take_rows(g, ids))


class Rows(NamedTuple):
    """What one `take_rows` adds to its table's gradient."""

    ids: NDArray[np.intp]
    values: NDArray[Any]


def rows_pulled_back(
    positions: tuple[int, ...], value: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Any:
    """A rule for `take_rows` in the form of autograd's, but giving `Rows`."""
    ids = arguments[1]
    return lambda g: (Rows(ids, g),)


def slices_of(parts: list[Rows], shape: tuple[int, ...], dtype: np.dtype[Any]) -> IndexedSlices:
    """All parts behind each other, as the gradient of a table of `shape` and `dtype`."""
    row = shape[1:]
    values = [np.asarray(part.values, dtype).reshape(part.ids.size, *row) for part in parts]
    ids = [part.ids.reshape(-1) for part in parts]
    if len(parts) == 1:
        return IndexedSlices(values[0], ids[0], shape)
    return IndexedSlices(np.concatenate(values), np.concatenate(ids), shape)


def conjugate(gradient: Any) -> Any:
    """The complex conjugate of a gradient, dense or sparse."""
    if isinstance(gradient, IndexedSlices):
        return IndexedSlices(gradient.values.conj(), gradient.indices, gradient.dense_shape)
    return anp.conj(gradient)


def gather(params: Any, indices: Any) -> Any:
    """Rows of a variable, whose gradient then names these rows only.

    The gradient of a variable that is used through `gather` alone is an `IndexedSlices` of all
    rows taken, in order of use; together with other uses it is dense, and so is that of
    ``params[indices]``.  A gradient that a tape records is dense as well, so that it can be
    differentiated again.

    Parameters
    ----------
    params : Variable, array or result, shape (n, ...)
    indices : array_like of integers, any shape
        Each at least 0 and less than n.

    Returns
    -------
    array or Traced, shape (*indices.shape, ...)
        ``params[indices]``.

    Raises
    ------
    TypeError
        If `indices` are not integers.
    ValueError
        If `params` has no rows, that is no dimensions.
    IndexError
        If an index is out of range.

    Examples
    --------
    >>> from rmsjit import GradientTape
    >>> table = Variable([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> with GradientTape() as tape:
    ...     loss = gather(table, [2, 0, 2]).sum()
    >>> slices = tape.gradient(loss, table)
    >>> slices.indices.tolist(), slices.values.tolist()
    ([2, 0, 2], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    """
    table = hooks.read(params) if isinstance(params, Variable) else params
    if not isbox(table):
        table = np.asanyarray(table)
    rows = _checked_rows(indices, table.shape)
    memory = table.stands_for if isinstance(table, hooks.Recorded) else table
    if isinstance(memory, np.ndarray):
        hooks.announce_gather(memory, rows.reshape(-1))
    return take_rows(table, rows)


def _checked_rows(indices: Any, shape: tuple[int, ...]) -> NDArray[np.intp]:
    """The indices as a new array of rows of a table of `shape`."""
    given = np.asarray(array_of(indices))
    if given.size == 0 and not isinstance(indices, np.ndarray):
        given = given.astype(np.intp)  # an empty list has no dtype of its own
    if given.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {given.dtype}")
    if not shape:
        raise ValueError("params must have rows to gather, got a number of shape ()")
    outside = (given < 0) | (given >= shape[0])
    if outside.any():
        position = tuple(int(i) for i in np.argwhere(outside)[0])
        where = f"[{', '.join(map(str, position))}]" if position else ""
        raise IndexError(
            f"indices{where} is {given[position]}, but there are {shape[0]} rows, from 0 up"
        )
    return np.array(given, np.intp)  # copied: the caller may reuse theirs before the way back
