"""Numbers of 8 bits in blocks: reading them, and finding those of new values.

See `rmsjit.arrays.blocks` for what the bytes mean.
"""

import random
from typing import Any, NamedTuple

from llvmlite import ir
from numba import int32, njit, types
from numba.extending import intrinsic

from rmsjit.arrays.blocks import BLOCK, DROPPED, INFINITY, MAGNITUDE, SIGN, most_of
from rmsjit.runtime.flags import INLINED

_WORD = ir.IntType(32)
_BYTE = ir.IntType(8)
_ALIGNMENT = 64
# An offset that fits exactly would change at almost every step, and all codes of its block with it.
_HEADROOM = 4  # above the least offset; the largest number may grow by as many codes
_SLACK = 8  # above the least offset, before it is reduced


def _spread_chances():
    """As many bits as a code drops for each element of a block: evenly spread, in random order.

    So the share of equal elements that are rounded up is the right one.
    """
    draw = random.Random(0).random  # gives the same numbers in every version of Python
    ranks = sorted(range(BLOCK), key=lambda i: draw())
    return [int((rank + draw()) / BLOCK * 2**DROPPED) for rank in ranks]


_CHANCES = _spread_chances()


class Block(NamedTuple):
    """A block in compiled code."""

    codes: Any  # pointer to bytes: int8 with a sign, otherwise uint8
    offset: Any  # int32
    values: Any  # pointer to float32, memory for the new values, which may need another offset
    offset_at: Any  # int64, the address of the offset, which need not be aligned


def is_signed(codes):
    """Whether the bytes of a pointer type have signs."""
    return codes.dtype == types.int8


def _smaller(builder, left, right):
    return builder.select(builder.icmp_signed("<", left, right), left, right)


def _larger(builder, left, right):
    return builder.select(builder.icmp_signed(">", left, right), left, right)


@intrinsic
def unpack(typing_context, code, offset):
    """The number of a byte, as a float32."""
    SIGNED = code == types.int8

    def codegen(context, builder, signature, args):
        code = builder.sext(args[0], _WORD) if SIGNED else builder.zext(args[0], _WORD)
        level = _larger(builder, code, builder.neg(code)) if SIGNED else code
        bits = builder.shl(builder.add(level, args[1]), _WORD(DROPPED))
        if SIGNED:
            # 0 where the code is: a comparison would need the code as another vector of words.
            most = builder.neg(level)
            bits = builder.select(builder.icmp_unsigned("<", bits, most), bits, most)
            bits = builder.or_(bits, builder.and_(code, _WORD(SIGN)))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(code, types.int32), codegen


@intrinsic
def no_sizes(typing_context, slots):
    """The sizes of the largest values of no elements, one for each slot."""

    def codegen(context, builder, signature, args):
        return context.make_tuple(builder, signature.return_type, [_WORD(0)] * len(slots))

    return types.UniTuple(types.int32, len(slots))(slots), codegen


@intrinsic
def larger_sizes(typing_context, sizes, slots, i):
    """The sizes of the largest values of packed slots, those of element `i` included.

    They are the bits of a float32.  In the loop of the rule they are nearly free; a loop of their
    own would cost a tenth of the time.
    """

    def codegen(context, builder, signature, args):
        found = []
        for k, slot in enumerate(slots):
            size = builder.extract_value(args[0], k)
            if isinstance(slot, types.NamedTuple):
                block = builder.extract_value(args[1], k)
                values = builder.extract_value(block, Block._fields.index("values"))
                value = builder.load(builder.gep(values, [args[2]]))
                size = _larger(builder, size, _size(builder, value, is_signed(slot.types[0])))
            found.append(size)
        return context.make_tuple(builder, sizes, found)

    return sizes(sizes, slots, types.int64), codegen


