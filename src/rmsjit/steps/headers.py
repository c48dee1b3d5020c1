"""Reading the data addresses of gradients from their object headers, and checking them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmsjit.arrays.layout import address_of
from rmsjit.arrays.masked import is_masked
from rmsjit.kernels import headers, loader, objects
from rmsjit.steps.pairs import Pairs, is_sparse
from rmsjit.variables import array_of


class HeaderReader:
    """Reads lists of pairs with the same variables and types of gradients.

    Parameters
    ----------
    variables : sequence
        As they were given.
    kinds : sequence of type
        The types of their gradients.
    own_memory : sequence of int or None
        For each pair, the address that its gradient may have although the step writes there, or
        0; None without a gradient.
    written : int64 array, shape (2, spans)
        The memory that the step writes (`rmsjit.arrays.overlap.merged_spans`).

    Attributes
    ----------
    owners : sequence of ndarray
        The arrays of the variables.
    compiled : callable or None
        The compiled reader; None where object headers can't be read.
    """

    __slots__ = (
        "_expected",
        "_kinds",
        "_variables",
        "_written",
        "compiled",
        "owners",
    )

    def __init__(
        self,
        variables: Sequence[Any],
        kinds: Sequence[type],
        own_memory: Sequence[int | None],
        written: NDArray[np.int64],
    ) -> None:
        self._variables = tuple(variables)
        self._kinds = tuple(kinds)
        self.owners: Sequence[NDArray[Any]] = [array_of(variable) for variable in variables]
        self._written = written
        self._expected = self._expected_headers(own_memory)
        compiled = loader.read_pairs()
        self.compiled = None if compiled is None else compiled.call

    def _expected_headers(self, own_memory: Sequence[int | None]) -> NDArray[np.int64]:
        """What `rmsjit.kernels.headers.read_pairs` must find, a row for each pair."""
        most = max((owner.ndim for owner in self.owners), default=0)
        expected = np.zeros((len(self.owners), headers.FIRST_DIMENSION + most), np.int64)
        for k, (row, owner) in enumerate(zip(expected, self.owners, strict=True)):
            own, kind = own_memory[k], self._kinds[k]
            row[headers.VARIABLE_OBJECT] = id(self._variables[k])
            row[headers.KIND] = id(kind)
            if own is None:
                continue
            row[headers.OWNER] = id(owner)
            row[headers.OWNER_DATA] = address_of(owner)
            row[headers.OWNER_MEMORY] = own
            row[headers.READING] = _reading(owner, kind)
            row[headers.DTYPE] = id(owner.dtype)
            row[headers.FLAGS] = _flags(owner)
            row[headers.NBYTES] = owner.nbytes
            row[headers.NDIM] = owner.ndim
            row[headers.FIRST_DIMENSION : headers.FIRST_DIMENSION + owner.ndim] = owner.shape
        return expected

    def rebound(self, variables: Sequence[Any]) -> HeaderReader:
        """A reader for other views, or other `Variable` objects, of the same memory."""
        reader = copy.copy(self)
        reader._variables = tuple(variables)
        reader.owners = [array_of(variable) for variable in variables]
        reader._expected = self._expected.copy()
        reader._expected[:, headers.VARIABLE_OBJECT] = [id(variable) for variable in variables]
        has_gradient = self._expected[:, headers.OWNER] != 0
        reader._expected[:, headers.OWNER] = [id(owner) for owner in reader.owners] * has_gradient
        return reader

    def roaming(self, written: NDArray[np.int64]) -> HeaderReader:
        """A reader with memory of its own, which `move` can change."""
        reader = object.__new__(HeaderReader)
        reader._variables, reader._kinds, reader.owners = self._variables, self._kinds, self.owners
        reader._expected, reader._written = self._expected.copy(), written
        reader.compiled = self.compiled
        return reader

    def move(self, arrays: Sequence[NDArray[Any]], rows: ArrayLike) -> None:
        """Expect other plain arrays of the same shapes, all with a gradient; see `rows_of`."""
        self.take(arrays)
        self._expected[:, : headers.KIND] = rows

    def take(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Read pairs of other arrays, whose columns compiled code has written."""
        self._variables, self.owners = tuple(arrays), arrays

    def own_memory(self, position: int) -> int:
        """The address that a gradient may have although the step writes there, or 0."""
        return int(self._expected[position, headers.OWNER_MEMORY])

    def call_for(self, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
        """The words of a call of `read` that fills `addresses`, shape (pairs,)."""
        call = np.zeros(headers.WORDS, np.int64)
        call[headers.COUNT], call[headers.COLUMNS] = self._expected.shape
        call[headers.TUPLE_TYPE] = id(tuple)
        call[headers.ADDRESSES] = address_of(addresses)
        self.direct(call)
        return call

    def direct(self, call: NDArray[np.int64]) -> None:
        """Point a call at what this reader expects."""
        starts, spans = address_of(self._written), self._written.shape[1]
        call[headers.EXPECTED] = address_of(self._expected)
        call[headers.SPAN_STARTS] = starts
        call[headers.SPAN_ENDS] = starts + spans * self._written.itemsize
        call[headers.SPANS] = spans

    def read(self, pairs: Pairs, addresses: NDArray[np.int64], call_address: int) -> int:
        """Write the address of every dense gradient to `addresses`.

        Parameters
        ----------
        pairs : tuple
        addresses : int64 array, shape (pairs,)
        call_address : int
            The address of the words that `call_for` made for them.

        Returns
        -------
        int
            How many gradients can't be read in place, or NOT_AS_EXPECTED.
        """
        if self.compiled is None:
            return self.read_in_python(pairs, addresses)
        found: int = self.compiled(id(pairs), call_address)
        return found

    def read_in_python(self, pairs: Pairs, addresses: NDArray[np.int64]) -> int:
        """`read` without compiled code, which finds no gradient that can be read in place."""
        addresses[:] = headers.NOT_READABLE
        if len(pairs) != len(self.owners):
            return headers.NOT_AS_EXPECTED
        for k, (pair, owner) in enumerate(zip(pairs, self.owners, strict=True)):
            if type(pair) is not tuple or len(pair) != 2:
                return headers.NOT_AS_EXPECTED
            if pair[1] is not self._variables[k] or type(pair[0]) is not self._kinds[k]:
                return headers.NOT_AS_EXPECTED
            has_gradient = self._expected[k, headers.OWNER] != 0
            if has_gradient and self._has_changed(owner, self._expected[k]):
                return headers.NOT_AS_EXPECTED
        return len(self.owners)

    def _has_changed(self, owner: NDArray[Any], expected: NDArray[np.int64]) -> bool:
        shape = expected[headers.FIRST_DIMENSION :][: expected[headers.NDIM]]
        return (
            address_of(owner) != expected[headers.OWNER_DATA]
            or id(owner.dtype) != expected[headers.DTYPE]
            or owner.shape != tuple(shape)
            or not owner.flags.writeable
        )


def rows_of(arrays: Sequence[NDArray[Any]]) -> list[tuple[int, ...]]:
    """The expected columns up to ``DTYPE``: those that differ between arrays of one shape."""
    return [(id(a), id(a), start := address_of(a), start, id(a.dtype)) for a in arrays]


def _reading(owner: NDArray[Any], kind: type) -> int:
    """How gradients of a type are read: in place, through a copy, or by rows."""
    if is_sparse(kind):
        return headers.NAMED_ROWS
    readable = issubclass(kind, np.ndarray) and not is_masked(kind)
    in_place = readable and owner.flags.forc and owner.flags.aligned
    return headers.IN_PLACE if in_place else headers.COPIED


def _flags(owner: NDArray[Any]) -> int:
    """The flags of a variable that a gradient must have to be read in place."""
    flags = objects.ALIGNED if owner.flags.aligned else 0
    if owner.flags.c_contiguous:
        return flags | objects.C_CONTIGUOUS
    return flags | (objects.F_CONTIGUOUS if owner.flags.f_contiguous else 0)
