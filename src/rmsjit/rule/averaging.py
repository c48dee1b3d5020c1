"""The moving average of the weights: its numbers for each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rmsjit.rule.hyperparameters import as_number, in_unit_interval


@dataclass(frozen=True, eq=False)
class Averaging:
    """How the average of the weights follows them.

    Parameters
    ----------
    momentum : float, default 0.99
        The weight of the old average, between 0 and 1.
    overwrite_frequency : int, optional
        Overwrite the weights by their average every so many steps.

    Raises
    ------
    TypeError, ValueError
        If an argument is of a wrong type or out of range.
    """

    momentum: float = 0.99
    overwrite_frequency: int | None = None

    def __post_init__(self) -> None:
        momentum = in_unit_interval("ema_momentum", as_number("ema_momentum", self.momentum))
        object.__setattr__(self, "momentum", momentum)
        if self.overwrite_frequency is not None:
            steps = positive_integer("ema_overwrite_frequency", self.overwrite_frequency)
            object.__setattr__(self, "overwrite_frequency", steps)

    def momentum_at(self, steps: int) -> float:
        """The weight of the old average after this many steps: the first step copies."""
        return self.momentum if steps else 0.0

    def overwrites_at(self, steps: int) -> bool:
        """Whether the step after this many steps overwrites the weights."""
        frequency = self.overwrite_frequency
        return frequency is not None and (steps + 1) % frequency == 0


def positive_integer(name: str, value: Any) -> int:
    """`value`, checked to be an integer above zero."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer or None, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)
