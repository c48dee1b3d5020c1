"""Clipping by value, by norm and by global norm, as numbers that the update kernels apply."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.rule.checks import nonnegative_number
from rmsjit.rule.form import Form
from rmsjit.rule.loss_scale import LossScale

ARGUMENTS = ("clipvalue", "clipnorm", "global_clipnorm", "gradient_scale", "loss_scale")


class Clipping:
    """The clipping bounds of an optimizer, None for those not set.

    Gradients are multiplied by `factor` before they are clipped: by `gradient_scale`, which is
    negative if the loss is to be maximised, and divided by the loss scale.

    Attributes
    ----------
    limit : float
        The bound on each element, infinite without `clipvalue`.
    by_norm : bool
        Whether there is a bound on a norm.
    is_scaled : bool
        Whether `factor` is not always 1.

    Raises
    ------
    TypeError, ValueError
        If a bound is no number or negative, or both norms are given.
    """

    __slots__ = (*ARGUMENTS, "by_norm", "is_scaled", "limit")

    def __init__(
        self,
        clipvalue: float | None = None,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        gradient_scale: float = 1.0,
        loss_scale: LossScale | None = None,
    ) -> None:
        self.clipvalue: float | None = _bound("clipvalue", clipvalue)
        self.clipnorm: float | None = _bound("clipnorm", clipnorm)
        self.global_clipnorm: float | None = _bound("global_clipnorm", global_clipnorm)
        self.gradient_scale = gradient_scale
        self.loss_scale = loss_scale
        if clipnorm is not None and global_clipnorm is not None:
            raise ValueError(
                f"clipnorm and global_clipnorm can't both be set, got clipnorm={clipnorm} "
                f"and global_clipnorm={global_clipnorm}"
            )
        self.limit: float = math.inf if self.clipvalue is None else self.clipvalue
        self.by_norm: bool = clipnorm is not None or global_clipnorm is not None
        self.is_scaled: bool = gradient_scale != 1.0 or loss_scale is not None

    def replaced(self, **changes: Any) -> Clipping:
        """The same but for some arguments; steps in progress keep the old one."""
        return Clipping(**{name: getattr(self, name) for name in ARGUMENTS} | changes)

    @property
    def factor(self) -> float:
        """What gradients are multiplied by now."""
        scale = self.loss_scale
        return self.gradient_scale if scale is None else self.gradient_scale / scale.value

    @property
    def is_none(self) -> bool:
        """Whether gradients are used as they are."""
        return not (self.by_norm or self.is_scaled) and self.clipvalue is None

    @np.errstate(all="ignore")
    def factors(self, squares: NDArray[Any], finite: bool = False) -> NDArray[Any]:
        """The factor that scales each gradient down to the bound on its norm, or the global norm.

        Parameters
        ----------
        squares : float64 array, shape (gradients,)
            The squared norm of each gradient, already clipped by value.
        finite : bool, default False
            Whether all gradients are known to be finite; an infinite norm is then an overflow.

        Returns
        -------
        float64 array, shape (gradients,)
            NaN for a global norm that is not finite, as in TensorFlow, but 0 if only the norm
            overflowed.
        """
        if self.clipnorm is not None:
            bound = self.clipnorm
            largest = np.maximum(np.sqrt(squares), bound)
            factors: NDArray[Any] = np.zeros_like(largest)
            np.divide(bound, largest, out=factors, where=largest != 0)
            return factors
        bound = self.global_clipnorm or 0.0
        norm = math.sqrt(sum(squares.tolist()))
        if norm <= bound:
            factor = 1.0
        else:
            factor = bound / norm if finite or math.isfinite(norm) else math.nan
        return np.full(len(squares), factor)


def _bound(name: str, value: Any) -> float | None:
    """A plain float, which JSON can hold."""
    return None if value is None else nonnegative_number(name, value)


def check_scale(scale: float, computing: Iterable[str]) -> None:
    """Raise `ValueError` if the factor of all gradients vanishes or overflows in a dtype."""
    for name in computing:
        with np.errstate(all="ignore"):
            factor = np.dtype(name).type(scale)
        if factor == 0 or not np.isfinite(factor):
            raise ValueError(
                f"grad_scale divided by loss_scale must be in the range of {name}, got {scale}"
            )


def refuse_complex(dtype: str, clipping: Clipping, form: Form) -> None:
    """Raise `TypeError` if elements would be clipped: complex numbers have no order."""
    if clipping.clipvalue is not None:
        raise TypeError(f"clipvalue can't be applied to gradients of complex variables ({dtype})")
    if form.clip_weights:
        raise TypeError(f"clip_weights can't be applied to complex variables ({dtype})")


NO_CLIPPING = Clipping()
