"""One minimisation: its steps, what ends it, and its best point."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.minimization.bounds import Box
from rmsjit.minimization.callback import Report
from rmsjit.minimization.objective import Objective
from rmsjit.minimization.result import result
from rmsjit.optimizers.keras_legacy import RMSprop
from rmsjit.rule.slot import STOCHASTIC


class Ending(Enum):
    """Why a run has ended: the status of its result, and the message."""

    SMALL_GRADIENT = 0, "Converged: no element of the gradient is larger than gtol."
    SMALL_STEP = 0, "Converged: no element of x has moved by more than xtol."
    LIMIT = 1, "The maximum number of iterations was reached."
    STOPPED = 2, "The callback raised StopIteration."
    NOT_FINITE = 3, "The function or its gradient is not finite."


class Limits(NamedTuple):
    """When a run ends: after so many steps, at such a gradient, at such a step."""

    maxiter: int
    gtol: float
    xtol: float


class Point(NamedTuple):
    """A point, with the value and the gradient there."""

    x: NDArray[Any]
    value: float
    gradient: NDArray[Any]


class Run:
    """The steps from a first point on.

    Parameters
    ----------
    objective : Objective
    optimizer : RMSprop
        Takes the steps.
    x : ndarray
        The first point; changed in place.
    box : Box
    report : callable
        See `rmsjit.minimization.callback.report_to`.
    limits : Limits
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: RMSprop,
        x: NDArray[Any],
        box: Box,
        report: Report,
        limits: Limits,
    ) -> None:
        self._objective, self._optimizer = objective, optimizer
        self._box, self._report, self._limits = box, report, limits
        self._taken, self._moved, self._stopped = 0, math.inf, False
        box.project(x)
        self._now = Point(x, *objective.at(x))
        self._best = _kept(self._now)

    def step(self) -> None:
        """Take one step, and report it."""
        x = self._now.x
        before, tells = x.copy(), self._would_move(x)
        self._optimizer.apply_gradients([(self._now.gradient, x)])
        self._box.project(x)
        self._taken += 1
        moved = float(np.abs(x - before).max(initial=0.0))
        self._moved = moved if moved or tells else math.inf
        self._now = Point(x, *self._objective.at(x))
        if self._now.value < self._best.value or math.isnan(self._best.value):
            self._best = _kept(self._now)
        self._stopped = not self._report(x, self._now.value)

    def _would_move(self, x: NDArray[Any]) -> bool:
        """Whether x moves in the next iteration unless it is at rest.

        It does not at a rate of 0, with which many schedules begin, nor in a call that only adds up
        gradients.  It may not where steps below the precision of x are kept in master weights.
        """
        optimizer = self._optimizer
        is_last = optimizer.accumulated_calls + 1 == (optimizer.gradient_accumulation_steps or 1)
        form = optimizer.form
        keeps_small_steps = x.itemsize == 2 and (form.has_master or form.rounding == STOCHASTIC)
        return is_last and optimizer.current_learning_rate != 0 and not keeps_small_steps

    def ending(self) -> Ending | None:
        """Why the run ends here, or None if it goes on."""
        if self._stopped:
            return Ending.STOPPED
        if not (math.isfinite(self._now.value) and np.isfinite(self._now.gradient).all()):
            return Ending.NOT_FINITE
        if self._box.slope(self._now.x, self._now.gradient) <= self._limits.gtol:
            return Ending.SMALL_GRADIENT
        if self._moved <= self._limits.xtol:
            return Ending.SMALL_STEP
        return Ending.LIMIT if self._taken >= self._limits.maxiter else None

    def result(self, ending: Ending) -> Any:
        """The result, with the best point."""
        status, message = ending.value
        return result(
            x=self._best.x,
            fun=self._best.value,
            jac=self._best.gradient,
            nit=self._taken,
            nfev=self._objective.nfev,
            njev=self._objective.njev,
            success=status == 0,
            status=status,
            message=message,
        )


def _kept(point: Point) -> Point:
    """A copy, which later steps do not change."""
    return Point(point.x.copy(), point.value, point.gradient.copy())
