"""Learning-rate schedules: the learning rate as a function of the step.

Arguments, defaults, configs and values are those of ``tf_keras.optimizers.schedules``, except:

- Rates are computed in float64 and returned as Python floats; they agree with tf-keras to float32
  rounding.
- Arguments are checked when a schedule is made, and schedules are read-only. A wrong argument
  raises ``TypeError``, a number out of range or beyond float32's 1e38 ``ValueError``; the message
  names the argument.
- Arguments for which tf-keras returns NaN or infinity are refused, or the class says what it
  returns instead. Factors stop growing at 1e200. A step outside 0 to 2**64 raises ``ValueError``.

Steps, boundaries and every ``*_steps`` argument count optimizer steps.

>>> rate = CosineDecay(0.1, decay_steps=1000, warmup_target=0.5, warmup_steps=100)
>>> rate(0), rate(100), rate(1100)
(0.1, 0.5, 0.0)
"""

from __future__ import annotations

import math
import numbers
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Any, Self, SupportsFloat, SupportsIndex

import numpy as np
import numpy.typing as npt

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "deserialize",
    "serialize",
]

_LARGEST, _SMALLEST = 1e38, 1e-38  # no formula below overflows within this range
_LARGEST_STEP, _LARGEST_GROWTH = 2.0**64, 1e200
_SNAP = 1e-9  # fraction of a period by which rounding may delay a restart
Step = SupportsFloat | SupportsIndex


class LearningRateSchedule:
    """Base class: define ``__call__(step)``, and ``get_config()`` to make it serialisable.

    Examples
    --------
    >>> class Reciprocal(LearningRateSchedule):
    ...     def __call__(self, step):
    ...         return 1 / (step + 1)
    >>> Reciprocal().curve([0, 1, 3])
    array([1.  , 0.5 , 0.25])
    """

    def __call__(self, step: Step) -> float:
        """Return the learning rate after ``step`` steps were taken."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__(step)")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the schedule by name."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_config()")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make a schedule from the result of ``get_config``."""
        return cls(**config)

    def curve(self, steps: SupportsIndex | npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the learning rates of many steps.

        Parameters
        ----------
        steps
            A count ``n`` for the steps 0 to ``n - 1``, or an array-like of steps; the result has
            its shape. ``TypeError`` for anything else, ``ValueError`` below 0.
        """
        array = np.asarray(steps)
        if array.dtype.kind not in ("iuf" if array.ndim else "iu"):
            raise TypeError(f"steps must be a count or an array of numbers, got {steps!r}")
        if array.ndim == 0:
            if array < 0:
                raise ValueError(f"steps must be a count of 0 or more, got {steps!r}")
            array = np.arange(int(array))
        rates = (float(self(step)) for step in array.ravel().tolist())
        return np.fromiter(rates, np.float64, array.size).reshape(array.shape)


@dataclass(frozen=True)
class _Decay(LearningRateSchedule):
    """Base of the six schedules: the fields are the config, and each is checked by its name."""

    def __post_init__(self) -> None:
        for name, value in _Decay.get_config(self).items():
            if check := _CHECKS.get(name):
                object.__setattr__(self, name, check(name, value))

    def get_config(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class _StaircaseDecay(_Decay):
    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False
    name: str | None = None

    def _elapsed(self, step: Step) -> float:
        elapsed = _step(step) / self.decay_steps
        return math.floor(elapsed) if self.staircase else elapsed


@dataclass(frozen=True)
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
        return self.initial_learning_rate * _power(self.decay_rate, self._elapsed(step))


@dataclass(frozen=True)
class PiecewiseConstantDecay(_Decay):
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
        expected, got = len(self.boundaries) + 1, len(self.values)
        if got != expected:
            raise ValueError(f"values must be {expected}, one more than boundaries, got {got}")
        if any(low >= high for low, high in pairwise(self.boundaries)):
            raise ValueError(f"boundaries must be strictly increasing, got {self.boundaries}")

    def __call__(self, step: Step) -> float:
        return float(self.values[bisect_left(self.boundaries, _step(step))])

    def get_config(self) -> dict[str, Any]:
        lists = {"boundaries": list(self.boundaries), "values": list(self.values)}
        return super().get_config() | lists


@dataclass(frozen=True)
class PolynomialDecay(_Decay):
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
        done = _step(step) / self.decay_steps
        if self.cycle and done > 1.0:
            done /= math.ceil(done)
        left = _power(1.0 - done if done < 1.0 else 0.0, self.power)
        return left * self.initial_learning_rate + (1.0 - left) * self.end_learning_rate


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class CosineDecay(_Decay):
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
        position, start = _step(step), self.initial_learning_rate
        if self.warmup_target is not None:
            if position < self.warmup_steps:
                done = position / self.warmup_steps
                return (1.0 - done) * start + done * self.warmup_target
            position, start = position - self.warmup_steps, self.warmup_target
        done = position / self.decay_steps if position < self.decay_steps else 1.0
        wave = 0.5 + 0.5 * math.cos(math.pi * done)
        return start * ((1.0 - self.alpha) * wave + self.alpha)


@dataclass(frozen=True)
class CosineDecayRestarts(_Decay):
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
        period, done = self._period(_step(step) / self.first_decay_steps)
        wave = _power(self.m_mul, period) * (0.5 + 0.5 * math.cos(math.pi * done))
        return self.initial_learning_rate * ((1.0 - self.alpha) * wave + self.alpha)

    def _period(self, elapsed: float) -> tuple[int, float]:
        """The number of the period after ``elapsed`` first periods, and the fraction of it done."""
        growth = self.t_mul - 1.0
        if growth == 0.0:
            period = math.floor(elapsed + _SNAP)
            return period, elapsed - period
        if elapsed * growth <= _SNAP - 1.0:  # all of the ever shorter periods are over
            return 0, 1.0
        log_ratio = math.log(self.t_mul)
        period = math.floor(math.log1p(elapsed * growth) / log_ratio + _SNAP)
        before = math.expm1(period * log_ratio) / growth  # 1 + t_mul + ... + t_mul**(period - 1)
        return period, (elapsed - before) / self.t_mul**period


def serialize(
    learning_rate_schedule: LearningRateSchedule, use_legacy_format: bool = False
) -> dict[str, Any]:
    """Describe a schedule as tf-keras does: a dictionary, which is valid JSON if the config is.

    ``use_legacy_format`` keeps only ``class_name`` and ``config``. Raises ``TypeError`` if
    ``learning_rate_schedule`` is not a schedule.
    """
    cls = type(learning_rate_schedule)
    if not issubclass(cls, LearningRateSchedule):
        raise TypeError(f"learning_rate_schedule must be a schedule, got a {cls.__name__}")
    built_in = _BUILT_IN.get(cls.__name__) is cls
    legacy = {"class_name": cls.__name__, "config": _plain(learning_rate_schedule.get_config())}
    if use_legacy_format:
        return legacy
    module = "keras.optimizers.schedules" if built_in else cls.__module__
    head = {"module": None if module == "__main__" else module}
    return head | legacy | {"registered_name": None if built_in else cls.__name__}


def deserialize(
    config: Mapping[str, Any],
    custom_objects: Mapping[str, Any] | None = None,
    use_legacy_format: bool = False,
) -> LearningRateSchedule:
    """Make a schedule from the result of ``serialize``, here or in tf-keras, in either format.

    ``custom_objects`` maps class names or registered names to further schedule classes; no module
    is ever imported. Raises ``ValueError`` for an unknown class (tf-keras returns its name), and
    ``TypeError`` for a dictionary or a custom object of the wrong kind.

    >>> deserialize(serialize(ExponentialDecay(0.1, 100, 0.96))).decay_steps
    100
    """
    if not isinstance(config, Mapping) or not {"class_name", "config"} <= config.keys():
        raise TypeError(f"config must be a dictionary that serialize() makes, got {config!r}")
    name, registered_name = config["class_name"], config.get("registered_name")
    known = (_BUILT_IN if registered_name is None else {}) | dict(custom_objects or {})
    cls = known.get(registered_name, known.get(name))
    if cls is None:
        raise ValueError(f"config must name a known class or one of custom_objects, got {name!r}")
    if not (isinstance(cls, type) and issubclass(cls, LearningRateSchedule)):
        raise TypeError(f"custom_objects must have a schedule class for {name!r}, got {cls!r}")
    return cls.from_config(config["config"])


def _plain(value: Any) -> Any:
    """Convert what JSON does not know: NumPy scalars and arrays, and schedules."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(map(_plain, value))
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return serialize(value) if isinstance(value, LearningRateSchedule) else value


def _step(step: Step) -> float:
    try:
        value = float(step if type(step) is int or _is_real(step) else None)  # type: ignore[arg-type]
    except OverflowError:
        value = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"step must be one number (curve takes many), got {step!r}") from None
    if 0.0 <= value <= _LARGEST_STEP:
        return value
    raise ValueError(f"step must be between 0 and 2**64, got {step!r}")


