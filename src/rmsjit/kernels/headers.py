"""Reading and checking the pairs of a step from the headers of their Python objects.

``a.ctypes.data`` takes microseconds for each array.  Reading the object headers directly takes
nanoseconds; every C extension is compiled against them, so they are stable.  The length of a tuple
is at offset ``object.__basicsize__``, its items at ``tuple.__basicsize__``.  An array has, from
offset ``object.__basicsize__`` on: data, number of dimensions, dimensions, strides, base, dtype,
flags.

Another thread could free what is being read (``a.shape = ...`` replaces the dimensions), so the GIL
is held meanwhile; without a GIL, headers are not read.  `headers_readable` checks once that the
layout is the expected one.
"""

import sys

import numpy as np
from numba import njit

from rmsjit.kernels.views import WORD_BYTES, words
from rmsjit.runtime.flags import INLINED

# Positions below are in words.
_TYPE = object.__basicsize__ // WORD_BYTES - 1
_LENGTH = object.__basicsize__ // WORD_BYTES
_DATA = object.__basicsize__ // WORD_BYTES
_NDIM, _DIMENSIONS, _BASE, _DTYPE, _FLAGS = (_DATA + word for word in (1, 2, 4, 5, 6))
_ITEMS = tuple.__basicsize__ // WORD_BYTES

# NumPy's own flag bits
C_CONTIGUOUS, F_CONTIGUOUS, OWNS_DATA, ALIGNED, WRITEABLE = 0x1, 0x2, 0x4, 0x100, 0x400

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
# What `read_arrays` finds: the first five columns of `expected`, then the array that owns the
# memory (0 if it is none), its data, and its number of elements.
ROOT, ROOT_DATA, ROOT_SIZE = range(DTYPE + 1, DTYPE + 4)
FOUND_COLUMNS = ROOT_SIZE + 1

IN_PLACE, COPIED, NAMED_ROWS = range(3)  # ways to read: in place, through a copy, by rows
NOT_READABLE = 0  # in place of an address
NOT_AS_EXPECTED = -1

# The helpers take pointers, not arrays, whose references would be counted.


@njit(**INLINED)
def _as_expected(header, expected):
    if header[_DTYPE] != expected[DTYPE]:
        return False
    if (header[_NDIM] & 0xFFFFFFFF) != expected[NDIM]:
        return False
    if (header[_FLAGS] & expected[FLAGS]) != expected[FLAGS]:
        return False
    dimensions = words(header[_DIMENSIONS])
    for axis in range(expected[NDIM]):
        if dimensions[axis] != expected[FIRST_DIMENSION + axis]:
            return False
    return True


