"""Reading, writing and bounding single elements, for every dtype that a variable may have.

NumPy's half types are not Numba's, so their elements travel as integers of the same width:
float16 as uint16 and bfloat16 as int16.  They are widened to float32 when loaded and rounded once,
to nearest even, when stored.  Real functions with a complex counterpart stand here as well, so
that the rule needs no branch on the dtype.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

FLOAT16_BITS = types.uint16
BFLOAT16_BITS = types.int16


@intrinsic
def _float16_to_float32(typing_context, bits):
    def codegen(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(bits), codegen


@intrinsic
def _float32_to_float16(typing_context, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(value), codegen


@intrinsic
def _bfloat16_to_float32(typing_context, bits):
    """A bfloat16 is the upper half of a float32."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(32)
        wide = builder.shl(builder.zext(args[0], word), word(16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(bits), codegen


@intrinsic
def _float32_to_bfloat16(typing_context, value):
    """Round to nearest even by an integer addition; a NaN stays a (quiet) NaN."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(32)
        bits = builder.bitcast(args[0], word)
        upper = builder.lshr(bits, word(16))
        bias = builder.add(builder.and_(upper, word(1)), word(0x7FFF))
        rounded = builder.lshr(builder.add(bits, bias), word(16))
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        chosen = builder.select(is_nan, builder.or_(upper, word(0x40)), rounded)
        return builder.trunc(chosen, ir.IntType(16))

    return types.int16(value), codegen


def load(array, i):
    """Element `i` of `array`, in the type that the rule computes in."""
    raise NotImplementedError("compiled code only")


@overload(load)
def _load(array, i):
    if array.dtype == FLOAT16_BITS:
        return lambda array, i: _float16_to_float32(array[i])
    if array.dtype == BFLOAT16_BITS:
        return lambda array, i: _bfloat16_to_float32(array[i])
    return lambda array, i: array[i]


def store(array, i, value):
    """Write `value` to element `i` of `array`, rounded once to its dtype."""
    raise NotImplementedError("compiled code only")


@overload(store)
def _store(array, i, value):
    if array.dtype == FLOAT16_BITS:

        def store_float16(array, i, value):
            array[i] = _float32_to_float16(value)

        return store_float16
    if array.dtype == BFLOAT16_BITS:

        def store_bfloat16(array, i, value):
            array[i] = _float32_to_bfloat16(value)

        return store_bfloat16

    def store_same(array, i, value):
        array[i] = value

    return store_same


def nonnegative(value):
    """`value`, or zero where it is below; a NaN stays NaN; a complex number is left alone."""
    raise NotImplementedError("compiled code only")


@overload(nonnegative)
def _nonnegative(value):
    if isinstance(value, types.Complex):
        return lambda value: value
    return lambda value: max(value, type(value)(0))  # the other order would hide a NaN


def at_most(value, bound):
    """The smaller of `value` and `bound`; a NaN stays NaN; a complex number is left alone."""
    raise NotImplementedError("compiled code only")


@overload(at_most)
def _at_most(value, bound):
    if isinstance(value, types.Complex):
        return lambda value, bound: value
    return lambda value, bound: min(value, bound)


def bounded_sum(left, right, largest):
    """``left + right``, at most `largest` in magnitude where both are finite."""
    raise NotImplementedError("compiled code only")


@overload(bounded_sum)
def _bounded_sum(left, right, largest):
    if isinstance(left, types.Complex):
        return lambda left, right, largest: left + right

    def real_sum(left, right, largest):
        total = left + right
        # Where both are finite the sum can be too large, but not by as much as a factor of two.
        finite = (left - left) + (right - right) == 0
        return max(min(total, largest), -largest) if finite else total

    return real_sum


def weighted_square(weight, value):
    """``weight * value**2``, which for a weight of 0 is 0 even where the square overflows."""
    raise NotImplementedError("compiled code only")


@overload(weighted_square)
def _weighted_square(weight, value):
    if isinstance(value, types.Complex):
        return lambda weight, value: weight * (value * value)
    return lambda weight, value: weight * value * value


def clip(value, bound):
    """`value` within plus and minus `bound`; a NaN stays NaN; a complex number is left alone."""
    raise NotImplementedError("compiled code only")


@overload(clip)
def _clip(value, bound):
    if isinstance(value, types.Complex):
        return lambda value, bound: value
    return lambda value, bound: max(min(value, bound), -bound)


def scale(value, factor):
    """`value` times a real `factor`, each part of a complex number by itself."""
    raise NotImplementedError("compiled code only")


@overload(scale)
def _scale(value, factor):
    if isinstance(value, types.Complex):
        # A product of two complex numbers would turn infinity times zero into NaN.
        return lambda value, factor: complex(value.real * factor, value.imag * factor)
    return lambda value, factor: value * factor


def magnitude_squared(value):
    """The squared magnitude of a number, in float64."""
    raise NotImplementedError("compiled code only")


@overload(magnitude_squared)
def _magnitude_squared(value):
    if isinstance(value, types.Complex):

        def complex_square(value):
            real, imag = np.float64(value.real), np.float64(value.imag)
            return real * real + imag * imag

        return complex_square

    def real_square(value):
        wide = np.float64(value)
        return wide * wide

    return real_square