def _is_real(value: Any) -> bool:
    """Whether a value has a real number type; `float` would also accept text and drop 1j."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "iuf"
    return hasattr(value, "__float__") or hasattr(value, "__index__")


def _power(base: float, exponent: float) -> float:
    try:
        power = math.pow(base, exponent)
    except OverflowError:
        power = math.inf
    if power < _LARGEST_GROWTH:  # min() would cost as much as the rest of this function
        return power
    return _LARGEST_GROWTH


def _number(name: str, value: Any, low: float = -_LARGEST) -> float:
    if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real:
        raise TypeError(f"{name} must be a real number, got {value!r}")
    if not low <= value <= _LARGEST:
        raise ValueError(f"{name} must be between {low:g} and 1e38, got {value!r}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    items = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(items, Sequence):
        raise TypeError(f"{name} must be a list of numbers, got {value!r}")
    return tuple(_number(f"{name}[{i}]", item) for i, item in enumerate(items))


def _kind(name: str, value: Any, kinds: tuple[type, ...], expected: str) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    return value


_POSITIVE, _NOT_NEGATIVE = partial(_number, low=_SMALLEST), partial(_number, low=0.0)
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(["initial_learning_rate", "end_learning_rate", "alpha"], _number),
    **dict.fromkeys(["decay_rate", "power", "m_mul", "warmup_steps"], _NOT_NEGATIVE),
    **dict.fromkeys(["decay_steps", "first_decay_steps", "t_mul"], _POSITIVE),
    **dict.fromkeys(["staircase", "cycle"], partial(_kind, kinds=(bool,), expected="a bool")),
    **dict.fromkeys(["boundaries", "values"], _numbers),
    "warmup_target": lambda name, value: None if value is None else _number(name, value),
    "name": partial(_kind, kinds=(str, type(None)), expected="a string or None"),
}
_BUILT_IN: dict[str | None, Any] = {
    name: globals()[name] for name in __all__ if name.endswith(("Decay", "DecayRestarts"))
}
