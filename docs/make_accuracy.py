"""Measure rounding errors of RMSprop against the rule in exact arithmetic; write accuracy.md.

    python docs/make_accuracy.py --python torch=PYTHON --python tensorflow=PYTHON

measures rmsjit and NumPy in this interpreter, and each other library in the given interpreter,
which must have it, NumPy and ml_dtypes; without `--python`, their columns are left out.  The page
explains what is measured.  `tests/test_accuracy.py` uses this code on fewer elements.
"""

import argparse
import decimal
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass, replace
from decimal import Decimal

import ml_dtypes
import numpy as np

DIGITS = 60
STEPS = 10
LR, RHO, MOMENTUM, EPSILON = 0.01, 0.9, 0.9, 1e-7
CONSTANT_STEPS = (1, 10, 50, 100, 150, 200)
KEPT = 0.5  # results count in the tables if at least this part of a difference is left
HALF = ("float16", "bfloat16")
DTYPES = (*HALF, "float32", "float64", "complex64", "complex128")
QUANTITIES = ("rms", "mg", "momentum", "update")
PAGE = pathlib.Path(__file__).with_name("accuracy.md")


@dataclass(frozen=True)
class Variant:
    """One form of the rule."""

    centered: bool
    momentum: bool
    eps_inside: bool

    @property
    def name(self):
        return ("plain", "momentum", "centered", "both")[self.momentum + 2 * self.centered]

    @property
    def slots(self):
        return ("rms", *["mg"] * self.centered, *["momentum"] * self.momentum)

    def __str__(self):
        return f"{self.name}, eps {'inside' if self.eps_inside else 'outside'}"


VARIANTS = [
    Variant(centered, momentum, inside)
    for centered in (False, True)
    for momentum in (False, True)
    for inside in (False, True)
]


# --- Exact arithmetic ------------------------------------------------------------------------


class Complex:
    """A complex number whose parts are decimals."""

    def __init__(self, real, imag):
        self.real, self.imag = real, imag

    def __add__(self, other):
        return Complex(self.real + other.real, self.imag + other.imag)

    def __sub__(self, other):
        return Complex(self.real - other.real, self.imag - other.imag)

    def __mul__(self, other):
        return Complex(
            self.real * other.real - self.imag * other.imag,
            self.real * other.imag + self.imag * other.real,
        )

    def __truediv__(self, other):
        size = other.real * other.real + other.imag * other.imag
        product = self * Complex(other.real, -other.imag)
        return Complex(product.real / size, product.imag / size)

    def __abs__(self):
        return (self.real * self.real + self.imag * self.imag).sqrt()

    def sqrt(self):
        """The principal root."""
        if not abs(self):
            return self
        larger = ((abs(self) + abs(self.real)) / 2).sqrt()
        smaller = abs(self.imag) / (2 * larger)
        real, imag = (larger, smaller) if self.real >= 0 else (smaller, larger)
        return Complex(real, imag.copy_sign(self.imag))

    __radd__ = __add__
    __rmul__ = __mul__


def exact(array):
    """The numbers of an array as decimals, without any rounding."""
    array = np.asarray(array)
    if array.dtype.kind == "c":
        parts = zip(array.real.tolist(), array.imag.tolist(), strict=True)
        numbers = [Complex(Decimal(real), Decimal(imag)) for real, imag in parts]
    else:
        numbers = [Decimal(value) for value in array.astype(np.float64).tolist()]
    return np.array(numbers, object)


_root = np.frompyfunc(lambda number: number.sqrt(), 1, 1)
_size = np.frompyfunc(abs, 1, 1)


def _largest(*arrays):
    return np.maximum.reduce([_size(array) for array in arrays])


