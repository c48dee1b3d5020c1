"""The RMSprop rule for one element, made from a form: the only place where it is written.

`element_rule` returns the update by a gradient, `lapse_rule` the effect of several steps with a
zero gradient.  Both close over the settings of a `rmsjit.rule.form.Form`, so a term that the form
lacks is not compiled.  With ``g`` the clipped gradient and ``h`` the numbers of the step::

    rms <- rho*rms + (1 - rho)*g*g
    mg  <- rho*mg  + (1 - rho)*g                          centered
    v    = max(rms - mg*mg, 0)   or   rms                 (complex: no max)
    u    = lr*g / (sqrt(v) + eps)   or   lr*g / sqrt(v + eps)
    momentum <- momentum_factor*momentum + u ;  variable <- variable - momentum
    variable <- variable - u                              without a momentum slot
    average <- ema_momentum*average + (1 - ema_momentum)*variable       with an average

With master weights, `variable` above is the slot "master", from which the variable is rounded.
An index may be an element of a dense variable or of a row of a table.

All functions that make functions are cached, so that kernels of a process share what they have in
common, which is compiled only once.
"""

import functools

import numpy as np
from numba import njit

from rmsjit.kernels.noise import bits_for
from rmsjit.kernels.rounding import (
    master_or_written,
    master_or_written_near,
    store_stochastically,
)
from rmsjit.kernels.scalars import (
    add_weighted_modulus,
    at_most,
    bounded_sum,
    clip,
    load,
    modulus_squared,
    multiply_add,
    nonnegative,
    real_nonnegative,
    root,
    squared,
    store,
    weighted_modulus,
    weighted_square,
)
from rmsjit.kernels.views import fields_of
from rmsjit.rule.form import Form
from rmsjit.rule.numbers import RuleNumbers
from rmsjit.rule.slot import CARRY, DECAY, STOCHASTIC, is_packed
from rmsjit.runtime.flags import INLINED

FIELDS = len(RuleNumbers._fields)
read_numbers = fields_of(RuleNumbers)  # into scalars, which loops keep in registers

# Of rms, for the variance: differences of numbers in 8 bits that are smaller are only rounding.
_LEAST_OF_CODES = np.float32(1 / 16)


@functools.cache
def element_rule(form: Form, rounds: bool = True):
    """The function that applies a form to element `i` of a variable and its slots.

    `noise` makes random bits for the element, which only stochastic rounding uses.  A step uses the
    values of slots before they are rounded.  Unless it `rounds`, a master weight is not written
    to the variable: that is left to `rounding_rule`.
    """
    DECAYS, CLIPS_WEIGHTS = form.weight_decay is not None, form.clip_weights
    AVERAGES = form.has_average
    decayed = _decay(form.weight_decay, form.fused)
    variance, denominator = _variance_estimate(form), _denominator(form.epsilon)
    moved, averaged = _move(form), _weight_average(form)
    HAS_MASTER, MASTER = form.has_master, _master_index(form)
    read_value, write_value = _access(form, rounds)

    @njit(**INLINED)
    def update_element(i, g, variable, slots, h, noise):
        kept = slots[MASTER] if HAS_MASTER else variable
        value = read_value(i, variable, kept)
        if DECAYS:
            value, g = decayed(value, g, h)
        size = denominator(variance(i, g, slots, h, noise), h.eps)
        value = moved(i, value, g, size, slots, h, noise)
        if CLIPS_WEIGHTS:
            value = clip(value, h.clip_weights)
        if AVERAGES:
            value = averaged(i, value, slots, h, noise)
        write_value(i, variable, kept, value, noise)

    return update_element


@functools.cache
def rounding_rule(form: Form):
    """The function that writes element `i` of the master weights to the variable, to nearest."""
    MASTER = _master_index(form)

    @njit(**INLINED)
    def round_element(i, variable, slots):
        store(variable, i, load(slots[MASTER], i))

    return round_element


def _master_index(form: Form) -> int:
    return form.index("master") if form.has_master else 0


