"""The sparse kernels: the rule over the rows of a table that a gradient names.

A gradient is `values`, one row for each of `indices`, which may contain duplicates.  First
`find_rows` groups the occurrences of each row, in their order; then the update sums them and
applies the rule once.  Each row belongs to one thread, so there are no locks, and the sums do not
depend on the number of threads.

Rows that a gradient does not name can catch up later, by a clock; see `rmsjit.state.clock`.
"""

import numpy as np
from numba import float64, int32, njit, uint16

from rmsjit.kernels.blocks import (
    block_at,
    pack_slots,
    row_sizes,
    size_of_largest,
    slots_in_blocks,
)
from rmsjit.kernels.noise import noise_of
from rmsjit.kernels.rule import element_rule, lapse_rule, read_numbers
from rmsjit.kernels.scalars import bounded_sum, clip, load, scale
from rmsjit.kernels.views import (
    number_type,
    pointer,
    pointers_to,
    prefetch,
    prefetch_row,
    size_of,
    words,
)
from rmsjit.runtime.flags import INLINED
from rmsjit.state.clock import CAPACITY, DONE, LAPSES, NOW, ROWS

# Words of a search.
SEARCHED, INDICES, MARKS, STARTS, ORDER, TABLE_ROWS = range(6)
SEARCH_WORDS = 6
# Words of an update: after the first, those of the search come first.
BINS = 0
DISTINCT, CUTS, VALUES, TABLE, WIDTH, NUMBERS, FACTOR, TOTALS, TOTAL_WIDTH, CLOCK, NOISE, PLACE = (
    range(SEARCH_WORDS, SEARCH_WORDS + 12)
)
WORDS = SEARCH_WORDS + 12
DECAY, CARRY, DRIFT, KEPT = range(4)  # the rows of `lapses`
# Words of a catch-up call, and of a tick.
BEHIND, BEHIND_COUNT, CATCH_TABLE, CATCH_WIDTH, CATCH_CLOCK = range(1, 6)
CATCH_UP_WORDS = 6
TICKED, TICK_NUMBERS = range(1, 3)

_ROWS_AHEAD = 8  # to prefetch: early enough, but not evicted from the cache before use
_OCCURRENCES_AHEAD = 8
_INDICES_AHEAD = 96
_ROW_COST = 3  # of updating a row, relative to reading a row of the gradient
_MARK_BYTES = 4
_NEGLIGIBLE = 1e-300  # smaller factors become 0, since denormal numbers are slow


@njit(**INLINED)
def _first_outside(indices, count, rows):
    """The position of the first index that is out of range, or -1."""
    least, most = 0, 0
    for k in range(count):
        least = min(least, indices[k])
        most = max(most, indices[k])
    if least >= 0 and most < rows:
        return -1
    for k in range(count):
        if indices[k] < 0 or indices[k] >= rows:
            return k
    return -1


def first_outside(indices_address, count, rows):
    """The position of the first of `count` indices that is out of range, or -1."""
    return _first_outside(words(indices_address), count, rows)


def find_rows(search_address):
    """Group the occurrences of each row, in their order, by a counting sort.

    Words of the search, with ``n`` in the first:

    - ``INDICES``: int64 (n,), and ``TABLE_ROWS``, the number of rows of the table.
    - ``MARKS``: int32 (rows,), all zeros before and after.  Meanwhile it numbers the rows that are
      named, from 1, in order of first occurrence.
    - ``STARTS``: int32 (n + 1,), filled with the positions in ``ORDER`` where the occurrences of
      each of these rows start, and the end of the last.
    - ``ORDER``: int32 (n,), filled with the occurrences.

    Returns
    -------
    int
        How many rows are named; or ``-1 - k`` if index `k` is the first that is out of range.
    """
    search = words(search_address)
    n, indices = search[SEARCHED], words(search[INDICES])
    outside = _first_outside(indices, n, search[TABLE_ROWS])
    if outside >= 0:
        return -1 - outside
    first, nbytes = search[MARKS], _MARK_BYTES
    marks, starts = pointer(first, int32), pointer(search[STARTS], int32)
    order = pointer(search[ORDER], int32)
    count = 0
    for k in range(n):
        if k + _INDICES_AHEAD < n:
            prefetch(first + indices[k + _INDICES_AHEAD] * nbytes)
        number = marks[indices[k]]
        if number == 0:
            count += 1
            number = int32(count)
            marks[indices[k]] = number
            starts[number] = 0
        starts[number] += 1
    end = 0
    for number in range(1, count + 1):  # counts become ends, from which rows are filled backwards
        end += starts[number]
        starts[number] = end
    for k in range(n - 1, -1, -1):
        if k >= _INDICES_AHEAD:
            prefetch(first + indices[k - _INDICES_AHEAD] * nbytes)
        number = marks[indices[k]]
        place = starts[number] - 1
        starts[number] = place
        order[place] = k
    for number in range(count):
        starts[number] = starts[number + 1]
        marks[indices[order[starts[number]]]] = 0
    starts[count] = n
    return count


