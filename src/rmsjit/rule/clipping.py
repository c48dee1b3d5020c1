"""Clipping by value, by norm and by global norm, as numbers that ride along in the update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.rule.form import Form
from rmsjit.rule.hyperparameters import as_number


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
    def limit(self) -> float:
        """The bound on each value, infinite where there is none."""
        return math.inf if self.clipvalue is None else float(self.clipvalue)

    @cached_property
    def is_none(self) -> bool:
        """Whether gradients are taken as they are."""
        return not self.by_norm and self.clipvalue is None

    @np.errstate(all="ignore")
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


def refuse_complex(dtype: str, clipping: Clipping, form: Form) -> None:
    """Raise `TypeError` where elements would be clipped, since this complex dtype has no order."""
    if clipping.clipvalue is not None:
        raise TypeError(f"clipvalue can't be applied to gradients of complex variables ({dtype})")
    if form.clip_weights:
        raise TypeError(f"clip_weights can't be applied to complex variables ({dtype})")


NO_CLIPPING = Clipping()
