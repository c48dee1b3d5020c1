"""Squared norms of gradients, and whether they are finite, by a compiled kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision, converted, precision_of
from rmsjit.arrays.layout import address_of, layout_of
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.kernels import loader, norms
from rmsjit.rule.clipping import Clipping, check_scale
from rmsjit.steps.act import Act, Call
from rmsjit.steps.partition import Partition, cut_by_length, pieces_of
from rmsjit.variables import array_of


class Norms(NamedTuple):
    """The result of one pass over gradients.

    Attributes
    ----------
    squares : float64 array, shape (gradients,)
        Squared norms, after clipping by value.
    finite : bool array, shape (gradients,)
        Whether all values are finite, before clipping.
    """

    squares: NDArray[Any]
    finite: NDArray[np.bool_]

    @classmethod
    def of_totals(cls, totals: NDArray[Any]) -> Norms:
        """The norms from the two numbers that the kernel leaves for each gradient."""
        return cls(totals[:, 0], totals[:, 1] == 0)


class Judgement(NamedTuple):
    """What the norms of gradients say about a step.

    Attributes
    ----------
    accepted : bool
        Whether it is taken.
    factors : ndarray or None
        What to multiply each gradient by.
    norm : float or None
        The joint norm, if it was computed.
    norms : tuple of float
        Those of the groups, likewise.
    """

    accepted: bool
    factors: NDArray[Any] | None
    norm: float | None = None
    norms: tuple[float, ...] = ()


class NormPass:
    """The pass over gradients of given sizes.

    Parameters
    ----------
    sizes : int64 array, shape (gradients,)
        Numbers of elements.
    precision : Precision
        Of the gradients.
    positions : int array, shape (gradients,)
        Their rows in the addresses and totals of a call.
    """

    def __init__(
        self, sizes: NDArray[np.int64], precision: Precision, positions: NDArray[np.int64]
    ) -> None:
        self._sizes = sizes * precision.components
        self._precision = precision
        self._positions = positions
        self._partitions: dict[int, Partition] = {}
        self.nbytes = int(self._sizes.sum()) * np.dtype(precision.real).itemsize

    def call(
        self, gradients: NDArray[np.int64], totals: NDArray[Any], limit: float, bins: int
    ) -> Call:
        """The call that reads the gradients once.

        Parameters
        ----------
        gradients : int64 array
            Addresses, by position.
        totals : float64 array, shape (positions, 2)
            Zeros, to which the results are added; see `Norms.of_totals`.
        limit : float
            Elements are clipped to this bound first.
        bins : int
            The number of threads.
        """
        precision, part = self._precision, self._partition(bins)
        bound = converted(np.array([limit]), precision.computing)
        sums = np.empty((len(part.pieces), 2))
        words = np.zeros(norms.WORDS, np.int64)
        words[norms.BINS] = bins
        words[norms.CUTS], words[norms.PIECES] = address_of(part.bins), address_of(part.pieces)
        words[norms.GRADIENTS], words[norms.BOUND] = address_of(gradients), address_of(bound)
        words[norms.SUMS], words[norms.TOTALS] = address_of(sums), address_of(totals)
        kernel = loader.sums_of_squares(precision.real, precision.computing)
        return Call(kernel, words, (part, bound, sums, gradients, totals))

    def _partition(self, bins: int) -> Partition:
        """Pieces whose length does not depend on the number of threads."""
        known = self._partitions.get(bins)
        if known is None:
            part = cut_by_length(self._sizes, norms.NORM_PIECE, bins)
            known = self._partitions[bins] = pieces_of(part, self._positions)
        return known


def norms_by_group(
    pairs: Sequence[tuple[Any, Any]], clipping: Clipping, rows: Sequence[int], groups: int
) -> tuple[float, ...]:
    """The joint norm of the gradients of each group before they are clipped to it.

    Parameters
    ----------
    pairs : sequence of (ndarray or IndexedSlices, variable)
        Gradients of their variables' dtypes, neither scaled nor clipped.
    clipping : Clipping
        Elements are clipped first if it bounds norms as well.
    rows : sequence of int
        The group of each pair.
    groups : int
        How many there are.
    """
    scale = abs(clipping.factor)
    limit = clipping.limit / scale if clipping.by_norm else math.inf
    values = _values_of(pairs)
    squares = [_square(v, g, x, limit) for v, (g, x) in zip(values, pairs, strict=True)]
    norms: list[float] = (scale * np.sqrt(np.bincount(rows, squares, groups))).tolist()
    return tuple(norms)


def clipped(pairs: Sequence[tuple[Any, Any]], clipping: Clipping) -> list[tuple[Any, Any]]:
    """Pairs with scaled and clipped copies of the gradients, for user code that is given them.

    Parameters
    ----------
    pairs : sequence of (ndarray or IndexedSlices, variable)
        Gradients of their variables' dtypes.
    clipping : Clipping
    """
    values = _values_of(pairs)
    with np.errstate(all="ignore"):  # NaN and infinity are handled elsewhere
        if clipping.factor != 1.0:
            precisions = [precision_of(value.dtype) for value in values]
            check_scale(clipping.factor, {p.computing for p in precisions if p is not None})
            values = [np.asarray(v * v.real.dtype.type(clipping.factor)) for v in values]
        if clipping.clipvalue is not None:
            values = [_clipped_by_value(value, clipping.limit) for value in values]
        if clipping.by_norm:
            squares = [_square(v, g, x) for v, (g, x) in zip(values, pairs, strict=True)]
            finite = all(np.isfinite(value).all() for value in values)
            factors = clipping.factors(np.array(squares), finite)
            values = [
                np.asarray(v * v.real.dtype.type(f)) for v, f in zip(values, factors, strict=True)
            ]
    return [
        (IndexedSlices(v, g.indices, g.dense_shape) if isinstance(g, IndexedSlices) else v, x)
        for v, (g, x) in zip(values, pairs, strict=True)
    ]


def _values_of(pairs: Sequence[tuple[Any, Any]]) -> list[NDArray[Any]]:
    return [g.values if isinstance(g, IndexedSlices) else np.asarray(g) for g, _ in pairs]


def _clipped_by_value(value: NDArray[Any], limit: float) -> NDArray[Any]:
    if value.dtype.kind == "c":
        raise TypeError("clipvalue can't be applied to complex gradients")
    bound = value.dtype.type(limit)
    return np.asarray(np.clip(value, -bound, bound))


def _square(value: NDArray[Any], gradient: Any, variable: Any, limit: float = math.inf) -> float:
    """The squared norm of a gradient, with the same bits as in a step."""
    if not isinstance(gradient, IndexedSlices):  # elements in the order of the variable's memory
        value = layout_of(array_of(variable)).canonical(value)
    value = np.ascontiguousarray(value)
    precision = precision_of(value.dtype)
    assert precision is not None
    norm_pass = NormPass(np.array([value.size]), precision, np.array([0]))
    totals = np.zeros((1, 2))
    Act([norm_pass.call(np.array([address_of(value)]), totals, limit, 1)]).run()
    return float(totals[0, 0])
