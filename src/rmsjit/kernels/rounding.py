"""Rounding to half types: which numbers a value may be rounded to, and stochastic rounding.

Stochastic rounding adds random bits below the last bit that is kept, then cuts: the mean over all
random bits (`rmsjit.kernels.noise`) is the value itself.
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from rmsjit.kernels.codes import code_of
from rmsjit.kernels.scalars import (
    BFLOAT16_BITS,
    FLOAT16_BITS,
    bfloat16_to_float32,
    by_type,
    float16_to_float32,
    float32_to_float16,
    load,
    nearest,
)
from rmsjit.runtime.flags import INLINED

_WORD = ir.IntType(32)
_FRACTION = 0x7FFFFF  # the bits of a float32
_EXPONENT = 0x7F800000
_MAGNITUDE = 0x7FFFFFFF
_HALF_DROPPED = 13  # bits of a float32 that a normal float16 lacks
_HALF_SMALLEST = 113  # the exponent field of the smallest normal float16 in a float32
_SIGNIFICAND = 24  # bits of a float32 with the leading one
_MOST_DROPPED = 31  # so that a sum with random bits fits into a word
_ALL_BITS = 0xFFFFFFFF
_HALF_UNIT = 0x8000  # of a bfloat16, in bits of a float32
_LARGE_BFLOAT16 = (2 - 2.0**-7) * 2.0**127  # the largest finite one


def _chosen(builder, bits, cut, infinity, nearest):
    """`cut` if the value is finite and `cut` in range, otherwise `nearest`.

    So random bits make no finite number infinite.
    """
    finite = builder.icmp_unsigned("<", builder.and_(bits, _WORD(_MAGNITUDE)), _WORD(_EXPONENT))
    in_range = builder.icmp_unsigned("<", cut, _WORD(infinity))
    return builder.select(builder.and_(finite, in_range), cut, nearest)


@intrinsic
def _cut_to_bfloat16(typing_context, value, noise):
    """A float32 with random bits added, cut to bfloat16.

    The sum carries into the exponent as it should.  Nothing is added to numbers next to the largest
    one, so that they stay finite, and to an infinity or a quiet NaN, so that it stays what it is.
    """

    def codegen(context, builder, signature, args):
        value, noise = args
        bits = builder.bitcast(value, _WORD)
        magnitude = builder.bitcast(builder.and_(bits, _WORD(_MAGNITUDE)), ir.FloatType())
        has_room = builder.fcmp_ordered("<", magnitude, ir.FloatType()(_LARGE_BFLOAT16))
        added = builder.select(has_room, builder.and_(noise, _WORD(0xFFFF)), _WORD(0))
        return builder.trunc(builder.lshr(builder.add(bits, added), _WORD(16)), ir.IntType(16))

    return types.int16(types.float32, types.uint32), codegen


@intrinsic
def _cut_to_float16(typing_context, value, noise, nearest):
    """A float32 with random bits added, cut to float16; `nearest` if that is not finite.

    The significand loses 13 bits, and more below the smallest normal float16.
    """

    def codegen(context, builder, signature, args):
        value, noise, nearest = args
        bits = builder.bitcast(value, _WORD)
        field = builder.lshr(builder.and_(bits, _WORD(_EXPONENT)), _WORD(23))
        is_normal = builder.icmp_unsigned(">=", field, _WORD(_HALF_SMALLEST))
        below = builder.select(is_normal, _WORD(0), builder.sub(_WORD(_HALF_SMALLEST), field))
        above = builder.select(is_normal, builder.sub(field, _WORD(_HALF_SMALLEST)), _WORD(0))
        significand = builder.or_(builder.and_(bits, _WORD(_FRACTION)), _WORD(_FRACTION + 1))
        # What is below the bits that random ones can reach is 0 or too small to matter.
        dropped = builder.add(below, _WORD(_HALF_DROPPED))
        is_tiny = builder.icmp_unsigned(">", dropped, _WORD(_MOST_DROPPED))
        excess = builder.select(is_tiny, builder.sub(dropped, _WORD(_MOST_DROPPED)), _WORD(0))
        vanishes = builder.icmp_unsigned(">", excess, _WORD(_SIGNIFICAND))
        shift = builder.select(vanishes, _WORD(_SIGNIFICAND), excess)
        kept = builder.lshr(significand, shift)
        dropped = builder.select(is_tiny, _WORD(_MOST_DROPPED), dropped)
        mask = builder.sub(builder.shl(_WORD(1), dropped), _WORD(1))
        total = builder.add(kept, builder.and_(noise, mask))
        cut = builder.add(builder.lshr(total, dropped), builder.shl(above, _WORD(10)))
        own = builder.and_(builder.zext(nearest, _WORD), _WORD(0x7FFF))
        chosen = _chosen(builder, bits, cut, 0x7C00, own)
        return _with_sign(builder, bits, chosen)

    return types.uint16(types.float32, types.uint32, types.uint16), codegen


def _with_sign(builder, bits, magnitude):
    """The half number of a magnitude with the sign of a float32."""
    sign = builder.and_(builder.lshr(bits, _WORD(16)), _WORD(0x8000))
    return builder.trunc(builder.or_(magnitude, sign), ir.IntType(16))


@by_type
def _stochastic(array, value, noise):
    """The element of `array` to which a value is rounded by random bits."""
    if array.dtype == FLOAT16_BITS:
        return lambda array, value, noise: _cut_to_float16(value, noise, float32_to_float16(value))
    if array.dtype == BFLOAT16_BITS:
        return lambda array, value, noise: _cut_to_bfloat16(value, noise)
    return None


@by_type
def _cut(array, value, noise):
    """`value` rounded by random bits to a number of an array of a half type, as a float32."""
    if array.dtype == FLOAT16_BITS:
        return lambda array, value, noise: float16_to_float32(_stochastic(array, value, noise))
    return lambda array, value, noise: bfloat16_to_float32(_stochastic(array, value, noise))


@by_type
def store_stochastically(array, i, value, noise):
    """Write `value` to element `i` of an array of a half type or of a block, rounded by chance."""
    if isinstance(array, types.NamedTuple):

        def store_code(array, i, value, noise):
            new = types.float32(value)
            array.values[i] = new
            array.codes[i] = code_of(new, i, noise, array.offset, array)

        return store_code

    def store_half(array, i, value, noise):
        array[i] = _stochastic(array, types.float32(value), noise)

    return store_half


@by_type
def master_or_written(array, i, master):
    """A master weight, or element `i` of an array of a half type if that is not rounded from it."""
    if array.dtype == BFLOAT16_BITS:
        return lambda array, i, master: _master_or_bfloat16(array[i], master)

    def master_or_float16(array, i, master):
        written = load(array, i)
        return master if written == nearest(array, master) else written

    return master_or_float16


@intrinsic
def _master_or_bfloat16(typing_context, upper, master):
    """The same for bfloat16, without rounding: the difference of the bits tells.

    A bfloat16 is the nearest number if it is less than half a unit away, or just half a unit and
    even.  Numbers of opposite sign have distant bits.  A NaN counts as infinity, as its bits may be
    next to those of zero.
    """

    def codegen(context, builder, signature, args):
        upper, infinity = builder.zext(args[0], _WORD), ir.FloatType()(float("inf"))
        written = builder.shl(upper, _WORD(16))
        is_less = builder.fcmp_ordered("<", args[1], infinity)
        master = builder.bitcast(builder.select(is_less, args[1], infinity), _WORD)
        apart = builder.sub(master, written)
        is_below = builder.icmp_signed("<", apart, _WORD(0))
        distance = builder.select(is_below, builder.neg(apart), apart)
        most = builder.sub(_WORD(_HALF_UNIT), builder.and_(upper, _WORD(1)))
        # Signed: the largest distance is -2**31, and the difference wraps round to below zero.
        is_far = builder.icmp_signed("<", builder.sub(most, distance), _WORD(0))
        return builder.bitcast(builder.select(is_far, written, master), ir.FloatType())

    return types.float32(types.int16, types.float32), codegen


@njit(**INLINED)
def master_or_written_near(array, i, master):
    """The same for a master weight that was rounded up or down by chance."""
    written = load(array, i)
    down, up = _cut(array, master, 0), _cut(array, master, _ALL_BITS)
    return master if (written == down) | (written == up) else written
