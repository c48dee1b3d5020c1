"""Reading, writing and bounding single elements, for every dtype that a variable may have.

NumPy's half types are not Numba's, so their elements travel as integers of the same width:
float16 as uint16 and bfloat16 as int16.  They are widened to float32 when loaded and rounded once,
to nearest even, when stored.  Real functions with a complex counterpart are here as well, so that
the rule needs no branch on the dtype.
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


def real_nonnegative(value):
    """`value`, or zero where its real part is below; for numbers that are real in any case."""
    raise NotImplementedError("compiled code only")


@overload(real_nonnegative)
def _real_nonnegative(value):
    if isinstance(value, types.Complex):
        return lambda value: complex(max(value.real, type(value.real)(0)), type(value.real)(0))
    return lambda value: max(value, type(value)(0))


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


def root(value):
    """The square root; of a complex number the principal one, above the negative axis on it."""
    raise NotImplementedError("compiled code only")


@overload(root)
def _root(value):
    if isinstance(value, types.Complex):
        return lambda value: np.sqrt(value + type(value)(0))  # no negative zero as imaginary part
    return lambda value: np.sqrt(value)


def squared(value):
    """``value**2``."""
    raise NotImplementedError("compiled code only")


@overload(squared)
def _squared(value):
    return lambda value: value * value


def modulus_squared(value):
    """``|value|**2``, of the type of `value`."""
    raise NotImplementedError("compiled code only")


@overload(modulus_squared)
def _modulus_squared(value):
    if isinstance(value, types.Complex):
        return lambda value: complex(
            value.real * value.real + value.imag * value.imag, type(value.real)(0)
        )
    return lambda value: value * value


def weighted_square(weight, value):
    """``weight * value**2``, which for a weight of 0 is 0 even where the square overflows."""
    raise NotImplementedError("compiled code only")


@overload(weighted_square)
def _weighted_square(weight, value):
    if isinstance(value, types.Complex):
        return lambda weight, value: weight * (value * value)
    return lambda weight, value: weight * value * value


def weighted_modulus(weight, value):
    """``weight * |value|**2``; of a real number the same as `weighted_square`."""
    raise NotImplementedError("compiled code only")


@overload(weighted_modulus)
def _weighted_modulus(weight, value):
    if isinstance(value, types.Complex):
        return lambda weight, value: weight * modulus_squared(value)
    return lambda weight, value: weight * value * value


@intrinsic
def _fma(typing_context, left, right, addend):
    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return left(left, left, left), codegen


def add_weighted_modulus(weight, value, addend):
    """``weight * |value|**2 + addend``, fused as ``(weight*value)*value`` for a real number."""
    raise NotImplementedError("compiled code only")


@overload(add_weighted_modulus)
def _add_weighted_modulus(weight, value, addend):
    if isinstance(value, types.Complex):
        return lambda weight, value, addend: weight * modulus_squared(value) + addend
    return lambda weight, value, addend: multiply_add(weight * value, value, addend)


def multiply_add(left, right, addend):
    """``left*right + addend``, rounded once; complex numbers, which have no such, as they come."""
    raise NotImplementedError("compiled code only")


@overload(multiply_add)
def _multiply_add(left, right, addend):
    kinds = (left, right, addend)
    if all(isinstance(kind, types.Float) for kind in kinds):
        WIDEST = max(kinds, key=lambda kind: kind.bitwidth)
        return lambda left, right, addend: _fma(WIDEST(left), WIDEST(right), WIDEST(addend))
    return lambda left, right, addend: left * right + addend


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
