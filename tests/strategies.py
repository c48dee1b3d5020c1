"""What the tests of the dense path share: the forms of the rule, random inputs, the comparison."""

import dis
import functools
import gc
import os
import subprocess
import sys
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

import rmsjit
from reference import initial_slots, reference_step

HALF = ("float16", "bfloat16")
REAL = (*HALF, "float32", "float64")
COMPLEX = ("complex64", "complex128")
DTYPES = (*REAL, *COMPLEX)
QUICK = ("bfloat16", "float32", "complex64")  # the others have kernels of their own to compile

# Round the vectors of any machine, the pieces of norms (32 lanes), and a cache line or two.
SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129)
SHAPES = (*((size,) for size in SIZES), (), (1, 1), (0, 3), (3, 0, 2), (3, 5), (2, 3, 4), (5, 1, 7))


@dataclass(frozen=True)
class Form:
    """One of the forms that the two optimizers have."""

    face: str
    centered: bool
    momentum: float

    def __str__(self):
        return f"{self.face}-{'centered' if self.centered else 'plain'}-{self.momentum:g}"

    def optimizer(self, learning_rate=0.01, **arguments):
        settings = {"momentum": self.momentum, "centered": self.centered, **arguments}
        if self.face == "keras":
            return rmsjit.RMSprop(learning_rate, **settings)
        if "rho" in settings:
            settings["decay"] = settings.pop("rho")
        return rmsjit.train.RMSPropOptimizer(learning_rate, **settings)

    @property
    def slots(self):
        has_momentum = self.face == "train" or self.momentum > 0
        return ["rms", *["mg"] * self.centered, *["momentum"] * has_momentum]

    @property
    def rule(self):
        """What the reference takes, with the defaults of `optimizer`."""
        return {
            "lr": 0.01,
            "rho": 0.9,
            "momentum": self.momentum,
            "eps": 1e-7 if self.face == "keras" else 1e-10,
            "eps_inside": self.face == "train" or self.momentum > 0,
        }

    def start(self, variable):
        return initial_slots(variable, self.slots, 0.0 if self.face == "keras" else 1.0)


KERAS = [Form("keras", centered, momentum) for centered in (False, True) for momentum in (0, 0.9)]
TRAIN = [Form("train", centered, momentum) for centered in (False, True) for momentum in (0, 0.9)]
FORMS = KERAS + TRAIN
BOTH = Form("keras", True, 0.9)  # every slot there is

# Their arithmetic is that of a form of Keras, and all else is that of the last of TRAIN.
SLOW_FORMS = TRAIN[:-1]
every_form = pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, id=str(form), marks=[pytest.mark.slow] * (form in SLOW_FORMS))
        for form in FORMS
    ],
)
every_slot_set = pytest.mark.parametrize("form", KERAS, ids=str)
every_dtype = pytest.mark.parametrize(
    "dtype",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in DTYPES],
)


def computing(dtype):
    """The dtype that the rule is computed in."""
    return "float32" if str(dtype) in HALF else str(dtype)


def random_array(rng, shape, dtype, decades=3):
    """Normal numbers over some decades, one in sixteen of them zero."""

    def real():
        scale = 10.0 ** rng.integers(-decades, decades, shape, endpoint=True)
        return rng.normal(size=shape) * scale * (rng.random(shape) > 1 / 16)

    value = real() + 1j * real() if np.dtype(dtype).kind == "c" else real()
    return np.array(value, dtype)


seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from(SHAPES)


def slots_of(form, optimizer, variable):
    """Copies of a variable's slots as they stand, or as they would start."""
    found = {}
    for name, value in form.start(np.asarray(variable)).items():
        try:
            slot = optimizer.get_slot(variable, name)
        except KeyError:  # the Keras face; TensorFlow 1's gives None
            slot = None
        found[name] = value if slot is None else np.array(np.asarray(slot))
    return found


def checked_step(form, optimizer, pairs, **changes):
    """Take a step and compare it with the reference's step from the very same state.

    No variable may come twice, and gradients must be what the rule takes: clipped already.
    """
    before = [
        (np.array(np.asarray(variable)), np.array(gradient), slots_of(form, optimizer, variable))
        for gradient, variable in pairs
    ]
    optimizer.apply_gradients(pairs)
    for (old, gradient, slots), (_, variable) in zip(before, pairs, strict=True):
        after = np.asarray(variable), slots_of(form, optimizer, variable)
        assert_is_step(old, gradient, slots, after, {**form.rule, **changes})


def assert_is_step(old, gradient, slots, after, rule):
    """Whether `after`, a variable and its slots, is what the reference makes of the rest."""
    rule = {"compute_dtype": computing(old.dtype), **rule}
    expected, expected_slots = reference_step(old, gradient, slots, **rule)
    trusted = well_conditioned(gradient, slots, expected_slots, rule)
    slack = rounding_slack(gradient, slots, expected, expected_slots, old, rule)
    variable, after_slots = after
    assert_close(variable, expected, old, trusted, slack)
    for name, value in expected_slots.items():
        loose = slack if name == "momentum" else 0.0
        assert_close(after_slots[name], value, slots[name], trusted, loose)


@np.errstate(all="ignore")
def _variance(gradient, slots, new_slots, rule):
    """What the root is taken of, and the sum of the sizes of its parts."""
    g, v = wide(gradient), wide(new_slots["rms"])
    sizes = rule["rho"] * np.abs(wide(slots["rms"])) + (1 - rule["rho"]) * np.abs(g) ** 2
    if "mg" in slots:
        mean = wide(new_slots["mg"])
        v, sizes = v - mean * mean, sizes + np.abs(mean) ** 2
    inside = rule["eps"] if rule["eps_inside"] else 0.0
    return v + inside, sizes + inside


