"""Sums of squares of gradients, the same to the bit for every number of threads.

A piece is summed in float64 over `LANES` running sums, which are added up in a fixed order.  The
pieces have a fixed length, and their caller adds them up in their order, so nothing depends on how
they are dealt out to threads.  The loop is written in LLVM's own vectors: the vectoriser would
need leave to reorder a sum, and could then choose another order for another kernel.
"""

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from rmsjit.kernels.memory import view
from rmsjit.kernels.rule import RULE_FLAGS
from rmsjit.kernels.scalars import BFLOAT16_BITS, FLOAT16_BITS, clip, load

NORM_PIECE = 8192  # elements: long enough to hide the call, short enough to share out evenly
LANES = 32
_WIDTH = 8  # elements of a vector; LANES / _WIDTH of them hide the latency of the addition


def _widened(builder, vector, dtype):
    """A vector of stored elements as real numbers: float32, or float64 as it is."""
    if dtype == FLOAT16_BITS:
        halves = builder.bitcast(vector, ir.VectorType(ir.HalfType(), _WIDTH))
        return builder.fpext(halves, ir.VectorType(ir.FloatType(), _WIDTH))
    if dtype == BFLOAT16_BITS:
        words = ir.VectorType(ir.IntType(32), _WIDTH)
        shift = ir.Constant(words, [16] * _WIDTH)
        wide = builder.shl(builder.zext(vector, words), shift)
        return builder.bitcast(wide, ir.VectorType(ir.FloatType(), _WIDTH))
    return vector


def _splat(builder, scalar):
    vector = ir.VectorType(scalar.type, _WIDTH)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), _WIDTH), [0] * _WIDTH)
    return builder.shuffle_vector(first, first, zeros)


def _clipped(builder, vector, upper, lower):
    """`vector` between two bounds; a NaN compares false and stays."""
    vector = builder.select(builder.fcmp_ordered(">", vector, upper), upper, vector)
    return builder.select(builder.fcmp_ordered("<", vector, lower), lower, vector)


@intrinsic
def _sum_groups(typing_context, gradient, groups, bound):
    """The sum of squares of the first ``groups * LANES`` elements of `gradient`."""
    dtype = gradient.dtype

    def codegen(context, builder, signature, args):
        array = context.make_array(gradient)(context, builder, args[0])
        stored = ir.VectorType(context.get_data_type(dtype), _WIDTH)
        sums = ir.VectorType(ir.DoubleType(), _WIDTH)
        data = builder.bitcast(array.data, stored.as_pointer())
        upper = _splat(builder, args[2])
        lower = _splat(builder, builder.fneg(args[2]))
        zero = ir.Constant(sums, [0.0] * _WIDTH)
        count, accumulators = LANES // _WIDTH, []
        index = args[1].type
        entry = builder.block
        loop = builder.append_basic_block("groups")
        done = builder.append_basic_block("groups.done")
        builder.cbranch(builder.icmp_signed(">", args[1], index(0)), loop, done)

        builder.position_at_end(loop)
        group = builder.phi(index)
        group.add_incoming(index(0), entry)
        accumulators = [builder.phi(sums) for _ in range(count)]
        totals = []
        for number, accumulator in enumerate(accumulators):
            accumulator.add_incoming(zero, entry)
            position = builder.add(builder.mul(group, index(count)), index(number))
            vector = builder.load(builder.gep(data, [position]), align=dtype.bitwidth // 8)
            vector = _clipped(builder, _widened(builder, vector, dtype), upper, lower)
            wide = vector if vector.type == sums else builder.fpext(vector, sums)
            totals.append(builder.fadd(accumulator, builder.fmul(wide, wide)))
            accumulator.add_incoming(totals[-1], loop)
        following = builder.add(group, index(1))
        group.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, args[1]), loop, done)

        builder.position_at_end(done)
        finals = []
        for total in totals:
            final = builder.phi(sums)
            final.add_incoming(zero, entry)
            final.add_incoming(total, loop)
            finals.append(final)
        vector = finals[0]
        for final in finals[1:]:
            vector = builder.fadd(vector, final)
        result = builder.extract_element(vector, ir.IntType(32)(0))
        for lane in range(1, _WIDTH):
            element = builder.extract_element(vector, ir.IntType(32)(lane))
            result = builder.fadd(result, element)
        return result

    return types.float64(gradient, groups, bound), codegen


@njit(**RULE_FLAGS)
def sum_of_squares(gradient, bound):
    """The sum of the squares of `gradient`, each value clipped to `bound` first."""
    groups = len(gradient) // LANES
    total = _sum_groups(gradient, groups, bound)
    for i in range(len(gradient) - groups * LANES):
        value = np.float64(clip(load(gradient, groups * LANES + i), bound))
        total += value * value
    return total


def sums_of_squares(gradients, pieces, bins, bound, sample, sums):
    """Write the sum of squares of every piece to `sums`.

    Parameters are as in `update_dense`, but for `bound`, an array of one number; complex gradients
    come as real ones of twice the length.
    """
    for b in prange(len(bins) - 1):
        for p in range(bins[b], bins[b + 1]):
            row, start, count = pieces[p, 0], pieces[p, 1], pieces[p, 2]
            sums[p] = sum_of_squares(view(gradients, row, 0, start, count, sample), bound[0])
