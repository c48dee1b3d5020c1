"""Parts of many arrays, laid end to end in a buffer that MPI takes whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.layout import address_of
from rmsjit.kernels import copies, loader


def wire_dtype(precision: Precision) -> np.dtype[Any]:
    """The dtype of a gradient on its way."""
    dtype: np.dtype[Any] = np.dtype(
        precision.computing if precision.components == 1 else precision.storage
    )
    return dtype


def in_reals(array: NDArray[Any], precision: Precision) -> NDArray[Any]:
    """The numbers that MPI adds: complex ones as pairs of real ones."""
    return array if precision.components == 1 else array.view(precision.computing)


class Part(NamedTuple):
    """Elements `start` to `stop` of the variable, or gradient, at a position."""

    position: int
    start: int
    stop: int


class Flats(NamedTuple):
    """Arrays by position, to fill buffers from or to spread buffers to.

    Attributes
    ----------
    arrays : sequence of ndarray or None
        One-dimensional; empty where `addresses` suffice.
    addresses : int64 array, shape (arrays,), or None
        Of the arrays, if all are contiguous and of the dtype of the buffer.
    """

    arrays: Sequence[Any]
    addresses: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, arrays: Sequence[Any]) -> Flats:
        """Contiguous arrays of the dtype of the buffer, or None."""
        found = [0 if array is None else address_of(array) for array in arrays]
        return cls(arrays, np.array(found, np.int64))


class Packing:
    """The parts that a buffer holds, end to end.

    Parameters
    ----------
    parts : iterable of Part
    sizes : dict of int to int
        The elements of each array, by position.
    itemsize : int
        Of an element.
    """

    def __init__(self, parts: Iterable[Part], sizes: Mapping[int, int], itemsize: int) -> None:
        parts = list(parts)
        self._rows = np.array(
            [(k, start * itemsize, (stop - start) * itemsize) for k, start, stop in parts], np.int64
        )
        self._call = np.zeros(copies.PARTS_WORDS, np.int64)
        self._call[copies.PARTS] = len(parts)
        self._call[copies.PART_ROWS] = address_of(self._rows)
        self._slices = [
            (k, None if stop - start == sizes[k] else slice(start, stop))
            for k, start, stop in parts
        ]

    def fill(self, buffer: NDArray[Any], flats: Flats) -> None:
        """Copy the parts into a buffer, which may be of another dtype than the arrays."""
        if not self._slices:
            return
        if flats.addresses is not None:
            self._copy(buffer, flats.addresses, outwards=False)
            return
        pieces = [
            flats.arrays[k] if part is None else flats.arrays[k][part] for k, part in self._slices
        ]
        np.concatenate(pieces, out=buffer, casting="same_kind")

    def spread(self, buffer: NDArray[Any], addresses: NDArray[np.int64]) -> None:
        """Copy the parts out of a buffer into arrays of the same dtype."""
        self._copy(buffer, addresses, outwards=True)

    def _copy(self, buffer: NDArray[Any], addresses: NDArray[np.int64], outwards: bool) -> None:
        call = self._call
        call[copies.ARRAYS], call[copies.PACKED] = address_of(addresses), address_of(buffer)
        call[copies.OUTWARDS] = outwards
        loader.copy_parts().call(address_of(call))
