"""The rule, for every form, dtype and number of threads, against the NumPy twin and itself."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import rmsjit
from reference import reference_step
from rmsjit.runtime import trials
from strategies import (
    BOTH,
    COMPLEX,
    DTYPES,
    FORMS,
    KERAS,
    REAL,
    TRAIN,
    Form,
    assert_close,
    checked_step,
    computing,
    every_dtype,
    every_form,
    every_slot_set,
    random_array,
    same_bits,
    seeds,
    shapes,
    slots_of,
    state_of,
)

# Pieces of norms have 8,192 elements; vectors and lines at most 64 bytes.
LONG_SIZES = (4095, 8191, 8192, 8193, 16385)


# --- Against the reference -------------------------------------------------------------------


@every_form
@every_dtype
@settings(max_examples=12)
@given(seed=seeds, shape=shapes, decades=st.integers(0, 3))
def test_steps_are_those_of_the_reference(form, dtype, seed, shape, decades):
    rng = np.random.default_rng(seed)
    variable = random_array(rng, shape, dtype, decades)
    optimizer = form.optimizer()
    for _ in range(4):
        checked_step(form, optimizer, [(random_array(rng, shape, dtype, decades), variable)])


@pytest.mark.slow
@every_slot_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_arrays_are_those_of_the_reference(form, dtype):
    rng = np.random.default_rng(0)
    optimizer = form.optimizer()
    variables = [random_array(rng, size, dtype) for size in LONG_SIZES]
    for _ in range(3):
        pairs = [(random_array(rng, v.shape, dtype), v) for v in variables]
        checked_step(form, optimizer, pairs)


factors = st.sampled_from([0.0, 1e-3, 0.5, 0.9, 0.999, 1.0])


@pytest.mark.slow
@every_form
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=25)
@given(seed=seeds, lr=st.floats(-1, 10), rho=factors, momentum=factors, log_eps=st.floats(-12, 0))
def test_any_hyperparameters(form, dtype, seed, lr, rho, momentum, log_eps):
    rng = np.random.default_rng(seed)
    # In the Keras face a momentum of zero would be another form.
    momentum = form.momentum and (momentum or 0.25)
    rule = {"lr": lr, "rho": rho, "momentum": momentum, "eps": 10.0**log_eps}
    optimizer = form.optimizer(lr, rho=rho, momentum=momentum, epsilon=rule["eps"])
    variable = random_array(rng, 19, dtype, 1)
    for _ in range(3):
        checked_step(form, optimizer, [(random_array(rng, 19, dtype, 1), variable)], **rule)


# No larger, so that neither a square nor the twin's product of two numbers overflows.
numbers = hnp.arrays("float64", 6, elements=st.floats(-1e150, 1e150))


@pytest.mark.slow
@every_form
@settings(max_examples=25)
@given(variable=numbers, gradients=st.lists(numbers, min_size=1, max_size=3))
@example(np.full(6, 5e-324), [np.full(6, 5e-324), np.full(6, 1e-162)])
@example(np.full(6, -0.0), [np.full(6, -0.0), np.full(6, 0.0)])
def test_any_numbers(form, variable, gradients):
    variable, optimizer = variable.copy(), form.optimizer()
    for gradient in gradients:
        checked_step(form, optimizer, [(gradient, variable)])


@pytest.mark.parametrize(
    "change",
    [
        {"eps": 2e-7},
        {"rho": 0.900001},
        {"momentum": 0.900001},
        {"lr": 0.0100001},
        {"eps_inside": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_comparison_notices_a_slightly_wrong_rule(change):
    rng = np.random.default_rng(0)
    variable, gradient = (random_array(rng, 99, "float32") for _ in range(2))
    optimizer = BOTH.optimizer()
    checked_step(BOTH, optimizer, [(gradient, variable)])
    with pytest.raises(AssertionError, match="instead of"):
        checked_step(BOTH, optimizer, [(gradient, variable)], **change)


def test_the_comparison_notices_one_wrong_element():
    rng = np.random.default_rng(0)
    before = random_array(rng, 99, "float32")
    after, _ = reference_step(
        before, before, BOTH.start(before), **BOTH.rule, compute_dtype="float32"
    )
    assert_close(after.copy(), after, before)
    for step in (4, -4):
        wrong = after.copy()
        wrong.view(np.int32)[98] += step
        with pytest.raises(AssertionError, match="instead of"):
            assert_close(wrong, after, after)
    with pytest.raises(AssertionError):
        assert_close(after.astype(np.float64), after, before)
    with pytest.raises(AssertionError):
        assert_close(np.where(after == after[5], np.nan, after).astype("float32"), after, before)


@every_form
def test_propagates_what_is_not_finite(form):
    """As the formulas have it: NaN stays NaN, and an infinite gradient gives one."""
    variable = np.ones(5)
    gradient = np.array([1.0, np.nan, np.inf, -np.inf, 1.0])
    form.optimizer().apply_gradients([(gradient, variable)])
    assert np.isnan(variable).tolist() == [False, True, True, True, False]


# --- Identities ------------------------------------------------------------------------------


def run(form, seed, dtype, *, sizes, steps=3, num_threads=1, **arguments):
    """Bytes of variables and slots after some steps, all variables in one call."""
    rng = np.random.default_rng(seed)
    optimizer = form.optimizer(num_threads=num_threads, **arguments)
    variables = [random_array(rng, size, dtype, 1) for size in sizes]
    for _ in range(steps):
        gradients = [random_array(rng, size, dtype, 1) for size in sizes]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return state_of(optimizer, variables)


@every_dtype
@pytest.mark.parametrize("centered", [False, True])
def test_momentum_of_zero_is_the_rule_without_momentum(centered, dtype):
    """TensorFlow 1's form, whose slot is always there, against the formula that has none."""
    rng = np.random.default_rng(1)
    form = Form("train", centered, 0)
    variable, optimizer = random_array(rng, 33, dtype, 1), form.optimizer()
    slots = form.start(variable)
    del slots["momentum"]
    rule = {**form.rule, "compute_dtype": computing(dtype)}
    for _ in range(3):
        gradient = random_array(rng, 33, dtype, 1)
        before = variable.copy()
        expected, slots = reference_step(variable, gradient, slots, **rule)
        optimizer.apply_gradients([(gradient, variable)])
        if dtype in COMPLEX:
            np.testing.assert_allclose(variable, expected, rtol=1e-3)
        else:
            assert_close(variable, expected, before)
        slots = {name: slots_of(form, optimizer, variable)[name] for name in slots}