@njit(**INLINED)
def _last_not_above(starts, count, address):
    """The position of the last span that starts at or before `address`, or -1."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if starts[middle] <= address:
            low = middle + 1
        else:
            high = middle
    return low - 1


@njit(**INLINED)
def _clear_of_writes(start, expected, call):
    """Whether a gradient can be read while the step writes.

    It must not overlap any of the written spans, or be exactly the memory of its own variable.
    """
    size, own = expected[NBYTES], expected[OWNER_MEMORY]
    starts, ends = words(call[SPAN_STARTS]), words(call[SPAN_ENDS])
    last = _last_not_above(starts, call[SPANS], start + size - 1)
    if last < 0 or ends[last] <= start or size == 0:
        return True
    return starts[last] == start and start == own and ends[last] == start + size


@njit(**INLINED)
def _is_tuple_of(header, call, length):
    return header[_TYPE] == call[TUPLE_TYPE] and header[_LENGTH] == length


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
    if not _is_tuple_of(outer, call, count):
        return NOT_AS_EXPECTED
    others = 0
    for k in range(count):
        addresses[k] = NOT_READABLE
        expected = words(call[EXPECTED] + k * call[COLUMNS] * WORD_BYTES)
        pair = words(outer[_ITEMS + k])
        if not _is_tuple_of(pair, call, 2) or pair[_ITEMS + 1] != expected[VARIABLE_OBJECT]:
            return NOT_AS_EXPECTED
        header = words(pair[_ITEMS])
        if header[_TYPE] != expected[KIND]:
            return NOT_AS_EXPECTED
        if expected[OWNER] == 0:
            continue
        owner = words(expected[OWNER])
        if owner[_DATA] != expected[OWNER_DATA] or not owner[_FLAGS] & WRITEABLE:
            return NOT_AS_EXPECTED
        if not _as_expected(owner, expected):
            return NOT_AS_EXPECTED
        if expected[READING] == NAMED_ROWS:
            continue
        if (
            expected[READING] == IN_PLACE
            and _as_expected(header, expected)
            and _clear_of_writes(header[_DATA], expected, call)
        ):
            addresses[k] = header[_DATA]
        else:
            others += 1
    return others


@njit(**INLINED)
def _note_root(array_object, expected, found):
    """Write which array owns the memory of another one, if it has the same type and dtype."""
    base = words(array_object)[_BASE]
    root = array_object if base == 0 else base
    found[ROOT] = 0
    if words(root)[_TYPE] != expected[KIND]:
        return
    header = words(root)
    if header[_DTYPE] != expected[DTYPE] or not header[_FLAGS] & OWNS_DATA:
        return
    dimensions, size = words(header[_DIMENSIONS]), 1
    for axis in range(header[_NDIM] & 0xFFFFFFFF):
        size *= dimensions[axis]
    found[ROOT], found[ROOT_DATA], found[ROOT_SIZE] = root, header[_DATA], size


def read_arrays(pairs, call_address):
    """Find the variables of pairs, whichever they are, if they are arrays of some layouts.

    The words of the call are those of `read_pairs`, without spans; ``ADDRESSES`` is filled with a
    row of ``FOUND_COLUMNS`` words for each pair.  Of ``EXPECTED``, the columns from ``DTYPE`` on
    are compared; variables and gradients must be of the type ``KIND``, that of plain arrays.

    Parameters
    ----------
    pairs : int
        ``id`` of a tuple; the caller keeps it and the pairs alive.
    call_address : int

    Returns
    -------
    int
        0, or NOT_AS_EXPECTED if the pairs are not tuples, or a variable is read-only or has another
        type, dtype, shape or layout.
    """
    call = words(call_address)
    count, outer = call[COUNT], words(pairs)
    if not _is_tuple_of(outer, call, count):
        return NOT_AS_EXPECTED
    for k in range(count):
        expected = words(call[EXPECTED] + k * call[COLUMNS] * WORD_BYTES)
        found = words(call[ADDRESSES] + k * FOUND_COLUMNS * WORD_BYTES)
        pair = words(outer[_ITEMS + k])
        if not _is_tuple_of(pair, call, 2):
            return NOT_AS_EXPECTED
        gradient, array = words(pair[_ITEMS]), words(pair[_ITEMS + 1])
        if gradient[_TYPE] != expected[KIND] or array[_TYPE] != expected[KIND]:
            return NOT_AS_EXPECTED
        if not array[_FLAGS] & WRITEABLE or not _as_expected(array, expected):
            return NOT_AS_EXPECTED
        found[VARIABLE_OBJECT] = found[OWNER] = pair[_ITEMS + 1]
        found[OWNER_DATA] = found[OWNER_MEMORY] = array[_DATA]
        found[DTYPE] = expected[DTYPE]
        _note_root(pair[_ITEMS + 1], expected, found)
    return 0


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


def roots_readable(read):
    """Whether compiled `read_arrays` agrees with Python and NumPy about a view of an array."""
    root = np.zeros((4, 5), np.float32)
    view = root[2]
    pairs = ((np.zeros_like(view), view),)
    data, root_data = (a.__array_interface__["data"][0] for a in (view, root))
    row = [0, 0, 0, 0, id(view.dtype), id(np.ndarray), IN_PLACE, C_CONTIGUOUS | ALIGNED]
    expected = np.array([*row, view.nbytes, view.ndim, *view.shape], np.int64)
    found = np.zeros(FOUND_COLUMNS, np.int64)
    at, rows = (a.__array_interface__["data"][0] for a in (expected, found))
    call = np.array([1, id(tuple), at, len(expected), 0, 0, 0, rows], np.int64)
    if read(id(pairs), call.__array_interface__["data"][0]) != 0:
        return False
    wanted = [id(view), id(view), data, data, id(view.dtype), id(root), root_data, root.size]
    return found.tolist() == wanted


def _has_gil():
    asked = getattr(sys, "_is_gil_enabled", None)
    return asked is None or asked()
