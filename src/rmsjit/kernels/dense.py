"""The dense kernel: the rule over whole variables, all of one dtype in one call.

The work is divided into pieces ``(row, first element, number of elements, group)``, and the pieces
into bins of about equal size, one for each thread.
"""

from numba import njit

from rmsjit.kernels.rounding import noise_of
from rmsjit.kernels.rule import FIELDS, element_rule, read_numbers
from rmsjit.kernels.scalars import clip, load, scale
from rmsjit.kernels.views import (
    WORD_BYTES,
    number_type,
    pointer,
    pointers_to,
    size_of,
    words,
)
from rmsjit.runtime.flags import INLINED

# Words of the call: a count, then addresses.
BINS, CUTS, PIECES, ADDRESSES, COLUMNS, GRADIENTS, NUMBERS, SCALES, NOISE = range(9)
WORDS = 9
PIECE_WORDS = 4


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
    - ``PIECES``: int64 (pieces, PIECE_WORDS).
    - ``ADDRESSES``: int64 (variables, ``COLUMNS``), of each variable's memory and of its slots,
      and then of slots that only variables of other dtypes have.
    - ``GRADIENTS``: int64 (variables,), of the gradients, which have the layout of the variables.
    - ``NUMBERS``: (groups, FIELDS), see `rmsjit.rule.numbers.RuleNumbers`.
    - ``SCALES``: (variables,), what to multiply each gradient by; read only if `clipped`.
    - ``NOISE``: see `rmsjit.kernels.rounding.noise_of`; read only by stochastic rounding.
    """
    STORAGE, COMPUTING = number_type(kinds.variable), number_type(kinds.computing)
    NBYTES, NUMBER_BYTES = size_of(STORAGE), size_of(COMPUTING)
    slots_at = pointers_to(tuple(number_type(name) for name in kinds.slots))
    update_element, (key_of, moved, noise) = element_rule(form), noise_of(form)

    @njit(**INLINED)
    def update_bin(call_address, b):
        call = words(call_address)
        cuts, gradients = words(call[CUTS]), words(call[GRADIENTS])
        scales = pointer(call[SCALES], COMPUTING)
        for p in range(cuts[b], cuts[b + 1]):
            piece = words(call[PIECES] + p * PIECE_WORDS * WORD_BYTES)
            row, start, count, group = piece[0], piece[1], piece[2], piece[3]
            h = read_numbers(pointer(call[NUMBERS] + group * FIELDS * NUMBER_BYTES, COMPUTING))
            addresses = words(call[ADDRESSES] + row * call[COLUMNS] * WORD_BYTES)
            variable = pointer(addresses[0] + start * NBYTES, STORAGE)
            slots = slots_at(addresses, 1, start)
            gradient = pointer(gradients[row] + start * NBYTES, STORAGE)
            key = moved(key_of(call[NOISE], row), start)
            if clipped:
                factor = scales[row]
                for i in range(count):
                    g = scale(clip(load(gradient, i), h.clipvalue), factor)
                    update_element(i, g, variable, slots, h, noise(key, i))
            else:
                for i in range(count):
                    g = load(gradient, i)
                    update_element(i, g, variable, slots, h, noise(key, i))

    return update_bin