@every_dtype
@pytest.mark.parametrize("centered", [False, True])
def test_a_momentum_slot_at_zero_changes_no_bit(centered, dtype):
    rng = np.random.default_rng(2)
    start = random_array(rng, 33, dtype, 1)
    without, beside = start.copy(), start.copy()
    plain, later = (rmsjit.RMSprop(0.01, centered=centered) for _ in range(2))
    later.momentum = 0.5  # the slot comes, epsilon stays
    later.momentum = 0.0
    for _ in range(3):
        gradient = random_array(rng, 33, dtype, 1)
        plain.apply_gradients([(gradient, without)])
        later.apply_gradients([(gradient, beside)])
        assert same_bits(without, beside)
    assert later.get_slot_names() == [*plain.get_slot_names(), "momentum"]


@every_slot_set
@every_dtype
@pytest.mark.parametrize("power", [-2, 3])
def test_scaling_gradients_by_powers_of_two_changes_no_bit(form, dtype, power):
    """With an epsilon that vanishes beside the root; only RMSprop's slots start from zero."""
    epsilon = 1e-300 if np.finfo(computing(dtype)).bits == 64 else 1e-37
    rng = np.random.default_rng(3)
    variables = [np.ones(33, dtype), np.ones(33, dtype)]
    optimizers = [form.optimizer(epsilon=epsilon) for _ in variables]
    for _ in range(3):
        # Near 1, so that squares are far from both ends of float16.
        gradient = (rng.uniform(1, 2, 33) * rng.choice([-1, 1], 33)).astype(dtype)
        for scale, optimizer, variable in zip((1, 2.0**power), optimizers, variables, strict=True):
            optimizer.apply_gradients([((gradient * scale).astype(dtype), variable)])
        assert same_bits(*variables)