@dataclass(frozen=True)
class Numbers:
    """The hyperparameters as a library holds them."""

    lr: float = LR
    rho: float = RHO
    one_minus_rho: float = 1 - RHO
    momentum: float = MOMENTUM
    epsilon: float = EPSILON
    mg_rho: float | None = None  # if it is not rho
    lr_last: bool = False  # whether lr multiplies the momentum, not what it accumulates

    @classmethod
    def rounded(cls, dtype, first="float64"):
        """The defaults, rounded to `first` and then to the dtype of the arithmetic.

        ``1 - rho`` is computed in that dtype.
        """
        real = np.zeros((), dtype).real.dtype.type
        lr, rho, momentum, epsilon = np.array([LR, RHO, MOMENTUM, EPSILON], first).astype(real)
        return cls(*map(float, (lr, rho, real(1) - rho, momentum, epsilon)))


@dataclass
class ExactStep:
    """The exact result of a step.

    Attributes
    ----------
    state : dict of str to array of decimals
        Slots, and the variable.
    update : array of decimals
        What is subtracted from the variable.
    scales : dict of str to array of decimals
        The size of the largest term, or of the sum, behind each slot and the update.
    kept : float array
        Which part of the terms of the radicand is left after cancellation.
    """

    state: dict
    update: np.ndarray
    scales: dict
    kept: np.ndarray


def exact_step(state, gradient, variant, numbers):
    """One step of the rule from a state of decimals."""
    lr, rho, rest, factor, epsilon = map(
        Decimal,
        (numbers.lr, numbers.rho, numbers.one_minus_rho, numbers.momentum, numbers.epsilon),
    )
    new, scales = {}, {}

    def combine(name, one, other):
        new[name] = one + other
        scales[name] = _largest(one, other, new[name])

    g = exact(gradient)
    combine("rms", rho * state["rms"], rest * (g * g))
    variance, terms = new["rms"], scales["rms"]
    if variant.centered:
        mg_rho = rho if numbers.mg_rho is None else Decimal(numbers.mg_rho)
        combine("mg", mg_rho * state["mg"], rest * g)
        square = new["mg"] * new["mg"]
        variance, terms = variance - square, terms + _size(square)
        if gradient.dtype.kind != "c":
            variance = np.maximum(variance, Decimal(0))
    if variant.eps_inside:
        variance, terms = variance + epsilon, terms + epsilon
    root = _root(variance)
    last, first = (lr, 1) if numbers.lr_last else (1, lr)
    step = first * g / (root if variant.eps_inside else root + epsilon)
    scale = _size(step)
    if variant.momentum:
        combine("momentum", factor * state["momentum"], step)
        step, scale = new["momentum"], scales["momentum"]
    update, scales["update"] = last * step, last * scale
    new["variable"] = state["variable"] - update
    kept = _size(variance) / np.maximum(terms, Decimal("1e-400"))
    return ExactStep(new, update, scales, kept.astype(float))


def in_ulps(got, expected, scale, dtype):
    """Differences in units in the last place of numbers of the size `scale`; inf for NaN."""
    limits = ml_dtypes.finfo(np.zeros((), dtype).real.dtype)
    got = np.asarray(got).ravel()
    finite = np.isfinite(got)
    error = np.full(got.shape, np.inf)
    difference = exact(np.where(finite, got, np.zeros_like(got))) - expected
    error[finite] = _size(difference).astype(float)[finite]
    size = np.maximum(scale.astype(float), float(limits.smallest_normal))
    _, exponent = np.frexp(size)
    return error / np.ldexp(float(limits.eps), exponent - 1)


# --- The libraries ---------------------------------------------------------------------------


class Library:
    """A variable of a library and its optimizer.

    `state` returns copies of the slots and the variable; before the first step, the slots are
    `rms_start` and zeros.
    """

    rms_start = 0.0
    dtypes = DTYPES

    def __init__(self, variant, variable):
        self.variant, self.numbers = variant, Numbers.rounded(self.computing(variable.dtype))
        self.start = variable

    @staticmethod
    def computing(dtype):
        """The dtype of the arithmetic."""
        return dtype

    @classmethod
    def has(cls, variant):
        return True

    def state(self):
        state = {"variable": self.read(self.variable)}
        for name in self.variant.slots:
            slot = self.slot(name)
            start = self.rms_start if name == "rms" else 0.0
            state[name] = np.full_like(self.start, start) if slot is None else self.read(slot)
        return state

    def read(self, array):
        return np.array(array)


