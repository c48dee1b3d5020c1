"""The cases of the golden vectors, as plain data.

The generator (which runs TensorFlow), the offline test and the live test all read this one
file, so it imports neither TensorFlow nor rmsjit.

Two faces are covered: "keras" is `tf_keras.optimizers.legacy.RMSprop`, "train" is
`tf.compat.v1.train.RMSPropOptimizer`. Both run eagerly on `tf.Variable`.

What TensorFlow 2.21 on a CPU cannot do, and is therefore missing here:

- Clipping complex gradients. All three clips raise InvalidArgumentError, because the operations
  under them (Minimum for `clipvalue`, Greater for `clipnorm`, L2Loss for `global_clipnorm`) do
  not allow complex types.
- Everything else asked for works, float16 and bfloat16 included. But TensorFlow computes those
  two in half precision, with a rounding after every operation, so its numbers there are only
  good to a few units in the last place.

What TensorFlow does that shapes the cases:

- Every hyperparameter is held as float32, whatever the variable's dtype; only `epsilon` and the
  clips of the keras face are taken in the variable's dtype. With `rho=0.9` a float64 variable
  is therefore updated with 0.8999999761581421. So every number below went through `f32`, and
  both libraries are given the same number. The cases called "unrounded" are the exception: they
  show the difference.
- `1 - rho` is computed in the variable's dtype from the rounded `rho`. In float32 with
  `rho=0.9` that is 0.100000024, two units away from the nearest float32 of 0.1.
- The step count (`iterations`, or `global_step` given to the train face) goes up by one per
  call in every case, also with non-finite gradients; the generator checks it.
- A centered variable has no guard against `rms - mg*mg < 0` (ours is clamped at zero). Five
  steps from zeros, or from ones, cannot come near that, so no case needs an exception.
- tf-keras with momentum 0 and a sparse gradient decays `rms` and `mg` of the whole table, not
  of the rows named. Those cases carry `whole_table=True`: their numbers are those of the dense
  rule with a zero gradient in all other rows (rmsjit: `sparse="exact"`).
"""

import math
import random
from dataclasses import dataclass, field

import numpy as np

HALF_DTYPES = ("float16", "bfloat16")
REAL_DTYPES = (*HALF_DTYPES, "float32", "float64")
COMPLEX_DTYPES = ("complex64", "complex128")
DTYPES = REAL_DTYPES + COMPLEX_DTYPES
EXACT_DTYPES = ("float32", "float64")

SHAPES = ((3, 4), (5,), (), (2, 3, 2))
FEW_SHAPES = ((3, 4), (5,))
TABLE_SHAPES = ((7, 3), (4,))


def f32(number):
    """The float32 nearest to `number`, as a Python float."""
    return float(np.float32(number))


@dataclass(frozen=True)
class Case:
    """One training run: an optimizer, its variables and what happens at each step."""

    name: str
    face: str
    dtype: str
    # Constructor arguments, as that face names them.
    settings: dict
    shapes: tuple = SHAPES
    steps: int = 5
    gradient_scale: float = 1.0
    # Hyperparameters with a value per step, by how they reach the optimizer: assigned to the
    # attribute before the step, or returned by a zero-argument callable given at construction.
    assigned: dict = field(default_factory=dict)
    callables: dict = field(default_factory=dict)
    # Constructor arguments of a PiecewiseConstantDecay used as the learning rate.
    schedule: dict | None = None
    # Which variables each step names, in order; empty: all of them, at each step.
    targets: tuple = ()
    # (step, position in that step's list, flat index, value): a value put into a gradient.
    poison: tuple = ()
    # Sparse cases: for each step, the rows named in the first variable's gradient.
    # A step's other gradients are dense.
    rows: tuple = ()
    whole_table: bool = False


def numpy_dtype(name):
    """The NumPy dtype of that name; bfloat16 needs the ml_dtypes package."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def slot_names(case):
    """The slots that the case's optimizer keeps, in the order of its weights."""
    centered = case.settings.get("centered", False)
    if case.face == "train":
        return ("rms", *(("mg",) if centered else ()), "momentum")
    has_momentum = "momentum" in case.callables or case.settings.get("momentum", 0) > 0
    return ("rms", *(("momentum",) if has_momentum else ()), *(("mg",) if centered else ()))


