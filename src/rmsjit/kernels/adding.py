"""Adding gradients to sums, in new memory, and dividing what comes of it."""

from numba import njit

from rmsjit.kernels.dense import PIECE_WORDS
from rmsjit.kernels.views import WORD_BYTES, number_type, pointer, size_of, words
from rmsjit.runtime.flags import INLINED

# Words of the call; the first is the number of bins.
BINS, CUTS, PIECES, RESULTS, SUMS, GRADIENTS, DIVISOR = range(7)
WORDS = 7
_CHUNK = 2048  # elements, which are still in the first cache when they are divided


@njit(**INLINED)
def _copy(result, source, count):
    for i in range(count):
        result[i] = source[i]


@njit(**INLINED)
def _add(result, total, gradient, count):
    for i in range(count):
        result[i] = total[i] + gradient[i]


@njit(**INLINED)
def _divide(result, divisor, count):
    for i in range(count):
        result[i] /= divisor


def add_pieces(real):
    """The work of one bin of pieces.

    Parameters
    ----------
    real : str
        The type of all numbers.

    Notes
    -----
    Words of the call: ``CUTS`` and ``PIECES`` as in `rmsjit.kernels.dense`; ``RESULTS``, ``SUMS``
    and ``GRADIENTS``, the addresses of arrays by the number of a piece, 0 for a sum or a gradient
    that is missing; ``DIVISOR``, the address of a number.
    """
    NUMBER = number_type(real)
    NBYTES = size_of(NUMBER)

    @njit(**INLINED)
    def add_bin(call_address, b):
        call = words(call_address)
        results, sums, gradients = words(call[RESULTS]), words(call[SUMS]), words(call[GRADIENTS])
        cuts, divisor = words(call[CUTS]), pointer(call[DIVISOR], NUMBER)[0]
        for p in range(cuts[b], cuts[b + 1]):
            piece = words(call[PIECES] + p * PIECE_WORDS * WORD_BYTES)
            row, end = piece[0], piece[1] + piece[2]
            for start in range(piece[1], end, _CHUNK):
                count, offset = min(_CHUNK, end - start), start * NBYTES
                result = pointer(results[row] + offset, NUMBER)
                total = pointer(sums[row] + offset, NUMBER)
                gradient = pointer(gradients[row] + offset, NUMBER)
                if sums[row] == 0:
                    _copy(result, gradient, count)
                elif gradients[row] == 0:
                    _copy(result, total, count)
                else:
                    _add(result, total, gradient, count)
                if divisor != 1:
                    _divide(result, divisor, count)

    return add_bin