class Rmsjit(Library):
    @staticmethod
    def computing(dtype):
        return "float32" if dtype.name in HALF else dtype

    def __init__(self, variant, variable):
        super().__init__(variant, variable)
        import rmsjit

        self.variable = variable.copy()
        self.optimizer = rmsjit.RMSprop(
            LR, RHO, MOMENTUM if variant.eps_inside else 0.0, EPSILON, variant.centered
        )
        if variant.momentum:
            self.optimizer.momentum = MOMENTUM  # after construction it leaves epsilon outside
        elif variant.eps_inside:
            self.rms_start = 1.0
            self.optimizer = rmsjit.train.RMSPropOptimizer(
                LR, RHO, 0.0, EPSILON, centered=variant.centered
            )
        self.optimizer.build([self.variable])

    def slot(self, name):
        return self.optimizer.get_slot(self.variable, name)

    def step(self, gradient):
        self.optimizer.apply_gradients([(gradient, self.variable)])

    def reset_variable(self):
        self.variable[:] = 0


class NumPy(Library):
    """The plain formulas, all in the dtype of the arrays."""

    def __init__(self, variant, variable):
        super().__init__(variant, variable)
        self.variable = variable.copy()
        self.slots = {name: np.zeros_like(variable) for name in variant.slots}

    def slot(self, name):
        return self.slots[name]

    @np.errstate(all="ignore")
    def step(self, g):
        real = g.real.dtype.type
        n, slots = self.numbers, self.slots
        lr, rho, rest, epsilon = (real(x) for x in (n.lr, n.rho, n.one_minus_rho, n.epsilon))
        slots["rms"] = rho * slots["rms"] + rest * g * g
        variance = slots["rms"]
        if "mg" in slots:
            slots["mg"] = rho * slots["mg"] + rest * g
            variance = variance - slots["mg"] * slots["mg"]
        if self.variant.eps_inside:
            step = lr * g / np.sqrt(variance + epsilon)
        else:
            step = lr * g / (np.sqrt(variance) + epsilon)
        if "momentum" in slots:
            step = slots["momentum"] = real(n.momentum) * slots["momentum"] + step
        self.variable = self.variable - step

    def reset_variable(self):
        self.variable = np.zeros_like(self.variable)


class PyTorch(Library):
    dtypes = ("float32", "float64")

    def __init__(self, variant, variable):
        super().__init__(variant, variable)
        import torch

        torch.set_num_threads(1)
        # 1 - 0.9 is computed in double precision, rounded, and the weight of `lerp`.
        real = variable.dtype.type
        rest = float(real(1 - RHO))
        self.numbers = Numbers(
            float(real(LR)),
            float(real(RHO)),
            rest,
            float(real(MOMENTUM)),
            float(real(EPSILON)),
            mg_rho=Decimal(1) - Decimal(rest),
            lr_last=variant.momentum,
        )
        self.from_numpy = torch.from_numpy
        self.variable = torch.nn.Parameter(torch.from_numpy(variable.copy()))
        momentum = MOMENTUM if variant.momentum else 0.0
        self.optimizer = torch.optim.RMSprop(
            [self.variable], LR, RHO, EPSILON, momentum=momentum, centered=variant.centered
        )

    @classmethod
    def has(cls, variant):
        return not variant.eps_inside

    def slot(self, name):
        key = {"rms": "square_avg", "mg": "grad_avg", "momentum": "momentum_buffer"}[name]
        return self.optimizer.state[self.variable].get(key)

    def read(self, tensor):
        return tensor.detach().numpy().copy()

    def step(self, gradient):
        self.variable.grad = self.from_numpy(gradient)
        self.optimizer.step()

    def reset_variable(self):
        self.variable.data.zero_()


