"""Copying strided arrays of one dtype to contiguous memory of another one.

A transposed array is read in tiles, whose elements are first collected in memory of their own.  So
each cache line is used whole at once, also where all lines of a tile are in one set of the cache.
"""

from numba import njit, types
from numba.extending import intrinsic

from rmsjit.kernels.codes import frame_memory
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


@intrinsic
def _memory_of_tile(typing_context, dtype):
    """A pointer to memory for a tile, whose type must be a constant."""
    kind = types.CPointer(dtype.dtype)

    def codegen(context, builder, signature, args):
        return frame_memory(builder, context.get_data_type(dtype.dtype), TILE * TILE)

    return kind(dtype), codegen


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
    def convert_transposed(to, row_target, of, stride, rows, columns):
        """A tile whose columns are contiguous in the source."""
        tile = _memory_of_tile(READ)
        for c in range(columns):
            column = pointer(of + c * stride, READ)
            for r in range(rows):
                tile[c * TILE + r] = column[r]
        for r in range(rows):
            result = pointer(to + r * row_target, WRITTEN)
            for c in range(columns):
                store(result, c, load(tile, c * TILE + r))

    @njit(**INLINED)
    def convert_bin(call_address, b):
        call = words(call_address)
        tiles = (call[ROWS] + TILE - 1) // TILE
        every = tiles * call[SLABS]
        stride, columns, row_source = call[COLUMN_SOURCE], call[COLUMNS], call[ROW_SOURCE]
        in_tiles = abs(row_source) < abs(stride)
        width = TILE if in_tiles else columns
        for t in range(every * b // call[BINS], every * (b + 1) // call[BINS]):
            rest, first = t // tiles, t % tiles * TILE
            of = call[SOURCE] + first * row_source
            to = call[TARGET] + first * call[ROW_TARGET]
            for a in range(call[OUTER]):
                axis = words(call[AXES] + 3 * WORD_BYTES * a)
                of += rest % axis[0] * axis[1]
                to += rest % axis[0] * axis[2]
                rest //= axis[0]
            rows = min(TILE, call[ROWS] - first)
            for start in range(0, columns, width):
                count = min(width, columns - start)
                source_at, target_at = of + start * stride, to + start * WRITTEN_BYTES
                if in_tiles and row_source == READ_BYTES:
                    convert_transposed(target_at, call[ROW_TARGET], source_at, stride, rows, count)
                else:
                    for r in range(rows):
                        convert_run(
                            target_at + r * call[ROW_TARGET],
                            source_at + r * row_source,
                            stride,
                            count,
                        )

    return convert_bin
