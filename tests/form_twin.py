"""A second twin of the rule: every operation in the order that a form says, to the bit.

`reference.py` is written from the formulas and says what the numbers are; this one says which bits.
It is for real numbers.
"""

from fractions import Fraction

import numpy as np


def fma(a, b, c):
    """``a*b + c``, rounded once; of float32 but for one case in 2**29, as the product is exact."""
    if np.result_type(a, b, c) == np.float32:
        return (np.float64(a) * np.float64(b) + np.float64(c)).astype(np.float32)
    return _exact_fma(a, b, c).astype(np.float64)


def _exact_fma_of_numbers(a, b, c):
    return float(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


_exact_fma = np.frompyfunc(_exact_fma_of_numbers, 3, 1)


AVERAGES = {
    ("weighted", False): lambda a, b, r, c: r * a + c * b,
    ("weighted", True): lambda a, b, r, c: fma(c, b, r * a),
    ("difference", False): lambda a, b, r, c: a + (b - a) * c,
    ("difference", True): lambda a, b, r, c: fma(c, b - a, a),
}
QUOTIENTS = {
    "rate_last": lambda lr, g, d: lr * (g / d),
    "rate_first": lambda lr, g, d: (lr * g) / d,
    "reciprocal": lambda lr, g, d: lr * (g * (1 / d)),
    "rate_over": lambda lr, g, d: (lr / d) * g,
}


def used(form, name, number):
    """A number as the form has it used."""
    return float(np.float32(number)) if name in form.float32_numbers else number


def twin_step(form, state, g, numbers, step):
    """The variable and the slots after a step.

    `state` is a variable and its slots, `numbers` maps the names of `rmsjit.RMSprop` to floats, and
    `step` counts from 1.
    """
    (p, slots), f, fused = state, state[0].dtype.type, form.fused
    lr, rho, factor, epsilon, decay = (
        used(form, name, numbers.get(name, 0.0))
        for name in ("learning_rate", "rho", "momentum", "epsilon", "weight_decay")
    )
    c = f(1 - rho) if form.one_minus_rho == "exact" else f(1) - f(rho)
    r, mu, eps, wd, rate = map(f, (rho, factor, epsilon, decay, lr))
    correction = f(1 - rho**step) if form.bias_correction else f(1)
    if form.weight_decay == "coupled":
        g = fma(p, wd, g) if fused else g + wd * p
    if form.weight_decay == "decoupled":
        p = p * f(1 - lr * decay)
    if form.weight_decay == "subtracted":
        p = p - p * wd * rate
    if form.weight_decay == "independent":
        p = p * f(1 - decay)

    old, new = slots["rms"], {}
    if form.rms_average == "weighted" and form.square == "weighted":
        new["rms"] = fma(c * g, g, r * old) if fused else r * old + (c * g) * g
    else:
        new["rms"] = AVERAGES[form.rms_average, fused](old, g * g, r, c)
    v = new["rms"] / correction
    if form.centered:
        mg = new["mg"] = AVERAGES[form.mg_average, fused](slots["mg"], g, r, c)
        mg = mg / correction
        v = fma(-mg, mg, v) if fused else v - mg * mg

    d = np.sqrt(v) + eps if form.epsilon == "outside" else np.sqrt(v + eps)
    outside = form.learning_rate == "outside"
    u = g / d if outside else QUOTIENTS[form.quotient](rate, g, d)
    if form.has_momentum:
        m = new["momentum"] = mu * slots["momentum"] + u
        u = mu * m + u if form.nesterov else m
    if outside:
        p = fma(-u, rate, p) if fused else p - rate * u
    else:
        p = p - u
    if form.clip_weights:
        p = np.clip(p, -f(numbers["clip_weights"]), f(numbers["clip_weights"]))
    return p, new
