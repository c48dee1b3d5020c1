"""A schedule that follows a metric: the rate falls when the metric stops improving."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from rmsjit.schedules.base import DataSchedule, LearningRateSchedule
from rmsjit.schedules.checks import (
    Check,
    Step,
    below_one,
    count,
    not_negative,
    one_of,
    power_of,
    step_of,
)
from rmsjit.schedules.combined import Part, part, rate_of


class PlateauState(NamedTuple):
    """What a `ReduceOnPlateau` knows of the metrics so far.

    Attributes
    ----------
    best : float or None
        The best metric; None before there is one.
    bad_updates : int
        How many metrics in a row were no better; a reduction or a cooldown resets it.
    cooldown_left : int
        How many metrics of the cooldown are left.
    reductions : int
        How often the rate was reduced.
    """

    best: float | None = None
    bad_updates: int = 0
    cooldown_left: int = 0
    reductions: int = 0

    @classmethod
    def from_dict(cls, saved: Any) -> PlateauState:
        """The state that a config has; raises `ValueError` if it is not one."""
        if not isinstance(saved, Mapping) or saved.keys() != set(cls._fields):
            raise ValueError(f"state must have {', '.join(cls._fields)}, got {saved!r}")
        try:
            best = saved["best"] if saved["best"] is None else _metric("best", saved["best"])
            counts = {name: count(name, saved[name]) for name in cls._fields[1:]}
        except TypeError as error:
            raise ValueError(f"state: {error}") from None
        return cls(best, **counts)


def _metric(name: str, value: Any) -> float:
    """A metric as a float; it may be infinite or NaN, since a run may diverge."""
    scalar = hasattr(value, "__float__") and not isinstance(value, bool) and np.ndim(value) == 0
    try:
        return float(value if scalar else None)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError):
        raise TypeError(f"{name} must be one number, got {value!r}") from None


@dataclass(frozen=True, repr=False)
class ReduceOnPlateau(DataSchedule):
    """A rate that falls when a metric, such as the validation loss, stops improving.

    ``schedule(step) * factor**reductions``, but a reduction does not take the rate below
    ``min_learning_rate``. ``update(metric)`` counts the metrics that do not beat the best one by
    more than a threshold; when there are more than ``patience`` in a row, ``reductions`` rises by
    one.

    With a number as ``schedule``, rates are those of ``torch.optim.lr_scheduler.ReduceLROnPlateau``
    with ``eps=0``.

    Parameters
    ----------
    schedule : schedule or float, the rate before any reduction; a number is a constant rate
    mode : {"min", "max"}, whether lower or higher metrics are better
    factor : float, from 0 to below 1, what each reduction multiplies the rate by
    patience : int, 0 or more, how many metrics in a row may be no better
    threshold : float, 0 or more, by how much a better metric must be better
    threshold_mode : {"rel", "abs"}, whether the threshold is a fraction of the best metric
        A metric is better if below ``best * (1 - threshold)`` or ``best - threshold``; with
        ``mode="max"``, above ``best * (1 + threshold)`` or ``best + threshold``.
    cooldown : int, 0 or more, how many metrics after a reduction are not counted
    min_learning_rate : float, 0 or more, the lowest rate that reductions lead to
    name : str, optional, a label kept in the config

    Attributes
    ----------
    state : PlateauState
        The best metric and the counts so far. It is part of the config, so copies, pickles and
        checkpoints continue; `rmsjit.load` restores it in place, too.

    Examples
    --------
    >>> rate = ReduceOnPlateau(0.5, factor=0.5, patience=1)
    >>> for loss in [3.0, 2.0, 2.0, 2.0]:
    ...     reduced = rate.update(loss)
    >>> rate(0), reduced, rate.state.reductions
    (0.25, True, 1)

    An optimizer reads it at every step; update it once per epoch:

    >>> import rmsjit
    >>> opt = rmsjit.RMSprop(ReduceOnPlateau(0.1, patience=3))
    >>> opt.learning_rate.update(0.7)
    False
    """

    schedule: Part
    mode: str = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_learning_rate: float = 0.0
    name: str | None = None
    state: PlateauState = field(default=PlateauState(), init=False, repr=False, hash=False)

    checks: ClassVar[Mapping[str, Check]] = {
        "schedule": part,
        "mode": one_of("min", "max"),
        "factor": below_one,
        "patience": count,
        "threshold": not_negative,
        "threshold_mode": one_of("rel", "abs"),
        "cooldown": count,
        "min_learning_rate": not_negative,
    }

    def __call__(self, step: Step) -> float:
        rate = rate_of(self.schedule, step_of(step))
        reduced = rate * power_of(self.factor, self.state.reductions)
        return max(reduced, min(rate, self.min_learning_rate))

    def update(self, metric: Any) -> bool:
        """Take note of a metric, such as the loss after an epoch.

        Parameters
        ----------
        metric : float or 0-d array
            NaN is no better than anything.

        Returns
        -------
        bool
            Whether the rate was reduced.

        Raises
        ------
        TypeError
            If it is not one number.
        """
        best, bad, cooldown, reductions = self.state
        value = _metric("metric", metric)
        if self._is_better(value, best):
            best, bad = value, 0
        else:
            bad += 1
        if cooldown > 0:
            cooldown, bad = cooldown - 1, 0
        reduces = bad > self.patience
        if reduces:
            bad, cooldown, reductions = 0, self.cooldown, reductions + 1
        self.set_state(PlateauState(best, bad, cooldown, reductions))
        return reduces

    def set_state(self, state: PlateauState) -> None:
        """Continue from the state of another one with the same arguments."""
        object.__setattr__(self, "state", state)

    def _is_better(self, value: float, best: float | None) -> bool:
        sign = 1.0 if self.mode == "min" else -1.0
        if best is None:
            return sign * value < math.inf
        if self.threshold_mode == "rel":
            return sign * value < sign * best * (1.0 - sign * self.threshold)
        return sign * value < sign * best - self.threshold

    def get_config(self) -> dict[str, Any]:
        """Return the arguments and the state."""
        return super().get_config() | {"state": self.state._asdict()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make a schedule from the result of ``get_config``, with its state."""
        arguments = dict(config)
        state = PlateauState.from_dict(arguments.pop("state", PlateauState()._asdict()))
        schedule = cls(**arguments)
        schedule.set_state(state)
        return schedule


def plateaus_in(value: Any) -> Iterator[ReduceOnPlateau]:
    """The plateaus in a schedule and in those that it is made of, from the outside to the inside.

    A schedule is made of what its config has; `value` may also be a list of schedules, or
    something else, which has none.
    """
    if isinstance(value, ReduceOnPlateau):
        yield value
    if isinstance(value, LearningRateSchedule):
        try:
            value = list(value.get_config().values())
        except NotImplementedError:  # a class of the user's that can't be serialised
            return
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from plateaus_in(item)
