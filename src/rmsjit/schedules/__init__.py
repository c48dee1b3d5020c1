"""Learning-rate schedules: the learning rate as a function of the step.

The six decays, ``serialize`` and ``deserialize`` are those of ``tf_keras.optimizers.schedules``:
arguments, defaults, configs and values are the same, except:

- Rates are computed in float64 and returned as Python floats; they agree with tf-keras to float32
  rounding.
- Arguments are checked when a schedule is made, and schedules are read-only. A wrong argument
  raises ``TypeError``, a number out of range or beyond float32's 1e38 ``ValueError``; the message
  names the argument.
- Arguments for which tf-keras returns NaN or infinity are refused, or the class says what it
  returns instead. Factors stop growing at 1e200. A step outside 0 to 2**64 raises ``ValueError``.

Beside them: ``LinearWarmup``, ``OneCycle``, ``ExponentialDecayRestarts``, ``ReduceOnPlateau``, and
``Join`` and ``Chain``, which make one schedule of several.

Steps, boundaries and every ``*_steps`` argument count optimizer steps.

>>> rate = CosineDecay(0.1, decay_steps=1000, warmup_target=0.5, warmup_steps=100)
>>> rate(0), rate(100), rate(1100)
(0.1, 0.5, 0.0)
"""

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
from rmsjit.schedules.plateau import ReduceOnPlateau
from rmsjit.schedules.restarts import ExponentialDecayRestarts
from rmsjit.schedules.serialization import deserialize, serialize

__all__ = [
    "Chain",
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "ExponentialDecayRestarts",
    "InverseTimeDecay",
    "Join",
    "LearningRateSchedule",
    "LinearWarmup",
    "OneCycle",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "ReduceOnPlateau",
    "deserialize",
    "serialize",
]
