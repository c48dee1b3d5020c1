"""Sums of squares of gradients, with the same bits for every number of threads.

A piece is summed in float64, in `LANES` running sums that are added up in a fixed order.  Pieces
have a fixed length and are added up in their order, so the result does not depend on which thread
sums which.  The loop is written in LLVM vectors, because LLVM vectorises a sum only if it may
reorder it, and could then choose a different order for each kernel.

The same pass finds out whether a gradient is finite: its elements times zero add up to zero or NaN.
"""

import numpy as np
from llvmlite import ir
from numba import float64, njit, types
from numba.extending import intrinsic

from rmsjit.kernels.dense import PIECE_WORDS
from rmsjit.kernels.halves import half_to_float
from rmsjit.kernels.scalars import BFLOAT16_BITS, FLOAT16_BITS, clip, load
from rmsjit.kernels.views import (
    CACHE_LINE,
    WORD_BYTES,
    emit_prefetch,
    number_type,
    pointer,
    size_of,
    words,
)
from rmsjit.runtime.flags import INLINED

# Words of the call.
BINS, CUTS, PIECES, GRADIENTS, BOUND, SUMS, TOTALS = range(7)
WORDS = 7

NORM_PIECE = 8192  # elements: long enough to hide the overhead, short enough for even bins
LANES = 32
_AHEAD = 8192  # bytes; hardware prefetching is not that far ahead, and waits for memory
_WIDTH = 8  # elements of a vector; LANES / _WIDTH of them hide the latency of the addition
_FLOATS = ir.VectorType(ir.FloatType(), _WIDTH)
_DOUBLES = ir.VectorType(ir.DoubleType(), _WIDTH)
_WORDS = ir.VectorType(ir.IntType(32), _WIDTH)


def _widened(builder, vector, dtype):
    """A vector of stored elements as real numbers: float32, or float64 as it is."""
    if dtype == FLOAT16_BITS:
        return half_to_float(builder, vector)
    if dtype == BFLOAT16_BITS:
        wide = builder.shl(builder.zext(vector, _WORDS), ir.Constant(_WORDS, [16] * _WIDTH))
        return builder.bitcast(wide, _FLOATS)
    return vector


def _splat(builder, scalar):
    """A vector of equal elements."""
    undefined = ir.Constant(ir.VectorType(scalar.type, _WIDTH), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(_WORDS, [0] * _WIDTH))


def _clipped(builder, vector, upper, lower):
    """`vector` clipped to two bounds; a NaN compares false and stays."""
    vector = builder.select(builder.fcmp_ordered(">", vector, upper), upper, vector)
    return builder.select(builder.fcmp_ordered("<", vector, lower), lower, vector)


def _added_up(builder, vector):
    """The sum of the elements of a vector, from the first to the last."""
    total = builder.extract_element(vector, ir.IntType(32)(0))
    for lane in range(1, _WIDTH):
        total = builder.fadd(total, builder.extract_element(vector, ir.IntType(32)(lane)))
    return total


class _Loop:
    """A counted LLVM loop that carries vectors from one iteration to the next, in registers."""

    def __init__(self, builder, count, starts):
        self._builder, self._count = builder, count
        self._entry = builder.block
        self._body = builder.append_basic_block("groups")
        self._done = builder.append_basic_block("groups.done")
        self._starts = starts
        some = builder.icmp_signed(">", count, count.type(0))
        builder.cbranch(some, self._body, self._done)
        builder.position_at_end(self._body)
        self.index = builder.phi(count.type)
        self.index.add_incoming(count.type(0), self._entry)
        self.carried = [self._phi(start.type, start) for start in starts]

    def _phi(self, kind, start):
        phi = self._builder.phi(kind)
        phi.add_incoming(start, self._entry)
        return phi

    def finish(self, results):
        """Close the loop; the values of `results` after the last iteration."""
        following = self._builder.add(self.index, self.index.type(1))
        self.index.add_incoming(following, self._body)
        for phi, result in zip(self.carried, results, strict=True):
            phi.add_incoming(result, self._body)
        more = self._builder.icmp_signed("<", following, self._count)
        self._builder.cbranch(more, self._body, self._done)
        self._builder.position_at_end(self._done)
        finals = [self._phi(start.type, start) for start in self._starts]
        for final, result in zip(finals, results, strict=True):
            final.add_incoming(result, self._body)
        return finals