class _TensorFlow(Library):
    def __init__(self, variant, variable):
        super().__init__(variant, variable)
        import tensorflow

        # Python's numbers become float32 tensors before they are cast to the variable's dtype.
        self.numbers = Numbers.rounded(variable.dtype, first="float32")
        self.variable = tensorflow.Variable(variable)
        self.constant = tensorflow.constant
        self.optimizer = self.make_optimizer()

    def read(self, variable):
        return np.array(variable.numpy())

    def step(self, gradient):
        self.optimizer.apply_gradients([(self.constant(gradient), self.variable)])

    def reset_variable(self):
        self.variable.assign(np.zeros_like(self.start))


class TfKeras(_TensorFlow):
    def __init__(self, variant, variable):
        super().__init__(variant, variable)
        epsilon = Numbers.rounded(variable.dtype).epsilon  # not rounded to float32 first
        self.numbers = replace(self.numbers, epsilon=epsilon)

    @classmethod
    def has(cls, variant):
        return variant.eps_inside == variant.momentum

    def make_optimizer(self):
        import tf_keras

        return tf_keras.optimizers.legacy.RMSprop(
            LR, RHO, MOMENTUM * self.variant.momentum, EPSILON, self.variant.centered
        )

    def slot(self, name):
        stepped = int(self.optimizer.iterations.numpy()) > 0
        return self.optimizer.get_slot(self.variable, name) if stepped else None


class TensorFlow1(_TensorFlow):
    rms_start = 1.0

    @classmethod
    def has(cls, variant):
        return variant.eps_inside

    def make_optimizer(self):
        import tensorflow

        return tensorflow.compat.v1.train.RMSPropOptimizer(
            LR, RHO, MOMENTUM * self.variant.momentum, EPSILON, centered=self.variant.centered
        )

    def slot(self, name):
        return self.optimizer.get_slot(self.variable, name)


LIBRARIES = {
    "rmsjit": Rmsjit,
    "NumPy": NumPy,
    "PyTorch": PyTorch,
    "tf-keras": TfKeras,
    "TensorFlow 1": TensorFlow1,
}
HERE, TORCH, TENSORFLOW = ("rmsjit", "NumPy"), ("PyTorch",), ("tf-keras", "TensorFlow 1")
VERSIONS = {
    HERE: ("rmsjit", "numba", "llvmlite", "numpy", "ml_dtypes"),
    TORCH: ("torch",),
    TENSORFLOW: ("tensorflow", "tf_keras"),
}


# --- Measuring -------------------------------------------------------------------------------


def gradients_of(dtype, elements, seed=0):
    """The start of the variable, and the gradients of all steps of a run.

    Each element has a magnitude of its own, over 20 decades (2 in float16, so that squares fit);
    its sign and size change at every step.
    """
    rng = np.random.default_rng(seed)
    low, high = (-0.5, 1.5) if dtype == "float16" else (-10, 10)
    magnitudes = 10.0 ** rng.uniform(low, high, elements)

    def random(scale):
        value = scale * rng.uniform(0.5, 2, elements) * rng.choice([-1, 1], elements)
        if np.dtype(dtype).kind == "c":
            value = value * np.exp(2j * np.pi * rng.random(elements))
        return value.astype(dtype)

    return random(1.0), [random(magnitudes) for _ in range(STEPS)]


