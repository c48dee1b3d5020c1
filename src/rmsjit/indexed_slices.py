"""`IndexedSlices`: a gradient that is zero except in some rows."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmsjit.arrays.dtypes import precision_of
from rmsjit.arrays.masked import refuse_masked
from rmsjit.arrays.tensors import array_of_tensor
from rmsjit.variables import array_of


class IndexedSlices:
    """The nonzero rows of a gradient, such as that of an embedding lookup.

    Row ``indices[k]`` of the gradient is ``values[k]``.  If an index occurs several times, its row
    is the sum of their values.  Arrays are not copied.  Whether the indices are rows of the
    variable is checked when an optimizer gets the gradient.

    Parameters
    ----------
    values : array_like or Variable, shape (n, ...)
        One slice for each index.
    indices : array_like or Variable of integers, shape (n,)
        Rows of the variable, in any order, repeats allowed; of any integer dtype.
    dense_shape : sequence of int, optional
        The shape of the whole gradient; an optimizer does not need it.

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
        If `values` are not numbers, or `indices` or `dense_shape` are not integers.
    ValueError
        If `indices` are not one-dimensional, `values` does not have one slice per index, or
        `dense_shape` does not match the slices.

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
        self._indices = as_integers(array_of(indices))
        if self.indices.ndim != 1:
            raise ValueError(f"indices must be one-dimensional, got shape {self.indices.shape}")
        if self.values.ndim == 0 or len(self.values) != len(self.indices):
            raise ValueError(
                f"values must hold one slice for each of the {len(self.indices)} indices, "
                f"got values of shape {self.values.shape}"
            )
        self._dense_shape = None if dense_shape is None else _as_shape(dense_shape, self.values)

    @classmethod
    def from_scipy(cls, matrix: Any) -> IndexedSlices:
        """The rows of a ``scipy.sparse`` matrix that have stored elements, as dense rows.

        For a sparse batch ``x``, ``x.T @ slope`` is such a matrix: the gradient of weights when the
        batch uses few of their rows.

        Parameters
        ----------
        matrix : scipy.sparse matrix or array, shape (rows, columns)
            In any format; CSR needs no conversion.

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

    @classmethod
    def from_tensorflow(cls, slices: Any) -> IndexedSlices:
        """A ``tf.IndexedSlices``, as TensorFlow gives the gradient of ``tf.gather``.

        Parameters
        ----------
        slices : tf.IndexedSlices
            Whose tensors have values (eager mode).

        Raises
        ------
        TypeError
            If `slices` is something else.

        Examples
        --------
        ::

            gradient = tape.gradient(loss, table)
            opt.apply_gradients([(rmsjit.IndexedSlices.from_tensorflow(gradient), array)])
        """
        if not all(hasattr(slices, name) for name in ("values", "indices", "dense_shape")):
            raise TypeError(f"slices must be a tf.IndexedSlices, got {type(slices).__name__}")
        shape = slices.dense_shape
        return cls(
            array_of_tensor(slices.values),
            array_of_tensor(slices.indices),
            None if shape is None else array_of_tensor(shape).tolist(),
        )

    @classmethod
    def from_torch(cls, tensor: Any) -> IndexedSlices:
        """The rows of a ``torch.sparse_coo`` tensor in which something is stored, as dense rows.

        Such a tensor is the gradient of ``torch.nn.Embedding(..., sparse=True)``.

        Parameters
        ----------
        tensor : torch.Tensor, shape (rows, ...)
            Of the layout ``torch.sparse_coo``, coalesced or not.  One with single elements stored
            (``sparse_dim`` above 1) gives whole rows that are 0 elsewhere.

        Raises
        ------
        TypeError
            If `tensor` is of another layout.

        Examples
        --------
        ::

            loss.backward()
            gradient = rmsjit.IndexedSlices.from_torch(embedding.weight.grad)
            opt.apply_gradients([(gradient, embedding.weight.detach().numpy())])
        """
        if not getattr(tensor, "is_sparse", False):
            layout = getattr(tensor, "layout", type(tensor).__name__)
            raise TypeError(f"tensor must be of the layout torch.sparse_coo, got {layout}")
        places = array_of_tensor(tensor._indices())  # those of indices() must be coalesced
        values = array_of_tensor(tensor._values())
        if len(places) == 1:
            return cls(values, places[0], tuple(tensor.shape))
        rows, numbers = np.unique(places[0], return_inverse=True)
        whole = np.zeros((len(rows), *tensor.shape[1:]), values.dtype)
        np.add.at(whole, (numbers, *places[1:]), values)
        return cls(whole, rows, tuple(tensor.shape))

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
        """The shape of the whole gradient, or None if it is not known."""
        return self.dense_shape

    def coalesce(self) -> IndexedSlices:
        """The same gradient with unique, ascending indices.

        Slices with the same index are added in order.  16-bit floats are added in float32 and
        rounded once; small integers are added in a larger type, as by ``np.sum``.
        """
        rows, places = np.unique(self.indices, return_inverse=True)
        return IndexedSlices(self._summed(places.reshape(-1), len(rows)), rows, self.dense_shape)

    def to_dense(self) -> NDArray[Any]:
        """The whole gradient as an array; slices are added as in `coalesce`.

        Raises
        ------
        ValueError
            If `dense_shape` is not known.
        IndexError
            If an index is out of range.
        """
        if self.dense_shape is None:
            raise ValueError("to_dense needs dense_shape, which is not known")
        check_rows(self.indices, self.dense_shape[0])
        return self._summed(self.indices.astype(np.intp), self.dense_shape[0])

    def _summed(self, targets: NDArray[np.intp], count: int) -> NDArray[Any]:
        """`count` slices: number k is the sum of the `values` whose target is k."""
        dtype = self.values[:0].sum().dtype
        precision = precision_of(dtype)
        wide = precision.computing if precision and precision.components == 1 else dtype
        row = self.values.shape[1:]
        width = int(np.prod(row))
        sums = np.zeros(count * width, wide)
        # np.add.at is several times faster for single elements than for whole slices.
        elements = targets[:, np.newaxis] * width + np.arange(width)
        np.add.at(sums, elements.reshape(-1), self.values.astype(wide).reshape(-1))
        return sums.astype(dtype, copy=False).reshape(count, *row)

    def __repr__(self) -> str:
        return (
            f"IndexedSlices(values of shape {self.values.shape} and dtype {self.values.dtype}, "
            f"{len(self.indices)} indices, dense_shape={self.dense_shape})"
        )


def maker_of_slices(gradient: Any) -> str | None:
    """The method of `IndexedSlices` that takes the sparse gradient of another library, or None."""
    if getattr(gradient, "is_sparse", False) is True:
        return IndexedSlices.from_torch.__name__
    if all(hasattr(gradient, name) for name in ("values", "indices", "dense_shape")):
        return IndexedSlices.from_tensorflow.__name__
    if hasattr(gradient, "tocsr"):
        return IndexedSlices.from_scipy.__name__
    return None


def _as_numbers(values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "biufc" and precision_of(array.dtype) is None:
        raise TypeError(f"values must be numbers, got dtype {array.dtype}")
    return array


def as_integers(indices: ArrayLike) -> NDArray[Any]:
    """Indices as an array; raises `TypeError` unless they are integers."""
    array = np.asarray(indices)
    if array.size == 0 and not isinstance(indices, np.ndarray):
        array = array.astype(np.int64)  # an empty list has no dtype
    if array.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {array.dtype}")
    return array


def check_rows(indices: NDArray[Any], rows: int) -> None:
    """Raise `IndexError` if an index is not one of that many rows."""
    outside = np.argwhere((indices < 0) | (indices >= rows))
    if len(outside):
        position = tuple(map(int, outside[0]))
        where = f"[{', '.join(map(str, position))}]" if position else ""
        raise IndexError(
            f"indices{where} is {indices[position]}, but there are {rows} rows, counted from 0"
        )


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