def targets_of(case, step):
    """Indices of the variables that get a gradient in this step, in the order of the list."""
    return case.targets[step] if case.targets else tuple(range(len(case.shapes)))


def hyperparameter(case, name, step):
    """The value of a hyperparameter at a step (legacy `decay` not yet applied)."""
    for by_step in (case.assigned, case.callables):
        if name in by_step:
            return by_step[name][step]
    if name == "learning_rate" and case.schedule:
        boundaries, values = case.schedule["boundaries"], case.schedule["values"]
        return values[sum(step > boundary for boundary in boundaries)]
    return case.settings[name]


def inputs(case):
    """The initial variables, and for every step the list of its gradients.

    The numbers come from `random.random` of the standard library, the one generator whose
    sequence for a seed is promised never to change, so they need not be stored.
    """
    source = random.Random(case.name)
    dtype = numpy_dtype(case.dtype)
    variables = [_numbers(source, shape, dtype, 2.0) for shape in case.shapes]
    gradients = [
        [_gradient(source, case, step, target, dtype) for target in targets_of(case, step)]
        for step in range(case.steps)
    ]
    for step, position, index, value in case.poison:
        gradients[step][position].reshape(-1)[index] = value
    return variables, gradients


def _gradient(source, case, step, target, dtype):
    shape = case.shapes[target]
    if case.rows and target == 0:
        shape = (len(case.rows[step]), *shape[1:])
    return _numbers(source, shape, dtype, case.gradient_scale)


def _numbers(source, shape, dtype, scale):
    """Numbers of either sign between scale/8 and scale.

    Not smaller, because the square of a small float16 gradient is subnormal, and then
    TensorFlow's half precision arithmetic says nothing about the rule.
    """
    count = math.prod(shape)
    numbers = np.array([_signed(source) * scale for _ in range(count)])
    if dtype.kind == "c":
        numbers = numbers + 1j * np.array([_signed(source) * scale for _ in range(count)])
    return numbers.astype(dtype).reshape(shape)


def _signed(source):
    sign = -1 if source.random() < 0.5 else 1
    return sign * (0.125 + 0.875 * source.random())


# --- Dense cases -----------------------------------------------------------------------------

KERAS = {"learning_rate": f32(0.01), "rho": f32(0.9), "momentum": 0.0, "epsilon": f32(1e-7)}
TRAIN = {"learning_rate": f32(0.01), "decay": f32(0.9), "momentum": 0.0, "epsilon": f32(1e-10)}
FACES = {"keras": KERAS, "train": TRAIN}
FORMS = {
    "plain": {},
    "momentum": {"momentum": f32(0.9)},
    "centered": {"centered": True},
    "both": {"momentum": f32(0.9), "centered": True},
}
NAN, INF = math.nan, math.inf


def _case(face, dtype, label, form="plain", settings=None, **rest):
    merged = {**FACES[face], **FORMS[form], **(settings or {})}
    return Case(f"{face}-{dtype}-{label}-{form}", face, dtype, merged, **rest)


def _small(face, dtype, label, form, settings=None, **rest):
    return _case(face, dtype, label, form, settings, shapes=FEW_SHAPES, **rest)


def _every_form():
    return [
        _case(face, dtype, "every", form) for face in FACES for dtype in DTYPES for form in FORMS
    ]


def _clips():
    """Each clip once low enough to bite at every step and once so high that it never does."""
    limits = {"clipvalue": (0.25, 8.0), "clipnorm": (0.5, 64.0), "global_clipnorm": (0.5, 64.0)}
    cases = []
    for dtype in REAL_DTYPES:
        for clip, (low, high) in limits.items():
            for form in ("plain", "both"):
                for word, limit in (("bites", low), ("idle", high)):
                    label = f"{clip}_{word}"
                    cases.append(_small("keras", dtype, label, form, {clip: limit}, steps=3))
    # clipvalue comes first, then the norm of what it left.
    for norm in ("clipnorm", "global_clipnorm"):
        for dtype in EXACT_DTYPES:
            label = f"clipvalue_then_{norm}"
            cases.append(_small("keras", dtype, label, "both", {"clipvalue": 0.25, norm: 0.5}))
    return cases


