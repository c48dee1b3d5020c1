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
_PART = LANES // 4  # words of a vector, four of which become one of bytes
_WORDS, _SHORTS = ir.VectorType(_WORD, _PART), ir.VectorType(_SHORT, 2 * _PART)
_BYTES = ir.VectorType(_BYTE, LANES)
# Where the bytes of the four vectors are once they have been mixed: two in turn, then two of these.
_IN_ORDER = ir.VectorType(_WORD, LANES)(
    [4 * place + 2 * (part % 2) + part // 2 for part in range(4) for place in range(_PART)]
)


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

    The operations are on vectors, as the loops that LLVM makes of single elements use a fourth of a
    register.  Words become bytes by shifts and masks, two vectors of words in one of halves and two
    of these in one of bytes, which are then put in order: instructions that narrow one vector each
    would take longer than all else here.
    """
    SIGNED = is_signed(codes)

    def codegen(context, builder, signature, args):
        codes, values, number, offset, chances = args
        first = builder.mul(number, number.type(LANES))
        turn = builder.shl(builder.trunc(number, _WORD), _WORD(DROPPED - SHARING_BITS))
        rounded = []
        for start in range(0, LANES, _PART):
            bits = _part_at(builder, values, builder.add(first, first.type(start)))
            chance = _part_at(builder, chances, first.type(start))
            rounded.append(builder.add(bits, builder.xor(chance, _spread(builder, turn, _PART))))
        least = _spread(builder, builder.trunc(offset, _SHORT), 2 * _PART)
        low, high = (
            _codes_of(builder, _upper_halves(builder, *rounded[k : k + 2]), least, SIGNED)
            for k in (0, 2)
        )
        low = builder.and_(low, _SHORTS([0xFF] * 2 * _PART))
        pairs = builder.or_(low, builder.shl(high, _SHORTS([8] * 2 * _PART)))
        mixed = builder.bitcast(pairs, _BYTES)
        code = builder.shuffle_vector(mixed, _BYTES(ir.Undefined), _IN_ORDER)
        target = builder.bitcast(builder.gep(codes, [first]), _BYTES.as_pointer())
        builder.store(code, target, align=1)
        return context.get_dummy_value()

    return types.none(codes, values, types.int64, types.int32, chances), codegen


def _part_at(builder, numbers, place):
    """A fourth of a group, from an element of memory that `frame_memory` gave."""
    part = builder.load(builder.bitcast(builder.gep(numbers, [place]), _WORDS.as_pointer()))
    part.align = _PART * 4
    return part


def _upper_halves(builder, even, odd):
    """The upper halves of words, those of two vectors in turn."""
    lower = builder.lshr(even, _WORDS([16] * _PART))
    upper = builder.and_(odd, _WORDS([0xFFFF0000] * _PART))
    return builder.bitcast(builder.or_(lower, upper), _SHORTS)


def _codes_of(builder, halves, least, signed):
    """The bytes of float32 numbers by their upper halves, in as many bits."""
    many = 2 * _PART
    most = _SHORTS([most_of(signed)] * many)
    levels = builder.ashr(halves, _SHORTS([DROPPED - 16] * many))
    if not signed:
        code = builder.sub(levels, least)
        return _smaller(builder, _larger(builder, code, _SHORTS([0] * many)), most)
    levels = builder.and_(levels, _SHORTS([MAGNITUDE >> DROPPED] * many))
    is_more = builder.icmp_unsigned(">", levels, least)
    code = builder.sub(builder.select(is_more, levels, least), least)  # saturating
    code = _smaller(builder, code, most)
    minus = builder.ashr(halves, _SHORTS([15] * many))  # all bits
    return builder.sub(builder.xor(code, minus), minus)


def _spread(builder, number, count):
    """A vector of so many times the same number."""
    kind = ir.VectorType(number.type, count)
    one = builder.insert_element(kind(ir.Undefined), number, _WORD(0))
    return builder.shuffle_vector(one, kind(ir.Undefined), ir.VectorType(_WORD, count)([0] * count))


def frame_memory(builder, kind, count):
    """A pointer to memory for numbers, in the frame of the function that is being built."""
    with builder.goto_entry_block():
        memory = builder.alloca(ir.ArrayType(kind, count))
    memory.align = FRAME_ALIGNMENT
    return builder.bitcast(memory, kind.as_pointer())
