"""Copying strided arrays of one dtype to contiguous memory of another one.

A transposed array is read in tiles: the cache lines of a tile are used whole before they leave the
cache.
"""

from numba import njit

from rmsjit.kernels.scalars import load, store
from rmsjit.kernels.views import WORD_BYTES, number_type, pointer, size_of, words
from rmsjit.runtime.flags import INLINED

# Words of the call.  All strides are in bytes.  The last axis of the target has `COLUMNS` elements;
# `ROWS` go along the axis that is tiled with it.  `OUTER` other axes are at `AXES`, each with its
# size, its stride in the source and that in the target.
(
    BINS,
    SOURCE,
    TARGET,
    ROWS,
    ROW_SOURCE,
    ROW_TARGET,
    COLUMNS,
    COLUMN_SOURCE,
    OUTER,
    AXES,
    SLABS,
) = range(11)
WORDS = 11
TILE = 32  # rows and columns


def convert(source, target):
    """The work of one bin of tiles.

    Parameters
    ----------
    source, target : str
        Storage types, both real or both complex.
    """
    READ, WRITTEN = number_type(source), number_type(target)
    READ_BYTES, WRITTEN_BYTES = size_of(READ), size_of(WRITTEN)

    @njit(**INLINED)
    def convert_run(to, of, stride, count):
        result = pointer(to, WRITTEN)
        if stride == READ_BYTES:
            array = pointer(of, READ)
            for i in range(count):
                store(result, i, load(array, i))
        else:
            for i in range(count):
                store(result, i, load(pointer(of + i * stride, READ), 0))

    @njit(**INLINED)
    def convert_bin(call_address, b):
        call = words(call_address)
        tiles = (call[ROWS] + TILE - 1) // TILE
        every = tiles * call[SLABS]
        stride, columns = call[COLUMN_SOURCE], call[COLUMNS]
        width = columns if stride == READ_BYTES else TILE
        for t in range(every * b // call[BINS], every * (b + 1) // call[BINS]):
            rest, first = t // tiles, t % tiles * TILE
            of = call[SOURCE] + first * call[ROW_SOURCE]
            to = call[TARGET] + first * call[ROW_TARGET]
            for a in range(call[OUTER]):
                axis = words(call[AXES] + 3 * WORD_BYTES * a)
                of += rest % axis[0] * axis[1]
                to += rest % axis[0] * axis[2]
                rest //= axis[0]
            for start in range(0, columns, width):
                count = min(width, columns - start)
                for r in range(min(TILE, call[ROWS] - first)):
                    convert_run(
                        to + r * call[ROW_TARGET] + start * WRITTEN_BYTES,
                        of + r * call[ROW_SOURCE] + start * stride,
                        stride,
                        count,
                    )

    return convert_bin
