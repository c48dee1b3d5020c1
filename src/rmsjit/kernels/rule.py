"""The RMSprop rule, for one element: the only place where it stands.

With ``g`` the clipped gradient and ``h`` the numbers of the step::

    rms <- rho*rms + (1 - rho)*g*g
    mg  <- rho*mg  + (1 - rho)*g                          centered
    v    = max(rms - mg*mg, 0)   or   rms                 (complex: no max)
    u    = lr*g / (sqrt(v + eps_root) + eps)
    momentum <- momentum_factor*momentum + u ;  variable <- variable - momentum
    variable <- variable - u                              without a momentum slot

Every published form of RMSprop that rmsjit speaks is a setting of it: epsilon is two numbers, of
which one is zero, and a slot that a form does not have is ``None``, which Numba removes when it
compiles.  Drivers choose what an index is: an element of a dense variable, or of a sparse row.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from rmsjit.kernels.scalars import at_most, load, nonnegative, store, weighted_square

RULE_FLAGS: dict[str, Any] = {
    "error_model": "numpy",
    "nogil": True,
}  # a zero check would block vectorisation


class RuleNumbers(NamedTuple):
    """The numbers of one step, in the type that the rule computes in.

    A Python float among them would silently double the width of a float32 loop, and so would
    ``1 - rho`` inside it, so both arrive ready made.
    """

    lr: float
    rho: float
    one_minus_rho: float
    momentum: float
    eps_root: float
    eps: float
    clipvalue: float
    largest: float
    rms_bound: float


@njit(**RULE_FLAGS)
def read_numbers(numbers):
    """Unpack the array of numbers into scalars, which the loop then keeps in registers."""
    return RuleNumbers(
        numbers[0],
        numbers[1],
        numbers[2],
        numbers[3],
        numbers[4],
        numbers[5],
        numbers[6],
        numbers[7],
        numbers[8],
    )


@njit(**RULE_FLAGS)
def update_element(i, g, variable, rms, mg, momentum, h):
    """Apply the rule to element `i` of a variable and its slots."""
    # Neither an average that has overflowed nor a square that would may meet a factor of 0.
    mean_square = h.rho * at_most(load(rms, i), h.rms_bound) + weighted_square(h.one_minus_rho, g)
    store(rms, i, mean_square)
    variance = mean_square
    if mg is not None:
        mean = h.rho * load(mg, i) + h.one_minus_rho * g
        store(mg, i, mean)
        # Rounding can leave the difference below zero, and two overflowed terms would give NaN.
        variance = nonnegative(mean_square - at_most(mean * mean, h.largest))
    step = h.lr * (g / (np.sqrt(variance + h.eps_root) + h.eps))  # lr * g could overflow
    if momentum is not None:
        step = h.momentum * load(momentum, i) + step
        store(momentum, i, step)
    store(variable, i, load(variable, i) - step)
