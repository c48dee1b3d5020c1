"""Rounding to half types: which numbers a value may be rounded to, and stochastic rounding.

Stochastic rounding adds random bits below the last bit that is kept, then cuts: the mean over all
random bits is the value itself.  The bits come from a function of a key and the number of the
element, so they depend neither on threads nor on how the work is cut.
"""

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types, uint64
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
from rmsjit.kernels.views import words
from rmsjit.rule.form import Form
from rmsjit.rule.slot import STOCHASTIC, is_packed
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


# --- random bits ----------------------------------------------------------------------------


@njit(**INLINED)
def _no_key(noise_address, place):
    return uint64(0)


@njit(**INLINED)
def _unmoved(key, first):
    return key


@njit(**INLINED)
def _no_noise(key, number):
    return 0


@njit(**INLINED)
def _key(noise_address, place):
    """The key of a step of a variable, by the finaliser of SplitMix64, for its first element."""
    noise = words(noise_address)
    bits = uint64(noise[1 + 2 * place]) + uint64(noise[0]) * uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> uint64(27))) * uint64(0x94D049BB133111EB)
    return _moved(bits ^ (bits >> uint64(31)), noise[2 + 2 * place])


@njit(**INLINED)
def _moved(key, first):
    """The key by which element 0 gets the bits of element `first`.

    So the number in a loop is its own counter, which vectors can count in 32 bits.
    """
    low = (key + uint64(first)) & uint64(_ALL_BITS)
    return (key & uint64(_ALL_BITS << 32)) | low


@intrinsic
def hashed_bits(typing_context, key, number):
    """32 random bits, by a hash of 32 bits, which vectors can compute.

    The upper half of the key goes in between, so two keys never give the same sequence shifted.
    Element 2**32 of a variable gets the bits of element 0.
    """

    def codegen(context, builder, signature, args):
        low = builder.trunc(args[0], _WORD)
        high = builder.trunc(builder.lshr(args[0], args[0].type(32)), _WORD)
        bits = builder.add(builder.trunc(args[1], _WORD), low)
        bits = builder.mul(builder.xor(bits, builder.lshr(bits, _WORD(16))), _WORD(0x21F0AAAD))
        bits = builder.xor(bits, high)
        bits = builder.mul(builder.xor(bits, builder.lshr(bits, _WORD(15))), _WORD(0xD35A2D97))
        return builder.xor(bits, builder.lshr(bits, _WORD(15)))

    return types.uint32(types.uint64, types.int64), codegen


@intrinsic
def _line_of_bits(typing_context, key, number):
    """32 random bits in fewer operations: a line, whose slope and start are those of the key.

    Any two elements of a step have as good as independent bits, so errors of many elements cancel
    like those of a hash; three and more depend on each other.  The lower half of the line has a
    short period, the upper half is mixed into it.
    """

    def codegen(context, builder, signature, args):
        start = builder.trunc(args[0], _WORD)
        slope = builder.trunc(builder.lshr(args[0], args[0].type(32)), _WORD)
        slope = builder.or_(slope, _WORD(1))
        bits = builder.mul(builder.add(builder.trunc(args[1], _WORD), start), slope)
        return builder.xor(bits, builder.lshr(bits, _WORD(16)))

    return types.uint32(types.uint64, types.int64), codegen


def noise_of(form: Form):
    """Functions for a variable's key, for that key from an element on, and for the random bits.

    The first takes the address of the noise, and the place of the variable there.  The noise in
    memory is int64 (1 + 2 * variables,): the number of the step, and for each variable a word of
    its own and the number of its first element, above 0 for a part of a divided one.  The last one
    takes the key and the number of an element, and gives 32 random bits for it and the key.  Where
    only slots are rounded by chance, the bits are cheaper: errors of slots fade within some steps,
    those of variables last.
    """
    if not form.is_random:
        return _no_key, _unmoved, _no_noise
    return _key, _moved, _noise(hashed_bits if form.rounding == STOCHASTIC else _line_of_bits)


@functools.cache
def _noise(bits):
    """The function that gives the bits of an element, and the key."""

    @njit(**INLINED)
    def noise(key, number):
        return bits(key, number), key

    return noise


@intrinsic
def _more(typing_context, bits):
    """Other 32 random bits, made from those of an element."""

    def codegen(context, builder, signature, args):
        (bits,) = args
        bits = builder.mul(builder.xor(bits, builder.lshr(bits, _WORD(16))), _WORD(0x7FEB352D))
        bits = builder.mul(builder.xor(bits, builder.lshr(bits, _WORD(15))), _WORD(0x846CA68B))
        return builder.xor(bits, builder.lshr(bits, _WORD(16)))

    return types.uint32(types.uint32), codegen


@intrinsic
def _upper_half(typing_context, bits):
    """The upper 16 bits."""

    def codegen(context, builder, signature, args):
        return builder.lshr(args[0], _WORD(16))

    return types.uint32(types.uint32), codegen


@njit(**INLINED)
def _of_element(noise):
    return noise[0]


@functools.cache
def bits_for(form: Form):
    """By name of what is rounded by chance, the function that makes its bits from the noise.

    What is rounded to bfloat16 needs 16 bits, so two of these share 32.  A slot in 8 bits has bits
    for whole blocks, see `rmsjit.kernels.codes.code_of`.  The variable is ``""``.
    """
    makers: dict[str, Callable[..., Any]] = {}
    made: Callable[..., Any] | None = None
    has_upper = False
    stored = [(slot.name, slot.dtype) for slot in form.slots if slot.rounding == STOCHASTIC]
    if form.rounding == STOCHASTIC:
        stored.insert(0, ("", None))
    for number, (name, dtype) in enumerate(stored):
        if is_packed(dtype):
            makers[name] = _bits_of_block(number)
        elif has_upper and dtype == "bfloat16":
            makers[name], has_upper = _then(made, _upper_half), False
        else:
            made = _of_element if made is None else _then(made, _more)
            makers[name], has_upper = made, dtype == "bfloat16"
    return makers


@functools.cache
def _then(first, second):
    """A function that calls one function, and another one with the result."""

    @njit(**INLINED)
    def both(noise):
        return second(first(noise))

    return both


@functools.cache
def _bits_of_block(slot):
    """The function of the bits of a slot that all elements of a block share.

    The key is that of the first element.  Blocks begin further apart than the number of slots, but
    for those of one or two elements at the end of rows.
    """

    @njit(**INLINED)
    def bits_of_block(noise):
        return _more(hashed_bits(noise[1], slot))

    return bits_of_block


# --- rounding -------------------------------------------------------------------------------


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
