"""Schedules that start again and again: which period a step is in, and the exponential decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from rmsjit.schedules.base import DataSchedule
from rmsjit.schedules.checks import Check, Step, number, power_of, step_of

_SNAP = 1e-9  # fraction of a period by which rounding may delay a restart


def period_of(elapsed: float, t_mul: float) -> tuple[int, float]:
    """The number of the period after ``elapsed`` first periods, and the fraction of it done.

    Each period is ``t_mul`` times as long as the one before. Below 1, all periods end after a
    finite time; from then on the result is period 0, all of it done.
    """
    growth = t_mul - 1.0
    if growth == 0.0:
        period = math.floor(elapsed + _SNAP)
        return period, elapsed - period
    if elapsed * growth <= _SNAP - 1.0:  # all of the ever shorter periods are over
        return 0, 1.0
    log_ratio = math.log(t_mul)
    period = math.floor(math.log1p(elapsed * growth) / log_ratio + _SNAP)
    before = math.expm1(period * log_ratio) / growth  # 1 + t_mul + ... + t_mul**(period - 1)
    return period, (elapsed - before) / t_mul**period


@dataclass(frozen=True, repr=False)
class ExponentialDecayRestarts(DataSchedule):
    """Exponential decay that starts again and again (warm restarts).

    ``initial_learning_rate * m_mul**i * decay_rate**t`` in period ``i``, in which ``t`` rises from
    0 to 1 in ``first_decay_steps * t_mul**i`` steps. It is to ``ExponentialDecay`` what
    ``CosineDecayRestarts`` is to ``CosineDecay``.

    Parameters
    ----------
    initial_learning_rate : float, the rate of step 0
    first_decay_steps : float, above 0, the length of the first period
    decay_rate : float, 0 or more, what a period multiplies the rate by before the restart
    t_mul : float, 1 or more, the length of each period as a multiple of the one before
    m_mul : float, 0 or more, the start of each period as a multiple of the one before
    name : str, optional, a label kept in the config

    Examples
    --------
    >>> rate = ExponentialDecayRestarts(0.5, first_decay_steps=100, decay_rate=0.25, m_mul=0.5)
    >>> rate(0), rate(50), rate(100), rate(200)
    (0.5, 0.25, 0.25, 0.125)
    """

    initial_learning_rate: float
    first_decay_steps: float
    decay_rate: float
    t_mul: float = 2.0
    m_mul: float = 1.0
    name: str | None = None

    checks: ClassVar[Mapping[str, Check]] = {"t_mul": partial(number, low=1.0)}

    def __call__(self, step: Step) -> float:
        period, done = period_of(step_of(step) / self.first_decay_steps, self.t_mul)
        start = self.initial_learning_rate * power_of(self.m_mul, period)
        return start * power_of(self.decay_rate, max(done, 0.0))  # rounding may restart early
