"""The cases of the forms of other libraries, as plain data.

A case is a run of ten steps with a changing learning rate, given by the arguments of a function of
`rmsjit.forms`, which are the library's own.  The generator (which runs the libraries), the tests
and the page of forms all read this file, so it imports neither a library nor rmsjit.

These are the forms whose libraries can be run, by functions of `form_libraries.py`.  The others are
written down in `form_transcriptions.py`, each with its cases.
"""

import random
from dataclasses import dataclass, field

import numpy as np

SIZE = 24
RATES = (0.05, 0.03, 0.05, 0.02, 0.07, 0.011, 0.04, 0.013, 0.06, 0.009)

MOMENTUM, DECAY = {"momentum": 0.9}, {"weight_decay": 0.1}
CENTERED = {"centered": True}
USUAL = (  # of libraries whose arguments have the usual names
    {},
    MOMENTUM,
    CENTERED,
    MOMENTUM | CENTERED,
    DECAY,
    MOMENTUM | CENTERED | DECAY,
)
NO_DECAY = USUAL[:4]

# An epsilon whose place is seen, as it is not small beside a gradient.
EPS = {"eps": 0.01}

LIVE = {
    "torch": (*USUAL, EPS),
    "keras": USUAL,
    "tf_keras": USUAL,
    "tf_keras_legacy": NO_DECAY,
    "tf1": NO_DECAY,
    "optax": (
        *NO_DECAY,
        {"eps_in_sqrt": False},
        {"eps_in_sqrt": False, "momentum": 0.0},
        {"eps_in_sqrt": False, **MOMENTUM},
        {"eps_in_sqrt": False, **MOMENTUM, **CENTERED},
        {"eps_in_sqrt": False, "initial_scale": 1.0},
        {"eps_in_sqrt": False, **MOMENTUM, "nesterov": True},
        {"eps_in_sqrt": False, "bias_correction": True},
        {**MOMENTUM, "nesterov": True, "bias_correction": True},
    ),
    "timm": (
        *USUAL,
        EPS,
        {"lr_in_momentum": False, **MOMENTUM},
        {"decoupled_decay": True, **MOMENTUM, **DECAY},
    ),
    "stable_baselines3": (*USUAL, EPS),
    "pfrl": (*USUAL, EPS),
    "torchopt": (*USUAL, EPS, {"initial_scale": 1.0}, {**MOMENTUM, "nesterov": True}),
    "autograd": ({}, {"gamma": 0.99, "eps": 1e-3}),
    "jax_example_libraries": ({}, {"momentum": 0.0}),
    "chainer": ({}, {"eps_inside_sqrt": True, "eps": 1e-3}),
    "chainer_graves": ({}, {"momentum": 0.0}),
    "paddle": USUAL,
    "mlx": ({},),
    "river": ({},),
}

# What the library has in one precision only: autograd makes all parameters float64, and MLX has
# no square root of float64.
ONLY = {"autograd": ("float64",), "mlx": ("float32",)}


@dataclass(frozen=True)
class FormCase:
    """One run: a form, the arguments of its function but the learning rate, and a dtype."""

    form: str
    arguments: dict = field(hash=False)
    dtype: str

    def __str__(self):
        given = (f"{name}={value}" for name, value in self.arguments.items())
        return "-".join([self.form, self.dtype, *given])


def cases_of(form, variants):
    """All cases of a form, in float32 and in float64."""
    dtypes = ONLY.get(form, ("float32", "float64"))
    return [FormCase(form, arguments, dtype) for dtype in dtypes for arguments in variants]


def inputs(case):
    """The initial variable and the gradient of each step.

    The variable is about as large as a step, so that its rounding hides nothing of the step.
    """
    source = random.Random(str(case))

    def numbers(scale):
        signed = [source.choice((-1, 1)) * source.uniform(0.1, 1.0) for _ in range(SIZE)]
        return (scale * np.array(signed)).astype(case.dtype)

    return numbers(0.05), [numbers(2.0) for _ in RATES]
