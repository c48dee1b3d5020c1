"""Typed views of memory whose addresses come in a table.

One call updates any number of variables, so a kernel is not given arrays but addresses.  The table
is an int64 array with a row for each variable and a column for each of its arrays; a column that
a form of the rule does not have is ``None``, and so is the view of it, at compile time.
"""

from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic, overload

CACHE_LINE = 64  # bytes


@intrinsic
def pointer_to(typing_context, address, sample):
    """`address` as a pointer to elements of the dtype of the array `sample`."""
    pointer = types.CPointer(sample.dtype)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64, sample), codegen


def view(table, row, column, start, count, sample):
    """`count` elements from `start` on of the array in `column`, or None without a column."""
    raise NotImplementedError("compiled code only")


@overload(view)
def _view(table, row, column, start, count, sample):
    if isinstance(column, types.NoneType):
        return lambda table, row, column, start, count, sample: None
    itemsize = sample.dtype.bitwidth // 8

    def typed_view(table, row, column, start, count, sample):
        return carray(pointer_to(table[row, column] + start * itemsize, sample), count)

    return typed_view


def emit_prefetch(builder, pointer, write):
    """Ask for the cache line at `pointer`, to be written or only read; never faults."""
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    name = "llvm.prefetch.p0i8"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    builder.call(function, [builder.bitcast(pointer, byte), word(write), word(3), word(1)])


@intrinsic
def prefetch_to_write(typing_context, address):
    """Ask for the cache line at `address`, which will be written; never faults."""

    def codegen(context, builder, signature, args):
        emit_prefetch(builder, builder.inttoptr(args[0], ir.IntType(8).as_pointer()), write=1)
        return context.get_dummy_value()

    return types.none(types.int64), codegen
