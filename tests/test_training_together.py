"""Groups, averages, accumulation, decay, tables, half types and a loss scale, all in one run.

Compared with the rule in NumPy, and with the same run that is saved in the middle of a round.
"""

import copy
import pickle

import numpy as np
import pytest

import rmsjit
from reference import reference_sparse_step, reference_step
from rmsjit import IndexedSlices

RATE, RHO, MOMENTUM, EPSILON, DECAY, EMA = 0.05, 0.9, 0.8, 1e-3, 0.1, 0.6
CALLS, STEPS = 2, 5
NAMES = ("kernel", "bias", "table", "frozen")
GROUPS = {"bias": {"lr_multiplier": 2.0, "weight_decay": 0.0}, "table": {"momentum": 0.5}}


def variables_in(dtype):
    shapes = {"kernel": (4, 3), "bias": (3,), "table": (6, 2), "frozen": (2,)}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def gradients_at(call, variables):
    """Quarters, so that sums and means are exact in every dtype."""
    rng = np.random.default_rng(100 + call)

    def quarters(shape, dtype):
        return (rng.integers(-8, 9, shape) / 4).astype(dtype)

    found = {name: quarters(v.shape, v.dtype) for name, v in variables.items()}
    rows = rng.integers(0, 6, 3)
    found["table"] = IndexedSlices(quarters((3, 2), variables["table"].dtype), rows)
    return found


def optimizer_for(variables, **settings):
    opt = rmsjit.RMSprop(
        RATE,
        rho=RHO,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        weight_decay=DECAY,
        use_ema=True,
        ema_momentum=EMA,
        gradient_accumulation_steps=CALLS,
        loss_scale=rmsjit.DynamicLossScale(4.0, growth_interval=2),
        master_weights=True,
        **settings,
    )
    for name, numbers in GROUPS.items():
        opt.add_group([variables[name]], **numbers)
    opt.add_group([variables["frozen"]], frozen=True)
    return opt


def call(opt, variables, number):
    """One call of a round, with gradients of the scaled loss."""
    pairs = []
    for name, gradient in gradients_at(number, variables).items():
        scale = variables[name].dtype.type(opt.loss_scale)
        if isinstance(gradient, IndexedSlices):
            gradient = IndexedSlices(gradient.values * scale, gradient.indices)
        else:
            gradient = gradient * scale
        pairs.append((gradient, variables[name]))
    opt.apply_gradients(pairs)


def mean_of(gradients):
    """The mean over the calls of a round; of a table, as rows that occur several times."""
    if isinstance(gradients[0], IndexedSlices):
        values = np.concatenate([g.values.astype("f8") for g in gradients]) / CALLS
        return IndexedSlices(values, np.concatenate([g.indices for g in gradients]))
    return sum(g.astype("f8") for g in gradients) / CALLS


class Twin:
    """The run in NumPy, in double precision."""

    def __init__(self, variables):
        self.values = {name: v.astype("f8") for name, v in variables.items()}
        self.slots = {
            name: {"rms": np.zeros(v.shape), "momentum": np.zeros(v.shape)}
            for name, v in self.values.items()
        }
        self.averages = {name: v.copy() for name, v in self.values.items()}

    def step(self, number, gradients):
        for name in NAMES[:3]:
            own, gradient = GROUPS.get(name, {}), gradients[name]
            rule = {
                "lr": RATE * own.get("lr_multiplier", 1.0),
                "rho": RHO,
                "momentum": own.get("momentum", MOMENTUM),
                "eps": EPSILON,
                "eps_inside": True,
                "compute_dtype": "f8",
                "weight_decay": own.get("weight_decay", DECAY),
                "decay_kind": "subtracted",
            }
            rows = slice(None)
            value, slots = self.values[name], self.slots[name]
            if isinstance(gradient, IndexedSlices):
                rows = np.unique(gradient.indices)
                given = (gradient.values, gradient.indices)
                value, slots = reference_sparse_step(value, *given, slots, **rule)
            else:
                value, slots = reference_step(value, gradient, slots, **rule)
            self.values[name], self.slots[name] = value, slots
            factor = EMA if number else 0.0
            average = self.averages[name]
            average[rows] = factor * average[rows] + (1 - factor) * value[rows]


def exact_value(opt, variable):
    return opt.get_slot(variable, "master").numpy() if variable.itemsize == 2 else variable


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_all_in_one_run(dtype):
    variables = variables_in(dtype)
    opt, twin = optimizer_for(variables), Twin(variables)
    for step in range(STEPS):
        calls = [step * CALLS + k for k in range(CALLS)]
        for number in calls:
            call(opt, variables, number)
        rounds = [gradients_at(number, variables) for number in calls]
        twin.step(step, {name: mean_of([one[name] for one in rounds]) for name in NAMES})
        tolerance = 1e-12 if dtype == "float64" else 2e-5
        for name in NAMES[:3]:
            got = exact_value(opt, variables[name])
            np.testing.assert_allclose(got, twin.values[name], tolerance, tolerance)
            average = opt.get_slot(variables[name], "average").numpy()
            np.testing.assert_allclose(average, twin.averages[name], tolerance, tolerance)
            np.testing.assert_array_equal(variables[name], got.astype(dtype))
    np.testing.assert_array_equal(variables["frozen"], variables_in(dtype)["frozen"])
    assert (int(opt.iterations), opt.loss_scale) == (STEPS, 4.0 * 2 ** (STEPS // 2))


def went_on(how, opt, variables, folder):
    if how == "pickle":
        return pickle.loads(pickle.dumps((opt, variables)))
    if how == "copy":
        return copy.deepcopy((opt, variables))
    rmsjit.save(folder / "run.npz", opt, variables)
    if how == "file":
        return rmsjit.load(folder / "run.npz")
    fresh = {name: np.zeros_like(v) for name, v in variables.items()}
    return rmsjit.load(folder / "run.npz", optimizer_for(fresh), fresh)


@pytest.mark.parametrize("how", ["pickle", "copy", "file", "into"])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_saved_in_the_middle_of_a_round(how, dtype, tmp_path):
    """After three calls of rounds of two, with the scale about to grow."""
    variables = variables_in(dtype)
    opt = optimizer_for(variables)
    for number in range(3):
        call(opt, variables, number)
    other, theirs = went_on(how, opt, variables, tmp_path)
    assert other.accumulated_calls == 1
    for number in range(3, 9):
        call(opt, variables, number)
        call(other, theirs, number)
    for name, variable in variables.items():
        np.testing.assert_array_equal(theirs[name], variable)
    for got, expected in zip(other.get_weights(), opt.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert (other.loss_scale, other.skipped_steps) == (opt.loss_scale, opt.skipped_steps)


def test_a_round_with_an_overflow_is_skipped_and_then_all_goes_on():
    variables = variables_in("float16")
    opt = optimizer_for(variables)
    for number in range(2):
        call(opt, variables, number)
    before = [v.copy() for v in (*variables.values(), *opt.get_weights())]
    gradient = np.full((4, 3), np.inf, np.float16)
    opt.apply_gradients([(gradient, variables["kernel"])])
    opt.apply_gradients([(np.ones(3, np.float16), variables["bias"])])
    for now, then in zip([*variables.values(), *opt.get_weights()], before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert (opt.skipped_steps, opt.loss_scale, opt.accumulated_calls) == (1, 2.0, 0)
    for number in range(2, 4):
        call(opt, variables, number)
    assert int(opt.iterations) == 2