@every_form
@pytest.mark.parametrize("dtype", REAL)
def test_the_rule_is_odd(form, dtype):
    """Negative gradients move a negative variable by exactly the negative."""
    rng = np.random.default_rng(4)
    gradients = [random_array(rng, 33, dtype, 1) for _ in range(3)]
    one = random_array(rng, 33, dtype, 1)
    other = -one
    for sign, variable in ((1, one), (-1, other)):
        optimizer = form.optimizer()
        for gradient in gradients:
            optimizer.apply_gradients([(gradient if sign > 0 else -gradient, variable)])
    np.testing.assert_array_equal(one, -other)


@every_form
def test_zero_gradients_leave_variables_alone(form):
    variable = np.array([1.0, -2.0, 0.0, -0.0, 5e-324])
    before = variable.copy()
    optimizer = form.optimizer()
    for _ in range(3):
        optimizer.apply_gradients([(np.zeros(5), variable)])
    np.testing.assert_array_equal(variable, before)


# --- Threads and grouping: the same bits -----------------------------------------------------


def assert_threads_agree(form, dtype, sizes, asked, **arguments):
    serial = run(form, 5, dtype, sizes=sizes, num_threads=1, **arguments)
    assert not any(asked)
    for threads in (2, 3):
        assert run(form, 5, dtype, sizes=sizes, num_threads=threads, **arguments) == serial
        assert asked.pop()  # or nothing would have been compared


@every_dtype
@pytest.mark.parametrize("sizes", [(1,), (0, 7, 0), (129, 1, 64), LONG_SIZES], ids=str)
def test_threads_give_the_same_bits_for_every_dtype(dtype, sizes, always_parallel):
    assert_threads_agree(BOTH, dtype, sizes, always_parallel)


@pytest.mark.parametrize("form", [KERAS[0], TRAIN[0], KERAS[2]], ids=str)
def test_threads_give_the_same_bits_for_every_slot_set(form, always_parallel):
    assert_threads_agree(form, "float32", LONG_SIZES, always_parallel)


@every_dtype
@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_threads_give_the_same_norms(dtype, clip, always_parallel):
    """A sum depends on its order, so the order must not depend on the threads."""
    assert_threads_agree(BOTH, dtype, (*LONG_SIZES, 100_003), always_parallel, **{clip: 0.5})


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex128"])
def test_threads_start_by_themselves_for_large_arrays(dtype, loaded):
    size = trials.LEAST_BYTES // np.dtype(dtype).itemsize
    serial = run(BOTH, 5, dtype, sizes=(size,), steps=16, num_threads=1)
    assert set(loaded) == {False}
    loaded.clear()
    assert run(BOTH, 5, dtype, sizes=(size,), steps=16, num_threads=2) == serial
    assert set(loaded) == {False, True}  # both were tried
    loaded.clear()
    run(BOTH, 5, dtype, sizes=(5,), steps=16, num_threads=2)
    assert set(loaded) == {False}


@every_slot_set
@every_dtype
def test_grouping_gives_the_same_bits(form, dtype):
    """All variables in one call, one in each call, one long variable, or one for each element."""
    rng = np.random.default_rng(6)
    sizes = (1, 7, 64, 33, 129)
    cuts = np.cumsum(sizes)[:-1]
    whole = random_array(rng, sum(sizes), dtype, 1)
    gradients = [random_array(rng, sum(sizes), dtype, 1) for _ in range(3)]
    results = []
    for borders, together in ((cuts, True), (cuts, False), ([], True), (range(1, 200), True)):
        variables = [part.copy() for part in np.split(whole, borders)]
        optimizers = [form.optimizer() for _ in variables]
        for gradient in gradients:
            pairs = list(zip(np.split(gradient, borders), variables, strict=True))
            if together:
                optimizers[0].apply_gradients(pairs)
                continue
            for optimizer, pair in zip(optimizers, pairs, strict=True):
                optimizer.apply_gradients([pair])
        results.append(np.concatenate(variables))
    for result in results[1:]:
        assert same_bits(result, results[0])