def _nonfinite():
    """A NaN or an infinity in one element, with each clip and without any.

    The infinities come at the last step, because a step later TensorFlow's fused operations
    hold NaN where the rule as written holds infinity: they compute rms + (g*g - rms)*(1 - rho).
    """
    clips = {"none": {}, "clipvalue": {"clipvalue": 0.25}}
    clips |= {"clipnorm": {"clipnorm": 0.5}, "global_clipnorm": {"global_clipnorm": 0.5}}
    return [
        _small(
            "keras",
            dtype,
            f"{word}_with_{clip}",
            form,
            settings,
            steps=3,
            poison=((1 if word == "nan" else 2, 0, 5, value),),
        )
        for dtype in ("float16", *EXACT_DTYPES)
        for clip, settings in clips.items()
        for word, value in (("nan", NAN), ("inf", INF), ("minus_inf", -INF))
        for form in ("plain", "both")
    ]


# Settings that both faces share; `rho` goes by the name `decay` in the train face.
SHARED_SETTINGS = {
    "rho_half": {"rho": 0.5},
    "rho_0.99": {"rho": f32(0.99)},
    "lr_0": {"learning_rate": 0.0},
    "lr_1": {"learning_rate": 1.0},
    "lr_0.001": {"learning_rate": f32(0.001)},
    "epsilon_1": {"epsilon": 1.0},
    "epsilon_0.001": {"epsilon": f32(1e-3)},
}
RATES = tuple(f32(rate) for rate in (0.01, 0.02, 0.0, 0.005, 0.1))
MOMENTA = tuple(f32(momentum) for momentum in (0.9, 0.5, 0.0, 0.99, 1.0))
RHOS = tuple(f32(rho) for rho in (0.9, 0.5, 0.99, 0.25, 0.9))


def _face_names(face, settings):
    if face == "train":
        return {"decay" if name == "rho" else name: value for name, value in settings.items()}
    return settings


def _settings():
    cases = []
    for dtype in EXACT_DTYPES:
        for face in FACES:
            for label, settings in SHARED_SETTINGS.items():
                for form in ("plain", "both"):
                    renamed = _face_names(face, settings)
                    cases.append(_small(face, dtype, label, form, renamed))
            cases.append(_small(face, dtype, "momentum_1", "plain", {"momentum": 1.0}))
            cases.append(_small(face, dtype, "momentum_half", "centered", {"momentum": 0.5}))
        # Only this form: the fused operations (all others) compute rms + (g*g - rms)*(1 - rho),
        # which loses the digits of g*g when rho is near zero and rms large.
        cases.append(_small("keras", dtype, "rho_0", "plain", {"rho": 0.0}))
        # Keras takes an epsilon of zero to mean "the default", 1e-7.
        cases.append(_small("keras", dtype, "epsilon_0", "plain", {"epsilon": 0.0}))
        cases.append(_small("keras", dtype, "epsilon_0", "momentum", {"epsilon": 0.0}))
    return cases


def _changing():
    """Hyperparameters that differ from step to step, by every way to change them."""
    cases = []
    for dtype in EXACT_DTYPES:
        for form in ("plain", "both"):
            assigned = {"learning_rate": RATES, "rho": RHOS}
            cases.append(_small("keras", dtype, "assigned", form, assigned=assigned))
            cases.append(_small("keras", dtype, "legacy_decay", form, {"decay": 0.25}))
            cases.append(
                _small(
                    "keras",
                    dtype,
                    "legacy_decay_and_assigned_rate",
                    form,
                    {"decay": f32(0.1)},
                    assigned={"learning_rate": RATES},
                )
            )
            boundaries, values = [1, 3], [f32(0.01), f32(0.003), f32(0.02)]
            schedule = {"boundaries": boundaries, "values": values}
            cases.append(_small("keras", dtype, "schedule", form, schedule=schedule))
            for face in FACES:
                rates = {"learning_rate": RATES}
                cases.append(_small(face, dtype, "callable_rate", form, callables=rates))
        for face in FACES:
            for form in ("plain", "centered"):
                momenta = {"momentum": MOMENTA}
                cases.append(_small(face, dtype, "callable_momentum", form, callables=momenta))
        # A callable momentum means a momentum slot, and epsilon inside the root, even at zero.
        zeros = {"momentum": (0.0,) * 5}
        cases.append(_small("keras", dtype, "callable_momentum_0", "plain", callables=zeros))
        cases.append(
            _small("keras", dtype, "assigned_momentum", "both", assigned={"momentum": MOMENTA})
        )
        rhos = {"decay": RHOS, "epsilon": (1e-10, f32(1e-3), 1.0, 0.5, 1e-10)}
        rhos["epsilon"] = tuple(f32(epsilon) for epsilon in rhos["epsilon"])
        cases.append(_small("train", dtype, "callable_decay_and_epsilon", "both", callables=rhos))
    return cases


