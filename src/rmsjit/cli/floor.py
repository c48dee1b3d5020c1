"""The floor: a loop with the same loads and stores as a step, over the same arrays.

It computes nothing (``x ^= g & 0``, where the compiler does not know the zero).  It is compiled,
cut into pieces and run on threads like the kernels of a step, so its time is what memory allows.
"""

# Numba infers the types of compiled functions.
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of
from rmsjit.cli.stopwatch import Step, median_times
from rmsjit.kernels import driver
from rmsjit.kernels.dense import PIECE_WORDS
from rmsjit.kernels.views import WORD_BYTES, number_type, pointers_to
from rmsjit.kernels.views import words as words_at
from rmsjit.runtime import threads
from rmsjit.runtime.cache import Kernel, compile_kernel
from rmsjit.runtime.flags import INLINED
from rmsjit.steps.act import DONE, Act, Call
from rmsjit.steps.partition import cut_evenly, pieces_of

# Words of the call: cuts and pieces as in `rmsjit.kernels.dense`, the zero, then the addresses of
# the gradient and of all written arrays.
BINS, CUTS, PIECES, ZERO, ADDRESSES = range(5)

Array = NDArray[Any]


def fastest_floor(gradient: Array, written: Sequence[Array], most: int) -> Step:
    """The floor loop on one thread or on several, whichever is faster.

    Parameters
    ----------
    gradient : ndarray
        Contiguous; only read.
    written : sequence of ndarray
        The variable and its slots: contiguous, and as long as the gradient.  They are written but
        keep their values.
    most : int
        The number of threads to try besides one.

    Returns
    -------
    callable
        Runs the loop once.
    """
    rivals = {str(wanted): floor(gradient, written, wanted) for wanted in {1, most}}
    times = median_times(rivals, rounds=3)
    return rivals[min(times, key=times.__getitem__)]


def floor(gradient: Array, written: Sequence[Array], wanted: int) -> Step:
    """The floor loop on `wanted` threads; see `fastest_floor`."""
    launch = threads.launch(wanted)
    arrays = [_as_bits(array) for array in (gradient, *written)]
    nbytes = sum(array.nbytes for array in arrays)
    act = Act([call_over(arrays, launch.threads)], launch=launch, nbytes=nbytes)

    def run() -> None:
        if act.run() != DONE:  # threads can't be launched while a fork is about to come
            Act([call_over(arrays, 1)]).run()

    return run


def _as_bits(array: Array) -> Array:
    """The array viewed as unsigned integers, two for each complex number."""
    parts = 2 if array.dtype.kind == "c" else 1
    return array.reshape(-1).view(f"u{array.itemsize // parts}")


def call_over(arrays: Sequence[Array], bins: int) -> Call:
    """The call that makes one pass over arrays of unsigned integers.

    Parameters
    ----------
    arrays : sequence of ndarray
        The gradient, then the written arrays.
    bins : int
        The number of threads.
    """
    variable = arrays[1]
    sizes, start = np.array([variable.size]), np.array([address_of(variable)])
    part = pieces_of(cut_evenly(sizes, start, variable.itemsize, bins), np.zeros(1, np.int64))
    words = np.zeros(ADDRESSES + len(arrays), np.int64)
    words[BINS], words[ZERO] = bins, 0
    words[CUTS], words[PIECES] = address_of(part.bins), address_of(part.pieces)
    words[ADDRESSES:] = [address_of(array) for array in arrays]
    kernel = _kernel(tuple(array.dtype.name for array in arrays))
    return Call(kernel, words, (part, arrays))


def _kernel(kinds: tuple[str, ...]) -> Kernel:
    """The loop for arrays of these dtypes, the gradient's first."""
    key = f"{kinds} {_digest_of_source()}"
    return compile_kernel(
        "floor",
        key,
        lambda: driver.over_bins(_pass_over_pieces(kinds)),
        arguments=2,
    )


@functools.cache
def _digest_of_source() -> str:
    """The hash of this module, which is not among the sources that the kernel cache hashes."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


# --- compiled -------------------------------------------------------------------------------

# Functions are decorated only when `compile_kernel` asks for them: meanwhile it overrides settings
# of the user that would keep Numba from compiling.


def _pass_over_pieces(kinds: tuple[str, ...]) -> Any:
    """The work of one bin."""
    arrays_at = pointers_to(tuple(map(number_type, kinds)))
    change_element = _change_of_element(len(kinds) - 1)

    def pass_over_bin(call_address, b):
        call = words_at(call_address)
        cuts, zero = words_at(call[CUTS]), call[ZERO]
        for p in range(cuts[b], cuts[b + 1]):
            piece = words_at(call[PIECES] + p * PIECE_WORDS * WORD_BYTES)
            start, count = piece[1], piece[2]
            arrays = arrays_at(call, ADDRESSES, start)
            gradient = arrays[0]
            for i in range(count):
                change_element(i, gradient[i] & zero, arrays)

    return njit(**INLINED)(pass_over_bin)


def _change_of_element(last: int) -> Any:
    """The function that changes element `i` of the arrays 1 to `last`."""
    if last == 0:
        return njit(**INLINED)(lambda i, change, arrays: None)
    change_others = _change_of_element(last - 1)

    def change_element(i, change, arrays):
        change_others(i, change, arrays)
        arrays[last][i] ^= change

    return njit(**INLINED)(change_element)
