"""How steps are taken, whatever the rule."""

from typing import Any, NamedTuple

from rmsjit.steps.nonfinite import PROPAGATE
from rmsjit.steps.strategy import Strategy


class StepSettings(NamedTuple):
    """Checked arguments of an optimizer that say how its engine takes steps.

    Attributes
    ----------
    exact : bool
        Whether rows that a sparse gradient does not name are updated as by a zero gradient.
    nonfinite : {"propagate", "skip", "raise"}
        What to do about a NaN or an infinity in a gradient.
    track_norms : bool
        Whether every step computes the norm of its gradients.
    num_threads : int or None
        The most threads to use; None for as many as the process may keep busy.
    seed : int
        Of the random bits of stochastic rounding.
    strategy : Strategy or None
        Shares the steps with other processes.
    place : int
        The number of the optimizer among those of the strategy.
    """

    exact: bool = False
    nonfinite: str = PROPAGATE
    track_norms: bool = False
    num_threads: int | None = None
    seed: int = 0
    strategy: Strategy | None = None
    place: int = 0

    def used(self) -> dict[str, Any]:
        """The constructor's arguments that differ from their defaults, for a configuration."""
        given = {
            "sparse": ("exact" if self.exact else "rows", "rows"),
            "nonfinite": (self.nonfinite, PROPAGATE),
            "track_norms": (self.track_norms, False),
            "num_threads": (self.num_threads, None),
        }
        return {name: value for name, (value, default) in given.items() if value != default}
