"""The curve of a schedule: the steps that show its shape, and the rates there."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from rmsjit.schedules.base import LearningRateSchedule
from rmsjit.schedules.combined import Chain, Join, LinearWarmup
from rmsjit.schedules.decays import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    PiecewiseConstantDecay,
    PolynomialDecay,
)
from rmsjit.schedules.one_cycle import OneCycle
from rmsjit.schedules.plateau import PlateauState, ReduceOnPlateau, plateaus_in
from rmsjit.schedules.restarts import ExponentialDecayRestarts

MOST_STEPS = 2**53  # all exact in float64
_MOST_UPDATES = 2**20  # of a metric, which take a microsecond each
_MOST_POINTS = 2001

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]


def natural_span(schedule: LearningRateSchedule) -> int:
    """The number of steps that shows the characteristic shape of the schedule."""
    return max(math.ceil(min(_span(schedule), MOST_STEPS - 1)) + 1, 10)


def _span(schedule: Any) -> float:
    match schedule:
        case PiecewiseConstantDecay():
            return 1.25 * max(schedule.boundaries, default=0.0)
        case CosineDecayRestarts() | ExponentialDecayRestarts():
            return schedule.first_decay_steps * sum(schedule.t_mul**i for i in range(4)) - 1
        case CosineDecay():
            warmup = 0 if schedule.warmup_target is None else schedule.warmup_steps
            return 1.1 * (warmup + schedule.decay_steps)
        case PolynomialDecay():
            return schedule.decay_steps * (3.0 if schedule.cycle else 1.1)
        case ExponentialDecay() | InverseTimeDecay():
            return 5.0 * schedule.decay_steps
        case OneCycle():
            return 1.1 * schedule.total_steps
        case LinearWarmup():
            return max(
                1.5 * schedule.warmup_steps, schedule.warmup_steps + _span(schedule.schedule)
            )
        case ReduceOnPlateau():
            return max(_span(schedule.schedule), 4.0 * (schedule.patience + schedule.cooldown + 2))
        case Join():
            before = schedule.boundaries[-1] if schedule.boundaries else 0.0
            return max(1.25 * before, before + _span(schedule.schedules[-1]))
        case Chain():
            return max(map(_span, schedule.schedules))
        case _:
            return 0.0


def spread(count: int, most: int = _MOST_POINTS) -> Steps:
    """The steps 0 to ``count - 1``, thinned out evenly to what a drawing needs."""
    points = np.linspace(0, count - 1, min(count, most))
    return points.round().astype(np.int64)


def rates_of(schedule: LearningRateSchedule, steps: Steps) -> Floats:
    """The rates of increasing steps, where each step is followed by a metric that is no better.

    A plateau starts as if it had seen no metric yet.

    Raises
    ------
    ValueError
        If that would be too many metrics.
    """
    schedule = copy.deepcopy(schedule)
    plateaus = list(plateaus_in(schedule))
    if not plateaus:
        return schedule.curve(steps)
    if steps[-1] > _MOST_UPDATES:
        raise ValueError(f"steps must be at most {_MOST_UPDATES} with a metric, got {steps[-1]}")
    for plateau in plateaus:
        plateau.set_state(PlateauState())
    rates = []
    for step in range(int(steps[-1]) + 1):
        rates.append(schedule(step))
        for plateau in plateaus:
            plateau.update(0.0)
    return np.array(rates)[steps]


def is_stairs(rates: Floats) -> bool:
    """Whether a curve mostly stays where it is, and so is drawn as stairs."""
    return len(rates) > 1 and bool(np.mean(np.diff(rates) == 0.0) > 0.5)
