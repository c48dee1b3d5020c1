"""The rule of `rmsjit.RMSprop` (see `rmsjit.kernels.rule`) in hand-written NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class _Slots(NamedTuple):
    """The slots of a variable, and a scratch array."""

    rms: Array
    mg: Array | None
    momentum: Array | None
    scratch: Array


class NumPyRMSprop:
    """`rmsjit.RMSprop` in plain NumPy: nine or more passes, in place and without allocations.

    Parameters
    ----------
    learning_rate : callable
        A function of the number of steps taken so far.
    rho, momentum, epsilon : float
    centered : bool

    Notes
    -----
    Neither processing the arrays in blocks that fit the cache nor folding ``1 - rho`` into the
    other constants made it noticeably faster.
    """

    def __init__(
        self,
        learning_rate: Callable[[int], float],
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        *,
        centered: bool = False,
    ) -> None:
        self.learning_rate = learning_rate
        self.rho = rho
        self.momentum = momentum
        self.epsilon = epsilon
        self.centered = centered
        self.iterations = 0
        self._slots: dict[int, _Slots] = {}

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Array, Array]], /) -> None:
        """Update the variables in place."""
        rate = float(self.learning_rate(self.iterations))
        for gradient, variable in grads_and_vars:
            if id(variable) not in self._slots:
                self._slots[id(variable)] = self._new_slots(variable)
            self._update(gradient, variable, self._slots[id(variable)], rate)
        self.iterations += 1

    def _new_slots(self, variable: Array) -> _Slots:
        return _Slots(
            rms=np.zeros_like(variable),
            mg=np.zeros_like(variable) if self.centered else None,
            momentum=np.zeros_like(variable) if self.momentum else None,
            scratch=np.empty_like(variable),
        )

    def _update(self, gradient: Array, variable: Array, slots: _Slots, rate: float) -> None:
        rms, mg, momentum, scratch = slots
        one_minus_rho = rms.dtype.type(1) - rms.dtype.type(self.rho)  # rounded as in rmsjit
        np.multiply(gradient, one_minus_rho, out=scratch)
        if mg is not None:
            mg *= self.rho
            mg += scratch
        scratch *= gradient
        rms *= self.rho
        rms += scratch
        self._take_root(rms if mg is None else _variance(rms, mg, scratch), scratch)
        np.divide(gradient, scratch, out=scratch)
        scratch *= rate
        if momentum is not None:
            momentum *= self.momentum
            momentum += scratch
            scratch = momentum
        variable -= scratch

    def _take_root(self, variance: Array, out: Array) -> None:
        """The root, with epsilon added where Keras does: with momentum, to the variance."""
        if self.momentum:
            np.add(variance, self.epsilon, out=out)
            np.sqrt(out, out=out)
        else:
            np.sqrt(variance, out=out)
            out += self.epsilon


def _variance(rms: Array, mg: Array, out: Array) -> Array:
    """``max(rms - mg*mg, 0)``, without the maximum for complex numbers, which have no order."""
    np.multiply(mg, mg, out=out)
    np.subtract(rms, out, out=out)
    if out.dtype.kind != "c":
        np.maximum(out, 0, out=out)
    return out