@every_slot_set
def test_variables_of_all_dtypes_in_one_call(form):
    rng = np.random.default_rng(7)
    optimizer = form.optimizer()
    variables = [random_array(rng, 17, dtype, 1) for dtype in DTYPES * 2]
    for _ in range(3):
        checked_step(form, optimizer, [(random_array(rng, 17, v.dtype, 1), v) for v in variables])


# --- Never NaN -------------------------------------------------------------------------------

MAGNITUDES = (3.3, 0.1, 1e-3, 1.0, 7.7e-5, 1e4, 12345.678, 1e-30, 0.0)


@every_dtype
@pytest.mark.parametrize("form", [form for form in FORMS if form.centered], ids=str)
def test_centered_never_gives_nan_under_a_constant_gradient(form, dtype):
    """The variance goes to zero, and rounding makes it negative in other libraries."""
    gradient = np.array([*MAGNITUDES, *(-np.array(MAGNITUDES))]).astype(dtype)
    assert np.all(np.isfinite(gradient))
    variable, optimizer = np.zeros_like(gradient), form.optimizer(0.001)
    for step in range(1000):
        optimizer.apply_gradients([(gradient, variable)])
        if step % 100 == 99:
            assert not np.any(np.isnan(variable))


def extremes(dtype):
    """Every pair of a variable and a gradient out of the largest and smallest numbers."""
    limits = ml_dtypes.finfo(dtype)
    largest = float(limits.max)
    if dtype in COMPLEX:  # a complex square subtracts two squares, which must not both overflow
        largest = float(np.sqrt(largest)) / 4
    smallest = (float(limits.smallest_normal), float(limits.smallest_subnormal))
    sizes = np.array([largest, largest / 2, *smallest, 1.0, 3.3, 0.0, -0.0])
    values = np.concatenate([sizes, -sizes]).astype(dtype)
    return [grid.ravel() for grid in np.meshgrid(values, values)]


@every_dtype
@pytest.mark.parametrize(("lr", "rho"), [(0.01, 0.9), (0.01, 0.0), (0.01, 1.0), (10.0, 0.9)])
def test_finite_input_never_gives_nan(dtype, lr, rho):
    """As long as the variable itself has not left the range of its dtype."""
    for form in FORMS:
        variable, gradient = extremes(dtype)
        optimizer = form.optimizer(lr, rho=rho)
        fine = np.ones(variable.shape, bool)
        for factor in (1, 1, -1, 0, 1):
            optimizer.apply_gradients([((gradient * np.int8(factor)).astype(dtype), variable)])
            state = [variable, *slots_of(form, optimizer, variable).values()]
            nan = np.any([np.isnan(array) for array in state], axis=0) & fine
            assert not nan.any(), f"{form}: gradients {set(np.abs(gradient[nan]).tolist())}"
            fine &= np.isfinite(variable)


@pytest.mark.parametrize("dtype", REAL)
@settings(max_examples=40)
@given(seed=seeds, rho=st.sampled_from([0.001, 0.5, 0.9, 0.999]))
def test_random_bits_never_give_nan(dtype, seed, rho):
    """Any finite numbers of the dtype, all exponents alike."""
    rng = np.random.default_rng(seed)
    width = np.dtype(f"u{np.dtype(dtype).itemsize}")

    def any_finite():
        bits = rng.integers(0, np.iinfo(width).max, 64, width, endpoint=True).view(dtype)
        with np.errstate(invalid="ignore"):  # of signalling NaNs
            return np.where(np.isfinite(bits), bits, np.ones_like(bits))

    variable, optimizer = any_finite(), BOTH.optimizer(0.01, rho=rho)
    fine = np.ones(variable.shape, bool)
    for _ in range(3):
        optimizer.apply_gradients([(any_finite(), variable)])
        nan = np.isnan(variable) & fine
        assert not nan.any()
        fine &= np.isfinite(variable)
