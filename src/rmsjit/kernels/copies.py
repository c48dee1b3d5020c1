"""Copying parts of many arrays, and strided arrays, to and from contiguous memory."""

from numba import njit, uint8, uint16, uint32, uint64

from rmsjit.kernels.views import WORD_BYTES, pointer, words
from rmsjit.runtime.flags import INLINED

# Words of a copy of parts.
PARTS, ARRAYS, PART_ROWS, PACKED, OUTWARDS = range(5)
PARTS_WORDS = 5
# Words of a copy of a strided array; after them come its shape and its strides in bytes.
SOURCE_IS_STRIDED, STRIDED, CONTIGUOUS, ITEM_BYTES, NDIM, ROW_NUMBERS = range(1, 7)
STRIDED_WORDS = 7


@njit(**INLINED)
def _copy(target, source, count):
    to, of = pointer(target, uint8), pointer(source, uint8)
    for i in range(count):
        to[i] = of[i]


def copy_parts(call_address):
    """Copy parts of arrays to contiguous memory, or back.

    Words of the call: ``PARTS``, how many; ``ARRAYS``, the addresses of the arrays; ``PART_ROWS``,
    for each part the number of its array, its first byte and its length in bytes; ``PACKED``, the
    address of the contiguous memory; ``OUTWARDS``, whether that is the source.
    """
    call = words(call_address)
    arrays, packed = words(call[ARRAYS]), call[PACKED]
    for p in range(call[PARTS]):
        part = words(call[PART_ROWS] + 3 * WORD_BYTES * p)
        address = arrays[part[0]] + part[1]
        if call[OUTWARDS]:
            _copy(address, packed, part[2])
        else:
            _copy(packed, address, part[2])
        packed += part[2]
    return 0


@njit(**INLINED)
def _move(target, source, nbytes):
    """Copy one element."""
    if nbytes == 4:
        pointer(target, uint32)[0] = pointer(source, uint32)[0]
    elif nbytes == 8:
        pointer(target, uint64)[0] = pointer(source, uint64)[0]
    elif nbytes == 2:
        pointer(target, uint16)[0] = pointer(source, uint16)[0]
    else:
        _copy(target, source, nbytes)


@njit(**INLINED)
def copy_strided(call_address, b):
    """Copy a strided array to contiguous memory, or back; for a kernel of one bin.

    Words of the call: ``SOURCE_IS_STRIDED``; the addresses of both; ``ITEM_BYTES``; ``NDIM``, at
    least 1; ``ROW_NUMBERS``, the rows of the first axis to copy (int64), or 0 for all; then the
    shape of the copy, and the strides.
    """
    call = words(call_address)
    nbytes, ndim, flat = call[ITEM_BYTES], call[NDIM], call[CONTIGUOUS]
    shape = words(call_address + STRIDED_WORDS * WORD_BYTES)
    strides = words(call_address + (STRIDED_WORDS + ndim) * WORD_BYTES)
    inner = 1
    for axis in range(1, ndim):
        inner *= shape[axis]
    for k in range(shape[0]):
        row = words(call[ROW_NUMBERS])[k] if call[ROW_NUMBERS] else k
        for position in range(inner):
            place, rest = call[STRIDED] + row * strides[0], position
            for back in range(1, ndim):
                axis = ndim - back
                place += rest % shape[axis] * strides[axis]
                rest //= shape[axis]
            if call[SOURCE_IS_STRIDED]:
                _move(flat, place, nbytes)
            else:
                _move(place, flat, nbytes)
            flat += nbytes
