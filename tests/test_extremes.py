"""The largest and smallest numbers of every dtype, infinities and NaN, in gradients and variables.

What holds for real dtypes: finite gradients never turn a finite variable, or a slot of one, into
NaN.  An average whose square overflows becomes infinite, and its element stands still from then
on.  A step can leave the range only where it is ``lr*g/eps`` or as long (a centered form whose
variance vanishes, a rho of 1), which is soon beyond float16; from then on nothing is promised.

What does not hold for complex dtypes: a complex square is a difference of two squares, which gives
NaN once both overflow.  So the same is promised, and tested, for numbers whose modulus is below a
quarter of the root of the largest.
"""

import decimal
import itertools

import ml_dtypes
import numpy as np
import pytest

import rmsjit
from pairs import every_pair
from rmsjit import IndexedSlices
from strategies import (
    BOTH,
    COMPLEX,
    DTYPES,
    FORMS,
    REAL,
    TRAIN,
    every_dtype,
    every_form,
    random_array,
    same_bits,
    slots_of,
    state_of,
)
from test_accuracy import BOUNDS, script, worst

pytestmark = pytest.mark.slow

real_dtypes = pytest.mark.parametrize("dtype", REAL)
STEPS = 20


def sizes_of(dtype):
    """Sizes at which something may go wrong: of numbers, of their squares, and beside epsilon."""
    limits = ml_dtypes.finfo(dtype)
    largest, smallest = float(limits.max), float(limits.smallest_normal)
    if dtype in COMPLEX:
        largest = np.sqrt(largest) / 4
    tiny = float(limits.smallest_subnormal)
    roots = [np.sqrt(largest), 1.5 * np.sqrt(largest), np.sqrt(smallest), np.sqrt(tiny)]
    below = smallest - tiny  # the largest denormal number
    return np.array([largest, largest / 2, *roots, 1.0, 3.3, 1e-4, smallest, below, tiny, 0.0])


def extremes(dtype):
    sizes = sizes_of(dtype)
    return np.concatenate([sizes, -sizes]).astype(dtype)


def all_pairs(dtype):
    """Every variable with every gradient."""
    return [grid.ravel() for grid in np.meshgrid(extremes(dtype), extremes(dtype))]


