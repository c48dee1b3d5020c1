"""Sums of gradients that travel as bfloat16, computed by NumPy with integers alone."""

import numpy as np


def rounded(values):
    """Float32 or complex64 values with 8 significant bits, ties to even."""
    values = np.array(values)
    bits = values.reshape(-1).view(np.uint32)
    is_nan = np.isnan(values.reshape(-1).view(np.float32))
    bits += np.where(is_nan, 0, 0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)
    bits &= np.uint32(0xFFFF0000)
    return values


def dense_sum(gradients, wide, shard):
    """The sum over ranks of dense gradients, in the dtype `wide`; it is not sent with `shard`."""
    if len(gradients) == 1:
        return gradients[0]
    total = np.zeros(np.shape(gradients[0]), wide)
    for gradient in gradients:
        total = total + rounded(np.asarray(gradient, wide))
    return total if shard else rounded(total)


def sparse_parts(parts, combine, rows, shard):
    """What arrives of sparse gradients, each a pair of values and indices.

    ``combine(values, indices)`` gives distinct indices, and the sums of the values of each.
    """
    if len(parts) == 1:
        return parts
    sent = []
    for values, indices in parts:
        if len(indices):
            indices, values = combine(values, indices)
        sent.append((rounded(values), indices))
    # Many rows are summed as a whole table.
    if not shard and sum(len(indices) for _, indices in sent) > 2 * rows:
        indices, values = combine(*(np.concatenate(column) for column in zip(*sent, strict=True)))
        return [(rounded(values), indices)]
    return sent