def well_conditioned(gradient, slots, new_slots, rule):
    """Where the denominator is no root of a difference of nearly equal numbers.

    A variance of an almost constant gradient is one, and so can squares of complex numbers be;
    what is left then has no correct digits anywhere.
    """
    if "mg" not in slots and np.dtype(rule["compute_dtype"]).kind != "c":
        return True
    v, sizes = _variance(gradient, slots, new_slots, rule)
    return np.abs(v) >= 1e-2 * sizes


@np.errstate(all="ignore")
def rounding_slack(gradient, slots, new, new_slots, old, rule):
    """By how much the step ``lr*g / d`` of an element may differ by its own rounding.

    Its operations may be done in another order: four roundings, which count for more where ``d``
    is the root of a difference.  Where ``lr*g`` is denormal, an order that avoids it is better.
    """
    limits = ml_dtypes.finfo(rule["compute_dtype"])
    v, sizes = _variance(gradient, slots, new_slots, rule)
    if "momentum" in slots:
        new, old = new_slots["momentum"], rule["momentum"] * wide(slots["momentum"])
    step = np.abs(wide(new) - wide(old))
    slack = 4 * float(limits.eps) * np.fmax(sizes / np.abs(v), 1.0) * step
    slack += 2 * float(limits.smallest_subnormal) / np.abs(np.sqrt(v) + rule["eps"])
    return np.where(np.isfinite(slack), slack, 0.0)


ULPS = {"float16": 1, "bfloat16": 1, "float32": 2, "float64": 2, "complex64": 8, "complex128": 8}


def assert_close(got, expected, before, trusted=True, slack=0.0, ulps=None):
    """Whether two results of one step differ by no more than their rounding, and `slack`.

    The unit is that of the larger of the number before and after the step, since a difference of
    two has the rounding of the larger.  Half types may be off by one rounding, single and double
    precision by two units, complex numbers by eight.
    """
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    name = str(got.dtype)
    unit = ulp(np.fmax(finite(before), finite(expected)), got.dtype)
    limit = (ulps or ULPS[name]) * unit + slack
    got, expected = wide(got), wide(expected)
    usable = np.isfinite(expected) & trusted
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        close = np.where(usable, np.abs(got - expected) <= limit, same | ~np.asarray(trusted))
    assert np.all(close), f"{name}: {got[~close][:5]} instead of {expected[~close][:5]}"


def wide(array):
    array = np.asarray(array)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def finite(array):
    size = np.abs(wide(array))
    return np.where(np.isfinite(size), size, 0.0)


def ulp(size, dtype):
    """The unit in the last place of numbers of this size."""
    limits = ml_dtypes.finfo(dtype)
    _, exponent = np.frexp(np.maximum(size, float(limits.smallest_normal)))
    return np.ldexp(float(limits.eps), exponent - 1)


def same_bits(one, other):
    """Whether two arrays hold the same bytes, NaNs and signs of zero included."""
    one, other = np.asarray(one), np.asarray(other)
    return (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())


def state_of(optimizer, variables):
    """Everything that a step may change, as bytes."""
    weights = [np.asarray(weight).tobytes() for weight in optimizer.variables()]
    return [np.asarray(variable).tobytes() for variable in variables], weights


def run_python(code, *arguments, **environment):
    """What a fresh Python prints, which must end well and without a warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
    return done.stdout


def watched(kind, watch, call, *arguments):
    """Call with ``sys.setprofile`` or ``sys.settrace`` set to `watch`, and no collection meanwhile.

    It would run callbacks of other libraries (Hypothesis times collections) and finalizers of
    whatever earlier tests left.
    """
    before, collecting = getattr(sys, f"get{kind}")(), gc.isenabled()
    begin = getattr(sys, f"set{kind}")
    gc.disable()
    begin(watch)
    try:
        call(*arguments)
    finally:
        begin(before)
        if collecting:
            gc.enable()


def frames_of(call, *arguments):
    """The code of every Python function that is entered, in order."""
    entered = []

    def note(frame, event, argument):
        if event == "call":
            entered.append(frame.f_code)

    watched("profile", note, call, *arguments)
    return entered


class Interrupted(BaseException):
    """As KeyboardInterrupt, but nobody else raises it."""


@functools.cache  # since reading the instructions of a function copies them
def _ends_of_blocks(function):
    """Where the next instructions of a code object call ``__exit__(None, None, None)``."""
    code, ends = function.co_code, set()
    for place in range(0, len(code), 2):
        swaps = dis.opname[code[place]] == "SWAP"  # puts a value to return aside
        at = place + 2 * swaps
        if code[at : at + 6] == 3 * code[at : at + 2]:
            ends.add(place)
    return ends


def interrupted_at(line, function, files=(".py",)):
    """Call with an exception at that one of the lines of rmsjit that run; False if it ended.

    Only lines of files with one of these endings count, and not the lines at which a trace sees a
    ``with`` statement leave its block: the interpreter calls ``__exit__`` there without looking for
    signals, so that an exception at that point, which would keep a lock, can't happen.
    """
    root, count = os.path.dirname(rmsjit.__file__), 0

    def calls(frame, event, _):
        name = frame.f_code.co_filename
        if not (name.startswith(root) and name.endswith(files)):
            return None
        ends = _ends_of_blocks(frame.f_code)

        def lines(frame, event, _):
            nonlocal count
            if event == "line" and frame.f_lasti not in ends:
                count += 1
                if count == line:
                    raise Interrupted
            return lines

        return lines

    try:
        watched("trace", calls, function)
    except Interrupted:
        return True
    return False
