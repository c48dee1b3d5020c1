"""Typed access to memory at a known address.

Kernels do not take arrays but one address: that of a block of words (int64), which hold further
addresses and counts.  So one call can update any number of variables, and converts one argument
only.  A pointer is indexed like an array; it has no length and no reference count.
"""

import numpy as np
from llvmlite import ir
from numba import from_dtype, int64, njit, types
from numba.extending import intrinsic

from rmsjit.runtime.flags import INLINED

CACHE_LINE = 64  # bytes
WORD_BYTES = 8


@intrinsic
def pointer(typing_context, address, dtype):
    """`address` as a pointer to numbers of a type, which must be a constant."""
    kind = types.CPointer(dtype.dtype)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.int64, dtype), codegen


@njit(**INLINED)
def words(address):
    """The block of words at `address`."""
    return pointer(address, int64)


@intrinsic
def call_c(typing_context, function, first, second):
    """Call a C function of two words that returns one, by its address."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word, word]).as_pointer()
        return builder.call(builder.inttoptr(args[0], kind), args[1:])

    return types.int64(types.int64, types.int64, types.int64), codegen


def number_type(name):
    """Numba's type for the name of a dtype, as a constant that kernels can close over."""
    return from_dtype(np.dtype(name))


def size_of(kind):
    """How many bytes a number of this type has."""
    return kind.bitwidth // 8


def pointers_to(kinds):
    """A function ``(addresses, first, start)`` for arrays of these types.

    It returns a tuple of pointers to element `start` of each array; their addresses are the words
    from `first` on.  (A loop could not make a tuple of different types.)
    """
    pointers = types.Tuple([types.CPointer(kind) for kind in kinds])

    @intrinsic
    def pointers_at(typing_context, addresses, first, start):
        def codegen(context, builder, signature, args):
            made = []
            for k, kind in enumerate(kinds):
                place = builder.add(args[1], args[1].type(k))
                address = builder.load(builder.gep(args[0], [place]))
                offset = builder.mul(args[2], args[2].type(size_of(kind)))
                value_type = context.get_value_type(types.CPointer(kind))
                made.append(builder.inttoptr(builder.add(address, offset), value_type))
            return context.make_tuple(builder, pointers, made)

        return pointers(addresses, types.int64, types.int64), codegen

    return pointers_at


def fields_of(named):
    """A function that reads the fields of a named tuple from a pointer."""

    @intrinsic
    def fields_at(typing_context, numbers):
        count = len(named._fields)
        kind = types.NamedUniTuple(numbers.dtype, count, named)

        def codegen(context, builder, signature, args):
            places = [builder.gep(args[0], [ir.IntType(64)(k)]) for k in range(count)]
            return context.make_tuple(builder, kind, [builder.load(place) for place in places])

        return kind(numbers), codegen

    return fields_at


def emit_prefetch(builder, address):
    """Prefetch the cache line at an LLVM pointer; never faults.

    To read it, also if it will be written: a processor that has a line alone writes it at once, and
    to prefetch lines for writing takes some processors longer.
    """
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    name = "llvm.prefetch.p0i8"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    builder.call(function, [builder.bitcast(address, byte), word(0), word(3), word(1)])


@intrinsic
def prefetch(typing_context, address):
    """Prefetch the cache line at `address`; never faults."""

    def codegen(context, builder, signature, args):
        emit_prefetch(builder, builder.inttoptr(args[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.none(types.int64), codegen


@njit(**INLINED)
def prefetch_row(address, nbytes):
    """Prefetch the cache lines of a row, which need not begin on a line."""
    line = address - address % CACHE_LINE
    while line < address + nbytes:
        prefetch(line)
        line += CACHE_LINE
