"""Parts of many arrays, packed end to end in a buffer for one message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.layout import address_of
from rmsjit.arrays.placement import allocate_aligned
from rmsjit.kernels import copies, loader


def wire_dtype(precision: Precision) -> np.dtype[Any]:
    """The dtype in which gradients are sent."""
    dtype: np.dtype[Any] = np.dtype(
        precision.computing if precision.components == 1 else precision.storage
    )
    return dtype


def in_reals(array: NDArray[Any], precision: Precision) -> NDArray[Any]:
    """The numbers that MPI adds: a complex number as two real ones."""
    return array if precision.components == 1 else array.view(precision.computing)


class Part(NamedTuple):
    """Elements `start` to `stop` of the variable or gradient at a position."""

    position: int
    start: int
    stop: int


def total_size(parts: Iterable[Part]) -> int:
    """The number of elements in all parts."""
    return sum(part.stop - part.start for part in parts)


class Flats(NamedTuple):
    """Flat arrays by position, to be packed into buffers or filled from them.

    Attributes
    ----------
    arrays : sequence of ndarray or None, or dict of int to ndarray
        One-dimensional; empty if `addresses` are enough.
    addresses : int64 array, shape (arrays,), or None
        Their addresses, if all are contiguous and have the dtype of the buffer.
    """

    arrays: Sequence[Any] | Mapping[int, Any]
    addresses: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, arrays: Sequence[Any]) -> Flats:
        """Contiguous arrays of the buffer's dtype, or None."""
        found = [0 if array is None else address_of(array) for array in arrays]
        return cls(arrays, np.array(found, np.int64))


class Packing:
    """The parts in a buffer, end to end.

    Attributes
    ----------
    size : int
        The number of elements.
    """

    def __init__(self, parts: Iterable[Part], itemsize: int) -> None:
        self._parts = list(parts)
        self.size = total_size(self._parts)
        self._rows = np.array(
            [(k, start * itemsize, (stop - start) * itemsize) for k, start, stop in self._parts],
            np.int64,
        )
        self._call = np.zeros(copies.PARTS_WORDS, np.int64)
        self._call[copies.PARTS] = len(self._parts)
        self._call[copies.PART_ROWS] = address_of(self._rows)

    def fill(self, buffer: NDArray[Any], flats: Flats) -> None:
        """Copy the parts into a buffer, which may have another dtype than the arrays."""
        if not self._parts:
            return
        if flats.addresses is not None:
            self._copy(buffer, flats.addresses, outwards=False)
            return
        pieces = [flats.arrays[k][start:stop] for k, start, stop in self._parts]
        np.concatenate(pieces, out=buffer, casting="same_kind")

    def spread(self, buffer: NDArray[Any], addresses: NDArray[np.int64]) -> None:
        """Copy the parts from a buffer to arrays of the same dtype."""
        self._copy(buffer, addresses, outwards=True)

    def _copy(self, buffer: NDArray[Any], addresses: NDArray[np.int64], outwards: bool) -> None:
        call = self._call
        call[copies.ARRAYS], call[copies.PACKED] = address_of(addresses), address_of(buffer)
        call[copies.OUTWARDS] = outwards
        loader.copy_parts().call(address_of(call))


class Sums:
    """Memory for sums of gradients, the same at every step.

    Attributes
    ----------
    wire : ndarray
        The sums in the dtype in which they are sent.
    reals : ndarray
        Their real numbers, a view.
    stored : ndarray
        The sums in the dtype of the variables, after `store`; `wire` itself if that is the same.
    """

    def __init__(self, size: int, precision: Precision, dtype: np.dtype[Any]) -> None:
        self.wire = allocate_aligned((size,), wire_dtype(precision))
        self.reals = in_reals(self.wire, precision)
        self.stored = self.wire if self.wire.dtype == dtype else allocate_aligned((size,), dtype)

    def store(self, scale: float) -> None:
        """Multiply the sums by `scale` and round them to the dtype of the variables."""
        if scale != 1.0:
            np.multiply(self.reals, self.reals.dtype.type(scale), out=self.reals)
        if self.stored is not self.wire:
            np.copyto(self.stored, self.wire, casting="same_kind")
