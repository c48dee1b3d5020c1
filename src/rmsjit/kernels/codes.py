"""Numbers of 8 bits in blocks: reading them, and finding those of new values.

See `rmsjit.arrays.blocks` for what the bytes mean.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rmsjit.arrays.blocks import DROPPED, INFINITY, MAGNITUDE, SIGN, most_of

_WORD = ir.IntType(32)
_BYTE = ir.IntType(8)
_SHORT = ir.IntType(16)
SHARING_BITS = 3  # 8 elements of a block share their random bits


class Block(NamedTuple):
    """A block in compiled code, which reads its codes and writes to its values."""

    codes: Any  # pointer to bytes: int8 with a sign, otherwise uint8
    offset: Any  # int32
    values: Any  # pointer to float32, where the new values wait to be packed
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
            is_zero = builder.icmp_signed("==", code, _WORD(0))
            bits = builder.select(is_zero, _WORD(0), bits)
            bits = builder.or_(bits, builder.and_(code, _WORD(SIGN)))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(code, types.int32), codegen


@intrinsic
def larger_size(typing_context, largest, value, codes):
    """The larger one of `largest` and the size of a value, as the bits of a float32."""
    SIGNED = is_signed(codes)

    def codegen(context, builder, signature, args):
        return _larger(builder, args[0], _size(builder, args[1], SIGNED))

    return types.int32(types.int32, types.float32, codes), codegen


@intrinsic
def larger_finite_size(typing_context, largest, value, codes):
    """`larger_size`, but for values that are not finite."""
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
def offset_for(typing_context, largest, codes):
    """The offset of a block, from the bits of its largest value, which may be rounded up."""
    MOST = most_of(is_signed(codes))

    def codegen(context, builder, signature, args):
        top = builder.lshr(args[0], _WORD(DROPPED))
        return _larger(builder, builder.sub(top, _WORD(MOST - 1)), _WORD(0))

    return types.int32(types.int32, codes), codegen


@intrinsic
def dropped_bits(typing_context, bits):
    """As many of 32 random bits as a code drops."""

    def codegen(context, builder, signature, args):
        return builder.lshr(args[0], _WORD(32 - DROPPED))

    return types.uint32(types.uint32), codegen


@intrinsic
def code_for(typing_context, value, offset, chance, number, codes):
    """The byte of a value, rounded by random bits.

    `chance` has DROPPED of them.  Value `number` of those that share them changes the first bits by
    its own number, so that they fall into different parts of the range.
    """
    SIGNED = is_signed(codes)
    MOST = most_of(SIGNED)

    def codegen(context, builder, signature, args):
        value, offset, chance, number, _ = args
        bits = builder.bitcast(value, _WORD)
        turn = builder.shl(builder.trunc(number, _WORD), _WORD(DROPPED - SHARING_BITS))
        bits = builder.add(bits, builder.xor(chance, turn))
        short = builder.trunc(builder.ashr(bits, _WORD(DROPPED)), _SHORT)  # 12 bits of it count
        level = builder.and_(short, _SHORT(MAGNITUDE >> DROPPED)) if SIGNED else short
        code = builder.sub(level, builder.trunc(offset, _SHORT))
        code = _larger(builder, code, _SHORT(0))
        if SIGNED:
            minus = builder.ashr(short, _SHORT(15))  # all bits, or none
            code = builder.sub(builder.xor(code, minus), minus)
            code = _larger(builder, code, _SHORT(-1 - MOST))  # so that bytes saturate
        return builder.trunc(_smaller(builder, code, _SHORT(MOST)), _BYTE)

    return codes.dtype(types.float32, types.int32, types.uint32, types.int64, codes), codegen


def frame_memory(builder, kind, count):
    """A pointer to memory for numbers, in the frame of the function that is being built."""
    with builder.goto_entry_block():
        memory = builder.alloca(ir.ArrayType(kind, count))
    memory.align = 64
    return builder.bitcast(memory, kind.as_pointer())
