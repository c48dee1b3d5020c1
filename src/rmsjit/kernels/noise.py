"""Random bits for stochastic rounding, of slots and of variables.

They come from a function of a key and the number of the element, so they depend neither on threads
nor on how the work is cut.
"""

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types, uint64
from numba.extending import intrinsic

from rmsjit.kernels.views import words
from rmsjit.rule.form import Form
from rmsjit.rule.slot import STOCHASTIC, is_packed
from rmsjit.runtime.flags import INLINED

_WORD = ir.IntType(32)
_ALL_BITS = 0xFFFFFFFF


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