def _access(form: Form, rounds: bool):
    """The functions that read and write the value of a variable.

    It is `kept` in the variable itself, or in the slot of its master weight.
    """
    has_master = form.has_master
    reader = _reader(has_master, form.rounding == STOCHASTIC)
    return reader, _writer(has_master, rounds, bits_for(form).get(""))


@functools.cache
def _reader(has_master: bool, stochastic: bool):
    """The function that reads the value that a step starts from.

    A master weight is used unless somebody has written to the variable since it was rounded from
    it: then it is the variable.
    """
    if not has_master:

        @njit(**INLINED)
        def read_variable(i, variable, kept):
            return load(variable, i)

        return read_variable
    chosen = master_or_written_near if stochastic else master_or_written

    @njit(**INLINED)
    def read_master(i, variable, kept):
        return chosen(variable, i, load(kept, i))

    return read_master


@functools.cache
def _writer(has_master: bool, rounds: bool, bits_of):
    """The function that writes the new value, and `rounds` it to the dtype of the variable.

    `bits_of` gives the random bits of stochastic rounding, None rounds to nearest.
    """
    STOCHASTICALLY = bits_of is not None

    @njit(**INLINED)
    def write_value(i, variable, kept, value, noise):
        if has_master:
            store(kept, i, value)
        if not rounds:
            return
        if STOCHASTICALLY:
            store_stochastically(variable, i, value, bits_of(noise))
        else:
            store(variable, i, value)

    return write_value


def packs_late(name: str) -> bool:
    """Whether a slot in 8 bits is packed in a loop of its own, after that of the rule.

    More than `rms` at a time would leave a processor too few elements ahead to compute during the
    division, and on old ones too few registers.
    """
    return name != "rms"


def _bits_on_store(form: Form, name: str):
    """The bits that round an element of a slot when it is written; None where there are none."""
    if name in form.slot_names and is_packed(form.slot(name).dtype) and packs_late(name):
        return None
    return bits_for(form).get(name)


def _slot_writer(form: Form, name: str):
    """The function that writes an element of a slot."""
    return _slot_store(_bits_on_store(form, name))


@functools.cache
def _slot_store(bits_of):
    """The function that writes an element of a slot; `bits_of` as for a variable."""
    if bits_of is None:

        @njit(**INLINED)
        def store_nearest(array, i, value, noise):
            store(array, i, value)

        return store_nearest

    @njit(**INLINED)
    def store_by_chance(array, i, value, noise):
        store_stochastically(array, i, value, bits_of(noise))

    return store_by_chance


@functools.cache
def _decay(kind: str | None, fused: bool):
    """The function that applies weight decay to the value of a variable and its gradient."""
    COUPLED, SHRINKS = kind == "coupled", kind == "decoupled"

    @njit(**INLINED)
    def decayed(value, g, h):
        if COUPLED:
            if fused:
                return value, multiply_add(value, h.decay, g)
            return value, bounded_sum(g, h.decay * value, h.largest)
        if SHRINKS:
            return value * h.keep, g
        return value - value * h.decay * h.lr, g

    return decayed


@functools.cache
def _variance_estimate(form: Form):
    """The function that moves the averages of an element and returns the variance."""
    RMS, CENTERED = form.index("rms"), form.centered
    MG = form.index("mg") if CENTERED else -1
    CORRECTED, MODULUS = form.bias_correction, form.complex_square == "modulus"
    average_square = _square_average(form.rms_average, form.square, MODULUS, form.fused)
    average = _average(form.mg_average, form.fused)
    variance_of, at_least = _variance(MODULUS, form.fused), _least_variance(form)
    store_rms, store_mg = _slot_writer(form, "rms"), _slot_writer(form, "mg")
    OVERFLOWS = not is_packed(form.slot("rms").dtype)

    @njit(**INLINED)
    def variance(i, g, slots, h, noise):
        mean_square = load(slots[RMS], i)
        if OVERFLOWS:  # infinity times a factor of 0 would be NaN
            mean_square = at_most(mean_square, h.rms_bound)
        mean_square = average_square(mean_square, g, h)
        store_rms(slots[RMS], i, mean_square, noise)
        if CORRECTED:
            mean_square = mean_square / h.correction
        if CENTERED:
            mean = average(load(slots[MG], i), g, h)
            store_mg(slots[MG], i, mean, noise)
            if CORRECTED:
                mean = mean / h.correction
            mean_square = at_least(variance_of(mean_square, mean, h), mean_square)
        return mean_square

    return variance


