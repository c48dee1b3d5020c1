"""Arrays packed to 8 bits: blocks of up to 256 elements, with an offset and a byte per element.

The bytes are short logarithms.  With the offset of its block, a byte gives the upper bits of a
float32, exponent and 3 bits of the fraction, as ``(byte + offset) << 20``.  So neighbours differ by
a sixteenth to an eighth.  The offset is the smallest with which the largest element fits, or
after steps up to 10 more, so that it rarely has to change.  Numbers reach down to 2**-30 of the
largest one of their block.

Where numbers have signs, bytes have them too.  What the byte 0 would mean is added to a size before
its logarithm is taken, and subtracted again.  So 0 is 0, and small numbers are evenly spaced, down
to 2**-18 of the largest one of their block.  Elements of a momentum are of similar size, as each is
divided by its own root mean square: their bytes give 4 bits of the fraction, and reach down to
2**-11.  An infinity becomes the largest number of its block, and a NaN any number.

A packed array consists of records, which hold the offsets of some blocks and then their bytes.  The
record of a table is a row, so that rows have no block in common; other arrays have a block in each.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import Layout

BLOCK = 256  # elements, or fewer at the end of a row
LEAST_PACKED = 4096  # elements of an array that is worth packing
LEAST_ROW = 16  # elements of a row that is worth blocks of its own
OFFSET_BYTES = 4
INFINITY = 0x7F800000  # as the bits of a float32
MAGNITUDE = 0x7FFFFFFF
SIGN = 0x80000000

Array = NDArray[Any]


class Map(NamedTuple):
    """What the bytes of an array mean.

    Attributes
    ----------
    name : str
        Of the field of bytes in a record, by which the map of an array is known.
    signed : bool
    dropped : int
        The bits of a float32 that no byte holds.
    """

    name: str
    signed: bool
    dropped: int

    @property
    def most(self) -> int:
        """The largest byte."""
        return 127 if self.signed else 255

    @property
    def largest(self) -> int:
        """The bits of the largest number: no rounding of it, and of the sum above, is infinite."""
        return (INFINITY >> self.dropped) - 2 << self.dropped


SQUARES = Map("squares", signed=False, dropped=20)
WIDE = Map("codes", signed=True, dropped=20)
FINE = Map("fine_codes", signed=True, dropped=19)
MAPS = {"unsigned 8bit": SQUARES, "8bit": WIDE, "fine 8bit": FINE}  # by the dtype of a slot
_BY_NAME = {one.name: one for one in MAPS.values()}


# --- records --------------------------------------------------------------------------------


def record_length(shape: tuple[int, ...], layout: Layout) -> int:
    """The elements of a record beside a variable; 0 if that is too small to be packed."""
    if math.prod(shape) < LEAST_PACKED:
        return 0
    width = row_width(shape, layout)
    return width if width >= LEAST_ROW else BLOCK


def row_width(shape: tuple[int, ...], layout: Layout) -> int:
    """The elements of a row of a table; 0 if rows do not follow each other in memory."""
    return math.prod(shape[1:]) if len(shape) > 1 and _has_rows_in_order(layout) else 0


def _has_rows_in_order(layout: Layout) -> bool:
    in_order = layout.axes == tuple(range(len(layout.axes)))
    return in_order and all(flip.step is None for flip in layout.flips)


def rows_of_records(shape: tuple[int, ...], layout: Layout, length: int) -> int:
    """The least number of rows that fill whole records, as its multiples do.

    If rows do not follow each other in memory, these are all rows of the array.
    """
    if not _has_rows_in_order(layout):
        return shape[0]
    return length // math.gcd(length, math.prod(shape[1:]))


@functools.cache
def record_of(meaning: Map, length: int = BLOCK) -> np.dtype[Any]:
    """The dtype of records of so many elements."""
    code = np.int8 if meaning.signed else np.uint8
    return np.dtype([("offsets", np.int32, (_blocks_in(length),)), (meaning.name, code, (length,))])


def _blocks_in(length: int) -> int:
    return -(-length // BLOCK)


def has_records(array: Array) -> bool:
    """Whether an array holds records."""
    return array.dtype.names is not None


def map_of(record: np.dtype[Any]) -> Map:
    """What the bytes of a record mean."""
    assert record.names is not None
    return _BY_NAME[record.names[1]]


def length_of(record: np.dtype[Any]) -> int:
    """The elements of a record."""
    length: int = record[1].shape[0]
    return length


def records_for(size: int, length: int) -> int:
    """How many records of this length hold so many elements."""
    return -(-size // length)


# --- numbers --------------------------------------------------------------------------------


def packed(values: Array, record: np.dtype[Any]) -> Array:
    """Numbers as blocks, each rounded to nearest.

    Parameters
    ----------
    values : ndarray, shape (n,)
    record : dtype
        A result of `record_of`; without signs, negative numbers become the smallest of their block.

    Returns
    -------
    ndarray of `record`, shape (records,)
    """
    meaning, length = map_of(record), length_of(record)
    records = np.zeros(records_for(len(values), length), record)
    with np.errstate(all="ignore"):
        whole = _in_blocks(values, len(records), length)
        sizes = np.abs(whole) if meaning.signed else np.maximum(whole, 0)
        finite = np.isfinite(sizes)
        largest = np.max(np.where(finite, sizes, 0), axis=2, keepdims=True, initial=0)
        largest = np.minimum(largest, np.int32(meaning.largest).view(np.float32))
        sizes = np.where(finite, np.minimum(sizes, largest), largest)
        offsets = _least_offsets(largest, meaning)
        codes = np.clip(_nearest_levels(sizes, offsets, meaning) - offsets, 0, meaning.most)
        codes = np.where(whole < 0, -codes, codes) if meaning.signed else codes
    records["offsets"] = offsets[..., 0]
    records[meaning.name] = codes.reshape(len(records), -1)[:, :length]
    return records


def _in_blocks(values: Array, count: int, length: int) -> NDArray[np.float32]:
    """Numbers by record, block and element, with zeros where there are none."""
    step = min(BLOCK, length)
    padded = np.zeros(count * length, np.float32)
    padded[: len(values)] = values
    whole = np.zeros((count, _blocks_in(length) * step), np.float32)
    whole[:, :length] = padded.reshape(-1, length)
    return whole.reshape(count, -1, step)


def _base(offsets: NDArray[np.int32], meaning: Map) -> Any:
    """What is added to the sizes of blocks before their logarithm is taken."""
    return (offsets << meaning.dropped).view(np.float32) if meaning.signed else np.float32(0)


def _nearest_levels(
    sizes: NDArray[np.float32], offsets: NDArray[np.int32], meaning: Map
) -> NDArray[np.int32]:
    """The upper bits of sizes, in blocks with these offsets, rounded to nearest."""
    bits: NDArray[np.int32] = (sizes + _base(offsets, meaning)).view(np.int32)
    return bits + (1 << meaning.dropped - 1) >> meaning.dropped


def _least_offsets(largest: NDArray[np.float32], meaning: Map) -> NDArray[np.int32]:
    """The least offsets of blocks with these largest numbers."""
    none = np.zeros(largest.shape, np.int32)
    offsets = np.maximum(_nearest_levels(largest, none, meaning) - meaning.most, none)
    return offsets + (_nearest_levels(largest, offsets, meaning) - offsets > meaning.most)


def unpacked(records: Array, size: int) -> NDArray[np.float32]:
    """The first `size` numbers of records."""
    meaning, length = map_of(records.dtype), length_of(records.dtype)
    codes = records[meaning.name].astype(np.int32)
    offsets = np.repeat(records["offsets"], min(BLOCK, length), axis=1)[:, :length]
    levels = np.abs(codes) + offsets
    values: NDArray[np.float32] = (levels << meaning.dropped).view(np.float32)
    if meaning.signed:
        values = np.sign(codes).astype(np.float32) * (values - _base(offsets, meaning))
    return values.reshape(-1)[:size]


def as_stored(memory: Array, values: Any, size: int) -> Any:
    """Values of so many elements, or one for all, as the memory of a slot holds them."""
    values = np.asarray(values)
    if not has_records(memory):
        return values
    if values.ndim == 0:  # one record, to be broadcast
        size = length_of(memory.dtype)
    return packed(np.broadcast_to(values, (size,)), memory.dtype)


def reordered(flat: Array, shape: tuple[int, ...], layout: Layout, to: Layout) -> Array:
    """A flat array, also a packed one, rearranged from the order of one layout to another's."""
    if layout.orders_like(to):
        return flat
    if not has_records(flat):
        return layout.reordered(flat, shape, to)
    values = unpacked(flat, math.prod(shape))
    return packed(layout.reordered(values, shape, to), flat.dtype)