@intrinsic
def _sum_groups(typing_context, gradient, groups, bound):
    """The sum of squares of ``groups * LANES`` elements; zero, or NaN if one is not finite."""
    dtype = gradient.dtype
    pair = types.UniTuple(types.float64, 2)

    def codegen(context, builder, signature, args):
        stored = ir.VectorType(context.get_data_type(dtype), _WIDTH).as_pointer()
        data = builder.bitcast(args[0], stored)
        upper, lower = _splat(builder, args[2]), _splat(builder, builder.fneg(args[2]))
        zero = ir.Constant(_DOUBLES, [0.0] * _WIDTH)
        nothing = ir.Constant(upper.type, [0.0] * _WIDTH)
        vectors = LANES // _WIDTH
        nbytes = _WIDTH * dtype.bitwidth // 8
        loop = _Loop(builder, args[1], [zero] * vectors + [nothing])
        *sums, poison = loop.carried
        for number in range(vectors):
            index = args[1].type
            position = builder.add(builder.mul(loop.index, index(vectors)), index(number))
            pointer = builder.gep(data, [position])
            if number * nbytes % CACHE_LINE == 0:
                emit_prefetch(builder, builder.gep(pointer, [index(_AHEAD // nbytes)]))
            vector = builder.load(pointer, align=dtype.bitwidth // 8)
            vector = _widened(builder, vector, dtype)
            poison = builder.fadd(poison, builder.fmul(vector, nothing))
            wide = _clipped(builder, vector, upper, lower)
            wide = wide if wide.type == _DOUBLES else builder.fpext(wide, _DOUBLES)
            sums[number] = builder.fadd(sums[number], builder.fmul(wide, wide))
        first, *others, poison = loop.finish([*sums, poison])
        for other in others:
            first = builder.fadd(first, other)
        poison = _added_up(builder, poison)
        poison = poison if dtype == types.float64 else builder.fpext(poison, ir.DoubleType())
        return context.make_tuple(builder, pair, [_added_up(builder, first), poison])

    return pair(gradient, groups, bound), codegen


def sums_of_pieces(real, computing):
    """The work of one bin of pieces of gradients.

    Parameters
    ----------
    real, computing : str
        The storage type of the (real parts of the) gradients, and the type of the bound.

    Notes
    -----
    Words of the call: ``CUTS``, ``PIECES`` and ``GRADIENTS`` as in `rmsjit.kernels.dense`, with
    complex gradients as real ones of twice the length; ``BOUND``, to which each value is clipped
    first; ``SUMS``, memory for two float64 per piece; ``TOTALS``, zeros, to which two float64 per
    gradient are added: the sum of squares, and zero, or NaN if the gradient is not finite.
    """
    STORAGE, COMPUTING = number_type(real), number_type(computing)
    NBYTES = size_of(STORAGE)

    @njit(**INLINED)
    def sum_bin(call_address, b):
        call = words(call_address)
        cuts, gradients = words(call[CUTS]), words(call[GRADIENTS])
        bound, sums = pointer(call[BOUND], COMPUTING)[0], pointer(call[SUMS], float64)
        for p in range(cuts[b], cuts[b + 1]):
            piece = words(call[PIECES] + p * PIECE_WORDS * WORD_BYTES)
            gradient = pointer(gradients[piece[0]] + piece[1] * NBYTES, STORAGE)
            groups = piece[2] // LANES
            total, poison = _sum_groups(gradient, groups, bound)
            for i in range(groups * LANES, piece[2]):
                element = load(gradient, i)
                poison += np.float64(element) * 0.0
                value = np.float64(clip(element, bound))
                total += value * value
            sums[2 * p], sums[2 * p + 1] = total, poison

    return sum_bin


@njit(**INLINED)
def add_up(call_address):
    """Add up the sums of all pieces in their order."""
    call = words(call_address)
    sums, totals = pointer(call[SUMS], float64), pointer(call[TOTALS], float64)
    for p in range(words(call[CUTS])[call[BINS]]):
        row = words(call[PIECES] + p * PIECE_WORDS * WORD_BYTES)[0]
        totals[2 * row] += sums[2 * p]
        totals[2 * row + 1] += sums[2 * p + 1]