@functools.cache
def _least_variance(form: Form):
    """The function that bounds a variance from below, as rounding can leave it too small."""
    clamped = real_nonnegative if form.complex_square == "modulus" else nonnegative

    @njit(**INLINED)
    def above_noise(variance, mean_square):
        return max(variance, mean_square * _LEAST_OF_CODES)

    @njit(**INLINED)
    def not_negative(variance, mean_square):
        return clamped(variance)

    @njit(**INLINED)
    def unchanged(variance, mean_square):
        return variance

    if any(is_packed(slot.dtype) for slot in form.slots if slot.name in ("rms", "mg")):
        return above_noise
    return not_negative if form.clamp else unchanged


@functools.cache
def _move(form: Form):
    """The function that moves the value of an element against its gradient."""
    HAS_MOMENTUM, NESTEROV, FUSED = form.has_momentum, form.nesterov, form.fused
    MOMENTUM = form.index("momentum") if HAS_MOMENTUM else -1
    RATE_OUTSIDE = form.learning_rate == "outside"  # of the momentum
    quotient, store_momentum = _quotient(form.quotient), _slot_writer(form, "momentum")

    @njit(**INLINED)
    def moved(i, value, g, size, slots, h, noise):
        step = g / size if RATE_OUTSIDE else quotient(h.lr, g, size)
        if HAS_MOMENTUM:
            carried = h.momentum * load(slots[MOMENTUM], i) + step
            store_momentum(slots[MOMENTUM], i, carried, noise)
            step = h.momentum * carried + step if NESTEROV else carried
        if RATE_OUTSIDE:
            return multiply_add(-step, h.lr, value) if FUSED else value - h.lr * step
        return value - step

    return moved


@functools.cache
def _weight_average(form: Form):
    """The function that moves the average of a weight and returns the new weight."""
    AVERAGE = form.index("average") if form.has_average else -1
    store_average = _slot_writer(form, "average")

    @njit(**INLINED)
    def averaged(i, value, slots, h, noise):
        old = load(slots[AVERAGE], i)
        average = h.ema_momentum * old + h.one_minus_ema_momentum * value
        store_average(slots[AVERAGE], i, average, noise)
        return average if h.ema_overwrites != 0 else value

    return averaged


@functools.cache
def _square_average(kind: str, square_when: str, modulus: bool, fused: bool):
    """The function that updates ``rms`` by a gradient."""
    MODULUS, FUSED = modulus, fused
    if kind == "difference" or square_when == "first":
        square = modulus_squared if MODULUS else squared
        average = _average(kind, FUSED)

        @njit(**INLINED)
        def average_of_square(mean_square, g, h):
            return average(mean_square, square(g), h)

        return average_of_square
    weighted = weighted_modulus if MODULUS else weighted_square

    @njit(**INLINED)
    def average_of_weighted(mean_square, g, h):
        if not FUSED:
            return h.rho * mean_square + weighted(h.one_minus_rho, g)
        if MODULUS:
            return add_weighted_modulus(h.one_minus_rho, g, h.rho * mean_square)
        return multiply_add(h.one_minus_rho * g, g, h.rho * mean_square)

    return average_of_weighted


