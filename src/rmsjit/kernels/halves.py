"""float16 in compiled code: conversions from and to float32, one at a time or in vectors.

They are instructions of most processors.  For others, and if Numba is told to compile for any
(``NUMBA_CPU_NAME=generic``), LLVM would call functions that no library of the process has, and end
the process.  There, integer arithmetic gives the same bits.
"""

import functools

from llvmlite import binding, ir

from rmsjit.runtime import numba_internals

_INFINITY, _HALF_INFINITY = 0x7F800000, 0x7C00
_MAGNITUDE, _HALF_MAGNITUDE = 0x7FFFFFFF, 0x7FFF
_QUIET, _HALF_QUIET = 0x400000, 0x200  # the bit of a NaN that raises no exception
_DROPPED = 13  # bits of the fraction that a float16 lacks
_BIASES = 0x38000000  # the difference of the biases of the exponents, as a float32 holds it
_LEAST_NORMAL, _HALF_LEAST_NORMAL = 0x38800000, 0x400
_TOO_LARGE = 0x47800000  # 65536; smaller numbers round to infinity by themselves
_LEAST = 2.0**-24  # of a float16 above 0
_ONE_HALF = 0x3F000000
_PROBE = "define float @f(half %x) {\n %y = fpext half %x to float\n ret float %y\n}"


def half_to_float(builder, bits):
    """The float32 of 16 bits, or of each of a vector of these."""
    if _are_instructions():
        return builder.fpext(builder.bitcast(bits, _as(bits, ir.HalfType())), _floats(bits))
    words = _as(bits, ir.IntType(32))
    wide = builder.zext(bits, words)
    size = builder.and_(wide, _all(words, _HALF_MAGNITUDE))
    is_less = functools.partial(builder.icmp_unsigned, "<")
    is_finite = is_less(size, _all(words, _HALF_INFINITY))
    biases = builder.select(is_finite, _all(words, _BIASES), _all(words, 2 * _BIASES))
    found = builder.add(builder.shl(size, _all(words, _DROPPED)), biases)
    multiple = builder.fmul(builder.sitofp(size, _floats(bits)), _all(_floats(bits), _LEAST))
    is_small = is_less(size, _all(words, _HALF_LEAST_NORMAL))
    found = builder.select(is_small, builder.bitcast(multiple, words), found)
    is_nan = is_less(_all(words, _HALF_INFINITY), size)
    found = builder.select(is_nan, builder.or_(found, _all(words, _QUIET)), found)
    sign = builder.shl(builder.sub(wide, size), _all(words, 16))
    return builder.bitcast(builder.or_(found, sign), _floats(bits))


def float_to_half(builder, value):
    """The bits of a float32 rounded to the nearest float16, to even between two."""
    shorts, words = _as(value, ir.IntType(16)), _as(value, ir.IntType(32))
    if _are_instructions():
        return builder.bitcast(builder.fptrunc(value, _as(value, ir.HalfType())), shorts)
    bits = builder.bitcast(value, words)
    size = builder.and_(bits, _all(words, _MAGNITUDE))
    is_less = functools.partial(builder.icmp_unsigned, "<")
    odd = builder.and_(builder.lshr(size, _all(words, _DROPPED)), _all(words, 1))
    almost_half = _all(words, (1 << _DROPPED - 1) - 1)
    rounded = builder.add(builder.sub(size, _all(words, _BIASES)), builder.add(odd, almost_half))
    found = builder.lshr(rounded, _all(words, _DROPPED))
    # A sum with 1/2 has its last bit where small float16 numbers have theirs.
    above_half = builder.fadd(builder.bitcast(size, _floats(value)), _all(_floats(value), 0.5))
    multiple = builder.sub(builder.bitcast(above_half, words), _all(words, _ONE_HALF))
    found = builder.select(is_less(size, _all(words, _LEAST_NORMAL)), multiple, found)
    fits = is_less(size, _all(words, _TOO_LARGE))
    found = builder.select(fits, found, _all(words, _HALF_INFINITY))
    payload = builder.lshr(builder.sub(size, _all(words, _INFINITY)), _all(words, _DROPPED))
    nan = builder.or_(payload, _all(words, _HALF_INFINITY | _HALF_QUIET))
    found = builder.select(is_less(_all(words, _INFINITY), size), nan, found)
    sign = builder.lshr(builder.sub(bits, size), _all(words, 16))
    return builder.trunc(builder.or_(found, sign), shorts)


def _as(value, kind):
    """The type of a value, or of a vector, with elements of another kind."""
    is_vector = isinstance(value.type, ir.VectorType)
    return ir.VectorType(kind, value.type.count) if is_vector else kind


def _floats(value):
    return _as(value, ir.FloatType())


def _all(kind, number):
    """A number, or a vector that has it everywhere."""
    return kind([number] * kind.count) if isinstance(kind, ir.VectorType) else kind(number)


@functools.cache
def _are_instructions():
    """Whether conversions are instructions of the processor that Numba compiles for."""
    try:
        triple, name, features = numba_internals.machine()
    except numba_internals.MissingNameError:
        return False
    target = binding.Target.from_triple(triple)
    machine = target.create_target_machine(cpu=name, features=features)
    code = machine.emit_assembly(binding.parse_assembly(_PROBE))
    return not any(function in code for function in ("__extendhfsf2", "__gnu_h2f_ieee"))