def runs_of_gradients(dtype):
    """Sequences of gradients that each begin with all extremes; every row goes its own way."""
    _, first = all_pairs(dtype)
    rng = np.random.default_rng(0)
    ordinary = rng.choice([-1, 1], (STEPS, len(first))).astype(dtype)
    return {
        "constant": [first] * STEPS,
        "alternating": [first, -first] * (STEPS // 2),
        "zeros": [first] + [np.zeros_like(first)] * (STEPS - 1),
        "ordinary": [first, *ordinary[1:]],
        "any": [first, *rng.choice(extremes(dtype), (STEPS - 1, len(first)))],
    }


def assert_never_nan(form, optimizer, variable, gradients):
    """As long as no step of an element has left the range, in the variable or the momentum."""
    fine = np.ones(variable.shape, bool)
    for step, gradient in enumerate(gradients):
        optimizer.apply_gradients([(gradient, variable)])
        slots = slots_of(form, optimizer, variable)
        for name, array in {"variable": variable, **slots}.items():
            nan = np.isnan(array) & fine
            assert not nan.any(), f"{name}, step {step}: gradients {set(gradients[0][nan])}"
        fine &= np.isfinite(variable) & np.isfinite(slots.get("momentum", variable))
    return fine


# --- Finite gradients ------------------------------------------------------------------------


@every_pair(form=FORMS, dtype=DTYPES, run=runs_of_gradients("float32"))
def test_finite_gradients_never_give_nan(form, dtype, run):
    variable, _ = all_pairs(dtype)
    gradients = runs_of_gradients(dtype)[run]
    fine = assert_never_nan(form, form.optimizer(), variable, gradients)
    if not form.centered and dtype in REAL:
        assert fine.all()  # no variance vanishes, so no step is long


@every_form
@real_dtypes
def test_nor_under_changing_hyperparameters(form, dtype):
    """Zero and one among the factors: each meets averages that have overflowed."""
    variable, _ = all_pairs(dtype)
    rates, rhos = itertools.cycle([0.01, 10.0, 0.0, -1.0]), itertools.cycle([1.0, 0.0, 0.9, 0.001])
    optimizer = form.optimizer(lambda: next(rates), rho=lambda: next(rhos))
    assert_never_nan(form, optimizer, variable, runs_of_gradients(dtype)["any"])


@every_pair(form=FORMS, dtype=REAL, mode=["rows", "exact"])
def test_nor_in_rows(form, dtype, mode):
    """Rows that come up every third step, some with an index twice."""
    variable, _ = all_pairs(dtype)
    table = variable.reshape(-1, 4)
    optimizer = form.optimizer(sparse=mode)
    fine = np.ones(table.shape, bool)
    for step, gradient in enumerate(runs_of_gradients(dtype)["any"]):
        rows = np.arange(step % 3, len(table), 3)
        values = gradient.reshape(table.shape)[rows]
        again = values[:5] / 2
        values[:5] = again  # so that the sum is one of the extremes
        slices = IndexedSlices(
            np.concatenate([values, again]), np.concatenate([rows, rows[:5]]), table.shape
        )
        optimizer.apply_gradients([(slices, table)])
        for name, array in {"table": table, **slots_of(form, optimizer, table)}.items():
            assert not (np.isnan(array) & fine).any(), f"{name}, step {step}"
        fine &= np.isfinite(table)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_nor_where_the_sum_of_an_index_that_comes_twice_overflows(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    table = np.ones((3, 2), dtype)
    values = np.array([[largest, -largest], [largest, -largest]], dtype)
    rmsjit.RMSprop(0.01).apply_gradients([(IndexedSlices(values, [1, 1], (3, 2)), table)])
    assert not np.isnan(table).any()


@real_dtypes
@pytest.mark.parametrize("variant", script.VARIANTS, ids=str)
def test_small_numbers_are_those_of_exact_arithmetic(variant, dtype):
    """Denormal numbers are not flushed to zero, nor are steps that come to one."""
    small = [size for size in sizes_of(dtype) if 0 < size < 1e-4]
    first, second = (grid.ravel() for grid in np.meshgrid([*small, 1.0], [*small, 1.0]))
    with decimal.localcontext(prec=script.DIGITS):
        run = script.Rmsjit(variant, np.zeros(first.shape, dtype))
        for gradient in (first.astype(dtype), -second.astype(dtype)):
            run.reset_variable()
            before = {name: script.exact(array) for name, array in run.state().items()}
            run.step(gradient)
            after = run.state()
            exact = script.exact_step(before, gradient, variant, run.numbers)
            errors = {
                name: script.in_ulps(after[name], exact.state[name], exact.scales[name], dtype)
                for name in variant.slots
            }
            scale = exact.scales["update"]
            errors["update"] = script.in_ulps(-after["variable"], exact.update, scale, dtype)
            found = worst(errors, exact.kept)
            assert all(found[name] <= BOUNDS[dtype][name] for name in found), found


@every_dtype
def test_a_denormal_variable_keeps_its_bits_under_a_zero_gradient(dtype):
    variable = np.resize(extremes(dtype), 67)
    before, optimizer = variable.copy(), rmsjit.RMSprop(0.01)
    for _ in range(3):
        optimizer.apply_gradients([(np.zeros_like(variable), variable)])
    np.testing.assert_array_equal(variable, before)


@every_form
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("centered_at_rest", [False, True])
def test_an_average_that_overflows_stops_its_element(form, dtype, centered_at_rest):
    """One spike, then ordinary gradients: the exact steps would be next to zero."""
    largest = float(ml_dtypes.finfo(dtype).max)
    spikes = np.array([largest, -largest, largest / 2, largest**0.8, largest**0.55], dtype)
    variable, optimizer = np.zeros(len(spikes), dtype), form.optimizer()
    optimizer.apply_gradients([(spikes, variable)])
    momentum_left = form.momentum / (1 - form.momentum) * np.abs(variable).astype(float)
    assert np.all(np.abs(variable).astype(float) == 0)
    for _ in range(2 * STEPS):
        gradient = np.full_like(variable, 0 if centered_at_rest else 1)
        optimizer.apply_gradients([(gradient, variable)])
    assert np.all(np.abs(variable).astype(float) <= momentum_left + 1e-6)


@every_form
@real_dtypes
def test_a_spike_of_any_size_is_never_followed_by_long_steps(form, dtype):
    """Also where its square has not overflowed, or only in the stored average (float16)."""
    limits = ml_dtypes.finfo(dtype)
    exponents = np.linspace(0, np.log10(float(limits.max)) - 1e-3, 200)
    spikes = (10.0**exponents).astype(dtype)
    variable, optimizer = np.zeros(len(spikes), dtype), form.optimizer(0.01)
    longest = 0.01 * 4 / (1 - form.momentum)  # 1 / sqrt(1 - rho) is 3.2
    for step in range(STEPS):
        before = variable.astype(float)
        gradient = spikes if step == 3 else np.full_like(spikes, (-1) ** (step // 2))
        optimizer.apply_gradients([(gradient, variable)])
        change = np.abs(variable.astype(float) - before)
        assert change.max() <= longest, (
            f"step {step}: from a spike of {spikes[change > longest].min()}"
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_hyperparameter_beyond_the_dtype_is_refused(dtype):
    """Infinite in the dtype of the arithmetic, it would turn a zero gradient into NaN."""
    variable = np.ones(3, dtype)
    for arguments in ({"learning_rate": 1e39}, {"learning_rate": -1e39}, {"epsilon": 1e39}):
        optimizer = rmsjit.RMSprop(**arguments)
        with pytest.raises(ValueError, match=next(iter(arguments))):
            optimizer.apply_gradients([(np.zeros(3, dtype), variable)])
    np.testing.assert_array_equal(variable, np.ones(3, dtype))


@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
def test_a_gradient_beyond_the_range_of_its_variable_is_infinite(nonfinite):
    """And NumPy's warning of the cast does not come through."""
    variable, optimizer = np.ones(3, "float32"), rmsjit.RMSprop(0.01, nonfinite=nonfinite)
    pairs = [(np.array([1.0, 1e300, 2.0]), variable)]
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError, match="variable 0"):
            optimizer.apply_gradients(pairs)
    else:
        optimizer.apply_gradients(pairs)
    assert np.isnan(variable).tolist() == [False, nonfinite == "propagate", False]
    assert optimizer.skipped_steps == (nonfinite == "skip")


# --- NaN and infinity propagate, to their own elements only ----------------------------------


def nonfinite_of(dtype):
    plain = [np.nan, np.inf, -np.inf]
    return [*plain, complex(1, np.nan), complex(0, np.inf)] if dtype in COMPLEX else plain


SIZE = 67  # whole vectors and a rest, for every dtype
PLACES = [0, 5, 31, 32, 66]


@every_form
@every_dtype
def test_propagates_to_its_own_elements_only(form, dtype):
    for bad in nonfinite_of(dtype):
        results = []
        for value in (bad, 1):
            rng = np.random.default_rng(0)
            variable, optimizer = random_array(rng, SIZE, dtype, 1), form.optimizer()
            for step in range(3):
                gradient = random_array(rng, SIZE, dtype, 1)
                if step == 1:
                    gradient[PLACES] = value
                optimizer.apply_gradients([(gradient, variable)])
            results.append([variable, *slots_of(form, optimizer, variable).values()])
        assert np.isnan(results[0][0][PLACES]).all()
        for array, expected in zip(*results, strict=True):
            assert same_bits(np.delete(array, PLACES), np.delete(expected, PLACES))


@every_pair(form=FORMS, dtype=DTYPES, mode=["rows", "exact"])
def test_propagates_to_its_own_columns_of_rows_only(form, dtype, mode):
    """Whichever of the occurrences of an index holds it."""
    for bad, occurrence in itertools.product(nonfinite_of(dtype), [0, 2]):
        results = []
        for value in (bad, 1):
            rng = np.random.default_rng(0)
            table, optimizer = random_array(rng, (6, 19), dtype, 1), form.optimizer(sparse=mode)
            for step in range(3):
                values = random_array(rng, (3, 19), dtype, 1)
                if step == 1:
                    values[occurrence, 7] = value
                slices = IndexedSlices(values, [4, 1, 4], table.shape)
                optimizer.apply_gradients([(slices, table)])
            results.append([table, *slots_of(form, optimizer, table).values()])
        assert np.isnan(results[0][0][4, 7])
        for array, expected in zip(*results, strict=True):
            array, expected = np.array(array), np.array(expected)
            array[4, 7] = expected[4, 7] = 0
            assert same_bits(array, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@every_dtype
def test_a_clipped_norm_keeps_it_within_its_own_gradient(dtype, bad):
    """An infinite norm scales finite elements to zero; NaN makes all of its gradient NaN."""
    one, other, alone = (np.ones(SIZE, dtype) for _ in range(3))
    gradient = np.ones(SIZE, dtype)
    infinite = gradient.copy()
    infinite[PLACES] = bad
    rmsjit.RMSprop(0.01, clipnorm=1.0).apply_gradients([(infinite, one), (gradient, other)])
    rmsjit.RMSprop(0.01, clipnorm=1.0).apply_gradients([(gradient, alone)])
    assert same_bits(other, alone)
    rest = np.delete(one, PLACES)
    assert np.isnan(one[PLACES]).all()
    assert np.isnan(rest).all() if np.isnan(bad) else same_bits(rest, np.ones_like(rest))


@real_dtypes
def test_a_clipped_value_makes_infinity_finite(dtype):
    variable, bounded = np.ones(5, dtype), np.ones(5, dtype)
    gradient = np.array([1, np.inf, -np.inf, np.nan, -5], dtype)
    rmsjit.RMSprop(0.01, clipvalue=2.0).apply_gradients([(gradient, variable)])
    rmsjit.RMSprop(0.01).apply_gradients([(np.array([1, 2, -2, np.nan, -2], dtype), bounded)])
    assert np.isnan(variable).tolist() == [False, False, False, True, False]
    assert same_bits(np.delete(variable, 3), np.delete(bounded, 3))


# --- "skip" and "raise" ----------------------------------------------------------------------

CLIPS = {
    "none": {},
    "value": {"clipvalue": 0.5},
    "norm": {"clipnorm": 0.5},
    "global": {"global_clipnorm": 0.5},
    "value and norm": {"clipvalue": 0.5, "clipnorm": 0.5},
}
SETTINGS = {
    **{f"{clip}, direct": (BOTH, clip, False) for clip in CLIPS},
    **{f"{clip}, hooked": (BOTH, clip, True) for clip in CLIPS},
    "TensorFlow 1": (TRAIN[-1], "none", False),
}


class Model:
    """One variable of each dtype, some with sparse gradients, and an optimizer."""

    def __init__(self, form, clip, hooked, layout, nonfinite, mode):
        dtypes = REAL if "value" in clip else DTYPES
        rng = np.random.default_rng(0)
        self.form, self.rng = form, rng
        self.variables = [random_array(rng, (5, 7), dtype, 1) for dtype in dtypes]
        self.sparse = {"dense": (), "sparse": range(9), "mixed": (0, 3, 5)}[layout]
        arguments = {"gradient_transformers": [lambda pairs: pairs]} if hooked else {}
        self.optimizer = form.optimizer(
            nonfinite=nonfinite, sparse=mode, **CLIPS[clip], **arguments
        )
        self.counter = np.zeros((), np.int64)

    def gradients(self):
        dense = [random_array(self.rng, v.shape, v.dtype, 1) for v in self.variables]
        return [
            IndexedSlices(g[:3], [4, 1, 4], g.shape) if k in self.sparse else g
            for k, g in enumerate(dense)
        ]

    def step(self, gradients):
        counted = () if self.form.face == "keras" else (self.counter,)
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True), *counted)

    def state(self):
        return state_of(self.optimizer, self.variables), int(self.counter)


def spoil(gradients, position, bad):
    """The gradients with a bad number at the end of one of them."""
    spoilt = list(gradients)
    gradient = gradients[position]
    values = np.array(gradient.values if isinstance(gradient, IndexedSlices) else gradient)
    values.reshape(-1)[-1] = bad
    if isinstance(gradient, IndexedSlices):
        values = IndexedSlices(values, gradient.indices, gradient.dense_shape)
    spoilt[position] = values
    return spoilt


@every_pair(
    name=SETTINGS,
    layout=["dense", "sparse", "mixed"],
    mode=["rows", "exact"],
    nonfinite=["skip", "raise"],
)
def test_a_refused_step_changes_nothing(name, layout, mode, nonfinite):
    """In the first step and in a later one; and what follows is as if it had never been."""
    form, clip, hooked = SETTINGS[name]
    model, twin = (Model(form, clip, hooked, layout, nonfinite, mode) for _ in range(2))
    refused = 0
    for _ in range(2):
        gradients = model.gradients()
        for position, variable in enumerate(model.variables):
            for bad in nonfinite_of(variable.dtype.name):
                before = model.state()
                spoilt = spoil(gradients, position, bad)
                if nonfinite == "raise":
                    with pytest.raises(FloatingPointError, match=f"variable {position} must"):
                        model.step(spoilt)
                else:
                    model.step(spoilt)
                    refused += 1
                assert model.state() == before
        assert model.optimizer.skipped_steps == refused
        model.step(gradients)
        twin.step(twin.gradients())
        assert model.state() == twin.state()


# --- Norms near the ends of the range --------------------------------------------------------


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64"])
def test_norms_beyond_single_precision(clip, dtype):
    """A norm is taken in double precision, so only the factor is short of digits, being denormal.

    Below 1e-45 it is zero: a bound of 1e-6 under a norm of 1e40 leaves nothing of a gradient.
    """
    variable, gradient = np.zeros(1000, dtype), np.full(1000, 3e38).astype(dtype)
    optimizer = rmsjit.RMSprop(0.01, **{clip: 1.0})
    optimizer.apply_gradients([(gradient, variable)])
    clipped = 1.0 / np.sqrt(1000)
    rms = np.asarray(optimizer.get_slot(variable, "rms")).astype(complex)
    np.testing.assert_allclose(rms, 0.1 * clipped**2, rtol=1e-2)


@every_pair(
    size=[1, SIZE, 5000],
    nonfinite=["propagate", "skip", "raise"],
    clip=["clipnorm", "global_clipnorm"],
    dtype=["float64", "complex128"],
    hooked=[False, True],
)
def test_norms_that_overflow_double_precision(clip, dtype, hooked, nonfinite, size):
    """They count as infinite, so the gradient is scaled to zero; but it is finite, and stays so.

    TensorFlow's `clipnorm` gives zero as well, its `global_clipnorm` NaN.
    """
    arguments = {"gradient_transformers": [lambda pairs: pairs]} if hooked else {}
    for value in (2.0**512, 1e300, np.finfo("float64").max):
        optimizer = BOTH.optimizer(nonfinite=nonfinite, **{clip: 0.5}, **arguments)
        variable = np.ones(size, dtype)
        for gradient in (np.ones(size, dtype), np.full(size, value, dtype)):
            before = variable.copy()
            optimizer.apply_gradients([(gradient, variable)])
        assert int(optimizer.iterations) == 2
        np.testing.assert_allclose(before - variable, 0.9 * (1 - before), rtol=1e-12)  # momentum


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
@every_dtype
def test_norms_of_denormal_gradients_clip_nothing(clip, dtype):
    tiny = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    results = []
    for arguments in ({}, {clip: 1.0}):
        variable, optimizer = np.zeros(SIZE, dtype), rmsjit.RMSprop(0.01, **arguments)
        gradient = np.full(SIZE, 3 * tiny).astype(dtype)
        optimizer.apply_gradients([(gradient, variable)])
        results.append(variable)
    assert same_bits(*results)


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [({"grad_scale": 1e39}, "float32"), ({"loss_scale": 1e46}, "float32"),
     ({"grad_scale": 1e-46}, "float32"), ({"grad_scale": 1e300, "loss_scale": 1e-20}, "float64")],
)  # fmt: skip
@pytest.mark.parametrize("hooks", [None, [lambda pairs: pairs]])
def test_scales_beyond_the_dtype_are_refused(settings, dtype, hooks):
    if hooks and "loss_scale" in settings:
        pytest.skip("hooks are not for a loss scale")
    w, opt = np.zeros(1, dtype), rmsjit.RMSprop(gradient_transformers=hooks, **settings)
    with pytest.raises(ValueError, match=f"loss_scale must be in the range of {dtype}, got"):
        opt.apply_gradients([(np.ones(1, dtype), w)])
    assert (int(opt.iterations), w[0]) == (0, 0.0)


def test_small_loss_scales_are_clipped_by_norm():
    w, opt = np.zeros(1), rmsjit.RMSprop(0.1, loss_scale=1e-100, global_clipnorm=1.0)
    opt.apply_gradients([(np.full(1, 1e-100), w)])
    assert opt.last_gradient_norm == pytest.approx(1.0)
    assert np.isfinite(w).all()
