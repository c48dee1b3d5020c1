"""A function to be minimised, with its gradient from wherever it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.indexed_slices import IndexedSlices


class Objective:
    """A function of an array, and its gradient.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` returns a number or, if `jac` is True, a number and the gradient.
    jac : callable, bool or None
        ``jac(x, *args)`` returns the gradient.  Without it, autograd differentiates `fun`.
    args : tuple

    Attributes
    ----------
    nfev, njev : int
        How often the function and the gradient were computed.
    """

    def __init__(self, fun: Callable[..., Any], jac: Any, args: Any) -> None:
        if not callable(fun):
            raise TypeError(f"fun must be callable, got {fun!r}")
        if not (callable(jac) or jac is None or isinstance(jac, bool)):
            raise TypeError(f"jac must be callable, True or None, got {jac!r}")
        self._fun, self._jac = fun, jac
        self._args = args if isinstance(args, tuple) else (args,)
        self.nfev = self.njev = 0

    def at(self, x: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        """The value and the gradient at a point, which user code gets a copy of.

        Raises
        ------
        TypeError, ValueError
            If one is not what it should be.
        """
        self.nfev += 1
        self.njev += 1
        if callable(self._jac):
            value = self._fun(x.copy(), *self._args)
            gradient = self._jac(x.copy(), *self._args)
        elif self._jac:
            value, gradient = self._pair(self._fun(x.copy(), *self._args))
        else:
            value, gradient = self._differentiated(x)
        return _as_value(value), _as_gradient(gradient, x)

    def _pair(self, returned: Any) -> Any:
        if not isinstance(returned, (tuple, list)) or len(returned) != 2:
            raise TypeError(
                f"with jac=True, fun must return its value and the gradient, got "
                f"{type(returned).__name__}"
            )
        return returned

    def _differentiated(self, x: NDArray[Any]) -> tuple[Any, Any]:
        from rmsjit.autodiff.tape import GradientTape

        point = x.copy()
        with GradientTape() as tape:
            (traced,) = tape.watch([point])
            try:
                value = self._fun(traced, *self._args)
            except TypeError as error:
                error.add_note("autograd differentiates fun, since jac was left out")
                raise
        (gradient,) = tape.gradient(value, [traced])
        if gradient is None:
            raise ValueError(
                "fun does not depend on x in a way that autograd can differentiate: compute it "
                "with autograd.numpy, or pass jac"
            )
        return value, gradient.to_dense() if isinstance(gradient, IndexedSlices) else gradient


def _as_value(value: Any) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise TypeError(
            f"fun must return a real number, got dtype {array.dtype} and shape {array.shape}"
        )
    return float(array.reshape(()))


def _as_gradient(gradient: Any, x: NDArray[Any]) -> NDArray[Any]:
    array = np.asarray(gradient)
    if array.shape != x.shape or array.dtype.kind not in "biuf":
        raise ValueError(
            f"the gradient must be real numbers of the shape of x, {x.shape}, got dtype "
            f"{array.dtype} and shape {array.shape}"
        )
    return array.astype(x.dtype, copy=False)
