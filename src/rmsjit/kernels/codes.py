"""Numbers of 8 bits in blocks: reading them, and finding those of new values.

See `rmsjit.arrays.blocks` for what the bytes mean.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rmsjit.arrays.blocks import BLOCK, DROPPED, INFINITY, MAGNITUDE, SIGN, most_of

_WORD = ir.IntType(32)
_BYTE = ir.IntType(8)
_SHORT = ir.IntType(16)
SHARING_BITS = 3  # 8 elements of a block share their random bits
LANES = BLOCK >> SHARING_BITS  # elements of a group, with random bits of their own
FRAME_ALIGNMENT = 64
_WORDS, _SHORTS, _BYTES = (ir.VectorType(kind, LANES) for kind in (_WORD, _SHORT, _BYTE))


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

    They are the bits of a float32.  In the loop of the rule they cost next to nothing, in one of
    their own a tenth of the time.
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
def write_codes(typing_context, codes, values, number, offset, chances):
    """Write the bytes of the values of a group, rounded by random bits.

    Group `number` of a block has LANES elements.  `chances` has DROPPED random bits for each of
    them.  A group changes the first bits by its own number, so that the groups that share them get
    different parts of the range.

    The operations are on vectors: the loops that LLVM makes of single elements pack a fourth of
    what a register holds.
    """
    SIGNED = is_signed(codes)
    MOST = most_of(SIGNED)

    def codegen(context, builder, signature, args):
        codes, values, number, offset, chances = args
        first = builder.mul(number, number.type(LANES))
        bits = builder.load(_vector_at(builder, builder.gep(values, [first]), _WORDS))
        bits.align = FRAME_ALIGNMENT
        chance = builder.load(_vector_at(builder, chances, _WORDS))
        chance.align = FRAME_ALIGNMENT
        turn = builder.shl(builder.trunc(number, _WORD), _WORD(DROPPED - SHARING_BITS))
        bits = builder.add(bits, builder.xor(chance, _spread(builder, turn)))
        shorts = builder.trunc(builder.ashr(bits, _WORDS([DROPPED] * LANES)), _SHORTS)  # 12 bits
        least = _spread(builder, builder.trunc(offset, _SHORT))
        most = _SHORTS([MOST] * LANES)
        levels = shorts
        if SIGNED:
            levels = builder.and_(shorts, _SHORTS([MAGNITUDE >> DROPPED] * LANES))
        code = builder.sub(levels, least)
        code = _smaller(builder, _larger(builder, code, _SHORTS([0] * LANES)), most)
        code = builder.trunc(code, _BYTES)
        if SIGNED:
            minus = builder.trunc(builder.ashr(shorts, _SHORTS([15] * LANES)), _BYTES)  # all bits
            code = builder.sub(builder.xor(code, minus), minus)
        target = _vector_at(builder, builder.gep(codes, [first]), _BYTES)
        builder.store(code, target, align=1)
        return context.get_dummy_value()

    return types.none(codes, values, types.int64, types.int32, chances), codegen


def _vector_at(builder, address, kind):
    return builder.bitcast(address, kind.as_pointer())


def _spread(builder, number):
    """A vector of so many times the same number."""
    kind = ir.VectorType(number.type, LANES)
    one = builder.insert_element(kind(ir.Undefined), number, _WORD(0))
    return builder.shuffle_vector(one, kind(ir.Undefined), ir.VectorType(_WORD, LANES)([0] * LANES))


def frame_memory(builder, kind, count):
    """A pointer to memory for numbers, in the frame of the function that is being built."""
    with builder.goto_entry_block():
        memory = builder.alloca(ir.ArrayType(kind, count))
    memory.align = FRAME_ALIGNMENT
    return builder.bitcast(memory, kind.as_pointer())
