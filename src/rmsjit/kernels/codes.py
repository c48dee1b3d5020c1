"""Numbers of 8 bits in blocks: reading them, and finding those of new values.

See `rmsjit.arrays.blocks` for what the bytes mean.
"""

import math
import random
from typing import Any, NamedTuple

from llvmlite import ir
from numba import int32, njit, types
from numba.extending import intrinsic

from rmsjit.arrays.blocks import BLOCK, INFINITY, MAGNITUDE, MAPS, SIGN
from rmsjit.runtime.flags import INLINED

_WORD = ir.IntType(32)
_BYTE = ir.IntType(8)
_FLOAT = ir.FloatType()
_ALIGNMENT = 64
# An offset that fits exactly would change at almost every step, and all codes of its block with it.
_HEADROOM = 4  # above the least offset; the largest number may grow by as many codes
_SLACK = 8  # above the least offset, before it is reduced
_ONE_IN = 32  # blocks without signs; that one is rounded up more often, see `_chances`
_PLACE_BITS = BLOCK.bit_length() - 1  # of the place of an element in its block


def _spread_chances():
    """A number below 1 for each element of a block: evenly spread, in random order.

    So the share of equal elements that are rounded up is the right one.
    """
    draw = random.Random(0).random  # gives the same numbers in every version of Python
    ranks = sorted(range(BLOCK), key=lambda i: draw())
    return [(rank + draw()) / BLOCK for rank in ranks]


_CHANCES = _spread_chances()
_LARGER_CHANCES = [math.sqrt(chance) for chance in _CHANCES]  # as the larger one of two


class Block(NamedTuple):
    """A block in compiled code.  Its type tells its map, see `BLOCKS`."""

    codes: Any  # pointer to bytes: int8 with a sign, otherwise uint8
    offset: Any  # int32
    values: Any  # pointer to float32, memory for the new values, which may need another offset
    offset_at: Any  # int64, the address of the offset, which need not be aligned


BLOCKS = {one: type(f"BlockOf_{one.name}", (Block,), {"map": one}) for one in MAPS.values()}


def _map_of(block):
    """What the bytes of a type of blocks mean."""
    return block.instance_class.map


def _smaller(builder, left, right):
    return builder.select(builder.icmp_signed("<", left, right), left, right)


def _larger(builder, left, right):
    return builder.select(builder.icmp_signed(">", left, right), left, right)


@intrinsic
def unpack(typing_context, code, offset, block):
    """The number of a byte of a block, as a float32."""
    SIGNED, DROPPED = _map_of(block).signed, _map_of(block).dropped

    def codegen(context, builder, signature, args):
        code = builder.sext(args[0], _WORD) if SIGNED else builder.zext(args[0], _WORD)
        level = _larger(builder, code, builder.neg(code)) if SIGNED else code
        bits = builder.shl(builder.add(level, args[1]), _WORD(DROPPED))
        value = builder.bitcast(bits, _FLOAT)
        if SIGNED:
            size = builder.fsub(value, _base(builder, args[1], DROPPED))
            bits = builder.or_(builder.bitcast(size, _WORD), builder.and_(code, _WORD(SIGN)))
            value = builder.bitcast(bits, _FLOAT)
        return value

    return types.float32(code, types.int32, block), codegen


@intrinsic
def larger_size(typing_context, largest, value, block):
    """The larger one of `largest` and the size of a value, both as the bits of a float32.

    In a loop that computes or packs the values it is nearly free.
    """
    SIGNED = _map_of(block).signed

    def codegen(context, builder, signature, args):
        return _larger(builder, args[0], _size(builder, args[1], SIGNED))

    return types.int32(types.int32, types.float32, block), codegen


@intrinsic
def larger_finite_size(typing_context, largest, value, block):
    """The larger one of `largest` and the size of a value, if that is finite.

    It is not larger than the largest number of the map.
    """
    SIGNED, LARGEST = _map_of(block).signed, _WORD(_map_of(block).largest)

    def codegen(context, builder, signature, args):
        size = _size(builder, args[1], SIGNED)
        finite = builder.icmp_signed("<", size, _WORD(INFINITY))
        size = builder.select(finite, _smaller(builder, size, LARGEST), _WORD(0))
        return _larger(builder, args[0], size)

    return types.int32(types.int32, types.float32, block), codegen


def _size(builder, value, signed):
    """The bits of a float32, without its sign if codes have one."""
    bits = builder.bitcast(value, _WORD)
    return builder.and_(bits, _WORD(MAGNITUDE)) if signed else bits


