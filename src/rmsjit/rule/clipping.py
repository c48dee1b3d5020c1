"""Clipping by value, by norm and by global norm, as numbers that ride along in the update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import precision_of
from rmsjit.arrays.layout import address_of, layout_of
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.rule.hyperparameters import as_number
from rmsjit.variables import array_of


@dataclass(frozen=True)
class Clipping:
    """What an optimizer clips by; None where it does not.

    Raises
    ------
    ValueError
        If a bound is negative, or both norms are given.
    """

    clipvalue: float | None = None
    clipnorm: float | None = None
    global_clipnorm: float | None = None

    def __post_init__(self) -> None:
        for name in ("clipvalue", "clipnorm", "global_clipnorm"):
            bound = getattr(self, name)
            if bound is None:
                continue
            number = as_number(name, bound)
            if number < 0:
                raise ValueError(f"{name} must not be negative, got {bound}")
            object.__setattr__(self, name, number)  # a plain float, which JSON can hold
        if self.clipnorm is not None and self.global_clipnorm is not None:
            raise ValueError(
                f"clipnorm and global_clipnorm can't both be set, got clipnorm={self.clipnorm} "
                f"and global_clipnorm={self.global_clipnorm}"
            )

    @cached_property
    def by_norm(self) -> bool:
        return self.clipnorm is not None or self.global_clipnorm is not None

    @cached_property
    def bound(self) -> float:
        """The bound on each value, infinite where there is none."""
        return math.inf if self.clipvalue is None else float(self.clipvalue)

    def clipped(self, pairs: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Pairs with clipped copies of the gradients, for code that needs to see them.

        Parameters
        ----------
        pairs : sequence of (ndarray or IndexedSlices, variable)
            Gradients of their variables' dtypes.
        """
        values = [g.values if isinstance(g, IndexedSlices) else np.asarray(g) for g, _ in pairs]
        with np.errstate(all="ignore"):  # what is not finite is no news to who asked for it
            if self.clipvalue is not None:
                values = [_clipped_by_value(value, float(self.clipvalue)) for value in values]
            if self.by_norm:
                squares = [_square(v, g, x) for v, (g, x) in zip(values, pairs, strict=True)]
                finite = all(np.isfinite(value).all() for value in values)
                factors = self.factors(np.array(squares), finite)
                values = [
                    np.asarray(v * v.real.dtype.type(f))
                    for v, f in zip(values, factors, strict=True)
                ]
        return [
            (IndexedSlices(v, g.indices, g.dense_shape) if isinstance(g, IndexedSlices) else v, x)
            for v, (g, x) in zip(values, pairs, strict=True)
        ]

    def fixed_factors(self, count: int) -> NDArray[Any] | None:
        """What to multiply each of `count` gradients by where norms don't matter; None for 1."""
        del count
        return None

    def factors(self, squares: NDArray[Any], finite: bool = False) -> NDArray[Any]:
        """What to multiply each gradient by.

        Parameters
        ----------
        squares : float64 array, shape (gradients,)
            The squared norm of each gradient, already clipped by value.
        finite : bool, default False
            Whether all gradients are known to be finite, so that an infinite norm is one that
            overflowed.

        Returns
        -------
        float64 array, shape (gradients,)
            NaN where TensorFlow makes the gradients NaN, for a global norm that is not finite;
            but 0 where only the norm has overflowed.
        """
        if self.clipnorm is not None:
            bound = float(self.clipnorm)
            largest = np.maximum(np.sqrt(squares), bound)
            factors: NDArray[Any] = np.zeros_like(largest)
            np.divide(bound, largest, out=factors, where=largest != 0)
            return factors
        bound = float(self.global_clipnorm or 0.0)
        norm = math.sqrt(sum(squares.tolist()))
        if norm <= bound:
            factor = 1.0
        else:
            factor = bound / norm if finite or math.isfinite(norm) else math.nan
        return np.full(len(squares), factor)


def _clipped_by_value(value: NDArray[Any], bound: float) -> NDArray[Any]:
    if value.dtype.kind == "c":
        raise TypeError("clipvalue can't be applied to complex gradients")
    limit = value.dtype.type(bound)
    clipped: NDArray[Any] = np.asarray(np.clip(value, -limit, limit))
    return clipped


def _square(value: NDArray[Any], gradient: Any, variable: Any) -> float:
    """The squared norm of a gradient, with the bits of the norm that rides along in a step."""
    from rmsjit.steps.norms import NormPass

    if not isinstance(gradient, IndexedSlices):  # elements in the order of the variable's memory
        value = layout_of(array_of(variable)).canonical(value)
    value = np.ascontiguousarray(value)
    precision = precision_of(value.dtype)
    assert precision is not None
    norm_pass = NormPass(np.array([value.size]), precision)
    return float(norm_pass.norms(np.array([[address_of(value)]]), math.inf, 1).squares[0])


NO_CLIPPING = Clipping()
