"""The dense kernel: the rule over whole variables, all of one dtype in one call.

The work is divided into pieces ``(row, first element, number of elements, group)``, and the pieces
into bins of about equal size, one for each thread.

Master weights of bfloat16 are updated in runs, and rounded in a second loop over each run, which is
still in the first-level cache then.  In one loop the rounding would follow the root and the
division, and a processor sees too few elements ahead to compute others meanwhile.  Runs are shorter
where memory is fetched ahead, and in 8 bits they are blocks.
"""

from numba import int32, njit

from rmsjit.kernels.blocks import block_at, pack_slots, size_of_largest, slots_in_blocks
from rmsjit.kernels.noise import noise_of
from rmsjit.kernels.prefetching import prefetching, run_of
from rmsjit.kernels.rule import FIELDS, element_rule, read_numbers, rounding_rule
from rmsjit.kernels.scalars import BFLOAT16_BITS, clip, load, scale
from rmsjit.kernels.views import (
    WORD_BYTES,
    number_type,
    pointer,
    size_of,
    words,
)
from rmsjit.rule.slot import STOCHASTIC
from rmsjit.runtime.flags import INLINED

# Words of the call: counts, addresses, and whether memory is fetched ahead.
(
    BINS,
    CUTS,
    PIECES,
    ADDRESSES,
    COLUMNS,
    GRADIENTS,
    NUMBERS,
    SCALES,
    NOISE,
    LENGTHS,
    PREFETCHES,
) = range(11)
WORDS = 11
PIECE_WORDS = 4

RUN = 1024  # elements; their master weights take 4 KiB


def update_pieces(form, kinds, clipped):
    """The work of one bin.

    Parameters
    ----------
    form : Form
    kinds : Kinds
        The types of memory and arithmetic.
    clipped : bool
        Whether gradients are clipped and scaled first.

    Notes
    -----
    Words of the call:

    - ``CUTS``: int64 (bins + 1,), the first piece of each bin, and the number of pieces.
    - ``PIECES``: int64 (pieces, PIECE_WORDS); with slots in 8 bits, each begins at a block.
    - ``ADDRESSES``: int64 (variables, ``COLUMNS``), of each variable's memory and of its slots,
      and then of slots that only variables of other dtypes have.
    - ``GRADIENTS``: int64 (variables,), of the gradients, which have the layout of the variables.
    - ``NUMBERS``: (groups, FIELDS), see `rmsjit.rule.numbers.RuleNumbers`.
    - ``SCALES``: (variables,), what to multiply each gradient by; read only if `clipped`.
    - ``NOISE``: see `rmsjit.kernels.noise.noise_of`; read only by stochastic rounding.
    - ``LENGTHS``: int64 (variables,), the elements of the records of slots in 8 bits; read only if
      the form has some.
    - ``PREFETCHES``: 1 to fetch memory ahead, otherwise 0.
    """
    COMPUTING = number_type(kinds.computing)
    NUMBER_BYTES, PACKED, FETCHED = size_of(COMPUTING), form.is_packed, run_of(kinds)
    ROUNDS_RUNS, key_of = _rounds_runs(form, kinds), noise_of(form)[0]
    update_run = _update_run(form, kinds, clipped)

    @njit(**INLINED)
    def update_bin(call_address, b):
        call = words(call_address)
        cuts, prefetches = words(call[CUTS]), call[PREFETCHES] != 0
        for p in range(cuts[b], cuts[b + 1]):
            piece = words(call[PIECES] + p * PIECE_WORDS * WORD_BYTES)
            row, start, count, group = piece[0], piece[1], piece[2], piece[3]
            key = key_of(call[NOISE], row)
            numbers = pointer(call[NUMBERS] + group * FIELDS * NUMBER_BYTES, COMPUTING)
            length = words(call[LENGTHS])[row] if PACKED else 0
            end, run = start + count, min(count, RUN) if ROUNDS_RUNS else count
            if prefetches:
                run = min(run, FETCHED)
            while start < end:
                count = min(block_at(start, length) if PACKED else run, end - start)
                update_run(call, row, start, count, length, numbers, key, prefetches)
                start += count

    return update_bin


def _rounds_runs(form, kinds):
    """Whether master weights are rounded to their variable in a loop of its own."""
    is_bfloat16 = number_type(kinds.variable) == BFLOAT16_BITS
    return form.has_master and form.rounding != STOCHASTIC and is_bfloat16


def _update_run(form, kinds, clipped):
    """The function that applies the rule to a part of a variable, at most a block in 8 bits."""
    STORAGE, COMPUTING = number_type(kinds.variable), number_type(kinds.computing)
    NBYTES, PACKED, ROUNDS_RUNS = size_of(STORAGE), form.is_packed, _rounds_runs(form, kinds)
    slots_at, larger, pack = slots_in_blocks(form, kinds), size_of_largest(form), pack_slots(form)
    update_element, (_, moved, noise) = element_rule(form, not ROUNDS_RUNS), noise_of(form)
    round_element = rounding_rule(form)
    prefetch_gradient, prefetch_others = prefetching(kinds)

    @njit(**INLINED)
    def update_run(call, row, start, count, length, numbers, key, prefetches):
        h = read_numbers(numbers)  # here, as vectors of them then occupy registers in the loop only
        addresses = words(call[ADDRESSES] + row * call[COLUMNS] * WORD_BYTES)
        variable_at = addresses[0] + start * NBYTES
        gradient_at = words(call[GRADIENTS])[row] + start * NBYTES
        variable, gradient = pointer(variable_at, STORAGE), pointer(gradient_at, STORAGE)
        slots = slots_at(addresses, 1, start, length)
        if prefetches:
            prefetch_gradient(gradient_at, count)
        if prefetches and not PACKED:
            prefetch_others(variable_at, slots, count)
        key, largest = moved(key, start), int32(0)
        if clipped:
            factor = pointer(call[SCALES], COMPUTING)[row]
            for i in range(count):
                g = scale(clip(load(gradient, i), h.clipvalue), factor)
                update_element(i, g, variable, slots, h, noise(key, i))
                largest = larger(largest, slots, i)
        else:
            for i in range(count):
                g = load(gradient, i)
                update_element(i, g, variable, slots, h, noise(key, i))
                largest = larger(largest, slots, i)
        if ROUNDS_RUNS:
            for i in range(count):
                round_element(i, variable, slots)
        if PACKED:
            if prefetches:  # not earlier, as a block needs too many lines at a time
                prefetch_others(variable_at, slots, count)
            pack(slots, count, key, largest)

    return update_run
