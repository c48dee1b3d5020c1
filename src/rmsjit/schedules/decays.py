"""The six schedules of tf-keras."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rmsjit.schedules.base import DataSchedule
from rmsjit.schedules.checks import Step, check_boundaries, power_of, step_of
from rmsjit.schedules.restarts import period_of


@dataclass(frozen=True, repr=False)
class _StaircaseDecay(DataSchedule):
    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False
    name: str | None = None

    def _elapsed(self, step: Step) -> float:
        elapsed = step_of(step) / self.decay_steps
        return math.floor(elapsed) if self.staircase else elapsed


@dataclass(frozen=True, repr=False)
class ExponentialDecay(_StaircaseDecay):
    """``initial_learning_rate * decay_rate ** (step / decay_steps)``.

    Parameters
    ----------
    initial_learning_rate : float, the rate of step 0
    decay_steps : float, above 0, the number of steps that multiply the rate by ``decay_rate``
    decay_rate : float, 0 or more (tf-keras accepts less and returns NaN between whole powers)
    staircase : bool, whether to round ``step / decay_steps`` down
    name : str, optional, a label kept in the config

    Examples
    --------
    >>> ExponentialDecay(0.1, decay_steps=1000, decay_rate=0.5)(2000)
    0.025
    """

    def __call__(self, step: Step) -> float:
        return self.initial_learning_rate * power_of(self.decay_rate, self._elapsed(step))


@dataclass(frozen=True, repr=False)
class PiecewiseConstantDecay(DataSchedule):
    """``values[i]`` up to and including step ``boundaries[i]``, then ``values[i + 1]``.

    Parameters
    ----------
    boundaries : list of float, strictly increasing, kept as a tuple
        If empty, the rate is constant (tf-keras fails at the first call).
    values : list of float, one more than boundaries, kept as a tuple
    name : str, optional, a label kept in the config

    Examples
    --------
    >>> PiecewiseConstantDecay([2], [0.1, 0.01]).curve(5)
    array([0.1 , 0.1 , 0.1 , 0.01, 0.01])
    """

    boundaries: Sequence[float]
    values: Sequence[float]
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_boundaries(self.boundaries, "values", len(self.values))

    def __call__(self, step: Step) -> float:
        return float(self.values[bisect_left(self.boundaries, step_of(step))])

    def get_config(self) -> dict[str, Any]:
        lists = {"boundaries": list(self.boundaries), "values": list(self.values)}
        return super().get_config() | lists


@dataclass(frozen=True, repr=False)
class PolynomialDecay(DataSchedule):
    """``end + (initial - end) * (1 - step / decay_steps) ** power``, then ``end``.

    Parameters
    ----------
    initial_learning_rate : float, the rate of step 0
    decay_steps : float, above 0, the number of steps until the end
    end_learning_rate : float, the rate from step ``decay_steps`` on
    power : float, 0 or more (tf-keras accepts less and ends at infinity)
    cycle : bool, whether to start again and again
        The decay lasts until the smallest multiple of ``decay_steps`` that is not below the step:
        after each multiple the rate jumps up, each time less.
    name : str, optional, a label kept in the config

    Examples
    --------
    >>> rate = PolynomialDecay(0.5, decay_steps=100, end_learning_rate=0.25)
    >>> rate(0), rate(50), rate(500)
    (0.5, 0.375, 0.25)
    """

    initial_learning_rate: float
    decay_steps: float
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False
    name: str | None = None

    def __call__(self, step: Step) -> float:
        done = step_of(step) / self.decay_steps
        if self.cycle and done > 1.0:
            done /= math.ceil(done)
        left = power_of(1.0 - done if done < 1.0 else 0.0, self.power)
        return left * self.initial_learning_rate + (1.0 - left) * self.end_learning_rate


@dataclass(frozen=True, repr=False)
class InverseTimeDecay(_StaircaseDecay):
    """``initial_learning_rate / (1 + decay_rate * step / decay_steps)``.

    Parameters
    ----------
    initial_learning_rate : float, the rate of step 0
    decay_steps : float, above 0, the number of steps that add ``decay_rate`` to the denominator
    decay_rate : float, 0 or more (tf-keras accepts less, and the denominator reaches 0)
    staircase : bool, whether to round ``step / decay_steps`` down
    name : str, optional, a label kept in the config

    Examples
    --------
    >>> InverseTimeDecay(0.1, decay_steps=100, decay_rate=0.5)(200)
    0.05
    """

    def __call__(self, step: Step) -> float:
        return self.initial_learning_rate / (1.0 + self.decay_rate * self._elapsed(step))


@dataclass(frozen=True, repr=False)
class CosineDecay(DataSchedule):
    """Half a cosine wave after an optional warmup (arXiv:1608.03983, arXiv:1706.02677).

    ``start * (alpha + (1 - alpha) * (1 + cos(pi * t)) / 2)``, where ``t`` rises from 0 to 1 in
    ``decay_steps`` steps and stays at 1.

    Parameters
    ----------
    initial_learning_rate : float, the rate of step 0
    decay_steps : float, above 0, the length of the wave without the warmup
    alpha : float, the end of the wave as a fraction of its start
    name : str, optional, a label kept in the config
    warmup_target : float, optional, the start of the wave and the end of the warmup
        The warmup is linear, from ``initial_learning_rate``. Without a target there is no warmup:
        the wave starts at step 0 and ``initial_learning_rate``, and ``warmup_steps`` is ignored.
    warmup_steps : float, 0 or more, the length of the warmup

    Examples
    --------
    >>> rate = CosineDecay(0.0, decay_steps=200, alpha=0.5, warmup_target=0.25, warmup_steps=100)
    >>> rate(50), rate(100), rate(300)
    (0.125, 0.25, 0.125)
    """

    initial_learning_rate: float
    decay_steps: float
    alpha: float = 0.0
    name: str | None = None
    warmup_target: float | None = None
    warmup_steps: float = 0

    def __call__(self, step: Step) -> float:
        position, start = step_of(step), self.initial_learning_rate
        if self.warmup_target is not None:
            if position < self.warmup_steps:
                done = position / self.warmup_steps
                return (1.0 - done) * start + done * self.warmup_target
            position, start = position - self.warmup_steps, self.warmup_target
        done = position / self.decay_steps if position < self.decay_steps else 1.0
        wave = 0.5 + 0.5 * math.cos(math.pi * done)
        return start * ((1.0 - self.alpha) * wave + self.alpha)


@dataclass(frozen=True, repr=False)
class CosineDecayRestarts(DataSchedule):
    """Half a cosine wave, repeated (arXiv:1608.03983).

    ``initial_learning_rate * (alpha + (1 - alpha) * m_mul**i * (1 + cos(pi * t)) / 2)`` in period
    ``i``, in which ``t`` rises from 0 to 1 in ``first_decay_steps * t_mul**i`` steps. tf-keras
    computes in float32 and can restart a step late.

    Parameters
    ----------
    initial_learning_rate : float, the rate of step 0
    first_decay_steps : float, above 0, the length of the first period
    t_mul : float, above 0, the length of each period as a multiple of the one before
        Below 1, all periods end by step ``first_decay_steps / (1 - t_mul)``, and from then on the
        rate is ``alpha * initial_learning_rate`` (tf-keras returns NaN).
    m_mul : float, 0 or more, the height of each wave as a multiple of the one before
    alpha : float, the lowest rate as a fraction of ``initial_learning_rate``
    name : str, optional, a label kept in the config

    Examples
    --------
    >>> rate = CosineDecayRestarts(0.1, first_decay_steps=100, m_mul=0.5)
    >>> rate(0), rate(100), rate(300)
    (0.1, 0.05, 0.025)
    """

    initial_learning_rate: float
    first_decay_steps: float
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0
    name: str | None = None

    def __call__(self, step: Step) -> float:
        period, done = period_of(step_of(step) / self.first_decay_steps, self.t_mul)
        wave = power_of(self.m_mul, period) * (0.5 + 0.5 * math.cos(math.pi * done))
        return self.initial_learning_rate * ((1.0 - self.alpha) * wave + self.alpha)
