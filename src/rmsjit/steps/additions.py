"""Adding the gradients of one call to sums, all in one pass on threads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of, is_dense
from rmsjit.arrays.recycled import RecycledMemory
from rmsjit.kernels import adding, loader
from rmsjit.runtime.trials import LEAST_BYTES
from rmsjit.steps.act import Call
from rmsjit.steps.converting import ContiguousCopies
from rmsjit.steps.partition import Partition, cut_evenly, pieces_of
from rmsjit.steps.running import Runner

_PARTITIONS = 16  # kept for later calls

Array = NDArray[Any]


class Adder:
    """Computes sums in memory that is used again, as each call needs as much as the last one.

    Parameters
    ----------
    num_threads : int or None
        The maximum number of threads; None for as many as the process may keep busy.

    Attributes
    ----------
    memory : RecycledMemory
        For sums.
    copies : ContiguousCopies
        Makes those of gradients that can't be added as they are.
    """

    def __init__(self, num_threads: int | None) -> None:
        self._num_threads = num_threads
        self.memory = RecycledMemory()
        self.copies = ContiguousCopies(num_threads)
        self._runner = Runner("sum", num_threads)
        self._partitions: dict[tuple[bytes, int], Partition] = {}

    def __reduce__(self) -> Any:
        return Adder, (self._num_threads,)

    def begin(self) -> Additions:
        """Additions to be done together."""
        return Additions(self)

    def run(self, additions: list[Addition], divisor: float) -> None:
        """Write the results of additions of the same dtype, each divided."""
        nbytes = sum([one.result.nbytes for one in additions])
        if nbytes < LEAST_BYTES:
            for one in additions:
                one.compute(divisor)
            return
        self._runner.run(lambda bins: [self._call(additions, divisor, bins)], nbytes)

    def _call(self, additions: list[Addition], divisor: float, bins: int) -> Call:
        dtype = additions[0].result.dtype
        part = self._partition(additions, bins)
        columns = np.array([one.addresses() for one in additions], np.int64).T.copy()
        number = np.array([divisor], dtype)
        words = np.zeros(adding.WORDS, np.int64)
        words[adding.BINS], words[adding.DIVISOR] = bins, address_of(number)
        words[adding.CUTS], words[adding.PIECES] = address_of(part.bins), address_of(part.pieces)
        words[adding.RESULTS : adding.GRADIENTS + 1] = [address_of(column) for column in columns]
        return Call(loader.add_pieces(dtype.name), words, (additions, part, columns, number))

    def _partition(self, additions: list[Addition], bins: int) -> Partition:
        sizes = np.array([one.result.size for one in additions], np.int64)
        key = sizes.tobytes(), bins
        if key not in self._partitions:
            if len(self._partitions) >= _PARTITIONS:  # as where variables change in each round
                self._partitions.clear()
            starts, itemsize = np.zeros_like(sizes), additions[0].result.itemsize
            part = cut_evenly(sizes, starts, itemsize, bins)
            self._partitions[key] = pieces_of(part, np.arange(len(sizes)))
        return self._partitions[key]


class Addition(NamedTuple):
    """A result to be written, and what is added; flat, real and of the same dtype and size."""

    result: Array
    total: Array | None
    gradient: Array | None

    def compute(self, divisor: float) -> None:
        """Write the result."""
        result, total, gradient = self
        if total is not None and gradient is not None:
            np.add(total, gradient, out=result)
        else:
            result[:] = gradient if total is None else total
        if divisor != 1:
            np.divide(result, divisor, out=result)

    def addresses(self) -> tuple[int, ...]:
        """Of all three; 0 for what is missing."""
        return tuple([0 if array is None else address_of(array) for array in self])


class Additions:
    """Sums whose memory is there already, and which `run` computes."""

    def __init__(self, adder: Adder) -> None:
        self._adder = adder
        self._by_dtype: dict[np.dtype[Any], list[Addition]] = {}
        self._made: set[int] = set()

    def flat(self, array: Array, dtype: np.dtype[Any]) -> Array:
        """The elements of an array in order, in a dtype; copied only if they must be."""
        if array.dtype == dtype and is_dense(array):
            return array.reshape(-1)
        return self._adder.copies.of(array, dtype).reshape(-1)

    def of(self, total: Array | None, gradient: Array | None) -> Array:
        """The array that is to be a sum, or a copy if one of both is None.

        Parameters
        ----------
        total, gradient : ndarray or None
            Flat, aligned, contiguous, of the same size and dtype: float32, float64 or a complex
            one.
        """
        like = gradient if total is None else total
        assert like is not None
        if self.has_pending(like):  # a variable comes twice, and threads keep no order
            self.run(1)
        result = self._adder.memory.array(like.size, like.dtype)
        addition = Addition(result, total, gradient)
        if result.dtype.kind == "c":
            addition = Addition(*map(_real, addition))
        self._by_dtype.setdefault(addition.result.dtype, []).append(addition)
        self._made.add(id(result))
        return result

    def has_pending(self, array: Array) -> bool:
        """Whether an array is a result that is not written yet."""
        return id(array) in self._made

    def run(self, divisor: float) -> None:
        """Write all results, each divided; they count as other sums from then on."""
        for additions in self._by_dtype.values():
            self._adder.run(additions, divisor)
        self._by_dtype.clear()
        self._made.clear()


def _real(array: Array | None) -> Any:
    """Complex numbers as pairs of real ones."""
    return None if array is None else array.view(array.real.dtype)
