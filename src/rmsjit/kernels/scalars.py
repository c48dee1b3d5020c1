"""Loads, stores and arithmetic on single elements of every dtype that a variable may have.

Numba has no half types, so their elements are integers of the same width here: float16 is uint16
and bfloat16 is int16.  They are widened to float32 when loaded, and rounded once, to nearest even,
when stored.  Functions that differ for real and complex numbers are here as well, so that the rule
needs no branch on the dtype.
"""

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from rmsjit.kernels.codes import unpack
from rmsjit.kernels.halves import float_to_half, half_to_float

FLOAT16_BITS = types.uint16
BFLOAT16_BITS = types.int16


def by_type(implementation_for):
    """A function for compiled code; `implementation_for` takes types and gives what to compile."""

    @functools.wraps(implementation_for)
    def stub(*arguments):
        raise NotImplementedError("compiled code only")

    overload(stub)(implementation_for)
    return stub


@intrinsic
def float16_to_float32(typing_context, bits):
    def codegen(context, builder, signature, args):
        return half_to_float(builder, args[0])

    return types.float32(bits), codegen


@intrinsic
def float32_to_float16(typing_context, value):
    def codegen(context, builder, signature, args):
        return float_to_half(builder, args[0])

    return types.uint16(value), codegen


@intrinsic
def bfloat16_to_float32(typing_context, bits):
    """A bfloat16 is the upper half of a float32."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(32)
        wide = builder.shl(builder.zext(args[0], word), word(16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(bits), codegen


@intrinsic
def _nearest_bfloat16(typing_context, value):
    """A float32 rounded to the nearest bfloat16, to even between two; still a float32.

    An integer is added below the last bit that is kept, and the rest is cut.  Nothing is added to a
    NaN, which could become a number; results of arithmetic are quiet NaNs, which survive the cut.
    """

    def codegen(context, builder, signature, args):
        word = ir.IntType(32)
        bits = builder.bitcast(args[0], word)
        odd = builder.and_(builder.lshr(bits, word(16)), word(1))
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        added = builder.select(is_nan, word(0), builder.add(odd, word(0x7FFF)))
        kept = builder.and_(builder.add(bits, added), word(0xFFFF0000))
        return builder.bitcast(kept, ir.FloatType())

    return types.float32(value), codegen


@intrinsic
def bfloat16_bits(typing_context, value):
    """The upper half of a float32."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(32)
        upper = builder.lshr(builder.bitcast(args[0], word), word(16))
        return builder.trunc(upper, ir.IntType(16))

    return types.int16(value), codegen


@by_type
def load(array, i):
    """Element `i` of `array`, in the type that the rule computes in."""
    if isinstance(array, types.NamedTuple):  # a block of 8 bits
        return lambda array, i: unpack(array.codes[i], array.offset, array)
    if array.dtype == FLOAT16_BITS:
        return lambda array, i: float16_to_float32(array[i])
    if array.dtype == BFLOAT16_BITS:
        return lambda array, i: bfloat16_to_float32(array[i])
    return lambda array, i: array[i]


@by_type
def nearest(array, value):
    """`value` rounded to the nearest number of an array of a half type, as a float32."""
    if array.dtype == FLOAT16_BITS:
        return lambda array, value: float16_to_float32(float32_to_float16(value))
    if array.dtype == BFLOAT16_BITS:
        return lambda array, value: _nearest_bfloat16(value)
    return None


@by_type
def store(array, i, value):
    """Write `value` to element `i` of `array`, rounded once to its dtype."""
    if isinstance(array, types.NamedTuple):  # a block of 8 bits, which is packed later

        def store_value(array, i, value):
            array.values[i] = types.float32(value)

        return store_value
    if array.dtype == FLOAT16_BITS:

        def store_float16(array, i, value):
            array[i] = float32_to_float16(types.float32(value))

        return store_float16
    if array.dtype == BFLOAT16_BITS:

        def store_bfloat16(array, i, value):
            array[i] = bfloat16_bits(_nearest_bfloat16(types.float32(value)))

        return store_bfloat16

    def store_same(array, i, value):
        array[i] = value

    return store_same