def _gradients():
    """Unusual sizes of gradients, and unusual lists of them."""
    cases = []
    for face in FACES:
        for dtype in EXACT_DTYPES:
            for form in ("plain", "both"):
                for label, scale in (("zero", 0.0), ("tiny", 1e-6), ("huge", 1e6)):
                    cases.append(
                        _small(face, dtype, f"{label}_gradients", form, gradient_scale=scale)
                    )
                # Steps that leave a variable out still count for it.
                some = ((0, 1, 2, 3), (0, 2), (1, 3), (3, 0), (2,))
                cases.append(_case(face, dtype, "some_variables", form, targets=some))
                # One variable twice in a list: the updates follow one another.
                twice = ((0, 1), (0, 0), (1, 0, 1))
                cases.append(
                    _small(face, dtype, "same_variable_twice", form, steps=3, targets=twice)
                )
        cases.append(_small(face, "float16", "zero_gradients", "both", gradient_scale=0.0))
        cases.append(_small(face, "bfloat16", "zero_gradients", "plain", gradient_scale=0.0))
        # Long enough that errors which build up would show.
        cases.append(_small(face, "float64", "long", "both", steps=60))
        cases.append(_small(face, "float32", "long", "both", steps=60))
    return cases


DENSE_CASES = _every_form() + _clips() + _nonfinite() + _settings() + _changing() + _gradients()

# Given as a user writes them, so that TensorFlow's rounding to float32 shows in float64.
UNROUNDED_CASES = [
    Case(
        "keras-float64-unrounded",
        "keras",
        "float64",
        {"learning_rate": 0.01, "rho": 0.9, "momentum": 0.9, "epsilon": 1e-7, "centered": True},
    ),
    Case(
        "train-float64-unrounded",
        "train",
        "float64",
        {"learning_rate": 0.01, "decay": 0.9, "momentum": 0.9, "epsilon": 1e-10},
    ),
]


# --- Sparse cases ----------------------------------------------------------------------------

ROWS = {
    "unique": ((0, 3, 5), (6, 1), (3, 0, 6, 2), (4,)),
    "duplicates": ((2, 2, 2), (5, 1, 5, 0), (6, 2, 1, 2, 6), (3, 3)),
}


def _sparse():
    cases = []
    for face in FACES:
        for dtype in EXACT_DTYPES:
            for label, rows in ROWS.items():
                for form in FORMS:
                    cases.append(_sparse_case(face, dtype, label, form, rows))
    for dtype in EXACT_DTYPES:
        for form in ("plain", "both"):
            for clip, limit in (("clipvalue", 0.25), ("clipnorm", 0.5), ("global_clipnorm", 0.5)):
                label, rows = f"duplicates_{clip}", ROWS["duplicates"]
                cases.append(_sparse_case("keras", dtype, label, form, rows, {clip: limit}))
    return cases


def _sparse_case(face, dtype, label, form, rows, settings=None):
    has_momentum = "momentum" in FORMS[form]
    return _case(
        face,
        dtype,
        label,
        form,
        settings,
        shapes=TABLE_SHAPES,
        steps=len(rows),
        rows=rows,
        whole_table=face == "keras" and not has_momentum,
    )


SPARSE_CASES = _sparse()


# --- Schedules -------------------------------------------------------------------------------

SCHEDULE_STEPS = (*range(26), 29, 30, 31, 39, 40, 41, 49, 50, 51, 75, 99, 100, 101, 500, 10000)

