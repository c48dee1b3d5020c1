"""Reading NumPy array headers: the addresses of many gradients at once, checked on the way.

``a.ctypes.data`` takes microseconds for each array; here the header that every C extension of
NumPy is compiled against is read directly, in nanoseconds.  Its fields follow the object head,
whose size is ``object.__basicsize__``: data, number of dimensions, dimensions, strides, base,
dtype, flags.  `headers_readable` compares them once with what NumPy itself says.
"""

import numpy as np
from numba import carray, njit

from rmsjit.kernels.memory import pointer_to
from rmsjit.kernels.rule import RULE_FLAGS

_HEAD = object.__basicsize__ // 8  # in words of 8 bytes, as all below
_DATA, _NDIM, _DIMENSIONS, _DTYPE, _FLAGS = _HEAD, _HEAD + 1, _HEAD + 2, _HEAD + 5, _HEAD + 6
_HEADER_WORDS = _HEAD + 7

# NumPy's own flag bits
C_CONTIGUOUS, F_CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x2, 0x100, 0x400

# Columns of `expected`.  The first two are of the variable: its array object and its data; the
# others of the gradient: dtype object, flags that must be set, size in bytes, number of
# dimensions, and the dimensions.
OWNER, OWNER_DATA, DTYPE, FLAGS, NBYTES, NDIM, FIRST_DIMENSION = range(7)


@njit(**RULE_FLAGS)
def _words(address, count, sample):
    return carray(pointer_to(address, sample), count)


@njit(**RULE_FLAGS)
def _as_expected(header, expected, sample):
    if header[_DTYPE] != expected[DTYPE]:
        return False
    if (header[_NDIM] & 0xFFFFFFFF) != expected[NDIM]:
        return False
    if (header[_FLAGS] & expected[FLAGS]) != expected[FLAGS]:
        return False
    dimensions = _words(header[_DIMENSIONS], expected[NDIM], sample)
    for axis in range(expected[NDIM]):
        if dimensions[axis] != expected[FIRST_DIMENSION + axis]:
            return False
    return True


@njit(**RULE_FLAGS)
def _last_not_above(starts, address):
    """The position of the last of the sorted `starts` that is at most `address`, or -1."""
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        if starts[middle] <= address:
            low = middle + 1
        else:
            high = middle
    return low - 1


@njit(**RULE_FLAGS)
def _clear_of_writes(start, size, own, spans):
    """Whether reading this memory is safe while `spans` are written.

    That is so where it meets none of them, or is exactly the memory of its own variable.
    """
    last = _last_not_above(spans[0], start + size - 1)
    if last < 0 or spans[1, last] <= start or size == 0:
        return True
    return spans[0, last] == start and start == own and spans[1, last] == start + size


def read_addresses(objects, expected, table, spans, addresses):
    """Write the data address of every gradient to `addresses`; check each on the way.

    Parameters
    ----------
    objects : int64 array, shape (gradients,)
        ``id`` of each gradient, which the caller has seen to be an array and keeps alive.
    expected : int64 array, shape (gradients, FIRST_DIMENSION + dimensions)
        What the headers of variable and gradient must say.
    table : int64 array, shape (gradients, columns)
        The first column holds the memory of the variables.
    spans : int64 array, shape (2, variables)
        Start and end of the memory of all variables, by ascending start, none in another.
    addresses : int64 array, shape (gradients, 1)

    Returns
    -------
    int
        The position of the first gradient that is not as expected, else -1.
    """
    for k in range(len(objects)):
        owner = _words(expected[k, OWNER], _HEADER_WORDS, expected)
        if owner[_DATA] != expected[k, OWNER_DATA] or not owner[_FLAGS] & WRITEABLE:
            return k
        header = _words(objects[k], _HEADER_WORDS, expected)
        if not _as_expected(header, expected[k], expected):
            return k
        if not _clear_of_writes(header[_DATA], expected[k, NBYTES], table[k, 0], spans):
            return k
        addresses[k, 0] = header[_DATA]
    return -1


def headers_readable(read):
    """Whether compiled `read_addresses` sees what NumPy says of an array of odd shape."""
    array = np.zeros((2, 3, 5), np.float32)
    data = array.__array_interface__["data"][0]
    flags = C_CONTIGUOUS | ALIGNED
    row = [id(array), data, id(array.dtype), flags, array.nbytes, array.ndim, *array.shape]
    expected = np.array([row], np.int64)
    wrong = expected.copy()
    wrong[0, -1] += 1
    objects = np.array([id(array)], np.int64)
    table = np.array([[data]], np.int64)
    nothing = np.zeros((2, 0), np.int64)
    addresses = np.zeros((1, 1), np.int64)
    seen = read(objects, expected, table, nothing, addresses) == -1 and addresses[0, 0] == data
    return seen and read(objects, wrong, table, nothing, addresses) == 0