@intrinsic
def code_of(typing_context, value, i, bits, offset, block):
    """The byte of a float32, element `i` of a block, rounded by chance.

    The 32 random `bits` are those of the block.  Each element combines them with a fixed number for
    its position, the same in all blocks; random bits for each element would cost a tenth of the
    time of a step.  A value that is too large for `offset`, or not finite, gets an extreme byte.
    """
    SIGNED, DROPPED = _map_of(block).signed, _map_of(block).dropped
    code_type = block.types[Block._fields.index("codes")].dtype

    def codegen(context, builder, signature, args):
        value, i, bits, offset, _ = args
        # Both are the same for all elements: the chances, and the offset to be subtracted.
        chances, mixed = _chances(builder, bits, _map_of(block))
        addend = builder.or_(mixed, builder.shl(builder.neg(offset), _WORD(DROPPED)))
        chance = builder.load(builder.gep(chances, [i]))
        size = _size(builder, value, SIGNED)
        if SIGNED:
            base = _base(builder, offset, DROPPED)
            size = builder.bitcast(builder.fadd(builder.bitcast(size, _FLOAT), base), _WORD)
        size = builder.add(size, builder.xor(chance, addend))
        code = builder.ashr(size, _WORD(DROPPED))
        if SIGNED:
            is_less = builder.icmp_signed("<", builder.bitcast(value, _WORD), _WORD(0))
            code = builder.select(is_less, builder.neg(code), code)
        # Instructions that narrow vectors saturate; without a bound, AVX2 would need more of them.
        least, most = (-128, 127) if SIGNED else (0, 255)
        code = _smaller(builder, _larger(builder, code, _WORD(least)), _WORD(most))
        return builder.trunc(code, _BYTE)

    return code_type(types.float32, types.int64, types.uint32, types.int32, block), codegen


def _base(builder, offset, dropped):
    """What is added to sizes before their logarithm is taken; see `rmsjit.arrays.blocks`."""
    return builder.bitcast(builder.shl(offset, _WORD(dropped)), _FLOAT)


def _chances(builder, bits, meaning):
    """A pointer to the chances of a block's elements, and what is to be mixed into each of them.

    Without signs, the numbers are mean squares.  A step divides by their roots, and where these are
    right in the mean, steps are too long: by 3/8 of the relative variance.  A probability of
    ``f + 3/8*d*f*(1 - f)`` in place of `f` for rounding up, with the relative distance `d` of
    neighbours, 1/11 in the mean, makes the mean step right, whatever rho is.  The larger one of two
    chances gives ``f + f*(1 - f)``, so one block of 32 gets that.
    """
    dropped = meaning.dropped
    mixed = builder.lshr(bits, _WORD(32 - dropped))
    if meaning.signed:
        return _table(builder, f"chances_of_{meaning.name}", _CHANCES, dropped), mixed
    tables = [*_CHANCES, *_LARGER_CHANCES, *_LARGER_CHANCES]
    table = _table(builder, f"chances_of_{meaning.name}", tables, dropped)
    is_larger = builder.icmp_unsigned("==", builder.and_(bits, _WORD(_ONE_IN - 1)), _WORD(0))
    # Mixing all bits would spread larger chances evenly, so a block begins anywhere among them.
    begin = builder.add(builder.lshr(bits, _WORD(32 - _PLACE_BITS)), _WORD(BLOCK))
    begin = builder.select(is_larger, begin, _WORD(0))
    low_bits = builder.and_(mixed, _WORD((1 << dropped - _PLACE_BITS) - 1))
    return builder.gep(table, [begin]), builder.select(is_larger, low_bits, mixed)


def _table(builder, name, chances, dropped):
    """A pointer to chances as so many bits, a constant of the module that is being built."""
    table = builder.module.globals.get(f"rmsjit.{name}")
    if table is None:
        content = ir.ArrayType(_WORD, len(chances))([int(one * 2**dropped) for one in chances])
        table = ir.GlobalVariable(builder.module, content.type, f"rmsjit.{name}")
        table.linkage, table.global_constant, table.initializer = "internal", True, content
        table.align = _ALIGNMENT
    return builder.bitcast(table, _WORD.as_pointer())


@intrinsic
def limited(typing_context, value, largest, block):
    """A value of a size that is at most `largest`, both as the bits of a float32."""
    SIGNED = _map_of(block).signed

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], _WORD)
        size = _smaller(builder, _size(builder, args[0], SIGNED), args[1])
        if SIGNED:
            size = builder.or_(size, builder.and_(bits, _WORD(SIGN)))
        return builder.bitcast(size, ir.FloatType())

    return types.float32(types.float32, types.int32, block), codegen


@intrinsic
def least_offset(typing_context, largest, block):
    """An offset of a block with this largest value, also if that is rounded up.

    The value is given by its bits.  With signs, adding the base can make it one level higher.
    """
    MOST, DROPPED = _map_of(block).most, _map_of(block).dropped
    SPARE = 2 if _map_of(block).signed else 1

    def codegen(context, builder, signature, args):
        top = builder.lshr(args[0], _WORD(DROPPED))
        return _larger(builder, builder.sub(top, _WORD(MOST - SPARE)), _WORD(0))

    return types.int32(types.int32, block), codegen


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
