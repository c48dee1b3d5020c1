"""`IndexedSlices`: a gradient that names the rows it is not zero in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmsjit.variables import array_of


class IndexedSlices:
    """The rows of a gradient that are not zero, as an embedding lookup gives them.

    Row ``indices[k]`` of the gradient is ``values[k]``; an index that comes several times stands
    for the sum of its rows.

    Parameters
    ----------
    values : array_like, shape (n, ...)
        One slice for each index.
    indices : array_like of integers, shape (n,)
        Rows of the variable, in any order, repeats allowed.
    dense_shape : sequence of int, optional
        The shape of the whole gradient; known from the variable where it is left out.

    Raises
    ------
    TypeError
        If `indices` are not integers.
    ValueError
        If `indices` are not one-dimensional, there is not one slice for each, or `dense_shape`
        does not fit the slices.

    Examples
    --------
    >>> g = IndexedSlices([[1.0, 1.0], [2.0, 2.0]], [2, 0], dense_shape=(3, 2))
    >>> g.to_dense().tolist()
    [[2.0, 2.0], [0.0, 0.0], [1.0, 1.0]]
    """

    __slots__ = ("dense_shape", "indices", "values")

    def __init__(
        self,
        values: ArrayLike,
        indices: ArrayLike,
        dense_shape: Sequence[int] | None = None,
    ) -> None:
        self.values: NDArray[Any] = np.asarray(array_of(values))
        self.indices: NDArray[Any] = _as_indices(array_of(indices))
        if self.values.ndim == 0 or len(self.values) != len(self.indices):
            raise ValueError(
                f"values must hold one slice for each of the {len(self.indices)} indices, "
                f"got values of shape {self.values.shape}"
            )
        self.dense_shape = None if dense_shape is None else self._fitting(dense_shape)

    def _fitting(self, dense_shape: Sequence[int]) -> tuple[int, ...]:
        shape = tuple(int(length) for length in dense_shape)
        if not shape or shape[1:] != self.values.shape[1:]:
            raise ValueError(
                f"dense_shape must be (rows, *{self.values.shape[1:]}) to fit the values, "
                f"got {shape}"
            )
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the whole gradient, or None where it is not known."""
        return self.dense_shape

    def coalesce(self) -> IndexedSlices:
        """The same gradient with ascending indices, each once.

        Slices of one index are added in the order in which they occur.
        """
        unique, inverse = np.unique(self.indices, return_inverse=True)
        values = np.zeros((len(unique), *self.values.shape[1:]), self.values.dtype)
        np.add.at(values, inverse.reshape(-1), self.values)
        return IndexedSlices(values, unique, self.dense_shape)

    def to_dense(self) -> NDArray[Any]:
        """The whole gradient as an array.

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
        dense = np.zeros(self.dense_shape, self.values.dtype)
        np.add.at(dense, self.indices, self.values)
        return dense

    def _check_range(self, rows: int) -> None:
        outside = np.flatnonzero((self.indices < 0) | (self.indices >= rows))
        if len(outside):
            position = int(outside[0])
            raise IndexError(
                f"indices[{position}] is {self.indices[position]}, but there are {rows} rows"
            )

    def __repr__(self) -> str:
        return (
            f"IndexedSlices(values of shape {self.values.shape} and dtype {self.values.dtype}, "
            f"{len(self.indices)} indices, dense_shape={self.dense_shape})"
        )


def _as_indices(indices: ArrayLike) -> NDArray[Any]:
    array = np.asarray(indices)
    if array.size == 0 and not isinstance(indices, np.ndarray):
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"indices must be one-dimensional, got shape {array.shape}")
    return array