def single_steps(library, variant, dtype, elements, seed=0):
    """Errors of each step by itself, from the state that the library was in.

    The variable is set to zero before a step, so that afterwards it is minus the update.

    Returns
    -------
    errors : dict of str to float array
        In ulps, by quantity.
    kept : float array
        See `ExactStep`.
    """
    start, gradients = gradients_of(dtype, elements, seed)
    run = library(variant, start)
    errors = {name: [] for name in (*variant.slots, "update")}
    kept = []
    with decimal.localcontext(prec=DIGITS):
        for gradient in gradients:
            run.reset_variable()
            before = {name: exact(array) for name, array in run.state().items()}
            run.step(gradient)
            after = run.state()
            step = exact_step(before, gradient, variant, run.numbers)
            for name in variant.slots:
                ulps = in_ulps(after[name], step.state[name], step.scales[name], dtype)
                errors[name].append(ulps)
            ulps = in_ulps(-after["variable"], step.update, step.scales["update"], dtype)
            errors["update"].append(ulps)
            kept.append(step.kept)
    return {name: np.concatenate(ulps) for name, ulps in errors.items()}, np.concatenate(kept)


def drift(library, variant, dtype, elements, seed=0):
    """Errors after all steps of a run, against the exact rule from the same start.

    Returns
    -------
    errors : dict of str to float array
        In ulps of the largest value that the element has had, by quantity.
    kept : float array
        See `ExactStep`; the minimum over the steps.
    """
    start, gradients = gradients_of(dtype, elements, seed)
    run = library(variant, start)
    with decimal.localcontext(prec=DIGITS):
        state = {name: exact(array) for name, array in run.state().items()}
        scales = {name: _size(array) for name, array in state.items()}
        kept = np.full(elements, np.inf)
        for gradient in gradients:
            run.step(gradient)
            step = exact_step(state, gradient, variant, run.numbers)
            state = step.state
            kept = np.minimum(kept, step.kept)
            scales = {name: _largest(scales[name], array) for name, array in state.items()}
        after = run.state()
        errors = {name: in_ulps(after[name], state[name], scales[name], dtype) for name in state}
    return errors, kept


def measure(names, elements):
    """Worst and median errors, as rows of plain values, for all dtypes and forms of libraries."""
    rows = []
    for name in names:
        library = LIBRARIES[name]
        for dtype in library.dtypes:
            for variant in filter(library.has, VARIANTS):
                print(f"{name}, {dtype}, {variant}", file=sys.stderr)
                for kind, run in (("step", single_steps), ("drift", drift)):
                    try:
                        errors, kept = run(library, variant, np.dtype(dtype), elements)
                    except Exception as error:  # a library without kernels for this dtype
                        if library is Rmsjit:
                            raise
                        print(f"  can't: {error!r:.200}", file=sys.stderr)
                        break
                    rows += summary(name, dtype, variant, kind, errors, kept)
    return rows


def summary(library, dtype, variant, kind, errors, kept):
    usable = kept >= KEPT
    for quantity, ulps in errors.items():
        counted = ulps if quantity in ("rms", "mg") else ulps[usable]
        yield {
            "library": library,
            "dtype": dtype,
            "variant": variant.name,
            "eps_inside": variant.eps_inside,
            "kind": kind,
            "quantity": quantity,
            "worst": float(counted.max()),
            "median": float(np.median(counted)),
            "worst_of_all": float(ulps.max()),
            "used": float(np.mean(usable)),
        }


def vanishing_variance(name, elements=64):
    """The worst error of a centered update under a constant gradient, by the number of steps.

    Returns
    -------
    dict of str to float
        In ulps of the exact update, by the number of steps; inf for NaN.
    """
    library, dtype = LIBRARIES[name], np.dtype("float32")
    variant = next(v for v in VARIANTS if v.name == "centered" and library.has(v))
    gradient = np.linspace(1, 10, elements, dtype=dtype)
    run = library(variant, np.zeros_like(gradient))
    found = {}
    with decimal.localcontext(prec=DIGITS):
        state = {key: exact(array) for key, array in run.state().items()}
        for count in range(1, max(CONSTANT_STEPS) + 1):
            run.reset_variable()
            run.step(gradient)
            step = exact_step(state, gradient, variant, run.numbers)
            state = step.state
            if count in CONSTANT_STEPS:
                got = -run.state()["variable"]
                ulps = in_ulps(got, step.update, step.scales["update"], dtype)
                found[str(count)] = float(ulps.max())
    return found


