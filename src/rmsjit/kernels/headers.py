"""Reading and checking the pairs of a step from the headers of their Python objects.

See `rmsjit.kernels.objects` for these headers.
"""

import sys

import numpy as np
from numba import njit

from rmsjit.kernels.objects import (
    ALIGNED,
    ARRAY_DATA,
    ARRAY_DIMENSIONS,
    ARRAY_DTYPE,
    ARRAY_FLAGS,
    ARRAY_NDIM,
    C_CONTIGUOUS,
    ITEMS,
    LENGTH,
    TYPE,
    WRITEABLE,
)
from rmsjit.kernels.overlap import last_not_above
from rmsjit.kernels.views import WORD_BYTES, words
from rmsjit.runtime.flags import INLINED

# Words of the call.
COUNT, TUPLE_TYPE, EXPECTED, COLUMNS, SPAN_STARTS, SPAN_ENDS, SPANS, ADDRESSES = range(8)
WORDS = 8

# Columns of `expected`: the variable's object, its array (0 without a gradient), the array's data
# and memory, and the dtype object of both arrays; the gradient's type, and how it is read; then
# what both arrays must have: flags that are set, size in bytes, number of dimensions, dimensions.
(
    VARIABLE_OBJECT,
    OWNER,
    OWNER_DATA,
    OWNER_MEMORY,
    DTYPE,
    KIND,
    READING,
    FLAGS,
    NBYTES,
    NDIM,
    FIRST_DIMENSION,
) = range(11)
IN_PLACE, COPIED, NAMED_ROWS = range(3)  # ways to read: in place, through a copy, by rows
NOT_READABLE = 0  # in place of an address
NOT_AS_EXPECTED = -1

# The helpers take pointers, not arrays, whose references would be counted.


@njit(**INLINED)
def as_expected(header, expected):
    """Whether an array has the dtype, flags and shape that both arrays of a pair must have."""
    if header[ARRAY_DTYPE] != expected[DTYPE]:
        return False
    if (header[ARRAY_NDIM] & 0xFFFFFFFF) != expected[NDIM]:
        return False
    if (header[ARRAY_FLAGS] & expected[FLAGS]) != expected[FLAGS]:
        return False
    dimensions = words(header[ARRAY_DIMENSIONS])
    for axis in range(expected[NDIM]):
        if dimensions[axis] != expected[FIRST_DIMENSION + axis]:
            return False
    return True


@njit(**INLINED)
def _clear_of_writes(start, expected, call):
    """Whether a gradient can be read while the step writes.

    It must not overlap any of the written spans, or be exactly the memory of its own variable.
    """
    size, own = expected[NBYTES], expected[OWNER_MEMORY]
    starts, ends = words(call[SPAN_STARTS]), words(call[SPAN_ENDS])
    last = last_not_above(starts, call[SPANS], start + size - 1)
    if last < 0 or ends[last] <= start or size == 0:
        return True
    return starts[last] == start and start == own and ends[last] == start + size


@njit(**INLINED)
def is_tuple_of(header, call, length):
    """Whether an object is a tuple of this length."""
    return header[TYPE] == call[TUPLE_TYPE] and header[LENGTH] == length


@njit(**INLINED)
def expected_at(call, k):
    """The row of what is expected of a pair."""
    return words(call[EXPECTED] + k * call[COLUMNS] * WORD_BYTES)


def read_pairs(pairs, call_address):
    """Check every pair, and write the data address of every dense gradient.

    Words of the call: ``COUNT``, how many pairs are expected; ``TUPLE_TYPE``, ``id(tuple)``;
    ``EXPECTED``, a row of ``COLUMNS`` words for each pair; ``SPAN_STARTS`` and ``SPAN_ENDS``, all
    memory that the step writes, as ``SPANS`` sorted and disjoint spans; ``ADDRESSES``, filled, with
    NOT_READABLE for a gradient that can't be read in place.

    Parameters
    ----------
    pairs : int
        ``id`` of a tuple; the caller keeps it and the pairs alive.
    call_address : int

    Returns
    -------
    int
        How many gradients can't be read in place; NOT_AS_EXPECTED if the pairs are not tuples, a
        variable or the type of a gradient differs, or a variable has moved or become read-only.
    """
    call = words(call_address)
    count, addresses, outer = call[COUNT], words(call[ADDRESSES]), words(pairs)
    if not is_tuple_of(outer, call, count):
        return NOT_AS_EXPECTED
    others = 0
    for k in range(count):
        addresses[k] = NOT_READABLE
        expected = expected_at(call, k)
        pair = words(outer[ITEMS + k])
        if not is_tuple_of(pair, call, 2) or pair[ITEMS + 1] != expected[VARIABLE_OBJECT]:
            return NOT_AS_EXPECTED
        header = words(pair[ITEMS])
        if header[TYPE] != expected[KIND]:
            return NOT_AS_EXPECTED
        if expected[OWNER] == 0:
            continue
        owner = words(expected[OWNER])
        if owner[ARRAY_DATA] != expected[OWNER_DATA] or not owner[ARRAY_FLAGS] & WRITEABLE:
            return NOT_AS_EXPECTED
        if not as_expected(owner, expected):
            return NOT_AS_EXPECTED
        if expected[READING] == NAMED_ROWS:
            continue
        if (
            expected[READING] == IN_PLACE
            and as_expected(header, expected)
            and _clear_of_writes(header[ARRAY_DATA], expected, call)
        ):
            addresses[k] = header[ARRAY_DATA]
        else:
            others += 1
    return others


def headers_readable(read):
    """Whether compiled `read_pairs` agrees with Python and NumPy about an array."""
    if sys.implementation.name != "cpython" or not _has_gil():
        return False
    gradient = np.zeros((2, 3, 5), np.float32)
    variable = np.zeros_like(gradient)
    pairs = ((gradient, variable),)
    data, own_data = (a.__array_interface__["data"][0] for a in (gradient, variable))
    row = [id(variable), id(variable), own_data, own_data, id(gradient.dtype), id(np.ndarray)]
    row += [IN_PLACE, C_CONTIGUOUS | ALIGNED, gradient.nbytes, gradient.ndim]
    expected, addresses = np.array([*row, *gradient.shape], np.int64), np.zeros(1, np.int64)
    at, found = (a.__array_interface__["data"][0] for a in (expected, addresses))
    call = np.array([1, id(tuple), at, len(expected), 0, 0, 0, found], np.int64)
    if read(id(pairs), call.__array_interface__["data"][0]) != 0 or addresses[0] != data:
        return False
    expected[-1] += 1
    return bool(read(id(pairs), call.__array_interface__["data"][0]) == NOT_AS_EXPECTED)


def _has_gil():
    asked = getattr(sys, "_is_gil_enabled", None)
    return asked is None or asked()