@by_type
def nonnegative(value):
    """`value`, or zero if it is negative; NaN stays NaN; complex numbers are unchanged."""
    if isinstance(value, types.Complex):
        return lambda value: value
    return lambda value: max(value, type(value)(0))  # the other order would drop a NaN


@by_type
def real_nonnegative(value):
    """`value`, or zero if its real part is negative; for numbers without an imaginary part."""
    if isinstance(value, types.Complex):
        return lambda value: complex(max(value.real, type(value.real)(0)), type(value.real)(0))
    return lambda value: max(value, type(value)(0))


@by_type
def at_most(value, bound):
    """The minimum of `value` and `bound`; NaN stays NaN; complex numbers are unchanged."""
    if isinstance(value, types.Complex):
        return lambda value, bound: value
    return lambda value, bound: min(value, bound)


@by_type
def bounded_sum(left, right, largest):
    """``left + right``, at most `largest` in magnitude if both are finite."""
    if isinstance(left, types.Complex):
        return lambda left, right, largest: left + right

    def real_sum(left, right, largest):
        total = left + right
        # The sum of two finite numbers may overflow; one with an infinity or a NaN stays.
        finite = (left - left) + (right - right) == 0
        return max(min(total, largest), -largest) if finite else total

    return real_sum


@by_type
def root(value):
    """The principal square root; a negative real part without imaginary part gives +i."""
    if isinstance(value, types.Complex):
        return lambda value: np.sqrt(value + type(value)(0))  # no negative zero as imaginary part
    return lambda value: np.sqrt(value)


@by_type
def squared(value):
    """``value**2``."""
    return lambda value: value * value


@by_type
def modulus_squared(value):
    """``|value|**2``, of the type of `value`."""
    if isinstance(value, types.Complex):
        return lambda value: complex(
            value.real * value.real + value.imag * value.imag, type(value.real)(0)
        )
    return lambda value: value * value


@by_type
def weighted_square(weight, value):
    """``weight * value**2``, which is 0 for a weight of 0 even if the square overflows."""
    if isinstance(value, types.Complex):
        return lambda weight, value: weight * (value * value)
    return lambda weight, value: weight * value * value


@by_type
def weighted_modulus(weight, value):
    """``weight * |value|**2``; `weighted_square` for real numbers."""
    if isinstance(value, types.Complex):
        return lambda weight, value: weight * modulus_squared(value)
    return lambda weight, value: weight * value * value


@intrinsic
def _fma(typing_context, left, right, addend):
    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return left(left, left, left), codegen


@by_type
def add_weighted_modulus(weight, value, addend):
    """``weight * |value|**2 + addend``; for real numbers fused, as ``(weight*value)*value``."""
    if isinstance(value, types.Complex):
        return lambda weight, value, addend: weight * modulus_squared(value) + addend
    return lambda weight, value, addend: multiply_add(weight * value, value, addend)


@by_type
def multiply_add(left, right, addend):
    """``left*right + addend``, rounded once for real numbers."""
    kinds = (left, right, addend)
    if all(isinstance(kind, types.Float) for kind in kinds):
        WIDEST = max(kinds, key=lambda kind: kind.bitwidth)
        return lambda left, right, addend: _fma(WIDEST(left), WIDEST(right), WIDEST(addend))
    return lambda left, right, addend: left * right + addend


@by_type
def clip(value, bound):
    """`value` clipped to plus and minus `bound`; NaN stays NaN; complex numbers are unchanged."""
    if isinstance(value, types.Complex):
        return lambda value, bound: value
    return lambda value, bound: max(min(value, bound), -bound)


@by_type
def scale(value, factor):
    """`value` times a real `factor`, for complex numbers part by part."""
    if isinstance(value, types.Complex):
        # A product of two complex numbers would turn infinity times zero into NaN.
        return lambda value, factor: complex(value.real * factor, value.imag * factor)
    return lambda value, factor: value * factor