def measured_elsewhere(python, names, elements):
    """The result of measuring in another interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "result.json")
        command = [python, __file__, "--only", ",".join(names), "--json", str(path)]
        subprocess.run([*command, "--elements", str(elements)], check=True)
        return json.loads(path.read_text(encoding="utf-8"))


def result(names, elements):
    packages = [
        package for group, found in VERSIONS.items() if group[0] in names for package in found
    ]
    return {
        "rows": measure(names, elements),
        "constant": {name: vanishing_variance(name) for name in names},
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


# --- The page --------------------------------------------------------------------------------

TEXT = """\
# Accuracy

The rounding errors of one step and of ten, against the rule in exact arithmetic, for rmsjit and
other implementations of RMSprop. This page is generated by `docs/make_accuracy.py`;
`tests/test_accuracy.py` checks bounds for rmsjit on fewer elements.

## In short

{short}

## How to read the tables

The exact rule is computed with {digits} decimal digits from the gradients, the state and the
hyperparameters that a library really holds: learning rate {lr}, rho {rho}, momentum {momentum} and
epsilon {epsilon}, rounded to the dtype of its arithmetic. TensorFlow rounds all of them (tf-keras
all but epsilon) to float32 first, even for float64; this error of about 1e-8 is not counted here.
Each library is compared with its own form of the rule: the place of epsilon, the start of the
slots, and PyTorch's momentum, which is multiplied by the learning rate only when it is used.

{elements:,} elements take {steps} steps. The gradients of each element have a magnitude of
their own between 1e-10 and 1e10 (float16: 0.3 to 30, so that squares fit); their sign and size
change at every step.

A unit in the last place (ulp) is the distance between neighbouring numbers of the variable's dtype;
a correctly rounded result is within 0.5. For complex numbers, unit and error are those of the
modulus. If a result is a sum whose terms may cancel (mg, momentum, update with momentum), the unit
is that of the largest term, because the rounding errors of the terms do not cancel.

- **One step**: each step is measured by itself, from the state that the library was in. The
  variable is set to zero before it, so that afterwards it is exactly minus the update. (A variable
  that is much larger than its update has an error of 0.5 ulp and little else.)
- **Ten steps**: errors against the exact run from the same start, in ulps of the largest value that
  the element has had. The variable starts near 1.

Cells show **worst (median)** over all elements, steps and places of epsilon; for several forms, the
median of their medians. `-`: the library has no such form or dtype.

## The update of one step

{updates}

The centered form and complex numbers take the root of a difference. These tables count elements for
which at least half of its terms is left, {used} of all; the last table is about the others.

## Slots after one step → after ten; the variable after ten

The worst of all forms.

{slots}

## Where the variance vanishes

In the centered form, `rms - mg²` loses the digits that cancel. If a fraction k of its terms is
left, the error of the update is about 1/k ulp, in every library. Under a constant gradient k goes
to zero, so there is no bound. Worst error of the update in ulp, float32, for constant gradients
from 1 to 10:

{constant}

One million ulp are some 10 %.{nan} rmsjit's variance is never negative, so its update stays a
number, but it is no better: it tends to `lr*g/eps`. The same holds for complex numbers without
centering, because their squares may cancel in `rms`.

## Versions

