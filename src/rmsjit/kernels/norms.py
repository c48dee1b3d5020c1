"""Sums of squares of gradients, the same to the bit for every number of threads.

A piece is summed in float64 over `LANES` running sums, which are added up in a fixed order.  The
pieces have a fixed length and are added up in their order, so nothing depends on how they are dealt
out to threads.  The loop is written in LLVM's own vectors: the vectoriser would
need leave to reorder a sum, and could then choose another order for another kernel.

The same pass tells whether a gradient is finite: zero times each element adds up to zero or NaN.
"""

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from rmsjit.kernels.rule import RULE_FLAGS
from rmsjit.kernels.scalars import BFLOAT16_BITS, FLOAT16_BITS, clip, load
from rmsjit.kernels.views import CACHE_LINE, emit_prefetch, view

NORM_PIECE = 8192  # elements: long enough to hide the call, short enough to share out evenly
LANES = 32
_AHEAD = 8192  # bytes; the processor's own prefetching stays closer, and waits for memory
_WIDTH = 8  # elements of a vector; LANES / _WIDTH of them hide the latency of the addition
_FLOATS = ir.VectorType(ir.FloatType(), _WIDTH)
_DOUBLES = ir.VectorType(ir.DoubleType(), _WIDTH)
_WORDS = ir.VectorType(ir.IntType(32), _WIDTH)


def _widened(builder, vector, dtype):
    """A vector of stored elements as real numbers: float32, or float64 as it is."""
    if dtype == FLOAT16_BITS:
        halves = ir.VectorType(ir.HalfType(), _WIDTH)
        return builder.fpext(builder.bitcast(vector, halves), _FLOATS)
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
    """`vector` between two bounds; a NaN compares false and stays."""
    vector = builder.select(builder.fcmp_ordered(">", vector, upper), upper, vector)
    return builder.select(builder.fcmp_ordered("<", vector, lower), lower, vector)


def _added_up(builder, vector):
    """The sum of the elements of a vector, from the first to the last."""
    total = builder.extract_element(vector, ir.IntType(32)(0))
    for lane in range(1, _WIDTH):
        total = builder.fadd(total, builder.extract_element(vector, ir.IntType(32)(lane)))
    return total


class _Loop:
    """A counted LLVM loop that carries vectors from one turn to the next, in registers."""

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
        """Close the loop; the values of `results` after the last turn."""
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
    """The sum of squares of ``groups * LANES`` elements, and zero, or NaN if one is not finite."""
    dtype = gradient.dtype
    pair = types.UniTuple(types.float64, 2)

    def codegen(context, builder, signature, args):
        array = context.make_array(gradient)(context, builder, args[0])
        stored = ir.VectorType(context.get_data_type(dtype), _WIDTH).as_pointer()
        data = builder.bitcast(array.data, stored)
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
                emit_prefetch(builder, builder.gep(pointer, [index(_AHEAD // nbytes)]), write=0)
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


@njit(**RULE_FLAGS)
def sum_of_squares(gradient, bound):
    """The sum of the squares of `gradient`, each value clipped to `bound` first, and its poison."""
    groups = len(gradient) // LANES
    total, poison = _sum_groups(gradient, groups, bound)
    for i in range(len(gradient) - groups * LANES):
        element = load(gradient, groups * LANES + i)
        poison += np.float64(element) * 0.0
        value = np.float64(clip(element, bound))
        total += value * value
    return total, poison


def sums_of_squares(gradients, pieces, bins, bound, sample, sums, totals):
    """Write the sum of squares of every gradient, and its poison, to the two rows of `totals`.

    Parameters are as in `update_dense`, but for `bound`, an array of one number, and `sums`, room
    for the same of every piece; complex gradients come as real ones of twice the length.
    """
    for b in prange(len(bins) - 1):
        for p in range(bins[b], bins[b + 1]):
            row, start, count = pieces[p, 0], pieces[p, 1], pieces[p, 2]
            gradient = view(gradients, row, 0, start, count, sample)
            sums[0, p], sums[1, p] = sum_of_squares(gradient, bound[0])
    totals[:] = 0.0
    for p in range(len(pieces)):  # in the order of the pieces, whatever thread has summed them
        totals[0, pieces[p, 0]] += sums[0, p]
        totals[1, pieces[p, 0]] += sums[1, p]
