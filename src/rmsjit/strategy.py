"""What an optimizer asks of a strategy that shares its steps with other processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rmsjit.clipping import Clipping
from rmsjit.hyperparameters import StepNumbers
from rmsjit.stepper import Stepper


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
    ) -> bool:
        """Reduce `gradients` over all processes if `aggregate`, and update `variables`.

        Returns
        -------
        bool
            False if the step was skipped, as `Stepper.step` may.
        """
