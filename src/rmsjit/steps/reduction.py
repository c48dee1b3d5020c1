"""What an optimizer asks of a strategy that shares its steps with other processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

from rmsjit.rule.clipping import Clipping
from rmsjit.rule.hyperparameters import StepNumbers
from rmsjit.steps.engine import Stepper


class Strategy(Protocol):
    """Takes the place of `Stepper.step`."""

    def step(
        self,
        stepper: Stepper,
        gradients: tuple[Any, ...],
        variables: tuple[Any, ...],
        clipping: Clipping,
        numbers: Callable[[], StepNumbers],
        *,
        aggregate: bool,
        counter: NDArray[Any] | None = None,
    ) -> bool:
        """Reduce `gradients` over all processes if `aggregate`, and update `variables`.

        Lists may be empty, so that the other processes learn of it.  `counter` counts the steps;
        at the first it becomes that of the first process.

        Returns
        -------
        bool
            False if the step was skipped, as `Stepper.step` may.
        """