SCHEDULE_CASES = {
    "exponential": ("ExponentialDecay", (0.1, 10, 0.5), {}),
    "exponential_staircase": ("ExponentialDecay", (0.1, 10, 0.5), {"staircase": True}),
    "exponential_growing": ("ExponentialDecay", (1e-3, 25, 1.0078125), {"name": "growing"}),
    "piecewise": ("PiecewiseConstantDecay", ([10, 20, 50], [1.0, 0.5, 0.1, 0.01]), {}),
    "piecewise_one": ("PiecewiseConstantDecay", ([3], [0.1, 0.2]), {"name": "one"}),
    "polynomial": ("PolynomialDecay", (0.1, 40), {}),
    "polynomial_root": ("PolynomialDecay", (0.1, 40, 0.01), {"power": 0.5}),
    "polynomial_square": ("PolynomialDecay", (0.1, 40, 0.0), {"power": 2.0}),
    "polynomial_cycle": ("PolynomialDecay", (0.1, 10, 0.01), {"cycle": True}),
    "polynomial_cycle_square": ("PolynomialDecay", (0.1, 8, 0.02, 2.0, True), {"name": "c"}),
    "inverse_time": ("InverseTimeDecay", (0.1, 10, 0.5), {}),
    "inverse_time_staircase": ("InverseTimeDecay", (0.1, 10, 0.5), {"staircase": True}),
    "cosine": ("CosineDecay", (0.1, 50), {}),
    "cosine_alpha": ("CosineDecay", (0.1, 50, 0.1), {}),
    "cosine_warmup": ("CosineDecay", (0.0, 40), {"warmup_target": 0.1, "warmup_steps": 10}),
    "cosine_warmup_alpha": (
        "CosineDecay",
        (0.01, 40, 0.2),
        {"warmup_target": 0.1, "warmup_steps": 10, "name": "warm"},
    ),
    # A target with no warmup steps decays from the target at once.
    "cosine_target_only": ("CosineDecay", (0.01, 40), {"warmup_target": 0.1}),
    # Warmup steps without a target are ignored.
    "cosine_steps_only": ("CosineDecay", (0.1, 40), {"warmup_steps": 10}),
    "restarts": ("CosineDecayRestarts", (0.1, 10), {}),
    "restarts_equal": ("CosineDecayRestarts", (0.1, 10), {"t_mul": 1.0, "m_mul": 0.5}),
    "restarts_shrinking": ("CosineDecayRestarts", (0.1, 8), {"t_mul": 2.0, "m_mul": 0.8}),
    "restarts_alpha": ("CosineDecayRestarts", (0.1, 7), {"t_mul": 1.5, "alpha": 0.1}),
}


# --- Interface -------------------------------------------------------------------------------

# Keyword arguments of tf-keras's RMSprop whose get_config() is stored.
# {"schedule": ...} stands for that schedule of SCHEDULE_CASES, {"callable": ...} for a function
# of no argument that returns the number.
CONFIG_CASES = {
    "defaults": {},
    "all_numbers": {
        "learning_rate": 0.01,
        "rho": 0.8,
        "momentum": 0.5,
        "epsilon": 1e-5,
        "centered": True,
        "name": "mine",
    },
    "epsilon_0": {"epsilon": 0.0},
    "epsilon_none": {"epsilon": None},
    "legacy_decay": {"decay": 0.125},
    "clipvalue": {"clipvalue": 0.5},
    "clipnorm": {"clipnorm": 1.5},
    "global_clipnorm": {"global_clipnorm": 2.5},
    "callables": {"learning_rate": {"callable": 0.5}, "momentum": {"callable": 0.25}},
    "two_clips": {"clipvalue": 0.5, "clipnorm": 1.5},
    "integers": {"learning_rate": 1, "momentum": 0, "rho": 0},
    "exponential": {"learning_rate": {"schedule": "exponential"}},
    "piecewise": {"learning_rate": {"schedule": "piecewise"}},
    "cosine_warmup": {"learning_rate": {"schedule": "cosine_warmup_alpha"}},
}
WEIGHT_VARIABLES = (("W", (2, 3)), ("b", (3,)))
