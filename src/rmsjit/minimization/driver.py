"""`optimize`, and the same as a method for ``scipy.optimize.minimize``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmsjit.arrays.dtypes import precision_of
from rmsjit.minimization.bounds import Box
from rmsjit.minimization.callback import report_to
from rmsjit.minimization.objective import Objective
from rmsjit.minimization.run import Limits, Run
from rmsjit.optimizers.keras_legacy import RMSprop
from rmsjit.rule.checks import integer, nonnegative_number

_RATE = 0.01  # of the default optimizer


def optimize(
    fun: Callable[..., Any],
    x0: ArrayLike,
    jac: Any = None,
    *,
    args: Any = (),
    optimizer: RMSprop | None = None,
    bounds: Any = None,
    callback: Callable[..., Any] | None = None,
    maxiter: int = 1000,
    gtol: float = 1e-5,
    xtol: float = 0.0,
) -> Any:
    """Minimise a function of one array, in the manner of ``scipy.optimize.minimize``.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` returns the value to be minimised, a real number.
    x0 : array_like
        The first point, of any shape; float64 unless it is float16 or float32.
    jac : callable or bool, optional
        ``jac(x, *args)`` returns the gradient, of the shape of `x`.  True if `fun` returns the
        value and the gradient.  By default autograd differentiates `fun`, which must then be
        written with NumPy or ``autograd.numpy``.
    args : tuple, optional
        Further arguments of both.
    optimizer : RMSprop, optional
        Sets learning rate, form and all else but a loss scale; by default ``RMSprop(0.01)``.  Each
        run steps a fresh copy of it.
    bounds : scipy.optimize.Bounds or sequence of (min, max), optional
        Each step is followed by a projection into them.  None in a pair stands for no bound.
    callback : callable, optional
        Called after each iteration: ``callback(x)``, or ``callback(intermediate_result=...)`` if
        that is the name of its only parameter.  It ends the run by raising `StopIteration`.
    maxiter : int, default 1000
        The maximum number of steps.
    gtol : float, default 1e-5
        The run ends when no element of the gradient, projected if there are bounds, is larger.
    xtol : float, default 0
        The run ends when no element of x has moved farther in a step, unless its rate is 0.

    Returns
    -------
    OptimizeResult
        SciPy's, or similar if SciPy is not installed: ``x``, the best of all points; ``fun`` and
        ``jac`` there; ``nit``, ``nfev``, ``njev``; ``success``, ``status`` and ``message``.
        ``status`` is 0 if a tolerance was reached, 1 after `maxiter` steps, 2 if the callback
        ended the run, 3 at a value or gradient that is not finite.

    Raises
    ------
    TypeError, ValueError
        If an argument, or what `fun` or `jac` return, is not valid.

    Notes
    -----
    At a constant learning rate RMSprop does not come to rest: it ends up within about a learning
    rate of a minimum.  With a schedule that goes to zero it does.  For smooth functions of few
    variables that are known exactly, SciPy's L-BFGS-B needs far fewer evaluations; RMSprop is for
    noisy or very large ones.

    See Also
    --------
    scipy_method : The same as a method of ``scipy.optimize.minimize``.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsjit
    >>> found = rmsjit.optimize(lambda x: np.sum((x - 3.0) ** 2), np.zeros(2))
    >>> found.success, found.x.round(4)
    (True, array([3., 3.]))
    """
    x = _point(x0)
    run = Run(
        Objective(fun, jac, args),
        _own(optimizer),
        x,
        Box(bounds, x),
        report_to(callback),
        Limits(
            _checked_steps(maxiter),
            nonnegative_number("gtol", gtol),
            nonnegative_number("xtol", xtol),
        ),
    )
    while (ending := run.ending()) is None:
        run.step()
    return run.result(ending)


def scipy_method(optimizer: RMSprop | None = None) -> Callable[..., Any]:
    """RMSprop as a method of ``scipy.optimize.minimize``.

    Parameters
    ----------
    optimizer : RMSprop, optional
        As for `optimize`.

    Returns
    -------
    callable
        For ``method=``.  Its options are ``maxiter``, ``gtol``, ``xtol`` and ``disp``; ``tol``
        sets both tolerances.  Hessians are not used; constraints are refused.

    Raises
    ------
    TypeError
        If `optimizer` is no `RMSprop`.

    See Also
    --------
    optimize : The same without SciPy.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsjit
    >>> from scipy.optimize import minimize, rosen, rosen_der
    >>> method = rmsjit.scipy_method(rmsjit.RMSprop(0.01))
    >>> options = {"maxiter": 5000}
    >>> found = minimize(rosen, np.zeros(3), jac=rosen_der, method=method, options=options)
    >>> abs(found.x - 1).max() < 0.05
    np.True_
    """
    _own(optimizer)

    def rmsprop(
        fun: Callable[..., Any],
        x0: ArrayLike,
        args: Any = (),
        jac: Any = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[..., Any] | None = None,
        tol: float | None = None,
        disp: bool = False,
        **options: Any,
    ) -> Any:
        if constraints is not None and np.size(constraints):
            raise ValueError("constraints must be empty: RMSprop has bounds only")
        if tol is not None:
            options = {"gtol": tol, "xtol": tol, **options}
        found = optimize(
            fun,
            x0,
            jac,
            args=args,
            optimizer=optimizer,
            bounds=bounds,
            callback=callback,
            **options,
        )
        if disp:
            print(f"{found.message} {found.nit} iterations, value {found.fun:g}")
        return found

    return rmsprop


def _point(x0: ArrayLike) -> NDArray[Any]:
    """The first point as an array of floats that is ours."""
    given = np.asarray(x0)
    if given.dtype.kind not in "biuf":
        raise TypeError(f"x0 must be real numbers, got dtype {given.dtype}")
    keeps = given.dtype.kind == "f" and precision_of(given.dtype) is not None
    return np.array(given, given.dtype if keeps else np.float64, order="C")


def _own(optimizer: RMSprop | None) -> RMSprop:
    if optimizer is None:
        return RMSprop(_RATE)
    if not isinstance(optimizer, RMSprop):
        raise TypeError(f"optimizer must be an rmsjit.RMSprop or None, got {optimizer!r}")
    if optimizer.maximize:
        raise ValueError(f"optimizer must not maximize, got {optimizer!r}: negate the function")
    return _begun_again(copy.deepcopy(optimizer))


def _begun_again(optimizer: RMSprop) -> RMSprop:
    """An optimizer without what it knows of other variables, at its first step.

    Without a loss scale too, since gradients of the function are not scaled.
    """
    optimizer._clipping = optimizer._clipping.replaced(loss_scale=None)
    for variable in optimizer.variables_seen:
        optimizer.forget(variable.name)
    if optimizer._accumulator is not None:
        optimizer._accumulator.clear()
    optimizer.iterations = 0
    return optimizer


def _checked_steps(maxiter: Any) -> int:
    steps = integer("maxiter", maxiter)
    if steps < 0:
        raise ValueError(f"maxiter must not be negative, got {maxiter}")
    return steps