@njit(**INLINED)
def cut_rows(call_address):
    """Cut the rows into bins of about equal work: write the first row of each to ``CUTS``."""
    call = words(call_address)
    bins, count = call[BINS], call[DISTINCT]
    cuts, starts = words(call[CUTS]), pointer(call[STARTS], int32)
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


def update_rows(form, kinds, exact):
    """The work of one bin of the named rows.

    Parameters
    ----------
    form : Form
    kinds : Kinds
    exact : bool
        Whether there is a clock.

    Notes
    -----
    Words of the call, after those of the search:

    - ``DISTINCT``: how many rows are named.
    - ``CUTS``: int64 (bins + 1,), memory for the borders of the bins.
    - ``VALUES``: the rows of the gradient.
    - ``TABLE``: int64 (1 + slots,), addresses of the table and its slots.
    - ``WIDTH``: elements of a row.
    - ``NUMBERS``: the `RuleNumbers` of the table.
    - ``FACTOR``: what to multiply the gradient by.
    - ``TOTALS``: (bins, ``TOTAL_WIDTH``), memory for the sum of a row, in the dtype of the
      arithmetic (complex for complex tables).  Bins must not share a cache line, or their threads
      wait for each other at every row.
    - ``CLOCK``: the words of the clock.
    - ``NOISE``: see `rmsjit.kernels.noise.noise_of`; ``PLACE``: the position of the table in it.
    """
    STORAGE, COMPUTING = number_type(kinds.variable), number_type(kinds.computing)
    TOTAL, COLUMNS = number_type(kinds.total), 1 + len(kinds.slots)
    NBYTES, TOTAL_BYTES, CLOCK_BYTES = size_of(STORAGE), size_of(TOTAL), size_of(uint16)
    slots_at, row_bytes = slots_in_blocks(form, kinds), row_sizes(form, kinds)
    update_row, catch_up_row = _update_row(form, kinds), _catch_up(form, kinds)
    key_of = noise_of(form)[0]

    @njit(**INLINED)
    def update_bin(call_address, b):
        call = words(call_address)
        cuts, indices, table = words(call[CUTS]), words(call[INDICES]), words(call[TABLE])
        starts, order = pointer(call[STARTS], int32), pointer(call[ORDER], int32)
        width, values = call[WIDTH], call[VALUES]
        h = read_numbers(pointer(call[NUMBERS], COMPUTING))
        factor = pointer(call[FACTOR], COMPUTING)[0]
        total = pointer(call[TOTALS] + b * call[TOTAL_WIDTH] * TOTAL_BYTES, TOTAL)
        clock = words(call[CLOCK]) if exact else words(call_address)
        key = key_of(call[NOISE], call[PLACE])
        first, end = cuts[b], cuts[b + 1]
        last = starts[end]
        for u in range(end - first):
            k = first + u
            if k + _ROWS_AHEAD < end:
                ahead = indices[order[starts[k + _ROWS_AHEAD]]]
                for column in range(COLUMNS):
                    nbytes = row_bytes(column, width)
                    prefetch_row(table[column] + ahead * nbytes, nbytes)
                if exact:
                    prefetch(clock[DONE] + ahead * CLOCK_BYTES)
            start, row = starts[k], indices[order[starts[k]]]
            for p in range(start, starts[k + 1]):
                if p + _OCCURRENCES_AHEAD < last:
                    occurrence = order[p + _OCCURRENCES_AHEAD]
                    prefetch_row(values + occurrence * width * NBYTES, width * NBYTES)
                gradient = pointer(values + order[p] * width * NBYTES, STORAGE)
                if p == start:
                    for i in range(width):
                        total[i] = scale(clip(load(gradient, i), h.clipvalue), factor)
                else:
                    for i in range(width):
                        more = scale(clip(load(gradient, i), h.clipvalue), factor)
                        total[i] = bounded_sum(total[i], more, h.largest)
            if exact:
                variable = pointer(table[0] + row * width * NBYTES, STORAGE)
                slots = slots_at(table, 1, row * width, width)
                catch_up_row(row, width, variable, slots, clock)
                pointer(clock[DONE], uint16)[row] = uint16(clock[NOW] + 1)
            update_row(table, row, width, total, h, key)

    return update_bin


def _update_row(form, kinds):
    """The function that applies the rule to one row, block by block if it has packed slots."""
    STORAGE, PACKED = number_type(kinds.variable), form.is_packed
    NBYTES = size_of(STORAGE)
    slots_at, larger, pack = slots_in_blocks(form, kinds), size_of_largest(form), pack_slots(form)
    update_element, (_, moved, noise) = element_rule(form), noise_of(form)

    @njit(**INLINED)
    def update_run(table, row, width, start, count, gradient, h, key):
        first = row * width + start
        variable = pointer(table[0] + first * NBYTES, STORAGE)
        slots, own = slots_at(table, 1, first, width), moved(key, first)
        largest = int32(0)
        for i in range(count):
            update_element(i, gradient[start + i], variable, slots, h, noise(own, i))
            largest = larger(largest, slots, i)
        if PACKED:
            pack(slots, count, own, largest)

    @njit(**INLINED)
    def update_row(table, row, width, gradient, h, key):
        if PACKED:
            start = 0
            while start < width:
                count = block_at(start, width)
                update_run(table, row, width, start, count, gradient, h, key)
                start += count
        else:
            update_run(table, row, width, 0, width, gradient, h, key)

    return update_row


