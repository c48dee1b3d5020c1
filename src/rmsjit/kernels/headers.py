"""Reading a step's pairs from the headers of their Python objects, checked on the way.

``a.ctypes.data`` takes microseconds for each array.  Here the headers that every C extension is
compiled against are read directly, in nanoseconds: of the tuples that hold gradients and variables,
and of the arrays in them.  A tuple's items follow its head, whose size is ``tuple.__basicsize__``.
An array's fields follow the object head, whose size is ``object.__basicsize__``: data, number of
dimensions, dimensions, strides, base, dtype, flags.  `headers_readable` compares all this once with
what Python and NumPy say.
"""

import numpy as np
from numba import carray, njit

from rmsjit.kernels.rule import RULE_FLAGS
from rmsjit.kernels.views import pointer_to

_WORD = 8  # bytes; positions below are in words
_TYPE = object.__basicsize__ // _WORD - 1
_DATA = object.__basicsize__ // _WORD
_NDIM, _DIMENSIONS, _DTYPE, _FLAGS = _DATA + 1, _DATA + 2, _DATA + 5, _DATA + 6
_HEADER_WORDS = _DATA + 7
_TUPLE_HEAD = tuple.__basicsize__

# NumPy's own flag bits
C_CONTIGUOUS, F_CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x2, 0x100, 0x400

# Columns of `expected`: the variable's object, its array (0 where there is no gradient), and the
# array's data and memory; the gradient's type, and how it is read; then what both arrays have:
# dtype object, flags that must be set, size in bytes, number of dimensions, and the dimensions.
(
    VARIABLE_OBJECT,
    OWNER,
    OWNER_DATA,
    OWNER_MEMORY,
    KIND,
    READING,
    DTYPE,
    FLAGS,
    NBYTES,
    NDIM,
    FIRST_DIMENSION,
) = range(11)
IN_PLACE, COPIED, NAMED_ROWS = range(3)  # ways to read: as it lies, through a copy, by rows
NOT_READABLE = 0  # in place of an address
NOT_AS_EXPECTED = -1


@njit(**RULE_FLAGS, forceinline=True)
def _words(address, count, sample):
    return carray(pointer_to(address, sample), count)


# The helpers take whole arrays and a position: a slice would count references, which takes longer
# than all that they do.


@njit(**RULE_FLAGS, forceinline=True)
def _as_expected(header, expected, k):
    if header[_DTYPE] != expected[k, DTYPE]:
        return False
    if (header[_NDIM] & 0xFFFFFFFF) != expected[k, NDIM]:
        return False
    if (header[_FLAGS] & expected[k, FLAGS]) != expected[k, FLAGS]:
        return False
    dimensions = _words(header[_DIMENSIONS], expected[k, NDIM], expected)
    for axis in range(expected[k, NDIM]):
        if dimensions[axis] != expected[k, FIRST_DIMENSION + axis]:
            return False
    return True


@njit(**RULE_FLAGS, forceinline=True)
def _last_not_above(written, address):
    """The position of the last span that starts at `address` or before it, or -1."""
    low, high = 0, written.shape[1]
    while low < high:
        middle = (low + high) // 2
        if written[0, middle] <= address:
            low = middle + 1
        else:
            high = middle
    return low - 1


@njit(**RULE_FLAGS, forceinline=True)
def _clear_of_writes(start, expected, k, written):
    """Whether reading this memory is safe while `written` is written.

    That is so where it meets none of its spans, or is exactly the memory of its own variable.
    """
    size, own = expected[k, NBYTES], expected[k, OWNER_MEMORY]
    last = _last_not_above(written, start + size - 1)
    if last < 0 or written[1, last] <= start or size == 0:
        return True
    return written[0, last] == start and start == own and written[1, last] == start + size


def read_step(gradients, variables, expected, written, addresses):
    """Write the data address of every dense gradient to `addresses`; check each pair on the way.

    Parameters
    ----------
    gradients, variables : int
        ``id`` of a tuple each, as long as `expected`, which the caller keeps alive.
    expected : int64 array, shape (pairs, FIRST_DIMENSION + dimensions)
        What the headers must say.
    written : int64 array, shape (2, spans)
        Start and end of all memory that the step writes: ascending spans that do not meet.
    addresses : int64 array, shape (pairs, 1)
        NOT_READABLE where a gradient can't be read as it lies.

    Returns
    -------
    int
        How many gradients can't be read as they lie; NOT_AS_EXPECTED if a variable or the type of
        a gradient is another, or a variable has moved or become read-only.
    """
    count = len(expected)
    gradient_objects = _words(gradients + _TUPLE_HEAD, count, expected)
    variable_objects = _words(variables + _TUPLE_HEAD, count, expected)
    others = 0
    for k in range(count):
        addresses[k, 0] = NOT_READABLE
        if variable_objects[k] != expected[k, VARIABLE_OBJECT]:
            return NOT_AS_EXPECTED
        header = _words(gradient_objects[k], _HEADER_WORDS, expected)
        if header[_TYPE] != expected[k, KIND]:
            return NOT_AS_EXPECTED
        if expected[k, OWNER] == 0:
            continue
        owner = _words(expected[k, OWNER], _HEADER_WORDS, expected)
        if owner[_DATA] != expected[k, OWNER_DATA] or not owner[_FLAGS] & WRITEABLE:
            return NOT_AS_EXPECTED
        if not _as_expected(owner, expected, k):
            return NOT_AS_EXPECTED
        if expected[k, READING] == NAMED_ROWS:
            continue
        if (
            expected[k, READING] == IN_PLACE
            and _as_expected(header, expected, k)
            and _clear_of_writes(header[_DATA], expected, k, written)
        ):
            addresses[k, 0] = header[_DATA]
        else:
            others += 1
    return others


def headers_readable(read):
    """Whether compiled `read_step` sees what Python and NumPy say of an array of odd shape."""
    gradient = np.zeros((2, 3, 5), np.float32)
    variable = np.zeros_like(gradient)
    gradients, variables = (gradient,), (variable,)
    data, own_data = (a.__array_interface__["data"][0] for a in (gradient, variable))
    row = [id(variable), id(variable), own_data, own_data, id(np.ndarray), IN_PLACE]
    row += [
        id(gradient.dtype),
        C_CONTIGUOUS | ALIGNED,
        gradient.nbytes,
        gradient.ndim,
        *gradient.shape,
    ]
    expected = np.array([row], np.int64)
    nothing = np.zeros((2, 0), np.int64)
    addresses = np.zeros((1, 1), np.int64)
    seen = read(id(gradients), id(variables), expected, nothing, addresses)
    if seen != 0 or addresses[0, 0] != data:
        return False
    expected[0, -1] += 1
    seen = read(id(gradients), id(variables), expected, nothing, addresses)
    return seen == NOT_AS_EXPECTED
