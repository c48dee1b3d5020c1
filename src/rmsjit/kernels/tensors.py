"""Reading where tensors of another library are, through DLPack's C functions.

Asking a tensor from Python costs about a tenth of a microsecond for each answer.  DLPack defines a
C function ``int (PyObject *tensor, DLTensor *out)`` that fills in everything at once, and that a
library offers on its type as ``__dlpack_c_exchange_api__``.  `rmsjit.torch.reader` finds it.
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from rmsjit.kernels.objects import ITEMS, LENGTH, TYPE
from rmsjit.kernels.views import WORD_BYTES, words
from rmsjit.runtime.flags import INLINED

# Words of the call: the number of tensors, `id(tuple)`, the two types that a tensor may have, the
# addresses of the C functions that describe a tensor and that clear Python's error, the table of
# what is expected with the length of its rows, and memory for one description.
(
    COUNT,
    TUPLE_TYPE,
    FIRST_TYPE,
    SECOND_TYPE,
    DESCRIBE,
    CLEAR_ERROR,
    EXPECTED,
    COLUMNS,
    DESCRIPTION,
) = range(9)
WORDS = 9
# Words of a DLTensor.  KIND is made up of the number of dimensions and three numbers of the dtype.
DATA, DEVICE, KIND, SHAPE, STRIDES, BYTE_OFFSET = range(6)
DESCRIPTION_WORDS = 6
# Columns of what is expected: the device and kind as in a DLTensor, the number of dimensions, the
# shape, and then the strides.
EXPECTED_DEVICE, EXPECTED_KIND, NDIM, FIRST_DIMENSION = range(4)

AS_EXPECTED, NOT_AS_EXPECTED, NOT_DESCRIBED = range(3)


@intrinsic
def _describe(typing_context, function, tensor, description):
    """Call a C function ``int (void *, void *)`` by its address."""

    def codegen(context, builder, signature, args):
        status, word = ir.IntType(32), ir.IntType(64)
        kind = ir.FunctionType(status, [word, word]).as_pointer()
        return builder.call(builder.inttoptr(args[0], kind), [args[1], args[2]])

    return types.int32(types.int64, types.int64, types.int64), codegen


@intrinsic
def _clear_error(typing_context, function):
    """Call a C function ``void (void)`` by its address."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), []).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), [])
        return context.get_dummy_value()

    return types.none(types.int64), codegen


@njit(**INLINED)
def _is_like(description, expected):
    """Whether a tensor has the expected device, dtype, shape and strides, and memory."""
    if description[DEVICE] != expected[EXPECTED_DEVICE]:
        return False
    if description[KIND] != expected[EXPECTED_KIND] or description[BYTE_OFFSET] != 0:
        return False
    shape, strides, ndim = words(description[SHAPE]), words(description[STRIDES]), expected[NDIM]
    for axis in range(ndim):
        size = expected[FIRST_DIMENSION + axis]
        if shape[axis] != size:
            return False
        # The stride of an axis of length 1 has no meaning.
        if size > 1 and strides[axis] != expected[FIRST_DIMENSION + ndim + axis]:
            return False
    return description[DATA] != 0 or _is_empty(expected)


@njit(**INLINED)
def _is_empty(expected):
    """Whether a tensor as expected has no elements, and so needs no memory."""
    count = 1
    for axis in range(expected[NDIM]):
        count *= expected[FIRST_DIMENSION + axis]
    return count == 0


def read_tensors(tensors, call_address, addresses):
    """Check that tensors lie in memory as is expected, and write where each begins.

    Parameters
    ----------
    tensors : int
        ``id`` of a tuple; the caller keeps it alive.
    call_address : int
        Of the words above.
    addresses : int
        Of an array for an address of each tensor.

    Returns
    -------
    int
        AS_EXPECTED, NOT_AS_EXPECTED, or NOT_DESCRIBED if DLPack can't describe a tensor, as a
        sparse one.
    """
    call, outer, found = words(call_address), words(tensors), words(addresses)
    if outer[TYPE] != call[TUPLE_TYPE] or outer[LENGTH] != call[COUNT]:
        return NOT_AS_EXPECTED
    description = words(call[DESCRIPTION])
    for k in range(call[COUNT]):
        tensor = outer[ITEMS + k]
        kind = words(tensor)[TYPE]
        if kind != call[FIRST_TYPE] and kind != call[SECOND_TYPE]:
            return NOT_AS_EXPECTED
        if _describe(call[DESCRIBE], tensor, call[DESCRIPTION]) != 0:
            _clear_error(call[CLEAR_ERROR])
            return NOT_DESCRIBED
        if not _is_like(description, words(call[EXPECTED] + k * call[COLUMNS] * WORD_BYTES)):
            return NOT_AS_EXPECTED
        found[k] = description[DATA]
    return AS_EXPECTED
