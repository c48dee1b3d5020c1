"""Slots in 8 bits, in kernels: a variable, or a row of a table, is updated block by block.

The rule reads the codes of a block, and writes those of the new `rms` as if its offset stayed the
same.  All new values are also in a buffer, which stays in the first-level cache.  At the end of the
block, the other slots are packed in the same way, and any slot is packed again if its largest
value, now known, needs another offset.  That is rare, as offsets leave some room.
"""

import functools

from llvmlite import ir
from numba import int32, njit, types
from numba.extending import intrinsic

from rmsjit.arrays.blocks import BLOCK, MAPS, OFFSET_BYTES
from rmsjit.kernels.codes import (
    BLOCKS,
    code_of,
    fits,
    frame_memory,
    larger_finite_size,
    larger_size,
    least_offset,
    limited,
    roomy_offset,
)
from rmsjit.kernels.noise import bits_for, noise_of
from rmsjit.kernels.rule import packs_late
from rmsjit.kernels.views import number_type, size_of
from rmsjit.rule.slot import is_packed
from rmsjit.runtime.flags import INLINED

_WORD, _FLOAT = ir.IntType(64), ir.FloatType()


@njit(**INLINED)
def block_at(start, length):
    """How many elements the block has that begins with `start`, in records of `length` elements."""
    return min(BLOCK, length - start % length)


def row_sizes(form, kinds):
    """A function ``(column, width)``: the bytes of a row of a table, or of one of its slots.

    The table is column 0, and its slots are those from 1 on.
    """
    SIZES = tuple(size_of(number_type(name)) for name in (kinds.variable, *kinds.slots))
    BEFORE = (0, *(OFFSET_BYTES if is_packed(slot.dtype) else 0 for slot in form.slots))

    @njit(**INLINED)
    def row_bytes(column, width):
        return width * SIZES[column] + (width + BLOCK - 1) // BLOCK * BEFORE[column]

    return row_bytes


def slots_in_blocks(form, kinds):
    """A function ``(addresses, first, start, length)`` for slots, some of which are packed.

    It returns what `rmsjit.kernels.views.pointers_to` gives, but a `Block` for a packed slot, in
    records of `length` elements; there `start` must be the first element of a block.
    """
    makers = [
        _block_maker(number_type(kind), MAPS[slot.dtype])
        if is_packed(slot.dtype)
        else _pointer_maker(number_type(kind))
        for slot, kind in zip(form.slots, kinds.slots, strict=True)
    ]
    made = types.Tuple([kind for kind, _ in makers])

    @intrinsic
    def slots_at(typing_context, addresses, first, start, length):
        def codegen(context, builder, signature, args):
            found = []
            for k, (_, make) in enumerate(makers):
                place = builder.add(args[1], args[1].type(k))
                address = builder.load(builder.gep(args[0], [place]))
                found.append(make(context, builder, address, args[2], args[3]))
            return context.make_tuple(builder, made, found)

        return made(addresses, types.int64, types.int64, types.int64), codegen

    return slots_at


def _pointer_maker(kind):
    """The type of a pointer to elements, and the function that makes it in LLVM's code."""
    pointer = types.CPointer(kind)

    def make(context, builder, address, start, length):
        offset = builder.mul(start, start.type(size_of(kind)))
        return builder.inttoptr(builder.add(address, offset), context.get_value_type(pointer))

    return pointer, make


def _block_maker(code, meaning):
    """The type of a block of bytes of this type and map, and the function that makes it."""
    codes, values = types.CPointer(code), types.CPointer(types.float32)
    block = types.NamedTuple((codes, types.int32, values, types.int64), BLOCKS[meaning])

    def make(context, builder, address, start, length):
        number, inside = builder.udiv(start, length), builder.urem(start, length)
        blocks = builder.udiv(builder.add(length, _WORD(BLOCK - 1)), _WORD(BLOCK))
        before = builder.mul(blocks, _WORD(OFFSET_BYTES))
        record = builder.add(address, builder.mul(number, builder.add(before, length)))
        ahead = builder.mul(builder.udiv(inside, _WORD(BLOCK)), _WORD(OFFSET_BYTES))
        offset_at = builder.add(record, ahead)
        offset = builder.load(_offset_pointer(builder, offset_at))
        offset.align = 1
        place = builder.add(builder.add(record, before), inside)
        bytes_at = builder.inttoptr(place, context.get_value_type(codes))
        fresh = frame_memory(builder, _FLOAT, BLOCK)
        return context.make_tuple(builder, block, [bytes_at, offset, fresh, offset_at])

    return block, make


def _offset_pointer(builder, address):
    return builder.inttoptr(address, ir.IntType(32).as_pointer())


@intrinsic
def _write_offset(typing_context, address, offset):
    """Write an offset, which need not be aligned."""

    def codegen(context, builder, signature, args):
        builder.store(args[1], _offset_pointer(builder, args[0]), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int32), codegen


@functools.cache
def size_of_largest(form):
    """A function ``(largest, slots, i)``: the size of the largest element that the rule has packed.

    It is called after each element `i`, with what it returned before, at first 0.
    """
    packed = [is_packed(slot.dtype) and not packs_late(slot.name) for slot in form.slots]
    if True not in packed:
        return _same_size
    PACKED = packed.index(True)

    @njit(**INLINED)
    def larger(largest, slots, i):
        return larger_size(largest, slots[PACKED].values[i], slots[PACKED])

    return larger


@njit(**INLINED)
def _same_size(largest, slots, i):
    return largest


@functools.cache
def pack_slots(form, last=None):
    """The function that packs what the rule has not packed, one function for each slot.

    A block gets another offset where its new values need one.  `largest` is the size of the largest
    element that the rule has packed; see `size_of_largest`.
    """
    last = len(form.slots) - 1 if last is None else last
    if last < 0:
        return _pack_nothing
    rest = pack_slots(form, last - 1)
    if not is_packed(form.slots[last].dtype):
        return rest
    name = form.slots[last].name
    bits_of, noise, LATE = bits_for(form)[name], noise_of(form)[2], packs_late(name)
    LARGEST = MAPS[form.slots[last].dtype].largest

    @njit(**INLINED)
    def pack(slots, count, key, largest):
        rest(slots, count, key, largest)
        block = slots[last]
        codes, values, offset = block.codes, block.values, block.offset
        if LATE:
            largest = int32(0)
            for i in range(count):
                codes[i] = code_of(values[i], i, bits_of(noise(key, i)), offset, block)
                largest = larger_size(largest, values[i], block)
        keeps = largest <= LARGEST
        if not keeps:
            largest = _limit(count, block)
        least = least_offset(largest, block)
        if not fits(offset, least):
            keeps, offset = False, roomy_offset(least)
            _write_offset(block.offset_at, offset)
        if not keeps:
            for i in range(count):
                codes[i] = code_of(values[i], i, bits_of(noise(key, i)), offset, block)

    return pack


@njit(**INLINED)
def _limit(count, block):
    """Limit values to the largest finite one that fits; return its size."""
    values, largest = block.values, int32(0)
    for i in range(count):
        largest = larger_finite_size(largest, values[i], block)
    for i in range(count):
        values[i] = limited(values[i], largest, block)
    return largest


@njit(**INLINED)
def _pack_nothing(slots, count, key, largest):
    pass
