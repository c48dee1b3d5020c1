"""The one-cycle policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rmsjit.schedules.base import DataSchedule
from rmsjit.schedules.checks import (
    Check,
    Step,
    flag,
    fraction,
    number,
    one_of,
    positive,
    step_of,
)


@dataclass(frozen=True, repr=False)
class OneCycle(DataSchedule):
    """One cycle: up to a large rate, and down to a very small one (arXiv:1708.07120).

    From ``initial = max_learning_rate / div_factor`` at step 0 up to ``max_learning_rate`` at step
    ``pct_start * total_steps - 1``, then down to ``initial / final_div_factor`` at step
    ``total_steps - 1``, which is also the rate of all later steps. After a fraction ``t`` of a
    phase from rate ``a`` to rate ``b``, the rate is ``b + (a - b) * (1 + cos(pi*t)) / 2`` or,
    linearly, ``a + (b - a) * t``.

    Arguments and values are those of ``torch.optim.lr_scheduler.OneCycleLR``. Its momentum cycle
    is another schedule, handed over as a function: ``momentum=lambda step: cycle(step)``.
    ``optax.cosine_onecycle_schedule`` puts the peak and the end one step later.

    Parameters
    ----------
    max_learning_rate : float, the rate at the peak
    total_steps : float, above 0, the length of the cycle
    pct_start : float, between 0 and 1, the fraction of the cycle in which the rate rises
    anneal_strategy : {"cos", "linear"}, the shape of the phases
    div_factor : float, above 0, ``max_learning_rate`` divided by the rate of step 0
    final_div_factor : float, above 0, the rate of step 0 divided by the rate at the end
    three_phase : bool, whether to go down to the rate of step 0 first
        That phase is as long as the rise, so ``pct_start`` must be at most 0.5.
    name : str, optional, a label kept in the config

    Examples
    --------
    >>> rate = OneCycle(0.5, total_steps=101, pct_start=51 / 101, div_factor=4.0)
    >>> rate(0), rate(50), rate(100)
    (0.125, 0.5, 1.25e-05)
    """

    max_learning_rate: float
    total_steps: float
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 10000.0
    three_phase: bool = False
    name: str | None = None

    checks: ClassVar[Mapping[str, Check]] = {
        "max_learning_rate": number,
        "total_steps": positive,
        "pct_start": fraction,
        "anneal_strategy": one_of("cos", "linear"),
        "div_factor": positive,
        "final_div_factor": positive,
        "three_phase": flag,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.three_phase and self.pct_start > 0.5:
            raise ValueError(
                f"pct_start must be at most 0.5 with three_phase=True, got {self.pct_start!r}"
            )

    def __call__(self, step: Step) -> float:
        position, start, rate = step_of(step), 0.0, self.max_learning_rate / self.div_factor
        for end, target in self._phases():
            if position <= end:
                return self._between(rate, target, (position - start) / (end - start or 1.0))
            start, rate = end, target
        return rate

    def _phases(self) -> list[tuple[float, float]]:
        """The last step of each phase, and the rate that it leads to."""
        initial, rise = self.max_learning_rate / self.div_factor, self.pct_start * self.total_steps
        down = [(2.0 * rise - 2.0, initial)] if self.three_phase else []
        last = (self.total_steps - 1.0, initial / self.final_div_factor)
        return [(rise - 1.0, self.max_learning_rate), *down, last]

    def _between(self, rate: float, target: float, done: float) -> float:
        left = 1.0 - done
        if self.anneal_strategy == "cos":
            left = 0.5 + 0.5 * math.cos(math.pi * done)
        return left * rate + (1.0 - left) * target
