"""Sums of the gradients of a variable, whichever views of it the calls have used.

A dense sum has the elements in the order of the variable's memory.  A sparse one names rows of one
view; it becomes dense when a gradient for other rows is added.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import dtype_named
from rmsjit.arrays.layout import Layout, layout_of
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.state.entries import Home
from rmsjit.steps.additions import Additions
from rmsjit.variables import array_of

Gradient = NDArray[Any] | IndexedSlices


class Sum(NamedTuple):
    """The sum of gradients of one variable.

    Attributes
    ----------
    total : ndarray, shape (elements,), or IndexedSlices
        In canonical order (`rmsjit.arrays.layout`), or rows of the view.
    shape, layout
        Those of the last view that a gradient was given for.
    """

    total: Gradient
    shape: tuple[int, ...]
    layout: Layout

    @classmethod
    def of(cls, gradient: Any, variable: Any) -> Sum:
        """The sum of one gradient, in memory of its own; float32 for half types."""
        array = array_of(variable)
        dtype, layout = dtype_of_sum(array.dtype), layout_of(array)
        if isinstance(gradient, IndexedSlices):
            rows = gradient.indices.astype(np.int64)
            slices = IndexedSlices(gradient.values.astype(dtype), rows, gradient.dense_shape)
            return cls(slices.coalesce(), array.shape, layout)
        total = np.empty(array.size, dtype)
        layout.logical(total, array.shape)[...] = gradient
        return cls(total, array.shape, layout)

    @classmethod
    def with_gradient(
        cls, known: Sum | None, gradient: Any, variable: Any, additions: Additions
    ) -> Sum:
        """A sum and one more gradient, which `additions` is to compute if both are dense."""
        before = None if known is None else known.total
        if isinstance(gradient, IndexedSlices) or isinstance(before, IndexedSlices):
            own = cls.of(gradient, variable)
            return own if known is None else known.plus(own)
        array = array_of(variable)
        layout, dtype = layout_of(array), dtype_of_sum(array.dtype)
        flat = additions.flat(layout.canonical(gradient), dtype)
        return cls(additions.of(before, flat), array.shape, layout)

    def plus(self, other: Sum) -> Sum:
        """The sum of two sums, one of rows at least; dense unless both name rows of one view."""
        ours, theirs = self.total, other.total
        if isinstance(theirs, IndexedSlices):
            if isinstance(ours, IndexedSlices) and self._is_of(*other[1:]):
                values = np.concatenate([ours.values, theirs.values])
                rows = np.concatenate([ours.indices, theirs.indices])
                total = IndexedSlices(values, rows, theirs.dense_shape).coalesce()
                return other._replace(total=total)
            return other._replace(total=other._added_to(self.elements().copy()))
        return other._replace(total=self._added_to(theirs.copy()))

    def divided(self, calls: int, additions: Additions) -> Sum:
        """The mean over so many calls, which `additions` is to compute if it is dense."""
        total = self.total
        if isinstance(total, IndexedSlices):
            values = np.asarray(total.values / calls)
            return self._replace(total=IndexedSlices(values, total.indices, total.dense_shape))
        return (
            self if additions.has_pending(total) else self._replace(total=additions.of(total, None))
        )

    def elements(self) -> NDArray[Any]:
        """All elements in canonical order."""
        if isinstance(self.total, IndexedSlices):
            return self._added_to(np.zeros(int(np.prod(self.shape)), self.total.dtype))
        return self.total

    def for_view(self, array: NDArray[Any]) -> Gradient:
        """The sum as the gradient of a view of the variable."""
        layout = layout_of(array)
        if isinstance(self.total, IndexedSlices) and self._is_of(array.shape, layout):
            return self.total
        return layout.logical(self.elements(), array.shape)

    def in_copy(self, home: Home) -> Sum:
        """The sum beside an array that may be a copy of the variable."""
        shape, layout = home.view.shape, layout_of(home.view)
        if home.layout.orders_like(layout):  # so any view of either is one of the other
            return self
        if isinstance(self.total, IndexedSlices) and self._is_of(shape, home.layout):
            return Sum(self.total, shape, layout)
        return Sum(home.from_original(self.elements()), shape, layout)

    def in_original(self, home: Home) -> Sum:
        """The inverse of `in_copy`."""
        shape, layout = home.view.shape, home.layout
        if layout.orders_like(layout_of(home.view)):
            return self
        if isinstance(self.total, IndexedSlices):
            return Sum(self.total, shape, layout)
        return Sum(home.to_original(self.total), shape, layout)

    def for_other(self, array: NDArray[Any]) -> Sum:
        """The sum beside other memory: by axes if that has the same shape, else in its order."""
        if array.shape != self.shape:
            return Sum(self.elements(), array.shape, layout_of(array))
        if isinstance(self.total, IndexedSlices):
            return Sum(self.total, self.shape, layout_of(array))
        return Sum.of(self.layout.logical(self.total, self.shape), array)

    def _is_of(self, shape: tuple[int, ...], layout: Layout) -> bool:
        """Whether a view of this layout has the same rows."""
        return self.shape == shape and self.layout.orders_like(layout)

    def _added_to(self, elements: NDArray[Any]) -> NDArray[Any]:
        """Add the rows to all elements of the variable, in place."""
        assert isinstance(self.total, IndexedSlices)
        self.layout.logical(elements, self.shape)[self.total.indices] += self.total.values
        return elements


def dtype_of_sum(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which the gradients of a variable are added up."""
    return dtype_named("float32") if dtype.itemsize == 2 else dtype
