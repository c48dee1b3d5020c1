"""The sparse driver: the rule over the rows of a table that a gradient names.

A gradient is `values`, a row for each of `indices`, where an index may come several times.  First
`find_rows` brings the occurrences of every row together, in their order; then `update_rows` sums
them and applies the rule once.  A row belongs to one thread, so there is nothing to lock, and the
sums do not depend on the number of threads.

Rows that a gradient does not name can be brought up to date later, by `catch_up_rows`: with a zero
gradient the averages and the momentum only shrink by the factors of the steps that were missed,
and the variable moves by a multiple of its momentum (`rmsjit.state.clock`).
"""

import numpy as np
from numba import njit, prange

from rmsjit.kernels.dense import RMS, VARIABLE
from rmsjit.kernels.rule import RULE_FLAGS, read_numbers, update_element
from rmsjit.kernels.scalars import at_most, bounded_sum, clip, load, scale, store
from rmsjit.kernels.views import CACHE_LINE, prefetch_to_write, view

DECAY, CARRY, DRIFT = range(3)  # the rows of `lapses`
_ROWS_AHEAD = 8  # far enough for memory to answer, near enough for the lines to be there still
_OCCURRENCES_AHEAD = 8
_INDICES_AHEAD = 96
_ROW_COST = 3  # of updating a row, in reads of a gradient's row


@njit(**RULE_FLAGS, forceinline=True)
def _prefetch_row(table, column, row, nbytes):
    if column is not None:
        start = table[0, column] + row * nbytes
        line = start - start % CACHE_LINE  # a row may straddle one line more than it fills
        while line < start + nbytes:
            prefetch_to_write(line)
            line += CACHE_LINE


def first_outside(indices, rows):
    """The position of the first index that is no row, or -1."""
    least, most = 0, 0
    for k in range(len(indices)):
        least = min(least, indices[k])
        most = max(most, indices[k])
    if least >= 0 and most < rows:
        return -1
    for k in range(len(indices)):
        if indices[k] < 0 or indices[k] >= rows:
            return k
    return -1


def find_rows(indices, numbers, starts, order):
    """Sort the occurrences of each row together, in their order, by a count of them.

    Parameters
    ----------
    indices : int64 array, shape (n,)
        All of them rows of the table.
    numbers : int32 array, shape (rows,)
        All zeros, on return as well.  Meanwhile the number of each row that is named, from 1 in
        order of first occurrence.
    starts : int32 array, shape (n + 1,)
        Filled with the place in `order` where the occurrences of each of these rows start, and
        their end.
    order : int32 array, shape (n,)
        Filled with the occurrences.

    Returns
    -------
    int
        How many rows are named.
    """
    count = 0
    first = numbers.ctypes.data
    for k in range(len(indices)):
        if k + _INDICES_AHEAD < len(indices):
            prefetch_to_write(first + indices[k + _INDICES_AHEAD] * numbers.itemsize)
        number = numbers[indices[k]]
        if number == 0:
            count += 1
            number = count
            numbers[indices[k]] = number
            starts[number] = 0
        starts[number] += 1
    end = 0
    for number in range(1, count + 1):  # now the ends, from which they are filled backwards
        end += starts[number]
        starts[number] = end
    for k in range(len(indices) - 1, -1, -1):
        if k >= _INDICES_AHEAD:
            prefetch_to_write(first + indices[k - _INDICES_AHEAD] * numbers.itemsize)
        number = numbers[indices[k]]
        place = starts[number] - 1
        starts[number] = place
        order[place] = k
    for number in range(count):
        starts[number] = starts[number + 1]
        numbers[indices[order[starts[number]]]] = 0
    starts[count] = len(indices)
    return count


@njit(**RULE_FLAGS, forceinline=True)
def _cut(starts, count, cuts):
    """Write to `cuts` where bins of about equal work start among the rows, and their end."""
    bins = len(cuts) - 1
    total = starts[count] + _ROW_COST * count
    for b in range(bins + 1):
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if (starts[middle] + _ROW_COST * middle) * bins < total * b:
                low = middle + 1
            else:
                high = middle
        cuts[b] = low


@njit(**RULE_FLAGS, forceinline=True)
def _sum_occurrences(total, values, order, start, stop, last, factor, h, sample):
    """Write to `total` the sum of the clipped rows of `values` that `order` names."""
    width = len(total)
    for p in range(start, stop):
        if p + _OCCURRENCES_AHEAD < last:
            ahead = order[p + _OCCURRENCES_AHEAD]
            _prefetch_row(values, 0, ahead, width * sample.itemsize)
        row = view(values, 0, 0, order[p] * width, width, sample)
        if p == start:
            for i in range(width):
                total[i] = scale(clip(load(row, i), h.clipvalue), factor)
        else:
            for i in range(width):
                more = scale(clip(load(row, i), h.clipvalue), factor)
                total[i] = bounded_sum(total[i], more, h.largest)