def repacked(records: Array, size: int, record: np.dtype[Any]) -> Array:
    """The same numbers in records of another length."""
    return records if records.dtype == record else packed(unpacked(records, size), record)


def in_records_of(flat: Array, size: int, length: int) -> Array:
    """A flat array of so many elements, in records of this length if it is packed."""
    if not has_records(flat):
        return flat
    return repacked(flat, size, record_of(map_of(flat.dtype), length))


def part_of(flat: Array, start: int, stop: int) -> Array:
    """A view of some elements of a flat array, which are whole records if it is packed."""
    if has_records(flat):
        length = length_of(flat.dtype)
        start, stop = records_for(start, length), records_for(stop, length)
    return flat[start:stop]


# --- bytes ----------------------------------------------------------------------------------


def as_bytes(records: Array) -> NDArray[np.uint8]:
    """Records as bytes, a row for each, for files and messages; not copied."""
    return records.view(np.uint8).reshape(len(records), records.dtype.itemsize)


def of_bytes(rows: NDArray[np.uint8], meaning: Map) -> Array:
    """The inverse of `as_bytes`."""
    record = record_of(meaning, length_in_bytes(rows))
    return np.ascontiguousarray(rows).reshape(-1).view(record)


def length_in_bytes(rows: Array) -> int:
    """The elements of a record that has been made into a row of bytes."""
    nbytes: int = rows.shape[-1]
    return nbytes - OFFSET_BYTES * -(-nbytes // (BLOCK + OFFSET_BYTES))


def shape_in_bytes(size: int, length: int) -> tuple[int, int]:
    """The shape in `as_bytes` of so many elements in records of this length."""
    return records_for(size, length), record_of(WIDE, length).itemsize
