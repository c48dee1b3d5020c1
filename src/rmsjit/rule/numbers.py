"""The numbers of one step: as hyperparameters give them, and as kernels read them.

`StepNumbers` are plain floats, which processes can send to each other; `RuleNumbers` are what the
compiled rule reads, in the dtype of its arithmetic.  To add a number, add a field to both and a
line to `packed`.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.rule.form import Form


class StepNumbers(NamedTuple):
    """The numbers of one step, as Python floats.

    Attributes
    ----------
    learning_rate : float
        With schedule and decay applied.
    rho, momentum : float
        Between 0 and 1.
    epsilon : float
        Positive.
    weight_decay : float
    clip_weights : float
        The bound on every element of a variable; infinite if there is none.
    step : float
        The number of the step, from 1.
    ema_momentum : float
        The weight of the old average of the variable; 0 copies the variable.
    ema_overwrites : float
        1 if the average then overwrites the variable, 0 if not.
    """

    learning_rate: float
    rho: float
    momentum: float
    epsilon: float
    weight_decay: float = 0.0
    clip_weights: float = math.inf
    step: float = 1.0
    ema_momentum: float = 0.0
    ema_overwrites: float = 0.0


class RuleNumbers(NamedTuple):
    """What the compiled rule reads, in the type of its arithmetic.

    A Python float, or ``1 - rho`` inside the loop, would silently turn a float32 loop into a
    float64 loop, so all numbers are computed before it.

    Attributes
    ----------
    lr, rho, one_minus_rho, momentum, eps
    keep : float
        What a variable is multiplied by before the step: 1 without decoupled weight decay.
    decay : float
        The factor of weight decay that is not in `keep`.
    correction : float
        What bias correction divides the averages by.
    largest : float
        The largest finite number.
    rms_bound : float
        ``rms`` is reduced to this before it is multiplied by rho: infinity times 0 is NaN.
    clipvalue, clip_weights : float
        Bounds on elements of gradients and of variables.
    ema_momentum, one_minus_ema_momentum, ema_overwrites
        For the average of the variable.
    """

    lr: float
    rho: float
    one_minus_rho: float
    momentum: float
    eps: float
    keep: float
    decay: float
    correction: float
    largest: float
    rms_bound: float
    clipvalue: float
    clip_weights: float
    ema_momentum: float
    one_minus_ema_momentum: float
    ema_overwrites: float


def packed(numbers: StepNumbers, clipvalue: float, computing: str, form: Form) -> NDArray[Any]:
    """The fields of `RuleNumbers` for one group of variables.

    The form says whether ``1 - rho`` is computed from the rounded rho in the dtype of the
    arithmetic, as in TensorFlow, or in float64.

    Returns
    -------
    ndarray, shape (1, fields)
        In the dtype of the arithmetic.

    Raises
    ------
    ValueError
        If epsilon rounds to zero in that dtype, so that a zero gradient would give 0/0; or if the
        learning rate, epsilon or weight decay overflows.
    """
    dtype = np.dtype(computing).type
    with np.errstate(all="ignore"):  # a bound may overflow to infinity
        rho, epsilon, rate = dtype(numbers.rho), dtype(numbers.epsilon), numbers.learning_rate
        for name in ("learning_rate", "epsilon", "weight_decay"):
            given = getattr(numbers, name)
            if not np.isfinite(dtype(given)):
                raise ValueError(
                    f"{name} must be finite in the dtype of the arithmetic, got {given}, which "
                    f"overflows in {computing}"
                )
        if form.bias_correction and numbers.rho == 1:
            raise ValueError("rho must be below 1 for a form with bias correction, got 1.0")
        if not epsilon > 0:
            raise ValueError(
                f"epsilon must not vanish in the dtype of the arithmetic, got {numbers.epsilon}, "
                f"which is 0 in {computing}"
            )
        rule = RuleNumbers(
            lr=rate,
            rho=numbers.rho,
            one_minus_rho=dtype(1) - rho if form.one_minus_rho == "rounded" else 1 - numbers.rho,
            momentum=numbers.momentum,
            eps=numbers.epsilon,
            keep=kept(numbers, form),
            decay=numbers.weight_decay,
            correction=1 - numbers.rho**numbers.step if form.bias_correction else 1.0,
            largest=np.finfo(dtype).max,
            rms_bound=np.inf if rho else np.finfo(dtype).max,
            clipvalue=clipvalue,
            clip_weights=numbers.clip_weights,
            ema_momentum=numbers.ema_momentum,
            one_minus_ema_momentum=dtype(1) - dtype(numbers.ema_momentum),
            ema_overwrites=numbers.ema_overwrites,
        )
        return np.array([rule], dtype)


def kept(numbers: StepNumbers, form: Form) -> float:
    """What a variable is multiplied by before the step."""
    if form.weight_decay == "decoupled":
        return 1.0 - numbers.learning_rate * numbers.weight_decay
    if form.weight_decay == "independent":
        return 1.0 - numbers.weight_decay
    return 1.0


def lapsed(rule: NDArray[Any], form: Form) -> NDArray[np.float64]:
    """What a step with a zero gradient does, from the packed numbers of one group.

    Returns
    -------
    float64 array, shape (4,)
        The factors of averages, momentum and variable, and how far the variable moves per unit of
        the new momentum.
    """
    h = RuleNumbers(*rule.astype(np.float64).tolist())
    move = h.momentum if form.nesterov else 1.0
    move *= h.lr if form.learning_rate == "outside" else 1.0
    keep = 1.0 - h.decay * h.lr if form.weight_decay == "subtracted" else h.keep
    return np.array([h.rho, h.momentum, keep, move])