@functools.cache
def _variance(modulus: bool, fused: bool):
    """The function that subtracts the square of the mean from the mean of squares."""
    MODULUS, FUSED = modulus, fused
    square = modulus_squared if MODULUS else squared

    @njit(**INLINED)
    def variance_of(mean_square, mean, h):
        if FUSED and not MODULUS:
            return multiply_add(-mean, mean, mean_square)
        return mean_square - at_most(square(mean), h.largest)  # two overflowed terms would give NaN

    return variance_of


@functools.cache
def _average(kind: str, fused: bool):
    """The function that moves an average towards a new value."""

    @njit(**INLINED)
    def weighted(old, new, h):
        if fused:
            return multiply_add(h.one_minus_rho, new, h.rho * old)
        return h.rho * old + h.one_minus_rho * new

    @njit(**INLINED)
    def difference(old, new, h):
        change = new - at_most(old, h.largest)  # so that what has overflowed stays infinite
        if fused:
            return multiply_add(h.one_minus_rho, change, old)
        return old + change * h.one_minus_rho

    return weighted if kind == "weighted" else difference


@functools.cache
def _denominator(epsilon: str):
    """The function for the root of the variance, which epsilon keeps above zero."""

    @njit(**INLINED)
    def outside(variance, eps):
        return root(variance) + eps

    @njit(**INLINED)
    def inside(variance, eps):
        return root(variance + eps)

    return outside if epsilon == "outside" else inside


@functools.cache
def _quotient(order: str):
    """The function for ``lr*g/d``; ``lr*(g/d)`` is the least likely to overflow."""

    @njit(**INLINED)
    def rate_last(lr, g, size):
        return lr * (g / size)

    @njit(**INLINED)
    def rate_first(lr, g, size):
        return (lr * g) / size

    @njit(**INLINED)
    def reciprocal(lr, g, size):
        return lr * (g * (type(size)(1) / size))

    @njit(**INLINED)
    def rate_over(lr, g, size):
        return (lr / size) * g

    orders = {f.py_func.__name__: f for f in (rate_last, rate_first, reciprocal, rate_over)}
    return orders[order]


@functools.cache
def lapse_rule(form: Form):
    """The function that applies several steps with a zero gradient to an element at once.

    Over these steps, averages are multiplied by `decay`, the momentum by `carry` and the variable
    by `keep`, and the variable moves by `drift` per unit of the momentum.  Averages above `bound`
    are reduced to it first.
    """
    HAS_MOMENTUM = form.has_momentum
    MOMENTUM = form.index("momentum") if HAS_MOMENTUM else -1
    SHRINKS = form.weight_decay is not None
    HAS_MASTER, MASTER = form.has_master, _master_index(form)
    read_value, write_value = _access(form, rounds=True)
    change_slots = _slot_lapses(tuple(slot.zero_gradient for slot in form.slots))

    @njit(**INLINED)
    def lapse_element(i, variable, slots, decay, carry, keep, drift, bound):
        if HAS_MOMENTUM or SHRINKS:
            kept = slots[MASTER] if HAS_MASTER else variable
            value = read_value(i, variable, kept)
            if SHRINKS:
                value = value * keep
            if HAS_MOMENTUM:
                value = value - load(slots[MOMENTUM], i) * drift
            write_value(i, variable, kept, value, 0)
        change_slots(i, slots, decay, carry, bound)

    return lapse_element


@functools.cache
def _slot_lapses(changes: tuple[str, ...]):
    """The function that changes all slots; one function per slot, as their types differ."""
    if not changes:
        return _no_lapse
    DECAYS, CARRIES, LAST = changes[-1] == DECAY, changes[-1] == CARRY, len(changes) - 1
    rest = _slot_lapses(changes[:-1])

    @njit(**INLINED)
    def lapse_slots(i, slots, decay, carry, bound):
        rest(i, slots, decay, carry, bound)
        if DECAYS:
            store(slots[LAST], i, at_most(load(slots[LAST], i), bound) * decay)
        if CARRIES:
            store(slots[LAST], i, load(slots[LAST], i) * carry)

    return lapse_slots


@njit(**INLINED)
def _no_lapse(i, slots, decay, carry, bound):
    pass
