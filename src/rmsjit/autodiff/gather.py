"""`gather`: rows of a table, with a sparse gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.autodiff import hooks
from rmsjit.autodiff.autograd_names import (
    anp,
    defjvp,
    defvjp,
    isbox,
    primitive,
    untake,
    vspace,
)
from rmsjit.indexed_slices import IndexedSlices, as_integers, check_rows
from rmsjit.variables import Variable, array_of


@primitive  # type: ignore[untyped-decorator]  # autograd has no types
def take_rows(table: Any, ids: NDArray[np.intp]) -> Any:
    """``table[ids]``, for ids that were checked."""
    return table.take(ids, axis=0)


# Dense rules, for autograd's own traces and for second derivatives.
defvjp(take_rows, lambda ans, table, ids: lambda g: untake(g, ids, vspace(table)))
defjvp(take_rows, lambda g, ans, table, ids: take_rows(g, ids))


class Rows(NamedTuple):
    """What one `take_rows` contributes to the gradient of its table."""

    ids: NDArray[np.intp]
    values: NDArray[Any]


def rows_pulled_back(
    positions: tuple[int, ...], value: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Any:
    """A derivative of `take_rows` with the signature of autograd's, which returns `Rows`."""
    ids = arguments[1]
    return lambda g: (Rows(ids, g),)


def slices_of(parts: list[Rows], shape: tuple[int, ...], dtype: np.dtype[Any]) -> IndexedSlices:
    """All parts, concatenated into the gradient of a table of `shape` and `dtype`."""
    row = shape[1:]
    values = [np.asarray(part.values, dtype).reshape(part.ids.size, *row) for part in parts]
    ids = [part.ids.reshape(-1) for part in parts]
    if len(parts) == 1:
        return IndexedSlices(values[0], ids[0], shape)
    return IndexedSlices(np.concatenate(values), np.concatenate(ids), shape)


def conjugate(gradient: Any) -> Any:
    """The complex conjugate of a dense or sparse gradient."""
    if isinstance(gradient, IndexedSlices):
        return IndexedSlices(gradient.values.conj(), gradient.indices, gradient.dense_shape)
    return anp.conj(gradient)


def gather(params: Any, indices: Any) -> Any:
    """Take rows of a variable, so that its gradient is sparse.

    If a variable is used only through `gather`, its gradient is an `IndexedSlices` of all rows
    taken, in order of use.  If it is also used in other ways, such as ``params[indices]``, the
    gradient is dense.  A gradient that a tape records is dense too, so it can be differentiated
    again.

    Parameters
    ----------
    params : Variable, array or result, shape (n, ...)
    indices : array_like of integers, any shape
        Each at least 0 and less than n.

    Returns
    -------
    array or Traced, shape indices.shape + params.shape[1:]
        ``params[indices]``.

    Raises
    ------
    TypeError
        If `indices` are not integers.
    ValueError
        If `params` has no dimensions, and so no rows.
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
    ids = as_integers(array_of(indices))
    if not table.shape:
        raise ValueError("params must have rows to gather, got a number of shape ()")
    check_rows(ids, table.shape[0])
    ids = np.array(ids, np.intp)  # a copy: the caller may reuse theirs before the backward pass
    memory = table.stands_for if isinstance(table, hooks.Recorded) else table
    if isinstance(memory, np.ndarray):
        hooks.announce_gather(memory, ids.reshape(-1))
    return take_rows(table, ids)
