"""Copying parts of many arrays, and strided arrays, to and from contiguous memory."""

from numba import njit, uint8, uint16, uint32, uint64

from rmsjit.kernels.views import WORD_BYTES, pointer, words
from rmsjit.runtime.flags import INLINED

# Words of a copy of parts.
PARTS, ARRAYS, PART_ROWS, PACKED, OUTWARDS = range(5)
PARTS_WORDS = 5
# Words of a copy of a strided array, after the number of bins; then come its shape and its strides
# in bytes.
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


def _strided_run(kind):
    """A function that copies elements of an unsigned integer type between two strides."""
    NBYTES = kind.bitwidth // 8

    @njit(**INLINED)
    def copy_run(target, target_stride, source, source_stride, count):
        if target_stride == NBYTES:
            to = pointer(target, kind)
            for i in range(count):
                to[i] = pointer(source + i * source_stride, kind)[0]
        else:
            of = pointer(source, kind)
            for i in range(count):
                pointer(target + i * target_stride, kind)[0] = of[i]

    return copy_run


_run_of_2, _run_of_4, _run_of_8 = map(_strided_run, (uint16, uint32, uint64))


@njit(**INLINED)
def _copy_run(target, target_stride, source, source_stride, count, nbytes):
    """Copy elements of this size; one of both is contiguous."""
    if nbytes == 4:
        _run_of_4(target, target_stride, source, source_stride, count)
    elif nbytes == 8:
        _run_of_8(target, target_stride, source, source_stride, count)
    elif nbytes == 2:
        _run_of_2(target, target_stride, source, source_stride, count)
    else:
        for i in range(count):
            _copy(target + i * target_stride, source + i * source_stride, nbytes)


@njit(**INLINED)
def copy_strided(call_address, b):
    """Copy a bin of the rows of a strided array to contiguous memory, or back.

    Words of the call: ``SOURCE_IS_STRIDED``; the addresses of both; ``ITEM_BYTES``; ``NDIM``, at
    least 1; ``ROW_NUMBERS``, the rows of the first axis to copy (int64), or 0 for all; then the
    shape of the copy, and the strides.
    """
    call = words(call_address)
    nbytes, ndim = call[ITEM_BYTES], call[NDIM]
    shape = words(call_address + STRIDED_WORDS * WORD_BYTES)
    strides = words(call_address + (STRIDED_WORDS + ndim) * WORD_BYTES)
    count, stride, runs = 1, nbytes, 1
    if ndim > 1:
        count, stride = shape[ndim - 1], strides[ndim - 1]
    for axis in range(1, ndim - 1):
        runs *= shape[axis]
    first, end = shape[0] * b // call[0], shape[0] * (b + 1) // call[0]
    flat = call[CONTIGUOUS] + first * runs * count * nbytes
    for k in range(first, end):
        row = words(call[ROW_NUMBERS])[k] if call[ROW_NUMBERS] else k
        for run in range(runs):
            place, rest = call[STRIDED] + row * strides[0], run
            for back in range(2, ndim):
                axis = ndim - back
                place += rest % shape[axis] * strides[axis]
                rest //= shape[axis]
            if call[SOURCE_IS_STRIDED]:
                _copy_run(flat, nbytes, place, stride, count, nbytes)
            else:
                _copy_run(place, stride, flat, nbytes, count, nbytes)
            flat += count * nbytes