@intrinsic
def larger_finite_size(typing_context, largest, value, codes):
    """The larger one of `largest` and the size of a value, if that is finite."""
    SIGNED = is_signed(codes)

    def codegen(context, builder, signature, args):
        size = _size(builder, args[1], SIGNED)
        finite = builder.icmp_signed("<", size, _WORD(INFINITY))
        return _larger(builder, args[0], builder.select(finite, size, _WORD(0)))

    return types.int32(types.int32, types.float32, codes), codegen


def _size(builder, value, signed):
    """The bits of a float32, without its sign if codes have one."""
    bits = builder.bitcast(value, _WORD)
    return builder.and_(bits, _WORD(MAGNITUDE)) if signed else bits


@intrinsic
def code_of(typing_context, value, i, bits, offset, codes):
    """The byte of a float32, element `i` of a block, rounded by chance.

    The 32 random `bits` are those of the block.  Each element combines them with a fixed number for
    its position, the same in all blocks; random bits for each element would cost a tenth of the
    time of a step.  The value must be finite and `offset` large enough for it; see `least_offset`.
    """
    SIGNED = is_signed(codes)

    def codegen(context, builder, signature, args):
        value, i, bits, offset, _ = args
        # Both are the same for all elements: the random bits, and the offset to be subtracted.
        addend = builder.lshr(bits, _WORD(32 - DROPPED))
        addend = builder.or_(addend, builder.shl(builder.neg(offset), _WORD(DROPPED)))
        chance = builder.load(builder.gep(_chances(builder), [i]))
        size = builder.add(_size(builder, value, SIGNED), builder.xor(chance, addend))
        code = _larger(builder, builder.ashr(size, _WORD(DROPPED)), _WORD(0))
        if SIGNED:
            is_less = builder.icmp_signed("<", builder.bitcast(value, _WORD), _WORD(0))
            code = builder.select(is_less, builder.neg(code), code)
        return builder.trunc(code, _BYTE)

    return codes.dtype(types.float32, types.int64, types.uint32, types.int32, codes), codegen


def _chances(builder):
    """A pointer to `_CHANCES`, a constant of the module that is being built."""
    name = "rmsjit.chances"
    table = builder.module.globals.get(name)
    if table is None:
        content = ir.ArrayType(_WORD, BLOCK)(_CHANCES)
        table = ir.GlobalVariable(builder.module, content.type, name)
        table.linkage, table.global_constant, table.initializer = "internal", True, content
        table.align = _ALIGNMENT
    return builder.bitcast(table, _WORD.as_pointer())


@intrinsic
def limited(typing_context, value, largest, codes):
    """A value of a size that is at most `largest`, both as the bits of a float32."""
    SIGNED = is_signed(codes)

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], _WORD)
        size = _smaller(builder, _size(builder, args[0], SIGNED), args[1])
        if SIGNED:
            size = builder.or_(size, builder.and_(bits, _WORD(SIGN)))
        return builder.bitcast(size, ir.FloatType())

    return types.float32(types.float32, types.int32, codes), codegen


@intrinsic
def least_offset(typing_context, largest, codes):
    """The least offset of a block with this largest value, also if that is rounded up.

    The value is given by its bits.
    """
    MOST = most_of(is_signed(codes))

    def codegen(context, builder, signature, args):
        top = builder.lshr(args[0], _WORD(DROPPED))
        return _larger(builder, builder.sub(top, _WORD(MOST - 1)), _WORD(0))

    return types.int32(types.int32, codes), codegen


@njit(**INLINED)
def fits(offset, least):
    """Whether a block can keep its offset."""
    return least <= offset <= least + _SLACK


@njit(**INLINED)
def roomy_offset(least):
    """The new offset of a block that can't keep its own."""
    return int32(least + _HEADROOM)


def frame_memory(builder, kind, count):
    """A pointer to memory for numbers, in the frame of the function that is being built."""
    with builder.goto_entry_block():
        memory = builder.alloca(ir.ArrayType(kind, count))
    memory.align = _ALIGNMENT
    return builder.bitcast(memory, kind.as_pointer())
