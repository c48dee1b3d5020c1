"""`IndexedSlices`: a gradient that names the rows it is not zero in."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmsjit.arrays.dtypes import precision_of
from rmsjit.arrays.masked import refuse_masked
from rmsjit.variables import array_of


class IndexedSlices:
    """The rows of a gradient that are not zero, as an embedding lookup gives them.

    Row ``indices[k]`` of the gradient is ``values[k]``; an index that comes several times stands
    for the sum of its rows.  Arrays are held as they are, not copied, and whether an index is a
    row of the variable is checked when an optimizer takes the gradient.

    Parameters
    ----------
    values : array_like or Variable, shape (n, ...)
        One slice for each index.
    indices : array_like or Variable of integers, shape (n,)
        Rows of the variable, in any order, repeats allowed; of any integer dtype.
    dense_shape : sequence of int, optional
        The shape of the whole gradient; known from the variable where it is left out.

    Attributes
    ----------
    values : ndarray
    indices : ndarray
    dense_shape : tuple of int or None
    dtype : numpy.dtype
        Of the values.

    Raises
    ------
    TypeError
        If `values` are not numbers, or `indices` or `dense_shape` not integers.
    ValueError
        If `indices` are not one-dimensional, there is not one slice for each, or `dense_shape`
        does not fit the slices.

    Examples
    --------
    >>> g = IndexedSlices([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], [2, 0, 2], dense_shape=(3, 2))
    >>> g.to_dense().tolist()
    [[2.0, 2.0], [0.0, 0.0], [4.0, 4.0]]
    """

    __slots__ = ("_dense_shape", "_indices", "_values")

    def __init__(
        self,
        values: ArrayLike,
        indices: ArrayLike,
        dense_shape: Sequence[int] | None = None,
    ) -> None:
        refuse_masked(array_of(values), "values")
        refuse_masked(array_of(indices), "indices")
        self._values = _as_numbers(array_of(values))
        self._indices = _as_indices(array_of(indices))
        if self.values.ndim == 0 or len(self.values) != len(self.indices):
            raise ValueError(
                f"values must hold one slice for each of the {len(self.indices)} indices, "
                f"got values of shape {self.values.shape}"
            )
        self._dense_shape = None if dense_shape is None else _as_shape(dense_shape, self.values)

    @classmethod
    def from_scipy(cls, matrix: Any) -> IndexedSlices:
        """The rows of a ``scipy.sparse`` matrix in which something is stored, as dense rows.

        Such a matrix is what ``x.T @ slope`` gives for a sparse batch ``x``: the gradient of
        weights of which the batch uses only a few rows.

        Parameters
        ----------
        matrix : scipy.sparse matrix or array, shape (rows, columns)
            Of any format; CSR needs no conversion.

        Raises
        ------
        TypeError
            If `matrix` is not sparse.
        ValueError
            If it is not two-dimensional.

        Examples
        --------
        >>> from scipy.sparse import csr_array
        >>> g = IndexedSlices.from_scipy(csr_array([[0.0, 0.0], [0.0, 5.0], [0.0, 0.0]]))
        >>> g.indices.tolist(), g.values.tolist(), g.dense_shape
        ([1], [[0.0, 5.0]], (3, 2))
        """
        if not hasattr(matrix, "tocsr"):
            raise TypeError(
                f"matrix must be a scipy.sparse matrix or array, got {type(matrix).__name__}"
            )
        if len(matrix.shape) != 2:
            raise ValueError(f"matrix must be two-dimensional, got shape {matrix.shape}")
        by_rows = matrix.tocsr()
        rows = np.flatnonzero(np.diff(by_rows.indptr))
        return cls(by_rows[rows].toarray(), rows, matrix.shape)

    @property
    def values(self) -> NDArray[Any]:
        return self._values

    @property
    def indices(self) -> NDArray[Any]:
        return self._indices

    @property
    def dense_shape(self) -> tuple[int, ...] | None:
        return self._dense_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the whole gradient, or None where it is not known."""
        return self.dense_shape

    def coalesce(self) -> IndexedSlices:
        """The same gradient with ascending indices, each once.

        Slices of one index are added in the order in which they occur; half types in float32,
        rounded once, and small integers in large ones, as ``np.sum`` adds them.
        """
        rows, places = np.unique(self.indices, return_inverse=True)
        return IndexedSlices(self._summed(places.reshape(-1), len(rows)), rows, self.dense_shape)

    def to_dense(self) -> NDArray[Any]:
        """The whole gradient as an array; slices are added as by `coalesce`.

        Raises
        ------
        ValueError
            If `dense_shape` is not known.
        IndexError
            If an index is not a row of it.
        """
        if self.dense_shape is None:
            raise ValueError("to_dense needs dense_shape, which is not known")
        self._check_range(self.dense_shape[0])
        return self._summed(self.indices.astype(np.intp), self.dense_shape[0])

    def _check_range(self, rows: int) -> None:
        outside = np.flatnonzero((self.indices < 0) | (self.indices >= rows))
        if len(outside):
            position = int(outside[0])
            raise IndexError(
                f"indices[{position}] is {self.indices[position]}, but there are {rows} rows"
            )

    def _summed(self, targets: NDArray[np.intp], count: int) -> NDArray[Any]:
        """`count` slices, each the sum of those `values` that have its number in `targets`."""
        dtype = self.values[:0].sum().dtype
        precision = precision_of(dtype)
        wide = precision.computing if precision and precision.components == 1 else dtype
        row = self.values.shape[1:]
        width = int(np.prod(row))
        sums = np.zeros(count * width, wide)
        # NumPy adds single elements several times faster than whole slices.
        elements = targets[:, np.newaxis] * width + np.arange(width)
        np.add.at(sums, elements.reshape(-1), self.values.astype(wide).reshape(-1))
        return sums.astype(dtype, copy=False).reshape(count, *row)

    def __repr__(self) -> str:
        return (
            f"IndexedSlices(values of shape {self.values.shape} and dtype {self.values.dtype}, "
            f"{len(self.indices)} indices, dense_shape={self.dense_shape})"
        )


def _as_numbers(values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "biufc" and precision_of(array.dtype) is None:
        raise TypeError(f"values must be numbers, got dtype {array.dtype}")
    return array


def _as_indices(indices: ArrayLike) -> NDArray[Any]:
    array = np.asarray(indices)
    if array.size == 0 and not isinstance(indices, np.ndarray):
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"indices must be one-dimensional, got shape {array.shape}")
    return array


def _as_shape(dense_shape: Sequence[int], values: NDArray[Any]) -> tuple[int, ...]:
    try:
        shape = tuple(map(operator.index, dense_shape))
    except TypeError:
        raise TypeError(f"dense_shape must be a tuple of integers, got {dense_shape!r}") from None
    if not shape or shape[0] < 0 or shape[1:] != values.shape[1:]:
        raise ValueError(
            f"dense_shape must be (rows, *{values.shape[1:]}) to fit the values, got {shape}"
        )
    return shape