@njit(**RULE_FLAGS, forceinline=True)
def _catch_up_row(row, variable, rms, mg, momentum, clock, lapses):
    """Bring a row to the last step of the clock, as zero gradients would have."""
    if clock is not None:
        since = clock[row]
        # Read before the loop, where the compiler could not know that stores leave them alone.
        decay, carry, drift = lapses[DECAY, since], lapses[CARRY, since], lapses[DRIFT, since]
        if decay == 1 and carry == 1 and drift == 0:
            return
        # An average that has overflowed must not meet a factor of 0, which would make it NaN.
        bound = lapses.dtype.type(np.inf if decay != 0 else np.finfo(lapses.dtype).max)
        for i in range(len(rms)):
            store(rms, i, at_most(load(rms, i), bound) * decay)
            if mg is not None:
                store(mg, i, load(mg, i) * decay)
            if momentum is not None:
                before = load(momentum, i)
                store(variable, i, load(variable, i) - before * drift)
                store(momentum, i, before * carry)


def update_rows(
    table,
    values,
    indices,
    starts,
    order,
    count,
    width,
    cuts,
    totals,
    factor,
    numbers,
    sample,
    mg,
    momentum,
    clock,
    lapses,
    now,
):
    """Apply the rule to every named row.

    Parameters
    ----------
    table : int64 array, shape (1, TABLE_COLUMNS)
        Addresses of the table and its slots.
    values : int64 array, shape (1, 1)
        Address of the rows of the gradient.
    indices, starts, order, count
        As `find_rows` takes and leaves them.
    width : int
        Elements of a row.
    cuts : int64 array, shape (bins + 1,)
        Room for the borders of the bins.
    totals : array, shape (bins, at least width)
        Room for the sum of a row, in the dtype of the arithmetic (complex for complex tables).
        Where bins share a cache line, their threads wait for each other at every row.
    factor : array of the computing dtype, shape (1,)
        What a clipped norm multiplies the gradient by, else 1.
    numbers, sample, mg, momentum
        As in `rmsjit.kernels.dense.update_dense`.
    clock : uint16 array, shape (rows,), or None
        The step up to which each row is done; None where rows that are not named stay as they are.
    lapses : array of the computing dtype, shape (3, steps + 1), or None
        By that step, what has become of 1 in the averages, of 1 in the momentum, and of the
        variable per unit of momentum, since then.
    now : int
        The number of this step, for the clock.
    """
    _cut(starts, count, cuts)
    nbytes = width * sample.itemsize
    for b in prange(len(cuts) - 1):
        h = read_numbers(numbers)
        total = totals[b, :width]
        end = cuts[b + 1]
        last = starts[end]
        for u in range(cuts[b], end):
            if u + _ROWS_AHEAD < end:
                ahead = indices[order[starts[u + _ROWS_AHEAD]]]
                _prefetch_row(table, VARIABLE, ahead, nbytes)
                _prefetch_row(table, RMS, ahead, nbytes)
                _prefetch_row(table, mg, ahead, nbytes)
                _prefetch_row(table, momentum, ahead, nbytes)
                if clock is not None:
                    prefetch_to_write(clock.ctypes.data + ahead * clock.itemsize)
            row = indices[order[starts[u]]]
            start, stop = starts[u], starts[u + 1]
            _sum_occurrences(total, values, order, start, stop, last, factor[0], h, sample)
            variable = view(table, 0, VARIABLE, row * width, width, sample)
            rms_view = view(table, 0, RMS, row * width, width, sample)
            mg_view = view(table, 0, mg, row * width, width, sample)
            momentum_view = view(table, 0, momentum, row * width, width, sample)
            _catch_up_row(row, variable, rms_view, mg_view, momentum_view, clock, lapses)
            for i in range(width):
                update_element(i, total[i], variable, rms_view, mg_view, momentum_view, h)
            if clock is not None:
                clock[row] = now


def catch_up_rows(table, rows, width, sample, mg, momentum, clock, lapses, now):
    """Bring `rows`, an int64 array without repeats, to step `now`; the rest as in `update_rows`."""
    for r in prange(len(rows)):
        row = rows[r]
        variable = view(table, 0, VARIABLE, row * width, width, sample)
        rms_view = view(table, 0, RMS, row * width, width, sample)
        mg_view = view(table, 0, mg, row * width, width, sample)
        momentum_view = view(table, 0, momentum, row * width, width, sample)
        _catch_up_row(row, variable, rms_view, mg_view, momentum_view, clock, lapses)
        clock[row] = now
