"""The moving average of the weights: its numbers for each step."""

from __future__ import annotations

from rmsjit.rule.checks import as_number, in_unit_interval, positive_integer


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

    def __init__(self, momentum: float = 0.99, overwrite_frequency: int | None = None) -> None:
        self.momentum: float = in_unit_interval("ema_momentum", as_number("ema_momentum", momentum))
        self.overwrite_frequency = overwrite_frequency
        if overwrite_frequency is not None:
            self.overwrite_frequency = positive_integer(
                "ema_overwrite_frequency", overwrite_frequency, "an integer or None"
            )

    def momentum_at(self, steps: int) -> float:
        """The weight of the old average after this many steps: the first step copies."""
        return self.momentum if steps else 0.0

    def overwrites_at(self, steps: int) -> bool:
        """Whether the step after this many steps overwrites the weights."""
        frequency = self.overwrite_frequency
        return frequency is not None and (steps + 1) % frequency == 0