{versions}
"""


def cell(rows, median=True):
    """The worst and the median error of some rows."""
    if not rows:
        return "-"
    worst = max(row["worst"] for row in rows)
    if not median:
        return number(worst)
    return f"{number(worst)} ({number(float(np.median([row['median'] for row in rows])))})"


def number(value):
    if not np.isfinite(value):
        return "NaN"
    if value >= 1e5:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.2f}" if value < 9.95 else f"{value:,.0f}"


def table(header, body):
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(results, elements):
    """The text of accuracy.md."""
    rows = [row for found in results for row in found["rows"]]
    names = [name for name in LIBRARIES if any(row["library"] == name for row in rows)]

    def select(**wanted):
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]

    def line(**wanted):
        return [cell(select(library=name, **wanted)) for name in names]

    updates = [
        [dtype, variant, *line(dtype=dtype, variant=variant, kind="step", quantity="update")]
        for dtype in DTYPES
        for variant in dict.fromkeys(variant.name for variant in VARIANTS)
    ]
    slots = []
    for dtype in DTYPES:
        for quantity in ("rms", "mg", "momentum", "variable"):
            one = line(dtype=dtype, kind="step", quantity=quantity)
            ten = line(dtype=dtype, kind="drift", quantity=quantity)
            cells = [
                end if end == "-" or quantity == "variable" else f"{start} → {end}"
                for start, end in zip(one, ten, strict=True)
            ]
            slots.append([dtype, quantity, *cells])
    constants = {name: found for group in results for name, found in group["constant"].items()}
    constant = [
        [str(count), *(number(constants[name][str(count)]) for name in names)]
        for count in CONSTANT_STEPS
    ]
    lost = [name for name in names if np.isinf(constants[name][str(CONSTANT_STEPS[-1])])]
    used = 100 * min(row["used"] for row in select(library="rmsjit", kind="step"))
    versions = ", ".join(
        f"{package} {version}"
        for found in results
        for package, version in found["versions"].items()
    )
    return TEXT.format(
        short=short(select),
        digits=DIGITS,
        lr=LR,
        rho=RHO,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        elements=elements,
        steps=STEPS,
        updates=table(["dtype", "form", *names], updates),
        used=f"{used:.0f} % or more",
        slots=table(["dtype", "", *names], slots),
        constant=table(["steps", *names], constant),
        nan=f" NaN ({', '.join(lost)}) is the root of a variance\nthat rounding made negative."
        if lost
        else "",
        versions=textwrap.fill(
            f"Python {platform.python_version()} on {platform.machine()}; {versions}.", 100
        ),
    )


def short(select):
    """The figures of rmsjit in sentences."""

    def worst(dtypes, quantities=QUANTITIES, library="rmsjit"):
        found = [
            row["worst"]
            for row in select(library=library, kind="step")
            if row["dtype"] in dtypes and row["quantity"] in quantities
        ]
        return number(max(found))

    single, pairs, means = ("float32", "float64"), ("complex64", "complex128"), ("rms", "mg")
    return f"""\
- **float32, float64**: one step leaves the averages within {worst(single, means)} ulp of the exact
  rule, and the update within {worst(single)}.
- **complex64, complex128**: the averages within {worst(pairs, means)} ulp of their modulus, the
  update within {worst(pairs)}.
- **float16, bfloat16**: {worst(HALF)} ulp, since rmsjit computes in float32 and rounds once.
  Arithmetic in half, as NumPy and TensorFlow do it, comes to {worst(HALF, library="NumPy")}.
- In the other dtypes, all libraries have about the same error, that of rounding each operation.
- If the variance of a centered form vanishes, no library's update has any correct digits."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", default=[], metavar="torch=PYTHON")
    parser.add_argument("--elements", type=int, default=2000)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--json", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        found = result(options.only.split(","), options.elements)
        pathlib.Path(options.json).write_text(json.dumps(found), encoding="utf-8")
        return
    results = [result(HERE, options.elements)]
    groups = {"torch": TORCH, "tensorflow": TENSORFLOW}
    for entry in options.python:
        group, _, python = entry.partition("=")
        results.append(measured_elsewhere(python, groups[group], options.elements))
    PAGE.write_text(page(results, options.elements), encoding="utf-8")


if __name__ == "__main__":
    main()
