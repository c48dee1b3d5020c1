"""Schedules made of schedules: a warmup before one, one after the other, and their product."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rmsjit.schedules.base import DataSchedule, LearningRateSchedule
from rmsjit.schedules.checks import Check, Step, check_boundaries, number, step_of

Part = LearningRateSchedule | float


def part(name: str, value: Any) -> Part:
    """A schedule, or a number for a constant rate."""
    if isinstance(value, LearningRateSchedule):
        return value
    try:
        return number(name, value)
    except TypeError:
        raise TypeError(f"{name} must be a schedule or a number, got {value!r}") from None


def parts(name: str, value: Any) -> tuple[Part, ...]:
    """A list of at least one schedule or number, as a tuple."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be a list of schedules and numbers, got {value!r}")
    if not value:
        raise ValueError(f"{name} must have at least one schedule, got {value!r}")
    return tuple(part(f"{name}[{i}]", item) for i, item in enumerate(value))


def rate_of(schedule: Part, position: float) -> float:
    """The rate of a schedule or number at a step, which is handed on as an int where it is one."""
    if not isinstance(schedule, LearningRateSchedule):
        return float(schedule)
    return float(schedule(int(position) if position.is_integer() else position))


@dataclass(frozen=True, repr=False)
class LinearWarmup(DataSchedule):
    """A linear warmup, then any other schedule from its step 0 (arXiv:1706.02677).

    ``initial + (schedule(0) - initial) * step / warmup_steps`` up to step ``warmup_steps``, from
    there on ``schedule(step - warmup_steps)``.

    Parameters
    ----------
    schedule : schedule or float, what the warmup leads to; a number is a constant rate
    warmup_steps : float, 0 or more, the length of the warmup
    initial_learning_rate : float, the rate of step 0
    name : str, optional, a label kept in the config

    Examples
    --------
    >>> from rmsjit.schedules import InverseTimeDecay, LinearWarmup
    >>> rate = LinearWarmup(InverseTimeDecay(0.5, 100, 1.0), warmup_steps=10)
    >>> rate(0), rate(5), rate(10), rate(110)
    (0.0, 0.25, 0.5, 0.25)
    """

    schedule: Part
    warmup_steps: float
    initial_learning_rate: float = 0.0
    name: str | None = None

    checks: ClassVar[Mapping[str, Check]] = {"schedule": part}

    def __call__(self, step: Step) -> float:
        position = step_of(step)
        if position >= self.warmup_steps:
            return rate_of(self.schedule, position - self.warmup_steps)
        done = position / self.warmup_steps
        return (1.0 - done) * self.initial_learning_rate + done * rate_of(self.schedule, 0.0)


@dataclass(frozen=True, repr=False)
class Join(DataSchedule):
    """One schedule after the other, each from its step 0.

    ``schedules[0](step)`` before step ``boundaries[0]``, then
    ``schedules[i](step - boundaries[i - 1])`` from step ``boundaries[i - 1]`` on, as
    ``optax.join_schedules`` and ``torch.optim.lr_scheduler.SequentialLR``. At a boundary the next
    schedule begins, whereas ``PiecewiseConstantDecay`` still has the value before it.

    Parameters
    ----------
    schedules : list of schedules and floats, kept as a tuple; a number is a constant rate
    boundaries : list of float, one less than schedules, above 0, strictly increasing
    name : str, optional, a label kept in the config

    Examples
    --------
    >>> from rmsjit.schedules import InverseTimeDecay, Join
    >>> Join([0.5, InverseTimeDecay(0.25, 1, 1.0)], [2]).curve(4)
    array([0.5  , 0.5  , 0.25 , 0.125])
    """

    schedules: Sequence[Part]
    boundaries: Sequence[float]
    name: str | None = None

    checks: ClassVar[Mapping[str, Check]] = {"schedules": parts}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_boundaries(self.boundaries, "schedules", len(self.schedules))
        if self.boundaries and self.boundaries[0] <= 0:
            raise ValueError(f"boundaries must be above 0, got {self.boundaries}")

    def __call__(self, step: Step) -> float:
        position = step_of(step)
        index = bisect_right(self.boundaries, position)
        start = self.boundaries[index - 1] if index else 0.0
        return rate_of(self.schedules[index], position - start)

    def get_config(self) -> dict[str, Any]:
        lists = {"schedules": list(self.schedules), "boundaries": list(self.boundaries)}
        return super().get_config() | lists


@dataclass(frozen=True, repr=False)
class Chain(DataSchedule):
    """The product of several schedules at the same step.

    ``schedules[0](step) * schedules[1](step) * ...``: one of them is the rate and the others are
    factors, such as a decay on top of a cycle. torch's ``ChainedScheduler`` does the same with
    schedulers that multiply the rate.

    Parameters
    ----------
    schedules : list of schedules and floats, kept as a tuple; a number is a constant factor
    name : str, optional, a label kept in the config

    Examples
    --------
    >>> from rmsjit.schedules import Chain, CosineDecay, PiecewiseConstantDecay
    >>> rate = Chain([CosineDecay(0.5, 100), PiecewiseConstantDecay([10], [1.0, 0.5])])
    >>> rate(0), rate(50)
    (0.5, 0.125)
    """

    schedules: Sequence[Part]
    name: str | None = None

    checks: ClassVar[Mapping[str, Check]] = {"schedules": parts}

    def __call__(self, step: Step) -> float:
        position = step_of(step)
        return math.prod(rate_of(schedule, position) for schedule in self.schedules)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"schedules": list(self.schedules)}