# --- rows that have missed steps ------------------------------------------------------------


def _catch_up(form, kinds):
    """The function that brings a row to the last step of its clock, as by zero gradients."""
    COMPUTING = number_type(kinds.computing)
    LARGEST = np.finfo(np.dtype(kinds.computing)).max
    lapse_element = lapse_rule(form)

    @njit(**INLINED)
    def catch_up_row(row, width, variable, slots, clock):
        since = pointer(clock[DONE], uint16)[row]
        lapses, capacity = pointer(clock[LAPSES], float64), clock[CAPACITY]
        decay = COMPUTING(lapses[DECAY * capacity + since])
        carry = COMPUTING(lapses[CARRY * capacity + since])
        drift = COMPUTING(lapses[DRIFT * capacity + since])
        kept = COMPUTING(lapses[KEPT * capacity + since])
        if decay == 1 and carry == 1 and drift == 0 and kept == 1:
            return
        # An average that has overflowed, times a factor of 0, would be NaN.
        bound = COMPUTING(np.inf if decay != 0 else LARGEST)
        for i in range(width):
            lapse_element(i, variable, slots, decay, carry, kept, drift, bound)

    return catch_up_row


def catch_up_rows(form, kinds):
    """The work of one bin of rows that catch up.

    Words of the call: ``BEHIND``, the rows (int64, without duplicates), or 0 for the first
    ``BEHIND_COUNT`` of the table; ``CATCH_TABLE``, ``CATCH_WIDTH`` and ``CATCH_CLOCK`` as in an
    update.
    """
    STORAGE = number_type(kinds.variable)
    NBYTES = size_of(STORAGE)
    slots_at = pointers_to(tuple(number_type(name) for name in kinds.slots))
    catch_up_row = _catch_up(form, kinds)

    @njit(**INLINED)
    def catch_up_bin(call_address, b):
        call = words(call_address)
        table, clock, width = words(call[CATCH_TABLE]), words(call[CATCH_CLOCK]), call[CATCH_WIDTH]
        done, now = pointer(clock[DONE], uint16), uint16(clock[NOW])
        bins, count = call[BINS], call[BEHIND_COUNT]
        first, end = count * b // bins, count * (b + 1) // bins
        for r in range(end - first):
            row = words(call[BEHIND])[first + r] if call[BEHIND] else first + r
            if done[row] != now:
                variable = pointer(table[0] + row * width * NBYTES, STORAGE)
                catch_up_row(row, width, variable, slots_at(table, 1, row * width), clock)
                done[row] = now

    return catch_up_bin


@njit(**INLINED)
def tick(call_address, b):
    """Count a step on a clock; for a kernel of one bin.

    ``TICK_NUMBERS`` are four float64; see `rmsjit.rule.numbers.lapsed`.
    """
    call = words(call_address)
    clock, numbers = words(call[TICKED]), pointer(call[TICK_NUMBERS], float64)
    rho, momentum, keep, move = numbers[0], numbers[1], numbers[2], numbers[3]
    lapses, capacity, now = pointer(clock[LAPSES], float64), clock[CAPACITY], clock[NOW]
    for since in range(now + 1):
        decay = lapses[DECAY * capacity + since] * rho
        carry = lapses[CARRY * capacity + since] * momentum
        lapses[DRIFT * capacity + since] = lapses[DRIFT * capacity + since] * keep + carry * move
        lapses[KEPT * capacity + since] *= keep
        lapses[DECAY * capacity + since] = decay if decay >= _NEGLIGIBLE else 0.0
        lapses[CARRY * capacity + since] = carry if carry >= _NEGLIGIBLE else 0.0
    _start_lapse(lapses, capacity, now + 1)
    clock[NOW] = now + 1


@njit(**INLINED)
def reset(call_address, b):
    """Reset a clock if every row is up to date; for a kernel of one bin."""
    clock = words(words(call_address)[TICKED])
    done, now = pointer(clock[DONE], uint16), uint16(clock[NOW])
    for row in range(clock[ROWS]):
        if done[row] != now:
            return
    for row in range(clock[ROWS]):
        done[row] = uint16(0)
    _start_lapse(pointer(clock[LAPSES], float64), clock[CAPACITY], 0)
    clock[NOW] = 0


@njit(**INLINED)
def _start_lapse(lapses, capacity, since):
    lapses[DECAY * capacity + since] = 1.0
    lapses[CARRY * capacity + since] = 1.0
    lapses[DRIFT * capacity + since] = 0.0
    lapses[KEPT * capacity + since] = 1.0
