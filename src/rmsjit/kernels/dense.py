"""The dense driver: the rule over whole variables, all of one dtype in one call.

Work comes in pieces ``(row of the table, first element, number of elements)``, and pieces in bins
of about equal size, of which each is worked off by one thread.  Compiled without threads the same
function is the serial kernel, for which one bin is enough.
"""

from numba import prange

from rmsjit.kernels.rule import read_numbers, update_element
from rmsjit.kernels.scalars import clip, load, scale
from rmsjit.kernels.views import view

VARIABLE, RMS, MG, MOMENTUM = range(4)  # the columns of the table
TABLE_COLUMNS = 4


def update_dense(table, gradients, pieces, bins, scales, numbers, sample, mg, momentum):
    """Apply the rule to every piece.

    Parameters
    ----------
    table : int64 array, shape (variables, TABLE_COLUMNS)
        Addresses of the memory of each variable and of its slots.
    gradients : int64 array, shape (variables, 1)
        Addresses of the gradients, laid out in memory as their variables are.
    pieces : int64 array, shape (pieces, 3)
        Row, first element and number of elements.
    bins : int64 array, shape (bins + 1,)
        Bin `b` holds the pieces from ``bins[b]`` up to ``bins[b + 1]``.
    scales : array of the computing dtype, shape (variables,)
        What a clipped norm multiplies each gradient by, else 1.
    numbers : array of the computing dtype
        The fields of `RuleNumbers`.
    sample : array of the storage dtype
        Only its dtype counts.
    mg, momentum : int or None
        The column of the slot, or None where the form has none.
    """
    for b in prange(len(bins) - 1):
        h = read_numbers(numbers)
        for p in range(bins[b], bins[b + 1]):
            row, start, count = pieces[p, 0], pieces[p, 1], pieces[p, 2]
            gradient = view(gradients, row, 0, start, count, sample)
            variable = view(table, row, VARIABLE, start, count, sample)
            rms_view = view(table, row, RMS, start, count, sample)
            mg_view = view(table, row, mg, start, count, sample)
            momentum_view = view(table, row, momentum, start, count, sample)
            factor = scales[row]
            for i in range(count):
                g = scale(clip(load(gradient, i), h.clipvalue), factor)
                update_element(i, g, variable, rms_view, mg_view, momentum_view, h)
